"""``crossnorm.tensorflow``."""

from typing import Any

import keras

import crossnorm
import crossnorm.tensorflow
from crossnorm import NormSpec

from ..case import Case
from ..cases import Fault
from ._tensorflow import TensorFlowImplementation, axis_of, policy
from .keras_layers import IMPLEMENTATION as NATIVE

_CLASSES = {
    "batch_norm": "BatchNormalization",
    "instance_norm": "InstanceNormalization",
    "group_norm": "GroupNormalization",
    "layer_norm": "LayerNormalization",
    "rms_norm": "RMSNormalization",
}


class CrossnormTensorFlow(TensorFlowImplementation):
    name = "crossnorm-tensorflow"
    native = NATIVE.name

    def layer_class(self, spec: NormSpec) -> tuple[type[keras.layers.Layer], dict[str, Any]]:
        return getattr(crossnorm.tensorflow, _CLASSES[spec.method]), {}

    def build(self, case: Case) -> keras.layers.Layer:
        cls, _ = self.layer_class(case.spec)
        if case.defaults:
            return cls(axis=axis_of(case), dtype=policy(case))
        return cls.from_spec(case.spec, axis=axis_of(case), dtype=policy(case))

    def misbuild(self, fault: Fault) -> keras.layers.Layer:
        if fault.spec.method == "instance_norm":
            # No native to borrow the names of its arguments from.
            arguments = {"epsilon": fault.arguments.get("eps", 1e-3), "momentum": fault.arguments.get("decay", 0.9)}
            return crossnorm.tensorflow.InstanceNormalization(axis=1, track_running_stats=True, **arguments)
        return super().misbuild(fault)

    def versions(self) -> dict[str, str]:
        return {"crossnorm": crossnorm.__version__, **super().versions()}


IMPLEMENTATION = CrossnormTensorFlow()
