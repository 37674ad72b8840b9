"""All weights of a model into another model, of another framework or the same, and the proof that the two compute the same."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import track
from rich.table import Table

from crossnorm.errors import CrossnormError, MigrationError
from crossnorm.rounding import VERDICT

from ._frameworks import framework_of, room
from ._inputs import as_tuple, sample, turned
from ._matching import Pairs, match, refusal, training_differences
from ._parts import Arrange, Part, parts
from ._trace import Call, Recording, Units

Array = NDArray[Any]

# Models of more bytes show a progress bar.
_LARGE = 200_000_000


@dataclass(frozen=True)
class Row:
    """One call of a pair of layers: their names, and the largest error of the target's output in rounding units of the model.

    ``units`` is NaN where the outputs cannot be compared: one layer has an activation that the other leaves to a later layer.
    """

    source: str
    target: str
    kind: str
    units: float


@dataclass(frozen=True)
class Transfer:
    """What was moved, and how it was proved.

    Attributes:
        pairs: the parts of source and target, in order.
        rows: one for each call of a pair, in the order of execution.
        notes: what the two models will do differently in training, what is tied, and what was not moved.
    """

    pairs: Pairs = field(repr=False)
    rows: Sequence[Row]
    notes: Sequence[str]

    @property
    def worst(self) -> float:
        """The largest error of all layers, in rounding units."""
        return max((row.units for row in self.rows), default=0.0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("source", "target", "kind", "units")
        for row in self.rows:
            table.add_row(row.source, row.target, row.kind, f"{row.units:.1f}")
        yield table
        yield f"{len(self.pairs)} layers moved; the worst output is {self.worst:.1f} rounding units off, {VERDICT} are allowed"
        yield from (f"- {note}" for note in self.notes)

    def __str__(self) -> str:
        console = Console(width=120, markup=False, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()


def transfer(
    source: Any,
    target: Any,
    mapping: Mapping[str, str] | None = None,
    *,
    skip: Iterable[str] = (),
    inputs: Any = None,
    target_inputs: Any = None,
    progress: bool | None = None,
) -> Transfer:
    """Copy all weights of one model into another of the same architecture, and prove that both compute the same.

    Normalization layers of every method, dense layers, convolutions (transposed, depthwise and separable ones too), embeddings,
    LSTM, GRU and multi-head attention are moved, each array in the arrangement of its framework. Where an image was flattened,
    the weights behind it are put in the order in which the other framework flattens it. Both models then run, in inference
    mode, on the same input, and every layer's output is compared.

    Args:
        source: a torch module or a Keras model, built.
        target: the model to write into, of the same framework or the other one.
        mapping: names of parts of the source, and what they are called in the target; the rest is matched by name or by the
            order of execution, by kind and by shape. `crossnorm.migrate.parts` lists the names.
        skip: names of parts of either model that stay out, ``*`` and ``?`` allowed: a new head, for one.
        inputs: what the source is run on, an array or a tuple of them; random numbers of the shape that a Keras model declares
            unless given.
        target_inputs: the same for the target, if it is more than a matter of channels first or last.
        progress: whether to draw a progress bar on stderr; None does so for large models.

    Returns:
        The pairs, the error of each layer in units of what rounding the weights and the inputs once changes, and notes on what
        will train differently: the optimizer's state was not moved (`transfer_optimizer`), fields that matter in training only,
        parameters that are tied in one model only.

    Raises:
        MigrationError: a part without counterpart, an ambiguous one, one of unknown kind, specifications that differ in what
            they compute, arrays that would be rounded, or a proof that failed. The target is as it was.

    >>> import torch
    >>> source, target = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)) for _ in range(2))
    >>> report = transfer(source, target, inputs=torch.ones(2, 3))
    >>> report.worst, torch.equal(source[0].weight, target[0].weight)
    (0.0, True)
    """
    if source is target:
        raise MigrationError("transfer: source and target are the same model; give two")
    one, other = _Model("source", source, inputs), _Model("target", target, target_inputs)
    agree_on_inputs(one, other)
    pairs = match(one.executed(), other.executed(), mapping or {}, tuple(skip))
    if problems := [*_roundings(pairs), *_conflicts(pairs)]:
        raise refusal(problems)
    if progress is None:
        progress = sum(array.nbytes for a, _ in pairs for array in a.arrays.values()) > _LARGE
    bar = Console(stderr=True, quiet=not progress)
    try:
        for a, b in track(pairs, "copying", console=bar):
            b.write(a.arrays)
        with bar.status("proving"):
            rows, orders = _proof(pairs, one, other)
    except BaseException:
        for _, part in pairs:
            part.write(part.arrays)
        raise
    return Transfer(_in_order(pairs, orders), rows, _notes(pairs, rows))


# What stands in the way.


def _roundings(pairs: Pairs) -> list[str]:
    """Arrays that the target would store with fewer digits."""
    return [
        f"source {a.name}: {name!r} of dtype {array.dtype.name} would be rounded to the {b.arrays[name].dtype.name} of target "
        f"{b.name}; move it into a target of that dtype, and cast that"
        for a, b in pairs
        for name, array in a.arrays.items()
        if array.dtype.kind not in "iu" and not np.can_cast(array.dtype, b.arrays[name].dtype)
    ]


def _conflicts(pairs: Pairs) -> list[str]:
    """Arrays that are one in the target, and would be given two values."""
    written = {id(v): (a, name) for a, b in reversed(pairs) for name in a.arrays for v in b.variables.get(name, ())}
    return [
        f"target {b.name}: {name!r} is tied to that of another part, and source {a.name} and {first.name} differ; untie them"
        for a, b in pairs
        for name, array in a.arrays.items()
        for first, theirs in [written[id(v)] for v in b.variables.get(name, ())]
        if first is not a and not np.array_equal(array, first.arrays[theirs], equal_nan=array.dtype.kind == "f")
    ]


# The proof.


class _Model:
    """A model with its parts and what it is run on."""

    def __init__(self, side: str, model: Any, inputs: Any) -> None:
        self.side = side
        self.model = model
        self.framework = framework_of(model)
        self.room = room(self.framework)
        self.parts = parts(model)
        self.inputs = None if inputs is None else as_tuple(inputs)

    def record(self) -> Recording:
        """One run in inference mode."""
        try:
            recording: Recording = self.room.record(self.model, self.parts, self.inputs)
        except CrossnormError:
            raise
        except Exception as error:
            shapes = [array.shape for array in self.inputs or ()]
            raise MigrationError(
                f"transfer: the {self.side} cannot be run on inputs of shapes {shapes} ({_first_line(error)}); "
                "give each model what it takes by inputs= and target_inputs="
            ) from error
        return recording

    def executed(self) -> list[Part]:
        """The parts in the order of their first calls, then those that were not called."""
        first = {id(part.layer): len(self.parts) for part in self.parts}
        for number, call in reversed(list(enumerate(self.record().calls))):
            first[id(call.part.layer)] = number
        return sorted(self.parts, key=lambda part: first[id(part.layer)])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def agree_on_inputs(one: _Model, other: _Model) -> None:
    """Give each model the same inputs, in its own layout."""
    if one.inputs is None and other.inputs is None:
        declared = [(model, signature) for model in (other, one) if (signature := model.room.signature(model.model))]
        if not declared:
            raise MigrationError(
                "transfer: neither model declares the shape of its inputs; give inputs=, an array or a tuple of them"
            )
        declared[0][0].inputs = sample(declared[0][1], declared[0][0].parts)
    for here, there in ((one, other), (other, one)):
        if there.inputs is None:
            there.inputs = turned(here.inputs, here.parts, there.parts)


def _proof(pairs: Pairs, one: _Model, other: _Model) -> tuple[list[Row], dict[str, Array]]:
    """The error of every call; an array whose inputs come in another order, after an image was flattened, is put right."""
    source, target = one.record(), other.record()
    orders: dict[str, Array] = {}
    for _ in pairs:
        if (found := _reordered(pairs, source, target, orders)) is None:
            break
        a, b, order = found
        orders[b.name] = order
        b.write({name: a.arrays[name][..., order] for name in _along(a, order)})
        target = other.record()
    measured = one if one.framework == "torch" else other
    units = measured.room.units(measured.model, measured.parts, measured.inputs)
    partners = {a.name: b for a, b in pairs}
    calls = {call.key: call for call in target.calls}
    together = _together(pairs, 0), _together(pairs, 1)
    rows = []
    for call in source.calls:
        part = partners.get(call.part.name)
        if part is None or together[0][call.part.name] != together[1][call.part.name]:
            continue
        if (copy := calls.get((part.name, call.number))) is None:
            raise MigrationError(
                f"transfer: source {call.part.name} is called more often than target {part.name}; call them equally often"
            )
        error = _error(call, copy, units.outputs[(call if measured is one else copy).key], orders.get(part.name))
        rows.append(Row(call.part.name, part.name, part.kind, error))
        if error > VERDICT:
            raise MigrationError(_parting(call, copy, error, orders.get(part.name)))
    rows.append(_output_row(source, target, rows, units))
    return rows, orders


def _in_order(pairs: Pairs, orders: Mapping[str, Array]) -> Pairs:
    """The pairs, each source as its target has it now, so that an optimizer's state follows the weights."""
    return [(_turned(a, orders[b.name]) if b.name in orders else a, b) for a, b in pairs]


def _turned(part: Part, order: Array) -> Part:
    names = _along(part, order)
    arrange = {name: partial(_picked, part.arrange[name], order) for name in names if name in part.arrange}
    arrays = {name: part.arrays[name][..., order] for name in names}
    return replace(part, arrays={**part.arrays, **arrays}, arrange={**part.arrange, **arrange})


def _along(part: Part, order: Array) -> list[str]:
    """The arrays whose last axis is that of the inputs."""
    return ["weight"] if part.kind == "dense" else [n for n, array in part.arrays.items() if array.shape == order.shape]


def _picked(arrange: Arrange, order: Array, stored: Array) -> Array:
    return arrange(stored)[..., order]


def _together(pairs: Pairs, position: int) -> dict[str, set[str]]:
    """The parts that are one layer with each part, by the source's names: the layers of a stack, which give one output."""
    return {a[0].name: {b[0].name for b in pairs if b[position].layer is a[position].layer} for a in pairs}


def _reordered(
    pairs: Pairs, source: Recording, target: Recording, orders: Mapping[str, Array]
) -> tuple[Part, Part, Array] | None:
    """The first pair whose inputs are the same numbers in the order of another layout, and that order."""
    here, there = ({call.part.name: call for call in reversed(recording.calls)} for recording in (source, target))
    for a, b in pairs:
        if a.name not in here or b.name not in there or b.name in orders or a.kind == "embedding":
            continue
        x, y = (calls[name].inputs.get("input") for calls, name in ((here, a.name), (there, b.name)))
        if x is None or y is None or x.ndim != 2 or x.shape != y.shape or _same(x, y):
            continue
        features = x.shape[1]
        divisors = [size for size in range(2, features // 2 + 1) if features % size == 0]
        found = [np.arange(features).reshape(-1, size).T.ravel() for size in divisors]
        if fitting := [order for order in found if _same(x[:, order], y)]:
            return a, b, fitting[0]
    return None


def _same(x: Array, y: Array) -> bool:
    """Whether two arrays agree but for rounding; the proof in units comes later."""
    return bool(np.max(np.abs(x - y), initial=0) <= 1e-3 * np.max(np.abs(y), initial=0))


def _error(call: Call, copy: Call, unit: Array, order: Array | None) -> float:
    """The largest error of the copy's output, in units; NaN where one has an activation that cannot be put on the other."""
    want, got = call.output, copy.output
    if not np.all(np.isfinite(want)):
        raise MigrationError(
            f"transfer: source {call.part.name} gives NaN or infinity, so that nothing can be proved; give other inputs="
        )
    if order is not None and call.part.kind != "dense":
        want = want[..., order]
    if call.part.kind in ("lstm", "gru"):
        # Keras gives the last step alone unless it is asked for the sequence.
        want, got = (x[:, -1] if x.ndim > y.ndim else x for x, y in ((want, got), (got, want)))
        unit = np.max(unit, axis=tuple(range(unit.ndim - 1)))
    if want.shape != got.shape:
        return np.inf
    activations = [getattr(part.settings, "activation", "linear") for part in (call.part, copy.part)]
    if activations[0] != activations[1]:
        functions = [_ACTIVATIONS.get(name) for name in activations]
        if "linear" not in activations or None in functions:
            return np.nan
        # None of them moves two numbers further apart, so that the unit before it is one after it.
        want, got = functions[1](want), functions[0](got)  # type: ignore[misc]
    with np.errstate(invalid="ignore"):
        return float(np.max(np.nan_to_num(np.abs(got - want) / unit, nan=np.inf), initial=0))


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": np.asarray,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def _parting(call: Call, copy: Call, error: float, order: Array | None) -> str:
    """Why the copy was undone."""
    a, b = call.part, copy.part
    inputs = [(x, copy.inputs[name]) for name, x in call.inputs.items() if name in copy.inputs]
    if order is None and any(x.shape != y.shape or not _same(x, y) for x, y in inputs):
        why = "what reaches them differs: the models do different things before, and after the layers before"
    else:
        differing = [
            f"{field.name} {x!r} against {y!r}"
            for field in fields(a.settings)
            if (x := getattr(a.settings, field.name)) != (y := getattr(b.settings, field.name))
        ]
        if call.dtype != copy.dtype:
            differing.append(f"what they compute in, {call.dtype} against {copy.dtype}")
        why = f"they differ in {', '.join(differing)}" if differing else "they hold the same arrays, and are called otherwise"
    return (
        f"transfer: the copy computes something else, and was undone: source {a.name} and target {b.name} ({a.kind}) part by "
        f"{error:.3g} rounding units, {VERDICT} are allowed; {why}: make the models alike, or pair other parts by mapping="
    )


def _output_row(source: Recording, target: Recording, rows: Sequence[Row], units: Units) -> Row:
    """What the models give in the end, with the channel first or last: the last layer need not be the end."""
    want, got = source.output, target.output
    layouts = [want] if want.ndim < 3 else [want, np.moveaxis(want, 1, -1), np.moveaxis(want, -1, 1)]
    errors = [np.max(np.abs(got - each) / np.max(units.output), initial=0) for each in layouts if each.shape == got.shape]
    error = float(min(errors, default=np.inf))
    if not error <= VERDICT:
        raise MigrationError(
            f"transfer: all layers agree, and the outputs of the models differ by {error:.3g} rounding units: by what follows "
            f"the last layer, {rows[-1].source if rows else 'none'}; the copy was undone: make the models alike"
        )
    return Row("output", "output", "model", error)


# What is worth knowing afterwards.


def _notes(pairs: Pairs, rows: Sequence[Row]) -> list[str]:
    called = {row.source for row in rows}
    notes = [f"{a.name} was copied, but not called: the proof says nothing of it" for a, _ in pairs if a.name not in called]
    training: dict[str, list[str]] = defaultdict(list)
    for a, b in pairs:
        for difference in training_differences(a, b):
            training[difference].append(a.name)
    notes += [f"training will differ in {what}: {_some(names)}" for what, names in training.items()]
    frozen = [b.name for a, b in pairs if a.trainable != b.trainable]
    if frozen:
        notes.append(f"what is trainable differs: {_some(frozen)}")
    twice = [a.name for a, b in pairs if [p.variables.get("recurrent_bias") for p in (a, b)].count(()) == 1]
    if twice:
        notes.append(f"torch has two biases where Keras has their sum, and trains both: {_some(twice)}")
    wider = [b.name for a, b in pairs if any(array.dtype != b.arrays[name].dtype for name, array in a.arrays.items())]
    if wider:
        notes.append(f"arrays of fewer digits became wider ones: {_some(wider)}")
    for side, position in (("source", 0), ("target", 1)):
        only = _ties(pairs, position) - _ties(pairs, 1 - position)
        notes += [f"{' and '.join(names)} are tied in the {side} only: training will part them" for names in sorted(only)]
    return [*notes, "the optimizer's state was not moved; transfer_optimizer moves that of SGD and Adam"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _ties(pairs: Pairs, position: int) -> set[tuple[str, ...]]:
    """Arrays of several parts that are one variable, by the source's names."""
    holders: dict[int, list[str]] = defaultdict(list)
    for pair in pairs:
        for name, variables in pair[position].variables.items():
            for variable in variables:
                holders[id(variable)].append(f"{pair[0].name}.{name}")
    parts_of = {key: {name.rpartition(".")[0] for name in names} for key, names in holders.items()}
    return {tuple(names) for key, names in holders.items() if len(parts_of[key]) > 1}
