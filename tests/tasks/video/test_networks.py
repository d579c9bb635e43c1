"""SVG against loops over time written plainly, the seed's layers, and the contract's checks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import check_alone, check_compiled, check_estimators_agree, check_given, check_kl, check_model

from cvae_jax import keys, parallel
from cvae_jax.distributions import Normal
from cvae_jax.errors import UserError
from cvae_jax.inference import ais as annealing
from cvae_jax.model import Batch, Train
from cvae_jax.networks.cvae import make_model
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

    return make_model(nets, lambda batch, frozen: (batch.x, batch.y), likelihood, 0, nets.teacher_forcing)


def batch_of(examples=3, num_past=PAST, num_frames=FRAMES, coin=None, size=SIZE):
    rng = np.random.default_rng(0)
    frames = jnp.asarray(rng.uniform(size=(examples, num_frames, size, size, CHANNELS)), jnp.float32)
    condition = jnp.asarray(rng.normal(size=(examples, num_frames, COLUMNS)), jnp.float32)
    x = {"frames": frames[:, :num_past], "condition": condition, "coin": coin}
    return Batch(x, frames[:, num_past:], None, jnp.arange(examples), jnp.ones(examples))


def moved(variables):
    """Variables with every number off its initial value, batch statistics too, so that none is idle."""
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [leaf * 1.2 + rng.uniform(-0.2, 0.2, leaf.shape).astype("f") for leaf in leaves])


def initialised(model, **sizes):
    return moved(jax.jit(model.init)(jax.random.key(0), batch_of(num_past=1, **sizes)))


KINDS = {
    "learned prior": {},
    "deterministic vgg, skips of every frame": {"latent": 0, "network": "vgg", "last_frame_skip": True},
}
SMALL = {"size": 8, "examples": 2, "num_frames": 4}  # of the checks that take thousands of samples


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind):
    model = model_of(networks(teacher_forcing=False, size=8, **KINDS[kind]))
    check_model(model, initialised(model, size=8), batch_of(**SMALL))


@pytest.mark.slow
def test_contract_given_true_frames():
    """All but that a draw is the same without y, since here it is given the true frames."""
    model = model_of(networks(size=8, prior="fixed", last_frame_skip=True))
    variables, batch = initialised(model, size=8), batch_of(**SMALL)
    for check in (check_alone, check_compiled, check_given, check_kl, check_estimators_agree):
        check(model, variables, batch)


@pytest.mark.slow
def test_simulation_is_refused_given_true_frames():
    model = model_of(networks())
    with pytest.raises(UserError, match="given the true ones before it"):
        annealing.bdmc(model, initialised(model), batch_of(), 2, jax.random.key(0))


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
        carry_q, told_q = nets.recognition_net(carry_q, nets.encoder(frames[:, t])[0])
        carry_p, told_p = nets.prior_net(carry_p, features)
        posterior.append(told_q[:, : nets.latent])
        prior.append(told_p[:, : nets.latent])
        carry, told = nets.predictor(carry, jnp.concatenate([features, z[:, t - 1], condition[:, t]], 1))
        if t < known:
            before = frames[:, t]
            continue
        means.append(nets.decoder(jnp.tanh(told), nets.decoder.of_skips(skips)))
        before = frames[:, t] if forced else means[-1]
    return tuple(jnp.stack(each, 1) for each in (means, posterior, prior))


@pytest.mark.slow
@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize(
    ("network", "last_frame_skip", "num_past"), [("dcgan", False, 1), ("dcgan", True, 2), ("vgg", False, 2)]
)
def test_all_frames_at_once_is_a_frame_at_a_time(forced, network, last_frame_skip, num_past):
    """With fewer known frames than the skips' last, as in training, too."""
    nets = networks(network=network, last_frame_skip=last_frame_skip, teacher_forcing=forced)
    model, batch = model_of(nets), batch_of(num_past=num_past)
    variables = initialised(model)
    example_keys = keys.per_example(jax.random.key(3), batch.index)
    encoding = jax.jit(model.encode)(variables, batch)
    drawn = jax.jit(model.draw, static_argnums=3)(variables, encoding, example_keys, "recognition")
    means, posterior, prior = frame_by_frame(nets, forced, variables, batch, jnp.concatenate(drawn.z, 1))
    assert means.std(1).mean() > 1e-3 and encoding["networks"]["features"].std(0).mean() > 0.01
    np.testing.assert_allclose(drawn.p_y.mean, means, atol=2e-5)
    told = jnp.concatenate([encoding["networks"]["past"].mean, encoding["networks"]["posterior"].mean]).swapaxes(0, 1)
    np.testing.assert_allclose(told, posterior, atol=2e-5)
    if forced:
        wanted = prior[:, num_past - 1 :].swapaxes(0, 1)
        np.testing.assert_allclose(encoding["networks"]["prior"].mean, wanted, atol=2e-5)
    else:  # p(z) is told by predictions: its mean is where it is drawn at no spread
        at_mean = jax.jit(model.draw, static_argnums=3)(variables, encoding, example_keys, "prior_mean")
        _, _, prior = frame_by_frame(nets, forced, variables, batch, jnp.concatenate(at_mean.z, 1))
        np.testing.assert_allclose(at_mean.z[-1], prior[:, num_past - 1 :], atol=2e-5)


@pytest.mark.slow
def test_true_frames_tell_and_predictions_do_not():
    """What is given true frames changes with them; what runs freely is the same whatever they are."""
    batch = batch_of()
    other = batch._replace(y=1 - batch.y)
    example_keys = keys.per_example(jax.random.key(3), batch.index)
    for forced in (True, False):
        model = model_of(networks(teacher_forcing=forced))
        variables = initialised(model)
        draw = jax.jit(lambda v, b, model=model: model.draw(v, model.encode(v, b), example_keys, "prior").p_y.mean)
        one, two = draw(variables, batch), draw(variables, other)
        np.testing.assert_allclose(one[:, 0], two[:, 0], atol=1e-6)
        assert (np.abs(one[:, 1:] - two[:, 1:]).max() > 1e-3) == forced


@pytest.mark.slow
def test_the_coin_chooses_in_training():
    """Of the same variables, batch and keys: as without a coin where it says so, and otherwise freely."""
    model = model_of(networks(latent=0))
    variables = initialised(model)

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def loss(params, coin):
        batch = batch_of(num_past=1, coin=coin)
        train = Train(keys.unused(batch.index), jnp.int32(0))
        own = {**variables, "params": params}
        draw = model.draw(own, model.encode(own, batch, train), train.keys, "prior", None, train)
        return -draw.log_p_y.mean(), draw.updates

    coins = (None, True, False)
    found = {coin: loss(variables["params"], None if coin is None else jnp.asarray(coin)) for coin in coins}
    for one, other in zip(jax.tree.leaves(found[None]), jax.tree.leaves(found[True]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert abs(found[True][0][0] - found[False][0][0]) > 1e-3
    for (_, updates), gradient in found.values():
        moved_by = jax.tree.map(
            lambda new, old: np.abs(new - old).max(), updates, {"batch_stats": variables["batch_stats"]}
        )
        assert min(jax.tree.leaves(moved_by)) > 0  # of encoder, decoder and conditions
        norms = jax.tree.map(lambda leaf: float(jnp.abs(leaf).max()), gradient)
        assert all(norm > 0 for norm in jax.tree.leaves({name: norms[name] for name in ("encoder", "decoder")}))


def touch(module, features, skips):
    """A decoder's output."""
    return module(features, module.of_skips(skips))


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
        one(widths(64, 64), size) for one, size in zip(NETWORKS[network], (features, channels), strict=True)
    )
    frames = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(encoder.init, key, frames)
    _, skips = jax.eval_shape(encoder.apply, shapes, frames)

    made = jax.eval_shape(partial(decoder.init, method=touch), key, jnp.zeros((1, features)), skips)
    for found, (count, cancelled) in zip((shapes, made), seed_counts(network, features, channels), strict=True):
        assert sum(leaf.size for leaf in jax.tree.leaves(found["params"])) == count - cancelled
    drawn = jax.eval_shape(
        lambda v, s: decoder.apply(v, jnp.zeros((6, features)), s, method=touch), made, skips
    )  # six frames share the skips of one
    assert drawn.shape == (6, 64, 64, channels)


@pytest.mark.slow
def test_activations_computed_again_give_the_same_with_less_memory():
    batch, found = batch_of(), {}
    for remat in (False, True):
        model = model_of(networks(latent=0, teacher_forcing=False, remat=remat))
        variables = initialised(model)

        @jax.value_and_grad
        def loss(params, model=model, variables=variables):
            own = {**variables, "params": params}
            return model.draw(own, model.encode(own, batch), keys.unused(batch.index), "prior").log_p_y.mean()

        compiled = jax.jit(loss).lower(variables["params"]).compile()
        found[remat] = (compiled(variables["params"]), compiled.memory_analysis().temp_size_in_bytes)
    for one, other in zip(*(jax.tree.leaves(values) for values, _ in found.values()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    assert found[True][1] < found[False][1]


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_half_precision(network):
    """Parameters, gradients and frames stay float32; what they say is that of float32 to two digits."""
    frames = batch_of().x["frames"].reshape(-1, SIZE, SIZE, CHANNELS)
    found = []
    for dtype in (None, jnp.bfloat16):
        encoder, decoder = (
            one(widths(2, SIZE), size, dtype) for one, size in zip(NETWORKS[network], (4, CHANNELS), strict=True)
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
            found.append((jax.jit(jax.value_and_grad(there_and_back))(params), seen[0]))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    ((value, gradient), _), ((half, gradient_of_half), _) = found
    assert 0 < abs(half / value - 1) < 0.01
    norm = partial(jax.tree.reduce, lambda total, leaf: total + float((leaf**2).sum()), initializer=0.0)
    apart = jax.tree.map(jnp.subtract, gradient, gradient_of_half)
    assert norm(apart) < 0.15**2 * norm(gradient)


@pytest.mark.slow
@pytest.mark.parametrize("forced", [True, False])
def test_each_device_keeps_its_part_of_the_batch(forced):
    """Encoding and drawing take no frames from other devices: there is no operation between them."""
    mesh = parallel.make_mesh()
    model, batch = model_of(networks(teacher_forcing=forced)), batch_of(examples=4)
    variables = jax.device_put(initialised(model), parallel.replicated(mesh))
    batch, example_keys = parallel.place_batch(mesh, (batch, keys.per_example(jax.random.key(3), batch.index)))

    @jax.jit
    def drawn(variables, batch, keys):
        return model.draw(variables, model.encode(variables, batch), keys, "recognition")

    text = drawn.lower(variables, batch, example_keys).compile().as_text()
    assert mesh.size > 1
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
