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
    arrays = tuple(map(_array, given))
    for array in arrays:
        if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
            raise MigrationError(f"inputs: an array of dtype {array.dtype} holds no numbers; give an array, or a tuple of them")
        if not array.size:
            raise MigrationError(f"inputs: an array of shape {array.shape} is empty, and proves nothing; give some samples")
    return arrays


def _array(given: Any) -> Array:
    try:
        if hasattr(given, "detach"):  # a tensor of torch
            given = given.detach().cpu().to_dense()
            given = given.float() if given.is_floating_point() and given.itemsize < 4 else given
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MigrationError(
            f"inputs: {type(given).__name__} is no array ({error}); give an array, or a tuple of them"
        ) from error


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
            # As behind the end of a sentence: a mask of one model only is to be seen.
            arrays[-1][:1, -1:] = 0
        else:
            arrays.append(random.standard_normal(shape).astype("float32" if dtype == "bfloat16" else dtype))
    return tuple(arrays)


def turned(inputs: Sequence[Array], given: Sequence[Part], wanted: Sequence[Part]) -> tuple[Array, ...]:
    """``inputs`` of the model with the parts ``given`` as the other one wants them: channels first or last.

    The first part of ``given``, in the order of execution, decides. One that has a channel among axes of positions, as a
    convolution has, says where it lies; before any other an input is the same in both.
    """
    first = next(iter(given), None)
    alike = [part for part in wanted if first is not None and part.kind == first.kind]
    if first is None or first.kind not in _SPATIAL or not alike or first.axis == alike[0].axis:
        return tuple(inputs)
    here, there = first.axis, alike[0].axis
    return tuple(np.moveaxis(x, here, there) if x.dtype.kind == "f" and x.ndim > 2 else x for x in inputs)
