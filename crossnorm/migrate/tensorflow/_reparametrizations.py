"""The normalizations of weights: our wrappers, and Keras' SpectralNormalization."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

import crossnorm.tensorflow as ours
from crossnorm.errors import Unsupported
from crossnorm.spec import PEERS, WeightSpec
from crossnorm.tensorflow._arrangement import Arrangement, arrangement, owner
from crossnorm.tensorflow._weight import _KERNELS, WeightWrapper, _variable

from .._description import Description, Layout
from .._held import Array, Held
from .._natives import arguments_of, obeyed, refuse, spec_of
from ._held import Place, class_of, policy_of
from .linear import check_present, layer_of, settings_of

_NATIVE = keras.layers.SpectralNormalization


# Taking apart.


def look(layer: Any, name: str | None) -> Held | None:
    """The wrapper taken apart, or None if it is none."""
    if not isinstance(layer, (WeightWrapper, _NATIVE)):
        return None
    cls = class_of(layer, [_NATIVE])
    check_present(layer)
    check_present(layer.layer)
    kernel = _kernel_of(layer, name)
    spec, arranged, variables = (_native_parts if cls is _NATIVE else _own_parts)(layer, kernel)
    shapes = {array.name: array.shape for array in (*spec.parameters, *spec.state)}
    missing = [array for array in shapes if variables[array] is None]
    if missing:
        refuse(layer, f"has no weight for {missing[0]!r}, which build did not make", "say at construction what is learned")
    # An embedding that masks is more than its settings say, and must be given when something is built.
    settings = None if getattr(layer.layer, "mask_zero", False) else settings_of(layer.layer, kernel)
    weight: Any = _variable(owner(layer.layer), kernel)
    places = {"weight": Place(weight, arranged.shape, (*arranged.row_axes, *arranged.column_axes))}
    places |= {array: Place(variables[array], shape) for array, shape in shapes.items()}
    if settings is not None and settings.bias:
        places["bias"] = Place(layer.layer.bias, layer.layer.bias.shape)
    axis = 1 if getattr(layer.layer, "data_format", None) == "channels_first" else None
    layout = Layout(axis=axis, dtype=layer.layer.dtype_policy.name, holder=settings, name=kernel)
    return Held(layer, spec, layout, places)


def _kernel_of(wrapper: Any, name: str | None) -> str:
    """The kernel of this name, or the only one that a wrapper normalizes."""
    if isinstance(wrapper, WeightWrapper):
        names: tuple[str, ...] = wrapper._kernel_names
    else:
        names = ("kernel",) if hasattr(owner(wrapper.layer), "kernel") else ("embeddings",)
    if name is None and len(names) > 1:
        refuse(wrapper, f"normalizes several weights, {', '.join(names)}", "say which by name=")
    if name is not None and name not in names:
        refuse(wrapper, f"does not normalize {name!r}, but {', '.join(names)}", "name one of these")
    return name or names[0]


def _own_parts(wrapper: Any, kernel: str) -> tuple[WeightSpec, Arrangement, dict[str, Any]]:
    arranged = wrapper._arrangement(kernel)
    spec = obeyed(wrapper, lambda: wrapper._spec(arranged.shape))
    variables = {array.name: wrapper._held(kernel, array.name) for array in spec.state}
    return spec, arranged, variables | {array.name: wrapper._held(kernel, "gain") for array in spec.parameters}


def _native_parts(wrapper: Any, kernel: str) -> tuple[Any, Arrangement, dict[str, Any]]:
    if wrapper.dtype_policy.name != wrapper.layer.dtype_policy.name:
        what = f"computes in {wrapper.dtype_policy.name} around a layer of {wrapper.layer.dtype_policy.name}"
        refuse(wrapper, what, "give both one dtype policy")
    arranged = _arranged(owner(wrapper.layer), kernel, PEERS["spectral_norm"]["keras"].fields)
    if arranged.row_axes != (len(arranged.stored) - 1,):
        refuse(wrapper, f"has rows of {kernel!r} that are not its last axis", "use crossnorm's SpectralNormalization")
    spec = spec_of(wrapper, "spectral_norm", "keras", shape=arranged.shape, eps=keras.config.epsilon())
    return spec, arranged, {"u": wrapper.vector_u}


def _arranged(holder: Any, kernel: str, rows: Mapping[str, Any]) -> Arrangement:
    kinds = (rows.get(f"{kind}_row", "output") for kind in ("transposed", "depthwise", "embedding"))
    return arrangement(holder, kernel, _variable(holder, kernel).shape, *kinds)


# Putting together.


def make(description: Description, native: bool, holder: keras.layers.Layer | None) -> Held:
    """A wrapper, built and taken apart, for its arrays to be filled; it wraps once nothing can go wrong any more."""
    spec: Any = description.spec
    layout, arrays = description.layout, description.arrays
    arguments = arguments_of(spec, "keras", eps=keras.config.epsilon()) if native else {}
    stored = {name: array for name, array in arrays.items() if native or name not in ("u", "v")}
    if holder is None:
        if layout.holder is None:
            refuse(spec, "has a layout without holder", "give the layer whose weight it normalizes: holder=")
        # Rows of multipliers are a depthwise layer's; otherwise the two kinds have the same rows.
        depthwise = spec.depthwise_row == "output" or spec.shape[1] == layout.holder.groups
        data_format, policy = "channels_first" if layout.axis == 1 else "channels_last", policy_of(layout.dtype, stored)
        holder, shape = layer_of(layout.holder, data_format=data_format, depthwise=depthwise, dtype=policy)
        holder.build(shape)
    check_present(holder)
    kernel = _kernel_to_wrap(holder, layout.name)
    _check_holder(spec, arrays, holder, kernel)
    vectors = {str(arrays[name].dtype) for name in arrays.keys() - stored.keys()}
    wide = "float64" if holder.variable_dtype == "float64" else "float32"
    if {str(array.dtype) for array in stored.values()} != {holder.variable_dtype} or vectors - {wide}:
        dtypes = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        what = f"{dtypes} would not keep their dtypes in a layer that stores {holder.variable_dtype}, and vectors in {wide}"
        raise Unsupported(f"crossnorm.migrate: {what}; convert the arrays first")
    if native:
        layer = keras.layers.SpectralNormalization(holder, **arguments, dtype=holder.dtype_policy)
    else:
        layer = ours.layer(spec, wrapped=holder, kernel=kernel)
    layer.build(holder.get_build_config()["input_shape"])
    held: Any = look(layer, kernel)
    return held


def _check_holder(spec: Any, arrays: Mapping[str, Array], holder: Any, kernel: str) -> None:
    """A holder has the rows that are promised, and a bias if there is one."""
    rows, settings = _arranged(owner(holder), kernel, spec.to_dict()).shape, settings_of(holder, kernel)
    what = None
    if rows != spec.shape:
        what = f"holds a {kernel!r} of shape {rows}, rows first, and {spec.method} is of shape {spec.shape}"
    elif ("bias" in arrays) != (settings is not None and settings.bias):
        what = "has no bias, and the description one" if "bias" in arrays else "has a bias, and the description none"
    if what is not None:
        refuse(holder, what, "give the kind of layer that was described")


def _kernel_to_wrap(holder: Any, name: str | None) -> str:
    """The holder's weight of this name, or the only one that is a kernel."""
    kernels = [each for each in (name, *_KERNELS) if each and _variable(owner(holder), each) is not None]
    if not kernels or (kernels[0] != name and len(kernels) > 1):
        found = ", ".join(kernels) or "no kernel"
        refuse(holder, f"has {found} and no weight {name!r}", "name its kernel in the layout")
    return kernels[0]


def unit(spec: Any, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """The arrays, with a ``u`` of norm 1; it has another norm, by more than rounding, only where no iteration has been made."""
    if getattr(spec, "stored", None) != "u" or spec.warm_up:
        return arrays
    u = arrays["u"].astype(np.float64)
    norm = np.linalg.norm(u)
    return arrays if norm == 0 or abs(norm - 1) < 0.01 else {**arrays, "u": (u / norm).astype(arrays["u"].dtype)}
