"""The rooms and the arrows between them. Each test says which rule it enforces, and why there is one.

    spec <- reference        spec <- torch        spec <- tensorflow        {spec, reference, rounding} <- conformance
    the adapters and the frameworks <- conformance/implementations          any room <- cli, inside a function
    {spec, rounding} <- migrate         the adapter and its framework <- the folder of migrate that is named so

Tests, benchmarks and examples import anything.
"""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUITE = "conformance/crossnorm_conformance"

_SUITE_IMPORTS = {"crossnorm", "crossnorm.spec", "crossnorm.errors", "crossnorm.reference", "crossnorm.rounding", "numpy"}
_SUITE_IMPORTS |= {"pytest", "xdist", "hypothesis", "rich", "typer", "jinja2", "crossnorm_conformance"}
_MIGRATE = {"crossnorm.migrate", "crossnorm.spec", "crossnorm.errors", "crossnorm.rounding", "numpy", "ml_dtypes"}
_MIGRATE |= {"safetensors", "rich", "jinja2"}
_PEERS = {"torch", "tensorflow", "keras", "jax", "flax", "equinox", "onnx", "onnxruntime", "ml_dtypes", "timm"}

# What each room may import beside the standard library and itself. The first entry that holds a file is its room.
ROOMS = {
    "crossnorm/errors.py": set(),
    "crossnorm/__init__.py": {"crossnorm.errors", "crossnorm.spec"},
    "crossnorm/__main__.py": {"crossnorm.cli"},
    "crossnorm/spec": {"crossnorm.errors"},
    "crossnorm/rounding.py": {"numpy"},
    "crossnorm/reference": {"crossnorm.spec", "numpy"},
    "crossnorm/torch": {"crossnorm.spec", "crossnorm.errors", "torch", "numpy"},
    "crossnorm/tensorflow": {"crossnorm.spec", "crossnorm.errors", "tensorflow", "keras", "numpy"},
    # One folder for each framework, imported when a layer of it comes along.
    "crossnorm/migrate/torch": _MIGRATE | {"crossnorm.torch", "torch"},
    "crossnorm/migrate/tensorflow": _MIGRATE | {"crossnorm.tensorflow", "tensorflow", "keras"},
    "crossnorm/migrate/flax.py": _MIGRATE | {"flax"},
    "crossnorm/migrate/tf_keras.py": _MIGRATE | {"tf_keras"},
    "crossnorm/migrate": _MIGRATE,
    "crossnorm/cli.py": {
        "crossnorm",
        "crossnorm.errors",
        "crossnorm.spec",
        "crossnorm.migrate",
        "crossnorm_conformance",
        "typer",
        "rich",
    },
    f"{SUITE}/implementations": _SUITE_IMPORTS | {"crossnorm.torch", "crossnorm.tensorflow"} | _PEERS,
    # Peers only: what it says of them must not lean on our own layers.
    f"{SUITE}/divergences": _SUITE_IMPORTS | _PEERS,
    SUITE: _SUITE_IMPORTS,
}
WHY = """
The specification is the judge of everything, so it depends on nothing; the reference is an independent witness, so no adapter
may lean on it; a user of one framework must not need the other. What two rooms share belongs into the specification."""

FILES = sorted(path.relative_to(ROOT).as_posix() for top in ("crossnorm", SUITE) for path in (ROOT / top).rglob("*.py"))
METHODS = [path.stem for path in (ROOT / "crossnorm/spec").glob("[!_]*.py") if path.stem != "presets"]


def room_of(file: str) -> str:
    rooms = [room for room in ROOMS if file == room or file.startswith(f"{room}/")]
    assert rooms, f"{file} lies in no room: say in ROOMS what it may import"
    return rooms[0]


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module that ``source``, a module of ``package``, imports anywhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield node.lineno, name if is_module(name) else base
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
            yield from ((node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def is_module(name: str) -> bool:
    top = ROOT if name.startswith("crossnorm.") else ROOT / "conformance"
    path = top.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def is_allowed(name: str, allowed: set[str]) -> bool:
    """A package of ours is allowed by its own name; anybody else's with all that is in it."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return True
    if top != "crossnorm":
        return top in allowed
    room = ".".join(name.split(".")[:2])
    return room in allowed


def forbidden(source: str, file: str) -> list[str]:
    """The arrows of a file that its room does not allow."""
    room = room_of(file)
    package = ".".join(Path(file.removeprefix("conformance/")).parts[:-1])
    itself = room.removeprefix("conformance/").removesuffix(".py").replace("/", ".")
    allowed = ROOMS[room] | {itself}
    return [f"{file}:{line} imports {name}" for line, name in imports(source, package) if not is_allowed(name, allowed)]


@pytest.mark.parametrize("file", FILES)
def test_no_forbidden_arrow(file):
    room = room_of(file)
    found = forbidden((ROOT / file).read_text(), file)
    assert not found, f"{found}; the room {room} imports only {sorted(ROOMS[room]) or 'the standard library'}.{WHY}"


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("crossnorm/spec/x.py", "import numpy"),
        ("crossnorm/spec/x.py", "from crossnorm import reference"),
        ("crossnorm/spec/x.py", "from ..reference import forward"),
        ("crossnorm/spec/x.py", "from .. import rounding"),
        ("crossnorm/reference/x.py", "def f():\n    import torch.nn"),
        ("crossnorm/reference/x.py", "from crossnorm.rounding import unit"),
        ("crossnorm/rounding.py", "from crossnorm.reference import Quantity"),
        ("crossnorm/torch/x.py", "from crossnorm.reference import forward"),
        ("crossnorm/torch/x.py", "import importlib\nimportlib.import_module('tensorflow')"),
        ("crossnorm/tensorflow/x.py", "from crossnorm.torch import BatchNorm2d"),
        ("crossnorm/tensorflow/x.py", "from torch import nn"),
        (f"{SUITE}/x.py", "import crossnorm.torch"),
        (f"{SUITE}/x.py", "from crossnorm import tensorflow"),
        ("crossnorm/__init__.py", "from . import torch"),
        ("crossnorm/errors.py", "from .spec import Mode"),
    ],
)
def test_the_walk_finds_a_forbidden_arrow(file, source):
    assert len(forbidden(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("crossnorm/spec/x.py", "import math\nfrom ._base import NormSpec\nfrom crossnorm.errors import SpecError"),
        ("crossnorm/torch/x.py", "import torch.nn\nfrom crossnorm.spec._axes import other_axes\nfrom . import functional"),
        (f"{SUITE}/implementations/x.py", "import crossnorm.torch, keras\nfrom ..case import Case"),
        (f"{SUITE}/x.py", "import crossnorm, pytest\nfrom crossnorm import TRAIN, reference\nfrom .cases import batch_norm"),
    ],
)
def test_the_walk_allows_the_arrows_of_the_design(file, source):
    assert forbidden(source, file) == []


def test_the_command_imports_a_heavy_room_only_inside_a_function():
    """`crossnorm explain` and `crossnorm --help` must start at once, and where no framework is installed."""
    tree = ast.parse((ROOT / "crossnorm/cli.py").read_text())
    top_level = ast.unparse(ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []))
    names = {name for _, name in imports(top_level, "crossnorm")}
    assert not {name for name in names if name.startswith(("crossnorm_conformance", "crossnorm.migrate"))}


FRAMEWORKS = ("torch", "tensorflow", "keras")


@pytest.mark.parametrize(
    ("statement", "needs", "absent"),
    [
        ("import crossnorm", None, (*FRAMEWORKS, "numpy")),
        ("import crossnorm.reference", None, FRAMEWORKS),
        ("import crossnorm.rounding", None, FRAMEWORKS),
        ("import crossnorm.cli", None, FRAMEWORKS),
        ("import crossnorm.migrate", None, (*FRAMEWORKS, "flax")),
        ("import crossnorm.migrate.torch", "torch", ("tensorflow", "keras", "crossnorm.reference")),
        ("import crossnorm.migrate.tensorflow", "tensorflow", ("torch", "crossnorm.reference")),
        ("import crossnorm.torch", "torch", ("tensorflow", "keras", "crossnorm.reference", "crossnorm.rounding")),
        ("import crossnorm.tensorflow", "tensorflow", ("torch", "crossnorm.reference", "crossnorm.rounding")),
    ],
)
def test_importing_a_room_loads_no_other(statement, needs, absent):
    """A fresh interpreter's ``sys.modules`` is the witness: a user of one framework must not pay for the other."""
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    code = f"{statement}; import sys; print(*(name for name in {absent} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("room", ["crossnorm/reference", "crossnorm/torch", "crossnorm/tensorflow", f"{SUITE}/cases"])
def test_a_method_is_one_file_of_the_same_name_in_every_room(room, method):
    """A newcomer guesses where things are; a method without cases or without a layer is not finished."""
    assert (ROOT / room / f"{method}.py").is_file()


def test_methods_are_found():
    assert len(METHODS) >= 5


@pytest.mark.parametrize("file", [file for file in FILES if not Path(file).name.startswith("test_")])
def test_no_assert_in_the_package(file):
    """``python -O`` drops asserts, and an AssertionError is no sentence for a person: raise a CrossnormError."""
    lines = [node.lineno for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.Assert)]
    assert lines == []


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("__init__.py")])
def test_every_room_says_what_it_is_for(file):
    """The rule of a room is the docstring of its door."""
    assert ast.get_docstring(ast.parse((ROOT / file).read_text()))


def test_no_package_among_the_tests():
    """``tests/torch/__init__.py`` would shadow torch; pytest imports by path (``--import-mode=importlib``)."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
