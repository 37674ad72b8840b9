"""The pytest plugin: options, the items of the plan, and the collection of checks from every worker.

It is loaded by ``-p crossnorm_conformance.plugin``. Test functions ask for what they judge by argument name: ``crossnorm_run``
(one case with one implementation), ``crossnorm_pair`` (one case with two), ``crossnorm_misuse`` (one fault with one
implementation); `crossnorm_judged` records checks.
"""

import zlib
from collections.abc import Callable
from typing import Any

import pytest

from crossnorm import CrossnormError

from .compare import FAIL, KNOWN, UNSUPPORTED, Check
from .plan import Plan
from .register import judge, stale
from .report import Report

PLAN = pytest.StashKey[Plan]()
REPORT = pytest.StashKey[Report]()

_KEY = "crossnorm_checks"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("crossnorm")
    group.addoption("--method", action="append", default=[], help="check this method only (repeatable)")
    group.addoption("--implementation", action="append", default=[], help="check this implementation only (repeatable)")
    group.addoption("--device", action="append", default=[], help="run on this device: cpu, cuda (repeatable)")
    group.addoption("--seed", type=int, default=0, help="seed of the data")
    group.addoption("--checks-json", default=None, metavar="FILE", help="write every check to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): items of one case run in one process")


def _plan(config: pytest.Config) -> Plan:
    """Made when the first item needs it: tests that are not of the suite load no framework."""
    if PLAN not in config.stash:
        option = config.option
        try:
            config.stash[PLAN] = Plan.of(option.method, option.implementation, option.device, option.seed)
        except CrossnormError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[PLAN]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    makers: dict[str, Callable[[Plan], list[Any]]] = {
        "crossnorm_run": _runs,
        "crossnorm_pair": _pairs,
        "crossnorm_misuse": _misuses,
    }
    for name in makers.keys() & set(metafunc.fixturenames):
        items = makers[name](_plan(metafunc.config))
        metafunc.parametrize(
            name, [pytest.param(value, id=id, marks=pytest.mark.xdist_group(group)) for value, id, group in items]
        )


def _runs(plan: Plan) -> list[tuple[Any, str, str]]:
    return [
        ((case, implementation, execution, device), f"{case.id}-{implementation.name}-{execution}-{device}", case.id)
        for case in plan.cases()
        for implementation, execution, device in plan.runs(case)
    ]


def _pairs(plan: Plan) -> list[tuple[Any, str, str]]:
    return [
        ((case, first, second, device), f"{case.id}-{first.name}={second.name}-{device}", case.id)
        for case in plan.cases()
        for first, second, device in plan.pairs(case)
    ]


def _misuses(plan: Plan) -> list[tuple[Any, str, str]]:
    return [((fault, i), f"{fault.id}-{i.name}", fault.id) for fault, i in plan.faults()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All items of one case next to each other: its oracle and its runs are evaluated once. The order of cases is shuffled,
    the same way everywhere, so that workers get equal shares of slow and quick ones."""
    groups = {id(item): marker.args[0] for item in items if (marker := item.get_closest_marker("xdist_group"))}
    items.sort(key=lambda item: (zlib.crc32(groups[id(item)].encode()), groups[id(item)]) if id(item) in groups else (-1, ""))


@pytest.fixture
def crossnorm_seed(pytestconfig: pytest.Config) -> int:
    """The seed of the data."""
    value: int = pytestconfig.option.seed
    return value


@pytest.fixture
def crossnorm_judged(request: pytest.FixtureRequest) -> Callable[[list[Check]], None]:
    """Record checks and turn their verdicts into pytest's: one failing check fails the item."""

    def record(checks: list[Check]) -> None:
        checks = [judge(check) for check in checks]
        request.node.user_properties.append((_KEY, [check.to_dict() for check in checks]))
        failed = [check for check in checks if check.verdict == FAIL]
        if failed:
            first = failed[0]
            pytest.fail(
                "\n".join(f"{c.implementation} {c.case} {c.quantity} step {c.step}: {c.reason}" for c in failed)
                + f"\nagain: crossnorm conformance --method {first.method} --seed {request.config.option.seed}",
                pytrace=False,
            )
        if checks and all(check.verdict == UNSUPPORTED for check in checks):
            pytest.skip(checks[0].reason)
        known = [check for check in checks if check.verdict == KNOWN]
        if known:
            pytest.xfail(known[0].reason)

    return record


# From here on: the controlling process gathers what the workers found.


def _controls(config: pytest.Config) -> bool:
    return not hasattr(config, "workerinput")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call":
        for key, checks in report.user_properties:
            if key == _KEY:
                _GATHERED.extend(Check(**check) for check in checks)


_GATHERED: list[Check] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    _GATHERED.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if not _controls(config) or not _GATHERED:
        return
    plan = _plan(config)
    whole = {case.id for case in Plan.of((), plan.implementations, plan.devices, plan.seed).cases()}
    whole |= {fault.id for fault, _ in Plan.of((), plan.implementations, plan.devices, plan.seed).faults()}
    complaints = stale(plan.implementations, _GATHERED, whole)
    config.stash[REPORT] = Report(plan, tuple(_GATHERED), tuple(complaints))
    if complaints and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if config.option.checks_json:
        config.stash[REPORT].write_json(config.option.checks_json)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if REPORT in config.stash:
        terminalreporter.section("crossnorm conformance")
        terminalreporter.write(config.stash[REPORT].text(terminalreporter._tw.fullwidth))
