"""Between NumPy arrays and torch tensors."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch

from ..case import Arrays
from . import Result

# From an array as torch has it to one as the reference has it.
Arrange = Callable[[Any], Any]


def tensor(values: Any, dtype: str, layout: str, device: str, channels: bool) -> torch.Tensor:
    """An array in the dtype, with the strides that the layout stands for. The shape is the reference's in every layout."""
    dense = torch.from_numpy(np.array(values)).to(device=device, dtype=getattr(torch, dtype))
    if layout == "channels_last" and channels:
        return dense.movedim(1, -1).contiguous().movedim(-1, 1)
    return strided(dense) if layout == "strided" else dense


def strided(dense: torch.Tensor) -> torch.Tensor:
    """The same values with something else in between."""
    return torch.stack((dense, dense.flip(0)), dim=-1)[..., 0]


def result(values: torch.Tensor, arrange: Arrange = np.asarray) -> Result:
    """A tensor as NumPy has it; bfloat16, which NumPy lacks, as float32."""
    dtype = str(values.dtype).removeprefix("torch.")
    held = values.detach().to("cpu", torch.float32 if dtype == "bfloat16" else values.dtype)
    return Result(arrange(held.contiguous().numpy().copy()), dtype)


class Held:
    """The tensors that a run gives and takes, all kept until its end: memory that two of them share shows then.

    What a layer did to its inputs is written back to the arrays, where the suite looks for it.
    """

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.given: dict[str, torch.Tensor] = {}
        self.taken: dict[tuple[int, str], tuple[torch.Tensor | None, Arrange]] = {}

    def give(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """The tensor of a named array, on its way to the layer."""
        self.given[name] = values
        return values

    def take(self, step: int, name: str, values: torch.Tensor | None, arrange: Arrange = np.asarray) -> None:
        """What the layer gave as a quantity, and how it is arranged in the end."""
        self.taken[step, name] = values, arrange

    def results(self) -> dict[tuple[int, str], Result]:
        """The quantities that there are, as they are by now."""
        outputs = {_memory(values) for (_, name), (values, _) in self.taken.items() if name == "y"}
        for name, values in self.given.items():
            # Whoever goes on with an output that lies on an input changes both.
            self.arrays.values[name][...] = np.nan if _memory(values) in outputs else result(values).values
        return {key: result(values, arrange) for key, (values, arrange) in self.taken.items() if values is not None}


def _memory(values: torch.Tensor) -> int:
    return values.untyped_storage().data_ptr()


def backward(y: torch.Tensor, upstream: torch.Tensor) -> None:
    """Differentiate, as far as the output allows it: one of a wrong shape or without a graph is judged by what it lacks."""
    if y.requires_grad and y.shape == upstream.shape:
        y.backward(upstream)


def in_shape(shape: tuple[int, ...]) -> Arrange:
    """Arrange as the specification has it: a layer may hold dimensions of size one beside its shape."""
    return lambda values: values.reshape(shape) if values.size == prod(shape) else values
