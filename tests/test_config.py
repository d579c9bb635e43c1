"""Configs by path and by name."""

import pathlib

import pytest

from configs import digits_image, mnist_quadrants
from cvae_jax import UserError, config


def test_a_config_is_loaded_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("mnist_quadrants.py:2,strong").to_dict() == mnist_quadrants.get_config("2,strong").to_dict()
    assert config.load("mnist_quadrants.py").quadrants == 1
    (tmp_path / "mine.py").write_text("def get_config(variant='none'):\n    return variant\n")
    assert config.load("mine.py:some") == "some" and config.load(str(tmp_path / "mine.py")) == "none"
    with pytest.raises(
        UserError, match=r"nowhere.py is no file, and none of cvae_jax's own: arrays.py, digits_class.py"
    ):
        config.load("nowhere.py")


def test_a_variant_of_a_config_that_builds_on_another():
    denoised = digits_image.get_config("denoise,smoke")
    assert denoised.name == "digits_denoise" and denoised.noise == 0.5 and denoised.data.source == "digits"


@pytest.mark.parametrize("flag", ["--config", "-config"])
def test_the_flag_names_a_file_or_one_of_ours(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist_vae.py").write_text("")
    arguments = [
        "train",
        f"{flag}=mnist_class.py:smoke",
        f"{flag}=mnist_vae.py:2d",
        f"{flag}=other.py",
        "--workdir=a:b",
    ]
    own = pathlib.Path(config.folder(), "mnist_class.py")
    assert config.resolve(arguments) == ["train", f"{flag}={own}:smoke", *arguments[2:]]
