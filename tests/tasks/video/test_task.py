"""Video prediction: batches, measures and their truth, figures, and a run from the command to its tables."""

import dataclasses
import json
import re
from functools import partial

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from specs import load, task_of

import cvae_jax
from configs import video as config_file
from cvae_jax import evaluation, inference, keys, objectives
from cvae_jax.data import batches, buckets
from cvae_jax.errors import UserError
from cvae_jax.metrics import images
from cvae_jax.model import Train
from cvae_jax.tasks.video import figures, metrics, moving_digits
from cvae_jax.tasks.video.frames import widths
from cvae_jax.tasks.video.networks import VideoNetworks
from cvae_jax.trained import TrainedModel
from cvae_jax.training import loop

RNG = np.random.default_rng(0)


def smoke(**changes):
    config = config_file.get_config("smoke")
    config.cvae.update(width=2, features=4, hidden=5)
    config.update(changes)
    return config


def of_folders(**changes):
    """The config of videos in folders, small."""
    config = config_file.get_config()
    config.data.update(size=16, num_frames=8)
    config.cvae.update(width=2, features=4, hidden=5, latent=2)
    config.update(num_past=2, num_future=3, measure_future=4, measure_samples=3)
    config.update(changes)
    return config


def numbered(count=6, num_frames=8, columns=7):
    """Raw videos whose frames and conditions say which video and frame they are."""
    number = 10 * np.arange(count)[:, None] + np.arange(num_frames)
    frames = np.broadcast_to(number[..., None, None, None], (count, num_frames, 16, 16, 3)).astype(np.uint8)
    return {
        "frames": jnp.asarray(frames),
        "condition": jnp.broadcast_to(number[..., None], (count, num_frames, columns)).astype(jnp.float32),
        "other_condition": jnp.zeros((count, num_frames, columns)),
    }


def batch_of(task, raw, training, seed=0):
    ids = jnp.arange(len(jax.tree.leaves(raw)[0]))
    step = jnp.int32(0) if training else None
    return batches.make_jitted(task, raw, ids, jnp.ones(len(ids)), jax.random.key(seed), step)


def trained(config, raw):
    """The task of a config, its model with initial weights, and a batch to measure it on."""
    task = task_of(config)
    (stage,) = task.stages
    batch = batch_of(task, raw, training=True)
    variables = jax.jit(stage.model.init)(jax.random.key(0), batch, {})
    return task, objectives.fitted(stage, variables, batch), batch_of(task, raw, training=False)


def still(count):
    settings = config_file.get_config("smoke").data
    return {"digits": jnp.asarray(moving_digits.load(settings)["test"]["digits"][:count])}


def test_a_batch_of_videos():
    task, raw = task_of(of_folders()), numbered()
    measured = batch_of(task, raw, training=False)
    assert measured.x["frames"].shape == (6, 2, 16, 16, 3) and measured.y.shape == (6, 4, 16, 16, 3)
    np.testing.assert_allclose(
        measured.x["frames"][:, :, 0, 0, 0] * 255, 10 * np.arange(6)[:, None] + np.arange(2), rtol=1e-5
    )
    np.testing.assert_allclose(measured.y[:, :, 3, 2, 1] * 255, 10 * np.arange(6)[:, None] + np.arange(2, 6), rtol=1e-5)
    np.testing.assert_array_equal(measured.x["condition"], raw["condition"][:, :6])
    starts = set()
    for seed in range(20):
        batch = batch_of(task, raw, training=True, seed=seed)
        assert batch.x["frames"].shape == (6, 1, 16, 16, 3) and batch.y.shape == (6, 4, 16, 16, 3)
        frames = jnp.concatenate([batch.x["frames"], batch.y], 1)[:, :, 0, 0, 0] * 255
        np.testing.assert_allclose(frames, batch.x["condition"][:, :, 0], rtol=1e-5)
        starts |= set(np.asarray(batch.x["condition"][:, 0, 0]).astype(int) % 10)
    assert starts == {0, 1, 2, 3}  # of 8 frames, 5 in training


@pytest.mark.slow
def test_a_batch_of_moving_digits():
    raw = still(50)
    task = task_of(smoke())
    batch, later = batch_of(task, raw, training=True), batch_of(task, raw, training=True, seed=1)
    assert batch.x["frames"].shape == (50, 1, 16, 16, 1) and batch.y.shape == (50, 4, 16, 16, 1)
    assert (batch.y != later.y).any((1, 2, 3, 4)).mean() > 0.9  # never the same clip
    assert batch.x["condition"].shape == (50, 5, 0) and batch.x["turned"].shape == (50, 5)
    assert set(batch.x) == {"frames", "condition", "turned"}
    measured = batch_of(task, raw, training=False)
    np.testing.assert_array_equal(measured.y[:, :2], batch.y[:, 1:3])  # of the same keys, the same


def random_bytes():
    """Raw videos of noise."""
    frames = np.random.default_rng(1).integers(0, 256, (6, 8, 16, 16, 3), np.uint8)
    return {**numbered(), "frames": jnp.asarray(frames)}


SOURCES = {"videos": (of_folders, random_bytes), "moving_digits": (smoke, lambda: still(20))}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_batches_of_bytes_that_are_not_dequantised(source, training):
    """They are bytes / 255, bit for bit, from the place or of the path that an example's key gives."""
    config, raw = SOURCES[source][0](), SOURCES[source][1]()
    batch = batch_of(task_of(config), raw, training, seed=3)
    num_frames = config.num_past + (config.num_future if training else config.measure_future)

    @jax.jit
    def clips(raw, example_keys):
        if source == "moving_digits":
            settings = config.data
            frames, _ = moving_digits.clips(raw["digits"], example_keys, num_frames, settings.size, settings.max_speed)
            return frames[..., None].astype(jnp.float32) / 255
        last = config.data.num_frames - num_frames if training else 0
        starts = jax.vmap(lambda key: jax.random.randint(key, (), 0, last + 1))(example_keys)
        cut = jax.vmap(lambda video, start: jax.lax.dynamic_slice_in_dim(video, start, num_frames))
        return cut(raw["frames"], starts).astype(jnp.float32) / 255

    frames = clips(raw, keys.per_example(jax.random.key(3), batch.ids))
    num_past = batch.x["frames"].shape[1]
    np.testing.assert_array_equal(batch.x["frames"], frames[:, :num_past])
    np.testing.assert_array_equal(batch.y, frames[:, num_past:])
    assert set(batch.x) == {"frames", "condition", "other_condition" if source == "videos" else "turned"}


def test_the_protocol_says_of_what_a_likelihood_is_the_density():
    """Beside size, speed and what is given, which it said before."""
    unit = "density per unit of [0, 1] pixels, 8-bit values"
    for make, size in ((of_folders, "16x16 frames"), (smoke, "16x16 frames, digits of up to 2 pixels a frame")):
        pixels = f"{size}, Gaussian pixels of one learned scale"
        for given, way in (("true_frames", "true"), ("predictions", "predicted")):
            kept, dequantised = (
                task_of(make(measure_given=given, dequantise=dequantise)).protocol for dequantise in (False, True)
            )
            assert kept == f"{pixels}, {unit} not dequantised, given the {way} frames before each"
            assert dequantised == f"{pixels}, {unit} dequantised uniformly, given the {way} frames before each"
    assert "not dequantised" in task_of(config_file.get_config()).protocol  # unless it is asked for


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_dequantised_bytes(source, training):
    """A byte v of y is (v + u) / 256, u uniform; clips and all of x are those without."""
    make, raw = SOURCES[source][0], SOURCES[source][1]()
    clean, batch, again, later = (
        batch_of(task_of(make(dequantise=dequantise)), raw, training, seed)
        for dequantise, seed in ((False, 0), (True, 0), (True, 0), (True, 1))
    )
    assert set(batch.x) == set(clean.x) | (set() if training else {metrics.CLEAN})
    for name, values in clean.x.items():
        np.testing.assert_array_equal(batch.x[name], values, name)
    if not training:
        np.testing.assert_array_equal(batch.x[metrics.CLEAN], clean.y)
    assert batch.y.dtype == jnp.float32
    values = np.rint(255 * np.asarray(clean.y, np.float64))
    noise = 256 * np.asarray(batch.y, np.float64) - values
    assert ((noise >= 0) & (noise < 1)).all()
    assert (set(np.unique(values)) >= {0, 255}) or source == "moving_digits"
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 1e-3
    for axis in range(noise.ndim):  # no example, frame, row, column or channel has another's
        if noise.shape[axis] > 1:
            assert (np.diff(noise, axis=axis) != 0).mean() > 0.99
    # Of the same key and id the same, as when measuring; of another step's key another.
    np.testing.assert_array_equal(again.y, batch.y)
    later = 256 * np.asarray(later.y, np.float64) % 1
    assert (later != noise).mean() > 0.99


def test_dequantised_bytes_when_measuring_depend_on_seed_and_id():
    """In whatever batch an example stands."""
    task, raw = task_of(of_folders(dequantise=True)), random_bytes()
    del raw["other_condition"]
    whole, again, other_seed = (batches.measured(task, raw, np.arange(6), 6, seed).y for seed in (0, 0, 1))
    np.testing.assert_array_equal(whole, again)
    assert (whole != other_seed).mean() > 0.99
    rows = np.array([4, 1])
    part = batches.measured(task, {name: array[rows] for name, array in raw.items()}, rows, 2, 0)
    np.testing.assert_array_equal(part.y, whole[rows])


def test_dequantised_log_p_is_a_lower_bound_of_that_of_bytes():
    """Jensen: E_u[log p((v + u) / 256)] - log 256 <= log of p's integral over the bin of v, in float64."""
    values = np.array([0, 1, 77, 128, 254, 255])
    shape = (len(values), 8, 16, 16, 3)
    frames = np.broadcast_to(values[:, None, None, None, None], shape).astype(np.uint8)
    batch = batch_of(task_of(of_folders(dequantise=True)), {**numbered(), "frames": jnp.asarray(frames)}, False)
    y = np.asarray(batch.y, np.float64).reshape(len(values), -1)
    # A Gaussian a quarter of a byte wide, so far from the middle of each bin.
    offset, scale = np.array([0, 0.5, 1, 0, -0.5, -1]), 0.25
    mean = (values + 0.5 + offset)[:, None] / 256
    log_p = stats.norm.logpdf(y, mean, scale / 256)
    bound = log_p.mean(1) - np.log(256)
    error = log_p.std(1) / np.sqrt(log_p.shape[1])
    ends = [stats.norm.cdf((values + end) / 256, mean[:, 0], scale / 256) for end in (0, 1)]
    log_probability = np.log(ends[1] - ends[0])
    assert (bound <= log_probability).all() and (log_probability <= 0).all()
    closed = -0.5 * (1 / 12 + offset**2) / scale**2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    assert (np.abs(bound - closed) < 5 * error).all()


@pytest.mark.slow
def test_dequantised_videos_are_compared_and_shown_clean(monkeypatch):
    """Predictions that are the clean frames have no error, and the last known frame has that of a run without."""
    raw = random_bytes()
    clean, batch = (batch_of(task_of(of_folders(dequantise=on)), raw, training=False) for on in (False, True))
    assert (batch.y != clean.y).mean() > 0.99
    task = task_of(of_folders(dequantise=True))

    def draw_samples(fitted, batch, sample_keys, noise, keep=lambda frames, batch: frames, samples_per_call=None):
        frames = [keep(clean.y, batch) for _ in sample_keys]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *frames)

    monkeypatch.setattr(inference, "draw_samples", draw_samples)
    monkeypatch.setattr(inference, "sample", lambda *_, **__: clean.y[None])
    _, fitted, _ = trained(of_folders(dequantise=True), raw)
    for name, metric in task.metrics(fitted, batch, jax.random.key(0)).items():
        np.testing.assert_allclose(metric.values, 1 if "SSIM" in name else 100, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(task.validation_metrics(fitted, batch, batch.ids)["PSNR"], 100, rtol=1e-5)
    for name, metric in task.baselines(clean)["the last known frame"].items():
        np.testing.assert_array_equal(task.baselines(batch)["the last known frame"][name].values, metric.values)
    shown = {}
    monkeypatch.setattr(figures, "gif", lambda path, title, videos, num_past: shown.update(videos))
    task.figures(fitted, batch, jax.random.key(0))["videos"](None, "")
    np.testing.assert_array_equal(shown["truth"][:, 2:], clean.y)
    np.testing.assert_array_equal(task.sample_grid(batch, {}).columns["frame 6, truth"], clean.y[:, -1])


def write_videos(folder, num_train=7, num_test=3):
    """Puts videos of noise into folders, as `of_folders` has them, three to validate on."""
    for split, count in (("train", num_train), ("validate", 3), ("test", num_test)):
        for number in range(count):
            video = folder / split / f"{number:02d}"
            video.mkdir(parents=True)
            for frame in range(8):
                Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)).save(video / f"{frame}.png")
            rows = RNG.normal(size=(8, 7)).round(3)
            np.savetxt(video / "actions.csv", rows[:, :4], "%.3f", ",")
            np.savetxt(video / "endeffector_positions.csv", rows[:, 4:], "%.3f", ",")


def test_another_videos_conditions_are_measured_and_not_trained_on(tmp_path):
    """They are no array of training's or validation's buckets, and of no batch there."""
    write_videos(tmp_path)
    config = of_folders()
    config.data.dir = str(tmp_path)
    config.cvae.batch_size = 4
    task, splits = load(config)
    assert set(task.measured) == {"other_condition"} and "other_condition" not in task.raw
    (train,), (valid,) = loop.training_buckets(task.stages[0], task, splits), buckets.of_split(task, splits["valid"])
    assert set(train.arrays) == set(valid.arrays) == {"frames", "condition"}
    for bucket, step in ((train, jnp.int32(0)), (valid, None)):
        raw = {name: jnp.asarray(array) for name, array in bucket.arrays.items()}
        ids = jnp.asarray(bucket.ids)
        batch = batches.make_jitted(task, raw, ids, jnp.ones(len(ids)), jax.random.key(0), step)
        assert set(batch.x) == {"frames", "condition"}
    first = batches.first(task, splits["test"], 3)
    ((batch, count),) = batches.of_split(task, splits["test"], 0)
    assert count == 3
    for measured in (first, batch):
        assert set(measured.x) == {"frames", "condition", "other_condition"}
        other = np.asarray(measured.x["other_condition"])[:3]
        assert other.shape == (3, 6, 7)
        np.testing.assert_array_equal(other, np.roll(measured.x["condition"][:3], 1, 0))


def test_terms_and_validation_metrics_carry_their_units():
    """Beside those of the objective; whether or not there is a share to log."""
    scheduled = smoke()
    scheduled.teacher_forcing.update(last=0.0, steps=10)
    for config in (smoke(), scheduled, of_folders()):
        (stage,) = task_of(config).stages
        assert stage.units == {
            "beta": "weight of the KL",
            "teacher_forcing": "share of batches",
            "PSNR": "dB, a sample of the future",
        }


def test_psnr():
    truth, frames = RNG.uniform(size=(2, 3, 4, 16, 16, 3)).astype(np.float32)
    values = images.psnr(jnp.asarray(frames), jnp.asarray(truth))
    assert values.shape == (3, 4)
    assert values[1, 2] == pytest.approx(peak_signal_noise_ratio(truth[1, 2], frames[1, 2], data_range=1), abs=1e-4)
    np.testing.assert_allclose(images.psnr(jnp.asarray(truth), jnp.asarray(truth)), 100, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim(channels):
    truth = RNG.uniform(size=(2, 2, 16, 16, channels)).astype(np.float32)
    truth[0] = 0  # and frames without any structure
    frames = np.clip(truth + 0.1 * RNG.normal(size=truth.shape), 0, 1).astype(np.float32)
    values = images.ssim(jnp.asarray(frames), jnp.asarray(truth))
    reference = partial(
        structural_similarity,
        data_range=1,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    wanted = [[reference(*pair) for pair in zip(*pairs, strict=True)] for pairs in zip(truth, frames, strict=True)]
    np.testing.assert_allclose(values, wanted, atol=1e-5)
    np.testing.assert_allclose(images.ssim(jnp.asarray(truth), jnp.asarray(truth)), 1, atol=1e-6)


def test_frames_after_turns():
    turned = np.zeros((2, 10), bool)
    turned[0, [1, 5]] = True  # the first before the future, which begins at frame 2
    after = metrics.after_turns(turned, 2)
    np.testing.assert_array_equal(after[0], [1, 1, 1, 0, 1, 1, 1, 0])  # frames 2, 3, 4 and 6, 7, 8
    assert not after[1].any()


@pytest.mark.slow
def test_metrics_of_samples(monkeypatch):
    """Against samples measured by NumPy, whether all are held at once or two of the three."""
    config = of_folders()
    raw = numbered()
    raw["other_condition"] = jnp.asarray(RNG.normal(size=raw["condition"].shape).astype(np.float32))
    raw["frames"] = jnp.asarray(RNG.integers(0, 256, raw["frames"].shape, np.uint8))
    task, fitted, batch = trained(config, raw)
    assert (fitted.exact, fitted.has_recognition, fitted.predicts_from) == (False, True, "prior")
    params = jax.tree.map(lambda leaf: 2 * leaf, fitted.variables["params"])  # so that samples differ
    fitted = dataclasses.replace(fitted, variables={**fitted.variables, "params": params})
    measured = task.metrics(fitted, batch, jax.random.key(5))
    key = keys.substream(jax.random.key(5), "futures")
    sample_keys = keys.per_sample(keys.per_example(key, batch.ids), jnp.arange(3))

    def samples(batch):
        drawn = jax.jit(inference.sample, static_argnums=3)(fitted, batch, sample_keys, False)
        return -10 * np.log10(((np.asarray(drawn) - np.asarray(batch.y)) ** 2).mean((3, 4, 5)))

    psnr = samples(batch)
    assert psnr.std(0).mean() > 1e-3
    best = [psnr[values.argmax(), row] for row, values in enumerate(psnr.mean(2).T)]
    np.testing.assert_allclose(measured["best PSNR of 3 samples"].values, best, rtol=1e-4)
    np.testing.assert_allclose(measured["mean PSNR of 3 samples"].values, psnr.mean(0), rtol=1e-4)
    best_ssim, mean_ssim = (measured[f"{kind} SSIM of 3 samples"].values.mean(1) for kind in ("best", "mean"))
    assert (best_ssim >= mean_ssim - 1e-6).all()
    changes = {metrics.SHUFFLED: batch.x["other_condition"], metrics.ZERO: 0 * batch.x["condition"]}
    for name, condition in changes.items():
        changed = samples(batch._replace(x={**batch.x, "condition": condition}))
        np.testing.assert_allclose(measured[name].values, changed.mean((0, 2)), rtol=1e-4)
    by_step = {f"{kind} {name} of 3 samples" for kind in ("best", "mean") for name in ("PSNR", "SSIM")}
    assert set(measured) == {*by_step, metrics.SHUFFLED, metrics.ZERO}
    assert {name: metric.step for name, metric in measured.items() if metric.step} == dict.fromkeys(
        by_step, "predicted frame"
    )
    assert {name: metric.unit for name, metric in measured.items()} == {
        name: "" if "SSIM" in name else "dB" for name in measured
    }
    assert not any(metric.pool for metric in measured.values())
    monkeypatch.setattr(metrics, "BYTES_PER_CALL", 2 * 4 * batch.y.size)
    again = metrics.quality_of_samples(fitted, batch, key, 3)["PSNR"]
    np.testing.assert_allclose(again, psnr, rtol=1e-4)
    shown = {}
    monkeypatch.setattr(figures, "gif", lambda path, title, videos, num_past: shown.update(videos))
    figures.of_videos(fitted, batch, key, 3)["videos"](None, "")
    drawn = np.asarray(jax.jit(inference.sample, static_argnums=3)(fitted, batch, sample_keys, False))
    np.testing.assert_allclose(shown["best of 3"][:, 2:], drawn[psnr.mean(2).argmax(0), np.arange(6)], atol=1e-5)
    np.testing.assert_allclose(shown["sample 2"][:, 2:], drawn[1], atol=1e-5)
    np.testing.assert_allclose(shown["truth"], np.concatenate([batch.x["frames"], batch.y], 1))
    followed = task.validation_metrics(fitted, batch, sample_keys[0])
    np.testing.assert_allclose(followed["PSNR"], psnr[0].mean(1), rtol=1e-4)


def test_metrics_of_a_users_own_videos(monkeypatch):
    """They have no video before them in a split, whose conditions could be given; of a split's both are measured."""

    def quality_of_samples(fitted, batch, key, num_samples):
        values = np.broadcast_to(np.asarray(batch.x["condition"]).mean((1, 2))[:, None], (num_samples, 2, 4))
        return {"PSNR": values, "SSIM": values}

    monkeypatch.setattr(metrics, "quality_of_samples", quality_of_samples)
    task = task_of(of_folders())
    own = task.from_user({"frames": GOOD, "condition": ROWS + 2}, np.ones((2, 4, 16, 16, 3)))
    of_split = own._replace(x={**own.x, "other_condition": own.x["condition"] + 3})
    expected = {f"{kind} {name} of 3 samples": 2 for kind in ("best", "mean") for name in ("PSNR", "SSIM")}
    expected[metrics.ZERO] = 0
    for batch, values in ((own, expected), (of_split, {**expected, metrics.SHUFFLED: 5})):
        measured = task.metrics(None, batch, jax.random.key(0))
        assert set(measured) == set(values)
        for name, value in values.items():
            assert (measured[name].values == value).all(), name


def test_the_best_epoch_may_be_that_of_the_psnr():
    config = smoke()
    config.cvae.select = "+PSNR"
    task = task_of(config)
    loop.check_settings(task.stages[0], task, [100])
    config.cvae.select = "+SSIM"
    with pytest.raises(UserError, match=re.escape("cvae.select='+SSIM' is not known; choose from loss, +PSNR, -PSNR")):
        loop.check_settings(task.stages[0], task, [100])


def test_copying_the_last_frame():
    task = task_of(smoke())
    batch = batch_of(task, still(30), training=False)
    ((name, measured),) = task.baselines(batch).items()
    assert name == "the last known frame"
    wanted = -10 * np.log10(np.maximum(((batch.x["frames"][:, -1:] - batch.y) ** 2).mean((2, 3, 4)), 1e-10))
    np.testing.assert_allclose(measured["best PSNR of 3 samples"].values, wanted, rtol=1e-5)
    after = metrics.after_turns(np.asarray(batch.x["turned"]), 2)
    assert after.any() and not after.all()
    for name, chosen in ((metrics.AFTER_TURN, after), (metrics.ELSEWHERE, ~after)):
        metric = measured[name]
        assert metric.pool(metric.values.sum(0)) == pytest.approx(wanted[chosen].mean(), rel=1e-5)
        assert metric.unit == "dB"


@pytest.mark.slow
def test_teacher_forcing_in_training():
    """A coin for each batch, as often heads as its share says, decides whether true frames are given."""
    stages, raw = {}, still(4)
    for share in (0.0, 0.5, 1.0):
        config = smoke()
        config.cvae.latent = 0
        config.teacher_forcing.update(first=share, last=share)
        task = task_of(config)
        (stages[share],) = task.stages
    batch = batch_of(task, raw, training=True)
    variables = jax.jit(stages[1.0].model.init)(jax.random.key(0), batch, {})

    @partial(jax.jit, static_argnums=0)
    def predicted(share, seed):
        stage = stages[share]
        train = Train(keys.per_example(jax.random.key(seed), batch.ids), jnp.int32(3))
        encoding = stage.model.encode(variables, batch, train)
        draw = objectives.draws_of(stage.model, (variables, encoding), train.keys[None], train)
        _, terms = stage.objective(draw, batch, train.step)
        return stage.model.draw(variables, encoding, train.keys, "prior", None, train).p_y.mean, terms

    def both_ways(networks):
        train = Train(keys.unused(batch.ids), jnp.int32(3))
        encoding = networks.encode(batch.x, batch.y, train)
        arguments = encoding, keys.per_sample(train.keys, jnp.arange(1, 5)), "prior", None, encoding.past.mean
        return [way(*arguments)[1].swapaxes(0, 1) for way in (networks._forced, networks._free)]

    networks = VideoNetworks(
        network="dcgan", widths=widths(2, 16), channels=1, features=4, latent=0, prior="learned", hidden=5,
        predictor_layers=2, num_past=2, last_frame_skip=False, teacher_forcing=True,
    )  # fmt: skip
    (forced, freely), _ = jax.jit(partial(networks.apply, method=both_ways, mutable=["batch_stats"]))(variables)
    assert np.abs(forced - freely).max() > 1e-3
    always, terms = predicted(1.0, 0)
    np.testing.assert_allclose(always, forced, atol=1e-5)
    assert "teacher_forcing" not in terms
    never, terms = predicted(0.0, 0)
    np.testing.assert_allclose(never, freely, atol=1e-5)
    assert terms["teacher_forcing"] == 0
    heads = []
    for seed in range(64):
        frames, terms = predicted(0.5, seed)
        assert terms["teacher_forcing"] == 0.5
        heads.append(np.abs(frames - forced).max() < 1e-5)
        np.testing.assert_allclose(frames, forced if heads[-1] else freely, atol=1e-5)
    assert abs(sum(heads) - 32) < 4.5 * 4


GOOD = np.zeros((2, 2, 16, 16, 3), np.float32)
ROWS = np.zeros((2, 6, 7), np.float32)


def test_own_videos():
    task = task_of(of_folders())
    batch = task.from_user({"frames": GOOD, "condition": ROWS}, np.ones((2, 4, 16, 16, 3)))
    assert batch.x["frames"].shape == GOOD.shape and batch.y.shape == (2, 4, 16, 16, 3)
    longer = task.from_user({"frames": GOOD, "condition": np.zeros((2, 30, 7))})  # as far as there are conditions
    assert longer.y is None and longer.x["condition"].shape == (2, 30, 7)
    alone = task_of(smoke()).from_user(np.zeros((3, 2, 16, 16, 1)))
    assert alone.x["condition"].shape == (3, 5, 0)


def test_own_videos_are_taken_as_they_are():
    frames = np.random.default_rng(2).uniform(size=(2, 4, 16, 16, 3)).astype(np.float32)
    batch = task_of(of_folders(dequantise=True)).from_user({"frames": GOOD, "condition": ROWS}, frames)
    np.testing.assert_array_equal(batch.y, frames)
    np.testing.assert_array_equal(metrics.truth(batch), frames)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ({"frames": GOOD[:, :1], "condition": ROWS}, None, "x has 1 frames of each video; prediction needs 2"),
        ({"frames": GOOD[..., :1], "condition": ROWS}, None, "(2, 2, 16, 16, 1), expected [batch, frames, 16, 16, 3]"),
        ({"frames": 255 + GOOD, "condition": ROWS}, None, "x has values outside [0, 1]; scale them by 1/255"),
        ({"frames": GOOD * np.nan, "condition": ROWS}, None, "x has values that are NaN or infinite"),
        ({"frames": "a.png", "condition": ROWS}, None, "x is no array of numbers, but str"),
        ({"condition": ROWS}, None, "x holds condition; give it frames and condition"),
        ({"frames": GOOD, "conditions": ROWS}, None, "x holds frames, conditions; give it frames and condition"),
        ({}, None, "x holds nothing; give it frames and condition"),
        (GOOD, None, "x holds frames; give it frames and condition"),
        ({"frames": GOOD, "condition": ROWS[:1]}, None, "condition has shape (1, 6, 7), expected [2, frames, 7]"),
        ({"frames": GOOD, "condition": ROWS[:, :2]}, None, "condition has 2 rows a video, of 2 known frames; give one"),
        ({"frames": GOOD, "condition": "rows"}, None, "condition is no array of numbers, but str"),
        ({"frames": GOOD, "condition": ROWS}, GOOD, "condition has 6 rows a video, x and y together 4 frames"),
        ({"frames": GOOD, "condition": ROWS}, GOOD[:1], "x has 2 videos but y has 1"),
    ],
)  # fmt: skip
def test_own_videos_that_cannot_be(x, y, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        task_of(of_folders()).from_user(x, y)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.source", "mnist", "data.source='mnist' is no source of videos; choose from videos, moving_digits"),
        ("cvae.network", "unet", "cvae.network='unet' is not known; choose from dcgan, vgg"),
        ("cvae.prior", "none", "cvae.prior='none' is not known; choose from fixed, learned"),
        ("cvae.precision", "float16", "cvae.precision='float16' is not known; choose from float32, bfloat16"),
        ("measure_given", "truth", "measure_given='truth' is not known; choose from true_frames, predictions"),
        ("num_past", 0, "num_past=0 must be at least 1"),
        ("data.num_train", -1, "data.num_train=-1 must be at least 0"),
        ("data.num_columns", -1, "data.num_columns=-1 must be at least 0"),
        ("data.num_frames", 0, "data.num_frames=0 must be at least 1"),
        ("cvae.objective.name", "gsnn", "cvae.objective.name='gsnn' does not train the recognition network"),
        ("cvae.latent", -1, "cvae.latent=-1 must be at least 0"),
        ("data.size", 24, "data.size=24 must be a power of 2, of at least 16"),
        ("data.size", 8, "data.size=8 must be a power of 2, of at least 16"),
        ("teacher_forcing.first", 1.5, "teacher_forcing.first=1.5 must be between 0 and 1"),
        ("teacher_forcing.last", 0.5, "teacher_forcing.steps=0 leaves no step"),
    ],
)
def test_settings_that_cannot_be(key, value, expected):
    config = of_folders()
    *sections, name = key.split(".")
    section = config
    for inner in sections:
        section = section[inner]
    section[name] = value
    with pytest.raises(UserError, match=re.escape(expected)):
        task_of(config)


@pytest.mark.slow
def test_videos_too_short_to_train_or_to_measure_on():
    expected = "num_past=2 and {}=7 take 9 frames, more than data.num_frames=8; lower num_past or {}"
    with pytest.raises(UserError, match=expected.format("num_future", "num_future")):
        task_of(of_folders(num_future=7))
    config = of_folders(measure_future=7)
    config.data.update(conditions=(), num_columns=0)
    task = task_of(config)
    with pytest.raises(UserError, match=expected.format("measure_future", "measure_future")):
        task.check({})
    # A user's own videos may be longer.
    model = task.stages[0].model
    params = jax.jit(model.init)(jax.random.key(0), batch_of(task, numbered(columns=0), training=True), {})
    loaded = TrainedModel(config, task, 0, {"cvae": params})
    assert loaded.predict(GOOD).shape == (2, 7, 16, 16, 3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (of_folders(), "data.size=0 must be at least 1"),  # what would be divided by, before the task is made
        (smoke(), "data.size=0 must be a power of 2, of at least 16"),
    ],
)
def test_frames_of_no_size(config, expected, tmp_path):
    """One line, from a task without data and from training, which loads data first and leaves no workdir."""
    write_videos(tmp_path / "data")
    config.data.update(size=0, dir=str(tmp_path / "data"))
    with pytest.raises(UserError) as refusal:
        task_of(config)
    assert str(refusal.value) == "data.size=0 must be a power of 2, of at least 16"
    with pytest.raises(UserError) as refusal:
        cvae_jax.train(config, str(tmp_path / "run"))
    assert str(refusal.value) == expected
    assert not (tmp_path / "run").exists()


def test_sizes_of_digits_that_cannot_be():
    for key, value, expected in (("digit_size", 16, "must be at most 15"), ("max_speed", 0, "at least 1")):
        config = smoke()
        config.data[key] = value
        with pytest.raises(UserError, match=expected):
            task_of(config)


def test_a_grid_shows_last_frames():
    """The last known, the last true one, and that of a prediction or of each sample."""
    task = task_of(of_folders())
    y = RNG.uniform(size=(2, 4, 16, 16, 3)).astype(np.float32)
    past = RNG.uniform(size=GOOD.shape).astype(np.float32)
    batch = task.from_user({"frames": past, "condition": ROWS}, y)
    drawn = RNG.uniform(size=(2, *y.shape)).astype(np.float32)
    columns = task.sample_grid(batch, {"cvae": drawn}).columns
    expected = {"frame 2": past, "frame 6, truth": y, "sample 1": drawn[0], "sample 2": drawn[1]}
    assert list(columns) == list(expected)
    for name, frames in expected.items():
        np.testing.assert_array_equal(columns[name], frames[:, -1], name)
    assert list(task.sample_grid(batch._replace(y=None), {"cvae": drawn[:1]}).columns) == ["frame 2", "prediction"]


def test_pictures(tmp_path):
    """A GIF of every frame, green while known and red when predicted, and strips of the same."""
    videos = {"truth": RNG.uniform(size=(2, 5, 16, 16, 3)), "prediction": RNG.uniform(size=(2, 5, 16, 16, 3))}
    figures.gif(tmp_path / "videos.png", "A title", videos, 2)
    known, predicted = (np.array(colour) * 255 for colour in (figures.KNOWN, figures.PREDICTED))
    with Image.open(tmp_path / "videos.gif") as film:
        assert film.n_frames == 5
        for number in range(5):
            film.seek(number)
            page = np.asarray(film.convert("RGB"), float)
            shares = [(np.abs(page - colour).max(2) < 12).mean() for colour in (known, predicted)]
            assert (shares[0] > 5 * shares[1]) == (number < 2), (number, shares)
    with Image.open(tmp_path / "videos.png") as last:
        assert last.size == film.size
    figures.strip(tmp_path / "frames.png", "A title", videos, 2)
    with Image.open(tmp_path / "frames.png") as strip:
        pixels = np.asarray(strip.convert("RGB"), float)
    green, red = [(np.abs(pixels - colour).max(2) < 12).sum() for colour in (known, predicted)]
    assert red / green == pytest.approx(3 / 2, rel=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The smoke variant's workdir, as a user trains it."""
    workdir = tmp_path_factory.mktemp("video") / "run"
    result = command.run("train.py", "--config=configs/video.py:smoke", f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.slow
def test_from_training_to_tables(run, tmp_path):
    """Measured farther than it was trained, with other samples, and given its own predictions."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["valid/PSNR"] < 100 for row in rows)
    for name in ("training.png", "cvae.gif"):
        assert (run / "figures" / name).stat().st_size > 0
    changes = [f"--change=measure_{change}" for change in ("future=5", "samples=2", "given=predictions")]
    result = command.run(
        "eval.py", f"--workdir={run}", f"--output={tmp_path}", "--estimator=is", "--num_samples=5", "--num_examples=20",
        *changes,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    text = result.stdout
    assert "2 -> 5 frames" in text and "given the predicted frames before each" in text
    assert "the last known frame" in text
    rows = json.loads((tmp_path / "results.json").read_text())["task_measures"]
    measured = {(row["model"], row["name"]): row for row in rows}
    of_steps = measured["video_digits cvae", "mean PSNR of 2 samples, dB"]
    assert len(of_steps["of_steps"]) == len(of_steps["errors_of_steps"]) == 5
    assert np.mean(of_steps["of_steps"]) == pytest.approx(of_steps["mean"])
    names = {path.name for path in tmp_path.iterdir()}
    courses = {f"{kind}_{name}_of_2_samples.png" for kind in ("best", "mean") for name in ("PSNR", "SSIM")}
    assert courses | {"videos_run.gif", "videos_run.png", "frames_run.png", "samples_run.png"} <= names
    with Image.open(tmp_path / "videos_run.gif") as film:
        assert film.n_frames == 7


@pytest.mark.slow
def test_how_a_run_is_measured_can_be_changed(run):
    assert cvae_jax.load(str(run)).task.protocol.endswith("given the true frames before each")
    longer = cvae_jax.load(str(run), changes=["measure_future=9"])
    assert longer.predict(np.zeros((1, 2, 16, 16, 1))).shape == (1, 9, 16, 16, 1)
    for change, expected in (
        ("num_future=6", "change='num_future=6' must set a key whose name begins with measure_; this run has measure_"),
        ("measure_future=far", "measure_future takes a value such as 3"),
        ("measure_given=nothing", "measure_given='nothing' is not known"),
    ):
        with pytest.raises(UserError, match=re.escape(expected)):
            cvae_jax.load(str(run), changes=[change])


@pytest.mark.slow
def test_simulated_videos_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="given the true ones before it"):
        evaluation.evaluate(
            [str(run)],
            evaluation.Request(
                estimators=("bdmc",), num_samples=(2,), num_examples=2, output=str(tmp_path), num_chains=2
            ),
        )


@pytest.mark.slow
def test_videos_in_folders_from_training_to_tables(tmp_path):
    """Its epochs are chosen by the PSNR; other videos' conditions reach the tables, and nothing before them.

    Its bytes are dequantised, as the tables say.
    """
    write_videos(tmp_path / "data")
    config = of_folders(dequantise=True)
    config.data.dir = str(tmp_path / "data")
    config.cvae.update(latent=0, epochs=1, batch_size=4, checkpoint_every=1, select="+PSNR")
    cvae_jax.train(config, str(tmp_path / "run"))
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["best_PSNR"] == row["valid/PSNR"] > 0
    request = evaluation.Request(num_samples=(2,), output=str(tmp_path / "tables"))
    text = evaluation.evaluate([str(tmp_path / "run")], request)
    assert "density per unit of [0, 1] pixels, 8-bit values dequantised uniformly, given the true frames" in text
    rows = json.loads((tmp_path / "tables" / "examples.json").read_text())["task_measures"]
    values = {row["name"]: np.array(row["values"]) for row in rows if row["model"] == "video cvae"}
    for name in (metrics.SHUFFLED, metrics.ZERO):
        assert f"{name}, dB" in text
        assert values[f"{name}, dB"].shape == (1, 3) and (values[f"{name}, dB"] > 0).all()
    assert values["mean PSNR of 3 samples, dB"].shape == (1, 3, 4)
    by_video = values["mean PSNR of 3 samples, dB"].mean(2)
    assert (values[f"{metrics.SHUFFLED}, dB"] != by_video).all()
