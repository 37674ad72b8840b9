"""The arithmetic of switchable normalization, in three steps.

`instance_moments` looks at all of ``x``; `mix` makes of its results one factor and one term per instance and channel, in
arithmetic of (instances, channels) numbers only; `scale_and_shift` applies them to all of ``x``. The first and the last have
their own gradients, which read and write the tensor less often than automatic ones; they are made of differentiable operations
themselves, so that they can be nested.

Everything is a deviation from something near: the values from their instance's mean, the instances' means from those of layer
and batch. Nothing is a difference of squares.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from crossnorm.spec import SwitchableNormSpec

from ._arithmetic import Statistics, _sizes, values_per_channel
from ._base import unbiased_variance

# A sum adds up one value after the other, and the rounding errors grow with their number: so it adds up sums of so many at
# most. Much shorter ones a compiler writes out one by one, which is slow.
_BLOCK = 64


class Instances(NamedTuple):
    """What one look at ``x`` says of each instance's channels.

    ``deviation``: ``x`` minus the pilot, like ``x``; ``pilot``: the mean but for the error of a long sum, a constant; ``rest``:
    the mean minus the pilot; ``variance``: biased. The last three are (instances, channels).
    """

    deviation: tf.Tensor
    pilot: tf.Tensor
    rest: tf.Tensor
    variance: tf.Tensor


def _fold(x: tf.Tensor) -> tf.Tensor:
    """A smaller channel view: the sums of up to `_BLOCK` positions, which lie far apart as that is faster."""
    instances, before, channels, after = _sizes(x)
    last = not (isinstance(after, int) and after == 1)
    left, size, right = (instances * before * channels, after, 1) if last else (instances, before, channels)
    block = _BLOCK
    if isinstance(size, int):
        if size <= _BLOCK:
            return x
        even = math.ceil(size / math.ceil(size / _BLOCK))
        block = next((divisor for divisor in range(_BLOCK, _BLOCK // 2, -1) if size % divisor == 0), even)
    parts, rest = size // block, size % block
    rows = tf.reshape(x, [left, size, right])
    exact = isinstance(rest, int) and rest == 0
    blocks = rows if exact else rows[:, : size - rest]
    sums = tf.reshape(tf.reduce_sum(tf.reshape(blocks, [left, block, parts * right]), axis=1), [left, parts, right])
    if not exact:
        sums = tf.concat([sums, tf.reduce_sum(rows[:, size - rest :], axis=1, keepdims=True)], axis=1)
        parts = parts + 1
    return tf.reshape(sums, [instances, before, channels, parts] if last else [instances, parts, channels, 1])


def _total(parts: tf.Tensor) -> tf.Tensor:
    """The sums over the positions of a small channel view: (instances, channels)."""
    return tf.reduce_sum(tf.reduce_sum(parts, axis=3), axis=1)


def _sums(x: tf.Tensor) -> tf.Tensor:
    """The sums over the positions of a channel view: (instances, channels).

    Where the parts are alike, as those of squares are, little is left to round of what each has more than the average.
    """
    parts = _fold(x)
    if parts is x:
        return _total(parts)
    count = tf.cast(tf.maximum(values_per_channel(parts), 1), x.dtype)
    average = _total(parts) / count
    return average * count + _total(parts - _spread(average))


def _spread(values: tf.Tensor) -> tf.Tensor:
    """From (instances, channels) to what meets a channel view."""
    return values[:, None, :, None]


@tf.custom_gradient
def instance_moments(x: tf.Tensor):
    """The `Instances` of a channel view."""
    count = tf.cast(tf.maximum(values_per_channel(x), 1), x.dtype)
    parts = _fold(x)
    pilot = tf.stop_gradient(_total(parts) / count)
    deviation = x - _spread(pilot)
    # What the pilot misses shows in sums of few values already.
    rest = _total(deviation if parts is x else parts - _fold(tf.ones_like(x[:1, :, :1])) * _spread(pilot)) / count
    variance = tf.maximum(_sums(deviation * deviation) / count - rest * rest, 0)

    def gradient(d_deviation: tf.Tensor, _: tf.Tensor, d_rest: tf.Tensor, d_variance: tf.Tensor) -> tf.Tensor:
        slope = 2 * d_variance / count
        return d_deviation + deviation * _spread(slope) + _spread(d_rest / count - rest * slope)

    return Instances(deviation, pilot, rest, variance), gradient


@tf.custom_gradient
def scale_and_shift(deviation: tf.Tensor, factor: tf.Tensor, term: tf.Tensor):
    """``deviation * factor + term`` with one factor and one term per instance and channel."""

    def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return dy * _spread(factor), _sums(dy * deviation), _sums(dy)

    return deviation * _spread(factor) + _spread(term), gradient


def _average(values: tf.Tensor, axis: int) -> tf.Tensor:
    """The average over the instances (axis 0) or the channels (axis 1), kept as an axis of size one."""
    count = tf.cast(tf.maximum(_sizes(values)[axis], 1), values.dtype)
    return (_sums(values[None, :, :, None]) if axis == 0 else tf.reduce_sum(values, axis=1, keepdims=True)) / count


def _average_and_distances(instances: Instances, axis: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The average of the means, and the means minus it. Both are sums of something near and something small."""
    pilot = _average(instances.pilot, axis)
    distances = (instances.pilot - pilot) + instances.rest
    rest = _average(distances, axis)
    return pilot + rest, distances - rest


@tf.custom_gradient
def _mixture(logits: tf.Tensor, *statistics: tf.Tensor):
    """The sum of the statistics, all of one shape, weighted by the softmax of the logits.

    Logit k moves it by ``weight_k * sum_j weight_j (statistic_k - statistic_j)``; an automatic gradient forms that difference
    after the sum over all instances and channels, where little is left of it.
    """
    weights = tf.unstack(tf.nn.softmax(logits))
    result = tf.add_n([weight * statistic for weight, statistic in zip(weights, statistics, strict=True)])

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
        pairs = list(zip(weights, statistics, strict=True))
        moved = [
            weight * tf.reduce_sum(upstream * tf.add_n([other_weight * (statistic - other) for other_weight, other in pairs]))
            for weight, statistic in pairs
        ]
        return tf.stack(moved), *(weight * upstream for weight in weights)

    return result, gradient


def mix(
    spec: SwitchableNormSpec,
    positions: int | tf.Tensor,
    instances: Instances,
    parameters: Mapping[str, tf.Tensor],
    running: Statistics | None,
) -> tuple[tf.Tensor, tf.Tensor, Statistics | None]:
    """Factor and term with which ``y = deviation * factor + term``, and the batch's statistics, each (1, channels).

    ``running`` takes the place of the batch's statistics, which are then None, as they are where they are not used.
    """
    _, pilot, rest, variance = instances
    samples, channels = _sizes(rest)
    batch = None

    def corrected(values: tf.Tensor, count: int | tf.Tensor, estimator: str) -> tf.Tensor:
        return unbiased_variance(values, count) if spec.variance == estimator else values

    derived_from = corrected(variance, positions, "unbiased_instance")
    _, from_layer = _average_and_distances(instances, 1)
    layer_variance = _average(derived_from + from_layer * from_layer, 1)
    # How far the instance's mean is from each of the means; and the variances.
    distances = {"instance": tf.zeros_like(rest), "layer": from_layer}
    variances = {
        "instance": corrected(derived_from, positions, "unbiased"),
        "layer": corrected(layer_variance, positions * channels, "unbiased"),
    }
    if running is not None:
        distances["batch"], variances["batch"] = (pilot - running.mean) + rest, running.variance
    elif spec.use_batch:
        batch_mean, from_batch = _average_and_distances(instances, 0)
        batch_variance = _average(derived_from + from_batch * from_batch, 0)
        batch = Statistics(batch_mean, corrected(batch_variance, positions * samples, "unbiased"))
        distances["batch"], variances["batch"] = from_batch, batch.variance

    def mixture(name: str, of: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return _mixture(parameters[name], *(tf.broadcast_to(of[statistic], tf.shape(rest)) for statistic in spec.statistics))

    factor = 1 / tf.sqrt(mixture("variance_logits", variances) + spec.eps)
    if "scale" in parameters:
        factor = factor * parameters["scale"]
    term = factor * (mixture("mean_logits", distances) - rest)
    if "offset" in parameters:
        term = term + parameters["offset"]
    return factor, term, batch
