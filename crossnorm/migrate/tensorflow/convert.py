"""Replacing layers inside a model."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras.src.models.functional import Functional
from keras.src.saving.serialization_lib import SafeModeScope

from crossnorm.errors import MigrationError, Unsupported
from crossnorm.spec import BatchNormSpec
from crossnorm.tensorflow._base import SpecLayer

from .._description import Description, build

Replacements = Mapping[int, keras.layers.Layer]


def convert(model: keras.Model, replacements: Replacements) -> keras.Model:
    """``model`` with new layers in the places of those of the given ids; functional and sequential models are made anew."""
    for old in model._flatten_layers():
        if id(old) in replacements:
            _taking_over(old, replacements[id(old)])
    if id(model) in replacements:
        return replacements[id(model)]
    if _has_graph(model):
        return _cloned(model, replacements, {})
    _replace_inside(model, replacements, {})
    if isinstance(model, keras.Model) and model.compiled:
        _compile_anew(model)
    return model


def is_ours(layer: keras.layers.Layer, description: Description) -> bool:
    """Whether a layer is one of `crossnorm.tensorflow`."""
    return isinstance(layer, SpecLayer)


def synchronized(layer: keras.layers.Layer, description: Description) -> keras.layers.Layer:
    """The native batch normalization with ``synchronized=True``."""
    spec: Any = description.spec
    if not isinstance(spec, BatchNormSpec):
        raise Unsupported(f"convert: Keras synchronizes batch normalization only, not {spec.method}; leave the layer out")
    new = build(*description, framework="tensorflow", native=True)
    new.synchronized = True
    return new


def _has_graph(layer: Any) -> bool:
    """Whether a model's layers are the nodes of a graph, in which none can be replaced."""
    return isinstance(layer, keras.Sequential | Functional)


def _named(old: keras.layers.Layer, new: keras.layers.Layer) -> keras.layers.Layer:
    """``new`` under the old one's name, as trainable as that."""
    new.name = old.name
    new.trainable = old.trainable
    return new


def _taking_over(old: keras.layers.Layer, new: keras.layers.Layer) -> keras.layers.Layer:
    """``new`` with all that it can have of ``old``: name, weights, regularizers and constraints, and what is trainable."""
    if not new.built and (config := old.get_build_config()):
        try:
            new.build_from_config(config)
        except (TypeError, ValueError) as error:
            raise MigrationError(
                f"convert: the {type(new).__name__} that the rule gave for {old.name!r} cannot be built on {config}: {error}"
            ) from error
    if not isinstance(new, SpecLayer):
        # Ours has got what its specification makes of them.
        given = {variable.name: variable for variable in old.weights}
        for variable in new.weights:
            if (one := given.get(variable.name)) is not None and one.shape == variable.shape:
                variable.assign(one)
    for name in ("gamma", "beta"):
        variable = getattr(new, name, None)
        for of in ("initializer", "regularizer", "constraint"):
            option = getattr(old, f"{name}_{of}", None)
            if option is not None and variable is not None and hasattr(new, f"{name}_{of}"):
                setattr(new, f"{name}_{of}", option)
                if of != "initializer":
                    setattr(variable, of, option)
    new.activity_regularizer = new.activity_regularizer or old.activity_regularizer
    return _named(old, new)


def _compile_anew(model: keras.Model) -> None:
    """The model as it was compiled, with an optimizer for its new variables and nothing that was traced before."""
    given = dict(model._compile_config.config)
    optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
    model.compile(**{**given, "optimizer": optimizer})


def _cloned(model: keras.Model, replacements: Replacements, made: dict[int, Any]) -> keras.Model:
    """The model made again from its configuration, with copies of all weights.

    ``made`` holds what has been made of each layer: one that two models share stays one.
    """
    if id(model) in made:
        return made[id(model)]
    copies = []

    def clone(layer: Any) -> Any:
        if id(layer) in replacements:
            return replacements[id(layer)]
        if _has_graph(layer):
            return _cloned(layer, replacements, made)
        if id(layer) not in made:
            # The configuration is our own, so that even a lambda in it is safe.
            with SafeModeScope(False):
                made[id(layer)] = type(layer).from_config(layer.get_config())
            copies.append((layer, made[id(layer)]))
        return made[id(layer)]

    graph = {}
    if isinstance(model, Functional):
        # Inputs go by their names, which Keras would make anew.
        graph = {"input_tensors": keras.tree.map_structure(_input, model.input), "call_function": _call}
    try:
        new = keras.models.clone_model(model, clone_function=clone, **graph)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise MigrationError(
            f"convert: a layer of {model.name!r} cannot be made again from its configuration; give it get_config: {error}"
        ) from None
    if type(new) is not type(model):
        raise MigrationError(
            f"convert: {model.name!r} is a {type(model).__name__}, whose constructor makes its layers itself: it cannot "
            "be made again with others; give it the arguments inputs and outputs, or a call method"
        )
    made[id(model)] = new
    new._trainable = model._trainable
    for old, copy in copies:
        if not isinstance(old, keras.layers.Layer):  # an operation
            continue
        copy.set_weights(old.get_weights())
        inside = {}
        for one, other in zip(old._flatten_layers(), copy._flatten_layers(), strict=True):
            _named(one, other)
            if id(one) in replacements:
                inside[id(other)] = replacements[id(one)]
        _replace_inside(copy, inside, made)
    return new


def _input(tensor: Any) -> Any:
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor._keras_history.operation.name)


def _call(layer: Any, *args: Any, **kwargs: Any) -> Any:
    """The layer called as the old one was, but for a mask if it knows none."""
    if "mask" not in inspect.signature(layer.call).parameters:
        kwargs.pop("mask", None)
    return layer(*args, **kwargs)


def _replace_inside(layer: keras.layers.Layer, replacements: Replacements, made: dict[int, Any]) -> None:
    """Put new layers in the attributes, lists and dictionaries of ``layer`` and of the layers inside it, all or none."""
    places = list(_places(layer, replacements, made))
    for holder, new in places:
        if lost := set(new) - {key for name, value in vars(holder).items() if name != "_layers" for key in _ids(value)}:
            names = ", ".join(repr(child.name) for child in holder._layers if id(child) in lost)
            raise MigrationError(
                f"convert: the layers {names} are in no attribute, list or dictionary of {holder.name!r}; replace them by hand"
            )
    for holder, new in places:
        for name, value in list(vars(holder).items()):
            # Not by setattr: Keras lets nobody give a built layer other layers.
            vars(holder)[name] = _replaced(value, new)
        holder._tracker.stored_ids["layers"] |= {id(child) for child in new.values()}


def _places(
    layer: keras.layers.Layer, replacements: Replacements, made: dict[int, Any]
) -> Iterator[tuple[Any, dict[int, Any]]]:
    """The layers that hold others to be replaced, each with the new ones."""
    new = {}
    for child in layer._layers:
        if id(child) in replacements:
            new[id(child)] = replacements[id(child)]
        elif _has_graph(child) and any(id(each) in replacements for each in child._flatten_layers()):
            new[id(child)] = _cloned(child, replacements, made)
        else:
            yield from _places(child, replacements, made)
    if new:
        yield layer, new


def _ids(value: Any) -> list[int]:
    """The layers in an attribute."""
    if isinstance(value, keras.layers.Layer):
        return [id(value)]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [key for each in inside for key in _ids(each)]


def _replaced(value: Any, new: Mapping[int, Any]) -> Any:
    """An attribute with its layers replaced; lists and dictionaries stay the same, as Keras tracks them."""
    if isinstance(value, keras.layers.Layer):
        return new.get(id(value), value)
    if not any(key in new for key in _ids(value)):
        return value
    if isinstance(value, tuple):
        return tuple(_replaced(each, new) for each in value)
    held = getattr(value, "__wrapped__", value)  # in what TensorFlow tracks
    if isinstance(held, list):
        for index, each in enumerate(held):
            list.__setitem__(held, index, _replaced(each, new))
    if isinstance(held, dict):
        for key, each in held.items():
            dict.__setitem__(held, key, _replaced(each, new))
    return value
