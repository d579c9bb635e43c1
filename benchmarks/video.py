"""A training step of configs/video.py with teacher forcing: against PyTorch, and against a frame at a time.

python benchmarks/video.py [--rounds=5] [--steps=6] [--size=32] [--width=16] [--batch_size=16]

Clips of 2 + 10 colour frames with 7 conditions, of noise, on which the time does not depend. A step is forward,
backward and Adam. Contenders:

- cvae_jax, `train_steps` as training calls it, which cuts clips out of videos on the device;
- the same networks in JAX a frame at a time, as the papers' code has it: encoder and decoder in the loop over time;
- PyTorch written plainly, a frame at a time, on clips ready made;
- PyTorch with all frames in one batch, as ours has them.

First of all, with our weights in PyTorch's network and z at the posterior's mean, the losses of one batch and each
parameter's gradients must agree within 1e-3; else nothing is timed, and the exit code is 1. (A frame at a time, batch
normalisation has other statistics: what these compute is not the same, and takes the same operations.)

Contenders take turns; medians over the rounds, and of the ratios taken round by round: above 1, ours is the faster.
All run in this process on the cores that it may use. The machine should have nothing else to do.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from steps import BATCHES, TOLERANCE, Trainer, difference, rounds_of, spread
from timing import num_threads
from video_torch import InTorch, converted

from configs import video
from cvae_jax.distributions import MAX_LOG_SCALE, bounded_normal
from cvae_jax.errors import UserError
from cvae_jax.evaluation import tables
from cvae_jax.tasks.video.frames import widths
from cvae_jax.tasks.video.networks import LEVER, VideoNetworks


def frame_by_frame(config: Any, ours: Trainer, columns: int) -> Callable[[int], None]:
    """Training steps of the same networks with encoder and decoder in the loop over time, on clips ready made."""
    settings = config.cvae
    channels = ours.task.raw["frames"].shape[-1]
    networks = VideoNetworks(
        settings.network, widths(settings.width, config.data.size), channels, settings.features, settings.latent,
        settings.prior, settings.hidden, settings.predictor_layers, config.num_past, False, True,
    )  # fmt: skip

    def loss_of(nets: VideoNetworks, frames: jax.Array, condition: jax.Array, key: jax.Array) -> jax.Array:
        condition = nets.standardised(condition, use_running_average=False)
        carry = nets.predictor.start(frames.shape[1])
        carry_q = carry_p = (carry[0],)
        features, skips = zip(*(nets.encoder(frame) for frame in frames), strict=True)
        kl = error = jnp.zeros(())
        for t in range(1, len(frames)):
            carry_q, told_q = nets.recognition_net(carry_q, features[t])
            carry_p, told_p = nets.prior_net(carry_p, features[t - 1])
            q, p = (bounded_normal(*jnp.split(told, 2, -1)) for told in (told_q, told_p))
            kl += q.kl(p).sum()
            z = q.mean + q.scale * jax.random.normal(jax.random.fold_in(key, t), q.mean.shape)
            carry, told = nets.predictor(carry, jnp.concatenate([features[t - 1], z, condition[t]], -1))
            of_skips = nets.decoder.of_skips(skips[min(t, config.num_past) - 1])
            error += ((nets.decoder(jnp.tanh(told), of_skips) - frames[t]) ** 2).sum()
        log_scale = MAX_LOG_SCALE * jnp.tanh(LEVER * nets.log_scale / MAX_LOG_SCALE)
        return (0.5 * error * jnp.exp(-2 * log_scale) + frames[1:].size * log_scale + kl) / frames.shape[1]

    optimizer = optax.adam(settings.optimizer.learning_rate)

    @jax.jit
    def step(state: Any, frames: jax.Array, condition: jax.Array, key: jax.Array) -> Any:
        params, statistics, moments = state

        def loss(params: Any) -> Any:
            own = {"params": params, "batch_stats": statistics}
            return networks.apply(own, frames, condition, key, method=loss_of, mutable=["batch_stats"])

        (_, updated), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), updated["batch_stats"], moments

    variables = ours.variables()
    state = [(variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))]
    given = []
    for number in range(BATCHES):
        batch = ours.batch(number)
        frames = jnp.concatenate([batch.x["frames"], batch.y], 1).swapaxes(0, 1)
        given.append((frames, batch.x["condition"].swapaxes(0, 1)))

    def run(steps: int) -> None:
        for number in range(steps):
            state[0] = step(state[0], *given[number % BATCHES], jax.random.key(number))
        jax.block_until_ready(state[0])

    return run


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="of a contender in a round")
    parser.add_argument("--size", type=int, default=32, help="height and width of frames")
    parser.add_argument("--width", type=int, default=16, help="channels of the first level")
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        sys.exit("error: the comparison with PyTorch needs it; pip install torch")
    config = video.get_config()
    config.data.size = arguments.size
    config.cvae.update(width=arguments.width, batch_size=arguments.batch_size)
    config.cvae.objective.beta = 1.0  # as PyTorch's side has it
    rng = np.random.default_rng(0)
    shape = (BATCHES * arguments.batch_size, config.data.num_frames)
    arrays = {
        "frames": rng.integers(0, 256, (*shape, arguments.size, arguments.size, 3), np.uint8),
        "condition": rng.normal(size=(*shape, config.data.num_columns)).astype(np.float32),
        "other_condition": np.zeros((*shape, config.data.num_columns), np.float32),
    }
    try:
        ours = Trainer(config, arrays)
    except UserError as error:
        sys.exit(f"error: {error}")
    batches = [jax.device_get(ours.batch(number)) for number in range(BATCHES)]
    levels = widths(arguments.width, arguments.size)
    theirs = InTorch(torch, config, levels, config.data.num_columns, batches)

    # The same weights, the same loss and gradient.
    variables = ours.variables()
    weights = {name: torch.from_numpy(array) for name, array in converted(variables["params"], len(levels)).items()}
    missing, unknown = theirs.network.load_state_dict(weights, strict=False)
    extra = [name for name in missing if name.endswith("bias_ih")]
    if unknown or not all("running" in name or "num_batches" in name or name in extra for name in missing):
        sys.exit(f"error: PyTorch's network lacks {unknown}, and ours {missing}")
    with torch.no_grad():
        for name, one in theirs.network.named_parameters():
            if name in extra:
                one.zero_()
    counts = [sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))]
    counts.append(sum(one.numel() for name, one in theirs.network.named_parameters() if name not in extra))
    # In float64: in float32, rounding that moves an activation across the kink of its ReLU is seen in the gradient.
    with jax.enable_x64(True):
        variables, batch = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64) if np.asarray(leaf).dtype == np.float32 else jnp.asarray(leaf),
            (variables, batches[0]),
        )
        value, gradient = ours.at_mean(variables, batch, lambda encoding: (encoding["posterior"].mean.swapaxes(0, 1),))
    theirs.network.double()
    their_value = theirs.network(*(one.double() for one in theirs.given[0]), at_once=True, noise=False)
    their_value.backward()
    theirs.network.float()
    losses = [float(value), float(their_value.detach())]
    of_ours = converted(gradient, len(levels))
    named = {name: one for name, one in theirs.network.named_parameters() if name not in extra}
    apart = {name: difference(of_ours[name], one.grad.numpy()) for name, one in named.items()}
    of_loss, of_gradient = abs(losses[1] / losses[0] - 1), max(apart.values())
    report = (
        f"Parameters: cvae_jax {counts[0]:,}, PyTorch {counts[1]:,} (and a second bias of every LSTM cell). Loss of "
        f"the first batch with the\nsame weights, z at its mean: cvae_jax {losses[0]:.6g}, PyTorch {losses[1]:.6g}, "
        f"{of_loss:.1e} apart; gradients at most {of_gradient:.1e} apart."
    )
    print(
        f"Threads: {num_threads()}. JAX {jax.__version__}, devices: {jax.device_count()} {jax.default_backend()}; "
        f"PyTorch {torch.__version__}, fused Adam.\nMedian (least - greatest) of {arguments.rounds} rounds of "
        f"{arguments.steps} steps.\n\n{report}\n"
    )
    if counts[0] != counts[1] or not max(of_loss, of_gradient) < TOLERANCE:
        sys.exit(f"error: the two do not compute the same within {TOLERANCE:g}")

    contenders = {
        "cvae_jax": lambda steps: ours.run(0, steps),
        "the same networks, a frame at a time": frame_by_frame(config, ours, config.data.num_columns),
        "PyTorch, a frame at a time": lambda steps: theirs.run(steps, False),
        "PyTorch, all frames at once": lambda steps: theirs.run(steps, True),
    }
    taken = rounds_of(list(contenders.values()), arguments.rounds, arguments.steps)
    lines = [["a training step", "ms", "clips/s", "over cvae_jax's"]]
    for name, column in zip(contenders, taken.T, strict=True):
        rate, ratio = 1e3 * arguments.batch_size / column, column / taken[:, 0]
        lines.append([name, spread(column, ".0f"), f"{np.median(rate):.1f}", spread(ratio, ".2f")])
    print("\n".join(tables.markdown(lines)))


if __name__ == "__main__":
    main()
