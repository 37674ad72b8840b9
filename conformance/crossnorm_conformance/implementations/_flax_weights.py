"""Running a linear layer that ``flax.nnx`` has wrapped. The last axis of a kernel or of an embedding is its output."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossnorm import SpectralNormSpec
from crossnorm.rounding import accumulation

from ..case import Arrays, Case
from ..cases import Fault
from ..linear import Linear
from . import Result
from ._flax import dtypes, shaped, take
from ._peer import arguments_of, result


def lacks_of_weights(case: Case, layer: Linear) -> str:
    """What the two wrappers have no means for; empty if they have."""
    spec: Any = case.spec
    if layer.kind == "depthwise" and spec.depthwise_row != "output":
        return "flax.nnx has no depthwise layer apart from the convolution in groups"
    if spec.method == "weight_norm":
        # Without eps every place for it is the same.
        return "flax.nnx.WeightNorm adds eps to the square" if spec.eps and spec.eps_place != "added_to_square" else ""
    if (spec.iteration_order, spec.iterate, spec.stored) != ("v_first", "always", "u") or spec.iterations == 0:
        return "flax.nnx.SpectralNorm iterates v first, in every call, at least once, and stores u"
    if spec.eps_place != "added_to_square":
        return "flax.nnx.SpectralNorm adds eps to the square"
    if getattr(spec, f"{layer.kind}_row", "output") != "output":
        return "flax.nnx.SpectralNorm takes the last axis, the output, for the rows"
    return ""


def _linear(layer: Linear, dtype: str) -> nnx.Module:
    options: dict[str, Any] = {**dtypes(dtype), "rngs": nnx.Rngs(0)}
    if layer.kind == "embedding":
        return nnx.Embed(layer.inputs, layer.outputs, **options)
    if layer.kind == "dense":
        return nnx.Linear(layer.inputs, layer.outputs, use_bias=False, **options)
    if layer.kind == "transposed":
        return nnx.ConvTranspose(layer.inputs, layer.outputs, layer.kernel, padding="VALID", use_bias=False, **options)
    groups = {"feature_group_count": layer.groups}
    return nnx.Conv(layer.inputs, layer.outputs, layer.kernel, padding="VALID", use_bias=False, **groups, **options)


def _wrap(spec: Any, inner: nnx.Module, kind: str, changes: Any = None, **options: Any) -> nnx.Module:
    arguments = arguments_of("flax", spec, changes) | options
    if isinstance(spec, SpectralNormSpec):
        return nnx.SpectralNorm(inner, **arguments, rngs=nnx.Rngs(0))
    del arguments["scale_init"]  # the scale is loaded
    row = -2 if getattr(spec, f"{kind}_row", "output") == "input" else -1
    arguments["feature_axes"] = None if spec.norm_over == "whole" else row
    which = nnx.PathContains("embedding" if kind == "embedding" else "kernel")
    return nnx.WeightNorm(inner, variable_filter=which, **arguments, rngs=nnx.Rngs(0))


def run_weights(layer: Linear, case: Case, arrays: Arrays, run: Any) -> dict[tuple[int, str], Result]:
    """Every step of a case about a weight. Weights stay float32 beside half inputs."""
    spec: Any = case.spec
    name = "embedding" if layer.kind == "embedding" else "kernel"
    inner: Any = _linear(layer, case.dtype)
    if case.defaults:
        wrapper: Any = (nnx.SpectralNorm if isinstance(spec, SpectralNormSpec) else nnx.WeightNorm)(inner, rngs=nnx.Rngs(0))
    else:
        wrapper = _wrap(spec, inner, layer.kind, param_dtype=accumulation(case.dtype))
    if spec.scale:
        wrapper.scales[name,] = jnp.asarray(arrays.values["scale"])
    for array in spec.state:
        wrapper.batch_stats[name, array.name][...] = arrays.values[array.name][None]

    def to_spec(values: Any) -> Result:
        return result(values[...], lambda v: layer.arrange(_from_flax(layer, v), spec))

    results: dict[tuple[int, str], Result] = {}
    for step, mode in case.steps:
        wrapper.train() if mode.update_running else wrapper.eval()
        getattr(inner, name)[...] = _to_flax(layer, layer.restore(arrays.values[f"weight{step}"], spec))
        x, upstream = (_channels_last(arrays.values[f"{n}{step}"]) for n in ("x", "upstream"))
        x = jnp.asarray(x, case.dtype if case.inputs_differ else None)
        y, dx, gradients = take(wrapper, run, x, jnp.asarray(upstream, case.dtype))
        results[step, "y"] = result(y, _channels_second)
        results[step, "effective_weight"] = to_spec(getattr(inner, name))
        if dx is not None:
            results[step, "dx"] = result(dx, _channels_second)
        results[step, "dweight"] = to_spec(gradients["layer_instance"][name])
        for array in spec.state:
            results[step, array.name] = shaped(wrapper.batch_stats[name, array.name], array.shape)
    return results


def _channels_last(values: Any) -> Any:
    return np.moveaxis(values, 1, -1) if values.ndim > 1 else values


def _channels_second(values: Any) -> Any:
    return np.moveaxis(values, -1, 1)


def _to_flax(layer: Linear, weight: Any) -> Any:
    """From (outputs, inputs / groups, *kernel) to (*kernel, inputs / groups, outputs)."""
    return _flipped(layer, np.moveaxis(weight, (0, 1), (-1, -2)))


def _from_flax(layer: Linear, kernel: Any) -> Any:
    return np.moveaxis(_flipped(layer, kernel), (-1, -2), (0, 1))


def _flipped(layer: Linear, kernel: Any) -> Any:
    """Its transposed convolution, unlike others, slides the kernel over the input as a convolution does."""
    return np.flip(kernel, range(layer.rank)) if layer.kind == "transposed" else kernel


def misbuild_weights(fault: Fault) -> nnx.Module:
    """A wrapper that cannot be."""
    spec: Any = fault.spec
    rows, columns = spec.shape
    inner: Any = nnx.Linear(columns, rows, rngs=nnx.Rngs(0))
    if fault.wrap == "no_kernel":
        inner = nnx.Dropout(0.5, deterministic=True)
    if fault.wrap in ("twice", "tied"):
        wrapper = _wrap(spec, inner, "dense")
        if fault.wrap == "twice":
            return _wrap(spec, wrapper, "dense")
        shared = nnx.Linear(columns, rows, rngs=nnx.Rngs(0))
        shared.kernel = inner.kernel
        inner = shared
    return _wrap(spec, inner, "dense", fault.arguments)
