"""What lies between two layers that hold no arrays: an activation, a pooling, a factor; found by trying."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[[Array], Array]


class Glue(NamedTuple):
    """How an input was made from an earlier output."""

    activation: str
    shape: str
    factor: float

    def __call__(self, output: Array) -> Array:
        return _SHAPES[self.shape](ACTIVATIONS[self.activation](output.astype(np.float64))) * self.factor


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def _erf(x: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def _leaky(slope: float) -> Function:
    return lambda x: np.where(x < 0, slope * x, x)


def _elu(x: Array) -> Array:
    return np.where(x < 0, np.expm1(np.minimum(x, 0)), x)


ACTIVATIONS: dict[str, Function] = {
    "": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu of slope 0.01": _leaky(0.01),
    "leaky_relu of slope 0.2": _leaky(0.2),
    "leaky_relu of slope 0.3": _leaky(0.3),
    "elu": _elu,
    "selu": lambda x: 1.0507009873554805 * np.where(x < 0, 1.6732632423543772 * _elu(x), x),
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "approximate gelu": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x * _sigmoid(x),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "sigmoid": _sigmoid,
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(0, x),
    "softmax": _softmax,
}
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
# The weights behind it have the same order.
_FLATTENED = "a flattening"


def glue(output: Array, taken: Array, activation: str = "linear") -> Glue | None:
    """What makes ``taken``, the input of a layer, from ``output`` of an earlier one, or None if it is nothing known.

    ``activation`` is what the earlier layer has already applied itself; it counts.
    """
    if output.dtype.kind != "f" or taken.dtype.kind != "f":
        return None
    own = _NAMES.get(activation, activation)
    for shape, shaped in _SHAPES.items():
        if (shape != "" and output.ndim < 3) or (not shape and output.shape != taken.shape):
            continue
        for name, function in ACTIVATIONS.items():
            if own and name:
                continue
            with np.errstate(all="ignore"):
                made = shaped(function(output.astype(np.float64)))
            if made.shape != taken.shape:
                break
            factor = _factor(made, taken, name == "" and shape == "")
            if factor is not None:
                return Glue(name or own, shape, factor)
    return None


def _factor(made: Array, taken: Array, scaled: bool) -> float | None:
    """By what ``taken`` is a multiple of ``made``: 1, or another number if it may be ``scaled``; None if it is not."""
    size = float(np.abs(taken).max(initial=0))
    if not math.isfinite(size) or size == 0:
        return None
    # Rounding of the activation in the dtype of the model, half precision at the coarsest.
    tolerance = 2e-5 * size
    if np.abs(made - taken).max() <= tolerance:
        return 1.0
    norm = float(np.sum(made * made))
    factor = float(np.sum(made * taken)) / norm if scaled and norm else 0.0
    return factor if factor and np.abs(made * factor - taken).max() <= tolerance else None


def same(one: Glue, other: Glue) -> bool:
    """Whether two models do the same there; in which order an image is flattened is a matter of the weights behind it."""
    shapes = [_FLATTENED if glue.shape.startswith(_FLATTENED) else glue.shape for glue in (one, other)]
    return (
        one.activation == other.activation and shapes[0] == shapes[1] and math.isclose(one.factor, other.factor, rel_tol=1e-4)
    )


def contrast(one: Glue, other: Glue) -> tuple[str, str]:
    """In what two of them differ, in words."""
    words: list[list[str]] = [[], []]
    for each, found in zip((one, other), words, strict=True):
        if one.activation != other.activation:
            found.append(each.activation or "no activation")
        if one.shape != other.shape:
            found.append(each.shape or "nothing else")
        if one.factor != other.factor:
            found.append(f"a factor of {each.factor:.6g}")
    return " and ".join(words[0]), " and ".join(words[1])
