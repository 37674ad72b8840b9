"""The pytest plugin: options, the items of the plan, and the collection of checks from every worker.

It is loaded by ``-p crossnorm_conformance.plugin``. Test functions ask for what they judge by argument name: ``crossnorm_run``
(one case with one implementation), ``crossnorm_pair`` (one case with two), ``crossnorm_misuse`` (one fault with one
implementation), ``crossnorm_drawn`` (one method with one implementation), ``crossnorm_divergence``; `crossnorm_judged` records
checks.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from crossnorm import CrossnormError

from .case import Case
from .compare import FAIL, KNOWN, UNSUPPORTED, Check, unsupported, why_not
from .divergences import divergences
from .implementations import SuiteError
from .oracle import QUANTITIES, keys_of
from .plan import Plan, every_id
from .process import Limits
from .register import judge, read, stale
from .report import Report

PLAN = pytest.StashKey[Plan]()
REPORT = pytest.StashKey[Report]()

_CHECKS = "crossnorm_checks"
_DRAWN = "crossnorm_drawn_cases"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("crossnorm")
    group.addoption("--method", action="append", default=[], help="check this method only (repeatable)")
    group.addoption("--implementation", action="append", default=[], help="check this implementation only (repeatable)")
    group.addoption("--device", action="append", default=[], help="run on this device: cpu, cuda (repeatable)")
    group.addoption("--seed", type=int, default=0, help="seed of the data")
    group.addoption("--full", action="store_true", help="witnesses, compiled executions, drawn cases and divergences, too")
    group.addoption("--shard", default="1/1", metavar="I/N", help="the I-th of N parts")
    group.addoption("--register", action="append", default=[], metavar="FILE", help="known deviations (repeatable)")
    group.addoption("--patience", type=float, default=Limits.seconds, help="seconds that one run in a child process may take")


def shard_of(text: str) -> tuple[int, int]:
    """``"i/n"`` as two numbers; a `SuiteError` unless 1 <= i <= n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise SuiteError(f"--shard {text}: not the i-th of n parts, 1 <= i <= n; give 1/4, 2/4, 3/4 and 4/4, say")
    return number, count


def _plan(config: pytest.Config) -> Plan:
    """Made when the first item needs it: tests that are not of the suite load no framework."""
    if PLAN not in config.stash:
        option = config.option
        Limits.seconds = option.patience
        try:
            for path in option.register:
                read(Path(path))
            config.stash[PLAN] = Plan.of(
                option.method, option.implementation, option.device, option.seed, option.full, shard_of(option.shard)
            )
        except CrossnormError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[PLAN]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    makers: dict[str, Callable[[Plan, str], list[tuple[Any, str]]]] = {
        "crossnorm_run": _runs,
        "crossnorm_pair": _pairs,
        "crossnorm_misuse": _misuses,
        "crossnorm_drawn": _drawn,
        "crossnorm_divergence": _divergences,
    }
    question = metafunc.function.__name__.removeprefix("test_")
    for name in makers.keys() & set(metafunc.fixturenames):
        items = makers[name](_plan(metafunc.config), question)
        metafunc.parametrize(name, [pytest.param(value, id=id) for value, id in items])


def _runs(plan: Plan, question: str) -> list[tuple[Any, str]]:
    """Those that can be run; the report has the others, which nobody has to execute."""
    return [
        ((case, implementation, execution, device), f"{case.id}-{implementation.name}-{execution}-{device}")
        for case in plan.cases()
        if any(quantity in QUANTITIES[question] for _, quantity in keys_of(case))
        for implementation, execution, device in plan.runs(case)
        if not why_not(implementation, case, device)
    ]


def _pairs(plan: Plan, question: str) -> list[tuple[Any, str]]:
    return [
        ((case, first, second, devices), f"{case.id}-{first.name}={second.name}-{'='.join(dict.fromkeys(devices))}")
        for case in plan.cases()
        for first, second, devices in plan.pairs(case)
        if not (why_not(first, case, devices[0]) or why_not(second, case, devices[1]))
    ]


def _misuses(plan: Plan, question: str) -> list[tuple[Any, str]]:
    return [((fault, i), f"{fault.id}-{i.name}") for fault, i in plan.faults()]


def _drawn(plan: Plan, question: str) -> list[tuple[Any, str]]:
    return [((method, i, device), f"{method}-{i.name}-{device}") for method, i, device in plan.drawn()]


def _divergences(plan: Plan, question: str) -> list[tuple[Any, str]]:
    if not plan.full or plan.named:
        return []
    rows = {f"divergence-{row.number}-{row.title}": row for row in divergences() if row.method in plan.methods}
    return [(row, id) for id, row in rows.items() if plan.holds(id)]


_BY_CASE = ("test_outputs.py", "test_gradients.py", "test_running_statistics.py", "test_agreement.py")


def _scope(nodeid: str) -> str:
    """What belongs into one process: all items of a case, whose oracle and runs are evaluated once; the divergences, which
    share children. Empty for any other item."""
    file, _, name = nodeid.partition("::")
    if file.rpartition("/")[2] in _BY_CASE:
        return "-".join(name.partition("[")[2].split("-")[:7])
    return file if file.endswith("test_divergences.py") else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All items of one case next to each other. The order of cases is shuffled, the same way everywhere, so that workers get
    equal shares of slow and quick ones."""
    items.sort(key=lambda item: (zlib.crc32(scope.encode()), scope) if (scope := _scope(item.nodeid)) else (-1, ""))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The scopes above, found by name: pytest 9.2 does not show xdist 3.8 the marks that ``--dist loadgroup`` goes by."""
    if config.option.dist != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class ByCase(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid) or super()._split_scope(nodeid)

    return ByCase(config, log)


@pytest.fixture
def crossnorm_seed(pytestconfig: pytest.Config) -> int:
    """The seed of the data."""
    value: int = pytestconfig.option.seed
    return value


@pytest.fixture
def crossnorm_judged(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Record checks, and the cases that are not among the listed ones, and turn verdicts into pytest's: one failing check
    fails the item."""

    def record(checks: list[Check], drawn: Sequence[Case] = ()) -> None:
        checks = [judge(check) for check in checks]
        request.node.user_properties.append((_CHECKS, [check.to_dict() for check in checks]))
        request.node.user_properties.append((_DRAWN, [case.to_dict() for case in drawn]))
        failed = [check for check in checks if check.verdict == FAIL]
        if failed:
            lines = [f"{c.implementation} {c.case} {c.quantity} step {c.step}: {c.reason}" for c in failed]
            report = Report.of(_plan(request.config), failed, (), drawn)
            pytest.fail("\n".join([*lines, "again:", report.snippet(failed[0])]), pytrace=False)
        if checks and all(check.verdict == UNSUPPORTED for check in checks):
            pytest.skip(checks[0].reason)
        known = [check for check in checks if check.verdict == KNOWN]
        if known:
            pytest.xfail(known[0].reason)

    return record


# From here on: the controlling process gathers what the workers found.


def _controls(config: pytest.Config) -> bool:
    return not hasattr(config, "workerinput")


_gathered: list[Check] = []
_gathered_cases: list[Case] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for key, values in report.user_properties:
            if key == _CHECKS:
                _gathered.extend(Check.from_dict(check) for check in values)
            elif key == _DRAWN:
                _gathered_cases.extend(Case.from_dict(case) for case in values)


def pytest_sessionstart(session: pytest.Session) -> None:
    _gathered.clear()
    _gathered_cases.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if not _controls(config) or not _gathered:
        return
    plan = _plan(config)
    complete = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    checks = [*_gathered, *unsupported(plan)]
    # Only a whole run tells that an entry has outlived its deviation.
    partial = not complete or config.option.keyword or config.option.markexpr
    complaints = [] if partial else stale(plan.implementations, checks, every_id())
    config.stash[REPORT] = Report.of(plan, checks, complaints, _gathered_cases, complete=complete)
    if complaints and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if REPORT in config.stash:
        terminalreporter.section("crossnorm conformance")
        terminalreporter.write(config.stash[REPORT].text(terminalreporter._tw.fullwidth))
