"""What all implementations with Keras layers share, whatever the backend: axes from layouts, names, the steps of a case."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from crossnorm import NormSpec, WeightSpec
from crossnorm.spec import SPECS

from ..case import Arrays, Case
from ..cases import Fault
from . import Misuse, Result
from ._keras_tensors import Step, dense, given, result, state_of
from ._keras_weights import run_weights
from ._peer import arguments_of, axes_of, from_layout, to_layout

# The attributes of a layer by their roles; the first that is there counts.
NAMES = {
    "running_mean": ("moving_mean",),
    "running_variance": ("moving_variance",),
    "running_standard_deviation": ("moving_stddev",),
    "renorm_mean": ("renorm_mean",),
    "renorm_variance": ("renorm_variance",),
    "renorm_standard_deviation": ("renorm_stddev",),
    "batches_tracked": ("batches_tracked",),
    "scale": ("gamma", "scale"),
    "offset": ("beta",),
    "mean_logits": ("mean_logits",),
    "variance_logits": ("variance_logits",),
    "learned_eps": ("learned_epsilon",),
    "threshold": ("tau",),
}


class KerasImplementation:
    """Runs a ``keras.layers.Layer``; subclasses say which one, how they reparametrize a linear one, and what is the backend's:
    gradients, compilation and devices."""

    name: str
    framework = "keras"
    native: str | None = None
    names: Mapping[str, Sequence[str]] = NAMES
    unstrided = ""
    """Why the backend has no tensors with strides; empty if it has."""

    def methods(self) -> tuple[str, ...]:
        """The methods that it has."""
        return tuple(SPECS)

    def build(self, case: Case) -> keras.layers.Layer:
        """The layer of the case, not built yet."""
        raise NotImplementedError

    def misbuild(self, fault: Fault) -> keras.layers.Layer:
        """The layer of a fault, its arguments as a user would pass them."""
        cls, extra = self.layer_class(fault.spec)
        return cls(**extra, **arguments_of("keras", fault.spec, fault.arguments), axis=fault_axis(fault))

    def layer_class(self, spec: NormSpec) -> tuple[type[keras.layers.Layer], dict[str, Any]]:
        """The class of a method's layer, and the arguments that make it that method."""
        raise NotImplementedError

    def wrap(self, case: Case, layer: keras.layers.Layer) -> keras.layers.Layer:
        """The wrapper that reparametrizes the layer, not built yet."""
        raise NotImplementedError

    def held(self, case: Case, wrapper: keras.layers.Layer) -> dict[str, keras.Variable]:
        """What a wrapper holds beside the raw weight: ``"scale"``, ``"u"`` and ``"v"``."""
        raise NotImplementedError

    def effective(self, wrapper: keras.layers.Layer) -> Any:
        """The weight that the last call used, as Keras stores it."""
        raise NotImplementedError

    def misuse_weights(self, fault: Fault) -> Misuse:
        """Ask for a reparametrization that cannot be."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        """Those of the backend and of Keras."""
        raise NotImplementedError

    def devices(self) -> tuple[str, ...]:
        """Those that the backend sees."""
        raise NotImplementedError

    def executions(self) -> tuple[str, ...]:
        return ("eager", "function")

    def stepper(self, execution: str) -> Step:
        """How the steps of one case are run and differentiated."""
        raise NotImplementedError

    def tensor(self, values: Any, dtype: str, layout: str) -> Any:
        """An array as the backend's tensor; of the layouts only ``"strided"`` is one of memory."""
        return dense(values, dtype)

    def shows(self, case: Case, quantity: str) -> bool:
        # Keras counts batches only where an average over all of them, or a schedule, needs the number.
        needed = getattr(case.spec, "decay", 0) is None or any(
            getattr(case.spec, steps, None) for steps in ("r_max_steps", "d_max_steps")
        )
        return quantity != "batches_tracked" or needed

    def unsupported(self, case: Case, device: str) -> str:
        return self.lacks(case) if device in self.devices() else f"no device {device}"

    def lacks(self, case: Case) -> str:
        """What the backend or the layer has no means for; empty if it has."""
        return self.unstrided if case.layer is None and case.layout == "strided" else ""

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        # Not "cpu:0": torch takes it for another device than "cpu", and the variables of Keras would be copies, no leaves.
        with keras.device("gpu:0" if device == "cuda" else "cpu"):
            if case.layer is not None:
                return run_weights(self, case.layer, case, arrays, execution)
            layer = self.build(case)
            layer.build(to_layout(case, np.empty(case.shape)).shape)
            self._load(layer, arrays)
            layer.trainable = case.mode != "frozen"
            run = self.stepper(execution)
            results: dict[tuple[int, str], Result | None] = {}
            for step, mode in case.steps:
                # Keras freezes by trainable=False under training=True; that is the frozen mode to be tested. Inference is
                # what a layer does that is told nothing.
                training = True if mode.update_running or case.mode == "frozen" else None
                x, upstream = (
                    self.tensor(to_layout(case, arrays.values[f"{name}{step}"]), case.dtype, case.layout)
                    for name in ("x", "upstream")
                )
                y, dx, gradients = run(layer, x, upstream, training)
                results[step, "y"] = result(y, lambda v: from_layout(case, v))
                if case.differentiates(step):
                    results[step, "dx"] = result(dx, lambda v: from_layout(case, v))
                    for parameter in case.spec.parameters if case.mode != "frozen" else ():
                        gradient = gradients[self._weight(layer, parameter.name).path]
                        results[step, f"d{parameter.name}"] = result(gradient, lambda v, a=parameter: v.reshape(a.shape))
                for array in case.spec.state:
                    if self.shows(case, array.name):
                        held = self._weight(layer, array.name).value
                        results[step, array.name] = result(held, lambda v, a=array: v.reshape(a.shape))
            return given(results)

    def _load(self, layer: keras.layers.Layer, arrays: Arrays) -> None:
        for role in self.names:
            if role in arrays.values and (role != "batches_tracked" or self._finds(layer, role)):
                weight = self._weight(layer, role)
                weight.assign(np.reshape(arrays.values[role], weight.shape))

    def _weight(self, layer: keras.layers.Layer, role: str) -> keras.Variable:
        found = self._finds(layer, role)
        if not found:
            raise AttributeError(f"{layer.name} has no weight for {role}")
        return found[0]

    def _finds(self, layer: keras.layers.Layer, role: str) -> list[keras.Variable]:
        names = [self.names[role]] if isinstance(self.names[role], str) else self.names[role]
        return [value for name in names if isinstance(value := getattr(layer, name, None), keras.Variable)]

    def inexpressible(self, fault: Fault) -> str:
        return ""

    def misuse(self, fault: Fault) -> Misuse:
        if isinstance(fault.spec, WeightSpec):
            return self.misuse_weights(fault)
        before: dict[str, Any] = {}
        layer = None
        try:
            layer = self.misbuild(fault)
            # Built for good input first: what is asked is whether bad input harms a working layer.
            layer.build((None, *good_shape(fault)[1:]))
            before = state_of(layer)
            layer(keras.ops.ones(fault.shape, fault.dtype), training=True)
        except Exception as error:
            return Misuse(error, before, state_of(layer))
        return Misuse(None, before, state_of(layer))


def axis_of(case: Case) -> int | list[int]:
    """The axis argument that the layout stands for."""
    axes = list(axes_of(case))
    return axes if len(axes) > 1 else axes[0]


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
