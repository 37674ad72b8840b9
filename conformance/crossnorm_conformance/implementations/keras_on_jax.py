"""``keras.layers`` on the JAX backend, in a process where Keras has that backend."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras

from ._keras_natives import NativeLayers, demand_backend
from ._keras_tensors import Step, call


class KerasOnJax(NativeLayers):
    name = "keras-on-jax"
    unstrided = "JAX arrays have no strides"

    def versions(self) -> dict[str, str]:
        return {"jax": jax.__version__, "keras": keras.__version__}

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "cuda") if any(device.platform == "gpu" for device in jax.devices()) else ("cpu",)

    def executions(self) -> tuple[str, ...]:
        # Eagerly each primitive is compiled for itself: minutes, and gigabytes that nobody gives back.
        return ("function",)

    def stepper(self, execution: str) -> Step:
        return _stepper()

    def shows(self, case: Any, quantity: str) -> bool:
        # Training on JAX gives back the state only: what a layer writes over a trainable variable is lost after the call.
        return quantity != "effective_weight" and super().shows(case, quantity)


def _stepper() -> Step:
    steps: dict[bool | None, Any] = {}

    def run(layer: keras.layers.Layer, x: jax.Array, upstream: jax.Array, training: bool | None) -> Any:
        if training not in steps:
            steps[training] = jax.jit(partial(_step, layer, training))
        variables = [[v.value for v in held] for held in (layer.trainable_variables, layer.non_trainable_variables)]
        y, dx, gradients, state = steps[training](*variables, x, upstream)
        for variable, value in zip(layer.non_trainable_variables, state, strict=True):
            variable.assign(value)
        return y, dx, {v.path: gradient for v, gradient in zip(layer.trainable_variables, gradients, strict=True)}

    return run


def _step(
    layer: keras.layers.Layer, training: bool | None, trainable: Any, other: Any, x: jax.Array, upstream: jax.Array
) -> tuple[jax.Array, jax.Array, list[jax.Array], list[jax.Array]]:
    """What ``stateless_call`` does, but with the casts of a call: a layer on its own has them in ``__call__``."""

    def forward(trainable: Any, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        variables = (*layer.trainable_variables, *layer.non_trainable_variables)
        with keras.StatelessScope(state_mapping=zip(variables, (*trainable, *other), strict=True)) as scope:
            y = call(layer, x, training)
        return y, [scope.get_current_value(v) for v in layer.non_trainable_variables]

    y, pull, state = jax.vjp(forward, trainable, x, has_aux=True)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        return y, None, [None] * len(trainable), state
    gradients, dx = pull(upstream)
    return y, dx, gradients, state


demand_backend(KerasOnJax.name, "jax")
# float64 is one of the suite's dtypes; the process is this implementation's own.
jax.config.update("jax_enable_x64", True)
IMPLEMENTATION = KerasOnJax()
