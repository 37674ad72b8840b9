"""A normalization layer taken apart: its specification, and the live tensors behind its arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from crossnorm.errors import MigrationError
from crossnorm.spec import NormSpec
from crossnorm.torch._weight import swap

from .._description import BFLOAT16, COUNTERS, FLOATING, Layout

_DTYPES = [getattr(torch, name) for name in (*FLOATING, *COUNTERS)]


class Held(NamedTuple):
    """What is behind a layer's arrays.

    Attributes:
        spec, layout: as in a description.
        variables: the live tensors, in the shapes in which torch stores them.
        groups: of a reparametrized weight whose rows are not first: within each group rows and columns trade places.
        refresh: to be called once the tensors have changed.
    """

    spec: NormSpec
    layout: Layout
    variables: dict[str, Tensor]
    groups: int | None = None
    refresh: Callable[[], Any] = lambda: None

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Copies, in the order and the shapes of the specification."""
        shapes = {array.name: array.shape for array in (*self.spec.parameters, *self.spec.state)}
        order = [*shapes, *(name for name in ("weight", "bias") if name in self.variables)]
        values = {name: self._swapped(name, self.variables[name].detach()) for name in order}
        return {name: _array(tensor.reshape(shapes.get(name, tensor.shape))) for name, tensor in values.items()}

    def stored(self, name: str, array: Any) -> Tensor:
        """An array as torch stores it, on the device of the tensor that is there."""
        there, tensor = self.variables[name], _tensor(array)
        tensor = self._swapped(name, tensor) if name == "weight" else tensor.reshape(there.shape)
        return tensor.contiguous().to(there.device)

    def _swapped(self, name: str, tensor: Tensor) -> Tensor:
        return swap(tensor, self.groups) if name == "weight" else tensor


def refuse(layer: Any, what: str, remedy: str) -> NoReturn:
    raise MigrationError(f"crossnorm.migrate: {type(layer).__name__} {what}; {remedy}")


def check_present(layer: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Refuse a layer whose tensors have no numbers that NumPy has."""
    if isinstance(layer, LazyModuleMixin) or any(map(nn.parameter.is_lazy, tensors.values())):
        refuse(layer, "has no arrays yet", "call it once, so that it learns the sizes of its input")
    for name, tensor in tensors.items():
        if tensor.is_meta or tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
            refuse(
                layer,
                f"has a {name} of {tensor.dtype} on {tensor.device} ({tensor.layout})",
                f"give it numbers of {', '.join(FLOATING)}",
            )


def dtype_name(tensors: dict[str, Tensor]) -> str:
    """The dtype of the first floating tensor, parameters first; float32 where there is none."""
    names = (str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point())
    return next(names, "float32")


def _array(tensor: Tensor) -> NDArray[np.generic]:
    tensor = tensor.cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().copy().view(BFLOAT16)
    return tensor.numpy().copy()


def _tensor(array: Any) -> Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array, order="C").view(np.int16)).view(torch.bfloat16)
    kind = np.int64 if array.dtype.name in COUNTERS else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=kind, order="C"))
