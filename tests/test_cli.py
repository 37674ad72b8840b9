"""The command: readable at 80 columns, one sentence and exit status 2 on a mistake, working without any framework."""

import ast
import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import crossnorm
from crossnorm.cli import app
from crossnorm.spec import FRAMEWORKS, PEERS, SPECS, comparison

ROOT = Path(__file__).parent.parent


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: CliRunner().invoke(app, arguments)


def words(text):
    """The text of a table without its lines, to be searched across line breaks."""
    return " ".join("".join(" " if character in "│┃┡┩├┤─━┏┓┳╇┼┴└┘•" else character for character in text).split())


def last_column(text):
    """The text of the last column of the tables, its lines joined."""
    return " ".join(line.rstrip("│ ").rpartition("│")[2].strip() for line in text.splitlines())


def one_sentence(result, *parts):
    """Exit status 2, nothing on stdout, one line on stderr."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in parts), result.stderr


# explain


def test_explain_lists_the_methods(command):
    result = command("explain")
    assert result.exit_code == 0
    for method, spec in SPECS.items():
        assert method in result.stdout
        assert spec.__name__ in result.stdout
        sentence = inspect.getdoc(spec).partition("\n")[0]
        assert sentence.endswith(".")
        assert sentence in last_column(result.stdout)


@pytest.mark.parametrize("method", SPECS)
def test_explain_shows_the_formula_and_every_framework(command, method):
    result = command("explain", method)
    assert result.exit_code == 0
    text = words(result.stdout)
    formula = inspect.getdoc(SPECS[method]).partition("::\n\n")[2].partition("\n\n")[0]
    for line in formula.splitlines():
        assert words(line) in text
    assert ">>>" not in text
    assert "``" not in text
    for framework, peer in PEERS[method].items():
        assert framework in text
        assert peer.name.split()[0] in text
    for field, cells in comparison(method).items():
        assert field in text
        assert set(cells.values()) == {cell for cell in cells.values() if cell in text}


@pytest.mark.parametrize("method", SPECS)
def test_explain_shows_every_note_as_it_is_written(command, method):
    """Square brackets included, which rich would take for markup. A note's lines all lie in the table's last column."""
    text = last_column(command("explain", method).stdout)
    for peer in PEERS[method].values():
        for note in peer.notes:
            assert note in text


@pytest.mark.parametrize("arguments", [["explain"], *(["explain", method] for method in SPECS), ["--help"]])
def test_nothing_is_wider_than_80_columns(command, arguments):
    assert max(len(line) for line in command(*arguments).stdout.splitlines()) <= 80


@pytest.mark.parametrize("method", SPECS)
def test_explain_cuts_nothing_short(command, method):
    assert "…" not in command("explain", method).stdout


@pytest.mark.parametrize("columns", ["80", "200"])
@pytest.mark.parametrize("method", SPECS)
def test_explain_keeps_the_lines_of_the_formula(command, monkeypatch, columns, method):
    """80 columns are enough for the lines as they stand in the docstring; more change nothing."""
    monkeypatch.setenv("COLUMNS", columns)
    lines = [line.strip() for line in command("explain", method).stdout.splitlines()]
    formula = inspect.getdoc(SPECS[method]).partition("::\n\n")[2].partition("\n\n")[0]
    for line in formula.splitlines():
        assert line.strip() in lines


def test_explain_differences_are_grouped(command):
    """Frameworks that agree share a row, so that the rows of a field are its differences."""
    lines = [" ".join(line.replace("│", " ").split()) for line in command("explain", "batch_norm").stdout.splitlines()]
    assert "decay momentum = 0.1 torch" in lines
    assert "momentum = 0.99 keras, tf_keras2, flax" in lines
    assert "running_variance unbiased (fixed) torch, tf_keras2, paper" in lines
    assert "biased (fixed) keras, flax, onnx" in lines
    lines = [" ".join(line.replace("│", " ").split()) for line in command("explain", "batch_renorm").stdout.splitlines()]
    assert "r_max renorm_clipping['rmax'] = None keras" in lines
    assert "renorm_decay renorm_momentum = 0.99 keras" in lines
    assert "None (fixed) torchrl, paper" in lines


def test_explain_unknown_method(command):
    one_sentence(command("explain", "no_norm"), "unknown method 'no_norm'", *SPECS)


def test_debug_shows_the_traceback(command):
    assert isinstance(command("--debug", "explain", "no_norm").exception, crossnorm.SpecError)
    arguments = [sys.executable, "-c", "from crossnorm.cli import main; main()", "--debug", "explain", "no_norm"]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" in result.stderr
    assert result.returncode == 1


# env


def test_env_says_what_is_installed():
    """In a process of its own, because it loads both frameworks."""
    arguments = [sys.executable, "-c", "from crossnorm.cli import main; main()", "env"]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = {cells[0]: cells[1:] for cells in (words(line).split() for line in result.stdout.splitlines()) if cells}
    assert rows["numpy"][0] == np.__version__
    assert rows["crossnorm"] == [crossnorm.__version__]
    for name in ("torch", "keras"):
        if importlib.util.find_spec(name):
            assert rows[name][0].startswith(importlib.metadata.version(name).partition("+")[0])
        else:
            assert rows[name] == ["not", "installed"]
    if importlib.util.find_spec("torch"):
        assert "cpu" in rows["torch"]


def test_env_without_any_framework(command, monkeypatch):
    for name in ("torch", "tensorflow", "keras"):
        monkeypatch.setitem(sys.modules, name, None)
    result = command("env")
    assert result.exit_code == 0
    assert result.stdout.count("not installed") == 3


def test_env_with_a_broken_framework(command, monkeypatch, tmp_path):
    """What goes wrong when a framework is imported is what the user asks about."""
    for name in ("tensorflow", "keras"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so[0]: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    result = command("env")
    assert result.exit_code == 0
    assert "torch broken OSError: libtorch_cpu.so[0]: cannot open shared object file" in words(result.stdout)


# conformance


@pytest.fixture
def runner(monkeypatch):
    """Stands in for the suite's runner and remembers how it was called."""
    module = types.ModuleType("crossnorm_conformance.runner")
    module.calls, module.status, module.error = [], 0, None

    def fake(**arguments):
        module.calls.append(arguments)
        if module.error:
            raise module.error
        return module.status

    module.run = module.merge = fake
    module.Outputs = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "crossnorm_conformance.runner", module)
    return module


NO_FILES = dict.fromkeys(("json", "html", "junit", "baseline"))
DEFAULTS = {
    "methods": [],
    "implementations": [],
    "devices": [],
    "workers": min(os.cpu_count() or 1, 4),
    "seed": 0,
    "full": False,
    "shard": "1/1",
    "registers": [],
    "patience": 60.0,
    "outputs": types.SimpleNamespace(**NO_FILES),
}


def test_conformance_defaults(command, runner):
    assert command("conformance").exit_code == 0
    assert runner.calls == [DEFAULTS]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ("--method batch_norm --method rms_norm", {"methods": ["batch_norm", "rms_norm"]}),
        ("--implementation a --implementation p.m:o", {"implementations": ["a", "p.m:o"]}),
        ("--device cpu --device cuda", {"devices": ["cpu", "cuda"]}),
        ("-n 3 --seed 7", {"workers": 3, "seed": 7}),
        ("--full --shard 2/4 --patience 5", {"full": True, "shard": "2/4", "patience": 5.0}),
        ("--register a.toml --register b.toml", {"registers": [Path("a.toml"), Path("b.toml")]}),
        *((f"--{name} file", {"outputs": types.SimpleNamespace(**NO_FILES | {name: Path("file")})}) for name in NO_FILES),
    ],
)
def test_conformance_options(command, runner, options, changed):
    """Each option changes what it is for, and nothing else."""
    result = command("conformance", *options.split())
    assert result.exit_code == 0, result.output
    assert runner.calls == [DEFAULTS | changed]


def test_conformance_merge(command, runner):
    """The shards are put together, and nothing is run."""
    runner.status = 1
    files = {"json": Path("all.json"), "html": Path("all.html"), "baseline": Path("old.json")}
    options = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert command("conformance", "merge", "a.json", "b.json", *options).exit_code == 1
    assert runner.calls == [{"reports": [Path("a.json"), Path("b.json")], "outputs": types.SimpleNamespace(**files)}]
    result = command("conformance", "merge")
    assert result.exit_code == 2
    assert "reports" in result.stderr.lower()


def test_conformance_exit_status(command, runner):
    runner.status = 1
    assert command("conformance").exit_code == 1


def test_conformance_error_is_one_sentence(command, runner):
    runner.error = crossnorm.CrossnormError("conformance: unknown device 'abacus'; the devices are cpu, cuda")
    one_sentence(command("conformance", "--device", "abacus"), "unknown device 'abacus'")


def test_conformance_without_its_extra(command, runner, monkeypatch):
    monkeypatch.setitem(sys.modules, "xdist", None)
    one_sentence(command("conformance"), "xdist not installed", "python -m pip install 'crossnorm[conformance]'")
    assert runner.calls == []


@pytest.mark.parametrize(
    "options", [["-n", "0"], ["--seed", "-1"], ["--patience", "0"], ["--json", "."], ["--html", "."], ["--no-such-option"]]
)
def test_conformance_bad_options(command, runner, options):
    result = command("conformance", *options)
    assert result.exit_code == 2
    assert options[0] in result.stderr
    assert runner.calls == []


def test_the_runner_takes_what_the_command_passes(command, runner):
    """The stand-in above must not hide a change of the real one."""
    command("conformance")
    command("conformance", "merge", "a.json")
    tree = ast.parse((ROOT / "conformance/crossnorm_conformance/runner.py").read_text())
    real = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for name, call in zip(("run", "merge"), runner.calls, strict=True):
        assert [argument.arg for argument in real[name].args.kwonlyargs] == list(call)
        assert not real[name].args.args
    files = [node.target.id for node in real["Outputs"].body if isinstance(node, ast.AnnAssign)]
    assert files == list(vars(runner.calls[0]["outputs"]))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to work in, with a register that has a typo and a file that is no report."""
    (tmp_path / "typo.toml").write_text('[[deviation]]\ncases = ["*"]\nreason = "r"\nlink = "l"\nquantites = ["y"]\n')
    (tmp_path / "broken.json").write_text("{")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--method no_norm", "unknown method 'no_norm'"),
        ("--implementation no-such-thing", "unknown implementation 'no-such-thing'"),
        ("--device abacus", "unknown device 'abacus'"),
        ("--shard 5/4", "--shard 5/4: not the i-th of n parts"),
        ("--shard 0/4", "--shard 0/4: not the i-th of n parts"),
        ("--shard x", "--shard x: not the i-th of n parts"),
        ("--register typo.toml", "typo.toml: unknown word quantites"),
        ("--register no-such.toml", "--register no-such.toml: there is no such file"),
        ("--json no/a.json", "--json no/a.json: the folder"),
        ("--html no/a.html", "--html no/a.html: the folder"),
        ("--junit no/a.xml", "--junit no/a.xml: the folder"),
        ("--baseline broken.json", "broken.json: is no report"),
        ("--baseline no-such.json", "no-such.json: cannot be read"),
        ("merge broken.json", "broken.json: is no report"),
        ("merge broken.json --html no/a.html", "--html no/a.html: the folder"),
    ],
)
def test_conformance_says_what_is_wrong_before_anything_runs(command, files, options, message):
    """The real suite."""
    one_sentence(command("conformance", *options.split()), message)


def test_conformance_of_an_object_that_is_not_there():
    """In a process of its own: the object is looked for in a child, after whatever a framework logs when it is loaded."""
    arguments = [sys.executable, "-c", "from crossnorm.cli import main; main()", "conformance", "--implementation"]
    environment = {**os.environ, "PYTHONPATH": "conformance"}
    place = "crossnorm_conformance:no_such_object"
    result = subprocess.run([*arguments, place], cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert repr(place) in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


# diff


@pytest.fixture
def comparer(monkeypatch):
    """Stands in for the comparison of two models and remembers how it was called."""
    module = types.ModuleType("crossnorm.migrate._diff.command")
    module.calls, module.status = [], 0

    def fake(*models, **arguments):
        module.calls.append((models, arguments))
        return module.status

    module.run = fake
    monkeypatch.setitem(sys.modules, "crossnorm.migrate._diff.command", module)
    return module


COMPARED = {"pairs": [], "training": False, "step": True, "html": None, "json": None}


@pytest.mark.parametrize(
    ("options", "inputs", "changed"),
    [
        ("", ((), ()), {}),
        ("--inputs a.npy --inputs b.npz", ([Path("a.npy"), Path("b.npz")], ()), {}),
        ("--target-inputs a.npy", ((), [Path("a.npy")]), {}),
        ("--pair a=b --pair c=d", ((), ()), {"pairs": ["a=b", "c=d"]}),
        ("--mode training --no-step", ((), ()), {"training": True, "step": False}),
        ("--mode as-is", ((), ()), {"training": None}),
        ("--html a.html --json a.json", ((), ()), {"html": Path("a.html"), "json": Path("a.json")}),
    ],
)
def test_diff_options(command, comparer, options, inputs, changed):
    result = command("diff", "a.keras", "m:f=b.pt", *options.split())
    assert result.exit_code == 0, result.output
    ((models, arguments),) = comparer.calls
    assert models == ("a.keras", "m:f=b.pt", *inputs)
    assert {name: list(value) if name == "pairs" else value for name, value in arguments.items()} == COMPARED | changed


def test_diff_exit_status(command, comparer):
    comparer.status = 1
    assert command("diff", "a.keras", "b.keras").exit_code == 1


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("no.keras no.keras", "no.keras does not exist"),
        ("a.pt b.pt", "a.pt holds arrays and no code"),
        ("nonsense nonsense", "'nonsense' names no model"),
        ("no_such_module:f no_such_module:f", "no_such_module:f cannot be imported"),
        ("m:f m:f --inputs no.npy", "no.npy does not exist"),
    ],
)
def test_diff_says_what_is_wrong(command, models, message):
    """The real one, which loads no framework for that."""
    one_sentence(command("diff", *models.split()), message)


def test_diff_takes_what_the_command_passes(command, comparer):
    """The stand-in above must not hide a change of the real one."""
    command("diff", "a.keras", "b.keras")
    tree = ast.parse((ROOT / "crossnorm/migrate/_diff/command.py").read_text())
    (real,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    assert [argument.arg for argument in real.args.kwonlyargs] == list(comparer.calls[0][1])
    assert len(real.args.args) == len(comparer.calls[0][0])


def test_frameworks_of_the_command_are_those_of_the_presets():
    assert {framework for peers in PEERS.values() for framework in peers} == set(FRAMEWORKS)
