"""The house: which room may import which, see docs/design.md."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Each line may import what stands below it, and a room itself; "" is the package's face.
STOREYS = (
    ("train.py", "eval.py"),
    ("__main__",),
    ("",),
    ("configs",),
    ("experiment",),
    ("evaluation",),
    ("trained",),
    ("tasks", "config"),
    ("inference", "training"),
    ("networks", "data", "objectives", "metrics"),
    ("task", "distributions"),
    ("model", "schedules", "command_line"),
    ("keys", "parallel", "figures", "settings"),
    ("errors",),
)
HEIGHT = {room: -number for number, rooms in enumerate(STOREYS) for room in rooms}


def modules() -> dict[str, pathlib.Path]:
    """Module name -> file, of the package, its configs and the two commands."""
    package = {path.relative_to(ROOT): path for path in (ROOT / "cvae_jax").rglob("*.py")}
    configs = {pathlib.Path("cvae_jax") / path.relative_to(ROOT): path for path in (ROOT / "configs").glob("*.py")}
    names = {
        ".".join(short.with_suffix("").parts).removesuffix(".__init__"): path
        for short, path in (package | configs).items()
    }
    return names | {name: ROOT / name for name in ("train.py", "eval.py")}


def room(module: str) -> str:
    """The first part of a module's name after the package's; a task's folder is a room of its own."""
    parts = module.split(".")
    if parts[0] != "cvae_jax":
        return module
    return parts[1] if len(parts) > 1 else ""


def imports(path: pathlib.Path, known: dict[str, pathlib.Path]) -> set[str]:
    """The modules of the package that a file imports, wherever in it."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cvae_jax":
            for name in node.names:
                full = f"{node.module}.{name.name}"
                imported.add(full if full in known else node.module)
        elif isinstance(node, ast.Import):
            imported |= {name.name for name in node.names if name.name.split(".")[0] == "cvae_jax"}
    return imported


MODULES = modules()
IMPORTS = {name: imports(path, MODULES) for name, path in MODULES.items()}


def test_every_room_has_a_storey():
    assert {room(name) for name in MODULES} <= set(HEIGHT)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_rooms_import_what_lies_below(name):
    own = room(name)
    above = [other for other in IMPORTS[name] if room(other) != own and HEIGHT[room(other)] >= HEIGHT[own]]
    assert not above, f"{name} imports {', '.join(sorted(above))}, which lies no lower"


def test_tasks_do_not_import_each_other():
    def system(module: str) -> str:
        return ".".join(module.split(".")[:3]) if module.startswith("cvae_jax.tasks.") else ""

    for name, imported in IMPORTS.items():
        others = {system(other) for other in imported} - {"", system(name)}
        assert not system(name) or not others, f"{name} imports {others}"


def test_modules_make_no_circle():
    """Follows the imports from each module, those inside functions too: none comes back to where it began."""
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(IMPORTS.get(name, ())):
                follow(other, (*path, name))
            done.add(name)

    for name in sorted(MODULES):
        follow(name, ())


def test_the_flat_part_stays_small():
    assert len(list((ROOT / "cvae_jax").glob("*.py"))) <= 16


def test_mathematics_knows_neither_flax_nor_files():
    for name in ("model", "task", "distributions", "objectives", "schedules", "keys"):
        source = ast.parse(MODULES[f"cvae_jax.{name}"].read_text())
        imported = {
            part
            for node in ast.walk(source)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for part in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names])
        }
        assert not {part.split(".")[0] for part in imported} & {"flax", "orbax", "matplotlib", "PIL", "json"}, name


PICKLES = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


def test_nothing_can_run_a_user_s_file():
    """No module imports what unpickles, asks NumPy or pandas to, or evaluates text."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {part.split(".")[0] for part in imported} & PICKLES, name
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                assert called not in ("read_pickle", "literal_eval", "__import__"), name
                assert not (isinstance(node.func, ast.Name) and called in ("eval", "exec", "compile")), name
                allowed = [keyword.value for keyword in node.keywords if keyword.arg == "allow_pickle"]
                assert all(isinstance(value, ast.Constant) and value.value is False for value in allowed), name
