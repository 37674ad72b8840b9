"""``crossnorm conformance``: pytest underneath, a progress bar above, the report at the end."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .html import html
from .implementations import SuiteError
from .plan import Plan
from .plugin import REPORT, shard_of
from .register import read
from .report import Report
from .trend import Trend

PACKAGE = Path(__file__).parent


class _Watch:
    """A pytest plugin that moves the progress bar and keeps the configuration, in which the report is left."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.task = progress.add_task("collecting", total=None)
        self.config: pytest.Config | None = None
        self.broken: list[str] = []

    def pytest_configure(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:
            self.progress.update(self.task, description="checking", total=len(session.items))

    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self.progress.update(self.task, description="checking", total=len(ids))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(str(report.longrepr))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup":
            self.progress.advance(self.task)
        # A check that fails is in the report; what breaks without having been judged is not.
        if report.failed and not report.user_properties:
            self.broken.append(f"{report.nodeid}\n{report.longrepr}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """The files that a run writes, and the earlier report that it is compared with."""

    json: Path | None = None
    html: Path | None = None
    junit: Path | None = None
    baseline: Path | None = None

    def check(self) -> None:
        """A `SuiteError`, before anything runs, for a file that could not be written, and a baseline that is no report."""
        for name in ("json", "html", "junit"):
            path = getattr(self, name)
            if path is not None and not path.absolute().parent.is_dir():
                raise SuiteError(f"--{name} {path}: the folder {path.absolute().parent} does not exist; create it first")
        if self.baseline is not None:
            Report.read(self.baseline)

    def finish(self, report: Report) -> int:
        """Print a report, write what is wanted of it, and tell the exit status."""
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        report.render(console)
        trend = None if self.baseline is None else Trend.between(Report.read(self.baseline), report)
        if trend is not None:
            trend.render(console)
        if self.json is not None:
            report.write_json(self.json)
        if self.html is not None:
            self.html.write_text(html(report, trend), encoding="utf-8")
        return 0 if report.passed else 1


def run(
    *,
    methods: Sequence[str],
    implementations: Sequence[str],
    devices: Sequence[str],
    workers: int,
    seed: int,
    full: bool,
    shard: str,
    registers: Sequence[Path],
    patience: float,
    outputs: Outputs,
) -> int:
    """Run the suite and print its report; 0 if nothing failed, else 1. Empty sequences mean all.

    Raises:
        SpecError: an unknown method.
        SuiteError: an unknown implementation or device, nothing to run, no such shard, register or folder.
    """
    outputs.check()
    for path in registers:
        read(path)
    Plan.of(methods, implementations, devices, seed, full, shard_of(shard))
    os.environ.pop("PYTEST_ADDOPTS", None)  # meant for somebody's own tests
    # Two threads of one process and two processes on two cores wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments = [str(PACKAGE), f"--rootdir={PACKAGE}", f"--confcutdir={PACKAGE}", "-c", os.devnull]
    arguments += ["-p", "crossnorm_conformance.plugin", "-W", "ignore"]
    # Each costs a little for each of thousands of items.
    unused = ("cacheprovider", "terminal", "faulthandler", "logging", "unraisableexception", "threadexception", "warnings")
    arguments += [argument for plugin in unused for argument in ("-p", f"no:{plugin}")]
    arguments += ["--import-mode=importlib", f"--seed={seed}", f"--shard={shard}", f"--patience={patience}"]
    arguments += [f"--method={name}" for name in methods]
    arguments += [f"--implementation={name}" for name in implementations]
    arguments += [f"--device={name}" for name in devices]
    arguments += [f"--register={path.absolute()}" for path in registers]
    arguments += ["--full"] if full else []
    arguments += [f"--junitxml={outputs.junit.absolute()}"] if outputs.junit else []
    if workers > 1:
        arguments += ["-n", str(workers), "--dist", "loadgroup"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        watch = _Watch(progress)
        status = pytest.main(arguments, plugins=[watch])
    for text in watch.broken:
        print(text)
    report = watch.config.stash.get(REPORT, None) if watch.config else None
    if report is None:
        print("no check was made")
        return 1
    outcome = outputs.finish(report)
    return outcome if status == pytest.ExitCode.OK and not watch.broken else 1


def merge(*, reports: Sequence[Path], outputs: Outputs) -> int:
    """Put the shards of a run together, print the whole, and tell its exit status.

    Raises:
        SuiteError: a file that is no report, or reports that do not belong together.
    """
    outputs.check()
    return outputs.finish(Report.merged([Report.read(path) for path in reports]))
