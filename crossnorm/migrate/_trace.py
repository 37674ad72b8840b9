"""What a model does in one run, layer by layer, in words that no framework owns; and the rounding units of a whole model.

There is no exact answer for a whole model, so the yardstick is the model itself: run in float64, it is run again `DRAWS` times
with every input and every array moved by one roundoff of its own dtype. The unit of a quantity is the largest change, over all
but the channel, plus the roundoff of the dtype in which it is stored times the largest magnitude there. A gradient is a sum of
many terms that may cancel (before a batch normalization a bias has none), so there the error of the model's own run counts too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm.rounding import DRAWS, smallest_normal, unit_roundoff

from ._parts import Part

Array = NDArray[Any]
Key = tuple[str, str | int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of one layer.

    Attributes:
        part: whose layer was called; of several parts of one layer the last.
        number: how often the layer was called before.
        args, kwargs: what it got, for `replay`.
        inputs: the arrays among them that are no masks and no states: ``input``, or ``query``, ``key`` and ``value``;
            the batch first, the channel last, as in all arrays here.
        output: the first output.
        gradient: of the output, if the run had a cotangent and it reached this layer.
        input_gradients: of ``inputs``, as far as they go through this layer.
        dtype: in which the output is stored.
        training: whether the layer was in training mode; None where it knows no modes.
    """

    part: Part
    number: int
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    inputs: Mapping[str, Array] = field(repr=False)
    output: Array = field(repr=False)
    gradient: Array | None = field(repr=False, default=None)
    input_gradients: Mapping[str, Array] = field(repr=False, default_factory=dict)
    dtype: str = "float32"
    training: bool | None = None

    @property
    def key(self) -> Key:
        return self.part.name, self.number


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One run of a model: every call of every part, in the order in which the calls ended.

    Attributes:
        calls: of all parts.
        outputs: of the model, as it arranges them, whatever holds them; those of a dictionary in the order of its keys.
        input_gradients: of the inputs, where there is one.
        gradients: of arrays, by the names of part and array, arranged as the part arranges them.
        states: the arrays that training updates, as the run left them, by the same names.
    """

    calls: Sequence[Call]
    outputs: Sequence[Array]
    input_gradients: Sequence[Array | None] = ()
    gradients: Mapping[Key, Array] = field(default_factory=dict)
    states: Mapping[Key, Array] = field(default_factory=dict)

    @property
    def output(self) -> Array:
        """The first output."""
        return self.outputs[0]


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One call of one layer again, possibly on other inputs: its output, and gradients and state as in a `Recording`."""

    output: Array
    input_gradients: Mapping[str, Array] = field(default_factory=dict)
    gradients: Mapping[str, Array] = field(default_factory=dict)
    states: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Units:
    """The rounding units of a run, each to be broadcast against its quantity.

    Attributes:
        outputs, output_gradients: by `Call.key`.
        input_gradients: by part, number of the call and name.
        gradients, states: by part and array.
        output: of the model's first output.
        further: of all its outputs.
    """

    outputs: Mapping[Key, Array]
    output_gradients: Mapping[Key, Array]
    input_gradients: Mapping[tuple[str, int, str], Array]
    gradients: Mapping[Key, Array]
    states: Mapping[Key, Array]
    output: Array
    further: Sequence[Array] = ()


def canonical(values: Array, part: Part) -> Array:
    """What went into a part or came out of it, with the batch first and the channel last; indices as they are."""
    axes = _axes(values, part)
    return np.moveaxis(values, axes, (0, -1)) if axes else values


def native(values: Array, part: Part) -> Array:
    """The inverse of `canonical`."""
    axes = _axes(values, part)
    return np.moveaxis(values, (0, -1), axes) if axes else values


def _axes(values: Array, part: Part) -> tuple[int, int] | None:
    if values.dtype.kind in "iub" or values.ndim < 2:
        return None
    axes = part.batch_axis % values.ndim, part.axis % values.ndim
    return axes if axes[0] != axes[1] else None


def main_inputs(part: Part, parameters: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that `Call.inputs` speaks of, by its names."""
    given = {name: _argument(name, parameters, args, kwargs) for name in parameters}
    if not args and not kwargs:
        return {}
    if part.kind == "attention":
        named = {name: given.get(name) for name in ("query", "key", "value")}
        return named | ({"key": named["value"]} if named["key"] is None else {})
    return {"input": given[parameters[0]] if args else next(iter(kwargs.values()))}


def with_inputs(
    part: Part, parameters: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with others in the places of its main inputs."""
    new_args, new_kwargs = list(args), dict(kwargs)
    for name, value in inputs.items():
        parameter = name if part.kind == "attention" else parameters[0]
        position = parameters.index(parameter)
        if position < len(new_args):
            new_args[position] = value
        elif parameter in new_kwargs or part.kind == "attention":
            new_kwargs[parameter] = value
        else:
            new_kwargs[next(iter(new_kwargs))] = value
    return tuple(new_args), new_kwargs


def _argument(name: str, parameters: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    position = list(parameters).index(name)
    return args[position] if position < len(args) else kwargs.get(name)


def state_names(part: Part) -> list[str]:
    """The arrays of a part that training updates without a gradient."""
    return [name for name in (array.name for array in getattr(part.settings, "state", ())) if name in part.arrays]


def arranged(part: Part, values: Mapping[int, Array]) -> dict[str, Array]:
    """Values that belong to variables of a part, by the ids of these, as the part arranges its arrays, as far as it can."""
    return {
        name: np.array(arrange(values[id(variables[0])]))
        for name, arrange in part.arrange.items()
        if (variables := part.variables.get(name)) and id(variables[0]) in values
    }


def recorded(
    parts: Sequence[Part],
    calls: Sequence[Call],
    taps: Sequence[tuple[Any, Mapping[str, Any]]],
    given: Sequence[Any],
    outputs: Sequence[Array],
    gradients: Mapping[int, Array],
    states: Mapping[Key, Array],
) -> Recording:
    """A run put together: ``taps`` are the live output and inputs of each call, whose gradients go by their ids."""
    return Recording(
        calls=[with_gradients(call, gradients, *tap) for call, tap in zip(calls, taps, strict=True)],
        outputs=tuple(outputs),
        input_gradients=tuple(gradients.get(id(tensor)) for tensor in given),
        gradients=by_name(parts, lambda part: gradients),
        states=states,
    )


def by_name(parts: Sequence[Part], values_of: Callable[[Part], Mapping[int, Array]]) -> dict[Key, Array]:
    """What `arranged` gives for every part, by the names of part and array."""
    return {(part.name, name): values for part in parts for name, values in arranged(part, values_of(part)).items()}


def with_gradients(call: Call, gradients: Mapping[int, Array], output: Any, inputs: Mapping[str, Any]) -> Call:
    """A call with the gradients that exist, by the ids of its output and its inputs."""
    found = {name: canonical(gradients[id(tensor)], call.part) for name, tensor in inputs.items() if id(tensor) in gradients}
    gradient = gradients.get(id(output))
    return replace(call, gradient=None if gradient is None else canonical(gradient, call.part), input_gradients=found)


@contextmanager
def broken_off(calls: Sequence[Call]) -> Iterator[None]:
    """An exception in the middle of a run keeps the calls before it, as ``calls``."""
    try:
        yield
    except Exception as error:
        error.calls = list(calls)  # type: ignore[attr-defined]
        raise


def measure(run: Callable[[np.random.Generator | None], Recording], own: Recording) -> Units:
    """The units of a run.

    Args:
        run: the recording of a run in float64, all moved at random if there is a generator.
        own: the model's own run, which says in which dtype each output is stored.
    """
    stored = {call.key: call.dtype for call in own.calls}
    for number in range(len(own.outputs)):
        stored["", number] = own.calls[-1].dtype if own.calls else "float32"
    exact = dict(_quantities(run(None)))
    moves = {key: np.zeros_like(values) for key, values in exact.items()}
    moves |= {key: np.abs(values - exact[key]) for key, values in _quantities(own) if key[0].endswith("gradients")}
    random = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for _ in range(DRAWS):
            for key, values in _quantities(run(random)):
                moves[key] = np.fmax(moves[key], np.abs(values - exact[key]))
        found: dict[str, dict[Any, Array]] = {field.name: {} for field in fields(Units) if field.name != "further"}
        for (kind, key), values in exact.items():
            # The gradient of a kernel has the channel first, everything else last; that of a vector is one group.
            axes = tuple(range(values.ndim > 1, values.ndim) if kind == "gradients" else range(values.ndim - 1))
            dtype = stored.get(key[:2], "float32")
            move, magnitude = (np.max(each, axis=axes, keepdims=True, initial=0) for each in (moves[kind, key], np.abs(values)))
            found[kind][key] = move + unit_roundoff(dtype) * magnitude + smallest_normal(dtype)
    outputs = found.pop("output")
    return Units(output=outputs["", 0], further=[*outputs.values()], **found)


def _quantities(recording: Recording) -> Iterator[tuple[tuple[str, Any], Array]]:
    # Indices and flags cannot be subtracted as they are.
    yield from ((("output", ("", n)), values * np.float32(1)) for n, values in enumerate(recording.outputs))
    for call in recording.calls:
        yield ("outputs", call.key), call.output
        if call.gradient is not None:
            yield ("output_gradients", call.key), call.gradient
        yield from ((("input_gradients", (*call.key, name)), values) for name, values in call.input_gradients.items())
    yield from ((("gradients", key), values) for key, values in recording.gradients.items())
    yield from ((("states", key), values) for key, values in recording.states.items())
