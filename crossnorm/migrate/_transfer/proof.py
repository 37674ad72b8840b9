"""The proof that two models compute the same: every call of every layer, in rounding units."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossnorm.errors import MigrationError
from crossnorm.rounding import VERDICT

from .._activations import ACTIVATIONS
from .._trace import Call, Recording, Units
from .matching import Pairs
from .notes import some
from .orders import in_order, mixes, rearranged, reordered, reshaped, same
from .running import Model

Array = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One call of a pair of layers: their names, and the largest error of the target's output in rounding units of the model.

    ``units`` is NaN where the outputs cannot be compared: one layer has an activation that the other leaves to a later layer.
    """

    source: str
    target: str
    kind: str
    units: float


class Proof(NamedTuple):
    """The error of every call, what is not proved, and the pairs with each source as its target has it now."""

    rows: list[Row]
    notes: list[str]
    pairs: Pairs


def prove(pairs: Pairs, one: Model, other: Model) -> Proof:
    """Run both models on the same input and compare every call; a call that is too far off is a ``MigrationError``.

    An array whose inputs come in another order, after an image was flattened, is put right; so is one whose outputs become an
    image.
    """
    source, target = one.before, other.record()
    taken: dict[str, Array] = {}
    given: dict[str, Array] = {}
    while True:
        if found := reordered(pairs, source, target, taken):
            a, b, order = found
            taken[b.name] = order
            b.write(rearranged(a, order, given.get(b.name)).arrays)
        elif not reshaped(pairs, source, other, taken, given):
            break
        target = other.record()
    measured = one if one.framework == "torch" else other
    units = measured.units()
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
        order = (given if mixes(part) else taken).get(part.name)
        error = _error(call, copy, units.outputs[(call if measured is one else copy).key], order)
        rows.append(Row(call.part.name, part.name, part.kind, error))
        if error > VERDICT:
            raise MigrationError(_parting(call, copy, error, taken.get(part.name)))
    names = {b.name: a.name for a, b in pairs if together[0][a.name] == together[1][a.name]}
    known = {call.key for call in source.calls}
    for copy in target.calls:
        if copy.part.name in names and (names[copy.part.name], copy.number) not in known:
            raise MigrationError(
                f"transfer: target {copy.part.name} is called more often than source {names[copy.part.name]}; "
                "call them equally often"
            )
    rows += _output_rows(source, target, rows, units)
    return Proof(rows, _unproved(pairs, source, target, rows), in_order(pairs, taken, given))


def _together(pairs: Pairs, position: int) -> dict[str, set[str]]:
    """The parts that are one layer with each part, by the source's names: the layers of a stack, which give one output."""
    return {a[0].name: {b[0].name for b in pairs if b[position].layer is a[position].layer} for a in pairs}


def _error(call: Call, copy: Call, unit: Array, order: Array | None) -> float:
    """The largest error of the copy's output, in units; NaN where one has an activation that cannot be put on the other."""
    want, got = _aligned(call, copy)
    if not np.all(np.isfinite(want)):
        raise MigrationError(
            f"transfer: source {call.part.name} gives NaN or infinity, so that nothing can be proved; give other inputs="
        )
    if order is not None:
        want = want[..., order]
    if call.part.kind in ("lstm", "gru"):
        # Keras gives the last step alone unless it is asked for the sequence.
        want, got = (x[:, -1] if x.ndim > y.ndim else x for x, y in ((want, got), (got, want)))
        unit = np.max(unit, axis=tuple(range(unit.ndim - 1)))
    if want.shape != got.shape:
        return np.inf
    activations = [getattr(part.settings, "activation", "linear") for part in (call.part, copy.part)]
    if activations[0] != activations[1]:
        functions = [_CONTRACTIONS.get(name) for name in activations]
        if "linear" not in activations or None in functions:
            return np.nan
        want, got = functions[1](want), functions[0](got)  # type: ignore[misc]
    with np.errstate(invalid="ignore"):
        return float(np.max(np.nan_to_num(np.abs(got - want) / unit, nan=np.inf), initial=0))


def _aligned(call: Call, copy: Call) -> tuple[Array, Array]:
    """Both outputs, with the batch first in both."""
    want, got = call.output, copy.output
    if call.part.batch_axis == copy.part.batch_axis and want.ndim > 2:
        return _steps_first(want, got), got
    return want, got


def _steps_first(want: Array, got: Array) -> Array:
    """``want`` with steps and batch swapped, if that is how ``got`` has them."""
    swapped = want.swapaxes(0, 1)
    if swapped.shape != got.shape or (want.shape == got.shape and same(want, got)):
        return want
    return swapped if want.shape != got.shape or same(swapped, got) else want


# None of these moves two numbers further apart, so that the unit before it is one after it.
_CONTRACTIONS = {"linear": ACTIVATIONS[""]} | {name: ACTIVATIONS[name] for name in ("relu", "relu6", "tanh", "sigmoid")}


def _parting(call: Call, copy: Call, error: float, order: Array | None) -> str:
    """Why the copy was undone."""
    a, b = call.part, copy.part
    inputs = [(x, copy.inputs[name]) for name, x in call.inputs.items() if name in copy.inputs]
    if order is None and any(x.shape != y.shape or not same(x, y) for x, y in inputs):
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


def _output_rows(source: Recording, target: Recording, rows: Sequence[Row], units: Units) -> list[Row]:
    """What the models give in the end: the last layer need not be the end.

    The channel may be first or last, and the steps of a sequence or the batch. Further outputs need not have the same shape.
    """
    found = []
    for number, (want, got, unit) in enumerate(zip(source.outputs, target.outputs, units.further, strict=False)):
        layouts = [want] if want.ndim < 3 else [want, np.moveaxis(want, 1, -1), np.moveaxis(want, -1, 1), want.swapaxes(0, 1)]
        alike = [each for each in layouts if each.shape == got.shape]
        if number and not alike:
            continue
        error = float(min((np.max(np.abs(got * 1.0 - each) / np.max(unit), initial=0) for each in alike), default=np.inf))
        if not error <= VERDICT:
            raise MigrationError(
                f"transfer: all layers agree, and the outputs of the models differ by {error:.3g} rounding units"
                f"{f' in output {number}' if number else ''}: by what follows the last layer, "
                f"{rows[-1].source if rows else 'none'}; the copy was undone: make the models alike"
            )
        name = f"output {number}" if number else "output"
        found.append(Row(name, name, "model", error))
    return found


def _unproved(pairs: Pairs, source: Recording, target: Recording, rows: Sequence[Row]) -> list[str]:
    """What the proof leaves open."""
    called = {id(call.part.layer) for call in source.calls}
    notes = [
        f"{a.name} was copied, but not called: the proof says nothing of it" for a, _ in pairs if id(a.layer) not in called
    ]
    names = {a.name for a, _ in pairs}
    if zeros := dict.fromkeys(c.part.name for c in source.calls if c.part.name in names and not c.output.any()):
        notes.append(
            f"nothing but zeros comes out of {some([*zeros])}: the proof does not see whether what stands around it is paired "
            "rightly; look at the pairs, or give other inputs="
        )
    several = max(len(source.outputs), len(target.outputs))
    compared = [row for row in rows if row.kind == "model"]
    if len(compared) < several:
        notes.append(
            f"{len(compared)} of {several} outputs were compared: the others have other shapes, or are in one model only"
        )
    return notes
