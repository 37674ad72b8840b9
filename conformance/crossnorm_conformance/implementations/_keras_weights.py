"""Running a wrapped linear layer, whoever wrapped it."""

from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np

from ..case import Arrays, Case
from ..cases import Fault
from ..linear import Linear
from . import Misuse, Result
from ._keras_tensors import Step, dense, given, policy, result


class Reparametrizes(Protocol):
    """What is asked of an implementation."""

    def wrap(self, case: Case, layer: keras.layers.Layer) -> keras.layers.Layer: ...
    def held(self, case: Case, wrapper: keras.layers.Layer) -> dict[str, keras.Variable]: ...
    def effective(self, wrapper: keras.layers.Layer) -> Any: ...
    def shows(self, case: Case, quantity: str) -> bool: ...
    def stepper(self, execution: str) -> Step: ...


def linear_layer(layer: Linear, dtype: str) -> keras.layers.Layer:
    """The Keras layer of a linear one."""
    if layer.kind == "embedding":
        return keras.layers.Embedding(layer.inputs, layer.outputs, dtype=dtype)
    options = {"use_bias": False, "dtype": dtype}
    if layer.kind == "dense":
        return keras.layers.Dense(layer.outputs, **options)
    if layer.kind == "depthwise":
        multiplier = layer.outputs // layer.inputs
        return keras.layers.DepthwiseConv2D(layer.kernel, depth_multiplier=multiplier, **options)
    if layer.kind == "transposed":
        return getattr(keras.layers, f"Conv{layer.rank}DTranspose")(layer.outputs, layer.kernel, **options)
    return getattr(keras.layers, f"Conv{layer.rank}D")(layer.outputs, layer.kernel, groups=layer.groups, **options)


def _to_keras(layer: Linear, weight: Any) -> Any:
    """From (outputs, inputs / groups, *kernel) to the order that Keras stores."""
    if layer.kind == "depthwise":
        split = weight.reshape(layer.inputs, layer.outputs // layer.inputs, *layer.kernel)
        return np.moveaxis(split, (0, 1), (-2, -1))
    return np.moveaxis(weight, (0, 1), (-2, -1) if layer.kind == "transposed" else (-1, -2))


def _from_keras(layer: Linear, weight: Any) -> Any:
    if layer.kind == "depthwise":
        return np.moveaxis(weight, (-2, -1), (0, 1)).reshape(layer.weight_shape)
    return np.moveaxis(weight, (-2, -1) if layer.kind == "transposed" else (-1, -2), (0, 1))


def run_weights(
    implementation: Reparametrizes, layer: Linear, case: Case, arrays: Arrays, execution: str
) -> dict[tuple[int, str], Result]:
    """Every step of a case about a weight. Weights stay float32 beside half inputs, as mixed policies keep them."""
    spec: Any = case.spec
    inner = linear_layer(layer, policy(case))
    wrapper = implementation.wrap(case, inner)
    wrapper.build(_moved(arrays.values["x1"]).shape)
    (kernel,) = inner.trainable_variables
    held = implementation.held(case, wrapper)
    for role, variable in held.items():
        variable.assign(arrays.values[role].reshape(variable.shape))
    wrapper.trainable = case.mode != "frozen"
    run = implementation.stepper(execution)

    def to_spec(values: Any) -> Result | None:
        return result(values, lambda v: layer.arrange(_from_keras(layer, v), spec))

    results: dict[tuple[int, str], Result | None] = {}
    for step, mode in case.steps:
        kernel.assign(_to_keras(layer, layer.restore(arrays.values[f"weight{step}"], spec)))
        training = True if mode.update_running or case.mode == "frozen" else None
        x = arrays.values[f"x{step}"]
        x = dense(_moved(x), case.dtype if case.inputs_differ else str(x.dtype))
        upstream = dense(_moved(arrays.values[f"upstream{step}"]), case.dtype)
        y, dx, gradients = run(wrapper, x, upstream, training)
        results[step, "y"] = result(y, _back)
        if implementation.shows(case, "effective_weight"):
            results[step, "effective_weight"] = to_spec(implementation.effective(wrapper))
        if case.differentiates(step):
            if case.inputs_differ:
                results[step, "dx"] = result(dx, _back)
            if case.mode != "frozen":
                results[step, "dweight"] = to_spec(gradients[kernel.path])
                for parameter in spec.parameters:
                    shape = parameter.shape
                    results[step, f"d{parameter.name}"] = result(
                        gradients[held[parameter.name].path], lambda v, shape=shape: v.reshape(shape)
                    )
        for array in spec.state:
            variable = held[array.name]
            results[step, array.name] = result(variable.value, lambda v, shape=array.shape: v.reshape(shape))
    return given(results)


def _moved(values: Any) -> Any:
    """Channels last, as Keras has it."""
    return np.moveaxis(values, 1, -1) if values.ndim > 1 else values


def _back(values: Any) -> Any:
    return np.moveaxis(values, -1, 1)


class _Tied(keras.layers.Dense):
    """A dense layer with another one's kernel."""

    def __init__(self, other: keras.layers.Dense, units: int) -> None:
        super().__init__(units, use_bias=False)
        self.other = [lambda: other.kernel]

    def build(self, input_shape: Any) -> None:
        self._kernel, self.bias = self.other[0](), None
        self.built = True


def misuse_weights(fault: Fault, wrap: Callable[..., keras.layers.Layer], kernel: str | None) -> Misuse:
    """Ask for a wrapper that cannot be. ``kernel`` is the argument that names the wrapped weight, if there is one."""
    rows, columns = fault.spec.shape  # type: ignore[attr-defined]
    first = keras.layers.ReLU() if fault.wrap == "no_kernel" else keras.layers.Dense(rows)
    first.build((None, columns))
    second = _Tied(first, rows) if fault.wrap == "tied" else keras.layers.Dense(rows)
    second.build((None, columns))
    target = second if fault.wrap == "tied" else first
    if fault.wrap in ("twice", "tied"):
        wrap(first).build((None, columns))
    arguments: dict[str, Any] = dict(fault.arguments)
    if fault.wrap == "unknown_kernel" and kernel:
        arguments[kernel] = "wieght"
    before = _arrays(first, second)
    try:
        wrapper = wrap(target, **arguments)
        if fault.wrap == "unbuilt":
            wrapper.spec  # noqa: B018
        wrapper.build((None, columns))
    except Exception as error:
        return Misuse(error, before, _arrays(first, second))
    return Misuse(None, before, _arrays(first, second))


def _arrays(*layers: keras.layers.Layer) -> dict[str, Any]:
    return {f"{i}/{v.path}": np.array(v) for i, layer in enumerate(layers) for v in layer.weights}
