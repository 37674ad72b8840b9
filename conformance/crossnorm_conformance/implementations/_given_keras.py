"""A Keras layer of somebody's own on the TensorFlow backend, a function that builds one, or a plain function of tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from crossnorm import NormSpec
from crossnorm.rounding import accumulation

from ..case import Case
from . import SuiteError, _given
from ._keras import NAMES
from ._keras_tensors import policy
from ._tensorflow import TensorFlowImplementation


class Given(_given.Given, TensorFlowImplementation):
    """Its weights are found by Keras' usual names, or by the roles that were given. Layers are made again from their
    configuration, in the dtype policy of each case."""

    names: Mapping[str, Any] = NAMES

    def layouts(self, spec: NormSpec) -> Sequence[str]:
        if self._layouts is not None:
            return self._layouts
        return ("channels_last",) if hasattr(spec, "channels") else ("contiguous",)

    def build(self, case: Case) -> keras.layers.Layer:
        if self.kind == "function":
            return _Function(self.layer, case.spec, dtype=policy(case))
        if self.kind == "layer":
            return type(self.layer).from_config({**self.layer.get_config(), "dtype": policy(case)})
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy(case))
        try:
            return self.made(case.spec)
        finally:
            keras.config.set_dtype_policy(before)

    def shows(self, case: Case, quantity: str) -> bool:
        return quantity != "batches_tracked" and (quantity != "effective_weight" or self._effective is not None)

    def try_out(self, case: Case) -> None:
        if case.layer is not None:
            return
        layer = self.build(case)
        x = np.moveaxis(np.zeros(case.shape), 1, -1) if case.layout == "channels_last" else np.zeros(case.shape)
        layer.build(x.shape)
        for array in (*case.spec.parameters, *case.spec.state):
            if array.name != "batches_tracked":
                _given.find_attribute(self.name, [layer], array.name, _listed(self.names[array.name]))
        layer(tf.cast(x, case.dtype))

    def wrap(self, case: Case, layer: keras.layers.Layer) -> keras.layers.Layer:
        if self.kind == "function":
            raise SuiteError(
                "check: a plain function of a weight is checked as framework='torch' or 'numpy'; wrap the layer here"
            )
        return self.layer(layer)

    def held(self, case: Case, wrapper: keras.layers.Layer) -> dict[str, keras.Variable]:
        arrays = (*case.spec.parameters, *case.spec.state)
        names = {a.name: [*_listed(self.names.get(a.name, a.name)), a.name, f"vector_{a.name}", "g", "gain"] for a in arrays}
        return {role: _given.find_attribute(self.name, [wrapper], role, name) for role, name in names.items()}

    @property
    def _effective(self) -> Any:
        return self.names.get("effective_weight")

    def effective(self, wrapper: keras.layers.Layer) -> tf.Tensor:
        found = getattr(wrapper, self._effective)
        return found() if callable(found) else found


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


class _Function(keras.layers.Layer):
    """A plain function with the parameters and the state of a specification, by their roles."""

    def __init__(self, function: Any, spec: NormSpec, **options: Any) -> None:
        super().__init__(**options)
        self.function, self.norm = function, spec
        dtype = accumulation(self.compute_dtype)
        for array in (*spec.parameters, *spec.state):
            learned = array in spec.parameters
            variable = self.add_weight(
                shape=array.shape,
                initializer=keras.initializers.Constant(array.initial or 0),
                dtype="int64" if array.name == "batches_tracked" else dtype,
                trainable=learned,
                autocast=False,
                name=array.name,
            )
            setattr(self, array.name, variable)

    @tf.autograph.experimental.do_not_convert  # it looks for the source of a lambda, and may not find it
    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        parameters = {array.name: getattr(self, array.name).value for array in self.norm.parameters}
        state = {array.name: getattr(self, array.name).value for array in self.norm.state}
        trains = bool(training and self.trainable)
        y, new = _given.call(self.function, x, parameters, state, trains)
        for name, value in new.items() if trains else ():
            getattr(self, name).assign(value)
        return y
