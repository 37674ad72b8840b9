"""Legacy tf_keras: its normalization layers, described. Models of it are moved on, not built."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras

from ._description import Description, Layout
from ._held import Array, described
from ._natives import last_axis_first, refuse, spec_of
from ._settings import Linear

_L = tf_keras.layers
_METHODS = {
    _L.BatchNormalization: "batch_norm",
    _L.LayerNormalization: "layer_norm",
    _L.GroupNormalization: "group_norm",
    _L.SpectralNormalization: "spectral_norm",
}
_ATTRIBUTES = {
    "scale": "gamma",
    "offset": "beta",
    "running_mean": "moving_mean",
    "running_variance": "moving_variance",
    "running_standard_deviation": "moving_stddev",
    "renorm_mean": "renorm_mean",
    "renorm_standard_deviation": "renorm_stddev",
}


def describe(layer: Any, name: str | None = None) -> Description:
    """The specification that a built tf_keras layer obeys now, its layout, and copies of its arrays, bit for bit.

    Batch normalization keeps the unbiased variance where it runs the fused kernel, which inputs of four and five dimensions
    take, and the biased one elsewhere. The wrapper of spectral normalization is that of Keras but for its eps; its kernel and
    its u are taken as they are.

    Args:
        layer: a `tf_keras.layers` BatchNormalization, LayerNormalization, GroupNormalization or SpectralNormalization.
        name: None, or what the wrapper calls its kernel.

    Raises:
        MigrationError: another layer, one that is not built, or one that computes what no specification says.
    """
    native = next((cls for cls in _METHODS if isinstance(layer, cls) and type(layer).call is cls.call), None)
    if native is None:
        refuse(layer, f"is a {type(layer).__name__} and none of {', '.join(cls.__name__ for cls in _METHODS)}", "give one")
    if not layer.built:
        refuse(layer, "is not built", "call it once, or build(input_shape), so that it has arrays")
    if native is _L.SpectralNormalization:
        return _wrapper(layer, name)
    if name is not None:
        refuse(layer, f"has no reparametrized weight {name!r}", "leave out the name")
    rank = len(layer._build_input_shape)
    axes = sorted(axis % rank for axis in (layer.axis if isinstance(layer.axis, Sequence) else [layer.axis]))
    sizes = tuple(layer._build_input_shape[axis] for axis in axes)
    method, framework = _METHODS[native], "tf_keras2"
    if getattr(layer, "renorm", False):
        method, framework = "batch_renorm", "keras"  # the same formula, which Keras took over
    known: dict[str, Any] = {"shape": sizes} if native is _L.LayerNormalization else {"channels": sizes[0]}
    if native is _L.LayerNormalization:
        known |= {"scale": layer.gamma is not None, "offset": layer.beta is not None}
    if native is _L.BatchNormalization:
        _check_batch(layer, axes)
    if method == "batch_norm":
        known["running_variance"] = "unbiased" if layer.fused else "biased"
    spec = spec_of(layer, method, framework, **known)
    last = axes == list(range(rank - len(axes), rank))
    layout = Layout(
        axis=None if last else axes[0] if len(axes) == 1 else tuple(axes),
        rank=None if native is _L.LayerNormalization else rank - 2,
        dtype=layer.dtype_policy.name,
    )
    arrays: dict[str, Array] = {}
    for array in (*spec.parameters, *spec.state):
        if array.name not in _ATTRIBUTES:
            continue
        variable = getattr(layer, _ATTRIBUTES[array.name])
        if variable is None:
            refuse(layer, f"has no weight for {array.name!r}, which build did not make", "say at construction what is learned")
        # Over several axes it reads the numbers in the order of the input's axes.
        arrays[array.name] = np.array(variable.numpy()).reshape(array.shape)
    return described(spec, layout, arrays)


def _check_batch(layer: Any, axes: Sequence[int]) -> None:
    if len(axes) > 1:
        refuse(layer, f"normalizes axis={list(axes)} together, for which no specification has a channel", "use one axis")
    for option in ("virtual_batch_size", "adjustment"):
        if getattr(layer, option, None) is not None:
            refuse(layer, f"has {option}={getattr(layer, option)!r}, which no specification says", "leave it out")


def _wrapper(wrapper: Any, name: str | None) -> Description:
    held, kernel = wrapper.layer, "kernel" if hasattr(wrapper.layer, "kernel") else "embeddings"
    if name not in (None, kernel):
        refuse(wrapper, f"does not normalize {name!r}, but {kernel}", "name this, or nothing")
    rows = last_axis_first(np.array(wrapper.kernel.numpy()))
    # Its vectors are divided as those of tensorflow_addons are.
    spec = spec_of(wrapper, "spectral_norm", "tfa", shape=rows.shape)
    arrays: dict[str, Array] = {"u": np.array(wrapper.vector_u.numpy()).reshape(-1), "weight": rows}
    holder = _settings(held, rows.shape)
    if holder is not None and holder.bias:
        arrays["bias"] = np.array(held.bias.numpy())
    axis = 1 if getattr(held, "data_format", None) == "channels_first" else None
    return described(spec, Layout(axis=axis, dtype=held.dtype_policy.name, holder=holder, name=kernel), arrays)


def _settings(layer: Any, shape: tuple[int, ...]) -> Linear | None:
    """What the wrapped layer is; None where it is none of the plain ones, and must be given when something is built of it."""
    if type(layer) is _L.Embedding:
        return Linear(kind="embedding", shape=shape[::-1])
    if type(layer) not in (_L.Dense, _L.Conv1D, _L.Conv2D, _L.Conv3D):
        return None
    activation = layer.activation.__name__ if layer.activation in vars(tf_keras.activations).values() else "custom"
    if type(layer) is _L.Dense:
        return Linear(kind="dense", shape=shape, bias=layer.use_bias, activation=activation)
    return Linear(
        kind="convolution",
        shape=shape,
        bias=layer.use_bias,
        groups=layer.groups,
        stride=layer.strides,
        padding=layer.padding,
        dilation=layer.dilation_rate,
        activation=activation,
    )
