"""What an implementation cannot get away with: raising, skipping, changing its input, comparing nothing, a borrowed name."""

import sys
import types

import numpy as np
import pytest

from crossnorm_conformance import compare, implementations, report
from crossnorm_conformance.case import draw
from crossnorm_conformance.cases import cases_of
from crossnorm_conformance.compare import FAIL, KNOWN, UNSUPPORTED, Check, check_quantities
from crossnorm_conformance.implementations import Result, SuiteError, find
from crossnorm_conformance.plan import Plan
from crossnorm_conformance.register import judge
from crossnorm_conformance.report import Report
from tests.conformance.exact import Exact

CASE = cases_of("rms_norm")[0]


def checks_of(monkeypatch, implementation):
    monkeypatch.setattr(compare, "load", lambda name: implementation)
    compare.outcome.cache_clear()
    found = check_quantities("outputs", implementation, CASE, "eager", "cpu", 0)
    compare.outcome.cache_clear()
    return found


def with_run(run):
    return type("Hostile", (Exact,), {"run": run})()


def raises(self, case, arrays, execution, device):
    raise ZeroDivisionError("one\ntwo")


def skips(self, case, arrays, execution, device):
    pytest.skip("no, thanks")


def changes_its_input(self, case, arrays, execution, device):
    results = Exact.run(self, case, arrays, execution, device)
    arrays.values["x1"][...] = 0
    return results


def forgets(self, case, arrays, execution, device):
    return {}


def widens(self, case, arrays, execution, device):
    return {
        key: Result(r.values.astype(float), "float128") for key, r in Exact.run(self, case, arrays, execution, device).items()
    }


def gives_zeros(self, case, arrays, execution, device):
    return {key: Result(r.values * 0, r.dtype) for key, r in Exact.run(self, case, arrays, execution, device).items()}


def gives_nan(self, case, arrays, execution, device):
    return {key: Result(r.values * np.nan, r.dtype) for key, r in Exact.run(self, case, arrays, execution, device).items()}


def test_the_exact_answer_passes(monkeypatch):
    assert {check.verdict for check in checks_of(monkeypatch, Exact())} == {"pass"}


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (raises, "raised ZeroDivisionError: one two"),
        (skips, "raised Skipped: no, thanks"),
        (changes_its_input, "changed its input"),
        (forgets, "gave no value"),
        (widens, "dtype=float128, but should be"),
        (gives_zeros, "units at"),
        (gives_nan, "units at"),
    ],
)
def test_a_wrong_answer_fails(monkeypatch, run, reason):
    checks = checks_of(monkeypatch, with_run(run))
    assert checks
    for check in checks:
        assert check.verdict == FAIL
        assert reason in check.reason


def report_of(*checks):
    plan = Plan(methods=("rms_norm",), implementations=("exact",), devices=("cpu", "cuda"), seed=0)
    return Report.of(plan, checks, ())


def test_a_run_that_compared_nothing_has_not_passed(monkeypatch):
    monkeypatch.setattr(report, "load", lambda name: Exact())
    labels = {"question": "outputs", "method": "rms_norm", "case": CASE.id, "implementation": "exact", "execution": "eager"}
    labels |= {"quantity": "y", "step": 1}
    passed = Check(**labels, device="cpu", verdict="pass", units=1.0, bound=32.0)
    absent = Check(**labels, device="cuda", verdict=UNSUPPORTED, reason="no device cuda")
    assert not report_of(passed, absent).passed
    assert report_of(passed, absent).idle() == ["exact on cuda: nothing was compared"]


def test_a_crash_is_no_known_deviation():
    labels = {
        "question": "outputs",
        "method": "batch_norm",
        "implementation": "torch.nn",
        "execution": "eager",
        "device": "cpu",
    }
    labels |= {"case": "batch_norm-unbiased-2x3-strided-float16-mixed-train", "quantity": "y", "step": 1, "verdict": FAIL}
    assert judge(Check(**labels, units=100.0, bound=32.0)).verdict == KNOWN
    assert judge(Check(**labels, reason="raised RuntimeError: boom")).verdict == FAIL


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (Exact, "a class"),
        (types.SimpleNamespace(name="half"), "it lacks .*unsupported"),
        (type("Thief", (Exact,), {"name": "torch.nn"})(), "calls itself 'torch.nn', a name that is taken"),
    ],
)
def test_what_is_no_implementation_is_refused(monkeypatch, thing, message):
    module = types.ModuleType("some_third_party")
    module.thing = thing
    monkeypatch.setitem(sys.modules, "some_third_party", module)
    with pytest.raises(SuiteError, match=message):
        find("some_third_party:thing")
    assert "torch.nn" not in implementations._third_parties


def test_every_run_gets_arrays_of_its_own():
    first, second = draw(CASE, 0), draw(CASE, 0)
    assert np.array_equal(first.values["x1"], second.values["x1"])
    assert not np.shares_memory(first.values["x1"], second.values["x1"])
