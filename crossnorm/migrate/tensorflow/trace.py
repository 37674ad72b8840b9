"""One run of a Keras model, layer by layer, and one layer alone."""

import inspect
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from crossnorm.errors import MigrationError
from crossnorm.rounding import perturbed

from .._parts import Part
from .._trace import (
    Call,
    Recording,
    Replay,
    Units,
    arranged,
    broken_off,
    by_name,
    canonical,
    main_inputs,
    measure,
    native,
    recorded,
    state_names,
    with_inputs,
)

Array = NDArray[Any]

_EAGER = type(tf.constant(0))


def record(
    model: keras.layers.Layer,
    parts: Sequence[Part],
    inputs: Sequence[Array],
    *,
    training: bool | None = False,
    cotangent: Array | None = None,
    restore: bool = True,
) -> Recording:
    """Run a model once and keep what every part got and gave; the model stays as it was. Dropout does nothing.

    Args:
        model: functional, sequential or subclassed; functions inside it run eagerly.
        parts: of the model.
        inputs: as the model wants them; floats are cast to its dtype.
        training: passed on to the call; None: nothing is passed.
        cotangent: like the model's first output; the gradients of their product are taken.
        restore: whether the variables get back what they had before.
    """
    calls: list[Call] = []
    taps: list[tuple[tf.Tensor, dict[str, tf.Tensor]]] = []
    learned = [v for part in parts for v in _learned(part)] if cotangent is not None else []
    with _undisturbed(model, restore):
        given = [_tensor(x, dtype) for x, dtype in zip(inputs, _input_dtypes(model, inputs), strict=True)]
        watched = [tensor for tensor in given if tensor.dtype.is_floating]
        with _taped(cotangent is not None, watched) as tape, _wrapped(parts, calls, taps), broken_off(calls):
            outputs = [
                tensor
                for tensor in tf.nest.flatten(_called(model, given, {} if training is None else {"training": training}))
                if tensor is not None
            ]
            if not outputs:
                raise MigrationError(f"the model {model.name!r} gives no tensor, and cannot be compared; return its output")
        tapped = [tensor for output_, inputs_ in taps for tensor in (output_, *inputs_.values())]
        found = _gradients(tape, outputs[0], cotangent, [*tapped, *watched], learned)
        states = by_name(parts, lambda part: _values(part.variables[name] for name in state_names(part)))
    return recorded(parts, calls, taps, given, list(map(_numpy, outputs)), found, states)


def replay(
    call: Call,
    inputs: Mapping[str, Array] | None = None,
    *,
    part: Part | None = None,
    training: bool | None = None,
    cotangent: Array | None = None,
) -> Replay:
    """Run the layer of one call alone.

    Args:
        call: from a recording of a Keras model.
        inputs: in place of `Call.inputs`, from any framework's call.
        part: in place of the call's own, with another layer.
        training: the mode of the layer; None: that of the call.
        cotangent: like `Call.output`.
    """
    part = part or call.part
    layer, parameters = part.layer, _parameters(part.layer)
    with _undisturbed(layer, True):
        own = main_inputs(call.part, parameters, call.args, call.kwargs)
        if inputs is not None:
            # Another layer may compute in another dtype.
            another = layer is not call.part.layer
            dtypes = {n: layer.compute_dtype if another and t.dtype.is_floating else t.dtype for n, t in own.items()}
            own = {name: _tensor(native(inputs[name], part), dtype) for name, dtype in dtypes.items()}
        own = {name: tf.identity(tensor) for name, tensor in own.items()}
        args, kwargs = with_inputs(call.part, parameters, call.args, call.kwargs, own)
        kwargs.pop("training", None)
        if "training" in parameters:
            kwargs["training"] = call.training if training is None else training
        watched = [tensor for tensor in own.values() if tensor.dtype.is_floating]
        learned = _learned(part) if cotangent is not None else []
        with _taped(cotangent is not None, watched) as tape:
            output = _first(layer(*args, **kwargs))
        upstream = None if cotangent is None else native(cotangent, part)
        found = _gradients(tape, output, upstream, watched, learned)
        states = arranged(part, _values(part.variables[name] for name in state_names(part)))
    return Replay(
        output=canonical(_numpy(output), part),
        input_gradients={name: canonical(found[id(t)], part) for name, t in own.items() if id(t) in found},
        gradients=arranged(part, {id(v): found[id(v)] for v in learned if id(v) in found}),
        states=states,
    )


def units(
    model: keras.layers.Layer,
    parts: Sequence[Part],
    inputs: Sequence[Array],
    *,
    training: bool | None = False,
    cotangent: Array | None = None,
) -> Units:
    """The units of everything that `record` gives, measured on a copy in float64 that is made from the model's configuration.

    A model without a configuration that rebuilds it is measured in its own dtype instead, with the noise which that adds; its
    variables are moved in place and get back what they had.
    """
    from .parts import parts as parts_of

    own = record(model, parts, inputs, training=training, cotangent=cotangent)
    dtypes = [variable.dtype for variable in model.weights]
    input_dtypes = _input_dtypes(model, inputs)
    twin, twins = _twin(model, inputs), parts
    if twin is not None:
        # By their places: layers that name themselves by a counter have other names in the copy.
        places = {part.name: copy for part, copy in zip(parts_of(model), parts_of(twin), strict=True)}
        twins = [replace(places[part.name], name=part.name) for part in parts]
    moving = model if twin is None else twin
    before = [variable.numpy() for variable in moving.weights]

    def run(generator: np.random.Generator | None) -> Recording:
        moved = list(inputs)
        if generator is not None:
            for variable, values, dtype in zip(moving.weights, before, dtypes, strict=True):
                if np.asarray(values).dtype.kind not in "iub":
                    variable.assign(perturbed(np.asarray(values, np.float64), dtype, generator))
            moved = [
                perturbed(np.asarray(x, np.float64), dtype, generator) if x.dtype.kind not in "iub" else x
                for x, dtype in zip(inputs, input_dtypes, strict=True)
            ]
        return record(moving, twins, moved, training=training, cotangent=cotangent)

    try:
        return measure(run, own)
    finally:
        for variable, values in zip(moving.weights, before, strict=True):
            variable.assign(values)


def layers_in(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers inside a layer, at any depth."""
    return [layer for layer in model._flatten_layers() if layer is not model]


def _twin(model: keras.layers.Layer, inputs: Sequence[Array]) -> keras.layers.Layer | None:
    """A copy of the model that computes in float64, or None where its configuration does not give one."""
    kinds = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    policy = keras.config.dtype_policy()
    # Seeds of new layers are drawn from here.
    state = random.getstate()
    try:
        # For layers that a subclassed model makes itself.
        keras.config.set_dtype_policy("float64")
        # Keras warns of what the user's own model did as well, and the copy is checked.
        warned = warnings.catch_warnings(action="ignore")
        with warned, keras.utils.custom_object_scope(kinds), undrawn(), _undisturbed(model, True):
            twin = _again(model)
            got = _called(twin, [_tensor(x, "float64") for x in inputs], {"training": False})
            dtypes = _input_dtypes(model, inputs)
            own = _called(model, [_tensor(x, d) for x, d in zip(inputs, dtypes, strict=True)], {"training": False})
            for variable, like in zip(twin.weights, model.weights, strict=True):  # no seeds, whose order may differ
                if variable.dtype != like.dtype and variable.dtype != "float64":
                    return None
                variable.assign(like.numpy())
            got = _numpy(_first(_called(twin, [_tensor(x, "float64") for x in inputs], {"training": False})))
            own = _numpy(_first(own))
    except Exception:  # a model's own constructor can fail in any way when it is called without its arguments
        return None
    finally:
        keras.config.set_dtype_policy(policy)
        random.setstate(state)
    same = got.dtype == np.float64 and got.shape == own.shape and np.allclose(got, own, 0.1, 0.1 * np.abs(own).max(initial=0))
    return twin if same else None


@contextmanager
def undrawn() -> Iterator[None]:
    """Layers are made, and Python's random numbers, of which Keras takes their seeds, go on as if they were not."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _again(model: keras.layers.Layer) -> keras.layers.Layer:
    try:
        return type(model).from_config(_in_float64(model.get_config()))
    except TypeError:  # the configuration of a subclassed model that says nothing holds arguments that it does not take
        return type(model)()


def _in_float64(config: Any) -> Any:
    if isinstance(config, Mapping):
        if config.get("class_name") in ("DTypePolicy", "FloatDTypePolicy"):
            return {**config, "config": {"name": "float64"}}
        if config.get("class_name") == "InputLayer":
            inner = config["config"]
            return {**config, "config": {**inner, "dtype": "float64" if "float" in str(inner["dtype"]) else inner["dtype"]}}
        return {name: _in_float64(value) for name, value in config.items()}
    return type(config)(map(_in_float64, config)) if isinstance(config, list | tuple) else config


def _input_dtypes(model: keras.layers.Layer, inputs: Sequence[Array]) -> list[str]:
    declared = [tensor.dtype for tensor in tf.nest.flatten(getattr(model, "inputs", None) or [])]
    fallback = model.variable_dtype
    dtypes = declared if len(declared) == len(inputs) else [fallback] * len(inputs)
    return [str(x.dtype) if x.dtype.kind in "iub" else dtype for x, dtype in zip(inputs, dtypes, strict=True)]


def _tensor(values: Array, dtype: Any) -> tf.Tensor:
    return tf.cast(tf.constant(np.ascontiguousarray(values)), dtype)


def _called(model: keras.layers.Layer, given: Sequence[tf.Tensor], kwargs: Mapping[str, Any]) -> Any:
    """Call a model on several inputs in whatever structure it wants them."""
    struct = getattr(model, "_inputs_struct", None)
    if struct is not None:
        return model(tf.nest.pack_sequence_as(struct, given), **kwargs)
    if "training" not in _parameters(model):
        kwargs = {}
    parameters = [name for name in _parameters(model) if name not in ("training", "mask")]
    if len(given) > 1 and len(parameters) < len(given):
        return model(list(given), **kwargs)
    return model(*given, **kwargs)


def _parameters(layer: keras.layers.Layer) -> list[str]:
    return list(inspect.signature(type(layer).call).parameters)[1:]


@contextmanager
def _undisturbed(model: keras.layers.Layer, restore: bool) -> Iterator[None]:
    """Functions run eagerly, nothing is dropped at random; variables, rates and the setting come back afterwards."""
    layers = list(model._flatten_layers())
    rates = [(layer, name, getattr(layer, name)) for layer in layers for name in _rates(layer)]
    eager = tf.config.functions_run_eagerly()
    before = [(variable, variable.numpy()) for variable in model.variables] if restore else []
    try:
        tf.config.run_functions_eagerly(True)
        for layer, name, _ in rates:
            setattr(layer, name, 0.0)
        yield
    finally:
        tf.config.run_functions_eagerly(eager)
        for layer, name, rate in rates:
            setattr(layer, name, rate)
        for variable, values in before:
            # Not where nothing changed: an assignment costs, and an overwritten kernel is rare.
            if not np.array_equal(variable.numpy(), values, equal_nan=values.dtype.kind == "f"):
                variable.assign(values)


def _rates(layer: keras.layers.Layer) -> list[str]:
    """What makes a layer random: attributes that Keras' dropout, noise and recurrent layers read in each call."""
    if "Dropout" in type(layer).__name__ or "Noise" in type(layer).__name__:
        names = ("rate", "stddev")
    else:
        names = ("dropout", "recurrent_dropout", "_dropout")
    return [name for name in names if isinstance(vars(layer).get(name), float)]


@contextmanager
def _taped(taped: bool, watched: Iterable[tf.Tensor]) -> Iterator[tf.GradientTape | None]:
    if not taped:
        yield None
        return
    with tf.GradientTape() as tape:
        tape.watch(list(watched))
        yield tape


@contextmanager
def _wrapped(parts: Sequence[Part], calls: list[Call], taps: list[Any]) -> Iterator[None]:
    counts: dict[int, int] = {}

    def recording(part: Part, call: Callable[..., Any]) -> Callable[..., Any]:
        layer, parameters = part.layer, _parameters(part.layer)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            given = main_inputs(part, parameters, args, kwargs)
            # Tensors of this layer alone: what else uses its inputs is not in their gradient.
            own = {name: tf.identity(v) for name, v in given.items() if isinstance(v, _EAGER) and v.dtype.is_floating}
            args, kwargs = with_inputs(part, parameters, args, kwargs, own)
            output = call(*args, **kwargs)
            tensor = _first(output)
            if not isinstance(tensor, _EAGER):  # or none; inside a loop that TensorFlow compiles
                return output
            training = kwargs.get("training")
            calls.append(
                Call(
                    part=part,
                    number=counts.get(id(layer), 0),
                    args=args,
                    kwargs=kwargs,
                    inputs={name: canonical(_numpy(v), part) for name, v in given.items() if isinstance(v, _EAGER)},
                    output=canonical(_numpy(tensor), part),
                    dtype=tensor.dtype.name,
                    training=None if training is None else bool(training),
                )
            )
            taps.append((tensor, own))
            counts[id(layer)] = calls[-1].number + 1
            return output

        return recorded

    owners = {id(part.layer): part for part in parts}
    before = {key: vars(part.layer).get("call") for key, part in owners.items()}
    for part in owners.values():
        # Not by setattr, which Keras watches.
        vars(part.layer)["call"] = recording(part, part.layer.call)
    try:
        yield
    finally:
        for key, part in owners.items():
            del vars(part.layer)["call"]
            if before[key] is not None:
                vars(part.layer)["call"] = before[key]


def _first(output: Any) -> Any:
    return next(iter(tf.nest.flatten(output)), None)


def _learned(part: Part) -> list[keras.Variable]:
    return [v for name in part.arrays for v in part.variables.get(name, ()) if v.trainable]


def _values(variables: Iterable[tuple[keras.Variable, ...]]) -> dict[int, Array]:
    return {id(v): _read(v) for each in variables for v in each}


def _read(variable: keras.Variable) -> Array:
    return np.array(variable.numpy())


def _gradients(
    tape: tf.GradientTape | None,
    output: tf.Tensor,
    cotangent: Array | None,
    tensors: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> dict[int, Array]:
    """The gradients that exist, by the ids of what they belong to."""
    if tape is None or cotangent is None:
        return {}
    wanted = [*tensors, *variables]
    sources = [*tensors, *(variable.value for variable in variables)]
    found = tape.gradient(output, sources, output_gradients=_tensor(cotangent, output.dtype))
    return {id(each): _numpy(tf.convert_to_tensor(g)) for each, g in zip(wanted, found, strict=True) if g is not None}


def _numpy(tensor: Any) -> Array:
    values = np.array(keras.ops.convert_to_numpy(tensor))
    return values.astype(np.float32) if values.dtype.name in ("float16", "bfloat16") else values
