"""Reports: they survive their file, shards add up to the whole, a baseline tells what changed, Ctrl-C leaves what was found."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from crossnorm_conformance import implementations
from crossnorm_conformance.cases import cases_of, faults_of
from crossnorm_conformance.compare import FAIL, KNOWN, PASS, UNSUPPORTED, Check, check_quantities
from crossnorm_conformance.errors import check_misuse
from crossnorm_conformance.implementations import SuiteError, add
from crossnorm_conformance.oracle import QUANTITIES
from crossnorm_conformance.plan import Plan
from crossnorm_conformance.report import Report
from crossnorm_conformance.trend import Trend
from tests.conformance.exact import Exact

ROOT = Path(__file__).parent.parent.parent
METHODS = ("rms_norm",)


@pytest.fixture
def exact(monkeypatch):
    """An implementation that is known by name, and forgotten after the test."""
    monkeypatch.setattr(implementations, "_third_parties", {})
    add(Exact())
    yield "exact"
    implementations.load.cache_clear()


def plan_of(name, shard=(1, 1), **more):
    return Plan(methods=METHODS, implementations=(name,), devices=("cpu",), seed=0, shard=shard, named=True, **more)


def run_of(name, shard=(1, 1)):
    """A small run as the suite would make it, in this process."""
    plan = plan_of(name, shard)
    checks = [
        check
        for case in plan.cases()
        for implementation, execution, device in plan.runs(case)
        for question in QUANTITIES
        for check in check_quantities(question, implementation, case, execution, device, plan.seed)
    ]
    checks += [check for fault, implementation in plan.faults() for check in check_misuse(fault, implementation)]
    return Report.of(plan, checks, ())


def check_of(quantity="y", verdict=PASS, units=1.0, **more):
    labels = {"question": "outputs", "method": "rms_norm", "case": cases_of("rms_norm")[0].id, "implementation": "exact"}
    more = {"execution": "eager", "device": "cpu", "step": 1, "bound": 32.0} | more
    return Check(**labels, quantity=quantity, verdict=verdict, units=units, **more)


def report_of(*checks, **more):
    fields = {"methods": METHODS, "implementations": ("exact",), "devices": ("cpu",), "seed": 0, "full": False}
    fields |= {"shards": ((1, 1),), "versions": {"numpy": "1"}, "expected": (("exact", "cpu"),), "absent": {}, "places": {}}
    return Report(**fields | {"cases": {}, "checks": checks} | more)


# Files


def test_a_report_survives_its_file(tmp_path):
    inf, nan = float("inf"), float("nan")
    checks = [
        check_of(verdict=FAIL, units=inf, got=-inf, want=0.5, reason="inf units", element=(0, 1), allowed=1e-7),
        check_of(quantity="dx", verdict=UNSUPPORTED, units=None, bound=None, reason="no device"),
        check_of(quantity="dscale", verdict=KNOWN, reason="it rounds"),
    ]
    case = cases_of("rms_norm")[0]
    more = {
        "cases": {case.id: json.loads(json.dumps(case.to_dict()))},
        "complaints": ("stale",),
        "shards": ((2, 3),),
        "complete": False,
    }
    report = report_of(*checks, **more, absent={"timm": "is not installed"}, places={"exact": "a:b"})
    report.write_json(tmp_path / "a.json")
    again = Report.read(tmp_path / "a.json")
    assert again.checks == report.checks
    assert json.dumps(again.to_dict()) == json.dumps(report.to_dict())
    assert again.text() == report.text()
    (not_a_number,) = report_of(check_of(units=nan)).checks
    assert repr(Check.from_dict(json.loads(json.dumps(not_a_number.to_dict(), allow_nan=False)))) == repr(not_a_number)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("", "is no report"),
        ("{", "is no report"),
        ("[]", "is no report"),
        ("3", "is no report"),
        ("\udcff", "is no report"),
        ('{"format": 1}', "is no report"),
        ('{"format": 99}', "format 99 is not 1"),
        ("{}", "format None is not 1"),
    ],
)
def test_what_is_no_report_is_one_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / "a.json").write_text(text, errors="surrogateescape")
    with pytest.raises(SuiteError) as caught:
        Report.read(tmp_path / "a.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"checks": [3]}, {"checks": [{"case": "x"}]}, {"checks": 3}, {"shards": 3}, {"cases": []}])
def test_a_report_with_nonsense_in_it_is_one_sentence(tmp_path, change):
    (tmp_path / "a.json").write_text(json.dumps(report_of(check_of()).to_dict() | change))
    with pytest.raises(SuiteError, match="is no report"):
        Report.read(tmp_path / "a.json")


# Shards


def test_every_case_and_fault_is_in_exactly_one_shard(exact):
    whole = plan_of(exact)
    shards = [plan_of(exact, (number, 3)) for number in (1, 2, 3)]
    for rows in (lambda plan: [case.id for case in plan.cases()], lambda plan: [fault.id for fault, _ in plan.faults()]):
        parts = [rows(shard) for shard in shards]
        assert sorted(id for part in parts for id in part) == sorted(rows(whole))
        assert all(parts)


def test_the_shards_of_a_run_add_up_to_the_whole(exact, tmp_path):
    whole = run_of(exact)
    assert whole.passed
    parts = []
    for number in (3, 1, 2):
        run_of(exact, (number, 3)).write_json(tmp_path / f"{number}.json")
        parts.append(Report.read(tmp_path / f"{number}.json"))
    assert all(part.passed for part in parts)
    merged = Report.merged(parts)
    assert {check.key: check for check in merged.checks} == {check.key: check for check in whole.checks}
    assert len(merged.checks) == len(whole.checks)
    assert merged.cases.keys() == whole.cases.keys()
    assert (merged.passed, merged.counts(), merged.shards) == (True, whole.counts(), ((1, 3), (2, 3), (3, 3)))
    assert "INCOMPLETE" not in merged.text()


def test_a_missing_shard_is_said_and_has_not_passed(exact):
    merged = Report.merged([run_of(exact, (number, 3)) for number in (1, 3)])
    assert merged.lacks() == ["shard 2/3 is missing"]
    assert not merged.passed
    assert "INCOMPLETE shard 2/3 is missing" in merged.text()


def test_a_failure_in_one_shard_is_one_of_the_whole():
    sound, broken = report_of(check_of(), shards=((1, 2),)), report_of(check_of("dx", FAIL), shards=((2, 2),))
    assert [check.quantity for check in Report.merged([sound, broken]).failures()] == ["dx"]
    assert not Report.merged([sound, broken]).passed
    assert not Report.merged([sound, replace(sound, shards=((2, 2),), complete=False)]).passed


def test_a_merged_run_that_compared_nothing_with_one_of_them_has_not_passed():
    expected = (("exact", "cpu"), ("idle", "cpu"))
    parts = [report_of(check_of(step=n), shards=((n, 2),), expected=expected) for n in (1, 2)]
    assert Report.merged(parts).idle() == ["idle on cpu: nothing was compared"]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"versions": {"numpy": "2"}}, {"methods": ()}, {"devices": ("cuda",)}, {"full": True}]
)
def test_reports_that_do_not_belong_together_are_not_merged(change):
    first = report_of(check_of(), shards=((1, 2),))
    with pytest.raises(SuiteError, match=f"merge: the reports do not belong together: {next(iter(change))} is"):
        Report.merged([first, report_of(check_of(), shards=((2, 2),), **change)])


def test_shards_of_different_numbers_of_parts_are_not_merged():
    with pytest.raises(SuiteError, match="different numbers of parts"):
        Report.merged([report_of(check_of(), shards=((1, 2),)), report_of(check_of(), shards=((2, 3),))])


# Trends


def test_a_trend_tells_what_changed():
    def quantities(changes):
        return [(now or then).quantity for then, now in changes]

    earlier = report_of(
        check_of("broken"),
        check_of("mended", FAIL, 99.0),
        check_of("excused", FAIL, 99.0),
        check_of("worse", units=1.0),
        check_of("better", units=8.0),
        check_of("wobbles", units=8.0),
        check_of("small", units=0.1),
        check_of("gone"),
        check_of("unsupported", UNSUPPORTED, None),
        versions={"numpy": "1", "torch": "2.12", "jax": "1"},
    )
    now = report_of(
        check_of("broken", FAIL, None, reason="raised ValueError: boom"),
        check_of("mended"),
        check_of("excused", KNOWN, 99.0),
        check_of("worse", units=3.0),
        check_of("better", units=1.0),
        check_of("wobbles", units=9.5),
        check_of("small", units=1.0),
        check_of("new"),
        check_of("unsupported", UNSUPPORTED, None),
        versions={"numpy": "1", "torch": "2.13", "keras": "3"},
    )
    trend = Trend.between(earlier, now)
    assert quantities(trend.broken) == ["broken"]
    assert sorted(quantities(trend.mended)) == ["excused", "mended"]
    assert quantities(trend.worse) == ["worse"]
    assert quantities(trend.better) == ["better"]
    assert quantities(trend.new) == ["new"]
    assert quantities(trend.gone) == ["gone"]
    assert trend.versions == {"torch": ("2.12", "2.13"), "jax": ("1", "absent"), "keras": ("absent", "3")}
    with (console := Console(width=200)).capture() as captured:
        trend.render(console)
    text = captured.get()
    assert "since the baseline: 1 broken, 2 mended, 1 worse, 1 better, 1 new, 1 gone" in text
    assert "torch 2.12 -> 2.13" in text
    assert "pass at 1.0 units -> pass at 3.0 units" in text


def test_the_largest_changes_come_first_and_nothing_changed_between_equals():
    earlier = report_of(*(check_of(step=step) for step in range(3)))
    now = report_of(*(check_of(step=step, units=units) for step, units in enumerate((5.0, 30.0, 9.0))))
    assert [b.step for _, b in Trend.between(earlier, now).worse] == [1, 2, 0]
    trend = Trend.between(now, now)
    assert not any((trend.broken, trend.mended, trend.worse, trend.better, trend.new, trend.gone, trend.versions))


# Ctrl-C

SLOW = """
import time
from pathlib import Path
from tests.conformance.exact import Exact

class Slow(Exact):
    name, runs = "slow", 0
    def run(self, case, arrays, execution, device):
        self.runs += 1
        if self.runs > 5:
            (Path(__file__).parent / "running").touch()
            time.sleep(0.5)
        return super().run(case, arrays, execution, device)

SLOW = Slow()
"""


def is_gone(group):
    """Whether every process of the group ends, within a while."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_leaves_what_was_found(tmp_path, workers):
    (tmp_path / "slow_party.py").write_text(SLOW)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "conformance", tmp_path)))
    arguments = [sys.executable, "-c", "from crossnorm.cli import main; main()", "conformance", "-n", workers]
    arguments += ["--method", "rms_norm", "--implementation", "slow_party:SLOW", "--json", str(tmp_path / "a.json")]
    # A terminal sends the signal to every process of the group.
    process = subprocess.Popen(
        arguments,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "running").exists() and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert is_gone(process.pid)
    assert "INCOMPLETE the run broke off" in output, errors
    report = Report.read(tmp_path / "a.json")
    assert not report.complete
    assert not report.passed
    assert report.checks
    assert not report.failures()
    assert {check.case for check in report.checks} <= report.cases.keys() | {fault.id for fault in faults_of("rms_norm")}
