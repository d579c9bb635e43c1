"""The examples in docstrings run as they stand."""

import inspect
import re
import textwrap

import jax
import jax.numpy as jnp
import linear_gaussian as lg
import numpy as np
import pytest
from ml_collections import ConfigDict

import cvae_jax
from cvae_jax import bounded_normal, config, flax_model, inference, objectives
from cvae_jax.networks.cvae import one_layer
from cvae_jax.task import Spec, Task


def example_of(documented) -> str:
    """The indented block after the first `::` of a docstring."""
    lines = re.split(r"::\n", inspect.getdoc(documented), maxsplit=1)[1].splitlines()
    block = []
    for line in lines:
        if line and not line.startswith(" "):
            break
        block.append(line)
    return textwrap.dedent("\n".join(block))


X, Y = lg.data(4)
SETTINGS = ConfigDict({"cvae": config.stage(hidden=(8,), latent=2, activation="gelu")})


def run(documented, **names):
    code = example_of(documented)
    assert code.strip()
    exec(code, names)
    return names


def test_log_prob():
    class Trained:
        """A model whose log p(y|x) is known."""

        def fitted(self):
            return lg.fitted()

    class System:
        """Arrays as they are."""

        def from_user(self, x, y):
            return lg.batch_of(x, y)

    names = {"trained": Trained(), "task": System(), "x": X, "y": Y}
    value = run(inference.log_prob, inference=inference, jax=jax, **names)["estimate"].value
    np.testing.assert_allclose(value, lg.log_p_y(X, Y), atol=1e-4)


def test_elbo():
    batch, variables = lg.batch_of(X, Y), lg.variables()
    names = run(objectives.elbo, objectives=objectives, jax=jax, model=lg.MODEL, variables=variables, batch=batch)
    assert names["value"].shape == (4,) and set(names["terms"]) == {"log_p_y", "kl"}


def test_flax_model():
    names = run(flax_model, one_layer=one_layer, flax_model=flax_model, bounded_normal=bounded_normal, config=SETTINGS)
    batch = cvae_jax.Batch(jnp.ones((3, 2)), jnp.ones((3, 1)), None, jnp.arange(3), jnp.ones(3))
    variables = names["model"].init(jax.random.key(0), batch, {})
    assert inference.predict(cvae_jax.Fitted(names["model"], variables), batch).shape == (3, 1)


@pytest.mark.parametrize("documented", [Task])
def test_task(documented):
    modules = {"flax_model": flax_model, "bounded_normal": bounded_normal, "jnp": jnp, "objectives": objectives}
    vectors = run(documented, Task=Task, one_layer=one_layer, **modules)["Vectors"]
    raw = {name: jax.ShapeDtypeStruct((2,), np.float32) for name in ("x", "y")}
    task = vectors(SETTINGS, Spec(raw, {}, {}, {}))
    assert task.from_user(np.ones((3, 2)), np.ones((3, 2))).y.shape == (3, 2)
    assert [stage.name for stage in task.stages] == ["cvae"]
