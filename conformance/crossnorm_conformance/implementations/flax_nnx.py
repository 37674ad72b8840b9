"""``flax.nnx`` as it is: the layers, eager and under ``jax.jit``. Half inputs go through layers of that ``dtype``."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from crossnorm import NormSpec, SpectralNormSpec, WeightSpec

from ..case import Arrays, Case
from ..cases import Fault
from . import Misuse, Result
from ._flax import compiled, dtypes, on, run_step, shaped, take
from ._flax_weights import lacks_of_weights, misbuild_weights, run_weights
from ._peer import Witness, arguments_of, axes_of, from_layout, result, to_layout

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
        # Eagerly each primitive is compiled for itself: minutes, and gigabytes that nobody gives back.
        return ("function",)

    def lacks(self, case: Case) -> str:
        spec: Any = case.spec
        if case.layer is not None:
            return lacks_of_weights(case, case.layer)
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
        run = compiled if execution == "function" else run_step
        with on(device, case.dtype == "float64"):
            if case.layer is not None:
                return run_weights(case.layer, case, arrays, run)
            layer: Any = _build(case)
            for role, name in _NAMES.items():
                if role in arrays.values:
                    held = getattr(layer, name)
                    held[...] = arrays.values[role].reshape(held.shape)
            results: dict[tuple[int, str], Result] = {}
            for step, mode in case.steps:
                layer.train() if mode.update_running else layer.eval()
                x, upstream = (jnp.asarray(to_layout(case, arrays.values[f"{n}{step}"]), case.dtype) for n in ("x", "upstream"))
                y, dx, gradients = take(layer, run, x, upstream)
                results[step, "y"] = result(y, lambda v: from_layout(case, v))
                results[step, "dx"] = result(dx, lambda v: from_layout(case, v))
                for parameter in case.spec.parameters:
                    results[step, f"d{parameter.name}"] = shaped(gradients[_NAMES[parameter.name]], parameter.shape)
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
            shape = fault.shape
            if fault.spec.method == "group_norm" and len(shape) > 1:
                shape = (shape[0], *shape[2:], shape[1])  # the channels are last there
            layer(jnp.ones(shape, fault.dtype))
        except Exception as error:
            return Misuse(error, before, _state_of(layer))
        return Misuse(None, before, _state_of(layer))


def _build(case: Case) -> nnx.Module:
    spec: Any = case.spec
    arguments = {} if case.defaults else _arguments(spec, axes_of(case))
    return _CLASSES[spec.method](_features(spec), **arguments, **dtypes(case.dtype), rngs=nnx.Rngs(0))


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


def _misbuild(fault: Fault) -> Any:
    spec: Any = fault.spec
    if isinstance(spec, WeightSpec):
        return misbuild_weights(fault)
    shape = fault.arguments.get("shape", spec.parameter_shape)
    axes = (1,) if hasattr(spec, "channels") else tuple(range(-len(shape), 0))
    return _CLASSES[spec.method](int(np.prod(shape)), **_arguments(spec, axes, fault.arguments), rngs=nnx.Rngs(0))


def _state_of(layer: Any) -> dict[str, Any]:
    if layer is None:
        return {}
    return {"/".join(map(str, path)): np.array(v[...]) for path, v in nnx.to_flat_state(nnx.state(layer, nnx.BatchStat))}


IMPLEMENTATION = FlaxNNX()
