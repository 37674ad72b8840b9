"""A torch layer as it would be with other settings: what `crossnorm.migrate.diff` puts in its place for one measurement."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from crossnorm.errors import Unsupported
from crossnorm.spec import NormSpec

from .._parts import Arrays, Part
from .._settings import Attention, Linear
from .layers import build, describe
from .linear import module_of
from .parts import parts

_ACTIVATIONS: dict[str, Any] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "elu": nn.ELU, "selu": nn.SELU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "softmax": nn.Softmax, "softsign": nn.Softsign, "hard_sigmoid": nn.Hardsigmoid, "hard_silu": nn.Hardswish, "mish": nn.Mish,
}  # fmt: skip


def rebuilt(part: Part, settings: Any, arrays: Arrays, dtype: str | None = None) -> Part:
    """A part with a new layer of other settings and arrays, in the mode of the old one; what torch lacks is Unsupported."""
    # A layer that is made draws its weights: from nobody else's random numbers.
    with torch.random.fork_rng(devices=[]):
        return _rebuilt(part, settings, arrays, dtype)


def _rebuilt(part: Part, settings: Any, arrays: Arrays, dtype: str | None) -> Part:
    old = part.layer
    wanted = getattr(torch, dtype) if dtype else next((t.dtype for t in old.parameters()), torch.float32)
    if isinstance(settings, NormSpec):
        description = describe(old)
        layout = description.layout if dtype is None else replace(description.layout, dtype=dtype)
        layer = build(description._replace(spec=settings, layout=layout, arrays=dict(arrays)))
    elif isinstance(settings, Linear):
        layer = module_of(replace(settings, activation="linear"))
    elif isinstance(settings, Attention):
        sizes = dict(zip(("embed_dim", "kdim", "vdim"), settings.inputs, strict=True))
        layer = nn.MultiheadAttention(**sizes, num_heads=settings.heads, bias=settings.bias, batch_first=part.batch_axis == 0)
    elif settings == part.settings:
        layer = copy.deepcopy(old)
    else:
        raise Unsupported(f"crossnorm.migrate: torch's {part.kind} has no other settings; compare its arrays")
    layer = layer.to(device=next((t.device for t in old.parameters()), None), dtype=wanted).train(old.training)
    new = parts(layer)[-1]  # the last of a stack is the one that is called
    new.write({name: array for name, array in arrays.items() if name in new.arrays})
    new = replace(new, axis=part.axis, batch_axis=part.batch_axis)
    return activated(new, settings.activation if isinstance(settings, Linear) else "linear")


def activated(part: Part, activation: str) -> Part:
    """A part whose layer, still the same, is followed by an activation."""
    if activation == "linear":
        return part
    if activation not in _ACTIVATIONS:
        raise Unsupported(
            f"crossnorm.migrate: no torch module computes activation={activation!r}; use one of {list(_ACTIVATIONS)}"
        )
    follows = nn.Softmax(part.axis) if activation == "softmax" else _ACTIVATIONS[activation]()
    return replace(part, layer=nn.Sequential(part.layer, follows))
