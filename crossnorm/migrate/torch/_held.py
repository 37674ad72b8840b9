"""The tensors behind the arrays of a normalization layer, and their numbers as NumPy has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from crossnorm.torch._weight import swap

from .._description import BFLOAT16, COUNTERS, FLOATING
from .._held import Array, Held
from .._natives import refuse

_DTYPES = [getattr(torch, name) for name in (*FLOATING, *COUNTERS)]


@dataclass(frozen=True)
class Place:
    """An array in a tensor; ``groups``: of a weight whose rows are not first, see `crossnorm.torch._weight.swap`."""

    variable: Tensor
    shape: tuple[int, ...]
    groups: int | None = None

    def read(self) -> Array:
        return to_array(swap(self.variable.detach(), self.groups).reshape(self.shape))

    def write(self, array: Array) -> None:
        with torch.no_grad():
            self.variable.copy_(swap(to_tensor(array), self.groups).reshape(self.variable.shape))


def check_present(layer: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Refuse a layer without arrays, and one whose arrays NumPy cannot hold."""
    if isinstance(layer, LazyModuleMixin) or any(map(nn.parameter.is_lazy, tensors.values())):
        refuse(layer, "has no arrays yet", "call it once, so that it learns the sizes of its input")
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
            refuse(
                layer,
                f"has a {name} of {tensor.dtype} on {tensor.device} ({tensor.layout})",
                f"make it a dense tensor with values, of {', '.join(FLOATING)}",
            )


def dtype_name(tensors: dict[str, Tensor]) -> str:
    """The dtype of the first floating tensor, parameters first; float32 where there is none."""
    names = (str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point())
    return next(names, "float32")


def take_dtypes(held: Held, arrays: Mapping[str, Array]) -> None:
    """Give the tensors of a new layer the dtypes of the arrays that they are to hold."""
    for name, array in arrays.items():
        tensor = held.places[name].variable
        tensor.data = tensor.data.to(to_tensor(array).dtype)


def to_array(tensor: Tensor) -> Array:
    tensor = tensor.cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().copy().view(BFLOAT16)
    return tensor.numpy().copy()


def to_tensor(array: Any) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array, order="C").view(np.int16)).view(torch.bfloat16)
    kind = np.int64 if array.dtype.name in COUNTERS else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=kind, order="C"))
