"""Weight normalization, from Salimans and Kingma 2016, arXiv:1602.07868, equations (2), (3), (5) and (6)."""

from collections.abc import Mapping

import numpy as np

from crossnorm.spec import Mode, WeightNormSpec

from ._base import Array, Forward, Quantity, as_matrix, average, floored_square, like_weight, sum_of_terms, sum_over, varies


def forward(spec: WeightNormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode) -> Forward:
    """The effective weight of the raw weight ``x`` of shape (rows, *rest); there is no state and the mode does not matter."""
    w = as_matrix(spec, x)
    denominator, _ = _denominator(spec, w)
    y = _scale(spec, w, parameters) * w / denominator
    return Forward(like_weight(spec, y, np.abs(y), _axes(spec)))


def backward(
    spec: WeightNormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """Gradients of the raw weight ``x`` and of the scale, given the gradient ``upstream`` of the effective weight."""
    w, sent = as_matrix(spec, x), as_matrix(spec, upstream)
    denominator, follows = _denominator(spec, w)
    direction = w / denominator
    g = _scale(spec, w, parameters) * sent
    projection = direction * sum_over(g * direction, _axes(spec), keepdims=True) * follows
    dx, magnitude = (g - projection) / denominator, (np.abs(g) + np.abs(projection)) / denominator
    gradients = {"x": like_weight(spec, dx, magnitude, _axes(spec))}
    if spec.scale:
        gradients["scale"] = sum_of_terms(sent * direction, _axes(spec), spec.parameter_shape)
    return gradients


def initialize(outputs: Array) -> tuple[Array, Array]:
    """Scale and bias from a layer's outputs of shape (batch, rows, *positions) with a scale of 1 and no bias.

    Equations (5) and (6): with them the outputs of this batch have mean 0 and deviation 1 in each row.

    >>> scale, bias = initialize(np.array([[1.0], [5.0]]))
    >>> scale, bias
    (array([0.5]), array([-1.5]))
    """
    axes = (0, *range(2, outputs.ndim))
    mean = average(outputs, axes)
    deviation = np.where(varies(outputs, axes), np.sqrt(average((outputs - mean) ** 2, axes)), 1)
    return (1 / deviation).ravel(), (-mean / deviation).ravel()


def _axes(spec: WeightNormSpec) -> tuple[int, ...]:
    return (1,) if spec.norm_over == "row" else (0, 1)


def _scale(spec: WeightNormSpec, w: Array, parameters: Mapping[str, Array]) -> Array:
    return parameters["scale"].reshape(-1, 1) if spec.scale else np.ones((1, 1), w.dtype)


def _denominator(spec: WeightNormSpec, w: Array) -> tuple[Array, Array]:
    """The denominator, and where it follows the norm; a norm of 0 counts as 1."""
    nonzero = (w.real != 0).any(axis=_axes(spec), keepdims=True)
    square = np.where(nonzero, sum_over(w**2, _axes(spec), keepdims=True), 1)
    floored, follows = floored_square(spec, square)
    return np.sqrt(floored), follows
