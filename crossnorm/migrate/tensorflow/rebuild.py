"""A Keras layer as it would be with other settings: what `crossnorm.migrate.diff` puts in its place for one measurement."""

from dataclasses import replace
from typing import Any

import keras

from crossnorm.errors import Unsupported
from crossnorm.spec import NormSpec

from .._parts import Arrays, Part
from .._settings import Attention, Linear, Recurrent
from .layers import build, describe
from .linear import layer_of
from .parts import parts
from .trace import undrawn


def rebuilt(part: Part, settings: Any, arrays: Arrays, dtype: str | None = None) -> Part:
    """A part with a new layer of other settings and arrays; what Keras lacks is Unsupported."""
    with undrawn():
        return _rebuilt(part, settings, arrays, dtype)


def _rebuilt(part: Part, settings: Any, arrays: Arrays, dtype: str | None) -> Part:
    old = part.layer
    dtype = dtype or old.dtype_policy.name
    if isinstance(settings, NormSpec):
        description = describe(old)
        layout = replace(description.layout, dtype=dtype)
        layer = build(description._replace(spec=settings, layout=layout, arrays=dict(arrays)))
    elif isinstance(settings, Linear):
        where = {} if part.axis == -1 else {"data_format": "channels_first"}
        layer, shape = layer_of(settings, dtype=dtype, depthwise="Depthwise" in type(old).__name__, **where)
        layer.build(shape)
    else:
        layer = type(old).from_config({**old.get_config(), **_arguments(settings), "dtype": dtype})
        if isinstance(settings, Recurrent):
            layer.build((None, None, settings.inputs))
        else:
            query, key, value = ((None, None, size) for size in settings.inputs)
            layer.build(query, value, key)
    new = parts(layer)[0]
    new.write({name: array for name, array in arrays.items() if name in new.arrays})
    return replace(new, axis=part.axis, batch_axis=part.batch_axis)


def activated(part: Part, activation: str) -> Part:
    """A part whose layer, still the same, is followed by an activation."""
    if activation == "linear":
        return part
    return replace(part, layer=_Activated(part.layer, activation))


class _Activated(keras.layers.Layer):
    # No keras.Sequential, which would leave its marks on the layer.
    def __init__(self, layer: keras.layers.Layer, activation: str) -> None:
        super().__init__(dtype=layer.dtype_policy)
        self.layer, self.activation = layer, keras.activations.get(activation)
        self.built = True

    def call(self, inputs: Any) -> Any:
        return self.activation(self.layer(inputs))


def _arguments(settings: Any) -> dict[str, Any]:
    """Settings as Keras' arguments."""
    if isinstance(settings, Attention):
        sizes = {"num_heads": settings.heads, "key_dim": settings.key_size, "value_dim": settings.value_size}
        return {**sizes, "use_bias": settings.bias}
    if isinstance(settings, Recurrent):
        arguments = {"use_bias": settings.bias, "go_backwards": settings.reverse, "activation": settings.activation}
        arguments["recurrent_activation"] = settings.recurrent_activation
        return arguments | ({"reset_after": settings.reset_after} if settings.kind == "gru" else {})
    raise Unsupported(f"crossnorm.migrate: Keras' {settings.kind} has no other settings; compare its arrays")
