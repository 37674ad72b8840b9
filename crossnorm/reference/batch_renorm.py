"""Batch renormalization, from Ioffe 2017, arXiv:1702.03275, Algorithm 1."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from crossnorm.spec import BatchRenormSpec, Mode

from ._base import (
    Array,
    Forward,
    Quantity,
    Standardized,
    affine,
    blend,
    decay_now,
    expect,
    keep_running,
    one_more_batch,
    parameter_gradients,
    per_channel,
    standardize,
    standardize_backward,
    unbias,
)


@dataclass(frozen=True, slots=True)
class _Renormed:
    """``xhat * r + d``: r and d are constants, 1 and 0 where the running quantities normalise."""

    standardized: Standardized
    r: Array
    d: Array

    @property
    def value(self) -> Array:
        return self.standardized.xhat * self.r + self.d


def forward(
    spec: BatchRenormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode
) -> Forward:
    """Output and new state for ``x`` of shape (batch, channel, *spatial)."""
    renormed = _renormed(spec, x, state, mode)
    s = renormed.standardized
    scale, offset = (per_channel(parameters.get(name), x.ndim) for name in ("scale", "offset"))
    y, _ = affine(renormed.value, scale, offset)
    _, magnitude = affine(np.abs(s.xhat * renormed.r) + np.abs(renormed.d), scale, offset)
    output = Quantity(y, magnitude, x.shape, _group(x))
    if not (mode.update_running and s.count):
        return Forward(output, keep_running(spec, state))
    return Forward(output, _updated(spec, state, s))


def backward(
    spec: BatchRenormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """Gradients of ``x`` and of every parameter, given the gradient ``upstream`` of the output."""
    renormed = _renormed(spec, x, state, mode)
    scale = per_channel(parameters.get("scale"), x.ndim)
    g = (upstream if scale is None else upstream * scale) * renormed.r
    dx, magnitude = standardize_backward(renormed.standardized, g)
    gradients = parameter_gradients(parameters, upstream, renormed.value, _group(x))
    return {"x": Quantity(dx, magnitude, x.shape, _group(x)), **gradients}


def _group(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def _renormed(spec: BatchRenormSpec, x: Array, state: Mapping[str, Array], mode: Mode) -> _Renormed:
    expect(spec, x, 2)
    if not mode.use_batch_statistics:
        # With two pairs Keras infers with the variance that it keeps beside the standard deviation.
        mean, deviation = _running(spec, x, state, "running", variance="running_variance" in state)
        rstd = 1 / deviation
        s = Standardized(mean, deviation**2, rstd, (x - mean) * rstd, (), 0)
        return _Renormed(s, np.ones_like(mean), np.zeros_like(mean))
    s = standardize(x, _group(x), spec.eps)
    # Constants: from the real parts, so that a complex step leaves them alone.
    pair = "running" if spec.renorm_decay is None else "renorm"
    mean, deviation = _running(spec, x, state, pair, variance=spec.running_quantity != "standard_deviation")
    deviation = np.maximum(deviation, np.sqrt(deviation.dtype.type(spec.eps)))
    r_min, r_max, d_max = spec.bounds(int(state["batches_tracked"]))
    r = np.clip(np.sqrt(s.variance.real + spec.eps) / deviation, r_min, r_max)
    d = np.clip((s.mean.real - mean) / deviation, -d_max, d_max)
    return _Renormed(s, r, d)


def _running(spec: BatchRenormSpec, x: Array, state: Mapping[str, Array], pair: str, *, variance: bool) -> tuple[Array, Array]:
    """Mean and standard deviation of one pair of running quantities, shaped to meet ``x``."""
    spread = state[f"{pair}_variance" if variance else f"{pair}_standard_deviation"]
    deviation = np.sqrt(spread + spec.eps) if variance else spread
    mean, deviation = (np.asarray(per_channel(values, x.ndim)) for values in (state[f"{pair}_mean"], deviation))
    return mean, deviation


def _updated(spec: BatchRenormSpec, state: Mapping[str, Array], s: Standardized) -> dict[str, Quantity]:
    """Every pair decayed towards the batch's quantities, at its own rate."""
    mean, variance = s.mean.ravel(), s.variance.ravel()
    if spec.running_quantity == "standard_deviation":
        name, spread, eps = "standard_deviation", np.sqrt(variance + spec.eps), None
    else:
        unbiased = spec.running_quantity == "unbiased_variance"
        name, spread, eps = "variance", unbias(variance, s.count) if unbiased else variance, spec.eps
    rates = {"running": decay_now(spec.decay, state, mean)}
    if spec.renorm_decay is not None:
        rates["renorm"] = spec.renorm_decay
    new: dict[str, Quantity] = {}
    for pair, decay in rates.items():
        new[f"{pair}_mean"] = blend(decay, state[f"{pair}_mean"], mean, None)
        new[f"{pair}_{name}"] = blend(decay, state[f"{pair}_{name}"], spread, eps)
    if name == "standard_deviation" and "running_variance" in state:
        new["running_variance"] = _variance(new["running_standard_deviation"], spec.eps)
    return {**new, "batches_tracked": one_more_batch(state)}


def _variance(deviation: Quantity, eps: float) -> Quantity:
    """``max(deviation ** 2 - eps, 0)``."""
    difference = deviation.value**2 - eps
    value = np.where(difference.real > 0, difference, 0)
    return Quantity(value, np.sqrt(deviation.magnitude**2 + eps + eps), value.shape, eps=eps)
