"""``crossnorm conformance``: pytest underneath, a progress bar above, the report at the end."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .implementations import SuiteError
from .plan import Plan
from .plugin import REPORT

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


def run(
    *,
    methods: Sequence[str],
    implementations: Sequence[str],
    devices: Sequence[str],
    workers: int,
    seed: int,
    json: Path | None,
) -> int:
    """Run the suite and print its report; 0 if nothing failed, else 1. Empty sequences mean all.

    Raises:
        SpecError: an unknown method.
        SuiteError: an unknown implementation or device, nothing to run, or no folder for the JSON file.
    """
    if json is not None and not json.absolute().parent.is_dir():
        raise SuiteError(f"--json {json}: the folder {json.absolute().parent} does not exist; create it first")
    Plan.of(methods, implementations, devices, seed)
    os.environ.pop("PYTEST_ADDOPTS", None)  # meant for somebody's own tests
    # Two threads of one process and two processes on two cores wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments = [str(PACKAGE), f"--rootdir={PACKAGE}", f"--confcutdir={PACKAGE}", "-c", os.devnull]
    arguments += ["-p", "crossnorm_conformance.plugin", "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:faulthandler"]
    arguments += ["--import-mode=importlib", "-W", "ignore", f"--seed={seed}"]
    arguments += [f"--method={name}" for name in methods]
    arguments += [f"--implementation={name}" for name in implementations]
    arguments += [f"--device={name}" for name in devices]
    if workers > 1:
        arguments += ["-n", str(workers), "--dist", "loadgroup"]
    if json is not None:
        arguments += [f"--checks-json={json.absolute()}"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        watch = _Watch(progress)
        status = pytest.main(arguments, plugins=[watch])
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for text in watch.broken:
        console.print(text, markup=False)
    report = watch.config.stash.get(REPORT, None) if watch.config else None
    if report is None:
        console.print("no check was made")
        return 1
    report.render(console)
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        console.print("the run broke off, and what is above is only a part of it: a process crashed, or was stopped")
    return 0 if report.passed and status == pytest.ExitCode.OK and not watch.broken else 1
