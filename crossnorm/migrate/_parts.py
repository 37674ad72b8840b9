"""The parts of a model: the layers that hold arrays, and every normalization layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm.spec import NormSpec

from ._settings import Attention, Linear, Recurrent

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One layer of a model, in words that no framework owns.

    Attributes:
        name: its path in the model, with dots.
        framework: ``"torch"`` or ``"tensorflow"``.
        layer: the live layer; several parts may be of one (the layers of a stacked LSTM, the two kernels of a separable
            convolution).
        settings: what it is: a specification for a normalization, else one of `crossnorm.migrate._settings`.
        arrays: its arrays now, by their names and in the arrangement of the settings or the specification; copies.
        write: overwrites arrays in place, by the same names; nothing else changes. Shapes and dtypes were checked before.
        variables: the live parameters or variables behind each array, for optimizers and to find what is tied.
        axis: where the channel lies in what goes in and comes out.
        batch_axis: where the batch lies there.
        trainable: the names of the arrays that are learned now.
    """

    name: str
    framework: str
    layer: Any
    settings: NormSpec | Linear | Recurrent | Attention
    arrays: Arrays
    write: Callable[[Arrays], None]
    variables: Mapping[str, tuple[Any, ...]]
    axis: int = -1
    batch_axis: int = 0
    trainable: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        """A method's name, or dense, convolution, ...: parts of two kinds never match."""
        return self.settings.method if isinstance(self.settings, NormSpec) else self.settings.kind
