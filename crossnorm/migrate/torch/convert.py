"""Replacing modules inside a module."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from crossnorm.errors import MigrationError, Unsupported
from crossnorm.torch._base import Layer, momentum_of
from crossnorm.torch._weight import parametrization_of

from .._description import Description

# The dictionaries in which a module keeps its hooks.
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip

# What every module has beside its user's attributes.
_OWN = vars(nn.Module()).keys()

# Whose hooks and classes are part of a reparametrization, and go with it.
_REPARAMETRIZERS = ("torch.nn.utils", "crossnorm.torch", "timm.")


def convert(model: nn.Module, replacements: Mapping[int, nn.Module]) -> nn.Module:
    """``model`` with new modules in the places of those of the given ids, all or none."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and id(child) in replacements
    ]
    for old in {id(child): child for *_, child in places}.values() if id(model) not in replacements else [model]:
        _take_over(old, replacements[id(old)])
    for parent, name, child in places:
        parent._modules[name] = replacements[id(child)]
    for holder in model.modules():
        for name, value in vars(holder).items():
            if name not in _OWN:
                vars(holder)[name] = _renewed(value, replacements)
    return replacements.get(id(model), model)


def _renewed(value: Any, replacements: Mapping[int, nn.Module]) -> Any:
    """A plain attribute that holds replaced modules beside `_modules`, with the new ones."""
    if isinstance(value, nn.Module):
        return replacements.get(id(value), value)
    if type(value) is tuple:
        return tuple(_renewed(each, replacements) for each in value)
    if type(value) is list:
        value[:] = [_renewed(each, replacements) for each in value]
    if type(value) is dict:
        value.update({key: _renewed(each, replacements) for key, each in value.items()})
    return value


def _take_over(old: nn.Module, new: nn.Module) -> None:
    """All that ``new`` can have of ``old``: the very parameters and statistics, device, dtype, training flag and hooks."""
    if any(module is old for module in new.modules()):
        new.training = old.training
        return  # it is still there, with all that it has
    if is_parametrized(new) and _class(old) is not _class(new) and not _class(old).__module__.startswith(_REPARAMETRIZERS):
        raise MigrationError(
            f"convert: {type(old).__name__} is a {_class(old).__name__} with a reparametrized weight; a {_class(new).__name__} "
            "would lose what else is in it; reparametrize it by hand, and leave it out of the rule"
        )
    tensors = [*old.parameters(), *old.buffers()]
    if tensors:
        new.to(tensors[0].device)
    there = dict(old.named_parameters())
    for name, parameter in list(new.named_parameters()):
        given = there.get(name)
        if given is not None and given.shape == parameter.shape:
            path, _, leaf = name.rpartition(".")
            new.get_submodule(path)._parameters[leaf] = given
        elif there:
            first = next(iter(there.values()))
            parameter.data = parameter.data.to(first.dtype)
            parameter.requires_grad_(any(each.requires_grad for each in there.values()))
    kept = dict(old.named_buffers())
    for name, buffer in list(new.named_buffers()):
        given = kept.get(name)
        # A layer of ours has got what its specification makes of them.
        if given is not None and given.shape == buffer.shape and (not isinstance(new, Layer) or torch.equal(given, buffer)):
            path, _, leaf = name.rpartition(".")
            new.get_submodule(path)._buffers[leaf] = given
    new.train(old.training)
    for name in _HOOKS:
        hooks = getattr(old, name)
        going = {key: hook for key, hook in hooks.items() if not _reparametrizes(hook, old, name, key)}
        if len(going) == len(hooks) and not getattr(new, name):
            setattr(new, name, hooks)  # the very dictionary, from which a handle removes its hook
        else:
            getattr(new, name).update(going)
    new._is_full_backward_hook = old._is_full_backward_hook


def _class(module: nn.Module) -> type:
    """The class of a module before it was parametrized."""
    return type(module).__mro__[is_parametrized(module)]


def _reparametrizes(hook: Any, old: nn.Module, name: str, key: int) -> bool:
    """Whether a hook belongs to the reparametrization that is replaced; flags of hooks go with theirs."""
    base = name.removesuffix("_with_kwargs").removesuffix("_always_called")
    hook = getattr(old, base).get(key, hook)
    inner = getattr(hook, "hook", hook)
    owner = getattr(inner, "__module__", None) or type(inner).__module__
    return owner.startswith(_REPARAMETRIZERS)


def is_ours(layer: nn.Module, description: Description) -> bool:
    """Whether a layer, or a reparametrization, is one of `crossnorm.torch`."""
    name = description.layout.name
    return isinstance(layer, Layer) if name is None else parametrization_of(layer, name) is not None


def synchronized(layer: nn.Module, description: Description) -> nn.Module | None:
    """`torch.nn.SyncBatchNorm` in the place of a batch normalization."""
    spec: Any = description.spec
    if isinstance(layer, nn.SyncBatchNorm):
        return None
    if spec.running_variance != "unbiased" or spec.single_value != "raise":
        raise Unsupported(
            "convert: torch.nn.SyncBatchNorm stores the unbiased variance and refuses one value per channel; the layer says "
            f"running_variance={spec.running_variance!r}, single_value={spec.single_value!r}: use semantics('torch') first"
        )
    if spec.offset and not spec.scale:
        raise Unsupported("convert: torch.nn.SyncBatchNorm has no offset without a scale; give the layer a scale")
    # Its parameters and statistics will be those of the layer.
    return nn.SyncBatchNorm(spec.channels, spec.eps, momentum_of(spec.decay), spec.scale, spec.tracked, bias=spec.offset)
