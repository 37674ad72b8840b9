"""Third parties in a child process: whatever they do, the run goes on, and what they did is an answer that fails."""

import os
import signal
from dataclasses import replace

import pytest

from crossnorm_conformance import compare, implementations
from crossnorm_conformance.cases import cases_of, faults_of
from crossnorm_conformance.compare import FAIL, PASS, check_quantities
from crossnorm_conformance.errors import check_misuse
from crossnorm_conformance.implementations import SuiteError, load
from crossnorm_conformance.process import Limits

CASE = next(case for case in cases_of("rms_norm") if case.mode == "inference" and case.dtype == "float32")

# The variant of a case says what the implementation does with it.
THIRD_PARTY = """
import os, signal, sys, time
import numpy as np
from crossnorm_conformance.implementations import Result
from tests.conformance.exact import Exact

class Foreign(np.ndarray):
    def __reduce__(self):
        return eval, ("1 / 0",)

def raises(arrays, results):
    raise ZeroDivisionError("one\\ntwo")

def changes_its_input(arrays, results):
    arrays.values["x1"][...] = 0
    return results

def with_results(change):
    return lambda arrays, results: {key: change(r.values, r.dtype) for key, r in results.items()}

DEEDS = {
    "hangs": lambda arrays, results: time.sleep(600),
    "exits": lambda arrays, results: os._exit(3),
    "crashes": lambda arrays, results: os.kill(os.getpid(), signal.SIGSEGV),
    "leaves": lambda arrays, results: sys.exit("bye"),
    "raises": raises,
    "changes_its_input": changes_its_input,
    "nothing": lambda arrays, results: None,
    "a_list": lambda arrays, results: list(results.items()),
    "numbers": lambda arrays, results: dict.fromkeys(results, 1.0),
    "lists": with_results(lambda values, dtype: Result(values.tolist(), dtype)),
    "unpicklable": lambda arrays, results: {lambda: 0: result for result in results.values()},
    "foreign": with_results(lambda values, dtype: Result(values.view(Foreign), dtype)),
    "forgets": lambda arrays, results: {},
    "transposes": with_results(lambda values, dtype: Result(values[None], dtype)),
    "nan": with_results(lambda values, dtype: Result(values * np.nan, dtype)),
    "prints": lambda arrays, results: print("NOISE", flush=True) or os.write(1, b"NOISE") and results,
}

class Hostile(Exact):
    name = "hostile"
    def run(self, case, arrays, execution, device):
        results = super().run(case, arrays, execution, device)
        return DEEDS.get(case.variant, lambda arrays, results: results)(arrays, results)
    def inexpressible(self, fault):
        return ""
    def misuse(self, fault):
        return 3

class Unsure(Exact):
    name = "unsure"
    def unsupported(self, case, device):
        raise ZeroDivisionError("who knows")

class Unasked(Exact):
    name = "unasked"
    def unsupported(self, case, device):
        return None

class Mute(Exact):
    name = "mute"
    def methods(self):
        return None

class Indescribable(Exact):
    name = "indescribable"
    def versions(self):
        raise ZeroDivisionError("no idea")

HOSTILE, UNSURE, UNASKED, MUTE, INDESCRIBABLE = Hostile(), Unsure(), Unasked(), Mute(), Indescribable()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where third parties lie. Their processes end with the test."""
    (tmp_path / "third_party.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(implementations, "_third_parties", {})
    forget()
    yield tmp_path
    for implementation in implementations._third_parties.values():
        if implementation._process is not None:
            implementation._process.kill()
    forget()


def forget():
    implementations.load.cache_clear()
    compare.outcome.cache_clear()


def checks_of(implementation, deed, number=0):
    case = replace(CASE, variant=deed, executions=("eager", str(number)))
    checks = check_quantities("outputs", implementation, case, "eager", "cpu", 0)
    assert checks
    return checks


def verdicts(checks):
    return {(check.verdict, check.reason) for check in checks}


def test_the_exact_answer_passes(place):
    implementation = load("third_party:HOSTILE")
    assert (implementation.name, implementation.framework, implementation.native) == ("hostile", "numpy", None)
    assert implementation._process.pid != os.getpid()
    assert verdicts(checks_of(implementation, "nothing_special")) == {(PASS, "")}


def test_what_comes_back_is_judged(place):
    """One process answers all of it, and is sound afterwards."""
    implementation = load("third_party:HOSTILE")
    process = implementation._process.pid
    reasons = {
        "raises": "raised ZeroDivisionError: one two",
        "leaves": "raised SystemExit: bye",
        "changes_its_input": "changed its input",
        "nothing": "gave something else than a dictionary of Results with NumPy arrays",
        "a_list": "gave something else than a dictionary",
        "numbers": "gave something else than a dictionary",
        "lists": "gave something else than a dictionary",
        "unpicklable": "gave an answer that cannot be sent",
        "forgets": "gave no value",
        "transposes": "but should be",
        "nan": "units at",
    }
    for deed, reason in reasons.items():
        for check in checks_of(implementation, deed):
            assert check.verdict == FAIL, deed
            assert reason in check.reason, deed
    assert verdicts(checks_of(implementation, "nothing_special")) == {(PASS, "")}
    assert implementation._process.pid == process


def test_an_answer_runs_no_code_of_its_own_in_the_parent(place):
    """An array of a class of theirs, whose pickle does something when it is opened, is an array like any other."""
    assert verdicts(checks_of(load("third_party:HOSTILE"), "foreign")) == {(PASS, "")}


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("exits", "its process ended (with exit status 3)"),
        ("crashes", f"its process ended (by signal {signal.SIGSEGV:d}, Segmentation fault)"),
    ],
)
def test_one_that_dies_is_started_again(place, deed, reason):
    implementation = load("third_party:HOSTILE")
    assert verdicts(checks_of(implementation, deed)) == {(FAIL, reason)}
    assert verdicts(checks_of(implementation, "nothing_special")) == {(PASS, "")}


def test_one_that_does_not_start_again_is_an_answer(place):
    implementation = load("third_party:HOSTILE")
    (place / "third_party.py").write_text("raise ImportError('used up')")
    checks_of(implementation, "exits")
    for check in checks_of(implementation, "nothing_special"):
        assert check.verdict == FAIL
        assert "did not start again" in check.reason
        assert "used up" in check.reason


def test_one_that_hangs_is_stopped_and_after_three_times_left_alone(place, monkeypatch):
    implementation = load("third_party:HOSTILE")
    hung = implementation._process
    monkeypatch.setattr(Limits, "seconds", 0.5)
    for number in range(3):
        assert verdicts(checks_of(implementation, "hangs", number)) == {
            (FAIL, "gave no answer within 0.5 s; its process was stopped")
        }
        assert not hung.is_alive()
    for check in checks_of(implementation, "nothing_special"):
        assert check.verdict == FAIL
        assert check.reason.startswith("was not run: 3 runs in a row")


def test_an_answer_between_two_silences_brings_the_patience_back(place, monkeypatch):
    implementation = load("third_party:HOSTILE")
    for number in range(2):
        checks_of(implementation, "exits", number)
    assert verdicts(checks_of(implementation, "nothing_special")) == {(PASS, "")}
    assert verdicts(checks_of(implementation, "exits", 2)) == {(FAIL, "its process ended (with exit status 3)")}
    assert verdicts(checks_of(implementation, "nothing_special", 1)) == {(PASS, "")}


def test_what_it_prints_is_not_on_standard_output(place, capfd):
    assert verdicts(checks_of(load("third_party:HOSTILE"), "prints")) == {(PASS, "")}
    output = capfd.readouterr()
    assert "NOISE" not in output.out
    assert output.err.count("NOISE") == 2


def test_one_that_cannot_say_whether_it_can_has_not_passed(place):
    for check in checks_of(load("third_party:UNSURE"), "nothing_special"):
        assert check.verdict == FAIL
        assert "unsupported() raised ZeroDivisionError: who knows" in check.reason


def test_no_reason_against_a_case_may_be_none(place):
    assert verdicts(checks_of(load("third_party:UNASKED"), "nothing_special")) == {(PASS, "")}


def test_nonsense_about_bad_input_fails(place):
    checks = check_misuse(faults_of("rms_norm")[0], load("third_party:HOSTILE"))
    assert {check.verdict for check in checks} == {FAIL}


@pytest.mark.parametrize(
    ("text", "object", "message"),
    [
        ("import no_such_package", "X", "cannot be loaded (No module named 'no_such_package')"),
        ("raise SystemExit('configure me first')", "X", "cannot be loaded (configure me first)"),
        ("raise SystemExit", "X", "cannot be loaded (SystemExit)"),
        ("import os; os._exit(0)", "X", "cannot be loaded: its process ended while it was imported"),
        ("Y = 1", "X", "cannot be loaded (module 'import_me' has no attribute 'X')"),
        ("X = 1", "X", "is no implementation (it lacks"),
        ("from tests.conformance.exact import Exact as X", "X", "is no implementation (a class)"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(place, text, object, message):
    (place / "import_me.py").write_text(text)
    with pytest.raises(SuiteError) as caught:
        load(f"import_me:{object}")
    assert message in str(caught.value)
    assert f"'import_me:{object}'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("object", ["MUTE", "INDESCRIBABLE"])
def test_one_that_cannot_say_what_it_is_is_one_sentence(place, object):
    with pytest.raises(SuiteError, match=f"'third_party:{object}' cannot say what it is"):
        load(f"third_party:{object}")


def test_an_unknown_module_is_one_sentence(place):
    with pytest.raises(SuiteError, match=r"'no\.such\.module:thing' cannot be loaded"):
        load("no.such.module:thing")
