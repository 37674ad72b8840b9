"""A layer runs with other tensors in the place of some of its variables."""

from collections.abc import Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from ._base import CallError


class Substitution(keras.StatelessScope):
    """Inside it, the variables given read as the tensors given, in this thread; all else goes where it went before.

    A `keras.StatelessScope` does the first and holds back every other change. This one lets them through, to the scope around
    it if there is one: variables that the layer assigns (seeds, statistics) are assigned, and losses that it adds are added;
    without a scope around, ``losses`` are for the wrapper to add.
    """

    def __init__(self, who: str, values: Sequence[tuple[keras.Variable, tf.Tensor]]) -> None:
        super().__init__(collect_losses=True)
        self._who = who
        # Not given to the scope above: inside a mixed policy it would round them before the layer has asked for them.
        self._variables = [variable for variable, _ in values]
        self.state_mapping = {id(variable): value for variable, value in values}

    def __enter__(self) -> Self:
        super().__enter__()
        if self.original_scope:
            self.collect_losses = self.original_scope.collect_losses
        return self

    def add_loss(self, loss: tf.Tensor) -> None:
        (self.original_scope or super()).add_loss(loss)

    def get_current_value(self, variable: keras.Variable) -> Any:
        value = super().get_current_value(variable)
        return self.original_scope.get_current_value(variable) if value is None and self.original_scope else value

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        variable, value = update
        if id(variable) in self.state_mapping:
            raise CallError(
                f"{self._who}: the wrapped layer assigns its own {variable.name!r} in its call, which is computed anew for "
                "each call; wrap a layer that leaves it alone"
            )
        if self.original_scope:
            self.original_scope.add_update(update)
        else:
            variable._direct_assign(value)
