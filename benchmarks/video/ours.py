"""cvae_jax's training steps of configs/video.py with teacher forcing, and the same networks a frame at a time."""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.training import BATCHES, Ours, Trainer
from benchmarks.video.torch_plain import converted
from configs import video
from cvae_jax.distributions import MAX_LOG_SCALE, bounded_normal
from cvae_jax.tasks.video.frames import widths
from cvae_jax.tasks.video.networks import LEVER, VideoNetworks


def make_trainer(arguments: argparse.Namespace) -> tuple[Any, Trainer]:
    """Returns config and steps, on clips of noise, on which the time does not depend."""
    config = video.get_config()
    config.data.size = arguments.size
    config.cvae.update(width=arguments.width, batch_size=arguments.batch_size)
    config.num_future = arguments.num_future
    config.cvae.objective.beta = 1.0  # as PyTorch's side has it
    rng = np.random.default_rng(0)
    shape = (BATCHES * arguments.batch_size, config.data.num_frames)
    arrays = {
        "frames": rng.integers(0, 256, (*shape, arguments.size, arguments.size, 3), np.uint8),
        "condition": rng.normal(size=(*shape, config.data.num_columns)).astype(np.float32),
        "other_condition": np.zeros((*shape, config.data.num_columns), np.float32),
    }
    return config, Trainer(config, arrays)


def measured_at_mean(trainer: Trainer, num_levels: int) -> Ours:
    """Returns loss and gradient of the first batch, by PyTorch's names.

    They are computed in float64: in float32, rounding that moves an activation across the kink of its ReLU is seen in
    the gradient.
    """
    variables, batch = trainer.variables(), jax.device_get(trainer.batch(0))
    weights = converted(variables["params"], num_levels)
    with jax.enable_x64(True):
        variables, batch = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, jnp.float64) if np.asarray(leaf).dtype == np.float32 else jnp.asarray(leaf),
            (variables, batch),
        )
        loss, gradient = trainer.at_mean(variables, batch)
    return Ours(weights, float(loss), converted(gradient, num_levels))


def frame_by_frame(config: Any, trainer: Trainer) -> Callable[[int], None]:
    """Returns training steps with encoder and decoder in the loop over time, as the papers' code has them.

    The networks are the same; clips are ready made.
    """
    settings = config.cvae
    networks = VideoNetworks(
        network=settings.network,
        widths=widths(settings.width, config.data.size),
        channels=trainer.task.raw["frames"].shape[-1],
        features=settings.features,
        latent=settings.latent,
        prior=settings.prior,
        hidden=settings.hidden,
        predictor_layers=settings.predictor_layers,
        num_past=config.num_past,
        last_frame_skip=False,
        teacher_forcing=True,
    )

    def loss_of(nets: VideoNetworks, frames: jax.Array, condition: jax.Array, key: jax.Array) -> jax.Array:
        condition = nets.standardised(condition, use_running_average=False)
        carry = nets.predictor.start(frames.shape[1])
        carry_q = carry_p = (carry[0],)
        features, skips = zip(*(nets.encoder(frame) for frame in frames), strict=True)
        kl = error = jnp.zeros(())
        for t in range(1, len(frames)):
            carry_q, parameters_q = nets.recognition_net(carry_q, features[t])
            carry_p, parameters_p = nets.prior_net(carry_p, features[t - 1])
            q, p = (bounded_normal(*jnp.split(parameters, 2, -1)) for parameters in (parameters_q, parameters_p))
            kl += q.kl(p).sum()
            z = q.mean + q.scale * jax.random.normal(jax.random.fold_in(key, t), q.mean.shape)
            carry, outputs = nets.predictor(carry, jnp.concatenate([features[t - 1], z, condition[t]], -1))
            encoded_skips = nets.decoder.encode_skips(skips[min(t, config.num_past) - 1])
            error += ((nets.decoder(jnp.tanh(outputs), encoded_skips) - frames[t]) ** 2).sum()
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

    variables = trainer.variables()
    state = [(variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))]
    clips = []
    for number in range(BATCHES):
        batch = trainer.batch(number)
        frames = jnp.concatenate([batch.x["frames"], batch.y], 1).swapaxes(0, 1)
        clips.append((frames, batch.x["condition"].swapaxes(0, 1)))

    def run(steps: int) -> None:
        for number in range(steps):
            state[0] = step(state[0], *clips[number % BATCHES], jax.random.key(number))
        jax.block_until_ready(state[0])

    return run
