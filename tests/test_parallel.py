"""Work items on every device, each CPU core a device, and numbers that do not depend on how many there are."""

import os
import pathlib
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvae_jax import parallel

ROOT = pathlib.Path(__file__).parents[1]
FLAG = "--xla_force_host_platform_device_count"


def start(*arguments, **environment):
    """Starts Python as users do, whatever devices this process was told to have."""
    own = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    own |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "false", "PYTHONPATH": f"{ROOT / 'tests' / 'support'}:{ROOT}"}
    return subprocess.Popen(
        [sys.executable, *arguments], env=own | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def printed(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output, errors


# Work items.


def test_results_are_on_the_host_in_the_order_of_the_items():
    assert jax.local_device_count() > 1
    squares = parallel.on_devices(lambda device, item: {"square": jax.device_put(item, device) ** 2}, np.arange(9))
    assert all(type(result["square"]) is np.ndarray for result in squares)
    assert [int(result["square"]) for result in squares] == [item**2 for item in range(9)]


def test_every_device_takes_the_next_item_when_it_is_free():
    slow, quick = jax.local_devices()
    first, taken = threading.Event(), []

    def work(device, item):
        taken.append((device, item))
        if item == 0:
            assert first.wait(60)  # until all others are done
        elif len(taken) == 5:
            first.set()

    parallel.on_devices(work, range(5))
    assert {item for device, item in taken if device == slow} == {0}
    assert [item for device, item in taken if device == quick] == [1, 2, 3, 4]


def test_products_are_of_the_highest_precision():
    def precision(device, item):
        return jax.make_jaxpr(jnp.dot)(item, item).eqns[0].params["precision"][0].name

    assert parallel.on_devices(precision, [jnp.ones(2)] * 3) == ["HIGHEST"] * 3


def test_an_error_is_raised_and_ends_the_work():
    done = []

    def work(device, item):
        if item == 0:
            raise ValueError("of the first item")
        done.append(item)
        time.sleep(0.02)

    with pytest.raises(ValueError, match="of the first item"):
        parallel.on_devices(work, range(100))
    assert len(done) < 100


# Each CPU core a device.

LOAD = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
import jax, cvae_jax
if "started" in sys.argv: jax.numpy.zeros(1)
if "set" in sys.argv: jax.config.update("jax_num_cpu_devices", 3)
before = jax.config.jax_num_cpu_devices
trained = cvae_jax.load(sys.argv[1])
assert not {"started", "set"} & set(sys.argv) or jax.config.jax_num_cpu_devices == before
print(jax.device_count())
"""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.mark.slow
@pytest.mark.skipif(CORES == 1, reason="one core")
@pytest.mark.parametrize(
    ("how", "flags", "devices", "message"),
    [
        ("fresh", "", CORES, f"each of {CORES} CPU cores is a device"),
        ("started", "", 1, f'begin with jax.config.update("jax_num_cpu_devices", {CORES})'),
        ("fresh", f"{FLAG}=5", 5, ""),
        ("started", f"{FLAG}=1", 1, ""),
        ("set", "", 3, ""),
    ],
)
def test_load_uses_every_core_where_jax_has_not_started(small_run, how, flags, devices, message):
    output, errors = printed(start("-c", LOAD, str(small_run), how, XLA_FLAGS=flags))
    assert output == f"{devices}\n"
    lines = [line for line in errors.splitlines() if line.startswith("cvae_jax.") and "core" in line]
    assert len(lines) == bool(message) and all(message in line for line in lines)


@pytest.mark.slow
def test_values_and_samples_do_not_depend_on_the_number_of_devices(tmp_path):
    processes = {
        count: start("-m", "every_device", str(tmp_path / f"{count}.npz"), XLA_FLAGS=f"{FLAG}={count}")
        for count in (1, 2, 8)
    }
    for process in processes.values():
        printed(process)
    of_one_device, *of_more = (np.load(tmp_path / f"{count}.npz") for count in processes)
    for of_several in of_more:
        assert set(of_several) == set(of_one_device)
        for name in of_several:
            np.testing.assert_array_equal(of_several[name], of_one_device[name], err_msg=name)
