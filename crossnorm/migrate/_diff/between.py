"""Whether two models do the same between two layers, and whether their first layers get the same."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm.rounding import VERDICT

from .._activations import known
from .._settings import Linear
from .._trace import Call, native
from .causes import Cause, off
from .glue import Glue, contrast, glue, shared
from .pairing import Pair

Array = NDArray[Any]

# How far back the layer is looked for whose output a layer takes.
_REACH = 4


def between(
    before: Sequence[Pair], taken: tuple[Array, Array], names: tuple[str, str], apart: bool
) -> tuple[str, Array, Array] | None:
    """What the models do differently before a layer: in words, and what the second model and the first make of the same.

    Args:
        before: the pairs that were called before, in order.
        taken: the inputs of the two layers.
        names: of the models.
        apart: whether the two layers give different things, so that what is known in one model only is no chance.
    """
    for pair in reversed(before[-_REACH:]):
        if not pair.single:
            continue
        one, other = (_from(call, inputs) for call, inputs in zip((pair.one[0], pair.other[0]), taken, strict=True))
        if not (one and other) and not (apart and (one or other) and _close(*(call.output for (call,) in pair))):
            continue
        if shared(one, other):
            return None
        mine, theirs = contrast(one, other)
        words = f"{mine} in {names[0]} and {theirs} in {names[1]}, behind {pair.one[0].part.name},"
        # The output before any activation: the first model's unless it has one inside its layer.
        raw = next((call for call in (pair.one[0], pair.other[0]) if activation_of(call) == "linear"), pair.one[0])
        return words, _made(other, raw, taken[1]), _made(one, raw, taken[0])
    return None


def _from(call: Call, taken: Array) -> list[Glue]:
    return glue(call.output, taken, activation_of(call))


def activation_of(call: Call) -> str:
    """The activation that a layer applies last; that of a recurrent one is inside of it."""
    return call.part.settings.activation if isinstance(call.part.settings, Linear) else "linear"


def _made(found: list[Glue], call: Call, taken: Array) -> Array:
    if not found or not known(found[0].activation):
        return taken
    # What the layer has already applied itself is not applied twice.
    return (found[0] if activation_of(call) == "linear" else found[0]._replace(activation=""))(call.output)


def turned(a: Call, b: Call, names: tuple[str, str], first: bool) -> str:
    """How the input of the second layer is that of the first one in another layout, or other units; empty where it is not."""
    x, y = a.inputs.get("input"), b.inputs.get("input")
    if x is None or y is None or x.ndim != y.ndim or x.dtype.kind != "f" or _close(x, y):
        return ""
    if x.shape == y.shape and x.ndim > 1 and _close(x[..., ::-1], y):
        return f"the channels come in the opposite order in {names[1]}"
    for order in list(permutations(range(x.ndim)))[1:]:
        if x.ndim > 2 and x.transpose(order).shape == y.shape and _close(x.transpose(order), y):
            if a.part.axis != b.part.axis and a.part.framework == b.part.framework:
                return f"channel axis {a.part.axis} against {b.part.axis}"
            letters = np.array(list("N" + "DHW"[5 - x.ndim :] + "C")) if x.ndim < 6 else np.arange(x.ndim).astype(str)
            got, wanted = (_layout(each, b) for each in (letters[list(order)], letters))
            return f"input is {got} against {wanted}: the layer of {names[1]} takes {wanted} and gets {got}"
    if first and x.shape == y.shape:
        factor = float(np.sum(x * y, dtype=np.float64) / np.sum(x * x, dtype=np.float64)) if x.any() else 0.0
        if factor and _close(x * factor, y):
            return f"the input is {factor:.6g} times that of {names[0]}"
    return ""


def _layout(letters: Array, call: Call) -> str:
    axes = native(np.zeros([2 + n for n in range(len(letters))]), call.part).shape
    return "".join(letters[size - 2] for size in axes)


def _close(x: Array, y: Array) -> bool:
    if x.shape != y.shape:
        return False
    return bool(np.max(np.abs(x - y), initial=0) <= 1e-5 * np.max(np.abs(y), initial=0))


def reordered(a: Call, b: Call) -> Array | None:
    """The order of the features of ``a`` in which ``b`` takes them behind a flattened image; None where it is the same."""
    x, y = a.inputs.get("input"), b.inputs.get("input")
    if x is None or y is None or x.ndim != 2 or x.shape != y.shape or x.dtype.kind != "f" or _close(x, y):
        return None
    features = x.shape[1]
    divisors = [size for size in range(2, features // 2 + 1) if features % size == 0]
    orders = [np.arange(features).reshape(-1, size).T.ravel() for size in divisors]
    weights = [call.part.arrays.get("weight", np.zeros(0)) for call in (a, b)]
    # Where something before differs already, the weights tell.
    fitting = [order for order in orders if _close(x[:, order], y)] or [
        order
        for order in orders
        if weights[0].shape == weights[1].shape == (*weights[0].shape[:1], features)
        and np.array_equal(weights[0][:, order], weights[1])
    ]
    return fitting[0] if fitting else None


def padded(a: Call, b: Call) -> Array | None:
    """The input of ``a`` as ``b`` takes it, where one of two convolutions leaves padding to a layer before it; else None."""
    x, y = a.inputs.get("input"), b.inputs.get("input")
    one, other = a.part.settings, b.part.settings
    if not (isinstance(one, Linear) and isinstance(other, Linear) and one.kind == other.kind == "convolution"):
        return None
    if x is None or y is None or x.ndim != y.ndim or x.shape == y.shape:
        return None
    amounts = zip(_amounts(one, x.shape[1:-1]), _amounts(other, y.shape[1:-1]), strict=True)
    widths = [(0, 0), *((mine[0] - theirs[0], mine[1] - theirs[1]) for mine, theirs in amounts), (0, 0)]
    if y.shape != tuple(size + before + after for size, (before, after) in zip(x.shape, widths, strict=True)):
        return None
    outer = np.pad(x, [(max(before, 0), max(after, 0)) for before, after in widths])
    cut = tuple(
        slice(max(-before, 0), size - max(-after, 0)) for size, (before, after) in zip(outer.shape, widths, strict=True)
    )
    inner = outer[cut]
    # What is cut off must have been padding.
    return inner if np.count_nonzero(inner) == np.count_nonzero(x) else None


def _amounts(settings: Linear, sizes: Sequence[int]) -> Sequence[tuple[int, int]]:
    """How much a convolution adds before and after; for "same" that depends on the size of the image."""
    if not isinstance(settings.padding, str):
        return settings.padding
    found = []
    for size, kernel, stride, dilation in zip(sizes, settings.shape[2:], settings.stride, settings.dilation, strict=True):
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        found.append((total // 2, total - total // 2))
    return found


def confirmed(words: str, wrong: Mapping[str, Array], right: Array, unit: Array) -> list[Cause]:
    """The cause with its share; ``wrong`` holds what the layer gave on ``"before"`` and on ``"after"`` the substitution."""
    before, after = (off(right, wrong[name], unit) for name in ("before", "after"))
    if before <= VERDICT:
        return []
    size = float(np.max(np.abs(wrong["before"] - right), initial=0)) if wrong["before"].shape == right.shape else np.inf
    share = 1 if after <= VERDICT else max(0, 1 - after / before) if np.isfinite(before) else 0
    return [Cause(words, share, size)]
