"""Replacing layers inside a model."""

from collections.abc import Mapping
from typing import Any

import keras

from crossnorm.errors import MigrationError, Unsupported
from crossnorm.spec import BatchNormSpec

from .._description import Description, build

Replacements = Mapping[int, keras.layers.Layer]


def convert(model: keras.Model, replacements: Replacements) -> keras.Model:
    """``model`` with new layers in the places of those of the given ids; functional and sequential models are made anew."""
    if id(model) in replacements:
        return _named(model, replacements[id(model)])
    if isinstance(model, keras.Sequential | keras.src.models.functional.Functional):
        return _cloned(model, replacements)
    _replace_inside(model, {id(old): _named(old, new) for old, new in _pairs(model, replacements)})
    return model


def synchronized(layer: keras.layers.Layer, description: Description) -> keras.layers.Layer:
    """The native batch normalization with ``synchronized=True``."""
    spec: Any = description.spec
    if not isinstance(spec, BatchNormSpec):
        raise Unsupported(f"convert: Keras synchronizes batch normalization only, not {spec.method}; leave the layer out")
    new = build(*description, framework="tensorflow", native=True)
    new.synchronized = True
    return new


def _pairs(model: keras.layers.Layer, replacements: Replacements) -> list[tuple[Any, Any]]:
    return [(layer, replacements[id(layer)]) for layer in model._flatten_layers() if id(layer) in replacements]


def _named(old: keras.layers.Layer, new: keras.layers.Layer) -> keras.layers.Layer:
    """``new`` under the old one's name, as trainable as that."""
    new.name = old.name
    new.trainable = old.trainable
    return new


def _cloned(model: keras.Model, replacements: Replacements) -> keras.Model:
    copies = []

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) in replacements:
            return _named(layer, replacements[id(layer)])
        if isinstance(layer, keras.Sequential | keras.src.models.functional.Functional):
            return _cloned(layer, replacements)
        copies.append((layer, type(layer).from_config(layer.get_config())))
        return copies[-1][1]

    try:
        new = keras.models.clone_model(model, clone_function=clone)
    except (NotImplementedError, TypeError) as error:
        raise MigrationError(
            f"convert: a layer of {model.name!r} cannot be made again from its configuration; give it get_config: {error}"
        ) from None
    for old, copy in copies:
        copy.set_weights(old.get_weights())
        inner = list(zip(old._flatten_layers(), copy._flatten_layers(), strict=True))
        for one, other in inner:
            other.trainable = one.trainable
        _replace_inside(
            copy, {id(other): _named(one, replacements[id(one)]) for one, other in inner if id(one) in replacements}
        )
    return new


def _replace_inside(layer: keras.layers.Layer, replacements: Replacements) -> None:
    """Put new layers in the attributes, lists and dictionaries of ``layer`` and of the layers inside it."""
    if not replacements:
        return
    places = [
        (holder, name, value)
        for holder in layer._flatten_layers()
        for name, value in vars(holder).items()
        if name not in ("_layers", "_tracker") and _holds(value, replacements)
    ]
    found = {id(old) for *_, value in places for old in _layers_in(value)}
    if missing := set(replacements) - found:
        names = ", ".join(repr(replacements[key].name) for key in missing)
        raise MigrationError(
            f"convert: the layers {names} are in no attribute, list or dictionary of {layer.name!r}; replace them by hand"
        )
    for holder, name, value in places:
        order = [replacements.get(id(each), each) for each in holder._layers]
        setattr(holder, name, _replaced(value, replacements))
        # Tracked at the end otherwise: the weights keep their order.
        holder._layers.sort(key=lambda each, order=order: next((i for i, e in enumerate(order) if e is each), len(order)))


def _layers_in(value: Any) -> list[Any]:
    if isinstance(value, keras.layers.Layer):
        return [value]
    if isinstance(value, dict):
        return [layer for each in value.values() for layer in _layers_in(each)]
    return [layer for each in value for layer in _layers_in(each)] if isinstance(value, list | tuple) else []


def _holds(value: Any, replacements: Replacements) -> bool:
    return any(id(layer) in replacements for layer in _layers_in(value))


def _replaced(value: Any, replacements: Replacements) -> Any:
    if isinstance(value, keras.layers.Layer):
        return replacements.get(id(value), value)
    if isinstance(value, dict):
        return {name: _replaced(each, replacements) for name, each in value.items()}
    items = [_replaced(each, replacements) for each in value] if isinstance(value, list | tuple) else value
    return tuple(items) if isinstance(value, tuple) else items
