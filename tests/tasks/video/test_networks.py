"""SVG against loops over time written plainly, the seed's layers, and the contract's checks."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import check_alone, check_compiled, check_estimators_agree, check_given, check_kl, check_model
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from cvae_jax import inference, keys, parallel, schedules
from cvae_jax.distributions import Normal
from cvae_jax.errors import UserError
from cvae_jax.inference import Ais
from cvae_jax.model import Batch, Fitted, Train
from cvae_jax.networks.flax_model import flax_model
from cvae_jax.tasks.video.frames import NETWORKS, widths
from cvae_jax.tasks.video.networks import VideoNetworks

SIZE, CHANNELS, COLUMNS, PAST, FRAMES = 16, 3, 2, 2, 5


def networks(
    network="dcgan", latent=2, prior="learned", last_frame_skip=False, teacher_forcing=True, size=SIZE, **more
):
    sizes = {"widths": widths(2, size), "channels": CHANNELS, "features": 4, "hidden": 5, "predictor_layers": 2}
    return VideoNetworks(
        network=network, latent=latent, prior=prior, num_past=PAST, last_frame_skip=last_frame_skip,
        teacher_forcing=teacher_forcing, **sizes, **more,
    )  # fmt: skip


def model_of(nets):
    def likelihood(outputs):
        return Normal(outputs[0], jnp.full_like(outputs[0], 0.5))

    return flax_model(nets, likelihood, autoregressive=nets.teacher_forcing)


def batch_of(examples=3, num_past=PAST, num_frames=FRAMES, size=SIZE):
    rng = np.random.default_rng(0)
    frames = jnp.asarray(rng.uniform(size=(examples, num_frames, size, size, CHANNELS)), jnp.float32)
    condition = jnp.asarray(rng.normal(size=(examples, num_frames, COLUMNS)), jnp.float32)
    x = {"frames": frames[:, :num_past], "condition": condition}
    return Batch(x, frames[:, num_past:], None, jnp.arange(examples), jnp.ones(examples))


def moved(variables):
    """Variables with every number off its initial value, batch statistics too, so that none is idle."""
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [leaf * 1.2 + rng.uniform(-0.2, 0.2, leaf.shape).astype("f") for leaf in leaves])


def fitted_of(nets, **sizes):
    model = model_of(nets)
    return Fitted(model, moved(jax.jit(model.init)(jax.random.key(0), batch_of(num_past=1, **sizes), {})))


KINDS = {
    "learned prior": {},
    "deterministic vgg, skips of every frame": {"latent": 0, "network": "vgg", "last_frame_skip": True},
}
SMALL = {"size": 8, "examples": 2, "num_frames": 4}  # of the checks that take thousands of samples


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind):
    check_model(fitted_of(networks(teacher_forcing=False, size=8, **KINDS[kind]), size=8), batch_of(**SMALL))


@pytest.mark.slow
def test_contract_given_true_frames():
    """All but that a draw is the same without y, since here it is given the true frames."""
    fitted = fitted_of(networks(size=8, prior="fixed", last_frame_skip=True), size=8)
    for check in (check_alone, check_compiled, check_given, check_kl, check_estimators_agree):
        check(fitted, batch_of(**SMALL))


@pytest.mark.slow
def test_simulation_is_refused_given_true_frames():
    with pytest.raises(UserError, match="given the true ones before it"):
        inference.bdmc(fitted_of(networks()), batch_of(), 2, jax.random.key(0), Ais())


@partial(jax.jit, static_argnums=(0, 1))
def frame_by_frame(nets, forced, variables, batch, z):
    """Means of future frames, and the means of q(z) and p(z): the paper's loop, a frame at a time, for given z."""
    nets = nets.bind(variables)
    known = batch.x["frames"].shape[1]
    frames = jnp.concatenate([batch.x["frames"], batch.y], 1)
    condition = nets.standardised(batch.x["condition"], use_running_average=True)
    carry = nets.predictor.start(len(frames))
    carry_q = carry_p = (carry[0],)
    means, posterior, prior, before, skips = [], [], [], frames[:, 0], None
    for t in range(1, frames.shape[1]):
        features, seen = nets.encoder(before)
        if nets.last_frame_skip:
            skips = seen
        elif t <= PAST:  # in training too, where all but the first frame are y
            _, skips = nets.encoder(frames[:, t - 1])
        carry_q, outputs_q = nets.recognition_net(carry_q, nets.encoder(frames[:, t])[0])
        carry_p, outputs_p = nets.prior_net(carry_p, features)
        posterior.append(outputs_q[:, : nets.latent])
        prior.append(outputs_p[:, : nets.latent])
        carry, outputs = nets.predictor(carry, jnp.concatenate([features, z[:, t - 1], condition[:, t]], 1))
        if t < known:
            before = frames[:, t]
            continue
        means.append(nets.decoder(jnp.tanh(outputs), nets.decoder.encode_skips(skips)))
        before = frames[:, t] if forced else means[-1]
    return tuple(jnp.stack(steps, 1) for steps in (means, posterior, prior))


@pytest.mark.slow
@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize(
    ("network", "last_frame_skip", "num_past"), [("dcgan", False, 1), ("dcgan", True, 2), ("vgg", False, 2)]
)
def test_all_frames_at_once_is_a_frame_at_a_time(forced, network, last_frame_skip, num_past):
    """With fewer known frames than the skips' last, as in training, too."""
    nets = networks(network=network, last_frame_skip=last_frame_skip, teacher_forcing=forced)
    fitted, batch = fitted_of(nets), batch_of(num_past=num_past)
    example_keys = keys.per_example(jax.random.key(3), batch.ids)
    draw = jax.jit(Fitted.draw, static_argnums=3)
    encoding = jax.jit(Fitted.encode)(fitted, batch)
    drawn, encoded = draw(fitted, encoding, example_keys, "recognition"), encoding["networks"]
    means, posterior, prior = frame_by_frame(nets, forced, fitted.variables, batch, jnp.concatenate(drawn.z, 1))
    assert means.std(1).mean() > 1e-3 and encoded.features.std(0).mean() > 0.01
    np.testing.assert_allclose(drawn.p_y.mean, means, atol=2e-5)
    all_steps = jnp.concatenate([encoded.past.mean, encoded.posterior.mean]).swapaxes(0, 1)
    np.testing.assert_allclose(all_steps, posterior, atol=2e-5)
    if forced:
        wanted = prior[:, num_past - 1 :].swapaxes(0, 1)
        np.testing.assert_allclose(encoded.prior.mean, wanted, atol=2e-5)
    else:  # predictions decide p(z): its mean is where it is drawn at no spread
        at_mean = draw(fitted, encoding, example_keys, "prior_mean")
        _, _, prior = frame_by_frame(nets, forced, fitted.variables, batch, jnp.concatenate(at_mean.z, 1))
        np.testing.assert_allclose(at_mean.z[-1], prior[:, num_past - 1 :], atol=2e-5)


@pytest.mark.slow
def test_true_frames_tell_and_predictions_do_not():
    """What is given true frames changes with them; what runs freely is the same whatever they are."""
    batch = batch_of()
    inverted = batch._replace(y=1 - batch.y)
    example_keys = keys.per_example(jax.random.key(3), batch.ids)
    draw = jax.jit(lambda fitted, batch: fitted.draw(fitted.encode(batch), example_keys, "prior").p_y.mean)
    for forced in (True, False):
        fitted = fitted_of(networks(teacher_forcing=forced))
        given, given_inverted = draw(fitted, batch), draw(fitted, inverted)
        np.testing.assert_allclose(given[:, 0], given_inverted[:, 0], atol=1e-6)
        assert (np.abs(given[:, 1:] - given_inverted[:, 1:]).max() > 1e-3) == forced


@pytest.mark.slow
def test_the_coin_chooses_in_training():
    """Of the same variables, batch and keys: as without a coin at a share of one, and freely at a share of zero.

    Both are what the two ways give when they are called themselves.
    """
    variables = fitted_of(networks(latent=0)).variables
    batch = batch_of(num_past=1)
    train = Train(keys.unused(batch.ids), jnp.int32(0))
    shares = {"no coin": None, "heads": lambda step: 1.0, "tails": lambda step: 0.0}
    nets = {name: networks(latent=0, teacher_forcing_share=share) for name, share in shares.items()}

    @partial(jax.jit, static_argnums=0)
    @partial(jax.value_and_grad, argnums=1, has_aux=True)
    def loss(model, params):
        own = {**variables, "params": params}
        draw = model.draw(own, model.encode(own, batch, train), train.keys, "prior", None, train)
        return -draw.log_p_y.mean(), (draw.p_y.mean, draw.updates)

    losses = {name: loss(model_of(nets[name]), variables["params"]) for name in shares}
    for expected, tossed in zip(*(jax.tree.leaves(losses[name]) for name in ("no coin", "heads")), strict=True):
        np.testing.assert_allclose(expected, tossed, rtol=1e-4, atol=1e-5)
    assert abs(losses["heads"][0][0] - losses["tails"][0][0]) > 1e-3
    for (_, (_, updates)), gradient in losses.values():
        moved_by = jax.tree.map(
            lambda new, old: np.abs(new - old).max(), updates, {"batch_stats": variables["batch_stats"]}
        )
        assert min(jax.tree.leaves(moved_by)) > 0  # of encoder, decoder and conditions
        norms = jax.tree.map(lambda leaf: float(jnp.abs(leaf).max()), gradient)
        assert all(norm > 0 for norm in jax.tree.leaves({name: norms[name] for name in ("encoder", "decoder")}))

    def both_ways(module):
        encoding = module.encode(batch.x, batch.y, train)
        arguments = encoding, keys.per_sample(train.keys, jnp.arange(1, FRAMES)), "prior", None, encoding.past.mean
        return module._forced(*arguments)[1], module._free(*arguments)[1]

    (forced, free), _ = jax.jit(partial(nets["no coin"].apply, method=both_ways, mutable=["batch_stats"]))(variables)
    for name, frames in (("heads", forced), ("tails", free)):
        np.testing.assert_allclose(losses[name][0][1][0], frames.swapaxes(0, 1), atol=1e-5)


def test_the_coin_is_heads_as_often_as_the_schedule_says():
    """Of 4,000 batches at each step, within 4.5 standard errors; when measuring there is none, whatever the share."""
    share = schedules.teacher_forcing(ConfigDict({"first": 1.0, "last": 0.2, "begin": 100, "steps": 200}))
    nets = networks(teacher_forcing_share=share)
    all_keys = jax.vmap(lambda seed: keys.per_example(jax.random.key(seed), jnp.arange(3)))(jnp.arange(4000))

    @jax.jit
    def coins(step):
        return jax.vmap(lambda batch_keys: nets._gives_true_frames(Train(batch_keys, step)))(all_keys)

    for step, expected in {0: 1.0, 100: 1.0, 150: 0.8, 200: 0.6, 275: 0.3, 300: 0.2, 5000: 0.2}.items():
        heads = np.asarray(coins(jnp.int32(step)))
        assert abs(heads.mean() - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / len(heads)), step
    assert nets._gives_true_frames(None) is True
    assert networks(teacher_forcing=False, teacher_forcing_share=share)._gives_true_frames(None) is False
    unscheduled = networks(teacher_forcing=False)  # trained with true frames, whatever it is measured with
    assert unscheduled._gives_true_frames(Train(all_keys[0], jnp.int32(0))) is True


def touch(module, features, skips):
    """A decoder's output."""
    return module(features, module.encode_skips(skips))


def of_conv(kernel, inputs, outputs):
    """Parameters of the seed's convolution with a bias and batch normalisation, as PyTorch has them; and its bias."""
    return np.array([kernel**2 * inputs * outputs + outputs + 2 * outputs, outputs])


def seed_counts(network, features, channels):
    """Parameters of the seed's encoder and decoder of 64x64 frames with all their biases, and the cancelled biases."""
    w = [64, 128, 256, 512]
    vector = of_conv(4, w[-1], features), of_conv(4, features, w[-1])  # 512 x 4 x 4 -> features, and back
    if network == "dcgan":
        encoder = sum(of_conv(4, *pair) for pair in zip([channels, *w[:-1]], w, strict=True))
        decoder = sum(of_conv(4, 2 * n, m) for n, m in zip(w[:0:-1], w[-2::-1], strict=True))
        last = 4 * 4 * 2 * w[0] * channels + channels
    else:
        down = [(channels, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)]
        encoder = sum(of_conv(3, *pair) for pair in [*down, (512, 512), (512, 512)])
        up = [(1024, 512), (512, 512), (512, 256), (512, 256), (256, 256), (256, 128), (256, 128), (128, 64), (128, 64)]
        decoder = sum(of_conv(3, *pair) for pair in up)
        last = 3 * 3 * 64 * channels + channels
    return encoder + vector[0], decoder + vector[1] + np.array([last, 0])


@pytest.mark.parametrize(("network", "features", "channels"), [("vgg", 128, 3), ("dcgan", 128, 1), ("dcgan", 90, 3)])
def test_layers_are_the_seeds(network, features, channels):
    """But for biases before a batch normalisation, which takes them off again."""
    encoder, decoder = (
        module(widths(64, 64), size) for module, size in zip(NETWORKS[network], (features, channels), strict=True)
    )
    frames = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(encoder.init, key, frames)
    _, skips = jax.eval_shape(encoder.apply, shapes, frames)

    made = jax.eval_shape(partial(decoder.init, method=touch), key, jnp.zeros((1, features)), skips)
    for variables, (count, cancelled) in zip((shapes, made), seed_counts(network, features, channels), strict=True):
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count - cancelled
    drawn = jax.eval_shape(
        lambda v, s: decoder.apply(v, jnp.zeros((6, features)), s, method=touch), made, skips
    )  # six frames share the skips of one
    assert drawn.shape == (6, 64, 64, channels)


@pytest.mark.slow
def test_activations_computed_again_give_the_same_with_less_memory():
    batch, gradients, memory = batch_of(), {}, {}
    for remat in (False, True):
        fitted = fitted_of(networks(latent=0, teacher_forcing=False, remat=remat))

        @jax.value_and_grad
        def loss(params, fitted=fitted):
            own = dataclasses.replace(fitted, variables={**fitted.variables, "params": params})
            return own.draw(own.encode(batch), keys.unused(batch.ids), "prior").log_p_y.mean()

        compiled = jax.jit(loss).lower(fitted.variables["params"]).compile()
        gradients[remat] = compiled(fitted.variables["params"])
        memory[remat] = compiled.memory_analysis().temp_size_in_bytes
    for kept, computed_again in zip(*(jax.tree.leaves(values) for values in gradients.values()), strict=True):
        np.testing.assert_allclose(kept, computed_again, rtol=1e-4, atol=1e-4)
    assert memory[True] < memory[False]


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_half_precision(network):
    """Parameters, gradients and frames stay float32; what they say is that of float32 to two digits."""
    frames = batch_of().x["frames"].reshape(-1, SIZE, SIZE, CHANNELS)
    results = []
    for dtype in (None, jnp.bfloat16):
        encoder, decoder = (
            module(widths(2, SIZE), size, dtype) for module, size in zip(NETWORKS[network], (4, CHANNELS), strict=True)
        )

        def there_and_back(params, encoder=encoder, decoder=decoder):
            (features, skips), _ = encoder.apply(params["encoder"], frames, mutable=["batch_stats"])
            drawn, _ = decoder.apply(params["decoder"], features, skips, method=touch, mutable=["batch_stats"])
            return ((drawn - frames) ** 2).sum()

        with jax.numpy_dtype_promotion("standard"):  # Flax's batch normalisation promotes
            of_encoder = jax.jit(encoder.init)(jax.random.key(0), frames)
            seen = jax.jit(encoder.apply)(of_encoder, frames)
            of_decoder = jax.jit(partial(decoder.init, method=touch))(jax.random.key(1), *seen)
            params = {"encoder": of_encoder, "decoder": of_decoder}
            results.append((jax.jit(jax.value_and_grad(there_and_back))(params), seen[0]))
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype("float32")}
    ((value, gradient), _), ((half, gradient_of_half), _) = results
    assert 0 < abs(half / value - 1) < 0.01
    norm = partial(jax.tree.reduce, lambda total, leaf: total + float((leaf**2).sum()), initializer=0.0)
    apart = jax.tree.map(jnp.subtract, gradient, gradient_of_half)
    assert norm(apart) < 0.15**2 * norm(gradient)


@pytest.mark.slow
@pytest.mark.parametrize("forced", [True, False])
def test_each_device_keeps_its_part_of_the_batch(forced):
    """Encoding and drawing take no frames from other devices: there is no operation between them."""
    mesh = parallel.make_mesh()
    batch = batch_of(examples=4)
    fitted = jax.device_put(fitted_of(networks(teacher_forcing=forced)), parallel.replicated(mesh))
    parts = NamedSharding(mesh, PartitionSpec("data"))
    batch, example_keys = jax.device_put((batch, keys.per_example(jax.random.key(3), batch.ids)), parts)

    @jax.jit
    def drawn(fitted, batch, example_keys):
        return fitted.draw(fitted.encode(batch), example_keys, "recognition")

    text = drawn.lower(fitted, batch, example_keys).compile().as_text()
    assert mesh.size > 1
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
