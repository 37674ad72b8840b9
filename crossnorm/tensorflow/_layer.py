"""From any specification to its layer."""

from collections.abc import Sequence
from typing import Any

import keras

from crossnorm.errors import SpecError
from crossnorm.spec import NormSpec
from crossnorm.spec._axes import integer

from ._base import ArgumentTypeError, ChannelLayer, SpecLayer
from ._weight import WeightWrapper
from .batch_norm import BatchNormalization
from .batch_renorm import BatchRenormalization
from .filter_response_norm import FilterResponseNormalization
from .group_norm import GroupNormalization
from .instance_norm import InstanceNormalization
from .layer_norm import LayerNormalization
from .rms_norm import RMSNormalization
from .spectral_norm import SpectralNormalization
from .switchable_norm import SwitchableNormalization
from .weight_norm import WeightNormalization
from .weight_standardization import WeightStandardization

_LAYERS: dict[str, type[SpecLayer]] = {
    layer.method: layer
    for layer in (
        BatchNormalization,
        BatchRenormalization,
        LayerNormalization,
        GroupNormalization,
        InstanceNormalization,
        RMSNormalization,
        SwitchableNormalization,
        FilterResponseNormalization,
        WeightStandardization,
        SpectralNormalization,
        WeightNormalization,
    )
}


def layer(
    spec: NormSpec,
    *,
    rank: int | None = None,
    layout: str | None = None,
    wrapped: keras.layers.Layer | None = None,
    **keras_kwargs: Any,
) -> keras.layers.Layer:
    """The Keras layer that obeys ``spec``.

    Args:
        spec: any specification.
        rank: the number of spatial dimensions; the layer then refuses inputs of another one. None leaves it open. Layer and
            RMS normalization know no spatial dimensions and take any number of them.
        layout: ``"channels_last"``, which None stands for, or ``"channels_first"``.
        wrapped: the layer whose weight a reparametrization is of, which takes no ``rank`` and no ``layout``.
        **keras_kwargs: go to the layer: ``name``, ``dtype``, initializers, or ``axis`` in place of ``layout``; of a
            reparametrization ``kernel``.

    Raises:
        SpecError: a specification or a layout that is not known, a rank that is not an integer >= 0, ``wrapped`` missing or
            given to a method that wraps nothing.

    >>> import crossnorm
    >>> layer(crossnorm.BatchNormSpec(channels=8), layout="channels_first").axis
    1
    >>> layer(crossnorm.LayerNormSpec(shape=(4, 8))).axis
    [-2, -1]
    """
    if getattr(spec, "method", None) not in _LAYERS:
        raise SpecError(f"layer: {spec!r} is no specification with a Keras layer; the methods are {', '.join(_LAYERS)}")
    cls = _LAYERS[spec.method]
    if issubclass(cls, WeightWrapper) or wrapped is not None:
        return _wrapper(cls, spec, wrapped, rank, layout, keras_kwargs)
    if rank is not None and (integer(rank) is None or rank < 0):
        raise ArgumentTypeError(f"layer: rank={rank!r} is not an integer >= 0; give the number of spatial dimensions")
    if "axis" not in keras_kwargs:
        keras_kwargs["axis"] = _axis(spec, cls, layout)
    elif layout is not None:
        raise SpecError(f"layer: layout={layout!r} and axis={keras_kwargs['axis']!r} say the same; give one of them")
    built = cls.from_spec(spec, **keras_kwargs)
    if rank is not None and issubclass(cls, ChannelLayer):
        built.input_spec = keras.layers.InputSpec(ndim=rank + 2)
    return built


def _wrapper(
    cls: type[SpecLayer], spec: NormSpec, wrapped: Any, rank: Any, layout: Any, keras_kwargs: dict[str, Any]
) -> keras.layers.Layer:
    if not issubclass(cls, WeightWrapper):
        raise SpecError(f"layer: {spec.method} wraps no layer, and wrapped={wrapped!r} was given; leave it out")
    if wrapped is None:
        raise SpecError(f"layer: {spec.method} is of another layer's weight; give that layer by wrapped=")
    if rank is not None or layout is not None:
        raise SpecError(f"layer: rank={rank!r} or layout={layout!r} is for the wrapped layer to say; leave both out")
    return cls.from_spec(spec, wrapped, **keras_kwargs)


def _axis(spec: Any, cls: type[SpecLayer], layout: str | None) -> int | Sequence[int] | None:
    if layout not in (None, "channels_last", "channels_first"):
        raise SpecError(f"layer: layout={layout!r} is unknown; say 'channels_last' or 'channels_first'")
    if issubclass(cls, ChannelLayer):
        return 1 if layout == "channels_first" else -1
    # The normalized dimensions are the last ones; with channels first, one alone is the channel.
    return 1 if layout == "channels_first" and len(spec.shape) == 1 else None
