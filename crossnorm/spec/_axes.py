"""From the roles of a specification to axis numbers, and back. The only place that knows how ranks and layouts work."""

from collections.abc import Iterable, Sequence

from crossnorm.errors import SpecError


def normalize_axis(axis: int, rank: int, who: str) -> int:
    """``axis`` counted from the front; out of range is a ``SpecError`` in the name of ``who``.

    >>> normalize_axis(-1, 4, "BatchNormalization")
    3
    """
    if not -rank <= axis < rank:
        raise SpecError(f"{who}: axis={axis} is out of range for rank {rank}; choose one of {-rank}..{rank - 1}")
    return axis % rank


def normalize_axes(axes: int | Iterable[int], rank: int, who: str) -> tuple[int, ...]:
    """The same for several axes: sorted, each at most once.

    >>> normalize_axes([-1, 1], 4, "LayerNormalization")
    (1, 3)
    """
    numbers = [axes] if isinstance(axes, int) else list(axes)
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
