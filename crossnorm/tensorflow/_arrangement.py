"""Where the rows and the columns of a weight lie in a kernel, as Keras stores it.

The arithmetic works on a view of the stored kernel of shape (before, rows, after): no kernel is transposed, only vectors are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import keras
import tensorflow as tf

Tensor = tf.Tensor

_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Which axes of a ``stored`` kernel make up its rows, in ascending order, and which its columns, in that of ``shape``.

    ``shape`` is what the specification says, rows first. ``rows_are_outputs``: the layer's outputs end in an axis of the rows.
    """

    stored: tuple[int, ...]
    row_axes: tuple[int, ...]
    column_axes: tuple[int, ...]
    shape: tuple[int, ...]
    rows_are_outputs: bool

    @classmethod
    def of_rows(cls, shape: Sequence[int]) -> Self:
        """The arrangement of a weight whose rows already come first."""
        return cls(tuple(shape), (0,), tuple(range(1, len(shape))), tuple(shape), True)

    @property
    def _together(self) -> bool:
        """Whether the row axes are neighbours, as they are in all layers but some of `keras.layers.EinsumDense`."""
        return bool(self.row_axes) and self.row_axes[-1] - self.row_axes[0] == len(self.row_axes) - 1

    @property
    def _order(self) -> tuple[int, ...]:
        """The stored axes in the order of the view."""
        return tuple(range(len(self.stored))) if self._together else (*self.row_axes, *self.column_axes)

    @property
    def _view(self) -> tuple[int, int, int]:
        if not self._together:
            return 1, self.shape[0], math.prod(self.shape[1:])
        first, last = self.row_axes[0], self.row_axes[-1]
        return math.prod(self.stored[:first]), self.shape[0], math.prod(self.stored[last + 1 :])

    def view(self, kernel: Tensor) -> Tensor:
        """The kernel as (before, rows, after)."""
        return tf.reshape(_transposed(kernel, self._order), self._view)

    def restore(self, view: Tensor) -> Tensor:
        """The inverse of ``view``."""
        sizes = [self.stored[axis] for axis in self._order]
        return _transposed(tf.reshape(view, sizes), _inverse(self._order))

    def spread(self, columns: Tensor) -> Tensor:
        """A vector of one number for each column as (before, after)."""
        sizes = [self.stored[axis] for axis in self.column_axes]
        before, _, after = self._view
        return tf.reshape(_transposed(tf.reshape(columns, sizes), self._column_order), [before, after])

    def gather(self, spread: Tensor) -> Tensor:
        """The inverse of ``spread``."""
        sizes = [self.stored[self.column_axes[i]] for i in self._column_order]
        return tf.reshape(_transposed(tf.reshape(spread, sizes), _inverse(self._column_order)), [-1])

    @property
    def _column_order(self) -> tuple[int, ...]:
        """The places of the column axes in the order of the view."""
        return tuple(self.column_axes.index(axis) for axis in self._order if axis in self.column_axes)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(i) for i in range(len(order)))


def _transposed(values: Tensor, order: tuple[int, ...]) -> Tensor:
    return values if order == tuple(range(len(order))) else tf.transpose(values, order)


def arrangement(
    layer: keras.layers.Layer, name: str, stored: Sequence[int], transposed: str, depthwise: str, embedding: str
) -> Arrangement:
    """The arrangement of the kernel ``name`` of ``layer``; the last arguments are the fields of `crossnorm.spec.WeightSpec`.

    A kernel of another kind than those of its table is (\\*kernel, inputs, outputs), as those of the dense layers, the
    convolutions and the cells of recurrent layers are.
    """
    stored = tuple(stored)
    last, previous, kernel = len(stored) - 1, len(stored) - 2, tuple(range(len(stored) - 2))

    def arranged(rows: tuple[int, ...], columns: tuple[int, ...], outputs: bool, inputs: tuple[int, ...] = ()) -> Arrangement:
        shape = (math.prod(stored[axis] for axis in rows), *inputs, *(stored[axis] for axis in columns))
        return Arrangement(stored, rows, columns, shape, outputs)

    if len(stored) == 1:
        return arranged((0,), (), True)
    if isinstance(layer, keras.layers.EinsumDense) and name == "kernel":
        return arranged(*_of_equation(layer.equation))
    if isinstance(layer, keras.layers.Embedding):
        return arranged((1,), (0,), True) if embedding == "output" else arranged((0,), (1,), False)
    if isinstance(layer, _TRANSPOSED):
        output = transposed == "output"
        return arranged((previous,), (last, *kernel), True) if output else arranged((last,), (previous, *kernel), False)
    if isinstance(layer, _DEPTHWISE) or name == "depthwise_kernel":
        output = depthwise == "output"
        return arranged((previous, last), kernel, True, (1,)) if output else arranged((last,), (previous, *kernel), False)
    return arranged((last,), (previous, *kernel), True)


def _of_equation(equation: str) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Rows and columns of an `EinsumDense` kernel: what the output has of its axes, and what is summed over."""
    inputs, output = equation.replace(" ", "").split("->")
    kernel = inputs.split(",")[1]
    rows, columns = (tuple(i for i, axis in enumerate(kernel) if (axis in output) is wanted) for wanted in (True, False))
    return rows, columns, output.endswith("".join(kernel[i] for i in rows)) and bool(rows)


def owner(layer: keras.layers.Layer) -> Any:
    """What holds the kernels: the cell of a recurrent layer, and any other layer itself."""
    return getattr(layer, "cell", layer)
