"""The normalizations of activations: torch's, timm's and ours. How a native calls a field is read from the presets."""

import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import crossnorm.torch as ours
from crossnorm.errors import SpecError, Unsupported
from crossnorm.spec import PEERS, SPECS, NormSpec
from crossnorm.torch import _base, batch_renorm, filter_response_norm, rms_norm, switchable_norm

from .._description import Layout
from ._held import Held, check_present, dtype_name, refuse
from .linear import computes_as

# The attribute behind each array; natives and ours agree.
_ATTRIBUTES = {**switchable_norm.PARAMETERS, **filter_response_norm.PARAMETERS, **batch_renorm.BUFFERS}
# The fields that say whether an array is there. What is there decides, and not what a flag says.
_PRESENT = {"scale": "scale", "offset": "offset", "threshold": "threshold", "tracked": "running_mean"}


class _Known(NamedTuple):
    """A native class: whose preset has its words, its number of spatial dimensions, its channel if that is elsewhere."""

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
    try:
        spec = layer.spec if isinstance(layer, _base.Layer) else _spec(layer, known, tensors)
        parameters = {array.name for array in spec.parameters}
        spec.check_arrays(
            {name: tensor for name, tensor in tensors.items() if name in parameters},
            {name: tensor for name, tensor in tensors.items() if name not in parameters},
        )
    except (SpecError, TypeError) as error:
        refuse(layer, f"has attributes that no specification allows ({error})", "set them right")
    layout = Layout(axis=known.axis, rank=known.rank, dtype=dtype_name(tensors))
    return Held(spec, layout, tensors)


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
        refuse(layer, "changes what its base computes, and no specification says how", "give a layer of a class that is known")
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


def _spec(layer: Any, known: _Known, tensors: dict[str, Tensor]) -> NormSpec:
    """What a native obeys: the presets say which attribute is which field, and what it does where it has no attribute."""
    peer, cls = PEERS[known.method][known.peer], SPECS[known.method]
    values = dict(peer.fields)
    for name, argument in peer.arguments.items():
        if hasattr(layer, argument.name):
            values[name] = argument.native(getattr(layer, argument.name))
    for name, role in _PRESENT.items():
        if hasattr(cls, name):
            values[name] = role in tensors
    if known.method == "filter_response_norm":
        values |= {"channels": tensors["scale"].numel(), "threshold": "channel" if values["threshold"] else None}
    if known.method == "instance_norm" and layer.momentum is None:
        values["decay"] = 1.0  # it never updates, where batch norm averages all batches
    if known.method == "rms_norm":
        values["eps"] = rms_norm.resolved(layer.eps, tensors["scale"].dtype if "scale" in tensors else torch.float32)
    return cls(**values)


# Putting together.


def make(spec: NormSpec, layout: Layout, native: bool) -> nn.Module:
    """A layer of the specification, whose arrays have to be filled."""
    _check_axis(spec, layout)
    rank = layout.rank
    if isinstance(ours._LAYERS[spec.method], dict):
        rank = {None: 2, 0: 1}.get(rank, rank)
        if rank not in (1, 2, 3):
            raise Unsupported(f"crossnorm.migrate: torch has {spec.method} for 1, 2 or 3 spatial dimensions, not for {rank}")
    if not native:
        layer: nn.Module = ours.layer(spec, rank=rank)
        return layer
    cls: Any = _NATIVES.get((spec.method, rank if (spec.method, 2) in _NATIVES else None))
    if cls is None:
        raise Unsupported(f"crossnorm.migrate: torch.nn has no {spec.method}; take ours: leave native out")
    _check_native(spec)
    arguments = PEERS[spec.method]["torch"].arguments
    made: nn.Module = cls(**{argument.name: argument.native(getattr(spec, name)) for name, argument in arguments.items()})
    return made


def _check_axis(spec: NormSpec, layout: Layout) -> None:
    """A channel may be anywhere in the layer that was described, as torch has it at 1; normalized axes have to be the last."""
    axes = layout.axis if isinstance(layout.axis, tuple) else () if layout.axis is None else (layout.axis,)
    count = len(spec.parameter_shape)
    if hasattr(spec, "channels"):
        if len(axes) > 1 or 0 in axes:
            raise Unsupported(
                f"crossnorm.migrate: {spec.method} with axis={layout.axis}, where torch has one channel, at axis 1"
            )
        return
    last = tuple(range(-count, 0))
    from_front = () if layout.rank is None else tuple(layout.rank + 2 + axis for axis in last)
    if axes and tuple(sorted(axes)) not in (last, from_front):
        raise Unsupported(
            f"crossnorm.migrate: {spec.method} with axis={layout.axis} and rank={layout.rank}, where torch normalizes the last "
            f"axes, {last}; permute the input"
        )


def check_fields(spec: NormSpec, peer: str, free: tuple[str, ...] = ()) -> None:
    """Refuse a convention that a native has fixed otherwise; the ``free`` fields do not matter."""
    words = PEERS[spec.method][peer]
    for field in fields(spec):
        fixed, value = words.fields.get(field.name, field.default), getattr(spec, field.name)
        if field.name not in (*words.arguments, *free) and value != fixed:
            inexpressible(spec, field.name, f"{words.name} has {fixed!r}")


def inexpressible(spec: NormSpec, field: str, reason: str) -> Any:
    value = getattr(spec, field)
    raise Unsupported(f"crossnorm.migrate: {spec.method} with {field}={value!r}, where {reason}; take ours: leave native out")


def _check_native(spec: Any) -> None:
    check_fields(spec, "torch", () if getattr(spec, "tracked", False) else ("running_variance",))
    if getattr(spec, "offset", False) and not spec.scale:
        inexpressible(spec, "offset", "torch.nn has an offset with a scale only")
    if spec.method == "instance_norm" and spec.tracked and spec.decay is None:
        inexpressible(spec, "decay", "torch.nn.InstanceNorm has no average of all batches")
    if spec.method == "batch_norm" and spec.eps == 0:
        inexpressible(spec, "eps", "torch.nn.BatchNorm wants more in training")
