"""Flax: the normalization layers of flax.nnx, described. Models of it are moved on, not built."""

from typing import Any

import numpy as np
from flax import nnx

from ._description import Description, Layout
from ._held import Array, described
from ._natives import last_axis_first, refuse, spec_of
from ._settings import Linear

_METHODS = {
    nnx.BatchNorm: "batch_norm",
    nnx.LayerNorm: "layer_norm",
    nnx.GroupNorm: "group_norm",
    nnx.InstanceNorm: "instance_norm",
    nnx.RMSNorm: "rms_norm",
    nnx.SpectralNorm: "spectral_norm",
    nnx.WeightNorm: "weight_norm",
}
_ATTRIBUTES = {"scale": "scale", "offset": "bias", "running_mean": "mean", "running_variance": "var"}


def describe(layer: Any, name: str | None = None) -> Description:
    """The specification that a `flax.nnx` layer obeys now, its layout, and copies of its arrays, bit for bit.

    The layout's dtype is the one it computes in: ``dtype``, or that of its parameters. ``axis_name`` of batch normalization is
    no part of a specification. Spectral and weight normalization overwrite the kernel that they wrap in every call: it is taken
    as it is, and is the raw weight from then on. The sigma that is stored beside u is computed anew, and left out.

    Args:
        layer: BatchNorm, LayerNorm, GroupNorm, InstanceNorm, RMSNorm, SpectralNorm or WeightNorm.
        name: which parameter of the wrapped layer, of a wrapper that normalizes several; with dots.

    Raises:
        MigrationError: another layer, or one that computes what no specification says.
    """
    native = next((cls for cls in _METHODS if isinstance(layer, cls) and type(layer).__call__ is cls.__call__), None)
    if native is None:
        refuse(layer, f"is none of {', '.join(cls.__name__ for cls in _METHODS)}", "give one of flax.nnx")
    method = _METHODS[native]
    if native in (nnx.SpectralNorm, nnx.WeightNorm):
        return _wrapper(layer, method, name)
    if name is not None:
        refuse(layer, f"has no reparametrized weight {name!r}", "leave out the name")
    known: dict[str, Any] = {"scale": layer.scale is not None}
    if native is not nnx.RMSNorm:
        known["offset"] = layer.bias is not None
    size = layer.num_groups * layer.group_size if native is nnx.GroupNorm else layer.num_features
    known["shape" if native in (nnx.LayerNorm, nnx.RMSNorm) else "channels"] = size
    spec, axis = spec_of(layer, method, "flax", **known), _axis(layer, native)
    names = [array.name for array in (*spec.parameters, *spec.state) if array.name in _ATTRIBUTES]
    arrays: dict[str, Array] = {name: np.array(getattr(layer, _ATTRIBUTES[name])[...]) for name in names}
    return described(spec, Layout(axis=None if axis == -1 else axis, dtype=_dtype(layer)), arrays)


def _axis(layer: Any, native: type) -> int:
    """The one axis of the channels, or of what is normalized."""
    if native is not nnx.BatchNorm and layer.axis_name is not None:
        refuse(layer, f"takes its moments over axis_name={layer.axis_name!r} too, which no specification says", "leave it out")
    if native is nnx.GroupNorm:
        if layer.reduction_axes is not None:
            refuse(layer, f"computes something else with reduction_axes={layer.reduction_axes}", "leave them out")
        return -1
    axis: Any = layer.axis if native is nnx.BatchNorm else layer.feature_axes
    if native in (nnx.LayerNorm, nnx.RMSNorm) and layer.reduction_axes != axis:
        what = f"normalizes axes {layer.reduction_axes} together and learns along {axis} only, which no specification says"
        refuse(layer, what, "use the same axis for both")
    axes: tuple[int, ...] = (axis,) if isinstance(axis, int) else tuple(axis)
    if len(axes) > 1:
        refuse(layer, f"has several feature axes, {axes}, and one size for them", "use one axis")
    return axes[0]


def _dtype(layer: Any) -> str:
    return str(np.dtype(layer.param_dtype if layer.dtype is None else layer.dtype))


def _wrapper(wrapper: Any, method: str, name: str | None) -> Description:
    held = wrapper.layer_instance
    if isinstance(held, nnx.ConvTranspose):
        refuse(wrapper, "holds a ConvTranspose, whose kernel lies mirrored", "move the convolution by hand")
    found = {path: param for path, param in nnx.to_flat_state(nnx.state(held, nnx.Param)) if _normalizes(wrapper, path, param)}
    paths = {".".join(map(str, path)): path for path in found}
    if not paths:
        refuse(wrapper, "normalizes no parameter", "wrap a layer with a kernel")
    if name is None and len(paths) > 1:
        refuse(wrapper, f"normalizes several weights, {', '.join(paths)}", "say which by name=")
    name = next(iter(paths)) if name is None else name
    if name not in paths:
        refuse(wrapper, f"does not normalize {name!r}, but {', '.join(paths)}", "name one of these")
    path = paths[name]
    rows = last_axis_first(np.array(found[path][...]))
    known: dict[str, Any] = {"shape": rows.shape}
    arrays: dict[str, Array] = {"weight": rows}
    if method == "spectral_norm":
        arrays["u"] = np.array(wrapper.batch_stats[(*path, "u")][...]).reshape(-1)
    else:
        axes = wrapper.feature_axes if isinstance(wrapper.feature_axes, tuple) else (wrapper.feature_axes,)
        if axes not in ((), (-1,), (rows.ndim - 1,)):
            refuse(wrapper, f"has lengths along feature_axes={axes}, which are no rows", "use -1 or None")
        known |= {"norm_over": "row" if axes else "whole", "initial_scale": "ones"}
        if wrapper.use_scale:
            arrays["scale"] = np.array(wrapper.scales[path][...])
    spec = spec_of(wrapper, method, "flax", **known)
    holder = _settings(held, rows.shape) if len(path) == 1 else None
    if holder is not None and holder.bias:
        arrays["bias"] = np.array(held.bias[...])
    return described(spec, Layout(dtype=_dtype(held) if holder else _dtype(wrapper), holder=holder, name=name), arrays)


def _normalizes(wrapper: Any, path: tuple[Any, ...], param: Any) -> bool:
    if isinstance(wrapper, nnx.WeightNorm):
        return bool(wrapper.variable_filter(path, param))
    return bool(param.ndim > 1 and wrapper.n_steps > 0)


def _settings(layer: Any, shape: tuple[int, ...]) -> Linear | None:
    """What the wrapped layer is; None where it is none of the plain ones, and must be given when something is built of it."""
    if type(layer) is nnx.Embed:
        return Linear(kind="embedding", shape=shape[::-1])
    if type(layer) is nnx.Linear:
        return Linear(kind="dense", shape=shape, bias=layer.bias is not None)
    if type(layer) is not nnx.Conv or layer.mask is not None or np.any(np.asarray(layer.input_dilation) != 1):
        return None
    rank = len(shape) - 2
    padding: Any = layer.padding
    if isinstance(padding, str) and padding not in ("SAME", "VALID", "CAUSAL"):
        return None
    if not isinstance(padding, str):
        each = (padding,) * rank if isinstance(padding, int) else padding
        padding = tuple((size, size) if isinstance(size, int) else tuple(size) for size in each)
    return Linear(
        kind="convolution",
        shape=shape,
        bias=layer.bias is not None,
        groups=layer.feature_group_count,
        stride=_sizes(layer.strides, rank),
        padding=padding.lower() if isinstance(padding, str) else padding,
        dilation=_sizes(layer.kernel_dilation, rank),
    )


def _sizes(value: Any, rank: int) -> tuple[int, ...]:
    return (value or 1,) * rank if value is None or isinstance(value, int) else tuple(value)
