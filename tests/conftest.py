"""Two CPU devices, strict promotion of dtypes and ranks, and where real data lie."""

import contextlib
import fcntl
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


# Files that take long, the longest first: begun last, one would run on while the other worker has nothing to do.
LONG = (
    "training/test_loop.py",
    "test_command_line.py",
    "training/test_workdir.py",
    "test_benchmarks.py",
    "test_packaging.py",
    "tasks/rna_boxes/test_task.py",
    "tasks/video/test_task.py",
    "test_experiment.py",
    "tasks/video/test_networks.py",
    "inference/test_ais.py",
    "inference/test_truth.py",
    "tasks/rna_boxes/test_commands.py",
)
TESTS = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items):
    def position(item):
        file = item.path.relative_to(TESTS).as_posix()
        return LONG.index(file) if file in LONG else len(LONG)

    items.sort(key=position)


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


@contextlib.contextmanager
def as_users_run_it():
    """Programs are optimised. JAX would hand out what it has compiled, however that was."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
        jax.clear_caches()


@pytest.fixture(scope="module")
def optimized():
    """`as_users_run_it`, to the module's end."""
    with as_users_run_it():
        yield


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> pathlib.Path:
    """The workdir of `small_config()`, trained once by whichever of pytest-xdist's workers asks first; to be read."""
    ours = tmp_path_factory.getbasetemp()
    folder = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "small_run"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            # Its bits are compared, whichever test asks first. This fixture outlives the one that lets Optax promote.
            with as_users_run_it(), jax.numpy_dtype_promotion("standard"):
                cvae_jax.train(small_config(), f"{folder}.new")
            os.rename(f"{folder}.new", folder)
    return folder
