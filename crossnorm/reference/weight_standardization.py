"""Weight standardization, from Qiao, Wang, Liu, Shen and Yuille 2019, arXiv:1903.10520, equations (2) and (3); scaled as in
Brock, De and Smith 2021, arXiv:2101.08692, equation (1)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crossnorm.spec import Mode, WeightStandardizationSpec

from ._base import Array, Forward, Quantity, as_matrix, average, like_weight, sum_of_terms, sum_over, varies


@dataclass(frozen=True, slots=True)
class _Row:
    """For each row: its numbers less their mean, the denominator, and the denominator's derivative by the variance."""

    centred: Array
    denominator: Array
    slope: Array


def forward(
    spec: WeightStandardizationSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
) -> Forward:
    """The effective weight of the raw weight ``x`` of shape (rows, *rest); there is no state and the mode does not matter."""
    rows = _rows(spec, as_matrix(spec, x))
    y = _factor(spec, x, parameters) * rows.centred / rows.denominator
    return Forward(like_weight(spec, y, np.abs(y), (1,)))


def backward(
    spec: WeightStandardizationSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """Gradients of the raw weight ``x`` and of the scale, given the gradient ``upstream`` of the effective weight."""
    rows = _rows(spec, as_matrix(spec, x))
    sent = as_matrix(spec, upstream)
    g = _factor(spec, x, parameters) * sent / rows.denominator
    mean_g = average(g, (1,))
    to_denominator = -sum_over(g * rows.centred, (1,), keepdims=True) / rows.denominator
    projection = to_denominator * rows.slope * 2 * rows.centred / _divisor(spec)
    magnitude = np.abs(g) + np.abs(mean_g) + np.abs(projection)
    gradients = {"x": like_weight(spec, g - mean_g + projection, magnitude, (1,))}
    if spec.scale:
        terms = sent * _factor(spec, x, {}) * rows.centred / rows.denominator
        gradients["scale"] = sum_of_terms(terms, (1,), spec.parameter_shape)
    return gradients


def _factor(spec: WeightStandardizationSpec, x: Array, parameters: Mapping[str, Array]) -> Array:
    """What multiplies each row: ``spec.factor`` in the precision of ``x``, times the learned scale."""
    factor = np.asarray(spec.gain, x.real.dtype)
    if spec.fan_in_scaling:
        factor = factor / np.sqrt(factor.dtype.type(spec.columns))
    return factor * parameters["scale"][:, None] if "scale" in parameters else factor


def _divisor(spec: WeightStandardizationSpec) -> int:
    return max(spec.columns - spec.ddof, 1)


def _rows(spec: WeightStandardizationSpec, w: Array) -> _Row:
    # Less their first one, so that equal numbers have a deviation and a variance of exactly 0.
    shifted = w - w[:, :1]
    centred = shifted - average(shifted, (1,))
    variance = np.where(varies(w, (1,)), sum_over(centred**2, (1,), keepdims=True) / _divisor(spec), 0)
    if spec.eps_place == "maximum":
        floor = w.real.dtype.type(spec.eps) / spec.columns
        above = variance.real >= floor
        denominator = _or_one(np.sqrt(np.where(above, variance, floor)))
        return _Row(centred, denominator, above / (2 * denominator))
    if spec.eps_place == "deviation":
        deviation = np.sqrt(variance)
        return _Row(centred, _or_one(deviation + spec.eps), 1 / (2 * _or_one(deviation)))
    denominator = _or_one(np.sqrt(variance + spec.eps))
    return _Row(centred, denominator, 1 / (2 * denominator))


def _or_one(values: Array) -> Array:
    """``values``, where one of 0 counts as 1. The slope there does not matter, as it multiplies deviations of 0."""
    return np.where(values == 0, 1, values)
