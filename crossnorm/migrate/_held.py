"""A normalization layer taken apart, whatever its framework: what it is, and the variables behind its arrays."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from crossnorm.spec import NormSpec

from ._description import Description, Layout, checked
from ._natives import called, refuse

Array = NDArray[np.generic]


class Place(Protocol):
    """Where an array lies: in a live variable, whose shape and order of elements are the framework's."""

    @property
    def variable(self) -> Any: ...
    def read(self) -> Array:
        """A copy, shaped as the specification says."""

    def write(self, array: Array) -> None:
        """The inverse, in place."""


class Held(NamedTuple):
    """A layer taken apart.

    Attributes:
        layer, spec, layout: it, and its specification and layout now.
        places: of its arrays; none of a counter that it has not.
        refresh: to be called once the arrays have changed.
    """

    layer: Any
    spec: NormSpec
    layout: Layout
    places: Mapping[str, Place]
    refresh: Callable[[], Any] = lambda: None

    def describe(self) -> Description:
        """See `crossnorm.migrate.describe`."""
        return described(self.spec, self.layout, {name: place.read() for name, place in self.places.items()})

    def variables(self) -> dict[str, tuple[Any, ...]]:
        """The live variable behind each array, in the shape in which the framework stores it; none for a missing counter."""
        return {name: (place.variable,) for name, place in self.places.items()}

    def write(self, arrays: Mapping[str, Array]) -> None:
        """Overwrite some arrays or all in place, by their names in the description; dtypes and devices stay.

        An array may be of a narrower dtype than its variable: nothing is rounded. A counter that the layer has not is dropped.

        Raises
            MigrationError: an array that the layer has not, of another shape, or of a dtype that would be rounded. Nothing was
                written.
        """
        there = self.describe().arrays
        checked(self.spec, self.layout, there | dict(arrays), f"write: {called(self.layer)}")
        for name, array in arrays.items():
            if not np.can_cast(array.dtype, there[name].dtype):
                what = f"has {there[name].dtype} in {name!r}, which would round {array.dtype}"
                refuse(self.layer, what, "cast the array, or give the layer that dtype")
        self.fill(arrays)

    def fill(self, arrays: Mapping[str, Array]) -> None:
        """`write`, for arrays that were checked."""
        for name in arrays.keys() & self.places.keys():
            self.places[name].write(arrays[name])
        self.refresh()


def described(spec: NormSpec, layout: Layout, arrays: Mapping[str, Array]) -> Description:
    """The description of a layer, whose counter is 0 where it has none: what does not count its batches does not read it."""
    if any(array.name == "batches_tracked" for array in spec.state):
        arrays = {"batches_tracked": np.zeros((), np.int64), **arrays}
    return checked(spec, layout, arrays, "describe")
