"""``keras.layers`` on the TensorFlow backend."""

from ._keras_natives import NativeLayers
from ._tensorflow import TensorFlowImplementation


class KerasLayers(NativeLayers, TensorFlowImplementation):
    name = "keras.layers"


IMPLEMENTATION = KerasLayers()
