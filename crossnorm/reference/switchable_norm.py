"""Switchable normalization, from Luo, Ren, Peng, Zhang and Li 2018, arXiv:1806.10779, equations (3) to (5)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crossnorm.spec import Mode, SwitchableNormSpec

from ._base import (
    Array,
    Forward,
    Quantity,
    affine,
    average,
    blend,
    decay_now,
    expect,
    keep_running,
    one_more_batch,
    parameter_gradients,
    per_channel,
    sum_of_terms,
    sum_over,
    unbias,
)

_OVER = {"instance": (2,), "layer": (1, 2), "batch": (0, 2)}


@dataclass(frozen=True, slots=True)
class _Statistic:
    """Mean and variance of the values along ``axes``, broadcastable against (batch, channel, position).

    ``slope``: the variance's derivative by each value. None where the statistics are given and do not depend on x.
    """

    mean: Array
    variance: Array
    axes: tuple[int, ...]
    slope: Array | None


@dataclass(frozen=True, slots=True)
class _Mixture:
    """Everything in the view (batch, channel, position): the statistics by name, their weights, and what comes of them."""

    statistics: dict[str, _Statistic]
    mean_weights: Array
    variance_weights: Array
    mean: Array
    variance: Array
    rstd: Array
    xhat: Array


def forward(
    spec: SwitchableNormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode
) -> Forward:
    """Output and new state for ``x`` of shape (batch, channel, *spatial)."""
    m = _mixture(spec, x, parameters, state, mode)
    scale, offset = (per_channel(parameters.get(name), x.ndim) for name in ("scale", "offset"))
    y, magnitude = affine(m.xhat.reshape(x.shape), scale, offset)
    output = Quantity(y, magnitude, x.shape, tuple(range(2, x.ndim)))
    if not (mode.update_running and spec.use_batch and x.size):
        return Forward(output, keep_running(spec, state))
    return Forward(output, _updated(spec, state, m.statistics["batch"]))


def backward(
    spec: SwitchableNormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """Gradients of ``x`` and of every parameter, given the gradient ``upstream`` of the output."""
    m = _mixture(spec, x, parameters, state, mode)
    scale = per_channel(parameters.get("scale"), x.ndim)
    g = (upstream if scale is None else upstream * scale).reshape(m.xhat.shape)
    # What one value sends to the mixed mean and to the mixed variance.
    to_mean, to_variance = -g * m.rstd, -g * m.xhat * m.rstd**2 / 2

    parts = [g * m.rstd]
    for statistic, mean_weight, variance_weight in zip(m.statistics.values(), m.mean_weights, m.variance_weights, strict=True):
        if statistic.slope is not None:
            parts.append(mean_weight * average(to_mean, statistic.axes))
            parts.append(variance_weight * sum_over(to_variance, statistic.axes, keepdims=True) * statistic.slope)
    dx, magnitude = sum(parts, np.zeros_like(g)), sum((np.abs(part) for part in parts), np.zeros(g.shape, g.dtype))

    xhat, axes = m.xhat.reshape(x.shape), (0, *range(2, x.ndim))
    affine_gradients = parameter_gradients(parameters, upstream, xhat, axes)
    return {
        "x": Quantity(dx.reshape(x.shape), magnitude.reshape(x.shape), x.shape, tuple(range(2, x.ndim))),
        **affine_gradients,
        "mean_logits": _logits(m.mean_weights, [s.mean - m.mean for s in m.statistics.values()], to_mean),
        "variance_logits": _logits(m.variance_weights, [s.variance - m.variance for s in m.statistics.values()], to_variance),
    }


def _logits(weights: Array, differences: list[Array], sent: Array) -> Quantity:
    """Through the softmax: logit k moves the mixture by ``weight_k * (statistic_k - mixture)``."""
    terms = np.stack([weight * difference * sent for weight, difference in zip(weights, differences, strict=True)])
    return sum_of_terms(terms, (1, 2, 3), weights.shape)


def _mixture(
    spec: SwitchableNormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode
) -> _Mixture:
    expect(spec, x, 2)
    values = x.reshape((*x.shape[:2], int(np.prod(x.shape[2:]))))
    statistics = {name: _statistic(spec, values, name) for name in spec.statistics}
    if spec.use_batch and not mode.use_batch_statistics:
        mean, variance = (np.asarray(per_channel(state[name], 3)) for name in ("running_mean", "running_variance"))
        statistics["batch"] = _Statistic(mean, variance, (), None)
    w, v = (_softmax(parameters[name]) for name in ("mean_logits", "variance_logits"))
    nothing = np.zeros((*values.shape[:2], 1), values.dtype)
    mean = sum((weight * s.mean for weight, s in zip(w, statistics.values(), strict=True)), nothing)
    variance = sum((weight * s.variance for weight, s in zip(v, statistics.values(), strict=True)), nothing)
    rstd = 1 / np.sqrt(variance + spec.eps)
    return _Mixture(statistics, w, v, mean, variance, rstd, (values - mean) * rstd)


def _statistic(spec: SwitchableNormSpec, x: Array, name: str) -> _Statistic:
    """One of the three, derived from the instances' statistics: equation (4)."""
    axes = _OVER[name]
    count = int(np.prod([x.shape[axis] for axis in axes]))
    instance_mean = average(x, (2,))
    deviation = x - instance_mean
    instance_variance = average(deviation**2, (2,))
    if spec.variance == "unbiased_instance":
        deviation, instance_variance = (unbias(values, x.shape[2]) for values in (deviation, instance_variance))
    mean = average(instance_mean, axes)
    variance = average(instance_variance + (instance_mean - mean) ** 2, axes)
    slope = 2 * (deviation + (instance_mean - mean)) / max(count, 1)
    if spec.variance == "unbiased":
        variance, slope = (unbias(values, count) for values in (variance, slope))
    return _Statistic(mean, variance, axes, slope)


def _softmax(logits: Array) -> Array:
    """Equation (5); the largest logit is subtracted, as a constant."""
    powers = np.exp(logits - logits.real.max())
    return np.asarray(powers / powers.sum())


def _updated(spec: SwitchableNormSpec, state: Mapping[str, Array], batch: _Statistic) -> dict[str, Quantity]:
    mean, variance = batch.mean.ravel(), batch.variance.ravel()
    decay = decay_now(spec.decay, state, mean)
    if spec.pooled:
        variance = variance + decay * (mean - state["running_mean"]) ** 2
    return {
        "running_mean": blend(decay, state["running_mean"], mean, None),
        "running_variance": blend(decay, state["running_variance"], variance, spec.eps),
        "batches_tracked": one_more_batch(state),
    }
