"""train.py and eval.py as a user starts them: smoke variants of some configs, and every kind of bad input."""

import importlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from command import QUICKER, ROOT, run
from small_runs import small_identity
from specs import NOTHING

from cvae_jax import data, tasks
from cvae_jax.errors import UserError
from cvae_jax.training import loop, workdir

SMOKE = [  # as a user starts them
    "digits_quadrants.py:1,smoke",
    "mnist_quadrants.py:3,strong,smoke",
    "rna_boxes.py:smoke",
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Workdirs of the smoke variants by config, trained once."""
    folder = tmp_path_factory.mktemp("smoke")
    workdirs = {}
    for config in SMOKE:
        workdirs[config] = folder / config.split(".")[0]
        result = run("train.py", f"--config=configs/{config}", f"--workdir={workdirs[config]}")
        assert result.returncode == 0, result.stderr
        assert "compiled in" in result.stderr
    return workdirs


@pytest.mark.parametrize("script", ["train.py", pytest.param("eval.py", marks=pytest.mark.slow)])
def test_a_platform_that_is_not_there_is_one_line(tmp_path, monkeypatch, script):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    flags = ["--config=configs/digits_vae.py:smoke"] if script == "train.py" else []
    with workdir.open_workdir(str(tmp_path / "run"), small_identity()):
        pass
    result = run(script, *flags, f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: JAX_PLATFORMS=cuda asks for a device that JAX does not find")
    assert "unset JAX_PLATFORMS" in line and "Traceback" not in result.stderr


def source(settings):
    return settings.of if settings.source == "moving_digits" else settings.source


OFFLINE = ("digits", "glyphs", "rna")


def num_train(settings):
    counts = {"mnist": 55_000, "digits": 1297, "videos": 43_254, "npz": 10_000}
    own = {"rna": lambda: settings.num_seq * 8 // 10, "glyphs": lambda: settings.num_train}
    return own[settings.source]() if settings.source in own else counts[source(settings)]


def spec_of(config):
    """What is known of the data: that of a user's own arrays where the config does not describe them."""
    if config.task != "arrays":
        return NOTHING
    if config.data.source == "digits":
        return data.spec(data.load(config.data, {}))
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(10, size)).astype(np.float32) for name, size in (("x", 3), ("y", 2))}
    return data.spec({"train": arrays})


CONFIGS = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__"})


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_can_be_trained(name):
    """Each option alone, and with smoke: the task is made, and its settings fit the data."""
    module = importlib.import_module(f"configs.{name}")
    first = ["1"] if "quadrants" in name else []
    with pytest.raises(UserError) as refusal:
        module.get_config(",".join([*first, "nonsense"]))
    options = re.search("this config has (.*), as in", str(refusal.value)).group(1).split(", ")
    assert "smoke" in options
    for option in ([], *([name] for name in options)):
        for smoke in ([], ["smoke"]):
            config = module.get_config(",".join([*first, *option, *smoke]))
            task = tasks.make_task(config, spec_of(config))
            for stage in task.stages:
                loop.check_settings(stage, task, [num_train(config.data)])
            assert source(config.data) in OFFLINE or not (
                "smoke" in option + smoke or name.startswith(("digits", "glyphs"))
            )


@pytest.mark.slow
@pytest.mark.parametrize("config", SMOKE)
def test_smoke_leaves_figures_metrics_and_checkpoints(trained, config):
    workdir = trained[config]
    for name in ("config.json", "metrics.jsonl", "figures/training.png", "figures/cvae.gif"):
        assert (workdir / name).stat().st_size > 0
    assert list((workdir / "tensorboard").rglob("events*"))
    assert list((workdir / "checkpoints" / "cvae").glob("*.sha256.json"))


@pytest.mark.slow
def test_rna_is_folded(trained):
    workdir = trained["rna_boxes.py:smoke"]
    sequences, fold = ("GGGGAAAACCCC", "gcgcaaaagcgt"), ("-m", "cvae_jax", "rna_boxes", "fold")
    result = run(*fold, f"--workdir={workdir}", "--num_samples=5", *sequences)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"[.()]{12}  maximum expected accuracy", lines[lines.index("GCGCAAAAGCGU") + 1])
    assert "GGGGAAAACCCC" in lines
    other = run(*fold, f"--workdir={trained['digits_quadrants.py:1,smoke']}", "GGGGAAAACCCC")
    assert other.returncode == 1 and "is no model of RNA" in other.stderr
    wrong = run(*fold, f"--workdir={workdir}", "--num_samples=few", "GGGGAAAACCCC")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1


@pytest.mark.slow
def test_eval_prints_and_writes_the_table(trained, tmp_path):
    first, second, *_ = trained.values()
    result = run(
        "eval.py", f"--workdir={first}", f"--workdir={second}", f"--output={tmp_path}",
        "--estimator=elbo,mc,is", "--num_samples=10,20", "--num_examples=120",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    table = (tmp_path / "results.md").read_text()
    assert table in result.stdout
    for text in (
        "1 quadrant",
        "3 quadrants",
        "exact",
        "ESS",
        "± ",
        "gain of",
        "no density, digits test, 120 exa",
        "the targets themselves: ",
    ):
        assert text in table
    rows = json.loads((tmp_path / "results.json").read_text())["likelihoods"]
    assert len(rows) == 2 * (1 + 3 * 2)
    for row in rows:
        assert (
            row["num_examples"] == 120
            and row["protocol"].endswith("no density, digits test")
            and row["standard_error"] > 0
        )
        assert (row["monte_carlo_error"] > 0) == (row["estimator"] != "exact")
    figures = {name for w in (first, second) for name in (f"samples_{w.name}.png", f"latents_{w.name}_cvae.png")}
    assert {path.name for path in tmp_path.glob("*.png")} == figures


@pytest.mark.slow
def test_eval_anneals(trained, tmp_path):
    result = run(
        "eval.py", f"--workdir={next(iter(trained.values()))}", f"--output={tmp_path}", "--num_examples=3",
        "--estimator=ais", "--num_chains=2", "--ais_steps=3", "--ais_leapfrog=1", "--ais_start=prior",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "chains (under samples) of 3 temperatures with 1 leapfrog steps each, from p(z|x)" in result.stdout
    assert [row["num_samples"] for row in json.loads((tmp_path / "results.json").read_text())["likelihoods"]] == [1, 2]


@pytest.mark.slow
def test_training_again_says_so_and_changes_nothing(trained):
    workdir = next(iter(trained.values()))
    before = {path: path.read_bytes() for path in (workdir / "checkpoints").rglob("*") if path.is_file()}
    result = run("train.py", f"--config=configs/{next(iter(trained))}", f"--workdir={workdir}")
    assert result.returncode == 0 and "cvae: already finished, at step" in result.stderr
    assert before == {path: path.read_bytes() for path in (workdir / "checkpoints").rglob("*") if path.is_file()}


TRAIN = "--config=configs/mnist_quadrants.py:1,smoke"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--config=configs/mnist_quadrants.py:4", "--workdir=W"],
            "variant '4' is not known; begin it with one of 1, 2, 3",
        ),
        (["--config=configs/mnist_quadrants.py:1,smok", "--workdir=W"], "variant 'smok' is not known"),
        (["--workdir=W", "--config.seed=1", TRAIN], "--config.seed stands before --config; give --config first"),
        (["--config=configs/nowhere.py", "--workdir=W"], "config file configs/nowhere.py cannot be read"),
        ([TRAIN], "--workdir is required"),
        ([TRAIN, "--workdir=W", "--config.cvae.lattent=3"], "--config.cvae.lattent is not a key of this config"),
        (
            [TRAIN, "--workdir=W", "--config.epochs=3"],
            "--config.epochs is not a key of this config; did you mean --config.baseline.epochs or --config.cvae.epoch",
        ),
        ([TRAIN, "--workdir=W", "--config.cvae.batch_size=many"], "--config.cvae.batch_size=many: invalid literal"),
        ([TRAIN, "--workdir=W", "--config.cvae.latent=0"], "cvae.latent=0 must be at least 1"),
        ([TRAIN, "--workdir=W", "--config.image_shape=(9, 9)"], "make image_shape match the data"),
        ([TRAIN, "--workdir=W", "--wrkdir=W"], "Unknown command line flag 'wrkdir'"),
        ([TRAIN, "--workdir=W", "more"], "unexpected argument 'more'"),
        (["--config=configs/mnist_quadrants.py", "--workdir=W", "--config.data.dir=/nowhere"], "'/nowhere' is not a"),
    ],
)
def test_bad_flags_of_train_are_one_line(arguments, expected, tmp_path):
    arguments = [argument.replace("=W", f"={tmp_path / 'workdir'}") for argument in arguments]
    result = run("train.py", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert expected in result.stderr
    assert not (tmp_path / "workdir").exists()


@pytest.mark.slow
def test_bad_flags_of_eval_are_one_line(trained, tmp_path):
    workdir = next(iter(trained.values()))
    for arguments, expected in [
        ([f"--workdir={tmp_path}"], "holds no run (config.json is missing); train there first"),
        ([f"--workdir={workdir}", "--estimator=foo"], "estimator='foo' is not known; choose from elbo, mc, is"),
        ([f"--workdir={workdir}", "--num_chains=0"], "num_chains=0 must be at least 1"),
        ([f"--workdir={workdir}", "--split=dev"], "--split=dev: value should be one of"),
        ([], "--workdir is required"),
    ]:
        result = run("eval.py", *arguments)
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
        assert expected in result.stderr


def run_elsewhere(folder, *arguments):
    """Runs Python in a folder that is not the repository's."""
    environment = {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {QUICKER}"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, timeout=300, env=environment
    )


@pytest.mark.slow
def test_the_package_is_trained_and_measured_from_any_folder(tmp_path):
    """The flags are those of train.py and eval.py; the config is one of the package's own, by its name alone."""
    settings = ("--config=digits_quadrants.py:1,smoke", "--config.baseline.epochs=1", "--config.cvae.epochs=2")
    result = run_elsewhere(
        tmp_path, "-m", "cvae_jax", "train", *settings, "--workdir=run", "--config.cvae.figure_every=0"
    )
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["name"], config["quadrants"], config["cvae"]["epochs"]) == ("digits_quadrants", 1, 2)
    flags = ("--estimator=is", "--num_samples=3", "--num_examples=7", "--output=eval", "--seed=2")
    result = run_elsewhere(tmp_path, "-m", "cvae_jax", "eval", "--workdir=run", *flags)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "eval" / "results.md").read_text() in result.stdout
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())["likelihoods"]
    assert [(row["estimator"], row["num_samples"], row["num_examples"]) for row in rows] == [
        ("exact", 1, 7), ("is", 3, 7),
    ]  # fmt: skip
    # The same by eval.py, whose working directory is another.
    beside = run("eval.py", f"--workdir={tmp_path / 'run'}", *flags[:-2], f"--output={tmp_path / 'again'}", "--seed=2")
    assert beside.returncode == 0, beside.stderr
    again = json.loads((tmp_path / "again" / "results.json").read_text())["likelihoods"]
    likelihoods = [[row["negative_log_likelihood"] for row in of_command] for of_command in (rows, again)]
    assert likelihoods[0] == likelihoods[1]


@pytest.mark.slow
def test_commands_that_are_not_there_are_one_line(tmp_path):
    # video is a task without commands of its own.
    for arguments in (["nothing"], [], ["--workdir=run"], ["video"]):
        result = run_elsewhere(tmp_path, "-m", "cvae_jax", *arguments)
        assert result.returncode == 1 and result.stdout == "" and result.stderr.count("\n") == 1
        shown = repr("".join(arguments) or "nothing")
        assert result.stderr.startswith(f"error: {shown} is no command; choose from train, eval, rna_boxes")
    result = run_elsewhere(tmp_path, "-m", "cvae_jax", "--help")
    assert result.returncode == 0 and "Commands: train, eval, rna_boxes" in result.stdout
    result = run_elsewhere(tmp_path, "-m", "cvae_jax", "train", "--config=nowhere.py", "--workdir=run")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "config file nowhere.py cannot be read" in result.stderr
    result = run_elsewhere(tmp_path, "-m", "cvae_jax", "eval", "--workdir=run")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1) and "run holds no run" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train.py", "eval.py"])
def test_help_lists_the_flags(command):
    shown = run(command, "--help").stdout
    assert "--workdir: " in shown and "--task_module: " in shown
    assert ("--estimator: " in shown) == (command == "eval.py")
