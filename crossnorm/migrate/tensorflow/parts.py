"""A Keras model taken apart."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np

from crossnorm.errors import MigrationError
from crossnorm.spec import WeightSpec
from crossnorm.tensorflow._arrangement import arrangement, owner
from crossnorm.tensorflow._base import SpecLayer

from .._description import Description
from .._parts import Access, Arranged, Array, Arrays, Part, permuted_rows, unique, walk
from .._settings import Attention, Linear, Recurrent, Slope
from .layers import describe, variables, write
from .linear import _activation, computes_as, settings_of

Layer = keras.layers.Layer

_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_NORMALIZATIONS = (
    SpecLayer,
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.RMSNormalization,
    keras.layers.SpectralNormalization,
)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


def parts(model: Layer) -> list[Part]:
    """The layers that hold variables, and the normalization layers, in order of definition."""
    return walk(access, model, _own, _taken_apart, lambda layer: ((child.name, child) for child in layer._layers))


def read(variable: keras.Variable) -> Array:
    """The values of a variable, copied."""
    return np.array(keras.ops.convert_to_numpy(variable.value))


def assign(variable: keras.Variable, array: Array) -> None:
    """Overwrite the values of a variable in place."""
    variable.assign(array)


access = Access("tensorflow", read, assign, lambda variable: variable.trainable)


def _own(layer: Layer, path: str) -> dict[str, keras.Variable]:
    """The variables of a layer itself, and of what makes up a recurrent or attention layer, that are weights: no counters."""
    if not layer.built:
        raise MigrationError(
            f"parts: the layer {path or layer.name!r} ({type(layer).__name__}) is not built; "
            "call the model once on data, or build(input_shape)"
        )
    holders = [layer]
    if isinstance(layer, keras.layers.LSTM | keras.layers.GRU):
        holders.append(layer.cell)
    elif isinstance(layer, keras.layers.MultiHeadAttention):
        holders += [each for each in layer._layers if each.weights]
    taken: set[str] = set()
    return {
        unique(variable.name if holder is layer else f"{holder.name}_{variable.name}", taken): variable
        for holder in holders
        for variable in (*holder._trainable_variables, *holder._non_trainable_variables)
        if len(variable.shape) or keras.backend.is_float_dtype(variable.dtype)
    }


def _taken_apart(layer: Any) -> Iterator[Part]:
    channel = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
    if any(computes_as(layer, native) for native in _SEPARABLE):
        for name in ("depthwise", "pointwise"):
            settings = settings_of(layer, f"{name}_kernel")
            yield _linear(name, layer, settings, getattr(layer, f"{name}_kernel"), name == "depthwise", channel)
    elif (settings := settings_of(layer)) is not None:
        kernel = layer.embeddings if settings.kind == "embedding" else layer.kernel
        yield _linear("", layer, settings, kernel, isinstance(layer, _DEPTHWISE), channel)
    elif computes_as(layer, keras.layers.LSTM) or computes_as(layer, keras.layers.GRU):
        yield _recurrent(layer)
    elif computes_as(layer, keras.layers.MultiHeadAttention):
        yield _attention(layer)
    elif computes_as(layer, keras.layers.PReLU):
        if max(layer.alpha.shape[:-1], default=1) != 1:
            raise MigrationError("it has a slope for each position; share them by shared_axes")
        yield access.part("", layer, Slope(channels=layer.alpha.shape[-1]), {"weight": Arranged(layer.alpha, np.ravel)})
    elif isinstance(layer, _NORMALIZATIONS):
        # A wrapper has a specification for each kernel.
        names = getattr(layer, "_kernel_names", ())
        for name in names if len(names) > 1 else (None,):
            yield _normalization(layer, name)


def _linear(name: str, layer: Any, settings: Linear, kernel: keras.Variable, depthwise: bool, channel: int) -> Part:
    held = {"weight": Arranged(kernel, _KERNELS["depthwise" if depthwise else settings.kind])}
    if settings.bias:
        held["bias"] = Arranged(layer.bias)
    return access.part(name, layer, settings, held, axis=channel if "convolution" in settings.kind else -1)


def _channels_first(kernel: Array) -> Array:
    """From (kernel, a, b) to (b, a, kernel)."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _depthwise(kernel: Array) -> Array:
    """From (kernel, inputs, multiplier) to (inputs * multiplier, 1, kernel)."""
    *sizes, inputs, multiplier = kernel.shape
    return np.moveaxis(kernel, (-2, -1), (0, 1)).reshape(inputs * multiplier, 1, *sizes)


_KERNELS = {
    "dense": np.transpose,
    "embedding": np.asarray,
    "convolution": _channels_first,
    "transposed_convolution": _channels_first,
    "depthwise": _depthwise,
}


def _normalization(layer: Layer, name: str | None) -> Part:
    described = describe(layer, name)
    axis = described.layout.axis
    return access.normalization(
        name or "",
        layer,
        described,
        partial(write, layer, name=name),
        dict.fromkeys(described.arrays, ()) | variables(layer, name),
        partial(_rows_first, layer, described) if isinstance(described.spec, WeightSpec) else np.asarray,
        axis=axis[-1] if isinstance(axis, tuple) else -1 if axis is None else axis,
    )


def _rows_first(layer: Any, described: Description, kernel: Array) -> Array:
    spec: Any = described.spec
    rows = (spec.transposed_row, spec.depthwise_row, spec.embedding_row)
    arranged = arrangement(owner(layer.layer), described.layout.name, kernel.shape, *rows)
    return kernel.transpose(*arranged.row_axes, *arranged.column_axes).reshape(spec.shape)


def _recurrent(layer: Any) -> Part:
    cell = layer.cell
    inputs, units = cell.kernel.shape[0], layer.units
    settings = Recurrent(
        kind="lstm" if isinstance(layer, keras.layers.LSTM) else "gru",
        inputs=inputs,
        units=units,
        bias=cell.bias is not None,
        reverse=layer.go_backwards,
        reset_after=getattr(layer, "reset_after", True),
        activation=_activation(layer.activation),
        recurrent_activation=_activation(layer.recurrent_activation),
    )
    # Keras' gates are i, f, c, o, and z, r, h.
    arrange = partial(permuted_rows, (0, 1, 2, 3) if settings.kind == "lstm" else (1, 0, 2))
    held = {
        "input_weight": Arranged(cell.kernel, arrange(np.transpose)),
        "recurrent_weight": Arranged(cell.recurrent_kernel, arrange(np.transpose)),
    }
    if not settings.bias:
        return access.part("", layer, settings, held)
    if settings.kind == "gru" and settings.reset_after:
        held |= {name: Arranged(cell.bias, arrange(partial(_row, i))) for i, name in enumerate(("bias", "recurrent_bias"))}
    else:
        held["bias"] = Arranged(cell.bias, arrange())
    part = access.part("", layer, settings, held)
    return _with_recurrent_bias(part) if settings.kind == "lstm" else part


def _row(index: int, array: Array) -> Array:
    return array[index]


def _with_recurrent_bias(part: Part) -> Part:
    """An LSTM with a second bias, which is nothing but added to the first."""

    def write(arrays: Arrays) -> None:
        given = dict(arrays)
        if "recurrent_bias" in given:
            second = given.pop("recurrent_bias")
            if second.any():  # adding zeros would turn -0 into 0
                given["bias"] = given.get("bias", part.arrays["bias"]) + second
        part.write(given)

    second = {"recurrent_bias": np.zeros_like(part.arrays["bias"])}
    return replace(part, arrays={**part.arrays, **second}, write=write, variables={**part.variables, "recurrent_bias": ()})


def _attention(layer: Any) -> Part:
    output = layer.output_dense.kernel.shape
    if layer._use_gate or len(output) != 3 or layer._sliding_window is not None or layer.attention_axes != (1,):
        raise MigrationError("it has a gate, a window, several axes of attention or of outputs, which torch has not")
    denses = {"query": layer.query_dense, "key": layer.key_dense, "value": layer.value_dense, "output": layer.output_dense}
    settings = Attention(
        inputs=tuple(denses[name].kernel.shape[0] for name in ("query", "key", "value")),
        heads=layer.num_heads,
        key_size=layer.key_dim,
        value_size=layer.value_dim,
        outputs=output[-1],
        bias=layer.use_bias,
    )
    held = {}
    for name, dense in denses.items():
        held[f"{name}_weight"] = Arranged(dense.kernel, _output_projection if name == "output" else _projection)
        if settings.bias:
            held[f"{name}_bias"] = Arranged(dense.bias, np.ravel)
    return access.part("", layer, settings, held)


def _projection(kernel: Array) -> Array:
    """From (inputs, heads, size) to (heads * size, inputs)."""
    return kernel.reshape(len(kernel), -1).T


def _output_projection(kernel: Array) -> Array:
    """From (heads, size, outputs) to (outputs, heads * size)."""
    return kernel.reshape(-1, kernel.shape[-1]).T
