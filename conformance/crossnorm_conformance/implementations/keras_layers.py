"""``keras.layers`` on the TensorFlow backend, as it is. Instance normalization is its GroupNormalization(groups=-1)."""

from typing import Any

import keras

from crossnorm import BatchNormSpec, InstanceNormSpec, LayerNormSpec, NormSpec

from ..case import Case
from ..cases import Fault
from ._tensorflow import TensorFlowImplementation, axis_of, native_arguments, policy

_CLASSES: dict[str, tuple[type[keras.layers.Layer], dict[str, Any]]] = {
    "batch_norm": (keras.layers.BatchNormalization, {}),
    "instance_norm": (keras.layers.GroupNormalization, {"groups": -1}),
    "group_norm": (keras.layers.GroupNormalization, {}),
    "layer_norm": (keras.layers.LayerNormalization, {}),
    "rms_norm": (keras.layers.RMSNormalization, {}),
}


class KerasLayers(TensorFlowImplementation):
    name = "keras.layers"

    def layer_class(self, spec: NormSpec) -> tuple[type[keras.layers.Layer], dict[str, Any]]:
        return _CLASSES[spec.method]

    def build(self, case: Case) -> keras.layers.Layer:
        cls, extra = self.layer_class(case.spec)
        arguments = {} if case.defaults else native_arguments(case.spec, {})
        if arguments.get("momentum", 0) is None:
            del arguments["momentum"]
        if isinstance(case.spec, LayerNormSpec) and not case.spec.subtract_mean:
            arguments["rms_scaling"] = True
        return cls(**extra, **arguments, axis=axis_of(case), dtype=policy(case))

    def shows(self, case: Case, quantity: str) -> bool:
        return quantity != "batches_tracked"

    def lacks(self, case: Case) -> str:
        spec = case.spec
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

    def inexpressible(self, fault: Fault) -> str:
        if fault.spec.method == "instance_norm" and "decay" in fault.arguments:
            return "keras.layers has no instance normalization with moving statistics"
        return ""


IMPLEMENTATION = KerasLayers()
