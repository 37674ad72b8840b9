"""``keras.layers`` as it is, whatever the backend. Instance normalization is its GroupNormalization(groups=-1)."""

from collections.abc import Mapping
from typing import Any

import keras

from crossnorm import BatchNormSpec, BatchRenormSpec, InstanceNormSpec, LayerNormSpec, NormSpec, SpectralNormSpec, Unsupported

from ..case import Case
from ..cases import Fault
from . import Misuse
from ._keras import KerasImplementation, axis_of, fault_axis
from ._keras_tensors import policy
from ._keras_weights import misuse_weights
from ._peer import arguments_of

_CLASSES: dict[str, tuple[type[keras.layers.Layer], dict[str, Any]]] = {
    "batch_norm": (keras.layers.BatchNormalization, {}),
    "instance_norm": (keras.layers.GroupNormalization, {"groups": -1}),
    "group_norm": (keras.layers.GroupNormalization, {}),
    "layer_norm": (keras.layers.LayerNormalization, {}),
    "rms_norm": (keras.layers.RMSNormalization, {}),
    "batch_renorm": (keras.layers.BatchNormalization, {"renorm": True}),
}


class NativeLayers(KerasImplementation):
    """Which layers they are, and what they lack."""

    def methods(self) -> tuple[str, ...]:
        return (*_CLASSES, "spectral_norm")

    def layer_class(self, spec: NormSpec) -> tuple[type[keras.layers.Layer], dict[str, Any]]:
        return _CLASSES[spec.method]

    def build(self, case: Case) -> keras.layers.Layer:
        cls, extra = self.layer_class(case.spec)
        arguments = {} if case.defaults else _arguments(case.spec, {})
        if arguments.get("momentum", 0) is None:
            del arguments["momentum"]
        if isinstance(case.spec, LayerNormSpec) and not case.spec.subtract_mean:
            arguments["rms_scaling"] = True
        return cls(**extra, **arguments, axis=axis_of(case), dtype=policy(case))

    def misbuild(self, fault: Fault) -> keras.layers.Layer:
        cls, extra = self.layer_class(fault.spec)
        return cls(**extra, **_arguments(fault.spec, fault.arguments), axis=fault_axis(fault))

    def wrap(self, case: Case, layer: keras.layers.Layer) -> keras.layers.Layer:
        return keras.layers.SpectralNormalization(layer, power_iterations=case.spec.iterations, dtype=policy(case))

    def held(self, case: Case, wrapper: keras.layers.Layer) -> dict[str, keras.Variable]:
        return {"u": wrapper.vector_u}

    def effective(self, wrapper: keras.layers.Layer) -> Any:
        # It stores the quotient in the place of the kernel; inference then takes what is there.
        return wrapper.kernel.value

    def shows(self, case: Case, quantity: str) -> bool:
        return quantity != "batches_tracked"

    def lacks(self, case: Case) -> str:
        spec = case.spec
        if isinstance(spec, SpectralNormSpec):
            return _lacks_of_spectral_norm(case, spec)
        if isinstance(spec, BatchRenormSpec) and case.mode == "train":
            if spec.renorm_decay is None or spec.running_quantity != "standard_deviation" or spec.decay is None:
                return "keras.layers.BatchNormalization(renorm=True) keeps two pairs of means and standard deviations"
            if spec.r_max_steps or spec.d_max_steps:
                return "keras.layers.BatchNormalization(renorm=True) has no schedule"
        if isinstance(spec, BatchRenormSpec) and (spec.renorm_decay is None or spec.running_quantity != "standard_deviation"):
            return "keras.layers.BatchNormalization(renorm=True) keeps two pairs of means and standard deviations"
        if isinstance(spec, BatchNormSpec):
            if not spec.tracked:
                return "keras.layers.BatchNormalization always keeps moving statistics"
            # What training stores does not matter where nothing is trained.
            if case.mode == "train" and spec.running_variance != "biased":
                return "keras.layers.BatchNormalization stores the biased variance only"
            if case.mode == "train" and spec.decay is None:
                return "keras.layers.BatchNormalization has no cumulative average"
        if isinstance(spec, InstanceNormSpec) and spec.tracked:
            return "keras.layers has no instance normalization with moving statistics"
        if isinstance(spec, LayerNormSpec) and not spec.subtract_mean and spec.offset:
            return "keras.layers.LayerNormalization(rms_scaling=True) has no beta"
        if spec.method == "rms_norm" and not spec.scale:
            return "keras.layers.RMSNormalization always has a scale"
        return super().lacks(case)

    def misuse_weights(self, fault: Fault) -> Misuse:
        def wrap(layer: keras.layers.Layer, **arguments: Any) -> keras.layers.Layer:
            return keras.layers.SpectralNormalization(layer, **arguments_of("keras", fault.spec, arguments))

        return misuse_weights(fault, wrap, None)

    def inexpressible(self, fault: Fault) -> str:
        if isinstance(fault.spec, BatchRenormSpec) and "r_max_steps" in fault.arguments:
            return "keras.layers.BatchNormalization(renorm=True) has no schedule"
        if isinstance(fault.spec, SpectralNormSpec) and (
            fault.wrap in ("unknown_kernel", "unbuilt") or not set(fault.arguments) <= {"iterations"}
        ):
            return "keras.layers.SpectralNormalization has no such argument"
        if fault.spec.method == "instance_norm" and "decay" in fault.arguments:
            return "keras.layers has no instance normalization with moving statistics"
        return ""


def _arguments(spec: NormSpec, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds of r and d are one dictionary there."""
    arguments = arguments_of("keras", spec, changes)
    bounds = {name: arguments.pop(name) for name in list(arguments) if name.startswith("renorm_clipping")}
    given = {name.split("'")[1]: bound for name, bound in bounds.items() if bound is not None}
    return arguments | ({"renorm_clipping": given} if bounds else {})


def _lacks_of_spectral_norm(case: Case, spec: SpectralNormSpec) -> str:
    name = "keras.layers.SpectralNormalization"
    if (spec.iteration_order, spec.iterate, spec.stored) != ("v_first", "training", "u") or spec.iterations == 0:
        return f"{name} iterates v first, in training, at least once, and stores u"
    if (spec.eps, spec.eps_place) != (1e-7, "maximum"):
        return f"{name} bounds norms from below by 1e-7"
    if (spec.transposed_row, spec.depthwise_row, spec.embedding_row) != ("input", "multiplier", "output"):
        return f"{name} takes the last axis for the rows"
    return ""


def demand_backend(name: str, backend: str) -> None:
    """Refuse to go on where Keras, which has one backend for the life of a process, has another one."""
    found = keras.backend.backend()
    if found != backend:
        raise Unsupported(
            f"{name} needs the {backend} backend of Keras, but this process has the {found} one; "
            f"set KERAS_BACKEND={backend} before Keras is imported"
        )
