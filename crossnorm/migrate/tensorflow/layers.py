"""Keras' normalization layers, the native ones and ours: described, built, written, as live variables."""

from collections.abc import Mapping

import keras

from crossnorm.spec import WeightSpec

from .._description import Description
from .._held import Array, Held
from .._natives import refuse
from . import _activations, _reparametrizations


def describe(layer: keras.layers.Layer, name: str | None = None) -> Description:
    """See `crossnorm.migrate.describe`.

    ``batches_tracked`` is 0 where the layer counts nothing: most Keras layers do not, as nothing reads the number. A
    `keras.layers.GroupNormalization` is a group normalization also with ``groups=-1``: once built it knows the number only, and
    in as many groups as channels it is the same function. The native wrapper's kernel is taken as it is, and so is its u, which
    has not the norm 1 before the first training call. ``synchronized=True``, initializers, regularizers, constraints and what
    is trainable are no part of a description.
    """
    return _look(layer, name).describe()


def build(description: Description, native: bool = False, holder: keras.layers.Layer | None = None) -> keras.layers.Layer:
    """See `crossnorm.migrate.build`. A live holder has to be built.

    The channels are last unless the layout names an axis. The dtype policy is the one that stores the arrays as they are: half
    arrays make a half policy, float32 arrays beside a half ``layout.dtype`` a mixed one. ``batches_tracked`` is dropped where
    the layer counts nothing, which is where nothing reads it. In our `SpectralNormalization` a ``u`` that no iteration has
    seen, as a native wrapper without training has, is scaled to the norm 1.
    """
    spec, _, arrays = description
    if isinstance(spec, WeightSpec):
        held = _reparametrizations.make(description, native, holder)
    else:
        held = _activations.make(description, native)
    held.fill(arrays if native else _reparametrizations.unit(spec, arrays))
    layer: keras.layers.Layer = held.layer
    return layer


def write(layer: keras.layers.Layer, arrays: Mapping[str, Array], name: str | None = None) -> None:
    """See `crossnorm.migrate._held.Held.write`."""
    _look(layer, name).write(arrays)


def variables(layer: keras.layers.Layer, name: str | None = None) -> dict[str, tuple[keras.Variable, ...]]:
    """See `crossnorm.migrate._held.Held.variables`."""
    return _look(layer, name).variables()


def _look(layer: keras.layers.Layer, name: str | None) -> Held:
    held = _reparametrizations.look(layer, name)
    if held is None and name is None:
        held = _activations.look(layer)
    if held is not None:
        return held
    if name is not None:
        refuse(layer, f"has no reparametrized weight {name!r}", "name one that is, or leave out the name")
    refuse(
        layer,
        f"is a {type(layer).__name__}, and no normalization layer that is known",
        "give one of keras.layers or crossnorm.tensorflow",
    )
