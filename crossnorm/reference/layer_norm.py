"""Layer normalization, from Ba, Kiros and Hinton 2016, arXiv:1607.06450, equations (3) and (4)."""

from collections.abc import Mapping

import numpy as np

from crossnorm.spec import LayerNormSpec, Mode

from ._base import (
    Array,
    Forward,
    Quantity,
    affine,
    average,
    expect,
    parameter_gradients,
    standardize,
    standardize_backward,
)


def forward(spec: LayerNormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode) -> Forward:
    """Output for ``x`` of shape (*batch, *normalized); there is no state and the mode does not matter."""
    expect(spec, x, len(spec.shape))
    s = standardize(x, _axes(spec, x), spec.eps)
    xhat = s.xhat if spec.subtract_mean else x * s.rstd
    y, magnitude = affine(xhat, parameters.get("scale"), parameters.get("offset"))
    return Forward(Quantity(y, magnitude, x.shape, s.axes))


def backward(
    spec: LayerNormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """Gradients of ``x`` and of every parameter, given the gradient ``upstream`` of the output."""
    expect(spec, x, len(spec.shape))
    s = standardize(x, _axes(spec, x), spec.eps)
    scale = parameters.get("scale")
    g = upstream if scale is None else upstream * scale
    if spec.subtract_mean:
        xhat = s.xhat
        dx, magnitude = standardize_backward(s, g)
    else:
        # y = x * rstd: rstd depends on x through the variance only.
        xhat = x * s.rstd
        projection = s.xhat * average(g * xhat, s.axes)
        dx, magnitude = s.rstd * (g - projection), np.abs(s.rstd) * (np.abs(g) + np.abs(projection))
    gradients = parameter_gradients(parameters, upstream, xhat, tuple(range(x.ndim - len(spec.shape))))
    return {"x": Quantity(dx, magnitude, x.shape, s.axes), **gradients}


def _axes(spec: LayerNormSpec, x: Array) -> tuple[int, ...]:
    return tuple(range(x.ndim - len(spec.shape), x.ndim))
