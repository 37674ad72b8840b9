"""Activation functions in NumPy, by names that no framework owns."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Function = Callable[[Array], Array]


def known(activation: str) -> bool:
    """Whether it can be computed here; a layer may apply another one itself."""
    return activation in ACTIVATIONS or activation.startswith(LEAKY)


def computing(activation: str) -> Function:
    """What computes it."""
    if activation in ACTIVATIONS:
        return ACTIVATIONS[activation]
    return leaky(float(activation.removeprefix(LEAKY)))


def _softmax(axis: int) -> Function:
    def softmax(x: Array) -> Array:
        if axis >= x.ndim - 1:
            return np.full(x.shape, np.nan)
        e = np.exp(x - x.max(axis, keepdims=True))
        return np.asarray(e / e.sum(axis, keepdims=True))

    return softmax


def _sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def _erf(x: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


def leaky(slope: float) -> Function:
    """The leaky rectifier of any slope."""
    return lambda x: np.where(x < 0, slope * x, x)


def _elu(x: Array) -> Array:
    return np.where(x < 0, np.expm1(np.minimum(x, 0)), x)


ACTIVATIONS: dict[str, Function] = {
    "": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu of slope 0.01": leaky(0.01),
    "leaky_relu of slope 0.2": leaky(0.2),
    "leaky_relu of slope 0.3": leaky(0.3),
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
    "softmax": _softmax(-1),
    "softmax over the batch": _softmax(0),
    "softmax over the steps": _softmax(1),
}
LEAKY = "leaky_relu of slope "
