"""TensorFlow's own kernels, eager and in a graph: the fused batch normalization, and ``tf.nn.moments`` with
``tf.nn.batch_normalization``, of which the other methods are composed here as its documentation shows."""

from typing import Any

import numpy as np
import tensorflow as tf

from crossnorm import Mode
from crossnorm.rounding import accumulation

from ..case import Arrays, Case
from . import Result
from ._peer import Witness, axes_of, from_layout, result, to_layout

_RUNNING = ("running_mean", "running_variance")


class TensorFlowKernels(Witness):
    name = "tensorflow"
    framework = "tf_keras2"

    def methods(self) -> tuple[str, ...]:
        return ("batch_norm", "layer_norm", "group_norm", "instance_norm")

    def versions(self) -> dict[str, str]:
        return {"tensorflow": tf.__version__}

    def executions(self) -> tuple[str, ...]:
        return ("eager", "function")

    def lacks(self, case: Case) -> str:
        spec: Any = case.spec
        if case.layout == "strided":
            return "TensorFlow tensors have no strides"
        if case.defaults:
            return "functions without state have no default layer"
        if spec.method == "instance_norm" and spec.tracked:
            return "tf.nn has no instance normalization with running statistics"
        # What training stores does not matter where nothing is trained.
        trained = spec.method == "batch_norm" and spec.tracked and case.mode == "train"
        if trained and spec.running_variance == "unbiased" and not _fused(case):
            return "tf.nn has the unbiased variance in fused_batch_norm only: rank 4 or 5, no float64"
        return ""

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        with tf.device("/CPU:0"):
            spec: Any = case.spec
            names = (*(p.name for p in spec.parameters), *(a.name for a in spec.state if a.name in _RUNNING))
            held = {name: tf.convert_to_tensor(arrays.values[name]) for name in names}
            count = int(arrays.values.get("batches_tracked", 0))
            run = _traced(case, held) if execution == "function" else _step
            results: dict[tuple[int, str], Result] = {}
            for step, mode in case.steps:
                rate = 1 / (count + step) if getattr(spec, "decay", 0) is None else 1 - getattr(spec, "decay", 0)
                x, dy = (tf.cast(to_layout(case, arrays.values[f"{n}{step}"]), case.dtype) for n in ("x", "upstream"))
                y, dx, gradients, after = run(case, mode, rate, x, dy, held)
                held |= after
                results[step, "y"] = result(y, lambda v: from_layout(case, v))
                results[step, "dx"] = result(dx, lambda v: from_layout(case, v))
                for name in names:
                    if name in _RUNNING:
                        results[step, name] = result(held[name])
                    else:
                        results[step, f"d{name}"] = result(gradients[name])
            return results


def _fused(case: Case) -> bool:
    """Whether the fused kernel is asked for: it is the one that stores the unbiased variance."""
    spec: Any = case.spec
    wanted = spec.tracked and spec.running_variance == "unbiased"
    return bool(wanted and len(case.shape) in (4, 5) and case.dtype != "float64")


def _traced(case: Case, held: dict[str, tf.Tensor]) -> Any:
    """The step as a graph that does not know the size of the batch."""
    x = tf.TensorSpec([None, *to_layout(case, np.empty(case.shape)).shape[1:]], case.dtype)
    signature = [x, x, {name: tf.TensorSpec(value.shape, value.dtype) for name, value in held.items()}]
    traces: dict[tuple[Mode, float], Any] = {}

    def run(case: Case, mode: Mode, rate: float, *tensors: Any) -> Any:
        if (mode, rate) not in traces:
            step = lambda *given: _step(case, mode, rate, *given)  # noqa: E731
            traces[mode, rate] = tf.function(step, input_signature=signature)
        return traces[mode, rate](*tensors)

    return run


def _step(case: Case, mode: Mode, rate: float, x: tf.Tensor, upstream: tf.Tensor, held: dict[str, tf.Tensor]) -> Any:
    parameters = {p.name: held[p.name] for p in case.spec.parameters}
    kernel = _composed
    if case.spec.method == "batch_norm":
        kernel = _fused_batch_norm if _fused(case) else _batch_norm
    with tf.GradientTape() as tape:
        tape.watch((x, parameters))
        y, after = kernel(case, mode, rate, x, held)
    dx, gradients = tape.gradient(y, (x, parameters), output_gradients=upstream)
    return y, dx, gradients, after


def _fused_batch_norm(case: Case, mode: Mode, rate: float, x: tf.Tensor, held: dict[str, tf.Tensor]) -> Any:
    spec: Any = case.spec
    rest = "DHW"[-(len(case.shape) - 2) :]
    scale = held.get("scale", tf.ones(spec.channels))
    offset = held.get("offset", tf.zeros(spec.channels))
    y, *after = tf.compat.v1.nn.fused_batch_norm(
        x,
        scale,
        offset,
        *(held[name] for name in _RUNNING),
        epsilon=spec.eps,
        data_format=f"N{rest}C" if case.layout == "channels_last" else f"NC{rest}",
        is_training=mode.use_batch_statistics,
        exponential_avg_factor=rate,
    )
    return y, dict(zip(_RUNNING, after, strict=True)) if mode.update_running else {}


def _batch_norm(case: Case, mode: Mode, rate: float, x: tf.Tensor, held: dict[str, tf.Tensor]) -> Any:
    """The moving average is the caller's here."""
    spec: Any = case.spec
    (channel,) = axes_of(case)
    shape = _broadcast(case, x)
    if spec.tracked and not mode.use_batch_statistics:
        moments = [held[name] for name in _RUNNING]
    else:
        axes = [axis for axis in range(len(x.shape)) if axis != channel % len(x.shape)]
        moments = tf.nn.moments(tf.cast(x, accumulation(case.dtype)), axes)
    y = _normalized(spec, x, [tf.reshape(moment, shape) for moment in moments], held, shape)
    if not (spec.tracked and mode.update_running):
        return y, {}
    return y, {n: held[n] * (1 - rate) + moment * rate for n, moment in zip(_RUNNING, moments, strict=True)}


def _composed(case: Case, mode: Mode, rate: float, x: tf.Tensor, held: dict[str, tf.Tensor]) -> Any:
    """Layer, group and instance normalization: groups of channels get an axis of their own."""
    spec: Any = case.spec
    split, shape, axes = x, _broadcast(case, x), list(axes_of(case))
    if hasattr(spec, "channels"):
        sizes, channel = list(x.shape), axes[0] % len(x.shape)
        groups = getattr(spec, "groups", spec.channels)
        divided = [groups, spec.channels // groups]
        split = tf.reshape(x, [-1, *sizes[1:channel], *divided, *sizes[channel + 1 :]])
        shape[channel : channel + 1] = divided
        axes = [axis for axis in range(1, len(sizes) + 1) if axis != channel]
    mean, variance = tf.nn.moments(tf.cast(split, accumulation(case.dtype)), axes, keepdims=True)
    if not getattr(spec, "subtract_mean", True):
        mean = tf.zeros_like(mean)
    return tf.reshape(_normalized(spec, split, (mean, variance), held, shape), tf.shape(x)), {}


def _normalized(spec: Any, x: tf.Tensor, moments: Any, held: dict[str, tf.Tensor], shape: list[int]) -> tf.Tensor:
    scale, offset = (tf.reshape(held[name], shape) if name in held else None for name in ("scale", "offset"))
    return tf.nn.batch_normalization(x, *moments, offset, scale, spec.eps)


def _broadcast(case: Case, x: tf.Tensor) -> list[int]:
    """The shape in which a parameter meets the input."""
    kept = {axis % len(x.shape) for axis in axes_of(case)}
    return [size if axis in kept else 1 for axis, size in enumerate(x.shape)]


IMPLEMENTATION = TensorFlowKernels()
