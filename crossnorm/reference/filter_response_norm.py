"""Filter response normalization with a thresholded linear unit, from Singh and Krishnan 2019, arXiv:1911.09737,
equations (1) to (3)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crossnorm.spec import FilterResponseNormSpec, Mode

from ._base import Array, Forward, Quantity, affine, average, expect, parameter_gradients, per_channel, sum_of_terms


@dataclass(frozen=True, slots=True)
class _Response:
    """``xhat = x * rrms``; ``z`` before the threshold, its magnitude, and where it is not cut off."""

    xhat: Array
    rrms: Array
    z: Array
    magnitude: Array
    threshold: Array | None
    passed: Array


def forward(
    spec: FilterResponseNormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode
) -> Forward:
    """Output for ``x`` of shape (batch, channel, *spatial); there is no state and the mode does not matter."""
    response = _respond(spec, x, parameters)
    y, magnitude = response.z, response.magnitude
    if response.threshold is not None:
        y = np.where(response.passed, y, response.threshold)
        magnitude = np.where(response.passed, magnitude, np.abs(response.threshold))
    return Forward(Quantity(y, magnitude, x.shape, _positions(x)))


def backward(
    spec: FilterResponseNormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """Gradients of ``x`` and of every parameter, given the gradient ``upstream`` of the output."""
    response = _respond(spec, x, parameters)
    xhat, rrms = response.xhat, response.rrms
    to_z = np.where(response.passed, upstream, 0)
    scale = per_channel(parameters.get("scale"), x.ndim)
    g = to_z if scale is None else to_z * scale
    projection = xhat * average(g * xhat, _positions(x))
    dx, magnitude = rrms * (g - projection), np.abs(rrms) * (np.abs(g) + np.abs(projection))

    over_channels = (0, *range(2, x.ndim))
    gradients = parameter_gradients(parameters, to_z, xhat, over_channels)
    if spec.learned_eps:
        learned_eps = parameters["learned_eps"]
        axes = over_channels if spec.learned_eps == "channel" else tuple(range(x.ndim))
        terms = -g * xhat * rrms**2 * np.sign(_meet(learned_eps, x.ndim)) / 2
        gradients["learned_eps"] = sum_of_terms(terms, axes, learned_eps.shape)
    if spec.threshold:
        axes = over_channels if spec.threshold == "channel" else (0,)
        gradients["threshold"] = sum_of_terms(upstream - to_z, axes, parameters["threshold"].shape)
    return {"x": Quantity(dx, magnitude, x.shape, _positions(x)), **gradients}


def _positions(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _respond(spec: FilterResponseNormSpec, x: Array, parameters: Mapping[str, Array]) -> _Response:
    expect(spec, x, 2)
    if spec.spatial is not None and x.shape[2:] != spec.spatial:
        raise ValueError(f"{type(spec).__name__}: an input of shape {x.shape} has no threshold; its spatial={spec.spatial}")
    square = average(x**2, _positions(x)) + spec.eps
    if spec.learned_eps:
        learned_eps = _meet(parameters["learned_eps"], x.ndim)
        square = square + learned_eps * np.sign(learned_eps.real)  # the absolute value
    rrms = 1 / np.sqrt(square)
    xhat = x * rrms
    z, magnitude = affine(xhat, *(per_channel(parameters.get(name), x.ndim) for name in ("scale", "offset")))
    if not spec.threshold:
        return _Response(xhat, rrms, z, magnitude, None, np.ones(x.shape, bool))
    threshold = _meet(parameters["threshold"], x.ndim)
    return _Response(xhat, rrms, z, magnitude, threshold, z.real >= threshold.real)


def _meet(parameter: Array, rank: int) -> Array:
    """A parameter for all values, for each channel or for each element, shaped to meet ``(batch, channel, *spatial)``."""
    if parameter.ndim == 0:
        return parameter
    return parameter.reshape((1, *parameter.shape) + (1,) * (rank - 1 - parameter.ndim))
