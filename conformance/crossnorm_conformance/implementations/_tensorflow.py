"""Keras layers on the TensorFlow backend: gradients by a tape, ``tf.function``, devices."""

from typing import Any

import keras
import tensorflow as tf

from ._keras import KerasImplementation
from ._keras_tensors import Step, call

# Several processes, and torch in each of them, share one GPU.
for _gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(_gpu, True)


class TensorFlowImplementation(KerasImplementation):
    """What is TensorFlow's; subclasses say which layers."""

    unstrided = "TensorFlow tensors have no strides"

    def versions(self) -> dict[str, str]:
        return {"tensorflow": tf.__version__, "keras": keras.__version__}

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "cuda") if tf.config.list_physical_devices("GPU") else ("cpu",)

    def executions(self) -> tuple[str, ...]:
        return ("eager", "function", "xla")

    def stepper(self, execution: str) -> Step:
        return _step if execution == "eager" else _traced(xla=execution == "xla")


def _step(
    layer: keras.layers.Layer, x: tf.Tensor, upstream: tf.Tensor, training: bool | None
) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    variables = {v.path: v.value for v in layer.trainable_variables}
    with tf.GradientTape() as tape:
        # Ids have no gradient.
        if x.dtype.is_floating:
            tape.watch(x)
        y = call(layer, x, training)
    dx, gradients = tape.gradient(y, (x if x.dtype.is_floating else [], variables), output_gradients=upstream)
    # A gradient of an embedding is a list of rows.
    return y, dx, {path: None if g is None else tf.convert_to_tensor(g) for path, g in gradients.items()}


def _traced(xla: bool) -> Step:
    """The step as a graph that does not know the size of the batch, until XLA compiles it."""
    traces: dict[bool | None, Any] = {}

    def run(layer: keras.layers.Layer, x: tf.Tensor, upstream: tf.Tensor, training: bool | None) -> Any:
        if training not in traces:
            step = lambda x, upstream: _step(layer, x, upstream, training)  # noqa: E731
            signature = [tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in (x, upstream)]
            traces[training] = tf.function(step, input_signature=signature, jit_compile=xla)
        return traces[training](x, upstream)

    return run
