"""train.py and eval.py as a user starts them: smoke variants of some configs, and every kind of bad input."""

import importlib
import json
import re

import pytest
from command import ROOT, run

from cvae_jax import tasks
from cvae_jax.errors import UserError
from cvae_jax.training import loop as training

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


def source(data):
    return data.of if data.source == "moving_digits" else data.source


OFFLINE = ("digits", "rna")


def num_train(data):
    counts = {"mnist": 55_000, "digits": 1297, "videos": 43_254}
    return data.num_seq * 8 // 10 if data.source == "rna" else counts[source(data)]


CONFIGS = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "common"})


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_can_be_trained(name):
    """Each option alone, and with smoke: the task is made, and its settings fit the data."""
    module = importlib.import_module(f"configs.{name}")
    first = ["1"] if "quadrants" in name else []
    with pytest.raises(UserError) as refusal:
        module.get_config(",".join([*first, "nonsense"]))
    options = re.search("this config has (.*), as in", str(refusal.value)).group(1).split(", ")
    assert "smoke" in options
    for option in ([], *([one] for one in options)):
        for smoke in ([], ["smoke"]):
            config = module.get_config(",".join([*first, *option, *smoke]))
            task = tasks.make_task(config)
            for stage in task.stages:
                training.check_settings(stage, [num_train(config.data)])
            assert source(config.data) in OFFLINE or not ("smoke" in option + smoke or "digits" in name)


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
    sequences = ("GGGGAAAACCCC", "gcgcaaaagcgt")
    result = run("-m", "cvae_jax.tasks.rna_boxes", f"--workdir={workdir}", "--num_samples=5", *sequences)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"[.()]{12}  maximum expected accuracy", lines[lines.index("GCGCAAAAGCGU") + 1])
    assert "GGGGAAAACCCC" in lines
    other = run("-m", "cvae_jax.tasks.rna_boxes", f"--workdir={trained['digits_quadrants.py:1,smoke']}", "GGGGAAAACCCC")
    assert other.returncode == 1 and "is no model of RNA" in other.stderr
    wrong = run("-m", "cvae_jax.tasks.rna_boxes", f"--workdir={workdir}", "--num_samples=few", "GGGGAAAACCCC")
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
    for text in ("1 quadrant", "3 quadrants", "exact", "ESS", "± ", "gain of", "grey targets, digits test", "120 exa"):
        assert text in table
    rows = json.loads((tmp_path / "results.json").read_text())["likelihoods"]
    assert len(rows) == 2 * (1 + 3 * 2)
    for row in rows:
        assert (
            row["num_examples"] == 120 and row["protocol"] == "grey targets, digits test" and row["standard_error"] > 0
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
    assert result.returncode == 0 and "going on from step" in result.stderr
    assert before == {path: path.read_bytes() for path in (workdir / "checkpoints").rglob("*") if path.is_file()}


TRAIN = "--config=configs/mnist_quadrants.py:1,smoke"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=configs/mnist_quadrants.py:4", "--workdir=W"], "the number of observed quadrants is 1, 2 or 3"),
        (["--config=configs/mnist_quadrants.py:1,smok", "--workdir=W"], "variant 'smok' is not known"),
        (["--config=configs/nowhere.py", "--workdir=W"], "config file configs/nowhere.py cannot be read"),
        ([TRAIN], "--workdir is required"),
        ([TRAIN, "--workdir=W", "--config.cvae.lattent=3"], "--config.cvae.lattent is not a key of this config"),
        ([TRAIN, "--workdir=W", "--config.cvae.batch_size=many"], "--config.cvae.batch_size=many: invalid literal"),
        ([TRAIN, "--workdir=W", "--config.cvae.latent=0"], "cvae.latent=0 must be whole numbers"),
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
