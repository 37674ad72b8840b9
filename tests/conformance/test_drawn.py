"""Cases beyond the listed ones: they find a bug that no listed case shows, make it small, and accuse no sound layer."""

import json
from math import prod

import pytest

from crossnorm_conformance import compare
from crossnorm_conformance.case import Case, draw
from crossnorm_conformance.cases import cases_of
from crossnorm_conformance.compare import FAIL, PASS
from crossnorm_conformance.drawn import check_drawn
from crossnorm_conformance.implementations import Result
from tests.conformance.exact import Exact

METHODS = ("batch_norm", "group_norm", "filter_response_norm", "weight_norm")
EXAMPLES = 15


class WrongOnLargeSizes(Exact):
    """Off by one part in a hundred where the second size is 5 or more, in training."""

    name = "wrong-on-large-sizes"

    def run(self, case, arrays, execution, device):
        results = super().run(case, arrays, execution, device)
        if case.mode == "train" and case.shape[1] >= 5:
            results[1, "y"] = Result(results[1, "y"].values * results[1, "y"].values.dtype.type(1.01), results[1, "y"].dtype)
        return results


@pytest.fixture
def drawn(monkeypatch):
    """Draws cases for an object that has no place where it could be loaded from."""

    def run(method, implementation, seed=0, examples=EXAMPLES):
        monkeypatch.setattr(compare, "load", lambda name: implementation)
        compare.outcome.cache_clear()
        implementation.seed = seed
        return check_drawn(method, implementation, "cpu", seed, examples)

    yield run
    compare.outcome.cache_clear()


@pytest.mark.parametrize("method", METHODS)
def test_the_sound_one_is_never_accused(drawn, method):
    checks, cases = drawn(method, Exact())
    assert {check.verdict for check in checks} == {PASS}
    assert len(cases) > EXAMPLES // 2
    assert {check.case for check in checks} == {case.id for case in cases}
    assert {case.id for case in cases}.isdisjoint(case.id for case in cases_of(method))


@pytest.mark.parametrize("method", METHODS)
def test_a_drawn_case_can_be_made_again(drawn, method):
    """The report holds it as JSON, since it is in no list."""
    for case in drawn(method, Exact())[1]:
        again = Case.from_dict(json.loads(json.dumps(case.to_dict())))
        assert (again, again.id) == (case, case.id)
        first, second = draw(case, 0), draw(again, 0)
        assert {name: value.tobytes() for name, value in first.values.items()} == {
            name: value.tobytes() for name, value in second.values.items()
        }


def test_cases_differ_in_what_matters(drawn):
    cases = drawn("batch_norm", Exact(), examples=40)[1]
    for axis in ("dtype", "regime", "mode", "layout", "shape"):
        assert len({getattr(case, axis) for case in cases}) > 1, axis
    assert any(case.data for case in cases)


def test_the_seed_decides_which_cases(drawn):
    first, again, other = (drawn("rms_norm", Exact(), seed)[1] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_bug_is_found_and_made_small(drawn):
    checks, cases = drawn("rms_norm", WrongOnLargeSizes(), examples=60)
    failed = {check.case for check in checks if check.verdict == FAIL}
    (smallest,) = (case for case in cases if case.id in failed)
    assert smallest.mode == "train"
    assert smallest.shape[1] == 5
    assert prod(smallest.shape) <= 10  # one value is alone with its sign
    assert {check.quantity for check in checks if check.verdict == FAIL} == {"y"}
