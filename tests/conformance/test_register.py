"""Registers: what one says wrongly is one sentence, an entry cannot outlive its deviation, and a third party brings its own."""

import pytest

from crossnorm_conformance import register
from crossnorm_conformance.cases import cases_of, faults_of
from crossnorm_conformance.compare import FAIL, KNOWN, PASS, UNSUPPORTED, Check
from crossnorm_conformance.implementations import SuiteError
from crossnorm_conformance.register import judge, read, stale

GOOD = '[[deviation]]\ncases = ["rms_norm-*"]\nreason = "it rounds"\nlink = "https://example.org"\n'
CASES = cases_of("rms_norm")
WHOLE = {row.id for row in (*CASES, *faults_of("rms_norm"))}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a register of ``theirs`` and reads it; it is forgotten after the test."""
    monkeypatch.setattr(register, "_given", {})

    def write(text):
        path = tmp_path / "theirs.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        read(path)

    return write


def check_of(case=CASES[0].id, verdict=FAIL, implementation="theirs", **more):
    labels = {"question": "outputs", "method": "rms_norm", "execution": "eager", "device": "cpu", "quantity": "y", "step": 1}
    return Check(**labels | {"case": case, "verdict": verdict, "implementation": implementation, "units": 99.0} | more)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + 'quantites = ["y"]\n', "unknown word quantites in an entry; the words are cases, devices, executions, link,"),
        (GOOD.replace("reason", "why"), "unknown word why"),
        (GOOD.replace('reason = "it rounds"\n', ""), "an entry lacks reason"),
        (GOOD.replace('cases = ["rms_norm-*"]\n', ""), "an entry lacks cases"),
        (GOOD.replace('["rms_norm-*"]', '"rms_norm-*"'), "cases = 'rms_norm-*' is no list of globs"),
        (GOOD.replace('["rms_norm-*"]', "[]"), "cases = [] is no list of globs"),
        (GOOD + "quantities = [1]\n", "quantities = [1] is no list of globs"),
        (GOOD + 'raises = "yes"\n', "raises = 'yes' is neither true nor false"),
        (GOOD.replace("[[deviation]]", "[[deviations]]"), "unknown table deviations"),
        (GOOD.replace("[[deviation]]", "[[deviation]"), "is no TOML"),
        (b"\xff\xfe", "is no TOML"),
    ],
)
def test_what_a_register_says_wrongly_is_one_sentence(written, text, message):
    with pytest.raises(SuiteError) as caught:
        written(text)
    assert str(caught.value).startswith("theirs.toml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["deviation = 3", "deviation = [3]", GOOD.replace('"it rounds"', "3")])
def test_values_of_another_type_are_one_sentence(written, text):
    with pytest.raises(SuiteError, match=r"^theirs\.toml: "):
        written(text)


def test_a_third_partys_register_excuses_what_it_covers_and_nothing_else(written):
    assert judge(check_of()).verdict == FAIL
    written(GOOD + 'quantities = ["y"]\nexecutions = ["eager"]\ndevices = ["cpu"]\nquestions = ["outputs"]\n')
    known = judge(check_of())
    assert (known.verdict, known.reason, known.units) == (KNOWN, "it rounds (https://example.org)", 99.0)
    others = ({"quantity": "dx"}, {"execution": "compile"}, {"device": "cuda"}, {"question": "gradients"}, {"case": "other"})
    for other in (*others, {"implementation": "others"}):
        assert judge(check_of(**other)).verdict == FAIL
    assert judge(check_of(verdict=PASS)).verdict == PASS
    assert judge(check_of(verdict=UNSUPPORTED)).verdict == UNSUPPORTED


def test_what_has_no_size_is_excused_only_where_the_entry_says_so(written):
    written(GOOD)
    assert judge(check_of(units=None, reason="raised ValueError: boom")).verdict == FAIL
    assert judge(check_of(units=None, question="errors")).verdict == KNOWN
    written(GOOD + "raises = true\n")
    assert judge(check_of(units=None, reason="raised ValueError: boom")).verdict == KNOWN


def test_an_agreement_is_excused_where_either_is_registered(written):
    written(GOOD)
    for names in ("theirs = others", "others = theirs"):
        assert judge(check_of(implementation=names, question="agreement")).verdict == KNOWN
    assert judge(check_of(implementation="others = more", question="agreement")).verdict == FAIL


def test_an_entry_that_no_failing_check_bears_out_is_stale(written):
    written(GOOD)
    passed = [check_of(case=id, verdict=PASS) for id in WHOLE]
    (complaint,) = stale(["theirs"], passed, WHOLE)
    assert "'rms_norm-*' (it rounds) matches no failing check any more" in complaint
    assert stale(["theirs"], [judge(check_of()), *passed], WHOLE) == []
    assert stale(["others"], passed, WHOLE) == []


def test_an_entry_is_judged_only_where_all_that_it_could_match_has_been_compared(written):
    written(GOOD)
    assert stale(["theirs"], [check_of(case=id, verdict=PASS) for id in sorted(WHOLE)[1:]], WHOLE) == []
    assert stale(["theirs"], [check_of(case=id, verdict=UNSUPPORTED) for id in WHOLE], WHOLE) == []
    written(GOOD + 'devices = ["cuda"]\n')
    assert stale(["theirs"], [check_of(case=id, verdict=PASS) for id in WHOLE], WHOLE) == []


def test_a_glob_that_matches_no_case_is_stale_at_once(written):
    written(GOOD.replace("rms_norm-*", "rms_nrom-*"))
    (complaint,) = stale(["theirs"], [], WHOLE)
    assert "'rms_nrom-*' matches no case" in complaint
