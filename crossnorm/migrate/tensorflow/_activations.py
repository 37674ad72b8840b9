"""The normalizations of activations: Keras' and ours. How a native calls a field is read from the presets."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import crossnorm.tensorflow as ours
from crossnorm.errors import MigrationError
from crossnorm.spec import NormSpec
from crossnorm.tensorflow._base import _ATTRIBUTES, SpecLayer

from .._description import Description, Layout
from .._held import Held
from .._natives import arguments_of, native_lacks, obeyed, refuse, spec_of
from ._held import Place, class_of, policy_of
from .linear import check_present

_NATIVES: dict[str, type[keras.layers.Layer]] = {
    "batch_norm": keras.layers.BatchNormalization,
    "layer_norm": keras.layers.LayerNormalization,
    "group_norm": keras.layers.GroupNormalization,
    "rms_norm": keras.layers.RMSNormalization,
}
_METHODS = {native: method for method, native in _NATIVES.items()}
# The arguments that make a native layer one of another method.
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "batch_renorm": ("batch_norm", {"renorm": True}),
    "instance_norm": ("group_norm", {"groups": -1}),
}


# Taking apart.


def look(layer: Any) -> Held | None:
    """The layer taken apart, or None if it normalizes no activations."""
    if not isinstance(layer, (SpecLayer, *_METHODS)):
        return None
    cls = class_of(layer, _METHODS)
    check_present(layer)
    axes = tuple(layer.axis) if isinstance(layer.axis, (list, tuple)) else (layer.axis,)
    if cls is keras.layers.RMSNormalization:
        axes = _last_axes(layer, axes)
    spec = obeyed(layer, lambda: layer.spec) if issubclass(cls, SpecLayer) else _spec(layer, _METHODS[cls], axes)
    places = {}
    for array in (*spec.parameters, *spec.state):
        variable = _variable(layer, array.name)
        if variable is not None:
            # Over several axes Keras reads the numbers in the order of the input's axes, whatever the shape it stores them in.
            places[array.name] = Place(variable, array.shape)
        elif array.name != "batches_tracked":
            refuse(layer, f"has no weight for {array.name!r}, which build did not make", "say at construction what is learned")
    return Held(layer, spec, _layout(layer, axes), places)


def _spec(layer: Any, method: str, axes: Sequence[int]) -> NormSpec:
    """What a native obeys."""
    if getattr(layer, "renorm", False):
        method = "batch_renorm"
    shape = layer.get_build_config()["input_shape"]
    if method not in ("layer_norm", "rms_norm"):
        return spec_of(layer, method, "keras", channels=shape[layer.axis])
    known: dict[str, Any] = {"shape": tuple(shape[axis] for axis in sorted(axis % len(shape) for axis in axes))}
    if layer.epsilon is None:
        known["eps"] = keras.config.epsilon()
    if method == "layer_norm":
        # Its call asks for the weights, and not for the flags.
        known |= {"scale": layer.gamma is not None, "offset": layer.beta is not None and not layer.rms_scaling}
        known["subtract_mean"] = not layer.rms_scaling
    return spec_of(layer, method, "keras", **known)


def _last_axes(layer: Any, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes counted from the end: Keras multiplies the scale of RMS normalization along the last ones, whatever they are."""
    rank = len(layer.get_build_config()["input_shape"])
    counted = tuple(sorted(axis % rank - rank for axis in axes))
    if counted != tuple(range(-len(counted), 0)):
        refuse(layer, f"multiplies its scale along the last axes, and not along axis={layer.axis}", "use crossnorm's layer")
    return counted


def _variable(layer: Any, array: str) -> keras.Variable | None:
    """What is kept under Keras' name for an array, or else under the array's."""
    found = (getattr(layer, name, None) for name in (_ATTRIBUTES.get(array), array) if name)
    return next((each for each in found if isinstance(each, keras.Variable)), None)


def _layout(layer: Any, axes: Sequence[int]) -> Layout:
    ordered = tuple(sorted(axes))
    last = ordered == tuple(range(-len(ordered), 0))
    taken = layer.input_spec
    ndim = getattr(taken, "ndim", None) or getattr(taken, "max_ndim", None)
    if ndim is None and ordered[-1] >= 0:  # counted from the front, normalized axes are the last ones of some ranks only
        ndim = len(layer.get_build_config()["input_shape"])
    return Layout(
        axis=None if last else ordered[0] if len(ordered) == 1 else ordered,
        rank=None if ndim is None else ndim - 2,
        dtype=layer.dtype_policy.name,
    )


# Putting together.


def make(description: Description, native: bool) -> Held:
    """A layer of the specification, built and taken apart, for its arrays to be filled."""
    spec, layout, arrays = description
    policy = policy_of(layout.dtype, {name: array for name, array in arrays.items() if name != "batches_tracked"})
    held: Any = look((_native_layer if native else _own_layer)(spec, layout, policy))
    return held


def _own_layer(spec: NormSpec, layout: Layout, policy: str) -> keras.layers.Layer:
    least = 3 if spec.method == "instance_norm" else 2
    shape = _input_shape(spec, layout, least)
    axis = {} if layout.axis is None else {"axis": _as_list(layout.axis)}
    layer = ours.layer(spec, dtype=policy, **axis)
    layer.build(shape)
    if layout.rank is None:
        _take_ranks(layer, len(shape), None)
    elif layout.rank == 1 and least == 2 and layout.axis in (None, 1) and getattr(spec, "spatial", None) is None:
        _take_ranks(layer, 2, 3)  # as the layers of torch do that are for one dimension
    return layer


def _native_layer(spec: Any, layout: Layout, policy: str) -> keras.layers.Layer:
    kept_mean = spec.method == "layer_norm" and not spec.subtract_mean
    method, variant = _VARIANTS.get(spec.method, (spec.method, {}))
    arguments = arguments_of(spec, "keras", free=("subtract_mean",) if kept_mean else ())
    if kept_mean and not (spec.scale and not spec.offset):
        native_lacks(spec, "subtract_mean", "keras.layers.LayerNormalization has it with a scale and without an offset only")
    if method == "batch_norm" and layout.rank is None:
        native_lacks(spec, "rank", "keras.layers.BatchNormalization is built for one rank: say it in the layout", layout)
    shape, last = _input_shape(spec, layout, least=2), list(range(-len(getattr(spec, "shape", (0,))), 0))
    axis = layout.axis if layout.axis is not None else last if hasattr(spec, "shape") else -1
    if method == "rms_norm" and sorted(np.ravel(axis)) != last:
        native_lacks(spec, "axis", "keras.layers.RMSNormalization multiplies its scale along the last axes", layout)
    layer = _NATIVES[method](axis=_as_list(axis), dtype=policy, **arguments, **variant)
    if kept_mean:
        layer.rms_scaling = True  # as an argument it warns
    layer.build(shape)
    if layout.rank is None:
        _take_ranks(layer, len(shape), None)
    return layer


def _as_list(axis: Any) -> Any:
    """As Keras writes axes into its files."""
    return list(axis) if isinstance(axis, tuple) else axis


def _input_shape(spec: Any, layout: Layout, least: int) -> tuple[int | None, ...]:
    """A shape to build the layer with: of the layout's rank or else of the smallest that its axes allow."""
    axis: Any = layout.axis
    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    if hasattr(spec, "channels"):
        sizes, axes = (spec.channels,), (-1,) if axis is None else (axis,)
        spatial = getattr(spec, "spatial", None)
        rank = layout.rank if spatial is None else len(spatial)
    else:
        sizes, spatial, rank = spec.shape, None, layout.rank
        axes = tuple(range(-len(sizes), 0)) if axis is None else (axis,) if isinstance(axis, int) else axis
    if len(axes) != len(sizes) or not all(isinstance(each, int) for each in axes):
        raise MigrationError(f"crossnorm.migrate: axis={axis!r} of {spec.method} does not name the axes of sizes {sizes}")
    # A negative axis leaves room for the batch.
    ndim = max(least, *(each + 1 if each >= 0 else 1 - each for each in axes)) if rank is None else rank + 2
    while len({each % ndim for each in axes}) < len(axes):
        ndim += 1
    shape: list[int | None] = [None] * ndim
    if not all(-ndim <= each < ndim for each in axes):
        raise MigrationError(f"crossnorm.migrate: axis={axis!r} is out of range for inputs of rank {ndim}; correct the layout")
    if spatial is not None:
        shape = [None, *spatial]
        shape.insert(axes[0] % ndim, None)
    for place, size in zip(sorted(each % ndim for each in axes), sizes, strict=True):
        shape[place] = size
    return tuple(shape)


def _take_ranks(layer: Any, least: int, most: int | None) -> None:
    """Let a layer that was built for one rank take others; those that know no channel do so already."""
    built = layer.input_spec
    if getattr(built, "ndim", None) is not None and None not in built.axes.values():
        layer.input_spec = keras.layers.InputSpec(min_ndim=least, max_ndim=most, axes=built.axes)
