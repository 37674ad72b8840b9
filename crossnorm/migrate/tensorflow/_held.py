"""The variables behind the arrays of a Keras layer, and the classes that say what it computes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import keras
import numpy as np

from crossnorm.errors import Unsupported
from crossnorm.tensorflow._base import SpecLayer

from .._held import Array
from .._natives import refuse
from .linear import computes_as

_HALVES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Place:
    """An array in a variable, whose axes in this ``order``, or in their own, and in this ``shape`` make it."""

    variable: keras.Variable
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()

    @property
    def _order(self) -> tuple[int, ...]:
        return self.order or tuple(range(len(self.variable.shape)))

    def read(self) -> Array:
        return np.array(np.transpose(self.variable.numpy(), self._order).reshape(self.shape))

    def write(self, array: Array) -> None:
        moved = np.reshape(array, [self.variable.shape[axis] for axis in self._order])
        self.variable.assign(np.transpose(moved, np.argsort(self._order)))


def class_of(layer: keras.layers.Layer, natives: Iterable[type[keras.layers.Layer]]) -> type[keras.layers.Layer]:
    """The class of ours, or else of these, that says what a layer computes, which is an instance of one of them."""
    ours = [cls for cls in type(layer).__mro__ if issubclass(cls, SpecLayer) and cls.__module__.startswith("crossnorm.")]
    bases = [cls for cls in (*ours[:1], *natives) if isinstance(layer, cls)]
    for cls in bases:
        if computes_as(layer, cls):
            return cls
    refuse(layer, f"changes what {bases[0].__name__} computes", "give a layer of that class")


def policy_of(dtype: str, arrays: Mapping[str, Array]) -> str:
    """The dtype policy that computes in ``dtype``, torch's or Keras' name, and stores these arrays as they are."""
    stored, compute = {str(array.dtype) for array in arrays.values()}, dtype.removeprefix("mixed_")
    policies = {compute: compute, "float32": f"mixed_{compute}"} if compute in _HALVES else {compute: compute}
    name = dtype if not stored else policies.get(min(stored)) if len(stored) == 1 else None
    if name is None or compute not in (*_HALVES, "float32", "float64"):
        what = f"arrays of dtype {' and '.join(sorted(stored)) or 'none'} in a layer of dtype {dtype}"
        raise Unsupported(f"crossnorm.migrate: {what} are nothing that a Keras policy stores; convert the arrays first")
    return name
