"""Video prediction: batches, measures and their truth, figures, and a run from the command to its tables."""

import json
import re
from functools import partial

import command
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import cvae_jax
from configs import video as config_file
from cvae_jax import evaluation, keys, objectives
from cvae_jax.errors import UserError
from cvae_jax.inference import draws as inference
from cvae_jax.model import Train
from cvae_jax.tasks import make_task
from cvae_jax.tasks.video import figures, moving_digits
from cvae_jax.tasks.video import metrics as measures

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


def batch_of(task, raw, train, seed=0):
    index = jnp.arange(len(jax.tree.leaves(raw)[0]))
    make = jax.jit(task.batch, static_argnums=4)
    return make(raw, index, jnp.ones(len(index)), keys.per_example(jax.random.key(seed), index), train)


def trained(config, raw):
    """The task of a config, its model with initial weights, and a batch to measure it on."""
    task = make_task(config)
    (stage,) = task.stages
    variables = jax.jit(stage.model.init)(jax.random.key(0), batch_of(task, raw, True))
    return task, stage.model, variables, batch_of(task, raw, False)


def still(count):
    settings = config_file.get_config("smoke").data
    return {"digits": jnp.asarray(moving_digits.load(settings)["test"]["digits"][:count])}


def test_a_batch_of_videos():
    task, raw = make_task(of_folders()), numbered()
    measured = batch_of(task, raw, False)
    assert measured.x["frames"].shape == (6, 2, 16, 16, 3) and measured.y.shape == (6, 4, 16, 16, 3)
    np.testing.assert_allclose(
        measured.x["frames"][:, :, 0, 0, 0] * 255, 10 * np.arange(6)[:, None] + np.arange(2), rtol=1e-5
    )
    np.testing.assert_allclose(measured.y[:, :, 3, 2, 1] * 255, 10 * np.arange(6)[:, None] + np.arange(2, 6), rtol=1e-5)
    np.testing.assert_array_equal(measured.x["condition"], raw["condition"][:, :6])
    starts = set()
    for seed in range(20):
        batch = batch_of(task, raw, True, seed)
        assert batch.x["frames"].shape == (6, 1, 16, 16, 3) and batch.y.shape == (6, 4, 16, 16, 3)
        frames = jnp.concatenate([batch.x["frames"], batch.y], 1)[:, :, 0, 0, 0] * 255
        np.testing.assert_allclose(frames, batch.x["condition"][:, :, 0], rtol=1e-5)
        starts |= set(np.asarray(batch.x["condition"][:, 0, 0]).astype(int) % 10)
    assert starts == {0, 1, 2, 3}  # of 8 frames, 5 in training


@pytest.mark.slow
def test_a_batch_of_moving_digits():
    raw = still(50)
    task = make_task(smoke())
    one, other = batch_of(task, raw, True), batch_of(task, raw, True, seed=1)
    assert one.x["frames"].shape == (50, 1, 16, 16, 1) and one.y.shape == (50, 4, 16, 16, 1)
    assert (one.y != other.y).any((1, 2, 3, 4)).mean() > 0.9  # never the same clip
    assert one.x["condition"].shape == (50, 5, 0) and one.x["turned"].shape == (50, 5)
    np.testing.assert_array_equal(batch_of(task, raw, False).y[:, :2], one.y[:, 1:3])  # of the same keys, the same


def test_psnr():
    truth, frames = RNG.uniform(size=(2, 3, 4, 16, 16, 3)).astype(np.float32)
    found = measures.psnr(jnp.asarray(frames), jnp.asarray(truth))
    assert found.shape == (3, 4)
    assert found[1, 2] == pytest.approx(peak_signal_noise_ratio(truth[1, 2], frames[1, 2], data_range=1), abs=1e-4)
    np.testing.assert_allclose(measures.psnr(jnp.asarray(truth), jnp.asarray(truth)), 100, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim(channels):
    truth = RNG.uniform(size=(2, 2, 16, 16, channels)).astype(np.float32)
    truth[0] = 0  # and frames without any structure
    frames = np.clip(truth + 0.1 * RNG.normal(size=truth.shape), 0, 1).astype(np.float32)
    found = measures.ssim(jnp.asarray(frames), jnp.asarray(truth))
    reference = partial(
        structural_similarity,
        data_range=1,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    wanted = [[reference(*pair) for pair in zip(*pairs, strict=True)] for pairs in zip(truth, frames, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(measures.ssim(jnp.asarray(truth), jnp.asarray(truth)), 1, atol=1e-6)


def test_frames_after_turns():
    turned = np.zeros((2, 10), bool)
    turned[0, [1, 5]] = True  # the first before the future, which begins at frame 2
    found = measures.after_turns(turned, 2)
    np.testing.assert_array_equal(found[0], [1, 1, 1, 0, 1, 1, 1, 0])  # frames 2, 3, 4 and 6, 7, 8
    assert not found[1].any()


@pytest.mark.slow
def test_measures_of_samples(monkeypatch):
    """Against samples measured by NumPy, whether all are held at once or two of the three."""
    config = of_folders()
    raw = numbered()
    raw["other_condition"] = jnp.asarray(RNG.normal(size=raw["condition"].shape).astype(np.float32))
    raw["frames"] = jnp.asarray(RNG.integers(0, 256, raw["frames"].shape, np.uint8))
    task, model, variables, batch = trained(config, raw)
    variables["params"] = jax.tree.map(lambda leaf: 2 * leaf, variables["params"])  # so that samples differ
    how = cvae_jax.experiment.How(False, True, "prior")
    found = task.measures.of_batch(model, variables, batch, how, jax.random.key(5))
    key = keys.substream(jax.random.key(5), "futures")
    sample_keys = keys.per_sample(keys.per_example(key, batch.index), jnp.arange(3))

    def samples(batch):
        drawn = jax.jit(inference.sample, static_argnums=(0, 4))(model, variables, batch, sample_keys, False)
        return -10 * np.log10(((np.asarray(drawn) - np.asarray(batch.y)) ** 2).mean((3, 4, 5)))

    each = samples(batch)
    assert each.std(0).mean() > 1e-3
    best = [each[values.argmax(), row] for row, values in enumerate(each.mean(2).T)]
    np.testing.assert_allclose(found["best PSNR of 3 samples, dB"], best, rtol=1e-4)
    np.testing.assert_allclose(found["mean PSNR of 3 samples, dB"], each.mean(0), rtol=1e-4)
    assert (found["best SSIM of 3 samples"].mean(1) >= found["mean SSIM of 3 samples"].mean(1) - 1e-6).all()
    for name, condition in ((measures.SHUFFLED, batch.x["other_condition"]), (measures.ZERO, 0 * batch.x["condition"])):
        other = samples(batch._replace(x={**batch.x, "condition": condition}))
        np.testing.assert_allclose(found[name], other.mean((0, 2)), rtol=1e-4)
    assert set(found) == {*task.measures.profiles, measures.SHUFFLED, measures.ZERO}
    monkeypatch.setattr(measures, "BYTES_PER_CALL", 2 * 4 * batch.y.size)
    again = measures.of_samples(model, variables, batch, how, key, 3)["PSNR"]
    np.testing.assert_allclose(again, each, rtol=1e-4)
    shown = {}
    monkeypatch.setattr(figures, "gif", lambda path, title, videos, num_past: shown.update(videos))
    figures.pictures(model, variables, batch, how, key, 3)["videos"](None, "")
    drawn = np.asarray(jax.jit(inference.sample, static_argnums=(0, 4))(model, variables, batch, sample_keys, False))
    np.testing.assert_allclose(shown["best of 3"][:, 2:], drawn[each.mean(2).argmax(0), np.arange(6)], atol=1e-5)
    np.testing.assert_allclose(shown["sample 2"][:, 2:], drawn[1], atol=1e-5)
    np.testing.assert_allclose(shown["truth"], np.concatenate([batch.x["frames"], batch.y], 1))
    followed = task.followed(model, variables, batch, sample_keys[0])
    np.testing.assert_allclose(followed["PSNR"], each[0].mean(1), rtol=1e-4)


def test_copying_the_last_frame():
    task = make_task(smoke())
    batch = batch_of(task, still(30), False)
    ((name, found),) = task.measures.baselines(batch).items()
    assert name == "the last known frame"
    wanted = -10 * np.log10(np.maximum(((batch.x["frames"][:, -1:] - batch.y) ** 2).mean((2, 3, 4)), 1e-10))
    np.testing.assert_allclose(found["best PSNR of 3 samples, dB"], wanted, rtol=1e-5)
    after = measures.after_turns(np.asarray(batch.x["turned"]), 2)
    assert after.any() and not after.all()
    sums = {name: found[name].sum(0) for name in task.measures.pooled}
    assert task.measures.pooled[measures.AFTER_TURN](sums[measures.AFTER_TURN]) == pytest.approx(
        wanted[after].mean(), rel=1e-5
    )
    assert task.measures.pooled[measures.OTHERS](sums[measures.OTHERS]) == pytest.approx(
        wanted[~after].mean(), rel=1e-5
    )


@pytest.mark.slow
def test_teacher_forcing_in_training():
    """A coin for each batch, as often heads as its share says, decides whether true frames are given."""
    models, raw = {}, still(4)
    for share in (0.0, 0.5, 1.0):
        config = smoke()
        config.cvae.latent = 0
        config.teacher_forcing.update(first=share, last=share)
        task = make_task(config)
        models[share] = task.stages[0]
    model = models[1.0].model
    batch = batch_of(task, raw, True)
    variables = jax.jit(model.init)(jax.random.key(0), batch)

    @partial(jax.jit, static_argnums=0)
    def predicted(share, seed, coin=None):
        train = Train(keys.per_example(jax.random.key(seed), batch.index), jnp.int32(3))
        given = batch._replace(x={**batch.x, "coin": coin})
        stage = models[share]
        encoding = stage.model.encode(variables, given, train)
        draw = objectives.draws_of(stage.model, variables, encoding, train.keys[None], train)
        _, terms = stage.objective(draw, train.step)
        return stage.model.draw(variables, encoding, train.keys, "prior", None, train).p_y.mean, terms

    (forced, terms), (freely, _) = (predicted(1.0, 0, jnp.asarray(coin)) for coin in (True, False))
    assert np.abs(forced - freely).max() > 1e-3 and "teacher_forcing" not in terms
    np.testing.assert_allclose(predicted(1.0, 0)[0], forced, atol=1e-5)
    found, terms = predicted(0.0, 0)
    np.testing.assert_allclose(found, freely, atol=1e-5)
    assert terms["teacher_forcing"] == 0
    heads = [np.abs(predicted(0.5, seed)[0] - forced).max() < 1e-5 for seed in range(64)]
    assert abs(sum(heads) - 32) < 4.5 * 4


GOOD = np.zeros((2, 2, 16, 16, 3), np.float32)
ROWS = np.zeros((2, 6, 7), np.float32)


def test_own_videos():
    task = make_task(of_folders())
    batch = task.observe({"frames": GOOD, "condition": ROWS}, np.ones((2, 4, 16, 16, 3)))
    assert batch.x["frames"].shape == GOOD.shape and batch.y.shape == (2, 4, 16, 16, 3)
    longer = task.observe({"frames": GOOD, "condition": np.zeros((2, 30, 7))})  # as far as there are conditions
    assert longer.y is None and longer.x["condition"].shape == (2, 30, 7)
    alone = make_task(smoke()).observe(np.zeros((3, 2, 16, 16, 1)))
    assert alone.x["condition"].shape == (3, 5, 0)


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
        make_task(of_folders()).observe(x, y)


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
    for one in sections:
        section = section[one]
    section[name] = value
    with pytest.raises(UserError, match=re.escape(expected)):
        make_task(config)


@pytest.mark.slow
def test_videos_too_short_to_train_or_to_measure_on():
    expected = "num_past=2 and {}=7 take 9 frames, more than data.num_frames=8; lower num_past or {}"
    with pytest.raises(UserError, match=expected.format("num_future", "num_future")):
        make_task(of_folders(num_future=7))
    config = of_folders(measure_future=7)
    config.data.update(conditions=(), num_columns=0)
    task = make_task(config)
    with pytest.raises(UserError, match=expected.format("measure_future", "measure_future")):
        task.check({})
    # A user's own videos may be longer.
    model = task.stages[0].model
    params = jax.jit(model.init)(jax.random.key(0), batch_of(task, numbered(columns=0), True))
    loaded = cvae_jax.experiment.Experiment(config, task, 0, {"cvae": params})
    assert loaded.predict(GOOD).shape == (2, 7, 16, 16, 3)


def test_sizes_of_digits_that_cannot_be():
    for key, value, expected in (("digit_size", 16, "must be between 1 and 15"), ("max_speed", 0, "at least 1")):
        config = smoke()
        config.data[key] = value
        with pytest.raises(UserError, match=expected):
            make_task(config)


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
    measured = {
        (one["model"], one["name"]): one for one in json.loads((tmp_path / "results.json").read_text())["task_measures"]
    }
    of_steps = measured["video_digits cvae", "mean PSNR of 2 samples, dB"]
    assert len(of_steps["of_steps"]) == len(of_steps["errors_of_steps"]) == 5
    assert np.mean(of_steps["of_steps"]) == pytest.approx(of_steps["mean"])
    found = {path.name for path in tmp_path.iterdir()}
    courses = {f"{kind}_{name}_of_2_samples.png" for kind in ("best", "mean") for name in ("PSNR", "SSIM")}
    assert courses | {"videos_run.gif", "videos_run.png", "frames_run.png", "samples_run.png"} <= found
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
        evaluation.evaluate([str(run)], ["bdmc"], [2], num_examples=2, output=str(tmp_path), num_chains=2)
