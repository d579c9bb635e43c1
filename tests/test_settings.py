"""What settings may be, and the settings that once ended in a traceback, ran for minutes or trained nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import specs
from ml_collections import ConfigDict

from cvae_jax import config as configs
from cvae_jax import objectives, schedules, tasks
from cvae_jax.errors import UserError
from cvae_jax.settings import SMALLEST, Choice, Real, Whole, Wholes, check
from cvae_jax.training import loop


@pytest.mark.parametrize(
    ("kind", "allowed", "refused"),
    [
        (Whole(1, 10), (1, 10, np.int64(3)), (0, 11, True, 1.0, "1", None, np.nan)),
        (Wholes(1, 10), ((1,), (3, 10), [2]), ((), (0,), (11,), (True, 8), ("a",), ((1, 2),), None, 5)),
        (
            Real(0, 1),
            (0, 0.0, 1, np.float32(0.5), np.int32(1), SMALLEST, 0.5),
            (-0.1, 1.1, np.nan, np.inf, 1e-46, 1e-300, True, "x", None),
        ),
        (Real(0, 1, above=True), (SMALLEST, 1.0), (0.0, 1e-300, np.nan)),
        (Real(0, 1, below=True), (0.0, 0.999), (1.0,)),
        (Choice({"a": 1, "b": 2}), ("a", "b"), ("c", None, 1, ("a",))),
    ],
)
def test_kinds(kind, allowed, refused):
    assert [kind.refuse(value) for value in allowed] == [""] * len(allowed)
    assert all(kind.refuse(value) for value in refused)


@pytest.mark.parametrize("value", [1e-300, 1e-46, 1e-39, SMALLEST / 2, SMALLEST, 1e-30, 1e-8])
def test_what_is_refused_is_0_where_it_is_computed_with(value):
    """Where XLA adds it to 0: by it Adam divides a gradient of 0."""
    sum_ = jax.jit(lambda value, zero: value * jnp.ones(()) + zero)(jnp.float32(value), jnp.float32(0))
    assert bool(Real(0, 1, above=True).refuse(value)) == (float(sum_) == 0)


def test_the_message_names_key_value_and_mend():
    config = ConfigDict({"a": {"b": 0}, "rate": 1e-300, "name": "x"})
    for kinds, section, message in (
        ({"a.b": Whole(1)}, "", "a.b=0 must be at least 1"),
        ({"b": Whole(1)}, "a", "a.b=0 must be at least 1"),
        ({"rate": Real(0, 1, above=True)}, "", "rate=1e-300 must be at least 1.2e-38: float32 takes it for 0"),
        ({"rate": Real(0, 1)}, "", "rate=1e-300 must be 0, or at least 1.2e-38: float32 takes it for 0"),
        ({"name": Choice(("y", "z"))}, "", "name='x' is not known; choose from y, z"),
    ):
        with pytest.raises(UserError) as refusal:
            check(config.a if section else config, kinds, section)
        assert str(refusal.value) == message


HUGE = 2**31


def of_task(file, **changes):
    """Makes the task of a config whose keys are changed, types and all."""

    def make():
        config = configs.load(file)
        with config.ignore_type():
            config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
        loop.check_seeds(config)
        return specs.task_of(config)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (of_task("video.py:smoke", cvae__objective__name="anything"), "cvae.objective.name='anything' is not known"),
        (of_task("video.py:smoke", cvae__predictor_layers=HUGE), "cvae.predictor_layers=2147483648 must be at most"),
        (of_task("video.py:smoke", num_future=HUGE), "num_future=2147483648 must be at most"),
        (of_task("video.py:smoke", num_seeds=HUGE), "num_seeds=2147483648 must be at most"),
        (of_task("rna_boxes.py:smoke", buckets="abc"), "buckets='abc' must be whole numbers"),
        (of_task("rna_boxes.py:smoke", buckets=("a",)), r"buckets=\('a',\) must be whole numbers"),
        (of_task("rna_boxes.py:smoke", buckets=((1, 2),)), r"buckets=\(\(1, 2\),\) must be whole numbers"),
        (of_task("rna_boxes.py:smoke", buckets=None), "buckets=None must be whole numbers"),
        (of_task("rna_boxes.py:smoke", data__num_sample=HUGE), "data.num_sample=2147483648 must be at most"),
        (of_task("mnist_vae.py:smoke", cvae__hidden=(99999999999,)), "cvae.hidden=.* must be at most 65,536"),
        (of_task("mnist_vae.py:smoke", cvae__latent=999999999999), "cvae.latent=999999999999 must be at most"),
        (of_task("mnist_class.py:smoke", num_classes=HUGE), "num_classes=2147483648 must be at most"),
        (
            of_task("mnist_class.py:smoke", cvae__objective__num_samples=HUGE),
            "num_samples=.* must be at most",
        ),
        (of_task("mnist_class.py:smoke", cvae__objective__beta=1e38), "objective.beta=1e[+]38 must be at most 1e"),
        (of_task("mnist_class.py:smoke", cvae__objective__free_bits=1e38), "free_bits=1e[+]38 must be"),
        (of_task("video.py:smoke", data__size=HUGE), "data.size=2147483648 must be at most 4,096"),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_moving_digits_are_few():
    config = configs.load("video.py:smoke")
    config.data.num_digits = HUGE
    with pytest.raises(UserError, match="num_digits=2147483648 must be at most 100"):
        tasks.find("video").sources["moving_digits"](config.data)


@pytest.mark.parametrize(
    ("key", "value"),
    [("epsilon", 1e-300), ("epsilon", 1e-46), ("epsilon", 1e38), ("learning_rate", 1e-300), ("clip_norm", 1e-300)],
)
def test_numbers_that_float32_does_not_hold(key, value):
    settings = ConfigDict(schedules.DEFAULTS)
    settings[key] = value
    with pytest.raises(UserError, match=f"optimizer.{key}={value}".replace("+", "[+]") + " must be"):
        schedules.check_optimizer(settings)


@pytest.mark.parametrize("key", objectives.KINDS)
def test_an_objective_of_wrong_types(key):
    settings = ConfigDict(objectives.DEFAULTS)
    with settings.ignore_type():
        settings[key] = None
    with pytest.raises(UserError, match=f"objective.{key}=None"):
        objectives.from_config(settings)
