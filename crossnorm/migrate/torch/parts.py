"""A torch module taken apart."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from crossnorm.errors import MigrationError
from crossnorm.spec import WeightSpec
from crossnorm.torch._weight import groups_of

from .._parts import Access, Arranged, Array, Part, walk
from .._settings import Attention, Recurrent, Slope
from . import _activations, _reparametrizations
from ._held import to_array, to_tensor
from .layers import describe, variables, write
from .linear import computes_as, settings_of

# Two methods whose parameters are shaped as the last axes.
_LAST = ("layer_norm", "rms_norm")


def parts(model: nn.Module) -> list[Part]:
    """The modules that hold parameters or buffers, and the normalization modules, in the order of ``named_modules``."""
    return walk(access, model, _own, _taken_apart, _children)


def assign(tensor: Tensor, array: Array) -> None:
    """Overwrite the values of a tensor in place."""
    with torch.no_grad():
        tensor.copy_(to_tensor(array).reshape(tensor.shape))


access = Access("torch", lambda tensor: to_array(tensor.detach()), assign, lambda tensor: tensor.requires_grad)


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, child) for name, child in module._modules.items() if child is not None)


def _own(module: nn.Module, path: str) -> dict[str, Tensor]:
    """The tensors of a module itself that are weights: no counters, and nothing that a checkpoint leaves out."""
    who = f"parts: the module {path!r} ({type(module).__name__})"
    buffers = {key: tensor for key, tensor in module._buffers.items() if key not in module._non_persistent_buffers_set}
    if isinstance(module, torch.jit.ScriptModule):
        raise MigrationError(f"{who} is compiled by TorchScript, and nobody sees its layers run; give the module it is made of")
    own = {}
    for key, tensor in {**module._parameters, **buffers}.items():
        if tensor is None:
            continue
        if is_lazy(tensor):
            raise MigrationError(f"{who} is lazy, and has no {key!r} yet; run the model once")
        if tensor.is_meta:
            raise MigrationError(f"{who} has its {key!r} on the meta device, without values; load them, or use to_empty")
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout != torch.strided or tensor.is_quantized:
            raise MigrationError(
                f"{who} has in {key!r} a {type(tensor).__name__} that is sparse, quantized or of its own class; make it dense"
            )
        if tensor.is_floating_point() and tensor.itemsize < 2:
            raise MigrationError(f"{who} has its {key!r} in {tensor.dtype}, which NumPy has not; make it float16 or wider")
        if tensor.dim() or tensor.is_floating_point():
            own[key] = tensor
    return own


def _taken_apart(module: Any) -> Iterator[Part]:
    own = {key: tensor for key, tensor in module._parameters.items() if tensor is not None}
    settings = settings_of(module)
    if settings is not None and "weight" in own:
        held = {key: Arranged(own[key]) for key in ("weight", "bias") if key in own}
        yield access.part("", module, settings, held, axis=1 if "convolution" in settings.kind else -1)
    elif computes_as(module, nn.LSTM) or computes_as(module, nn.GRU):
        yield from _recurrent(module, own)
    elif computes_as(module, nn.MultiheadAttention):
        yield _attention(module)
    elif computes_as(module, nn.PReLU):
        yield access.part("", module, Slope(channels=module.num_parameters), {"weight": Arranged(module.weight)}, axis=1)
    else:
        yield from _normalized(module)


def _normalized(module: nn.Module) -> Iterator[Part]:
    """The part of a normalization module, and one for each reparametrized weight of a module."""
    weights: Iterable[str | None] = dict.fromkeys(_reparametrizations._names(module))
    for weight in weights or ((None,) if _activations.look(module) else ()):
        described = describe(module, weight)
        spec, layout, arrays = described
        axis = 1 if layout.axis is None else layout.axis
        if (isinstance(spec, WeightSpec) and arrays["weight"].ndim < 3) or (layout.axis is None and spec.method in _LAST):
            axis = -1
        yield access.normalization(
            "" if weight in (None, "weight") else weight,
            module,
            described,
            partial(write, module, name=weight),
            variables(module, weight),
            partial(_rows_first, module, weight, spec) if isinstance(spec, WeightSpec) else np.asarray,
            axis=axis[-1] if isinstance(axis, tuple) else axis,
        )


def _rows_first(module: nn.Module, name: str, spec: WeightSpec, weight: Array) -> Array:
    groups = groups_of(module, name, spec.transposed_row, spec.embedding_row)
    if groups is not None:
        # What `crossnorm.torch._weight.swap` does to a tensor.
        weight = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    return weight.reshape(spec.shape)


def _recurrent(module: Any, own: Mapping[str, Tensor]) -> Iterator[Part]:
    if module.proj_size:
        raise MigrationError("it projects its output (proj_size), which Keras has not")
    if not own.keys() >= {name for names in module._all_weights for name in names}:
        raise MigrationError("one of its weights is reparametrized")
    kind = "lstm" if isinstance(module, nn.LSTM) else "gru"
    several = module.num_layers > 1 or module.bidirectional
    for layer in range(module.num_layers):
        for suffix in (f"l{layer}", f"l{layer}_reverse")[: 1 + module.bidirectional]:
            names = {"input_weight": "weight_ih", "recurrent_weight": "weight_hh"}
            names |= {"bias": "bias_ih", "recurrent_bias": "bias_hh"} if module.bias else {}
            held = {key: Arranged(own[f"{name}_{suffix}"]) for key, name in names.items()}
            settings = Recurrent(
                kind=kind,
                inputs=held["input_weight"].variable.shape[1],
                units=module.hidden_size,
                bias=module.bias,
                reverse=suffix.endswith("reverse"),
            )
            batch_axis = 0 if module.batch_first else 1
            yield access.part(suffix if several else "", module, settings, held, batch_axis=batch_axis)


def _attention(module: Any) -> Part:
    if module.add_zero_attn or module.bias_k is not None:
        raise MigrationError("it attends to a key of its own (add_bias_kv, add_zero_attn), which Keras has not")
    if is_parametrized(module) or is_parametrized(module.out_proj):
        raise MigrationError("one of its weights is reparametrized")
    size = module.embed_dim
    settings = Attention(
        inputs=(size, module.kdim, module.vdim),
        heads=module.num_heads,
        key_size=module.head_dim,
        value_size=module.head_dim,
        outputs=size,
        bias=module.in_proj_bias is not None,
    )
    held = {}
    for i, role in enumerate(("query", "key", "value")):
        third = partial(_rows, i * size, (i + 1) * size)
        apart = getattr(module, f"{role[0]}_proj_weight")
        held[f"{role}_weight"] = Arranged(module.in_proj_weight, third) if apart is None else Arranged(apart)
        if settings.bias:
            held[f"{role}_bias"] = Arranged(module.in_proj_bias, third)
    held["output_weight"] = Arranged(module.out_proj.weight)
    if settings.bias:
        held["output_bias"] = Arranged(module.out_proj.bias)
    return access.part("", module, settings, held, batch_axis=0 if module.batch_first else 1)


def _rows(first: int, end: int, array: Array) -> Array:
    return array[first:end]
