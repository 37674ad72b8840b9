"""What batch normalization and batch renormalization share: everything but what becomes of the batch's statistics."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from crossnorm.spec import BatchNormSpec, BatchRenormSpec, Mode

from ._arithmetic import (
    Statistics,
    affine_channels,
    channel_view,
    count_masked,
    mask_view,
    standardize_channels,
    values_per_channel,
)
from ._base import Tensor, channel_axis, checked, checked_mask, optional, refuse_single_value, unless, widened

State = Mapping[str, Tensor]


def normalize_batch(
    spec: BatchNormSpec | BatchRenormSpec,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: State,
    mode: Mode,
    axis: int,
    mask: Tensor | None,
    updated: Callable[[State, Statistics, int | Tensor], dict[str, Tensor]],
    corrected: Callable[[State, Statistics], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and new state of a method that normalizes each channel over the batch and all positions.

    ``updated`` makes the new state of the old one, the batch's statistics and the number of values that they rest on.
    ``corrected`` makes the factor and the term with which ``xhat`` is corrected; without it ``xhat`` stays as it is.
    """
    x = checked(spec, x, parameters, state)
    if mask is not None:
        mask = checked_mask(mask, x, spec.method)
    axis = channel_axis(axis, x.shape, spec.channels, 1, spec.method)
    view = channel_view(widened(x), axis, instances=False)
    scale, offset = optional(parameters, view.dtype)
    old = {name: tf.convert_to_tensor(value) for name, value in state.items()}
    new = dict(old)
    if state and not mode.use_batch_statistics:
        running, eps = _running(old, spec.eps, view.dtype)
        y = affine_channels(view, running, scale, offset, eps)
    else:
        mask = None if mask is None else mask_view(mask, x, axis)
        values = values_per_channel(view)
        count = values if mask is None else count_masked(mask)
        refused: bool | Tensor = False
        if spec.single_value == "raise":
            view, refused = refuse_single_value(view, count, spec.method)
        correction = None if corrected is None else lambda batch: corrected(old, batch)
        y, batch = standardize_channels(view, scale, offset, spec.channels, spec.eps, mask, correction)
        if state and mode.update_running:
            new = unless((values == 0) | refused, old, updated(old, batch, count))
    return tf.cast(tf.reshape(y, tf.shape(x)), x.dtype), new


def _running(state: State, eps: float, dtype: tf.DType) -> tuple[Statistics, float]:
    """The running statistics for inference, and what is still to be added to the variance: a kept deviation has it inside."""
    mean = tf.cast(state["running_mean"], dtype)
    if "running_variance" in state:
        return Statistics(mean, tf.cast(state["running_variance"], dtype)), eps
    return Statistics(mean, tf.cast(state["running_standard_deviation"], dtype) ** 2), 0.0
