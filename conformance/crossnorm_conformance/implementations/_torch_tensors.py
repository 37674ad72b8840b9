"""Between NumPy arrays and torch tensors."""

from typing import Any

import numpy as np
import torch

from . import Result


def tensor(values: Any, dtype: str, layout: str, device: str, channels: bool) -> torch.Tensor:
    """An array in the dtype, with the strides that the layout stands for. The shape is the reference's in every layout."""
    dense = torch.from_numpy(np.array(values)).to(device=device, dtype=getattr(torch, dtype))
    if layout == "channels_last" and channels:
        return dense.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided":
        return torch.stack((dense, dense.flip(0)), dim=-1)[..., 0]
    return dense


def result(values: torch.Tensor | None, shape: tuple[int, ...] | None = None) -> Result | None:
    """A tensor as NumPy has it; bfloat16, which NumPy lacks, as float32. ``shape`` is the specification's: a layer may hold
    dimensions of size one beside it."""
    if values is None:
        return None
    dtype = str(values.dtype).removeprefix("torch.")
    held = values.detach().to("cpu", torch.float32 if dtype == "bfloat16" else values.dtype).contiguous().numpy().copy()
    return Result(held.reshape(shape) if shape is not None and held.size == np.prod(shape) else held, dtype)
