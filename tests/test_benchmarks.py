"""The benchmarks run, at their tiniest size. Contenders in PyTorch and Pyro take part where these are installed."""

import importlib.util

import numpy as np
import pytest
from command import run
from linear_gaussian import LinearGaussian
from results import cells

from benchmarks.truth import integration

pytestmark = pytest.mark.slow

TINY = ("--rounds=1", "--pause=0")
QUADRANTS = (
    "quadrants", "--train_steps=2", "--batch_size=16", "--num_samples=20", "--num_examples=50", "--matmul_sizes=64"
)  # fmt: skip
RNA = ("rna_boxes", "--steps=1", "--length=12", "--filters=4,4", "--width=3", "--batch_size=4")
VIDEO = ("video", "--steps=1", "--size=16", "--width=2", "--batch_size=4", "--num_future=2")


def needs(*modules):
    there = all(importlib.util.find_spec(module) for module in modules)
    return pytest.mark.skipif(not there, reason=f"needs {' and '.join(modules)}")


def compared(*arguments):
    """What a comparison prints."""
    done = run("-m", "benchmarks.compare", *arguments, *TINY)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quadrants(tmp_path):
    report = compared(
        *QUADRANTS, "--skip=torch,compile,pyro", "--sweep", "--profile", f"--output={tmp_path / 'report.md'}"
    )
    for heading in ("Training", "Importance sampling", "draws_per_call", "Parts of importance sampling", "Paid once"):
        assert f"# {heading}" in report
    assert "**cvae_jax**, data included" in report
    assert "could not do" not in report and "was not measured" not in report
    assert (tmp_path / "report.md").read_text().strip() == report.strip()


@needs("torch", "pyro")
def test_quadrants_in_pytorch_and_pyro():
    report = compared(*QUADRANTS, "--skip=compile")
    assert "| PyTorch, data included" in report and "| Pyro, as in its tutorial, data included" in report
    assert "could not do" not in report and "was not measured" not in report


@needs("RNA")
def test_rna_boxes():
    report = compared(*RNA, "--skip=torch", "--min_len=8", "--buckets=12,16", "--num_seq=60")
    assert "norm of its gradient" in report and "| 4 sequences of 12, 4, 4 filters of width 3 |" in report
    assert "Padding all to 16 over buckets: " in report


@needs("RNA", "torch")
def test_rna_boxes_in_pytorch():
    report = compared(*RNA, "--only=pytorch")
    assert "gradients at most" in report and "PyTorch, ms" in report


@needs("RNA")
def test_rna_data(tmp_path):
    program = tmp_path / "RNAsubopt"  # a stand-in, whose structures have no pairs
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo stand-in && exit\n'
        'read -r sequence\necho "$sequence"\nfor _ in $(seq "$2"); do echo "$sequence" | tr ACGU ....; done\n'
    )
    program.chmod(0o755)
    report = compared("rna_data", f"--program={program}", "--num_seq=4", "--max_len=30", "--num_sample=3")
    assert report.startswith("stand-in; 4 sequences of 10 to 30 bases, 3 structures of each")
    assert "| structures " in report and "| with boxes " in report
    assert "Pairs in a structure: RNAsubopt 0.00, cvae_jax " in report


def test_video():
    report = compared(*VIDEO, "--skip=torch")
    assert "norm of its gradient" in report and "| the same networks, a frame at a time |" in report


@needs("torch")
def test_video_in_pytorch():
    report = compared(*VIDEO)
    assert "gradients at most" in report and "| PyTorch, all frames at once " in report


def test_convolution():
    report = compared("convolution", "--batch_size=1")
    assert report.count("| outside ") == report.count("| in a scan ") == 3


def test_importance(small_run):
    done = run(
        "-m", "benchmarks.quadrants.importance", f"--workdir={small_run}", "--num_samples=50", "--num_examples=20",
        "--devices=1,2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| 1       | 0.0e+00, +0.0e+00 |" in done.stdout
    assert "| examples, samples " in done.stdout and "| 20, 50 " in done.stdout


def test_what_is_no_comparison():
    done = run("-m", "benchmarks.compare", "segmentation")
    assert done.returncode == 2 and "choose from quadrants, rna_boxes" in done.stderr.replace("'", "")


@pytest.mark.parametrize("z_size", [1, 2])
def test_integrals_over_a_grid(z_size):
    of = LinearGaussian(3, z_size, 4)
    x, y = of.data(20)
    log_p = integration.log_p(of.fitted(0.8, 0.2), of.batch_of(x, y))
    np.testing.assert_allclose(log_p, of.log_p_y(x, y), rtol=0, atol=1e-5)


def test_truth(small_run):
    arguments = (f"--workdir={small_run}", "--num_examples=2", "--seeds=2", "--ais_seeds=2", "--num_samples=20")
    done = run("-m", "benchmarks.truth", "coverage", *arguments, "--temperatures=10")
    assert done.returncode == 0, done.stderr
    rows = cells(done.stdout)
    assert [row[0] for row in rows[2:]] == [
        "mc", "is", "jackknife", "defensive", "ais", "bdmc, lower bound", "bdmc, upper bound"
    ]  # fmt: skip
    assert "annealing, 64 chains of 10 temperatures" in done.stdout
