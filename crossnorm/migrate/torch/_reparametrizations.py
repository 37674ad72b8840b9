"""The normalizations of weights: parametrizations, torch's and ours, torch's old hooks, and timm's convolutions."""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm as SpectralHook
from torch.nn.utils.weight_norm import WeightNorm as WeightHook

import crossnorm.torch as ours
from crossnorm.errors import Unsupported
from crossnorm.spec import WeightSpec
from crossnorm.torch._weight import Reparametrization, groups_of, swap

from .._description import Description, Layout
from .._held import Array, Held
from .._natives import arguments_of, inexpressible, native_lacks, obeyed, refuse, spec_of
from .._settings import Linear
from ._activations import normalizes
from ._held import Place, check_present, dtype_name
from .linear import computes_as, convolution_settings, module_of, settings_of

_HOOKS = (SpectralHook, WeightHook)
_TIMM = {
    "StdConv2d": "timm",
    "StdConv2dSame": "timm",
    "ScaledStdConv2d": "timm_scaled",
    "ScaledStdConv2dSame": "timm_scaled",
}
# How arrays start, which does not matter once they are filled; and the rows, which torch chooses by ``dim``.
_FREE = ("warm_up", "initial_scale", "transposed_row", "depthwise_row", "embedding_row")


class _Found(NamedTuple):
    """One reparametrized weight: who normalizes it, and the live tensors."""

    rule: Any
    variables: dict[str, Tensor]
    peer: str = ""
    refresh: Callable[[], Any] = lambda: None


# Taking apart.


def look(layer: nn.Module, name: str | None) -> Held | None:
    """The module taken apart, or None if none of its weights is reparametrized."""
    names = _names(layer)
    if name is None and len(set(names)) > 1:
        refuse(layer, f"has several reparametrized weights: {', '.join(sorted(set(names)))}", "say which by name=")
    name = name or (names[0] if names else None)
    if name is None or name not in names:
        return None
    if normalizes(layer):
        refuse(layer, f"normalizes activations with a {name} that is itself normalized", "remove one of the two")
    if names.count(name) > 1:
        refuse(layer, f"normalizes {name} twice", "take one of them away")
    found = _found(layer, name)
    bias = layer._parameters.get("bias")
    if name == "weight" and bias is not None:
        found.variables["bias"] = bias
    check_present(layer, found.variables)
    spec, groups = obeyed(layer, lambda: _spec(layer, name, found))
    shapes = {array.name: array.shape for array in (*spec.parameters, *spec.state)}
    wanted = {role: math.prod(shape) for role, shape in shapes.items()}
    sizes = {role: tensor.numel() for role, tensor in found.variables.items() if role not in ("weight", "bias")}
    if sizes != wanted:
        refuse(layer, f"has arrays of {sizes} numbers, where its {spec.method} wants {wanted}", "reparametrize it anew")
    holder = _holder(layer) if name == "weight" else None
    layout = Layout(dtype=dtype_name({"weight": found.variables["weight"]}), holder=holder, name=name)
    places = {role: Place(tensor, shapes.get(role, tuple(tensor.shape))) for role, tensor in found.variables.items()}
    places["weight"] = Place(found.variables["weight"], spec.shape, groups)
    return Held(layer, spec, layout, places, found.refresh)


def _names(layer: nn.Module) -> list[str]:
    parametrized = list(layer.parametrizations) if parametrize.is_parametrized(layer) else []  # type: ignore[arg-type]
    hooked = [hook.name for hook in layer._forward_pre_hooks.values() if isinstance(hook, _HOOKS)]
    return [*parametrized, *hooked, *(["weight"] if _timm_class(layer) else [])]


def _timm_class(layer: nn.Module) -> str | None:
    layers = sys.modules.get("timm.layers")
    return next((name for name in _TIMM if hasattr(layers, name) and computes_as(layer, getattr(layers, name))), None)


def _found(layer: Any, name: str) -> _Found:
    if timm_class := _timm_class(layer):
        gain = {"scale": layer.gain} if _TIMM[timm_class] == "timm_scaled" else {}
        return _Found(layer, {"weight": layer._parameters["weight"], **gain}, _TIMM[timm_class])
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, _HOOKS) and hook.name == name:
            return _hooked(layer, hook)
    return _parametrized(layer, layer.parametrizations[name], name)


def _hooked(layer: Any, hook: Any) -> _Found:
    name = hook.name
    if isinstance(hook, SpectralHook):
        variables = {role: getattr(layer, name + end) for role, end in (("weight", "_orig"), ("u", "_u"), ("v", "_v"))}
        # Until the next call the effective weight is an attribute like any other.
        return _Found(hook, variables, "torch_hook", lambda: setattr(layer, name, hook.compute_weight(layer, False).detach()))
    variables = {"weight": getattr(layer, name + "_v"), "scale": getattr(layer, name + "_g")}
    return _Found(hook, variables, "torch_hook", lambda: setattr(layer, name, hook.compute_weight(layer).detach()))


def _parametrized(layer: Any, held: Any, name: str) -> _Found:
    rule = held[0]
    if len(held) != 1:
        refuse(layer, f"has {len(held)} parametrizations of {name}", "leave one of them")
    if type(rule) is parametrizations._WeightNorm:
        return _Found(rule, {"weight": held.original1, "scale": held.original0}, "torch")
    if type(rule) is parametrizations._SpectralNorm:
        if held.original.dim() < 2:
            refuse(layer, f"has a {name} of one dimension, which torch divides by its norm", "normalize it by a weight norm")
        return _Found(rule, {"weight": held.original, "u": rule._u, "v": rule._v}, "torch")
    if type(rule) is ours.WeightNorm:
        alone = hasattr(held, "original")
        return _Found(rule, {"weight": held.original} if alone else {"weight": held.original1, "scale": held.original0})
    if type(rule) is ours.WeightStandardization:
        return _Found(rule, {"weight": held.original} | ({} if rule.gain is None else {"scale": rule.gain}))
    if type(rule) is ours.SpectralNorm:
        # A v that is not stored is what the last iteration left; the next one finds it anew.
        stored = {"v": rule._v} if rule.stored == "uv" and rule._v is not None else {}
        forget = (lambda: None) if stored else (lambda: setattr(rule, "_v", None))
        return _Found(rule, {"weight": held.original, "u": rule._u, **stored}, refresh=forget)
    refuse(layer, f"has a {name} with the parametrization {type(rule).__name__}, which no specification says", "remove it")


def _spec(layer: Any, name: str, found: _Found) -> tuple[WeightSpec, int | None]:
    """The specification, and the groups in which the weight's rows and columns trade places."""
    if isinstance(found.rule, Reparametrization):
        spec: WeightSpec = found.rule.spec
        return spec, found.rule._groups
    method = (
        "weight_standardization" if found.peer.startswith("timm")
        else "spectral_norm" if "u" in found.variables
        else "weight_norm"
    )  # fmt: skip
    raw = found.variables["weight"]
    known: dict[str, Any] = {"shape": tuple(raw.shape)}
    if found.peer == "timm_scaled":
        known["gain"] = _gain(found.rule.scale, raw[0].numel())
    if method == "weight_norm":
        known["norm_over"] = "whole" if found.rule.dim == -1 else "row"
    if method != "weight_standardization" and known.get("norm_over") != "whole":
        dim = found.rule.dim
        known |= _rows(layer, name, dim if dim >= 0 else dim + raw.dim())
    spec: Any = spec_of(found.rule, method, found.peer, **known)
    groups = groups_of(layer, name, spec.transposed_row, spec.embedding_row)
    return spec.replace(shape=tuple(swap(raw, groups).shape)), groups


def _rows(layer: nn.Module, name: str, dim: int) -> dict[str, str]:
    """What torch's ``dim`` says about the rows: 0 are those that are stored first."""
    row = "output" if dim else "input"
    if name == "weight" and isinstance(layer, _ConvTransposeNd) and (dim == 0 or (dim == 1 and layer.groups == 1)):
        return {"transposed_row": row}
    if name == "weight" and isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return {"embedding_row": row}
    if dim != 0:
        refuse(layer, f"normalizes {name} along dim={dim}, whose rows no specification has", "normalize it along dim=0")
    return {}


def _gain(scale: float, columns: int) -> float:
    """timm keeps ``gain * columns ** -0.5``: the shortest number that gives it, or one of those close by."""
    gain = scale * math.sqrt(columns)
    shorter = (float(f"{gain:.{digits}g}") for digits in range(1, 18))
    beside = (math.nextafter(gain, 0), math.nextafter(gain, math.inf))
    return next((found for found in (*shorter, *beside) if found * columns**-0.5 == scale), gain)


def _holder(layer: Any) -> Linear | None:
    """What holds the weight, if that is all that there is to say about it."""
    settings = convolution_settings(layer, "convolution") if _timm_class(layer) else settings_of(layer)
    if settings is None or settings.bias != (layer._parameters.get("bias") is not None):
        return None
    if isinstance(layer, nn.Embedding) and (layer.padding_idx is not None or layer.scale_grad_by_freq or layer.sparse):
        return None
    return settings


# Putting together.


def make(description: Description, native: bool, holder: nn.Module | None) -> Held:
    """A module with a reparametrized weight, taken apart, for its arrays to be filled."""
    spec: Any = description.spec
    layout, arrays = description.layout, description.arrays
    arguments = _native_arguments(spec) if native else {}
    if holder is None:
        module, name = _new_holder(spec, layout), "weight"
    else:
        there = isinstance(holder, nn.Module) and layout.name in holder._parameters
        module, name = holder, str(layout.name) if there else "weight"
        _check_holder(spec, layout, arrays, holder, name)
    groups = groups_of(module, name, spec.transposed_row, spec.embedding_row)
    if native:
        whole = getattr(spec, "norm_over", "row") == "whole"
        if groups not in (None, 1) and not whole:
            native_lacks(spec, "transposed_row", "torch's groups share their rows")
        arguments["dim"] = None if whole else 0 if groups is None else 1
        functions: Any = nn.utils if _native_peer(spec) == "torch_hook" else parametrizations
        getattr(functions, spec.method)(module, name, **arguments)
    elif spec.method == "spectral_norm":
        # The vectors are at hand: nothing has to be warmed up.
        ours.layer(spec.replace(warm_up=0), module=module, name=name)
        module.parametrizations[name][0].warm_up = spec.warm_up  # type: ignore[index, union-attr]
    else:
        ours.layer(spec, module=module, name=name)
    held: Any = look(module, name)
    # A whole weight is normalized alike whatever its rows are: those of the description count.
    weight = Place(held.places["weight"].variable, spec.shape, groups)
    return Held(module, spec, held.layout, {**held.places, "weight": weight}, held.refresh)


def _new_holder(spec: WeightSpec, layout: Layout) -> nn.Module:
    if layout.holder is None:
        refuse(spec, "has a layout without holder", "give the module whose weight it normalizes: holder=")
    if layout.holder.kind == "convolution" and spec.shape != layout.holder.shape:
        inexpressible(spec, "depthwise_row", "a depthwise convolution of torch has a row for each output")
    try:
        return module_of(layout.holder)
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, Unsupported):
            raise
        refuse(layout.holder, f"makes no module ({error})", "set its fields right")


def _check_holder(spec: WeightSpec, layout: Layout, arrays: Mapping[str, Array], holder: Any, name: str) -> None:
    """A live module has the parameter, with the rows that are promised, and a bias if there is one."""
    raw = holder._parameters.get(name) if isinstance(holder, nn.Module) else None
    if raw is None or nn.parameter.is_lazy(raw):
        refuse(holder, f"has no parameter {name!r} that can be reparametrized", "give a module that has it, with its sizes")
    rows = tuple(swap(raw, groups_of(holder, name, spec.transposed_row, spec.embedding_row)).shape)
    kinds = {part.kind for part in (settings_of(holder), layout.holder) if part is not None}
    bias = holder._parameters.get("bias") if name == "weight" else None
    there, given = (None if array is None else tuple(array.shape) for array in (bias, arrays.get("bias")))
    what = None
    if rows != spec.shape or len(kinds) > 1:
        what = f"holds a {name!r} of shape {rows}, rows first, and {spec.method} is of shape {spec.shape}"
    elif there != given:
        what = f"has a bias of shape {there}, and the description one of {given}"
    if what is not None:
        refuse(holder, what, "give the kind of layer that was described")


def _native_arguments(spec: Any) -> dict[str, Any]:
    """Those of torch's function, but for ``dim``; a convention that it has no means for is Unsupported."""
    peer = _native_peer(spec)
    arguments = arguments_of(spec, peer, _FREE)
    if getattr(spec, "iterations", 1) == 0:
        native_lacks(spec, "iterations", "torch makes one at least")
    if peer == "torch" and spec.method == "spectral_norm" and len(spec.shape) == 1:
        native_lacks(spec, "shape", "torch divides a weight of one dimension by its norm")
    return arguments


def _native_peer(spec: Any) -> str:
    """torch's parametrization starts its iterations with u, its old hook with v."""
    return "torch_hook" if getattr(spec, "iteration_order", "u_first") == "v_first" else "torch"
