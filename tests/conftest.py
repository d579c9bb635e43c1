"""Two CPU devices, strict promotion of dtypes and ranks, and where real data lie."""

import os
import pathlib
import tempfile

import pytest

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=2"]
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()  # read when JAX is first imported

# Most of the time goes into compiling. What a program computes hangs on LLVM's optimisations by rounding alone; for
# tests of bits, and of compilers, there is the fixture `optimized`. All as users run it, in a fifth more time:
# JAX_DISABLE_MOST_OPTIMIZATIONS=false make test
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

# Many tests compile the same programs, in this process, in those they start, and in pytest-xdist's workers.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="cvae_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import optax
from small_runs import small_config

import cvae_jax
from cvae_jax import schedules

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


LONG = (
    "test_training",
    "test_command_line",
    "test_rna_boxes",
    "test_experiment",
    "test_video",
    "test_annealing",
    "test_svg",
)


def pytest_collection_modifyitems(items):
    """The files that take minutes first: begun last, one would run on while the other worker has nothing to do."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(autouse=True)
def optax_promotes(monkeypatch):
    """Optax 0.2.8 raises floats to int32 powers (Adam's bias correction, the cosine); all else stays strict."""
    make = schedules.optimizer

    def optimizer(*args):
        with jax.numpy_dtype_promotion("standard"):
            transformation = make(*args)

        def update(*args):
            with jax.numpy_dtype_promotion("standard"):
                return transformation.update(*args)

        return optax.GradientTransformation(transformation.init, update)

    monkeypatch.setattr(schedules, "optimizer", optimizer)


@pytest.fixture
def real_data() -> pathlib.Path:
    folder = os.environ.get("CVAE_JAX_DATA")
    if not folder:
        pytest.skip("CVAE_JAX_DATA is not set: point it to the folder that holds mnist/, as in ../shared/data")
    return pathlib.Path(folder)


@pytest.fixture
def vienna():
    return pytest.importorskip("RNA", reason="needs ViennaRNA")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> pathlib.Path:
    """The workdir of `small_config()`, trained once; for reading only."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    with jax.numpy_dtype_promotion("standard"):  # optax, see above; this fixture outlives that one
        cvae_jax.train(small_config(), str(folder))
    return folder


@pytest.fixture(scope="module")
def optimized():
    """Programs as users run them, to the module's end. JAX would hand out what it has compiled, however that was."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
