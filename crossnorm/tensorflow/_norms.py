"""Norms and means of a weight's rows that neither overflow nor lose the digits that a large mean hides."""

import math
from collections.abc import Sequence

import tensorflow as tf

Tensor = tf.Tensor
Axes = Sequence[int] | None


def norm(values: Tensor, axes: Axes, of_zeros: float = 0.0) -> Tensor:
    """The root of the sum of squares over ``axes``, which stay, of size one; ``of_zeros``, a constant, stands for one of 0."""
    largest = tf.stop_gradient(tf.reduce_max(tf.abs(values), axes, keepdims=True))
    zero = tf.equal(largest, 0)
    unit = tf.where(zero, tf.ones_like(largest), largest)
    total = tf.reduce_sum(tf.square(values / unit), axes, keepdims=True)
    root = unit * tf.sqrt(tf.where(zero, tf.ones_like(total), total))
    return tf.where(zero, tf.constant(of_zeros, values.dtype), root)


def with_eps(size: Tensor, eps: float, place: str) -> Tensor:
    """The denominator that the specification makes of a norm or of a deviation."""
    if eps == 0:
        return size
    if place == "maximum":
        return tf.maximum(size, tf.constant(eps, size.dtype))
    root = tf.constant(math.sqrt(eps), size.dtype)
    if place == "maximum_of_square":
        return tf.maximum(size, root)
    unit = tf.stop_gradient(tf.maximum(size, root))
    return unit * tf.sqrt(tf.square(size / unit) + tf.square(root / unit))


def centred(values: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``values`` less their mean over ``axes``, and the mean.

    The first values come off first: equal ones are 0 exactly, and a mean far from 0 does not hide the digits of the others.
    """
    first = tf.stop_gradient(values)
    for axis in axes:
        first = tf.gather(first, [0], axis=axis)
    rest = values - first
    mean = tf.reduce_mean(rest, axes, keepdims=True)
    return rest - mean, first + mean
