"""What the two TensorFlow implementations share: axes from layouts, the steps of a case, graph execution."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from crossnorm import NormSpec
from crossnorm.spec import PEERS

from ..case import Arrays, Case
from ..cases import Fault
from . import Misuse, Result

STATE = {"running_mean": "moving_mean", "running_variance": "moving_variance", "batches_tracked": "batches_tracked"}
PARAMETERS = {"scale": ("gamma", "scale"), "offset": ("beta",)}
POLICIES = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}


# Several processes, and torch in each of them, share one GPU.
for _gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(_gpu, True)


class TensorFlowImplementation:
    """Runs a ``keras.layers.Layer``; subclasses say which one."""

    name: str
    framework = "keras"
    native: str | None = None

    def build(self, case: Case) -> keras.layers.Layer:
        """The layer of the case, not built yet."""
        raise NotImplementedError

    def misbuild(self, fault: Fault) -> keras.layers.Layer:
        """The layer of a fault, its arguments as a user would pass them."""
        cls, extra = self.layer_class(fault.spec)
        return cls(**extra, **native_arguments(fault.spec, dict(fault.arguments)), axis=fault_axis(fault))

    def layer_class(self, spec: NormSpec) -> tuple[type[keras.layers.Layer], dict[str, Any]]:
        """The class of a method's layer, and the arguments that make it that method."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        return {"tensorflow": tf.__version__, "keras": keras.__version__}

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "cuda") if tf.config.list_physical_devices("GPU") else ("cpu",)

    def executions(self) -> tuple[str, ...]:
        return ("eager", "function")

    def shows(self, case: Case, quantity: str) -> bool:
        # Keras counts batches only where an average over all of them needs the number.
        return quantity != "batches_tracked" or getattr(case.spec, "decay", 0) is None

    def unsupported(self, case: Case, device: str) -> str:
        return self.lacks(case) if device in self.devices() else f"no device {device}"

    def lacks(self, case: Case) -> str:
        """What TensorFlow or the layer has no means for; empty if it has."""
        return "TensorFlow tensors have no strides" if case.layout == "strided" else ""

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        with tf.device("/GPU:0" if device == "cuda" else "/CPU:0"):
            layer = self.build(case)
            layer.build(_to_layout(case, np.empty(case.shape)).shape)
            _load(layer, arrays)
            layer.trainable = case.mode != "frozen"
            run = _traced(case) if execution == "function" else _step
            results: dict[tuple[int, str], Result] = {}
            for step, mode in case.steps:
                # Keras freezes by trainable=False under training=True; that is the frozen mode to be tested. Inference is
                # what a layer does that is told nothing.
                training = True if mode.update_running or case.mode == "frozen" else None
                x = tf.cast(_to_layout(case, arrays.values[f"x{step}"]), case.dtype)
                upstream = tf.cast(_to_layout(case, arrays.values[f"upstream{step}"]), case.dtype)
                y, dx, gradients = run(layer, x, upstream, training)
                results[step, "y"] = _result(y, lambda v: _from_layout(case, v))
                if case.differentiates(step):
                    results[step, "dx"] = _result(dx, lambda v: _from_layout(case, v))
                    for parameter in case.spec.parameters if case.mode != "frozen" else ():
                        results[step, f"d{parameter.name}"] = _result(gradients[_weight(layer, parameter.name).path])
                for array in case.spec.state:
                    if self.shows(case, array.name):
                        results[step, array.name] = _result(getattr(layer, STATE[array.name]).value)
            return results

    def inexpressible(self, fault: Fault) -> str:
        return ""

    def misuse(self, fault: Fault) -> Misuse:
        before: dict[str, Any] = {}
        layer = None
        try:
            layer = self.misbuild(fault)
            # Built for good input first: what is asked is whether bad input harms a working layer.
            layer.build((None, *good_shape(fault)[1:]))
            before = _state(layer)
            layer(tf.ones(fault.shape, fault.dtype), training=True)
        except Exception as error:
            return Misuse(error, before, _state(layer))
        return Misuse(None, before, _state(layer))


def _step(
    layer: keras.layers.Layer, x: tf.Tensor, upstream: tf.Tensor, training: bool | None
) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    variables = {v.path: v.value for v in layer.trainable_variables}
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True) if training and layer._call_has_training_arg else layer(x)
    dx, gradients = tape.gradient(y, (x, variables), output_gradients=upstream)
    return y, dx, gradients


def _traced(case: Case) -> Callable[..., tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]]:
    """The step as a graph that does not know the size of the batch."""
    signature = tf.TensorSpec([None, *_to_layout(case, np.empty(case.shape)).shape[1:]], case.dtype)
    traces: dict[bool | None, Any] = {}

    def run(layer: keras.layers.Layer, x: tf.Tensor, upstream: tf.Tensor, training: bool | None) -> Any:
        if training not in traces:
            step = lambda x, upstream: _step(layer, x, upstream, training)  # noqa: E731
            traces[training] = tf.function(step, input_signature=[signature, signature])
        return traces[training](x, upstream)

    return run


def _to_layout(case: Case, values: Any) -> Any:
    if case.layout == "channels_last":
        return np.moveaxis(values, 1, -1)
    if case.layout == "leading":
        return _normalized_first(case, values)
    return values


def _from_layout(case: Case, values: Any) -> Any:
    if case.layout == "channels_last":
        return np.moveaxis(values, -1, 1)
    if case.layout == "leading":
        return _normalized_last(case, values)
    return values


def _normalized_first(case: Case, values: Any) -> Any:
    count = len(case.spec.parameter_shape)
    rank = values.ndim
    return np.moveaxis(values, range(rank - count, rank), range(1, 1 + count))


def _normalized_last(case: Case, values: Any) -> Any:
    count = len(case.spec.parameter_shape)
    rank = values.ndim
    return np.moveaxis(values, range(1, 1 + count), range(rank - count, rank))


def axis_of(case: Case) -> int | list[int]:
    """The axis argument that the layout stands for."""
    if hasattr(case.spec, "channels"):
        return -1 if case.layout == "channels_last" else 1
    count = len(case.spec.parameter_shape)
    axes = list(range(1, 1 + count)) if case.layout == "leading" else list(range(-count, 0))
    return axes if count > 1 else axes[0]


def fault_axis(fault: Fault) -> int | list[int]:
    """Channels first, as the shapes of the faults are written; an empty normalized shape is an empty list of axes."""
    if hasattr(fault.spec, "channels"):
        return 1
    return list(range(-len(fault.arguments.get("shape", fault.spec.parameter_shape)), 0))


def good_shape(fault: Fault) -> tuple[int, ...]:
    """An input that the fault's specification accepts."""
    if hasattr(fault.spec, "channels"):
        return (2, fault.spec.channels, 3, 3)
    return (2, *fault.spec.parameter_shape)


def policy(case: Case) -> str:
    """Half inputs go beside float32 variables."""
    return POLICIES.get(case.dtype, case.dtype)


def native_arguments(spec: NormSpec, changes: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments of Keras for a specification's fields, by the names that the presets give them."""
    arguments = PEERS[spec.method]["keras"].arguments
    fields = {name: changes.get(name, getattr(spec, name)) for name in arguments}
    return {arguments[name].name: arguments[name].native(value) for name, value in fields.items()}


def _weight(layer: keras.layers.Layer, role: str) -> keras.Variable:
    for name in PARAMETERS[role]:
        if isinstance(getattr(layer, name, None), keras.Variable):
            return getattr(layer, name)
    raise AttributeError(f"{layer.name} has no weight for {role}")


def _load(layer: keras.layers.Layer, arrays: Arrays) -> None:
    for role in PARAMETERS:
        if role in arrays.values:
            _weight(layer, role).assign(arrays.values[role])
    for role, name in STATE.items():
        if role in arrays.values and getattr(layer, name, None) is not None:
            getattr(layer, name).assign(arrays.values[role])


def _state(layer: keras.layers.Layer | None) -> dict[str, Any]:
    return {} if layer is None else {v.path: np.array(v) for v in layer.non_trainable_variables}


def _result(values: tf.Tensor, arrange: Callable[[Any], Any] = np.asarray) -> Result:
    held = tf.cast(values, tf.float32) if values.dtype == tf.bfloat16 else values
    return Result(np.array(arrange(held.numpy())), values.dtype.name)
