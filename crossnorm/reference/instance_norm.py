"""Instance normalization, from Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022, equation (2)."""

from collections.abc import Mapping

import numpy as np

from crossnorm.spec import InstanceNormSpec, Mode

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


def forward(
    spec: InstanceNormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode
) -> Forward:
    """Output and new state for ``x`` of shape (batch, channel, *spatial)."""
    expect(spec, x, 3)
    s = _standardized(spec, x, state, mode)
    y, magnitude = affine(s.xhat, per_channel(parameters.get("scale"), x.ndim), per_channel(parameters.get("offset"), x.ndim))
    output = Quantity(y, magnitude, x.shape, _group(s, x))
    if not (mode.update_running and spec.tracked and s.count and x.shape[0]):
        return Forward(output, keep_running(spec, state))
    mean = s.mean.reshape(x.shape[:2]).mean(axis=0)
    variance = s.variance.reshape(x.shape[:2]).mean(axis=0)
    if spec.running_variance == "instance_mean_unbiased":
        variance = unbias(variance, s.count)
    return Forward(output, update_running(spec, state, mean, variance))


def backward(
    spec: InstanceNormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """Gradients of ``x`` and of every parameter, given the gradient ``upstream`` of the output."""
    expect(spec, x, 3)
    s = _standardized(spec, x, state, mode)
    scale = per_channel(parameters.get("scale"), x.ndim)
    dx, magnitude = standardize_backward(s, upstream if scale is None else upstream * scale)
    gradients = parameter_gradients(parameters, upstream, s.xhat, (0, *range(2, x.ndim)))
    return {"x": Quantity(dx, magnitude, x.shape, _group(s, x)), **gradients}


def _group(s: Standardized, x: Array) -> tuple[int, ...]:
    """One instance's channel; with given statistics, the channel."""
    return s.axes if s.axes else (0, *range(2, x.ndim))


def _standardized(spec: InstanceNormSpec, x: Array, state: Mapping[str, Array], mode: Mode) -> Standardized:
    if mode.use_batch_statistics or not spec.tracked:
        return standardize(x, tuple(range(2, x.ndim)), spec.eps)
    mean, variance = (np.asarray(per_channel(state[name], x.ndim)) for name in ("running_mean", "running_variance"))
    return standardize_with(x, mean, variance, spec.eps)
