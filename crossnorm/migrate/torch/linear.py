"""Torch's dense, convolutional and embedding modules in the words of `Linear`, whose arrangement is torch's own, and back."""

from dataclasses import replace
from typing import Any

from torch import nn

from .._natives import inexpressible
from .._settings import Linear

_CONVOLUTIONS: dict[str, tuple[type[nn.Module], ...]] = {
    "convolution": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "transposed_convolution": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}
# What a subclass might override and would then compute otherwise.
_METHODS = ("__call__", "forward", "_conv_forward", "_output_padding", "_check_input_dim", "_apply_instance_norm")


def computes_as(module: nn.Module, native: type[nn.Module]) -> bool:
    """Whether a module is of that class, or of a subclass that computes the same."""
    cls = type(module)
    return (
        isinstance(module, native)
        and "forward" not in vars(module)
        and all(getattr(cls, name, None) is getattr(native, name, None) for name in _METHODS)
    )


def settings_of(module: nn.Module) -> Linear | None:
    """What a module is, or None if it is of another kind or its class changes what it computes.

    The weight itself is not looked at: it may be a reparametrized one, which changes when somebody reads it.

    >>> settings_of(nn.Conv1d(3, 8, 5, padding=2)).padding
    ((2, 2),)
    """
    held: Any = module
    if computes_as(module, nn.Linear):
        return Linear(kind="dense", shape=(held.out_features, held.in_features), bias=held.bias is not None)
    if computes_as(module, nn.Embedding) and held.max_norm is None:  # it would change the weight when it is called
        return Linear(kind="embedding", shape=(held.num_embeddings, held.embedding_dim))
    for kind, classes in _CONVOLUTIONS.items():
        if any(computes_as(module, native) for native in classes):
            return convolution_settings(module, kind)
    return None


def convolution_settings(module: Any, kind: Any) -> Linear:
    """Those of a module with the attributes of torch's convolutions."""
    outer, inner = (module.in_channels, module.out_channels) if module.transposed else (module.out_channels, module.in_channels)
    padding: Any = module.padding if isinstance(module.padding, str) else tuple((size, size) for size in module.padding)
    return Linear(
        kind=kind,
        shape=(outer, inner // module.groups, *module.kernel_size),
        bias=module.bias is not None,
        groups=module.groups,
        stride=tuple(module.stride),
        padding="same" if getattr(module, "same_pad", False) else padding,  # timm's word for Keras' "same"
        output_padding=tuple(module.output_padding) if module.transposed else None,
        dilation=tuple(module.dilation),
        padding_mode=module.padding_mode,
    )


def module_of(settings: Linear) -> nn.Module:
    """The module of some settings, with new arrays; what torch has no means for is Unsupported.

    >>> module_of(Linear(kind="dense", shape=(2, 3)))
    Linear(in_features=3, out_features=2, bias=False)
    """
    if settings.activation != "linear":
        inexpressible(settings, "activation", "torch has no activation: put a module of its own behind it")
    outer, inner, *kernel = settings.shape
    if settings.kind == "dense":
        return nn.Linear(inner, outer, settings.bias)
    if settings.kind == "embedding":
        return nn.Embedding(outer, inner)
    transposed = settings.kind == "transposed_convolution"
    inputs, outputs = (outer, inner * settings.groups) if transposed else (inner * settings.groups, outer)
    native: Any = _CONVOLUTIONS[settings.kind][len(kernel) - 1]
    extra = {"output_padding": settings.output_padding} if transposed else {}
    return native(
        inputs,
        outputs,
        tuple(kernel),
        stride=settings.stride,
        padding=_padding(settings, transposed),
        dilation=settings.dilation,
        groups=settings.groups,
        bias=settings.bias,
        padding_mode=settings.padding_mode,
        **extra,
    )


def _padding(settings: Linear, transposed: bool) -> Any:
    """What torch pads with: numbers, or for those that differ before and after its word "same", where that is what it does."""
    padding = settings.padding
    if isinstance(padding, str):
        inexpressible(settings, "padding", "torch has it without strides only: pad the input yourself")
    if all(before == after for before, after in padding):
        return tuple(before for before, _ in padding)
    if transposed or set(settings.stride) != {1} or replace(settings, padding="same") != settings:
        inexpressible(settings, "padding", "torch adds as much before as after: pad the input yourself")
    return "same"
