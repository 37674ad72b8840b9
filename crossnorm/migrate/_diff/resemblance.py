"""In what two arrays that should be equal resemble each other: turned, flipped, in another order, never trained ..."""

from itertools import chain, combinations, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._parts import Part
from .._trace import state_names

Array = NDArray[Any]

_INITIAL = {"scale": 1.0, "offset": 0.0, "bias": 0.0}


def values_of(part: Part) -> dict[str, Array]:
    """The arrays of a part in float64; of two biases that are added, an LSTM's, the sum."""
    arrays = {name: np.asarray(array, np.float64) for name, array in part.arrays.items()}
    if part.kind == "lstm" and "recurrent_bias" in arrays:
        arrays["bias"] = arrays["bias"] + arrays["recurrent_bias"]
        arrays["recurrent_bias"] = np.zeros_like(arrays["bias"])
    return arrays


def swapped(one: dict[str, Array], other: dict[str, Array]) -> list[tuple[str, str]]:
    """The pairs of arrays that have changed places."""
    return [
        (x, y)
        for x, y in combinations(one, 2)
        if {x, y} <= other.keys() and _equal(one[x], other[y]) and _equal(one[y], other[x]) and not _equal(one[x], other[x])
    ]


def resemblance(part: Part, name: str, one: Array, other: Array, count: int) -> str:
    """How ``other`` differs from ``one``, in words that follow the array's name.

    Args:
        part: whose array ``other`` is.
        name: of the array.
        one, other: in the arrangement of the part, of one shape.
        count: how many values the layer averages for one channel.
    """
    if not np.isfinite(other).all() and np.isfinite(one).all():
        return f"holds {np.sum(~np.isfinite(other))} of {other.size} values that are not finite"
    if not other.any():
        return "is zero" if name not in state_names(part) else "is still at its initial value 0"
    initial = next((array.initial for array in getattr(part.settings, "state", ()) if array.name == name), _INITIAL.get(name))
    if initial is not None and (other == initial).all():
        return f"is still at its initial value {initial:g}"
    rows = [not _equal(x, y) for x, y in zip(one, other, strict=True)] if one.ndim else []
    if sum(rows) == 1 and len(rows) > 2:
        return f"differs in channel {rows.index(True)} only"
    if turned := _turned(one, other):
        return turned
    if blocks := _blocks(part, one, other):
        return blocks
    return _scaled(one, other, count) or "differs"


def _turned(one: Array, other: Array) -> str:
    """A kernel with its axes in another order or mirrored."""
    axes = range(one.ndim)
    positions = range(2, one.ndim)
    flips = chain.from_iterable(combinations(positions, number) for number in range(len(positions) + 1))
    for flip in flips:
        for order in permutations(axes):
            turned = np.flip(one, flip).transpose(order)
            if _equal(turned, other):
                words = [] if order == tuple(axes) else [f"transposed, its axes in the order {order}"]
                words += ["flipped"] if flip else []
                return f"is {' and '.join(words)}"
    return ""


def _blocks(part: Part, one: Array, other: Array) -> str:
    """Gates, heads, groups or rows in another order."""
    settings = part.settings
    numbers = {
        "gates": {"lstm": 4, "gru": 3}.get(part.kind, 0),
        "heads": getattr(settings, "heads", 0),
        "groups": getattr(settings, "groups", 0),
    }
    for axis in range(one.ndim):
        for what, number in {**numbers, "rows" if axis == 0 else "columns": one.shape[axis]}.items():
            if number < 2 or one.shape[axis] % number or other.shape != one.shape:
                continue
            blocks, others = (np.split(np.moveaxis(array, axis, 0), number) for array in (one, other))
            if (order := _order(blocks, others)) is not None:
                shown = f" {order}" if number <= 16 else ""
                return f"has its {what} in another order{shown}"
    return ""


def _order(blocks: list[Array], others: list[Array]) -> tuple[int, ...] | None:
    places = {block.tobytes(): number for number, block in enumerate(blocks)}
    order = tuple(places.get(block.tobytes(), -1) for block in others)
    return order if sorted(order) == list(range(len(blocks))) else None


def _scaled(one: Array, other: Array, count: int) -> str:
    if not one.all():
        return ""
    ratio = other / one
    middle = float(np.median(ratio))
    if not np.allclose(ratio, middle, rtol=1e-5, atol=0):
        return ""
    for words, factor in (("unbiased", count / (count - 1)), ("biased", 1 - 1 / count)) if count > 1 else ():
        if np.isclose(middle, factor, rtol=1e-6, atol=0):
            return f"is {words}: {middle:.6g} times the other, n = {count}"
    return "has the opposite sign" if middle == -1 else f"is {middle:.6g} times the other"


def _equal(one: Array, other: Array) -> bool:
    return bool(one.shape == other.shape and np.array_equal(one, other, equal_nan=True))
