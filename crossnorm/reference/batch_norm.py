"""Batch normalization, from Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2."""

from collections.abc import Mapping

import numpy as np

from crossnorm.spec import BatchNormSpec, Mode

from ._base import (
    Array,
    Forward,
    Quantity,
    Standardized,
    affine,
    expect,
    keep_running,
    parameter_gradients,
    per_channel,
    standardize,
    standardize_backward,
    standardize_with,
    unbias,
    update_running,
)


def forward(spec: BatchNormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode) -> Forward:
    """Output and new state for ``x`` of shape (batch, channel, *spatial)."""
    expect(spec, x, 2)
    s = _standardized(spec, x, state, mode)
    y, magnitude = affine(s.xhat, per_channel(parameters.get("scale"), x.ndim), per_channel(parameters.get("offset"), x.ndim))
    output = Quantity(y, magnitude, x.shape, _group(x))
    if not (mode.update_running and spec.tracked and s.count):
        return Forward(output, keep_running(spec, state))
    variance = s.variance.ravel()
    if spec.running_variance == "unbiased":
        variance = unbias(variance, s.count)
    return Forward(output, update_running(spec, state, s.mean.ravel(), variance))


def backward(
    spec: BatchNormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """Gradients of ``x`` and of every parameter, given the gradient ``upstream`` of the output."""
    expect(spec, x, 2)
    s = _standardized(spec, x, state, mode)
    scale = per_channel(parameters.get("scale"), x.ndim)
    dx, magnitude = standardize_backward(s, upstream if scale is None else upstream * scale)
    gradients = parameter_gradients(parameters, upstream, s.xhat, _group(x))
    return {"x": Quantity(dx, magnitude, x.shape, _group(x)), **gradients}


def _group(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _standardized(spec: BatchNormSpec, x: Array, state: Mapping[str, Array], mode: Mode) -> Standardized:
    if mode.use_batch_statistics or not spec.tracked:
        return standardize(x, _group(x), spec.eps)
    mean, variance = (np.asarray(per_channel(state[name], x.ndim)) for name in ("running_mean", "running_variance"))
    return standardize_with(x, mean, variance, spec.eps)
