"""What lies between two layers that hold no arrays: an activation, a pooling, a factor; found by trying."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._activations import ACTIVATIONS, LEAKY, Function, computing, leaky

Array = NDArray[Any]


class Glue(NamedTuple):
    """How an input was made from an earlier output."""

    activation: str
    shape: str
    factor: float

    def __call__(self, output: Array) -> Array:
        return _SHAPES[self.shape](computing(self.activation)(output.astype(np.float64))) * self.factor


# What Keras' settings call them, where that is another name.
_NAMES = {"linear": "", "leaky_relu": "leaky_relu of slope 0.2", "swish": "silu"}


def _pooled(average: bool) -> Function:
    def pool(x: Array) -> Array:
        sizes = [size // 2 for size in x.shape[1:-1]]
        cut = x[(slice(None), *(slice(2 * size) for size in sizes))]
        windows = cut.reshape(x.shape[0], *(n for size in sizes for n in (size, 2)), x.shape[-1])
        axes = tuple(range(2, windows.ndim - 1, 2))
        return windows.mean(axes) if average else windows.max(axes, initial=-np.inf)

    return pool


def _over_positions(reduce: Any) -> Function:
    return lambda x: reduce(x, axis=tuple(range(1, x.ndim - 1)))


_SHAPES: dict[str, Function] = {
    "": lambda x: x,
    "a flattening, positions first": lambda x: x.reshape(len(x), -1),
    "a flattening, channels first": lambda x: np.moveaxis(x, -1, 1).reshape(len(x), -1),
    "the average of all positions": _over_positions(np.mean),
    "the maximum of all positions": _over_positions(np.max),
    "average pooling": _pooled(True),
    "maximum pooling": _pooled(False),
    "the last step": lambda x: x[:, -1],
}
# As many values do not agree by accident.
_ENOUGH = 16
# The weights behind it have the same order.
_FLATTENED = "a flattening"


def glue(output: Array, taken: Array, activation: str = "linear") -> list[Glue]:
    """All that makes ``taken``, the input of a layer, from ``output`` of an earlier one; empty if it is nothing known.

    ``activation`` is what the earlier layer has already applied itself; it counts.
    """
    if output.dtype.kind != "f" or taken.dtype.kind != "f" or not taken.size:
        return []
    output, own = output.astype(np.float64), _NAMES.get(activation, activation)
    made: dict[tuple[str, str], Array] = {}
    for shape, shaped in _SHAPES.items():
        if (shape != "" and output.ndim < 3) or (not shape and output.shape != taken.shape):
            continue
        for name, function in ACTIVATIONS.items():
            if own and name:
                continue
            with np.errstate(all="ignore"):
                values = shaped(function(output))
            if values.shape != taken.shape:
                break
            made[name or own, shape] = values
    exact = [Glue(*key, 1.0) for key, values in made.items() if _fits(values, taken)]
    return exact or _leaking(output, taken, own) or _multiples(made, taken)


def _fits(made: Array, taken: Array) -> bool:
    size = float(np.abs(taken).max())
    # Rounding of the activation in the dtype of the model.
    return math.isfinite(size) and size > 0 and bool(np.abs(made - taken).max() <= 2e-5 * size)


def _leaking(output: Array, taken: Array, own: str) -> list[Glue]:
    """A leaky_relu of any slope."""
    if own or output.shape != taken.shape or np.sum(output < 0) < _ENOUGH:
        return []
    slope = _ratio(output[output < 0], taken[output < 0])
    return [Glue(f"{LEAKY}{slope:.6g}", "", 1.0)] if 0 < slope < 1 and _fits(leaky(slope)(output), taken) else []


def _multiples(made: dict[tuple[str, str], Array], taken: Array) -> list[Glue]:
    if taken.size < _ENOUGH:
        return []
    factors = {key: _ratio(values, taken) for key, values in made.items()}
    return [Glue(*key, factor) for key, factor in factors.items() if factor and _fits(made[key] * factor, taken)]


def _ratio(made: Array, taken: Array) -> float:
    with np.errstate(all="ignore"):
        ratio = float(np.sum(made * taken)) / float(np.sum(made * made)) if made.any() else 0.0
    return ratio if math.isfinite(ratio) else 0.0


def shared(one: list[Glue], other: list[Glue]) -> bool:
    """Whether two models may do the same there: relu and relu6 are one where nothing is above 6."""
    return any(_same(x, y) for x in one for y in other)


def _same(one: Glue, other: Glue) -> bool:
    # In which order an image is flattened is a matter of the weights behind it.
    shapes = [_FLATTENED if glue.shape.startswith(_FLATTENED) else glue.shape for glue in (one, other)]
    return (
        one.activation == other.activation and shapes[0] == shapes[1] and math.isclose(one.factor, other.factor, rel_tol=1e-4)
    )


def contrast(one: list[Glue], other: list[Glue]) -> tuple[str, str]:
    """In what two models differ there, in words; what is not known is "something else"."""
    if not one or not other:
        return tuple(_described(each) for each in (one, other))  # type: ignore[return-value]
    words: list[list[str]] = [[], []]
    for each, found in zip((one, other), words, strict=True):
        if one[0].activation != other[0].activation:
            found.append(each[0].activation or "no activation")
        if one[0].shape != other[0].shape:
            found.append(each[0].shape or "nothing else")
        if one[0].factor != other[0].factor:
            found.append(_multiple(each[0]))
    return " and ".join(words[0]), " and ".join(words[1])


def _described(found: list[Glue]) -> str:
    if not found:
        return "something else"
    # The plainest of what the data cannot tell apart.
    words = [found[0].activation, found[0].shape, _multiple(found[0]) if found[0].factor != 1 else ""]
    return " and ".join(filter(None, words)) or "no operation"


def _multiple(found: Glue) -> str:
    return "no factor" if found.factor == 1 else f"a factor of {found.factor:.6g}"
