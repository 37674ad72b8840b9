"""What two models are run on when they are compared: the same numbers, each in its own layout."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm.errors import MigrationError

from ._parts import Part
from ._settings import Linear

Array = NDArray[Any]

BATCH = 4
# For a size that the model leaves open: of a sequence, and of an image or a volume, which convolutions make smaller.
_STEPS, _PIXELS = 12, 32

# What has one axis for the channel among those of positions; the rest works on the last axis in every framework.
_SPATIAL = {"convolution", "transposed_convolution", "batch_norm", "batch_renorm", "group_norm", "instance_norm"}
_SPATIAL |= {"switchable_norm", "filter_response_norm", "weight_standardization", "spectral_norm", "weight_norm"}


def as_tuple(inputs: Any) -> tuple[Array, ...]:
    """One array, or several, as NumPy arrays."""
    given = inputs if isinstance(inputs, tuple | list) else (inputs,)
    arrays = tuple(np.asarray(array.detach().cpu() if hasattr(array, "detach") else array) for array in given)
    for array in arrays:
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise MigrationError(f"inputs: an array of dtype {array.dtype} holds no numbers; give an array, or a tuple of them")
    return arrays


def sample(signature: Sequence[tuple[Sequence[int | None], str]], parts: Sequence[Part], seed: int = 0) -> tuple[Array, ...]:
    """Random inputs of the shapes and dtypes given, where None is an open size: normal numbers, and indices into embeddings."""
    random = np.random.default_rng(seed)
    entries = [p.settings.shape[0] for p in parts if isinstance(p.settings, Linear) and p.settings.kind == "embedding"]
    arrays = []
    for (batch, *rest), dtype in signature:
        open_size = _PIXELS if len(rest) > 2 else _STEPS
        shape = (batch or BATCH, *(size or open_size for size in rest))
        if np.dtype(dtype).kind in "iub" or (entries and len(rest) == 1 and rest[0] is None):
            arrays.append(random.integers(0, 2 if dtype == "bool" else min(entries, default=2), shape).astype(dtype))
        else:
            arrays.append(random.standard_normal(shape).astype("float32" if dtype == "bfloat16" else dtype))
    return tuple(arrays)


def turned(inputs: Sequence[Array], given: Sequence[Part], wanted: Sequence[Part]) -> tuple[Array, ...]:
    """``inputs`` of the model with the parts ``given`` as the other one wants them: channels first or last.

    The first part decides. One that has a channel among axes of positions, as a convolution has, says where it lies; before any
    other an input is the same in both.
    """
    here, there = _channel_axis(given), _channel_axis(wanted)
    if None in (here, there) or here == there:
        return tuple(inputs)
    return tuple(np.moveaxis(x, here, there) if x.dtype.kind == "f" and x.ndim > 2 else x for x in inputs)


def _channel_axis(parts: Sequence[Part]) -> int | None:
    first = next(iter(parts), None)
    return first.axis if first is not None and first.kind in _SPATIAL else None
