"""The computations behind the normalizations of activations, each with its own gradient.

`standardize_channels` serves batch, group and instance normalization and batch renormalization, `standardize_rows` layer and
RMS normalization, `threshold_channels` filter response normalization. All compute in the dtype of ``x``, float32 or float64.
The gradients are written out because automatic ones read and write the tensor about twice as often; they are made of
differentiable operations themselves, so that they can be nested.

Sums down columns are products with ones where every device is a processor: TensorFlow's own reduction over a leading axis is
three times slower there. On an accelerator a product may be rounded to fewer bits, so it is a plain reduction.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

# A product with ones adds up one value after the other, and the rounding errors grow with their number. So up to this many
# positions are laid side by side, in rows that stay within a processor's nearest memory, and added up last.
_BLOCK = 64
_WIDTH = 4096


class Statistics(NamedTuple):
    """Mean and biased variance, one entry per instance and channel: (instances, 1, channels, 1)."""

    mean: tf.Tensor
    variance: tf.Tensor


def _sizes(x: tf.Tensor) -> list[int | tf.Tensor]:
    """The shape, with a scalar tensor for each size that is not known yet."""
    dynamic = tf.shape(x)
    return [dynamic[i] if size is None else size for i, size in enumerate(x.shape)]


def _product(sizes: Sequence[int | tf.Tensor]) -> int | tf.Tensor:
    known = math.prod(size for size in sizes if isinstance(size, int))
    for size in sizes:
        if not isinstance(size, int):
            known = known * size
    return known


def channel_view(x: tf.Tensor, axis: int, instances: bool) -> tf.Tensor:
    """``x`` seen as (instances, positions before, channels, positions after); one instance if the batch is one group."""
    sizes = _sizes(x)
    first = 1 if instances else 0
    return tf.reshape(
        x,
        [_product(sizes[:first]), _product(sizes[first:axis]), sizes[axis], _product(sizes[axis + 1 :])],
    )


def products_are_exact() -> bool:
    """Whether a product of matrices keeps all bits: an accelerator may round its factors first."""
    return all(device.device_type == "CPU" for device in tf.config.list_physical_devices())


def _ones_times(x: tf.Tensor) -> tf.Tensor:
    """The sum over the last axis but one, kept, as a product with ones."""
    return tf.matmul(tf.ones([1, _sizes(x)[-2]], x.dtype), x)


def _column_sums(x: tf.Tensor) -> tf.Tensor:
    """The sums over axis 1 of a tensor (instances, positions, channels), kept as an axis of size one."""
    if not products_are_exact():
        return tf.reduce_sum(x, axis=1, keepdims=True)
    instances, positions, channels = _sizes(x)
    block = _block(instances, positions, channels)
    if block == 1:
        return _ones_times(x)
    rest = positions % block
    if isinstance(rest, int) and rest == 0:
        return _sums_in_blocks(x, block)
    rows = tf.reshape(x, [positions, channels])
    return _sums_in_blocks(rows[None, : positions - rest], block) + _ones_times(rows[None, positions - rest :])


def _block(instances: int | tf.Tensor, positions: int | tf.Tensor, channels: int) -> int:
    """How many positions to lay side by side; what is left over can be cut off, without a copy, from one instance only."""
    block = min(_BLOCK, max(_WIDTH // channels, 1))
    if isinstance(positions, int):
        if positions <= block:
            return 1
        divisor = next((size for size in range(block, block // 4, -1) if positions % size == 0), None)
        if divisor is not None:
            return divisor
    return block if isinstance(instances, int) and instances == 1 else 1


def _sums_in_blocks(x: tf.Tensor, block: int) -> tf.Tensor:
    instances, positions, channels = _sizes(x)
    sums = _ones_times(tf.reshape(x, [instances, positions // block, block * channels]))
    return _ones_times(tf.reshape(sums, [instances, block, channels]))


def _channel_sums(x: tf.Tensor) -> tf.Tensor:
    """The sums over the positions of each instance's channels: (instances, 1, channels, 1)."""
    instances, before, channels, after = _sizes(x)
    rows = tf.reshape(x, [instances, before, channels]) if isinstance(after, int) and after == 1 else tf.reduce_sum(x, axis=3)
    sums = rows if isinstance(before, int) and before == 1 else _column_sums(rows)
    return tf.reshape(sums, [instances, 1, channels, 1])


def _over_instances(sums: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(sums, axis=0, keepdims=True)


def values_per_channel(x: tf.Tensor) -> int | tf.Tensor:
    """How many values each instance's channel of a channel view has; a tensor where the shape is not known yet."""
    _, before, _, after = _sizes(x)
    return _product([before, after])


def mask_view(mask: tf.Tensor, x: tf.Tensor, axis: int) -> tf.Tensor:
    """A mask over all axes of ``x`` but the last, as a channel view: of one channel if the channels are the last axis."""
    shape = tf.shape(x)
    if axis == len(x.shape) - 1:
        shape = tf.concat([shape[:-1], [1]], 0)
    return channel_view(tf.broadcast_to(tf.cast(mask, tf.bool)[..., None], shape), axis, instances=False)


def count_masked(mask: tf.Tensor) -> tf.Tensor:
    """How many positions of a mask's channel view are true, per channel: (1, 1, channels or 1, 1)."""
    return tf.math.count_nonzero(mask, axis=(0, 1, 3), keepdims=True)


def standardize_channels(
    x: tf.Tensor,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    groups: int,
    eps: float,
    mask: tf.Tensor | None = None,
    corrected: Callable[[Statistics], tuple[tf.Tensor, tf.Tensor]] | None = None,
) -> tuple[tf.Tensor, Statistics]:
    """Standardise groups of neighbouring channels of a channel view, then scale and shift each channel.

    With a mask, for which each channel must be a group, the averages for ``m`` and ``v`` are over the true positions; ``y``
    has all, so the gradient adds up all and divides by the number of true ones.

    ``corrected`` makes of the statistics two constants ``a`` and ``b`` per channel, and ``a xhat + b`` takes the place of
    ``xhat`` in ``y``: the scale is then ``scale a`` and the offset ``scale b + offset``.

    With mean ``m`` and variance ``v`` of the group, ``r = 1 / sqrt(v + eps)`` and ``xhat = (x - m) r``::

        y  = scale xhat + offset
        dx = r (g - mean(g) - xhat mean(g xhat))        with g = scale dy
    """
    channels = x.shape[2]
    values = values_per_channel(x) * (channels // groups) if mask is None else count_masked(mask)
    count = tf.cast(tf.maximum(values, 1), x.dtype)

    def counted(values: tf.Tensor) -> tf.Tensor:
        """``values``, but 0 where the mask is false, whatever stands there."""
        return values if mask is None else tf.where(mask, values, tf.zeros((), values.dtype))

    def over_group(sums: tf.Tensor) -> tf.Tensor:
        """From sums per channel to averages over its group, again one per channel."""
        averages = sums / count
        if groups == channels:
            return averages
        grouped = tf.reshape(averages, [-1, groups, channels // groups])
        pooled = tf.reduce_sum(grouped, axis=2, keepdims=True)
        return tf.reshape(tf.broadcast_to(pooled, tf.shape(grouped)), tf.shape(sums))

    shape = [1, 1, channels, 1]
    gamma = tf.ones(shape, x.dtype) if scale is None else tf.reshape(scale, shape)
    beta = tf.zeros(shape, x.dtype) if offset is None else tf.reshape(offset, shape)

    @tf.custom_gradient
    def compute(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):
        # The first mean carries the error of a long sum. Where it is large, the deviations from it are exact, and so is their
        # own mean. Where it is small, they are rounded, all in the same direction, and the first mean is the better one.
        pilot = over_group(_channel_sums(counted(x)))
        deviation = x - pilot
        inner = counted(deviation)
        rest = over_group(_channel_sums(inner))
        variance = tf.maximum(over_group(_channel_sums(inner * inner)) - rest * rest, 0)
        r = tf.math.rsqrt(variance + eps)
        mean = tf.where(pilot * pilot < variance, pilot, pilot + rest)
        whole_gamma, whole_beta = gamma, beta
        if corrected is not None:
            a, b = map(tf.stop_gradient, corrected(Statistics(mean, variance)))
            whole_gamma, whole_beta = gamma * a, gamma * b + beta
        s = r * whole_gamma
        y = deviation * s + (whole_beta - rest * s)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            dbeta = _channel_sums(dy)
            dgamma = r * (_channel_sums(dy * deviation) - rest * dbeta)
            mean_g, mean_gx = over_group(whole_gamma * dbeta), over_group(whole_gamma * dgamma)
            slope = r * mean_gx * r
            shift = rest * slope - r * mean_g
            dx = dy * s - deviation * slope + shift if mask is None else dy * s - counted(deviation * slope - shift)
            if corrected is not None:
                dgamma = dgamma * a + dbeta * b
            return dx, _over_instances(dgamma), _over_instances(dbeta)

        return (y, mean, variance), gradient

    y, mean, variance = compute(x, gamma, beta)
    return y, Statistics(tf.stop_gradient(mean), tf.stop_gradient(variance))


def affine_channels(
    x: tf.Tensor, statistics: Statistics, scale: tf.Tensor | None, offset: tf.Tensor | None, eps: float
) -> tf.Tensor:
    """The same with given statistics, which count as constants.

    Here the mean need not be subtracted first: with ``s = scale r`` the same rounded ``s`` multiplies ``x`` and the mean.
    """
    shape = [1, 1, x.shape[2], 1]
    gamma = tf.ones(shape, x.dtype) if scale is None else tf.reshape(scale, shape)
    beta = tf.zeros(shape, x.dtype) if offset is None else tf.reshape(offset, shape)
    mean = tf.reshape(statistics.mean, shape)
    r = tf.math.rsqrt(tf.reshape(statistics.variance, shape) + eps)

    @tf.custom_gradient
    def compute(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor):
        s = r * gamma

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            dgamma = r * _over_instances(_channel_sums(dy * (x - mean)))
            return dy * s, dgamma, _over_instances(_channel_sums(dy))

        return x * s + (beta - mean * s), gradient

    return compute(x, gamma, beta)


def threshold_channels(
    x: tf.Tensor,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    eps: float,
    learned_eps: tf.Tensor | None,
    threshold: tf.Tensor | None,
) -> tf.Tensor:
    """Divide each channel of a channel view by its root mean square, scale and shift it, and cut it off below a threshold.

    ``learned_eps`` is one number or one per channel; ``threshold`` can be laid on the view. With ``q`` the mean square,
    ``r = 1 / sqrt(q + eps + |learned_eps|)`` and ``xhat = x r``::

        y  = max(z, threshold)          with z = scale xhat + offset
        dz = dy where z >= threshold, else 0; the rest of dy is the threshold's
        dx = r (g - xhat mean(g xhat))  with g = scale dz
    """
    channels = x.shape[2]
    shape = [1, 1, channels, 1]
    count = tf.cast(tf.maximum(values_per_channel(x), 1), x.dtype)
    gamma = tf.ones(shape, x.dtype) if scale is None else tf.reshape(scale, shape)
    beta = tf.zeros(shape, x.dtype) if offset is None else tf.reshape(offset, shape)
    more = tf.zeros(shape, x.dtype) if learned_eps is None else tf.broadcast_to(tf.reshape(learned_eps, [1, 1, -1, 1]), shape)

    @tf.custom_gradient
    def compute(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, more: tf.Tensor, *tau: tf.Tensor):
        r = tf.math.rsqrt(_channel_sums(x * x) / count + eps + tf.abs(more))
        s = r * gamma
        z = x * s + beta

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            dz, dtau = dy, ()
            if tau:
                # A choice by product takes half the time of a choice by condition, and this one is 0 whatever stands there.
                dz = tf.math.multiply_no_nan(dy, tf.cast(z >= tau[0], dy.dtype))
                dtau = (_sums_like(tau[0], dy - dz),)
            dbeta = _channel_sums(dz)
            dgamma = r * _channel_sums(dz * x)
            mean_gx = gamma * dgamma / count
            dx = dz * s - x * (r * mean_gx * r)
            dmore = r * (r * (gamma * dgamma)) * (-0.5 * tf.sign(more))
            return dx, _over_instances(dgamma), _over_instances(dbeta), _over_instances(dmore), *dtau

        return tf.maximum(z, tau[0]) if tau else z, gradient

    return compute(x, gamma, beta, more, *(() if threshold is None else (threshold,)))


def _sums_like(parameter: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """The sums of a channel view over what a parameter of one entry per channel, or per position, is repeated along."""
    _, before, channels, after = parameter.shape
    if before == after == 1:
        return _over_instances(_channel_sums(values))
    sums = _column_sums(tf.reshape(values, [1, _sizes(values)[0], before * channels * after]))
    return tf.reshape(sums, parameter.shape)


def standardize_rows(
    x: tf.Tensor,
    scale: tf.Tensor | None,
    offset: tf.Tensor | None,
    axes: tuple[int, ...],
    eps: float,
    centered: bool,
    subtract_mean: bool,
) -> tf.Tensor:
    """Divide ``x`` by the root of its second moment over ``axes``, then scale and shift each element.

    The moment is about the mean if ``centered``, else about zero; the numerator loses the mean if ``subtract_mean``.
    ``scale`` and ``offset`` have the sizes of ``axes``, in order. With ``r = 1 / sqrt(moment + eps)``::

        y  = scale xhat + offset                       with xhat = numerator r
        dx = r (g - [mean(g)] - deviation r mean(g xhat))       with g = scale dy
    """
    rank = len(x.shape)
    count = math.prod(x.shape[i] for i in axes)
    if rank != 2 and axes == tuple(range(rank - len(axes), rank)):
        flat = tf.reshape(x, [_product(_sizes(x)[: -len(axes)]), count])
        return tf.reshape(standardize_rows(flat, scale, offset, (1,), eps, centered, subtract_mean), tf.shape(x))
    flat = rank == 2 and axes == (1,)
    shape = [size if i in axes else 1 for i, size in enumerate(x.shape)]
    others = [i for i in range(rank) if i not in axes]
    parameters = [tf.reshape(parameter, shape) for parameter in (scale, offset) if parameter is not None]

    def average(values: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(values, axis=axes, keepdims=True) / count

    def over_batch(values: tf.Tensor) -> tf.Tensor:
        return _column_sums(values[None])[0] if flat else tf.reduce_sum(values, axis=others, keepdims=True)

    def scaled(values: tf.Tensor, parameters: Sequence[tf.Tensor]) -> tf.Tensor:
        return values if scale is None else values * parameters[0]

    def scaled_average(values: tf.Tensor, parameters: Sequence[tf.Tensor]) -> tf.Tensor:
        if flat and scale is not None and products_are_exact():
            return tf.matmul(values, parameters[0], transpose_b=True) / count
        return average(scaled(values, parameters))

    @tf.custom_gradient
    def compute(x: tf.Tensor, *parameters: tf.Tensor):
        deviation = x
        if centered:
            # The first mean carries the error of its sum, which is all there is where x is constant; the second takes it off.
            deviation = x - average(x)
            deviation = deviation - average(deviation)
        r = tf.math.rsqrt(average(deviation * deviation) + eps)
        numerator = deviation if subtract_mean == centered else x
        xhat = numerator * r
        y = scaled(xhat, parameters)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            product = dy * xhat
            g = scaled(dy, parameters)
            slope = scaled_average(product, parameters)
            inner = g - (xhat if numerator is deviation else deviation * r) * slope
            dx = r * (inner - average(g) if subtract_mean else inner)
            dscale = () if scale is None else (over_batch(product),)
            return dx, *dscale, *(() if offset is None else (over_batch(dy),))

        return y if offset is None else y + parameters[-1], gradient

    return compute(x, *parameters)
