"""Axis numbers: counted from the front, refused in the name of the caller."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossnorm import SpecError
from crossnorm.spec._axes import normalize_axes, normalize_axis, other_axes


@given(st.integers(1, 6).flatmap(lambda rank: st.tuples(st.just(rank), st.sets(st.integers(0, rank - 1), min_size=1))))
def test_axes_counted_from_either_end_are_the_same(rank_and_axes):
    rank, axes = rank_and_axes
    assert normalize_axes(sorted(axes), rank, "x") == tuple(sorted(axes))
    assert normalize_axes([axis - rank for axis in axes], rank, "x") == tuple(sorted(axes))
    assert sorted(axes | set(other_axes(sorted(axes), rank))) == list(range(rank))
    assert not axes & set(other_axes(sorted(axes), rank))


def test_one_axis_is_a_tuple_of_one():
    assert normalize_axes(-1, 3, "x") == (2,)


@pytest.mark.parametrize("axis", [3, -4])
def test_out_of_range(axis):
    with pytest.raises(SpecError, match=f"^Layer: axis={axis} is out of range for rank 3; choose one of -3..2"):
        normalize_axis(axis, 3, "Layer")


def test_empty_or_repeated():
    with pytest.raises(SpecError, match=r"^Layer: axis=\[\] is empty; name at least one axis"):
        normalize_axes([], 3, "Layer")
    with pytest.raises(SpecError, match=r"^Layer: axis=\(1, -2\) names one axis of rank 3 twice; name each once"):
        normalize_axes((1, -2), 3, "Layer")
