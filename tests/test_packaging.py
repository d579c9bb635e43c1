"""What pip installs: its dependencies, its configs, and that it trains where nothing else is."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
OUTSIDE = ROOT / "tests" / "support" / "outside"


def test_requirements_are_the_dependencies_and_pytest():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in listed if not line.startswith("pytest")] == wheel
    assert [line for line in listed if line.startswith("pytest")] == ["pytest>=8.0"]


def test_every_folder_is_packaged():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (ROOT / "cvae_jax").rglob("__init__.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert names | {"cvae_jax.configs"} == set(packages)


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The Python of an environment that holds the wheel with its dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    keep = ("cvae_jax", "configs", "pyproject.toml", "README.md", "LICENSE")
    source.mkdir()
    for name in keep:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, *pip, "wheel", "--no-deps", "-w", str(folder), str(source)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run([str(python), *pip, "install", str(wheel)], check=True)
    return python


def run(python, folder, *arguments):
    """Runs Python in a folder, without the repository on its path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    result = subprocess.run(
        [str(python), *map(str, arguments)], cwd=folder, env=clean, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_folder(installed, tmp_path):
    where = run(installed, tmp_path, "-c", "import cvae_jax; print(cvae_jax.__file__)")
    assert str(ROOT) not in where
    command = ("-m", "cvae_jax")
    run(installed, tmp_path, *command, "train", "--config=digits_vae.py:smoke", "--workdir=run")
    table = run(installed, tmp_path, *command, "eval", "--workdir=run", "--num_examples=20")
    assert "digits_vae cvae" in table
    assert json.loads((tmp_path / "run" / "eval_test" / "results.json").read_text())["likelihoods"]


@pytest.mark.slow
def test_the_wheel_trains_a_task_from_any_folder(installed, tmp_path):
    for file in OUTSIDE.glob("*.py"):
        shutil.copy(file, tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split in ("train", "valid", "test"):
        x = rng.normal(size=(100, 2))
        np.savez(tmp_path / "data" / f"{split}.npz", x=x, y=x.sum(1) + rng.normal(size=100))
    command = ("-m", "cvae_jax")
    config = ("--config=vectors_config.py", "--workdir=run", "--task_module=vectors")
    run(installed, tmp_path, *command, "train", *config)
    table = run(installed, tmp_path, *command, "eval", "--workdir=run", "--task_module=vectors")
    assert "y given x" in table
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"] == "vectors"
