"""The linear layers whose weights are reparametrized, in NumPy: what the suite's oracle puts behind an effective weight.

A weight stands here as (outputs, inputs / groups, *kernel), whatever the layer; inputs as (batch, inputs, *positions).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm import WeightSpec

Array = NDArray[Any]

BATCH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear layer without a bias; convolutions have stride 1 and no padding.

    ``kind``: ``"dense"``, ``"convolution"``, ``"transposed"``, ``"depthwise"`` or ``"embedding"``, whose inputs are ids.
    """

    kind: str
    outputs: int
    inputs: int
    groups: int = 1
    kernel: tuple[int, ...] = ()

    def __str__(self) -> str:
        """The name of the layer in the id of a case."""
        if self.kind in ("dense", "embedding", "depthwise"):
            return self.kind
        return f"{'grouped_' if self.groups > 1 else ''}{self.kind}{len(self.kernel)}d"

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.inputs // self.groups, *self.kernel)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the inputs that the suite draws."""
        return (BATCH,) if self.kind == "embedding" else (BATCH, self.inputs, *(size + 2 for size in self.kernel))

    @property
    def terms(self) -> int:
        """How many products one element of the weight's gradient sums."""
        return prod(self.input_shape) // (1 if self.kind == "embedding" else self.inputs)

    # What a row of the specification is.

    def arrange(self, weight: Array, spec: WeightSpec) -> Array:
        """From (outputs, inputs / groups, *kernel) to (rows, *rest), as the specification says."""
        split = weight.reshape(self.groups, self.outputs // self.groups, self.inputs // self.groups, *self.kernel)
        if self.kind == "transposed" and spec.transposed_row == "input":
            return np.swapaxes(split, 1, 2).reshape(self.inputs, self.outputs // self.groups, *self.kernel)
        if self.kind == "depthwise" and spec.depthwise_row == "multiplier":
            return np.swapaxes(split, 0, 1).reshape(self.outputs // self.groups, self.inputs, *self.kernel)
        if self.kind == "embedding" and spec.embedding_row == "input":
            return weight.T
        return weight

    def restore(self, weight: Array, spec: WeightSpec) -> Array:
        """The inverse of ``arrange``."""
        rest = (self.outputs // self.groups, *self.kernel)
        if self.kind == "transposed" and spec.transposed_row == "input":
            split = weight.reshape(self.groups, self.inputs // self.groups, *rest)
            return np.swapaxes(split, 1, 2).reshape(self.weight_shape)
        if self.kind == "depthwise" and spec.depthwise_row == "multiplier":
            return np.swapaxes(weight, 0, 1).reshape(self.weight_shape)
        if self.kind == "embedding" and spec.embedding_row == "input":
            return weight.T
        return weight

    # The layer.

    def __call__(self, weight: Array, x: Array) -> Array:
        """The outputs, (batch, outputs, *positions)."""
        x, split = self._numbers(weight, x)
        grow = 1 if self.kind == "transposed" else -1
        positions = tuple(p + grow * (k - 1) for p, k in zip(x.shape[3:], self.kernel, strict=True))
        y = np.zeros((x.shape[0], self.groups, self.outputs // self.groups, *positions), np.result_type(weight, x))
        for offset, of_x, of_y in self._windows(positions if self.kind != "transposed" else x.shape[3:]):
            y[of_y] += np.einsum("goi,ngi...->ngo...", split[offset], x[of_x])
        return y.reshape(x.shape[0], self.outputs, *positions)

    def input_gradient(self, weight: Array, x: Array, upstream: Array) -> Array:
        x, split = self._numbers(weight, x)
        dy = self._grouped(upstream, self.outputs)
        dx = np.zeros(x.shape, np.result_type(weight, dy))
        for offset, of_x, of_y in self._windows(dy.shape[3:] if self.kind != "transposed" else x.shape[3:]):
            dx[of_x] += np.einsum("goi,ngo...->ngi...", split[offset], dy[of_y])
        return dx.reshape(x.shape[0], self.inputs, *x.shape[3:])

    def weight_gradient(self, weight: Array, x: Array, upstream: Array) -> Array:
        x, split = self._numbers(weight, x)
        dy = self._grouped(upstream, self.outputs)
        gradient = np.zeros(split.shape, np.result_type(x, dy))
        for offset, of_x, of_y in self._windows(dy.shape[3:] if self.kind != "transposed" else x.shape[3:]):
            of_position = (part.reshape(*part.shape[:3], -1) for part in (dy[of_y], x[of_x]))
            gradient[offset] = np.einsum("ngop,ngip->goi", *of_position)
        return gradient.reshape(self.weight_shape)

    def _numbers(self, weight: Array, x: Array) -> tuple[Array, Array]:
        """Inputs and weight with an axis for the groups; ids become columns with a single one."""
        if self.kind == "embedding":
            x = np.eye(self.inputs, dtype=weight.dtype)[x]
        split = weight.reshape(self.groups, self.outputs // self.groups, self.inputs // self.groups, *self.kernel)
        return self._grouped(x, self.inputs), split

    def _grouped(self, values: Array, channels: int) -> Array:
        return values.reshape(values.shape[0], self.groups, channels // self.groups, *values.shape[2:])

    def _windows(self, positions: tuple[int, ...]) -> Iterator[tuple[Any, Any, Any]]:
        """For each place in the kernel: its index, and the inputs and outputs that it joins."""
        for place in product(*(range(size) for size in self.kernel)):
            offset = (slice(None), slice(None), slice(None), *place)
            window = (..., *(slice(k, k + p) for k, p in zip(place, positions, strict=True)))
            yield (offset, ..., window) if self.kind == "transposed" else (offset, window, ...)
