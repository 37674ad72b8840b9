"""``crossnorm.tensorflow``."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm import NormSpec, SpectralNormSpec

from ..case import Case
from ..cases import Fault
from . import Misuse
from ._keras import axis_of
from ._keras_tensors import policy
from ._keras_weights import misuse_weights
from ._tensorflow import TensorFlowImplementation
from .keras_layers import IMPLEMENTATION as NATIVE

_CLASSES = {
    "batch_norm": "BatchNormalization",
    "instance_norm": "InstanceNormalization",
    "group_norm": "GroupNormalization",
    "layer_norm": "LayerNormalization",
    "rms_norm": "RMSNormalization",
    "batch_renorm": "BatchRenormalization",
    "switchable_norm": "SwitchableNormalization",
    "filter_response_norm": "FilterResponseNormalization",
    "weight_standardization": "WeightStandardization",
    "spectral_norm": "SpectralNormalization",
    "weight_norm": "WeightNormalization",
}
# Keras' words for a field; where a layer has no native to borrow them from, the rest are the fields' own names.
_WORDS = {"eps": "epsilon", "decay": "momentum"}


class CrossnormTensorFlow(TensorFlowImplementation):
    name = "crossnorm-tensorflow"
    native = NATIVE.name

    def layer_class(self, spec: NormSpec) -> tuple[type[keras.layers.Layer], dict[str, Any]]:
        return getattr(crossnorm.tensorflow, _CLASSES[spec.method]), {}

    def build(self, case: Case) -> keras.layers.Layer:
        cls, extra = self.layer_class(case.spec)
        if case.defaults == self.framework:
            # The native's arguments: batch renormalization is one of them there.
            native, extra = NATIVE.layer_class(case.spec)
            cls = getattr(crossnorm.tensorflow, native.__name__, cls) if extra.get("renorm") else cls
            return cls(axis=axis_of(case), dtype=policy(case), **(extra if extra.get("renorm") else {}))
        if case.defaults:
            return cls(axis=axis_of(case), dtype=policy(case))
        return cls.from_spec(case.spec, axis=axis_of(case), dtype=policy(case))

    def misbuild(self, fault: Fault) -> keras.layers.Layer:
        if fault.spec.method in set(NATIVE.methods()) - {"instance_norm", "batch_renorm"}:
            return super().misbuild(fault)
        arguments = _in_words(fault.arguments)
        if fault.spec.method == "instance_norm":
            arguments |= {"track_running_stats": True}
        cls, _ = self.layer_class(fault.spec)
        return cls(axis=1, **arguments)

    def wrap(self, case: Case, layer: keras.layers.Layer) -> keras.layers.Layer:
        if case.defaults:
            cls, _ = self.layer_class(case.spec)
            return cls(layer, dtype=policy(case))
        return crossnorm.tensorflow.layer(case.spec, wrapped=layer, dtype=policy(case))

    def held(self, case: Case, wrapper: keras.layers.Layer) -> dict[str, keras.Variable]:
        names = {"scale": "gain", "u": "u", "v": "v"}
        return {a.name: getattr(wrapper, names[a.name]) for a in (*case.spec.parameters, *case.spec.state)}

    def effective(self, wrapper: keras.layers.Layer) -> tf.Tensor:
        return wrapper.effective_weight()

    def shows(self, case: Case, quantity: str) -> bool:
        # What inference would use can be asked for. That is another weight than training's where inference iterates once more,
        # or forms v from the new u.
        again = isinstance(case.spec, SpectralNormSpec) and (
            case.spec.iterate == "always" or (case.spec.stored == "u" and case.mode == "train")
        )
        if quantity == "effective_weight" and again:
            return False
        return super().shows(case, quantity)

    def misuse_weights(self, fault: Fault) -> Misuse:
        cls, _ = self.layer_class(fault.spec)
        return misuse_weights(fault, lambda layer, **arguments: cls(layer, **_in_words(arguments)), "kernel")

    def versions(self) -> dict[str, str]:
        return {"crossnorm": crossnorm.__version__, **super().versions()}


def _in_words(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {_WORDS.get(name, name): value for name, value in fields.items()}


IMPLEMENTATION = CrossnormTensorFlow()
