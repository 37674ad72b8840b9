"""From the roles of a specification to axis numbers, and back. The only place that knows how ranks and layouts work."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from crossnorm.errors import SpecError


def integer(value: Any) -> int | None:
    """``value``, NumPy's for example, as a Python integer; None if it is none, as True is.

    >>> integer(3), integer(3.0), integer(True)
    (3, None, None)
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def normalize_axis(axis: int, rank: int, who: str) -> int:
    """``axis`` counted from the front; out of range is a ``SpecError`` in the name of ``who``.

    >>> normalize_axis(-1, 4, "BatchNormalization")
    3
    """
    number = integer(axis)
    if number is None:
        raise SpecError(f"{who}: axis={axis!r} is not an integer; give a number, or several")
    if not -rank <= number < rank:
        raise SpecError(f"{who}: axis={axis} is out of range for rank {rank}; choose one of {-rank}..{rank - 1}")
    return number % rank


def normalize_axes(axes: int | Iterable[int], rank: int, who: str) -> tuple[int, ...]:
    """The same for several axes: sorted, each at most once.

    >>> normalize_axes([-1, 1], 4, "LayerNormalization")
    (1, 3)
    """
    numbers: list[Any] = list(axes) if isinstance(axes, Iterable) and integer(axes) is None else [axes]
    if not numbers:
        raise SpecError(f"{who}: axis={axes!r} is empty; name at least one axis")
    normalized = sorted(normalize_axis(axis, rank, who) for axis in numbers)
    if len(set(normalized)) < len(normalized):
        raise SpecError(f"{who}: axis={axes!r} names one axis of rank {rank} twice; name each once")
    return tuple(normalized)


def other_axes(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """The axes that are not in ``axes``.

    >>> other_axes((1,), 4)
    (0, 2, 3)
    """
    return tuple(axis for axis in range(rank) if axis not in axes)
