"""``flax.nnx`` as it is: the layers, eager and under ``jax.jit``. Half inputs go through layers of that ``dtype``."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes, and other frameworks, share one GPU

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossnorm import NormSpec, SpectralNormSpec, WeightSpec
from crossnorm.rounding import accumulation

from ..case import Arrays, Case
from ..cases import Fault
from ..linear import Linear
from . import Misuse, Result
from ._peer import (
    Witness,
    arguments_of,
    axes_of,
    from_layout,
    inputs_outputs_last,
    outputs_inputs_first,
    result,
    to_layout,
)  # fmt: skip

_CLASSES: dict[str, type[nnx.Module]] = {
    "batch_norm": nnx.BatchNorm,
    "instance_norm": nnx.InstanceNorm,
    "group_norm": nnx.GroupNorm,
    "layer_norm": nnx.LayerNorm,
    "rms_norm": nnx.RMSNorm,
}
_NAMES = {"scale": "scale", "offset": "bias", "running_mean": "mean", "running_variance": "var"}


class FlaxNNX(Witness):
    name = "flax.nnx"
    framework = "flax"

    def methods(self) -> tuple[str, ...]:
        return (*_CLASSES, "spectral_norm", "weight_norm")

    def versions(self) -> dict[str, str]:
        return {"flax": flax.__version__, "jax": jax.__version__}

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "cuda") if jax.default_backend() == "gpu" else ("cpu",)

    def executions(self) -> tuple[str, ...]:
        return ("eager", "function")

    def lacks(self, case: Case) -> str:
        spec: Any = case.spec
        if case.layer is not None:
            return _lacks_of_weights(case, case.layer)
        if case.layout == "strided":
            return "JAX arrays have no strides"
        if spec.method == "batch_norm":
            if not spec.tracked:
                return "flax.nnx.BatchNorm always keeps running averages"
            # What training stores does not matter where nothing is trained.
            if case.mode == "train" and spec.running_variance != "biased":
                return "flax.nnx.BatchNorm stores the biased variance only"
            if case.mode == "train" and spec.decay is None:
                return "flax.nnx.BatchNorm has no cumulative average"
        if spec.method == "instance_norm" and spec.tracked:
            return "flax.nnx.InstanceNorm has no running statistics"
        if spec.method == "group_norm" and case.layout == "channels_first":
            return "flax.nnx.GroupNorm takes the last axis for the channels"
        if spec.method == "layer_norm" and not spec.subtract_mean:
            return "flax.nnx.LayerNorm always subtracts the mean"
        return ""

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        run = _compiled if execution == "function" else _step
        with _on(device, case.dtype == "float64"):
            if case.layer is not None:
                return _run_weights(case.layer, case, arrays, run)
            layer: Any = _build(case)
            for role, name in _NAMES.items():
                if role in arrays.values:
                    held = getattr(layer, name)
                    held[...] = arrays.values[role].reshape(held.shape)
            results: dict[tuple[int, str], Result] = {}
            for step, mode in case.steps:
                layer.train() if mode.update_running else layer.eval()
                x, upstream = (jnp.asarray(to_layout(case, arrays.values[f"{n}{step}"]), case.dtype) for n in ("x", "upstream"))
                y, dx, gradients = _take(layer, run, x, upstream)
                results[step, "y"] = result(y, lambda v: from_layout(case, v))
                results[step, "dx"] = result(dx, lambda v: from_layout(case, v))
                for parameter in case.spec.parameters:
                    results[step, f"d{parameter.name}"] = _shaped(gradients[_NAMES[parameter.name]], parameter.shape)
                for array in case.spec.state:
                    if self.shows(case, array.name):
                        results[step, array.name] = result(getattr(layer, _NAMES[array.name])[...])
            return results

    def inexpressible(self, fault: Fault) -> str:
        if isinstance(fault.spec, WeightSpec):
            taken = {"iterations", "eps"} if isinstance(fault.spec, SpectralNormSpec) else {"eps"}
            if fault.wrap in ("unknown_kernel", "unbuilt") or not set(fault.arguments) <= taken:
                return "flax.nnx has no such argument, and no layer that is not built"
        if fault.spec.method == "instance_norm" and "decay" in fault.arguments:
            return "flax.nnx.InstanceNorm has no running statistics"
        return ""

    def misuse(self, fault: Fault) -> Misuse:
        before: dict[str, Any] = {}
        layer = None
        try:
            layer = _misbuild(fault)
            before = _state_of(layer)
            layer(jnp.ones(fault.shape, fault.dtype))
        except Exception as error:
            return Misuse(error, before, _state_of(layer))
        return Misuse(None, before, _state_of(layer))


@contextmanager
def _on(device: str, double: bool) -> Iterator[None]:
    """Double precision is switched on for this run only: it is the process's, and other runs share the process."""
    with jax.enable_x64(double), jax.default_device(jax.devices("gpu" if device == "cuda" else "cpu")[0]):
        yield


def _dtypes(dtype: str) -> dict[str, Any]:
    """The optional arguments that a dtype other than float32 takes; parameters stay float32 beside half inputs."""
    return {"float32": {}, "float64": {"param_dtype": jnp.float64}}.get(dtype, {"dtype": dtype})


def _build(case: Case) -> nnx.Module:
    spec: Any = case.spec
    arguments = {} if case.defaults else _arguments(spec, axes_of(case))
    return _CLASSES[spec.method](_features(spec), **arguments, **_dtypes(case.dtype), rngs=nnx.Rngs(0))


def _features(spec: Any) -> int:
    """How many parameters of a kind there are, whatever number of axes they lie on."""
    return int(np.prod(spec.parameter_shape))


def _arguments(spec: NormSpec, axes: tuple[int, ...], changes: Any = None) -> dict[str, Any]:
    arguments = arguments_of("flax", spec, changes)
    if spec.method == "batch_norm":
        return arguments | {"axis": axes[0]}
    if spec.method == "instance_norm":
        return arguments | {"feature_axes": axes}
    return arguments if spec.method == "group_norm" else arguments | {"reduction_axes": axes, "feature_axes": axes}


def _step(graph: Any, params: Any, rest: Any, x: jax.Array, upstream: jax.Array) -> Any:
    """Output, its gradients for the input and for every ``Param``, and what the layer then holds."""

    def call(params: Any, *inputs: jax.Array) -> tuple[jax.Array, Any]:
        layer = nnx.merge(graph, params, rest, copy=True)
        y = layer(*inputs or (x,))
        return y, nnx.state(layer)

    differ = (x,) if jnp.issubdtype(x.dtype, jnp.floating) else ()
    y, pull_back, after = jax.vjp(call, params, *differ, has_aux=True)
    return y, pull_back(upstream.astype(y.dtype)), after


_compiled = jax.jit(_step, static_argnums=0)


def _take(layer: nnx.Module, run: Any, x: jax.Array, upstream: jax.Array) -> tuple[jax.Array, jax.Array | None, Any]:
    """One step, after which the layer holds what it would hold if it had been called itself."""
    y, (gradients, *dx), after = run(*nnx.split(layer, nnx.Param, ...), x, upstream)
    nnx.update(layer, after)
    return y, dx[0] if dx else None, gradients


def _shaped(values: Any, shape: tuple[int, ...]) -> Result:
    return result(values[...], lambda v: v.reshape(shape))


# Weights: the last axis of a kernel or of an embedding is its output.


def _lacks_of_weights(case: Case, layer: Linear) -> str:
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
    options: dict[str, Any] = {**_dtypes(dtype), "rngs": nnx.Rngs(0)}
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


def _flipped(layer: Linear, kernel: Any) -> Any:
    """Its transposed convolution, unlike others, slides the kernel over the input as a convolution does."""
    return np.flip(kernel, range(layer.rank)) if layer.kind == "transposed" else kernel


def _run_weights(layer: Linear, case: Case, arrays: Arrays, run: Any) -> dict[tuple[int, str], Result]:
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
        return result(values[...], lambda v: layer.arrange(outputs_inputs_first(_flipped(layer, v)), spec))

    results: dict[tuple[int, str], Result] = {}
    for step, mode in case.steps:
        wrapper.train() if mode.update_running else wrapper.eval()
        weight = layer.restore(arrays.values[f"weight{step}"], spec)
        getattr(inner, name)[...] = _flipped(layer, inputs_outputs_last(weight))
        x, upstream = (_channels_last(arrays.values[f"{n}{step}"]) for n in ("x", "upstream"))
        x = jnp.asarray(x, case.dtype if case.inputs_differ else None)
        y, dx, gradients = _take(wrapper, run, x, jnp.asarray(upstream, case.dtype))
        results[step, "y"] = result(y, _channels_second)
        results[step, "effective_weight"] = to_spec(getattr(inner, name))
        if dx is not None:
            results[step, "dx"] = result(dx, _channels_second)
        results[step, "dweight"] = to_spec(gradients["layer_instance"][name])
        for array in spec.state:
            results[step, array.name] = _shaped(wrapper.batch_stats[name, array.name], array.shape)
    return results


def _channels_last(values: Any) -> Any:
    return np.moveaxis(values, 1, -1) if values.ndim > 1 else values


def _channels_second(values: Any) -> Any:
    return np.moveaxis(values, -1, 1)


# Misuse.


def _misbuild(fault: Fault) -> Any:
    spec: Any = fault.spec
    if isinstance(spec, WeightSpec):
        rows, columns = spec.shape
        inner: Any = nnx.Dropout(0.5) if fault.wrap == "no_kernel" else nnx.Linear(columns, rows, rngs=nnx.Rngs(0))
        if fault.wrap in ("twice", "tied"):
            wrapper = _wrap(spec, inner, "dense")
            if fault.wrap == "twice":
                return _wrap(spec, wrapper, "dense")
            shared = nnx.Linear(columns, rows, rngs=nnx.Rngs(0))
            shared.kernel = inner.kernel
            inner = shared
        return _wrap(spec, inner, "dense", fault.arguments)
    axes = (1,) if hasattr(spec, "channels") else tuple(range(-len(spec.parameter_shape), 0))
    shape = fault.arguments.get("shape", spec.parameter_shape)
    if spec.method == "group_norm":
        axes = ()
    return _CLASSES[spec.method](int(np.prod(shape)), **_arguments(spec, axes, fault.arguments), rngs=nnx.Rngs(0))


def _state_of(layer: Any) -> dict[str, Any]:
    if layer is None:
        return {}
    return {"/".join(map(str, path)): np.array(v[...]) for path, v in nnx.to_flat_state(nnx.state(layer, nnx.BatchStat))}


IMPLEMENTATION = FlaxNNX()
