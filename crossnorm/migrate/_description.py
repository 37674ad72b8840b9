"""From any framework's normalization layer to its specification, layout and arrays, and back."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossnorm.spec import NormSpec

from ._frameworks import framework_of, room
from ._settings import Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a layer knows beside its specification: where the channel lies, how many positions' axes there are, its dtype.

    ``axis``: of the channel, or the normalized axes, counted as the layer counts them; None where it is where the framework
    puts it: 1 in torch (the last axes for layer and RMS normalization), the last in Keras.
    ``rank``: the number of spatial dimensions, None where the layer does not say.
    ``dtype``: in which it computes: torch's name, or Keras' policy (``"mixed_float16"``).
    ``holder``: of a reparametrization: the layer whose weight it is, with the weight's ``name`` there.
    """

    axis: int | tuple[int, ...] | None = None
    rank: int | None = None
    dtype: str = "float32"
    holder: Linear | None = None
    name: str | None = None


class Description(NamedTuple):
    """All that a normalization layer is: its arrays have the names of the specification's parameters and state.

    A reparametrization has also ``"weight"``, the raw one, rows first in the shape of the specification, and the ``"bias"``.
    """

    spec: NormSpec
    layout: Layout
    arrays: dict[str, NDArray[np.generic]]


def describe(layer: Any, name: str | None = None) -> Description:
    """The specification, layout and arrays of a normalization layer of any framework."""
    return room(framework_of(layer)).describe(layer, name)


def build(
    spec: NormSpec,
    layout: Layout,
    arrays: dict[str, NDArray[np.generic]],
    *,
    framework: Literal["torch", "tensorflow"],
    native: bool = False,
    holder: Any = None,
) -> Any:
    """The layer of a description: ours, or with ``native`` the framework's own."""
    return room(framework).build(Description(spec, layout, arrays), native, holder)
