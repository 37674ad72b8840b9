"""The parts that the methods' references share: quantities with their magnitudes, and the standardisation step.

Everything is generic over float64, longdouble and their complex versions, and every value is a holomorphic function of the
inputs (no absolute value, no conjugate), so that complex-step differentiation can check the gradients. Magnitudes are not
differentiated and do use absolute values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm.spec import NormSpec, SpectralNormSpec, WeightNormSpec, WeightSpec

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with what is needed to judge another one against it.

    ``magnitude``: the absolute values of the terms of the formula's last addition, summed (root of the sum of squares where
    the formula sums many terms). ``view`` and ``axes``: reshape to ``view``, and each statistics group extends over ``axes``;
    empty axes mean that every element is a group of its own. ``eps``: a variance, compared as ``sqrt(v + eps)``.
    """

    value: Array
    magnitude: Array
    view: tuple[int, ...]
    axes: tuple[int, ...] = ()
    eps: float | None = None

    def comparable(self, value: Array) -> Array:
        """``value`` as it is compared: a variance as ``sqrt(v + eps)``, anything else as it is."""
        if self.eps is None:
            return value
        with np.errstate(invalid="ignore"):
            root: Array = np.sqrt(value + self.eps)
        return root

    def over_groups(self, values: Array) -> Array:
        """The largest of ``values`` in each statistics group, at every element of the group."""
        if not self.axes or values.size == 0:
            return values
        grouped = values.reshape(self.view)
        return np.broadcast_to(grouped.max(axis=self.axes, keepdims=True), self.view).reshape(values.shape)


@dataclass(frozen=True, slots=True)
class Forward:
    """What ``forward`` returns: the output and the state after the call (the same values where nothing is updated)."""

    y: Quantity
    state: dict[str, Quantity] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Standardized:
    """One standardisation in the grouped view: ``xhat = (x - mean) * rstd``."""

    mean: Array
    variance: Array
    rstd: Array
    xhat: Array
    axes: tuple[int, ...]
    count: int


def sum_over(x: Array, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    return np.asarray(x.sum(axis=axes, keepdims=keepdims))


def average(x: Array, axes: tuple[int, ...]) -> Array:
    """The average over ``axes``, kept as dimensions of size one; 0 where there is nothing to average."""
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return sum_over(x, axes, keepdims=True) / max(count, 1)


def standardize(x: Array, axes: tuple[int, ...], eps: float) -> Standardized:
    """Mean, biased variance and ``xhat`` over ``axes``; the variance from deviations, never from ``E[x^2] - E[x]^2``."""
    mean = average(x, axes)
    variance = average((x - mean) ** 2, axes)
    rstd = 1 / np.sqrt(variance + eps)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return Standardized(mean, variance, rstd, (x - mean) * rstd, axes, count)


def standardize_with(x: Array, mean: Array, variance: Array, eps: float) -> Standardized:
    """The same with given statistics, which do not depend on ``x``."""
    rstd = 1 / np.sqrt(variance + eps)
    return Standardized(mean, variance, rstd, (x - mean) * rstd, (), 0)


def varies(x: Array, axes: tuple[int, ...]) -> Array:
    """Where the numbers differ along ``axes``, kept as dimensions of size one. No rounding hides that they are all equal."""
    differs: Array = x.real.max(axis=axes, keepdims=True) != x.real.min(axis=axes, keepdims=True)
    return differs


def unbias(values: Array, count: int) -> Array:
    """Biased variances of ``count`` values as unbiased ones; of a single value as they are."""
    return np.asarray(values * count / max(count - 1, 1))


def standardize_backward(s: Standardized, g: Array) -> tuple[Array, Array]:
    """The gradient of ``x`` and its magnitude, from the gradient ``g`` of ``xhat``.

    ``dx = rstd * (g - mean(g) - xhat * mean(g * xhat))``: Ioffe and Szegedy 2015, section 3, the six chain-rule equations
    after Algorithm 1, put together. With given statistics the means vanish.
    """
    if not s.axes:
        return g * s.rstd, np.abs(g * s.rstd)
    mean_g = average(g, s.axes)
    projection = s.xhat * average(g * s.xhat, s.axes)
    return s.rstd * (g - mean_g - projection), np.abs(s.rstd) * (np.abs(g) + np.abs(mean_g) + np.abs(projection))


def affine(xhat: Array, scale: Array | None, offset: Array | None) -> tuple[Array, Array]:
    """``scale * xhat + offset`` and its magnitude; None is a scale of 1 or an offset of 0."""
    y = xhat if scale is None else scale * xhat
    magnitude = np.abs(y)
    if offset is not None:
        return y + offset, magnitude + np.abs(offset)
    return y, magnitude


def parameter_gradients(
    parameters: Mapping[str, Array], upstream: Array, xhat: Array, axes: tuple[int, ...]
) -> dict[str, Quantity]:
    """The gradients of scale and offset: sums over ``axes`` of one term per value. Each element is a group of its own."""
    terms = {"scale": upstream * xhat, "offset": upstream}
    return {name: sum_of_terms(terms[name], axes, parameters[name].shape) for name in terms if name in parameters}


def sum_of_terms(terms: Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> Quantity:
    """The sum over ``axes`` as an array of ``shape`` with its magnitude, the root of the sum of squares."""
    magnitude = np.sqrt(sum_over(np.abs(terms) ** 2, axes))
    return Quantity(sum_over(terms, axes).reshape(shape), magnitude.reshape(shape), shape)


def per_channel(values: Array | None, rank: int) -> Array | None:
    """A vector with one entry per channel, shaped to meet ``(batch, channel, *spatial)``."""
    return None if values is None else values.reshape((1, -1) + (1,) * (rank - 2))


def update_running(spec: Any, state: Mapping[str, Array], mean: Array, variance: Array) -> dict[str, Quantity]:
    """Decay the old statistics towards ``mean`` and ``variance`` (each ``(channels,)``) and count the batch."""
    decay = decay_now(spec.decay, state, mean)
    return {
        "running_mean": blend(decay, state["running_mean"], mean, None),
        "running_variance": blend(decay, state["running_variance"], variance, spec.eps),
        "batches_tracked": one_more_batch(state),
    }


def decay_now(decay: float | None, state: Mapping[str, Array], statistic: Array) -> Any:
    """``decay``, or that of the plain average in the precision of ``statistic``: (t - 1) / t at the t-th update."""
    batches = state["batches_tracked"] + 1
    return decay if decay is not None else (batches - 1) / statistic.real.dtype.type(batches)


def one_more_batch(state: Mapping[str, Array]) -> Quantity:
    return Quantity(np.asarray(state["batches_tracked"] + 1), np.asarray(0.0), ())


def keep_running(spec: Any, state: Mapping[str, Array]) -> dict[str, Quantity]:
    """The state, unchanged. A state array that is not touched has no rounding: magnitude 0."""
    return {
        name: Quantity(
            np.asarray(value),
            np.zeros(np.shape(value)),
            np.shape(value),
            eps=spec.eps if name.endswith("_variance") else None,
        )
        for name, value in state.items()
    }


def blend(decay: Any, old: Array, new: Array, eps: float | None) -> Quantity:
    """The decayed average of the old and the new statistic; ``eps`` marks a variance."""
    value = decay * old + (1 - decay) * new
    magnitude = np.abs(decay * old) + np.abs((1 - decay) * new)
    if eps is not None:
        magnitude = np.sqrt(magnitude + eps)
    return Quantity(value, magnitude, value.shape, (), eps)


def expect(spec: NormSpec, x: Array, rank: int) -> None:
    """Refuse an input of too low a rank in the name of the specification."""
    if x.ndim < rank:
        raise ValueError(f"{type(spec).__name__}: an input of shape {x.shape} has fewer than {rank} dimensions")


def as_matrix(spec: WeightSpec, weight: Array) -> Array:
    """The raw weight as (rows, columns); another shape than the specification's is refused in its name."""
    if weight.shape != spec.shape:
        raise ValueError(f"{type(spec).__name__}: a weight of shape {weight.shape} is not of shape {spec.shape}")
    return weight.reshape(spec.rows, spec.columns)


def like_weight(spec: WeightSpec, value: Array, magnitude: Array, axes: tuple[int, ...]) -> Quantity:
    """A matrix as a quantity of the weight's shape; a statistics group extends over ``axes`` of the matrix."""
    return Quantity(value.reshape(spec.shape), magnitude.reshape(spec.shape), (spec.rows, spec.columns), axes)


def floored_square(spec: SpectralNormSpec | WeightNormSpec, square: Array) -> tuple[Array, Array]:
    """The square of the denominator that ``eps_place`` makes of the norm with this square, and whether it follows the norm."""
    eps = square.real.dtype.type(spec.eps)
    if spec.eps_place == "added_to_square":
        return square + eps, np.ones(square.shape, bool)
    floor = eps if spec.eps_place == "maximum_of_square" else eps**2
    follows = square.real >= floor
    return np.where(follows, square, floor), follows
