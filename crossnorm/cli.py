"""The command ``crossnorm``.

It imports any room, but only inside the command that needs it: ``crossnorm explain`` and ``crossnorm env`` work where neither
framework is installed. An error that crossnorm raises on purpose is one sentence on stderr and exit status 2.
"""

import importlib
import importlib.util
import inspect
import os
import platform
import re
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar

import typer
import typer.core
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.table import Table

import crossnorm
from crossnorm.errors import CrossnormError, Unsupported
from crossnorm.spec import PEERS, SPECS, comparison, spec_class


class _OneSentence(typer.core.TyperGroup):
    """Runs a command; a ``CrossnormError`` becomes its sentence and exit status 2, with ``--debug`` its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CrossnormError as error:
            if ctx.params["debug"]:
                raise
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_OneSentence,
    help="Normalization layers that mean the same thing in PyTorch and TensorFlow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The entry point of the script ``crossnorm``."""
    app()


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    pass


# explain


@app.command()
def explain(
    method: Annotated[str | None, typer.Argument(help="A method's name; without it, the list of them.")] = None,
) -> None:
    """The formula of a method, and what each framework calls, defaults and does differently."""
    console = Console(markup=False)  # E[x^2] is no markup
    if method is None:
        console.print(_methods())
        console.print("crossnorm explain METHOD shows one of them.")
        return
    console.print(_Document(_markdown(spec_class(method)), code_theme="ansi_dark"))
    console.print(_differences(method))
    console.print(_notes(method))


class _Symbols(TableElement):
    """A table in a docstring: what its first column names is never cut short."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            if isinstance(table, Table):
                table.columns[0].no_wrap = True
            yield table


class _Document(Markdown):
    elements: ClassVar = {**Markdown.elements, "table_open": _Symbols}


def _methods() -> Table:
    table = _table("method and specification", "in one sentence")
    for method, spec in SPECS.items():
        table.add_row(f"{method}\n{spec.__name__}", inspect.getdoc(spec).partition("\n")[0], end_section=True)
    return table


def _markdown(spec: type) -> str:
    """The docstring of a specification as Markdown, without its examples."""
    text = inspect.getdoc(spec).partition("\n>>> ")[0].replace("``", "`").replace("::\n", ":\n")
    summary, _, rest = text.partition("\n")
    # A title stands on a line of its own, above an indented paragraph or list.
    rest = re.sub(r"(?m)^(\w+)\n((?:    .*\n?)+)", lambda m: f"**{m[1]}**\n\n{inspect.cleandoc(m[2])}\n", rest)
    return f"# {spec.__name__}\n\n{summary}\n{rest}"


def _differences(method: str) -> Table:
    """One row for each value that a field takes; frameworks that agree share it."""
    table = _table("field", "is called, with the default", "by")
    table.columns[1].no_wrap = True
    for field, cells in comparison(method).items():
        frameworks: dict[str, list[str]] = {}
        for framework, cell in cells.items():
            frameworks.setdefault(cell, []).append(framework)
        for number, (cell, names) in enumerate(frameworks.items()):
            table.add_row("" if number else field, cell, ", ".join(names), end_section=number == len(frameworks) - 1)
    return table


def _notes(method: str) -> Table:
    table = _table("framework", "its layer, and what no field says")
    for framework, peer in PEERS[method].items():
        table.add_row(framework, "\n".join([peer.name, *(f"- {note}" for note in peer.notes)]), end_section=True)
    return table


def _table(*titles: str) -> Table:
    table = Table(*titles)
    table.columns[0].no_wrap = True
    return table


# env


@app.command()
def env() -> None:
    """What is installed, and which devices each framework sees."""
    table = _table("", "version", "devices")
    table.add_row("Python", platform.python_version(), platform.platform())
    table.add_row("crossnorm", crossnorm.__version__, "")
    # torch before TensorFlow: the order that Keras' own tests insist on.
    for name, devices in (
        ("numpy", _significand),
        ("torch", _torch_devices),
        ("tensorflow", _tensorflow_devices),
        ("keras", _keras_backend),
    ):
        table.add_row(name, *_installed(name, devices))
    Console(markup=False).print(table)


def _installed(name: str, devices: Callable[[Any], str]) -> tuple[str, str]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's log would drown the table
    if importlib.util.find_spec(name) is None:
        return "not installed", ""
    try:
        module = importlib.import_module(name)
        return module.__version__, devices(module)
    except Exception as error:  # a broken installation is what this command is asked about
        return "broken", f"{type(error).__name__}: {error}"


def _significand(numpy: ModuleType) -> str:
    return f"longdouble has {numpy.finfo(numpy.longdouble).nmant + 1} bits"


def _torch_devices(torch: ModuleType) -> str:
    names = [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *names])


def _tensorflow_devices(tensorflow: ModuleType) -> str:
    devices = tensorflow.config.list_physical_devices()
    details = tensorflow.config.experimental.get_device_details
    names = [(device.name.removeprefix("/physical_device:"), details(device).get("device_name", "")) for device in devices]
    return ", ".join(" ".join(name).strip() for name in names)


def _keras_backend(keras: ModuleType) -> str:
    return f"backend {keras.backend.backend()}"


# conformance

suite = typer.Typer(invoke_without_command=True)
app.add_typer(suite, name="conformance")

_Json = Annotated[Path | None, typer.Option(dir_okay=False, help="Write every check to this file.")]
_Html = Annotated[Path | None, typer.Option(dir_okay=False, help="Write a report for a browser: one file, no network.")]
_Baseline = Annotated[
    Path | None, typer.Option(dir_okay=False, help="A file that --json wrote: tell what became better, worse or new since.")
]


@suite.callback()
def conformance(
    context: typer.Context,
    implementation: Annotated[
        list[str] | None, typer.Option(help="An implementation's name, or package.module:object; repeatable. All by default.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="A method's name; repeatable. All by default.")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="cpu or cuda; repeatable. The CPU and every GPU present by default.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Witnesses, compiled executions, drawn cases and divergences, too.")
    ] = False,
    workers: Annotated[
        int, typer.Option("-n", min=1, help="Processes to spread the checks over; by default one for each core, at most 4.")
    ] = min(os.cpu_count() or 1, 4),
    shard: Annotated[str, typer.Option(metavar="I/N", help="The I-th of N parts, for several machines.")] = "1/1",
    seed: Annotated[int, typer.Option(min=0, help="Seed of all data.")] = 0,
    register: Annotated[
        list[Path] | None, typer.Option(help="Known deviations of a third party, <implementation>.toml; repeatable.")
    ] = None,
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds that one run of a third party may take, in a process of its own.")
    ] = 60.0,
    json: _Json = None,
    html: _Html = None,
    junit: Annotated[Path | None, typer.Option(dir_okay=False, help="Write JUnit XML to this file.")] = None,
    baseline: _Baseline = None,
) -> None:
    """Check every layer against the reference; exit status 0 only if nothing fails."""
    if context.invoked_subcommand is not None:
        return
    for name in method or []:
        spec_class(name)  # a typo is found before a framework is loaded
    runner = _runner()
    sys.path.insert(0, os.getcwd())  # a module of one's own lies here, as for `python -m`
    status = runner.run(
        methods=method or [],
        implementations=implementation or [],
        devices=device or [],
        workers=workers,
        seed=seed,
        full=full,
        shard=shard,
        registers=register or [],
        patience=patience,
        outputs=runner.Outputs(json=json, html=html, junit=junit, baseline=baseline),
    )
    raise typer.Exit(status)


@suite.command()
def merge(
    reports: Annotated[list[Path], typer.Argument(help="Files that --json wrote, one for each shard.")],
    json: _Json = None,
    html: _Html = None,
    baseline: _Baseline = None,
) -> None:
    """Put the shards of a run together; exit status as if it had been one."""
    runner = _runner()
    raise typer.Exit(runner.merge(reports=reports, outputs=runner.Outputs(json=json, html=html, baseline=baseline)))


def _runner() -> ModuleType:
    """The suite's runner, or one sentence about what it lacks."""
    missing = [name for name in ("pytest", "xdist", "hypothesis", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise Unsupported(
            f"crossnorm conformance: {', '.join(missing)} not installed; the suite runs on them: "
            "python -m pip install 'crossnorm[conformance]'"
        )
    return importlib.import_module("crossnorm_conformance.runner")


# diff


class _Mode(StrEnum):
    inference = "inference"
    training = "training"
    as_is = "as-is"


@app.command()
def diff(
    source: Annotated[
        str, typer.Argument(help="model.keras, or package.module:object, which may be a function that makes it.")
    ],
    target: Annotated[str, typer.Argument(help="The other model; package.module:function=weights.pt loads weights, too.")],
    inputs: Annotated[
        list[Path] | None, typer.Option(help="A file .npy or .npz of what the source is run on; repeatable. Random by default.")
    ] = None,
    target_inputs: Annotated[
        list[Path] | None, typer.Option(help="The same for the target, if it is more than channels first or last.")
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NAME", help="A layer of the source and its like in the target; repeatable."),
    ] = None,
    mode: Annotated[_Mode, typer.Option(help="In which both run. A torch model that was just made is in training mode.")] = (
        _Mode.inference
    ),
    step: Annotated[bool, typer.Option("--step/--no-step", help="Compare a training step's statistics, too.")] = True,
    html: _Html = None,
    json: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the report to this file.")] = None,
) -> None:
    """Find the first layer where two models part, and why; exit status 0 only if they agree."""
    sys.path.insert(0, os.getcwd())  # a module of one's own lies here, as for `python -m`
    command = importlib.import_module("crossnorm.migrate._diff.command")
    status = command.run(
        source,
        target,
        inputs or (),
        target_inputs or (),
        pairs=pair or (),
        training={_Mode.inference: False, _Mode.training: True, _Mode.as_is: None}[mode],
        step=step,
        html=html,
        json=json,
    )
    raise typer.Exit(status)
