"""Keras' normalization layers, the native ones and ours: described, built, and written into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import keras
import numpy as np
from numpy.typing import NDArray

import crossnorm.tensorflow
from crossnorm.errors import MigrationError, Unsupported
from crossnorm.spec import NormSpec, WeightSpec
from crossnorm.tensorflow._arrangement import Arrangement, arrangement, owner
from crossnorm.tensorflow._base import _ATTRIBUTES, SpecLayer
from crossnorm.tensorflow._weight import _KERNELS, WeightWrapper, _variable

from .._description import Description, Layout, checked
from .._natives import arguments_of, fields_of, obeyed, refuse, spec_of
from .linear import check_built, computes_as, layer_of, settings_of

_NATIVES: dict[str, type[keras.layers.Layer]] = {
    "batch_norm": keras.layers.BatchNormalization,
    "layer_norm": keras.layers.LayerNormalization,
    "group_norm": keras.layers.GroupNormalization,
    "rms_norm": keras.layers.RMSNormalization,
    "spectral_norm": keras.layers.SpectralNormalization,
}
# The arguments that make a native layer one of another method.
_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "batch_renorm": ("batch_norm", {"renorm": True}),
    "instance_norm": ("group_norm", {"groups": -1}),
}
_HALVES = ("float16", "bfloat16")
_OTHERS = (keras.layers.UnitNormalization, keras.layers.Normalization)

Array = NDArray[np.generic]


@dataclass(frozen=True)
class _Place:
    """Where an array lies: in a variable, whose axes in this ``order`` and this ``shape`` make it."""

    variable: keras.Variable
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def plain(cls, variable: keras.Variable, shape: Sequence[int]) -> "_Place":
        return cls(variable, tuple(shape), tuple(range(len(variable.shape))))

    def read(self) -> Array:
        return np.array(np.transpose(self.variable.numpy(), self.order).reshape(self.shape))

    def write(self, array: Array) -> None:
        moved = np.reshape(array, [self.variable.shape[axis] for axis in self.order])
        self.variable.assign(np.transpose(moved, np.argsort(self.order)))


def describe(layer: keras.layers.Layer, name: str | None = None) -> Description:
    """The specification that a built Keras layer obeys now, its layout, and copies of its arrays, bit for bit.

    Args:
        layer: a normalization of `keras.layers` or of `crossnorm.tensorflow`, or a subclass that computes the same.
        name: the weight, of a wrapper that has several: those of a separable convolution, for one.

    ``batches_tracked`` is 0 where the layer counts nothing: most Keras layers do not, as nothing reads the number. A
    `keras.layers.GroupNormalization` is a group normalization also with ``groups=-1``: once built it knows the number only, and
    in as many groups as channels it is the same function. The native wrapper's kernel is taken as it is, and so is its u, which
    has not the norm 1 before the first training call. ``synchronized=True``, initializers, regularizers, constraints and what
    is trainable are no part of a description.

    Raises:
        MigrationError: no such layer, one that is not built, quantized or adapted by LoRA, or one that computes what no
            specification says; a ``name`` that is missing or not one of the layer's.
    """
    spec, layout, places = _parts(layer, name)
    arrays = {key: place.read() for key, place in places.items()}
    if any(array.name == "batches_tracked" for array in spec.state):
        arrays.setdefault("batches_tracked", np.zeros((), np.int64))
    return checked(spec, layout, arrays, "describe")


def variables(layer: keras.layers.Layer, name: str | None = None) -> dict[str, tuple[keras.Variable, ...]]:
    """The live variable behind each array of `describe`; none for a counter that the layer has not."""
    return {key: (place.variable,) for key, place in _parts(layer, name)[2].items()}


def write(layer: keras.layers.Layer, arrays: Mapping[str, Array], name: str | None = None) -> None:
    """Overwrite arrays of `describe` by their names; nothing is written unless each has the shape and dtype of its variable.

    ``batches_tracked`` is dropped where the layer counts nothing.
    """
    spec, _, places = _parts(layer, name)
    counted = {array.name: array.shape for array in spec.state if array.name == "batches_tracked"}
    shapes = counted | {key: place.shape for key, place in places.items()}
    arrays = {key: np.asarray(array, np.int64 if key in counted else None) for key, array in arrays.items()}
    for key, array in arrays.items():
        stored = places[key].variable.dtype if key in places else str(array.dtype)
        if (shapes.get(key), stored) != (array.shape, str(array.dtype)):
            wanted = f"{stored} {shapes[key]}" if key in shapes else f"one of {', '.join(shapes)}"
            _refuse(
                layer, f"was given {key!r} as {array.dtype} {array.shape}, which is not {wanted}", "give what describe gives"
            )
    for key in arrays.keys() & places.keys():
        places[key].write(arrays[key])


def build(description: Description, native: bool = False, holder: keras.layers.Layer | None = None) -> keras.layers.Layer:
    """The built Keras layer of a description, which may come from another framework: ours, or with ``native`` Keras' own.

    The channels are last unless the layout names an axis. The dtype policy is the one that stores the arrays as they are: half
    arrays make a half policy, float32 arrays beside a half ``layout.dtype`` a mixed one. ``batches_tracked`` is dropped where
    the layer counts nothing, which is where nothing reads it. In our `SpectralNormalization` a ``u`` that no iteration has
    seen, as a native wrapper without training has, is scaled to the norm 1.

    Args:
        description: what `describe` gives.
        native: for a layer of `keras.layers`.
        holder: the built layer whose weight a reparametrization is of, which is wrapped and gets the arrays; by default a new
            one, as ``layout.holder`` says.

    Raises:
        MigrationError: arrays of other names or shapes than the specification's; a reparametrization without a holder.
        Unsupported: what the layer has no means for: a convention, a kind of holder, arrays that it would round.
    """
    spec, layout, arrays = description
    if isinstance(spec, WeightSpec):
        layer = _wrapper(spec, layout, arrays, native, holder)
    elif holder is not None:
        raise MigrationError(f"crossnorm.migrate: {spec.method} is of no other layer's weight; leave out holder=")
    else:
        policy = _policy(layout.dtype, {key: array for key, array in arrays.items() if key != "batches_tracked"})
        layer = (_native_layer if native else _own_layer)(spec, layout, policy)
    write(layer, arrays if native else _unit(spec, arrays))
    return layer


# Taking apart.


def _parts(layer: keras.layers.Layer, name: str | None) -> tuple[NormSpec, Layout, dict[str, _Place]]:
    """The specification, the layout, and where each array lies."""
    cls = _class_of(layer)
    check_built(layer)
    if issubclass(cls, (WeightWrapper, keras.layers.SpectralNormalization)):
        return _wrapper_parts(layer, name)
    if name is not None:
        _refuse(layer, f"has no weight {name!r} that is normalized", "leave out the name")
    axes = tuple(layer.axis) if isinstance(layer.axis, (list, tuple)) else (layer.axis,)
    if cls is keras.layers.RMSNormalization:
        axes = _last_axes(layer, axes)
    spec = _spec(layer, cls, axes)
    places = {}
    for array in (*spec.parameters, *spec.state):
        variable = _held(layer, array.name)
        if variable is not None:
            # Over several axes Keras reads the numbers in the order of the input's axes, whatever the shape it stores them in.
            places[array.name] = _Place.plain(variable, array.shape)
        elif array.name != "batches_tracked":
            _refuse(layer, f"has no weight for {array.name!r}, which build did not make", "say at construction what is learned")
    return spec, _layout(layer, axes), places


def _class_of(layer: Any) -> type[keras.layers.Layer]:
    """The class of ours or of Keras' own that says what a layer computes."""
    ours = [cls for cls in type(layer).__mro__ if issubclass(cls, SpecLayer) and cls.__module__.startswith("crossnorm.")]
    for cls in (*ours[:1], *_NATIVES.values()):
        if computes_as(layer, cls):
            return cls
    if isinstance(layer, _OTHERS):
        _refuse(layer, f"is a {type(layer).__name__}, which crossnorm has no specification of", "move it by hand")
    if isinstance(layer, (SpecLayer, *_NATIVES.values())):
        base = next(cls.__name__ for cls in (*ours, *_NATIVES.values()) if isinstance(layer, cls))
        _refuse(layer, f"overrides what {base} computes", "describe it yourself by a specification of crossnorm")
    _refuse(
        layer, f"is a {type(layer).__name__} and no normalization layer", "give one of keras.layers or crossnorm.tensorflow"
    )


def _spec(layer: Any, cls: type[keras.layers.Layer], axes: Sequence[int]) -> NormSpec:
    who = f"the layer {layer.name!r}"
    if issubclass(cls, SpecLayer):
        return obeyed(who, lambda: layer.spec)
    method = "batch_renorm" if getattr(layer, "renorm", False) else _method_of(cls)
    values = fields_of(layer, method, "keras")
    shape = layer.get_build_config()["input_shape"]
    if method in ("layer_norm", "rms_norm"):
        values["shape"] = tuple(shape[axis] for axis in sorted(axis % len(shape) for axis in axes))
        if values["eps"] is None:
            values["eps"] = keras.config.epsilon()
    else:
        values["channels"] = shape[layer.axis]
    if method == "layer_norm":
        # Its call asks for the weights, and not for the flags.
        values["scale"], values["offset"] = layer.gamma is not None, layer.beta is not None and not layer.rms_scaling
        values["subtract_mean"] = not layer.rms_scaling
    return spec_of(who, method, values)


def _last_axes(layer: Any, axes: Sequence[int]) -> tuple[int, ...]:
    """The axes counted from the end: Keras multiplies the scale of RMS normalization along the last ones, whatever they are."""
    rank = len(layer.get_build_config()["input_shape"])
    counted = tuple(sorted(axis % rank - rank for axis in axes))
    if counted != tuple(range(-len(counted), 0)):
        _refuse(layer, f"multiplies its scale along the last axes, and not along axis={layer.axis}", "use crossnorm's layer")
    return counted


def _method_of(cls: type[keras.layers.Layer]) -> str:
    return next(method for method, native in _NATIVES.items() if native is cls)


def _held(layer: Any, array: str) -> keras.Variable | None:
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


def _wrapper_parts(wrapper: Any, name: str | None) -> tuple[NormSpec, Layout, dict[str, _Place]]:
    check_built(wrapper.layer)
    holder = owner(wrapper.layer)
    if isinstance(wrapper, WeightWrapper):
        names: tuple[str, ...] = wrapper._kernel_names
    else:
        names = ("kernel",) if hasattr(holder, "kernel") else ("embeddings",)
    if name is None and len(names) > 1:
        _refuse(wrapper, f"normalizes several weights, {', '.join(names)}", "say which by name=")
    if name is not None and name not in names:
        _refuse(wrapper, f"does not normalize {name!r}, but {', '.join(names)}", "name one of these")
    kernel = name or names[0]
    variable: Any = _variable(holder, kernel)
    if isinstance(wrapper, WeightWrapper):
        arranged = wrapper._arrangement(kernel)
        spec = obeyed(f"the layer {wrapper.name!r}", lambda: wrapper._spec(arranged.shape))
        held: dict[str, Any] = {array.name: wrapper._held(kernel, array.name) for array in spec.state}
        held |= {array.name: wrapper._held(kernel, "gain") for array in spec.parameters}
    else:
        if wrapper.dtype_policy.name != wrapper.layer.dtype_policy.name:
            what = f"computes in {wrapper.dtype_policy.name} around a layer of {wrapper.layer.dtype_policy.name}"
            _refuse(wrapper, what, "give both one dtype policy")
        values = fields_of(wrapper, "spectral_norm", "keras") | {"eps": keras.config.epsilon()}
        arranged = _arranged(holder, kernel, values)
        if arranged.row_axes != (len(arranged.stored) - 1,):
            _refuse(wrapper, f"has rows of {kernel!r} that are not its last axis", "use crossnorm's SpectralNormalization")
        spec = spec_of(f"the layer {wrapper.name!r}", "spectral_norm", values | {"shape": arranged.shape})
        held = {"u": wrapper.vector_u}
    shapes = {array.name: array.shape for array in (*spec.parameters, *spec.state)}
    missing = [array for array in shapes if held[array] is None]
    if missing:
        _refuse(wrapper, f"has no weight for {missing[0]!r}, which build did not make", "say at construction what is learned")
    # An embedding that masks is more than its settings say, and must be given when something is built.
    settings = None if getattr(wrapper.layer, "mask_zero", False) else settings_of(wrapper.layer, kernel)
    places = {"weight": _Place(variable, arranged.shape, (*arranged.row_axes, *arranged.column_axes))}
    places |= {array: _Place.plain(held[array], shape) for array, shape in shapes.items()}
    if settings is not None and settings.bias:
        places["bias"] = _Place.plain(wrapper.layer.bias, wrapper.layer.bias.shape)
    first = getattr(wrapper.layer, "data_format", None) == "channels_first"
    policy = wrapper.layer.dtype_policy.name
    return spec, Layout(axis=1 if first else None, dtype=policy, holder=settings, name=kernel), places


def _arranged(holder: Any, kernel: str, rows: Mapping[str, Any]) -> Arrangement:
    kinds = (rows.get(f"{kind}_row", "output") for kind in ("transposed", "depthwise", "embedding"))
    return arrangement(holder, kernel, _variable(holder, kernel).shape, *kinds)


def _refuse(layer: Any, what: str, remedy: str) -> NoReturn:
    name = getattr(layer, "name", type(layer).__name__)
    raise MigrationError(f"crossnorm.migrate: the layer {name!r} {what}; {remedy}")


# Building.


def _policy(dtype: str, arrays: Mapping[str, Array]) -> str:
    """The dtype policy that computes in ``dtype``, torch's or Keras' name, and stores these arrays as they are."""
    stored, compute = {str(array.dtype) for array in arrays.values()}, dtype.removeprefix("mixed_")
    policies = {compute: compute, "float32": f"mixed_{compute}"} if compute in _HALVES else {compute: compute}
    policy = dtype if not stored else policies.get(min(stored)) if len(stored) == 1 else None
    if policy is None or compute not in (*_HALVES, "float32", "float64"):
        what = f"arrays of dtype {' and '.join(sorted(stored)) or 'none'} in a layer of dtype {dtype}"
        raise Unsupported(f"crossnorm.migrate: {what} are nothing that a Keras policy stores; convert the arrays first")
    return policy


def _own_layer(spec: NormSpec, layout: Layout, policy: str) -> keras.layers.Layer:
    least = 3 if spec.method == "instance_norm" else 2
    shape = _input_shape(spec, layout, least)
    axis = {} if layout.axis is None else {"axis": _as_list(layout.axis)}
    layer = crossnorm.tensorflow.layer(spec, dtype=policy, **axis)
    layer.build(shape)
    if layout.rank is None:
        _take_ranks(layer, len(shape), None)
    elif layout.rank == 1 and least == 2 and layout.axis in (None, 1) and getattr(spec, "spatial", None) is None:
        _take_ranks(layer, 2, 3)  # as the layers of torch do that are for one dimension
    return layer


def _native_layer(spec: Any, layout: Layout, policy: str) -> keras.layers.Layer:
    kept_mean = spec.method == "layer_norm" and not spec.subtract_mean
    method, variant = _VARIANTS.get(spec.method, (spec.method, {}))
    # rms_scaling=True, which makes a layer so, is set below: as an argument it warns.
    arguments = arguments_of(spec.replace(subtract_mean=True) if kept_mean else spec, "keras")
    if kept_mean and not (spec.scale and not spec.offset):
        refuse(spec, "subtract_mean", "keras.layers.LayerNormalization with that scale and offset; it has it with a scale only")
    shape, last = _input_shape(spec, layout, least=2), list(range(-len(getattr(spec, "shape", (0,))), 0))
    axis = layout.axis if layout.axis is not None else last if hasattr(spec, "shape") else -1
    what = None
    if method == "batch_norm" and layout.rank is None:
        what = "inputs of any rank is beyond keras.layers.BatchNormalization, which is built for one; say it in the layout"
    if method == "rms_norm" and sorted(np.ravel(axis)) != last:
        what = (
            f"axis={axis} is beyond keras.layers.RMSNormalization, which multiplies its scale along the last axes; leave it out"
        )
    if what is not None:
        raise Unsupported(f"crossnorm.migrate: {spec.method} with {what}, or build crossnorm's own layer: native=False")
    layer = _NATIVES[method](axis=_as_list(axis), dtype=policy, **arguments, **variant)
    if kept_mean:
        layer.rms_scaling = True
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


# Building wrappers.


def _wrapper(
    spec: Any, layout: Layout, arrays: Mapping[str, Array], native: bool, holder: keras.layers.Layer | None
) -> keras.layers.Layer:
    """The wrapper, without its arrays; the holder is wrapped once nothing can go wrong any more."""
    arguments = arguments_of(spec, "keras", eps=keras.config.epsilon()) if native else {}
    stored = {name: array for name, array in arrays.items() if native or name not in ("u", "v")}
    if holder is None:
        if layout.holder is None:
            raise MigrationError(f"crossnorm.migrate: {spec.method} is of another layer's weight; give that layer by holder=")
        # Rows of multipliers are a depthwise layer's; otherwise the two kinds have the same rows.
        depthwise = spec.depthwise_row == "output" or spec.shape[1] == layout.holder.groups
        data_format, policy = "channels_first" if layout.axis == 1 else "channels_last", _policy(layout.dtype, stored)
        holder, shape = layer_of(layout.holder, data_format=data_format, depthwise=depthwise, dtype=policy)
        holder.build(shape)
    check_built(holder)
    kernel = _kernel_of(holder, layout.name)
    arranged, settings = _arranged(owner(holder), kernel, spec.to_dict()), settings_of(holder, kernel)
    if arranged.shape != spec.shape:
        _refuse(
            holder, f"has a {kernel!r} of shape {arranged.shape}, rows first, and not {spec.shape}", "give the layer it is of"
        )
    if ("bias" in arrays) != (settings is not None and settings.bias):
        _refuse(holder, f"{'lacks the' if 'bias' in arrays else 'has a'} bias of the description", "give a layer alike")
    vectors = {str(arrays[name].dtype) for name in arrays.keys() - stored.keys()}
    wide = "float64" if holder.variable_dtype == "float64" else "float32"
    if {str(array.dtype) for array in stored.values()} != {holder.variable_dtype} or vectors - {wide}:
        dtypes = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        what = f"{dtypes} would be rounded by a layer that stores {holder.variable_dtype}, and vectors in {wide}"
        raise Unsupported(f"crossnorm.migrate: {what}; convert the arrays first")
    if native:
        layer = keras.layers.SpectralNormalization(holder, **arguments, dtype=holder.dtype_policy)
    else:
        layer = crossnorm.tensorflow.layer(spec, wrapped=holder, kernel=kernel)
    layer.build(holder.get_build_config()["input_shape"])
    return layer


def _kernel_of(holder: Any, name: str | None) -> str:
    """The holder's weight of this name, or the only one that is a kernel."""
    kernels = [each for each in (name, *_KERNELS) if each and _variable(owner(holder), each) is not None]
    if not kernels or (kernels[0] != name and len(kernels) > 1):
        found = ", ".join(kernels) or "no kernel"
        _refuse(holder, f"has {found} and no weight {name!r}", "name its kernel in the layout")
    return kernels[0]


def _unit(spec: Any, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """The arrays, with a ``u`` of norm 1: only those that no iteration has seen are off by more than rounding."""
    if getattr(spec, "stored", None) != "u" or spec.warm_up:
        return arrays
    u = arrays["u"].astype(np.float64)
    norm = np.linalg.norm(u)
    return arrays if norm == 0 or abs(norm - 1) < 0.01 else {**arrays, "u": (u / norm).astype(arrays["u"].dtype)}
