"""Root mean square normalization, from Zhang and Sennrich 2019, arXiv:1910.07467, equation (4)."""

from collections.abc import Mapping

import numpy as np

from crossnorm.spec import Mode, RMSNormSpec

from ._base import Array, Forward, Quantity, affine, average, expect, parameter_gradients


def forward(spec: RMSNormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode) -> Forward:
    """Output for ``x`` of shape (*batch, *normalized); there is no state and the mode does not matter."""
    xhat, _, axes = _normalized(spec, x)
    y, magnitude = affine(xhat, parameters.get("scale"), None)
    return Forward(Quantity(y, magnitude, x.shape, axes))


def backward(
    spec: RMSNormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """Gradients of ``x`` and of every parameter, given the gradient ``upstream`` of the output."""
    xhat, rrms, axes = _normalized(spec, x)
    scale = parameters.get("scale")
    g = upstream if scale is None else upstream * scale
    projection = xhat * average(g * xhat, axes)
    dx, magnitude = rrms * (g - projection), np.abs(rrms) * (np.abs(g) + np.abs(projection))
    gradients = parameter_gradients(parameters, upstream, xhat, tuple(range(x.ndim - len(spec.shape))))
    return {"x": Quantity(dx, magnitude, x.shape, axes), **gradients}


def _normalized(spec: RMSNormSpec, x: Array) -> tuple[Array, Array, tuple[int, ...]]:
    expect(spec, x, len(spec.shape))
    axes = tuple(range(x.ndim - len(spec.shape), x.ndim))
    rrms = 1 / np.sqrt(average(x**2, axes) + spec.eps)
    return x * rrms, rrms, axes
