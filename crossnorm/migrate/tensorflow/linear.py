"""Keras' dense, convolutional and embedding layers, in the words of `Linear`, and back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras

from .._natives import inexpressible, refuse
from .._settings import Linear

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_NATIVES = (keras.layers.Dense, keras.layers.Embedding, *_CONVOLUTIONS, *_TRANSPOSED, *_DEPTHWISE, *_SEPARABLE)

# What a subclass may have of its own and still compute the same.
_HARMLESS = {"build", "get_config", "from_config", "_api_export_path", "_api_export_symbol_id"}

Amounts = tuple[tuple[int, int], ...]


def computes_as(layer: keras.layers.Layer, native: type[keras.layers.Layer]) -> bool:
    """Whether a layer is of that class, or of a subclass that changes nothing of what it computes."""
    if not isinstance(layer, native) or "call" in vars(layer):
        return False
    order = type(layer).__mro__
    own = {name for cls in order[: order.index(native)] for name in vars(cls) if hasattr(native, name)}
    return "__call__" not in own and not {name for name in own - _HARMLESS if not name.startswith("__")}


def check_present(layer: keras.layers.Layer) -> None:
    """Refuse a layer without arrays, and one that does not compute with its arrays as they are stored."""
    if not layer.built:
        refuse(layer, "is not built", "call it once, or build(input_shape), so that it has arrays")
    if getattr(layer, "quantization_mode", None) is not None:
        refuse(layer, f"is quantized to {layer.quantization_mode}", "move the layer before it is quantized")
    if getattr(layer, "lora_enabled", False):
        refuse(layer, "adapts its kernel by LoRA", "move a layer without lora_rank")


def settings_of(layer: keras.layers.Layer, name: str | None = None) -> Linear | None:
    """What a built layer is, or None if it is of another kind or its class changes what it computes.

    A separable convolution is two: ``name`` says which, ``"depthwise_kernel"`` or ``"pointwise_kernel"``. Padding is in the
    amounts that are added before and after, of a transposed convolution those that are cut off the full output, wherever the
    input's size does not change them; ``"same"`` is left for strides that make it do so.

    >>> layer = keras.layers.Conv2D(4, 3, padding="same")
    >>> layer.build((None, None, None, 2))
    >>> settings_of(layer).shape, settings_of(layer).padding
    ((4, 2, 3, 3), ((1, 1), (1, 1)))
    """
    native = next((native for native in _NATIVES if computes_as(layer, native)), None)
    if native is None or (native in _SEPARABLE and name not in ("depthwise_kernel", "pointwise_kernel")):
        return None
    check_present(layer)
    held: Any = layer
    if native is keras.layers.Embedding:
        return Linear(kind="embedding", shape=tuple(held.embeddings.shape))
    activation = _activation(held.activation)
    if native is keras.layers.Dense:
        inputs, outputs = held.kernel.shape
        return Linear(kind="dense", shape=(outputs, inputs), bias=held.bias is not None, activation=activation)
    if name == "pointwise_kernel":
        *kernel, inputs, outputs = held.pointwise_kernel.shape
        ones, bias = (1,) * len(kernel), held.bias is not None
        return _convolution((outputs, inputs, *kernel), 1, bias, ones, ones, "valid", activation)
    if native in _SEPARABLE or native in _DEPTHWISE:
        *kernel, inputs, multiplier = (held.kernel if native in _DEPTHWISE else held.depthwise_kernel).shape
        shape, bias = (inputs * multiplier, 1, *kernel), native in _DEPTHWISE and held.bias is not None
        last = activation if native in _DEPTHWISE else "linear"
        return _convolution(shape, inputs, bias, held.strides, held.dilation_rate, held.padding, last)
    *kernel, inner, outer = held.kernel.shape
    # A transposed kernel is (*kernel, outputs, inputs), any other (*kernel, inputs, outputs).
    shape, bias = (outer, inner, *kernel), held.bias is not None
    if native in _TRANSPOSED:
        cut, added = _cut(kernel, held.strides, held.dilation_rate, held.padding, _sizes(held.output_padding, len(kernel)))
        return Linear(
            kind="transposed_convolution",
            shape=shape,
            bias=bias,
            stride=tuple(held.strides),
            padding=cut,
            output_padding=added,
            dilation=tuple(held.dilation_rate),
            activation=activation,
        )
    return _convolution(shape, held.groups, bias, held.strides, held.dilation_rate, held.padding, activation)


def layer_of(
    settings: Linear, *, data_format: str = "channels_last", depthwise: bool = True, dtype: Any = None
) -> tuple[keras.layers.Layer, tuple[int | None, ...]]:
    """The layer of some settings, not built, and the shape of its input; what Keras has no means for is Unsupported.

    ``depthwise``: whether a convolution in as many groups as it has inputs is one of Keras' depthwise layers.

    >>> layer, shape = layer_of(Linear(kind="dense", shape=(2, 3)))
    >>> layer.units, shape
    (2, (None, 3))
    """
    outer, inner, *kernel = settings.shape
    if settings.kind == "embedding":
        return keras.layers.Embedding(outer, inner, dtype=dtype), (None, None)
    options = {"use_bias": settings.bias, "activation": _known_activation(settings), "dtype": dtype}
    if settings.kind == "dense":
        return keras.layers.Dense(outer, **options), (None, inner)
    rank, transposed = len(kernel), settings.kind == "transposed_convolution"
    if settings.padding_mode != "zeros":
        inexpressible(settings, "padding_mode", "Keras adds zeros only: pad the input yourself")
    if transposed and settings.groups != 1:
        inexpressible(settings, "groups", "Keras has no groups")
    options |= {"strides": settings.stride, "dilation_rate": settings.dilation, "data_format": data_format}
    inputs = outer if transposed else inner * settings.groups
    if transposed:
        layer = _TRANSPOSED[rank - 1](inner, tuple(kernel), **_cutting(settings), **options)
    elif depthwise and inner == 1 < settings.groups and rank <= len(_DEPTHWISE):
        options |= {"padding": _word(settings, ("valid", "same")), "depth_multiplier": outer // settings.groups}
        layer = _DEPTHWISE[rank - 1](tuple(kernel), **options)
    else:
        words = ("valid", "same", "causal") if rank == 1 else ("valid", "same")
        options |= {"padding": _word(settings, words), "groups": settings.groups}
        layer = _CONVOLUTIONS[rank - 1](outer, tuple(kernel), **options)
    positions = (None,) * rank
    return layer, (None, inputs, *positions) if data_format == "channels_first" else (None, *positions, inputs)


def _convolution(
    shape: Sequence[int],
    groups: int,
    bias: bool,
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: str,
    activation: str,
) -> Linear:
    return Linear(
        kind="convolution",
        shape=tuple(shape),
        bias=bias,
        groups=groups,
        stride=tuple(stride),
        padding=padding,
        dilation=tuple(dilation),
        activation=activation,
    )


def _cut(
    kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], padding: str, output_padding: Sequence[int | None]
) -> tuple[Amounts, tuple[int, ...]]:
    """What is cut off the full output of a transposed convolution before and after, and what is added after."""
    cut, added = [], []
    for size, step, d, more in zip(kernel, stride, dilation, output_padding, strict=True):
        full = (size - 1) * d + 1
        if padding == "valid":
            excess = min(full - step, 0) if more is None else -more
        else:
            excess = full - step if more is None else full - full % 2 - more
        cut.append((max(excess, 0) // 2, max(excess, 0) - max(excess, 0) // 2))
        added.append(max(-excess, 0))
    return tuple(cut), tuple(added)


def _word(settings: Linear, words: Sequence[str]) -> str:
    """The word with which a Keras convolution pads as the settings say."""
    for word in words:
        if replace(settings, padding=word) == settings:
            return word
    inexpressible(settings, "padding", f"Keras pads by one of the words {', '.join(words)}: pad the input yourself")


def _cutting(settings: Linear) -> dict[str, Any]:
    """The arguments with which a transposed Keras convolution cuts off its full output as the settings say."""
    _, _, *kernel = settings.shape
    stride, dilation = settings.stride, settings.dilation
    added: Any = settings.output_padding
    net = _net(settings.padding, added)
    full = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    # How far the last product reaches from the start of its stride: so far that the convolution gives the input's size back.
    left = [size - sum(pair) for size, pair in zip(full, net, strict=True)]
    fits = {
        "valid": all(0 <= size - whole < step for size, whole, step in zip(left, full, stride, strict=True)),
        "same": all(1 <= size <= step for size, step in zip(left, stride, strict=True)),
    }
    more = tuple(size - whole % 2 for size, whole in zip(left, full, strict=True))
    for word, output_padding in (("valid", None), ("same", None), ("valid", added), ("same", more)):
        given = output_padding or (None,) * len(kernel)
        if fits[word] and _net(*_cut(kernel, stride, dilation, word, given)) == net:
            return {"padding": word, "output_padding": output_padding}
    inexpressible(settings, "padding", "Keras cuts off by the words 'valid' and 'same': crop the output yourself")


def _net(cut: Any, added: Sequence[int]) -> Amounts:
    """What is cut off, less what is added."""
    return tuple((before, after - more) for (before, after), more in zip(cut, added, strict=True))


def _sizes(value: Any, rank: int) -> tuple[Any, ...]:
    """One number for each dimension, as Keras reads an argument that may be a single one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * rank


def _activation(function: Any) -> str:
    """The name of one of Keras' own activation functions; anything else is named as nobody's."""
    name = getattr(function, "__name__", type(function).__name__)
    return name if getattr(keras.activations, name, None) is function else f"custom {name}"


def _known_activation(settings: Linear) -> str:
    if not callable(getattr(keras.activations, settings.activation, None)):
        inexpressible(settings, "activation", "Keras has no such function: give the layer yourself by holder=")
    return settings.activation
