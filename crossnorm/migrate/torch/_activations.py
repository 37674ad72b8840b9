"""The normalizations of activations: torch's, timm's and ours. How a native calls a field is read from the presets."""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import crossnorm.torch as ours
from crossnorm.spec import SPECS, NormSpec
from crossnorm.torch import _base, batch_renorm, filter_response_norm, rms_norm, switchable_norm

from .._description import Description, Layout
from .._held import Held
from .._natives import arguments_of, inexpressible, native_lacks, obeyed, refuse, spec_of
from ._held import Place, check_present, dtype_name
from .linear import computes_as

# The attribute behind each array; natives and ours agree.
_ATTRIBUTES = {**switchable_norm.PARAMETERS, **filter_response_norm.PARAMETERS, **batch_renorm.BUFFERS}
# The fields that say whether an array is there. What is there decides, and not what a flag says.
_PRESENT = {"scale": "scale", "offset": "offset", "threshold": "threshold", "tracked": "running_mean"}


class _Known(NamedTuple):
    """A native class: the preset that describes it, its spatial dimensions, its channel's axis if that is given."""

    method: str
    peer: str = "torch"
    rank: int | None = None
    axis: int | None = None


_TORCH: dict[type[nn.Module], _Known] = {
    **{getattr(nn, f"BatchNorm{rank}d"): _Known("batch_norm", rank=rank) for rank in (1, 2, 3)},
    **{getattr(nn, f"InstanceNorm{rank}d"): _Known("instance_norm", rank=rank) for rank in (1, 2, 3)},
    nn.SyncBatchNorm: _Known("batch_norm"),
    nn.GroupNorm: _Known("group_norm"),
    nn.LayerNorm: _Known("layer_norm"),
    nn.RMSNorm: _Known("rms_norm"),
}
_NATIVES = {(known.method, known.rank): cls for cls, known in _TORCH.items()}
_TIMM = {
    "BatchNormAct2d": _Known("batch_norm", rank=2),
    "SyncBatchNormAct": _Known("batch_norm"),
    **dict.fromkeys(("GroupNorm", "GroupNorm1", "GroupNormAct", "GroupNorm1Act"), _Known("group_norm")),
    **dict.fromkeys(("LayerNorm", "LayerNormFp32", "LayerNormAct", "LayerNormActFp32"), _Known("layer_norm")),
    **dict.fromkeys(
        ("LayerNorm2d", "LayerNorm2dFp32", "LayerNormAct2d", "LayerNormAct2dFp32"), _Known("layer_norm", rank=2, axis=1)
    ),
    **dict.fromkeys(("RmsNorm", "RmsNormFp32", "RmsNormAct", "RmsNormActFp32"), _Known("rms_norm")),
    **dict.fromkeys(("RmsNorm2d", "RmsNorm2dFp32", "RmsNormAct2d", "RmsNormAct2dFp32"), _Known("rms_norm", rank=2, axis=1)),
    "FilterResponseNormTlu2d": _Known("filter_response_norm", "timm", rank=2),
    "FilterResponseNormAct2d": _Known("filter_response_norm", "timm", rank=2),
}


# Taking apart.


def look(layer: nn.Module) -> Held | None:
    """The layer taken apart, or None if it normalizes no activations."""
    known = _known(layer)
    if known is None:
        return None
    tensors = _tensors(layer)
    check_present(layer, tensors)
    for name in ("act", "drop"):
        if not _does_nothing(getattr(layer, name, None)):
            what = getattr(layer, name)
            refuse(layer, f"has {name}={what!r}, which no specification says", "leave it out and put it behind the layer")
    if getattr(layer, "track_running_stats", None) not in (None, "running_mean" in tensors):
        there = "beside" if "running_mean" in tensors else "without"
        refuse(layer, f"has track_running_stats={layer.track_running_stats} {there} running statistics", "keep both or none")
    spec = obeyed(layer, lambda: _checked(layer, known, tensors))
    layout = Layout(axis=known.axis, rank=known.rank, dtype=dtype_name(tensors))
    places = {array.name: Place(tensors[array.name], array.shape) for array in (*spec.parameters, *spec.state)}
    return Held(layer, spec, layout, places)


def _checked(layer: Any, known: _Known, tensors: dict[str, Tensor]) -> NormSpec:
    """The specification, whose arrays are those that are there."""
    spec: NormSpec = layer.spec if isinstance(layer, _base.Layer) else _spec(layer, known, tensors)
    parameters = {array.name for array in spec.parameters}
    spec.check_arrays(
        {name: tensor for name, tensor in tensors.items() if name in parameters},
        {name: tensor for name, tensor in tensors.items() if name not in parameters},
    )
    return spec


def _known(layer: nn.Module) -> _Known | None:
    if isinstance(layer, _base.Layer):
        cls = next(cls for cls in type(layer).__mro__ if cls.__module__.startswith("crossnorm.torch."))
        if computes_as(layer, cls):
            return _Known("", rank=_rank_of(cls))
        refuse(layer, f"changes what {cls.__name__} of crossnorm computes", "give a layer of that class")
    for native, known in _natives():
        if computes_as(layer, native):
            return known
    if normalizes(layer):
        check_present(layer, {})
        refuse(layer, "changes what its base class computes", "give a layer of a class that is known")
    return None


def normalizes(layer: nn.Module) -> bool:
    """Whether a layer is of a class that normalizes activations, or of a subclass, whatever that one does."""
    bases = (_base.Layer, nn.modules.batchnorm._NormBase, *(native for native, _ in _natives()))
    return isinstance(layer, bases)


def _natives() -> Iterator[tuple[type[nn.Module], _Known]]:
    """The classes of torch, and those of timm, if somebody has imported it."""
    yield from _TORCH.items()
    layers = sys.modules.get("timm.layers")
    for name, known in _TIMM.items():
        if hasattr(layers, name):
            yield getattr(layers, name), known


def _rank_of(cls: type[nn.Module]) -> int | None:
    for choice in ours._LAYERS.values():
        for rank, candidate in choice.items() if isinstance(choice, dict) else ():
            if candidate is cls:
                return rank
    return None


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    """The live tensor behind each array that is there."""
    found: dict[str, Tensor] = {}
    for role, attribute in _ATTRIBUTES.items():
        tensor = layer._parameters.get(attribute, layer._buffers.get(attribute))
        if tensor is not None:
            found[role] = tensor
        elif vars(layer).get(attribute) is not None or parametrize.is_parametrized(layer, attribute):
            refuse(layer, f"has a {attribute} that is reparametrized, or neither parameter nor buffer", "make it one of these")
    return found


def _does_nothing(module: Any) -> bool:
    return module is None or isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)


def _spec(layer: Any, native: _Known, tensors: dict[str, Tensor]) -> NormSpec:
    """What a native obeys: what is there decides, and not what a flag says."""
    cls = SPECS[native.method]
    known: dict[str, Any] = {field: array in tensors for field, array in _PRESENT.items() if hasattr(cls, field)}
    if native.method == "filter_response_norm":
        known |= {"channels": tensors["scale"].numel(), "threshold": "channel" if known["threshold"] else None}
    if native.method == "instance_norm" and layer.momentum is None:
        known["decay"] = 1.0  # it never updates, where batch norm averages all batches
    if native.method == "rms_norm":
        known["eps"] = rms_norm.resolved(layer.eps, tensors["scale"].dtype if "scale" in tensors else torch.float32)
    return spec_of(layer, native.method, native.peer, **known)


# Putting together.


def make(description: Description, native: bool) -> Held:
    """A layer of the specification, taken apart, for its arrays to be filled."""
    spec, layout, _ = description
    _check_axis(spec, layout)
    rank = layout.rank
    if isinstance(ours._LAYERS[spec.method], dict):
        rank = {None: 2, 0: 1}.get(rank, rank)
        if rank not in (1, 2, 3):
            inexpressible(spec, "rank", "torch has layers for 1, 2 or 3 spatial dimensions", layout)
    if native:
        arguments = _native_arguments(spec)
        layer = _NATIVES[spec.method, rank if (spec.method, 2) in _NATIVES else None](**arguments)
    else:
        layer = ours.layer(spec, rank=rank)
    held: Any = look(layer)
    return held


def _check_axis(spec: NormSpec, layout: Layout) -> None:
    """A channel may be anywhere in the layer that was described, as torch has it at 1; normalized axes have to be the last."""
    axes = layout.axis if isinstance(layout.axis, tuple) else () if layout.axis is None else (layout.axis,)
    if hasattr(spec, "channels"):
        if len(axes) > 1 or 0 in axes:
            inexpressible(spec, "axis", "torch has one channel, at axis 1", layout)
        return
    last = tuple(range(-len(spec.parameter_shape), 0))
    from_front = () if layout.rank is None else tuple(layout.rank + 2 + axis for axis in last)
    if axes and tuple(sorted(axes)) not in (last, from_front):
        inexpressible(spec, "axis", f"torch normalizes the last axes, {last}; permute the input", layout)


def _native_arguments(spec: Any) -> dict[str, Any]:
    """The constructor's; a convention that torch.nn has no means for is Unsupported."""
    if getattr(spec, "offset", False) and not spec.scale:
        native_lacks(spec, "offset", "torch.nn has an offset with a scale only")
    if spec.method == "batch_norm" and spec.eps == 0:
        native_lacks(spec, "eps", "torch.nn.BatchNorm wants more in training")
    # No decay is batch norm's average of all batches; instance norm has none.
    return arguments_of(spec, "torch", free=("decay",) if spec.method == "batch_norm" else ())
