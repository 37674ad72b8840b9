"""Where two models part, layer by layer, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm.errors import MigrationError, Unsupported
from crossnorm.rounding import DRAWS, VERDICT, perturbed, precision

from .._frameworks import framework_of, room
from .._inputs import as_tuple, sample
from .._inputs import turned as turned_inputs
from .._parts import Part
from .._trace import Call, Key, Recording, Units, canonical
from .between import activation_of, between, confirmed, padded, reordered, turned
from .causes import Cause, Trial, off, quantities, worst, written
from .difference import Difference, Row
from .pairing import Pair, paired
from .suspects import Suspect, loose_suspects, suspects

Array = NDArray[Any]


def diff(
    a: Any,
    b: Any,
    inputs: Any = None,
    *,
    inputs_b: Any = None,
    pairs: Mapping[str, str] | None = None,
    training: bool | None = None,
    step: bool = True,
    names: tuple[str, str] = ("a", "b"),
) -> Difference:
    """Run two models on the same input, and say which is the first layer where they part, and why.

    Every pair of layers is compared twice: as the models run, and alone, the second layer on the input of the first one. Of a
    layer that parts alone everything in which the two differ is put right in turn, and what is left of the difference is
    measured: a cause is never guessed. Outputs are compared as the models are; with ``step`` also the outputs, gradients and
    statistics of one step of training, after which everything is as it was. Dropout does nothing all the while.

    Args:
        a, b: torch modules or Keras models, built, of one framework or of two.
        inputs: what ``a`` is run on, an array or a tuple of them; unless given, random numbers of the shape that a Keras model
            declares.
        inputs_b: the same for ``b``, where it is more than a matter of channels first or last.
        pairs: names of layers of ``a``, and who they are in ``b``, where names and order do not tell.
        training: run both models in training mode, or in inference mode; None: each as it is, which is inference in Keras.
        step: whether a training step is compared too.
        names: what the report calls the two models.

    Returns:
        A `Difference`: true if the models part.

    >>> import torch
    >>> a, b = (torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3, eps=eps)) for eps in (1e-3, 0.1))
    >>> b.load_state_dict(a.state_dict())
    <All keys matched successfully>
    >>> found = diff(a.eval(), b.eval(), torch.ones(4, 2))
    >>> found.first.name, found.first.causes[0].words
    ('1', 'eps 0.001 against 0.1')
    """
    one, other = _Side.of(a, names[0]), _Side.of(b, names[1])
    notes = _give_inputs(one, other, inputs, inputs_b, training)
    return _Comparison(one, other, dict(pairs or {}), training, notes).run(step)


@dataclass
class _Side:
    """One of the two models."""

    model: Any
    name: str
    framework: str
    room: Any
    parts: Sequence[Part]
    loose: Sequence[Part] = ()
    inputs: tuple[Array, ...] = ()

    @classmethod
    def of(cls, model: Any, name: str) -> "_Side":
        framework = framework_of(model)
        if framework not in ("torch", "tensorflow"):
            raise MigrationError(f"diff: {name} is a model of {framework}; give models of torch or Keras 3")
        folder = room(framework)
        parts = folder.parts(model)
        layers = {id(part.layer) for part in parts}
        # Arrays that a module holds beside its layers, a positional embedding say: its output is no layer's output.
        loose = [p for p in parts if p.kind == "unknown" and any(id(x) in layers for x in folder.layers_in(p.layer))]
        return cls(model, name, framework, folder, [part for part in parts if part not in loose], loose)

    def owned(self, call: Call) -> list[Part]:
        """All parts of the layer of a call."""
        return [part for part in self.parts if part.layer is call.part.layer]

    def record(self, training: bool | None, cotangent: Array | None = None) -> Recording:
        recording: Recording = self.room.record(self.model, self.parts, self.inputs, training=training, cotangent=cotangent)
        return recording

    def record_until(self, training: bool | None) -> tuple[Recording, str]:
        """The run, or as much of it as there is, and why there is no more."""
        try:
            return self.record(training), ""
        except Exception as error:  # whatever a framework raises where a shape does not fit
            if not getattr(error, "calls", None):
                raise
            reason = _line(error)
            return Recording(calls=error.calls, outputs=[np.zeros(0)]), f"{self.name} breaks off: {reason}"  # type: ignore[attr-defined]

    def units(self, training: bool | None, cotangent: Array | None = None) -> Units:
        units: Units = self.room.units(self.model, self.parts, self.inputs, training=training, cotangent=cotangent)
        return units


def _give_inputs(one: _Side, other: _Side, inputs: Any, inputs_b: Any, training: bool | None) -> list[str]:
    """Both sides get their inputs; those of the second are tried, if they have to be guessed."""
    if inputs is None:
        declared = [(side, signature) for side in (one, other) if (signature := side.room.signature(side.model))]
        if not declared:
            raise MigrationError(
                "diff: neither model declares the shape of its inputs; give inputs=, an array or a tuple of them"
            )
        side, signature = declared[0]
        given = sample(signature, side.parts)
        one.inputs = given if side is one else turned_inputs(given, other.parts, one.parts)
    else:
        one.inputs = as_tuple(inputs)
    if any(not x.size or (x.dtype.kind == "f" and not np.isfinite(x).any()) for x in one.inputs):
        raise MigrationError("diff: an input holds no finite number, and nothing can be told apart on it; give other inputs")
    try:
        one.record(training)
    except Exception as error:  # whatever a framework or the model itself raises
        raise MigrationError(f"diff: {one.name} cannot run on its input ({_line(error)}); give inputs that it takes") from error
    if inputs_b is not None:
        other.inputs = as_tuple(inputs_b)
        return []
    likely = turned_inputs(one.inputs, one.parts, other.parts)
    layouts = {
        "": likely,
        "as it is": one.inputs,
        "with its channel last": tuple(_moved(x, 1, -1) for x in one.inputs),
        "with its channel first": tuple(_moved(x, -1, 1) for x in one.inputs),
    }
    reached: dict[str, int] = {}
    for words, guess in layouts.items():
        other.inputs = guess
        try:
            other.record(training)
        except Exception as error:  # whatever a framework raises where a shape does not fit
            reached[words] = len(getattr(error, "calls", ()))
            failure = _line(error)
        else:
            return [f"{other.name} takes the input of {one.name} {words}"] if words else []
    words = max(reached, key=lambda each: reached[each])
    if not reached[words]:
        raise MigrationError(
            f"diff: {other.name} cannot run on the input of {one.name}, in no layout ({failure}); give inputs_b="
        )
    other.inputs = layouts[words]
    return []


def _moved(values: Array, here: int, there: int) -> Array:
    return np.moveaxis(values, here, there) if values.dtype.kind == "f" and values.ndim > 2 else values


@dataclass
class _Stage:
    """The runs of both models in one mode, and the yardstick: the units of one of the two."""

    one: Recording
    other: Recording
    units: Units
    by_one: bool
    training: bool | None
    calls: dict[bool, dict[Key, Call]] = field(init=False)

    def __post_init__(self) -> None:
        runs = ((True, self.one), (False, self.other))
        self.calls = {first: {call.key: call for call in run.calls} for first, run in runs}

    def has(self, pair: Pair) -> bool:
        """Whether both calls happen in this mode: an auxiliary output, say, is for one only."""
        (a,), (b,) = pair
        return a.key in self.calls[True] and b.key in self.calls[False]

    def at(self, pair: Pair) -> tuple[Call, Call]:
        """The calls of a pair in these runs."""
        (a,), (b,) = pair
        return self.calls[True][a.key], self.calls[False][b.key]

    def unit(self, a: Call, b: Call, quantity: str) -> Array | None:
        """The unit of a quantity that `quantities` names."""
        call = a if self.by_one else b
        name, number = call.key
        held = {
            "output": self.units.outputs.get(call.key),
            **{f"gradient of the {n}": self.units.input_gradients.get((name, number, n)) for n in call.inputs},
            **{f"gradient of {n}": self.units.gradients.get((name, n)) for n in call.part.arrays},
            **{n: self.units.states.get((name, n)) for n in call.part.arrays},
        }
        return held.get(quantity)


@dataclass
class _Comparison:
    one: _Side
    other: _Side
    wanted: Mapping[str, str]
    training: bool | None
    notes: list[str]

    def run(self, step: bool) -> Difference:
        one, (other, broken) = self.one.record(self.training), self.other.record_until(self.training)
        self.notes += [broken] if broken else []
        stage = self._stage(one, other, self.training, not broken)
        sizes = Counter(id(part.layer) for side in (self.one, self.other) for part in side.parts)
        pairs = paired(stage.one.calls, stage.other.calls, sizes, self.wanted)
        rows = self._rows(stage, pairs)
        if step and not broken and (trained := self._trained()) is not None:
            rows = [self._with_step(trained, pair, row) for pair, row in zip(pairs, rows, strict=True)]
        output = Row(a="output", b="", kind="", units=np.inf, verdict="follows")
        rows.append(output if broken else self._output(stage, pairs, rows))
        return Difference(rows=rows, notes=self.notes, names=(self.one.name, self.other.name))

    # The runs.

    def _stage(
        self, one: Recording, other: Recording, training: bool | None, whole: bool = True, cotangents: Any = (None, None)
    ) -> _Stage:
        by_one = not whole or self._yardstick(one, other)
        units = (self.one if by_one else self.other).units(training, cotangents[0 if by_one else 1])
        return _Stage(one, other, units, by_one, training)

    def _yardstick(self, one: Recording, other: Recording) -> bool:
        """Whether the first model gives the units: what speaks for a model is to be finite, precise, and of torch."""

        def merits(side: _Side, run: Recording) -> tuple[bool, int, bool]:
            finite = all(np.isfinite(call.output).all() for call in run.calls)
            return finite, min((precision(call.dtype) for call in run.calls), default=0), side.framework == "torch"

        return merits(self.one, one) >= merits(self.other, other)

    def _trained(self) -> _Stage | None:
        """One step of training of both, with the same cotangent; None and a note where that is impossible."""
        outputs = []
        for side in (self.one, self.other):
            try:
                outputs.append(side.record(True).output)
            except Exception as error:  # whatever a framework raises where a batch is too small, say
                self.notes.append(f"{side.name} cannot be run in training mode: {_line(error)}")
                return None
        cotangent = np.random.default_rng(1).standard_normal(outputs[0].shape).astype(np.float32)
        layouts = [x for x in _layouts(cotangent) if x.shape == outputs[1].shape]
        if not layouts:
            self.notes.append(f"outputs of shapes {outputs[0].shape} and {outputs[1].shape} have no gradients to compare")
            return None
        likely = min(layouts, key=lambda x: self._apart(outputs, x is cotangent))
        one, other = self.one.record(True, cotangent), self.other.record(True, likely)
        return self._stage(one, other, True, cotangents=(cotangent, likely))

    def _apart(self, outputs: Sequence[Array], as_it_is: bool) -> float:
        turned = outputs[0] if as_it_is else next(x for x in _layouts(outputs[0])[1:] if x.shape == outputs[1].shape)
        return float(np.nan_to_num(np.max(np.abs(turned - outputs[1]), initial=0), nan=np.inf))

    # The rows.

    def _rows(self, stage: _Stage, pairs: Sequence[Pair]) -> list[Row]:
        rows: list[Row] = []
        for number, pair in enumerate(pairs):
            sound = all(row.agrees for row in rows)
            if not pair.one or not pair.other:
                rows.append(Row.alone_in(pair))
            elif not pair.single:
                rows.append(self._joined(stage, pair, sound))
            else:
                rows.append(self._row(stage, pair, pairs[:number], sound))
        return rows

    def _row(self, stage: _Stage, pair: Pair, before: Sequence[Pair], sound: bool) -> Row:
        a, b = stage.at(pair)
        try:
            trial, own = self._trial(stage, a, b, None)
        except Unsupported as error:
            self.notes.append(f"{a.part.name} was not compared: {error}")
            return Row(a=a.part.name, b=b.part.name, kind=a.part.kind, units=np.nan, verdict="unknown")
        apart, alone = self._far(trial, own)
        if max(apart, alone) > VERDICT:
            trial = _conditioned(trial, a)
            apart, alone = self._far(trial, own)
        row = Row(a=a.part.name, b=b.part.name, kind=a.part.kind, units=apart, alone=alone)
        if alone > VERDICT:
            return replace(row, verdict="parts", causes=trial.causes(self._suspects(a, b)))
        if found := self._before(a, b, before, trial, apart):
            return replace(row, verdict="parts", causes=found)
        if apart <= VERDICT:
            return row
        return self._parts_before(row, stage, a, b) if sound else replace(row, verdict="follows")

    def _far(self, trial: Trial, own: Array | None) -> tuple[float, float]:
        """How far the outputs of a pair are apart as the models run, and alone."""
        return off(trial.target["output"], own, trial.units["output"]), worst(trial.distances(), trial.target)

    def _parts_before(self, row: Row, stage: _Stage, a: Call, b: Call) -> Row:
        """A row that parts for what lies before: because of an array that no layer holds, if that explains it."""
        found = loose_suspects(self.one.loose, self.other.loose)
        target, unit = stage.at(Pair((a,), (b,)))[0].output, stage.unit(a, b, "output")
        causes: list[Cause] = []
        for part, suspect in found:
            with written([part], suspect.arrays):
                again, _ = self.other.record_until(self.training)  # a model may break off behind this layer
            after = next((call.output for call in again.calls if call.key == b.key), None)
            causes += confirmed(suspect.words, {"before": b.output, "after": after}, target, unit)
        return replace(
            row, verdict="parts" if causes else "parts before", causes=[cause for cause in causes if cause.share > 0.5]
        )

    def _suspects(self, a: Call, b: Call) -> list[Suspect]:
        parts = self.one.owned(a), self.other.owned(b)
        found = suspects(a, b, parts, (self.one.name, self.other.name), reordered(a, b), self.one.parts)
        return found if padded(a, b) is None else [each for each in found if "padding" not in each.fields]

    def _trial(self, stage: _Stage, a: Call, b: Call, cotangent: Array | None) -> tuple[Trial, Array | None]:
        """The second layer alone on the input of the first one; and what it gave in its model, made comparable."""
        order = reordered(a, b)
        activations = [activation_of(call) for call in (a, b)]
        extra = ["linear", "linear"]
        if activations[0] != activations[1] and "linear" in activations:
            # One model has a layer of its own for it.
            extra = [activations[1] if activations[0] == "linear" else "linear"]
            extra += [activations[0] if activations[1] == "linear" else "linear"]
        training = stage.training
        part = self.one.room.activated(a.part, extra[0])
        target = quantities(self.one.room.replay(a, part=part, training=training, cotangent=cotangent))
        inputs = {name: x for name, x in a.inputs.items() if name in b.inputs}
        if order is not None:
            inputs = {name: x[..., order] for name, x in inputs.items()}
            target = {name: x[..., order] if x.shape[-1:] == order.shape else x for name, x in target.items()}
        skipped = set()
        if (wider := padded(a, b)) is not None:
            # The gradients of the two inputs have two sizes.
            inputs, skipped = {"input": wider}, {"gradient of the input"}
        # Not of what one of them has not, or does not train, which is told otherwise.
        shared = a.part.trainable & b.part.trainable
        skipped |= {f"gradient of {name}" for name in a.part.arrays if name not in shared} | {"batches_tracked"}
        units = {name: unit for name in target if (unit := stage.unit(a, b, name)) is not None and name not in skipped}
        if order is not None:
            units = {name: u[..., order] if stage.by_one and u.shape[-1:] == order.shape else u for name, u in units.items()}
        trial = Trial(
            room=self.other.room,
            call=b,
            parts=self.other.owned(b),
            spare=a.part.arrays,
            inputs=inputs,
            target={name: target[name] for name in units},
            units=units,
            cotangent=cotangent if cotangent is None or order is None or a.part.kind == "dense" else cotangent[..., order],
            training=training,
            activation=extra[1],
        )
        own = b.output
        if extra[1] != "linear":
            own = self.other.room.replay(b, part=self.other.room.activated(b.part, extra[1]), training=training).output
        return trial, own

    def _before(self, a: Call, b: Call, before: Sequence[Pair], trial: Trial, apart: float) -> list[Cause]:
        """What is different between the layers before and this one."""
        names = self.one.name, self.other.name
        unit, want = trial.units["output"], trial.target["output"]
        if apart > VERDICT and (words := turned(a, b, names, not before)):
            own = b.output
            size = float(np.max(np.abs(own - want), initial=0)) if own.shape == want.shape else np.inf
            return [Cause(words, 1, size)]
        whole = apart > VERDICT and all(pair.one and pair.other for pair in before)
        for name, x in a.inputs.items():
            if name not in b.inputs or (found := between(before, (x, b.inputs[name]), names, whole)) is None:
                continue
            words, wrong, right = found
            got = {
                when: self._outputs(trial, {**trial.inputs, name: values})
                for when, values in (("before", wrong), ("after", right))
            }
            return confirmed(words, got, want, unit)
        return []

    def _outputs(self, trial: Trial, inputs: Mapping[str, Array]) -> Array:
        output: Array = replace(trial, inputs=inputs, cotangent=None).run()["output"]
        return output

    def _joined(self, stage: _Stage, pair: Pair, sound: bool) -> Row:
        """One layer of a model that is several of the other: compared as a whole, with nothing to put in its place."""
        one, other = ([call.output for call in calls] for calls in pair)
        targets, gots = ([outputs[-1], *_concatenated(outputs)] for outputs in (one, other))
        last = (pair.one if stage.by_one else pair.other)[-1]
        unit = np.max(stage.units.outputs[last.key])
        units = min(off(want, got, unit) for want in targets for got in gots)
        a, b = ("+".join(call.part.name for call in calls) for calls in pair)
        row = Row(a=a, b=b, kind=pair.one[0].part.kind, units=units)
        return row if units <= VERDICT else replace(row, verdict="parts" if sound else "follows")

    def _with_step(self, stage: _Stage, pair: Pair, row: Row) -> Row:
        """A row with what a step of training adds to it."""
        if not pair.single or not stage.has(pair) or row.verdict == "unknown":
            return row
        a, b = stage.at(pair)
        if a.gradient is None and not getattr(a.part.settings, "state", ()):
            return row
        trial, _ = self._trial(stage, a, b, a.gradient)
        if worst(trial.distances(), trial.target) > VERDICT:
            trial = _conditioned(trial, a)
        far = trial.distances()
        states = {name: value for name, value in far.items() if name in trial.target and name in a.part.arrays}
        rest = {name: value for name, value in far.items() if name not in states}
        row = replace(row, training=worst(rest, trial.target), statistics=worst(states, trial.target))
        causes = list(row.causes)
        if worst(far, trial.target) > VERDICT:
            known = next((cause.suspect for cause in row.causes if cause.suspect), None)
            known = None if known is None else replace(known, training=None)
            found = trial.causes(self._suspects(a, b), known)
            causes += [replace(cause, words=f"in training, {cause.words}") for cause in found]
            row = replace(row, verdict="parts")
        for name in _frozen(a.part, b.part):
            side = self.other if name in a.part.trainable else self.one
            causes.append(Cause(f"{name.replace('_', ' ')} is not trained in {side.name}", 1, np.inf))
            row = replace(row, verdict="parts")
        return replace(row, causes=causes)

    def _output(self, stage: _Stage, pairs: Sequence[Pair], rows: Sequence[Row]) -> Row:
        """The output of the models, as a row of its own."""
        one, other = stage.one.output, stage.other.output
        layouts = [x for x in _layouts(one) if x.shape == other.shape]
        unit = np.max(stage.units.output)
        units = min((off(x, other, unit) for x in layouts), default=np.inf)
        row = Row(a="output", b="output", kind="", units=units)
        if units <= VERDICT:
            return row
        names = self.one.name, self.other.name
        # Arranged as the layers before arrange theirs.
        last = next((pair for pair in reversed(pairs) if pair.single), ((), ()))
        taken = [canonical(x, call.part) for x, (call,) in zip((one, other), last, strict=True)] if all(last) else [one, other]
        if found := between(pairs, (taken[0], taken[1]), names, True):
            words, wrong, right = found
            causes = confirmed(words, {"before": wrong, "after": right}, right, unit)
            return replace(row, verdict="parts", causes=causes)
        sound = all(each.agrees for each in rows)
        return replace(row, verdict="parts before" if sound else "follows")


def _conditioned(trial: Trial, a: Call) -> Trial:
    """The trial with units that count the layer's own input: what one roundoff there changes.

    Where a normalization divides by a spread that is all rounding, that is much more than rounding the weights changes.
    """
    if precision(a.dtype) < precision(trial.call.dtype):
        return trial
    random, units = np.random.default_rng(0), dict(trial.units)
    try:
        exact = trial.run()
        for _ in range(DRAWS):
            moved = {
                name: perturbed(np.asarray(x, np.float64), a.dtype, random) if x.dtype.kind == "f" else x
                for name, x in trial.inputs.items()
            }
            for name, values in replace(trial, inputs=moved).run().items():
                if name in units and units[name].ndim == values.ndim:
                    axes = tuple(size for size, wide in enumerate(units[name].shape) if wide == 1)
                    units[name] = np.fmax(
                        units[name], np.max(np.abs(values - exact[name]), axis=axes, keepdims=True, initial=0)
                    )
    except Exception:  # whatever a framework raises where shapes do not fit, which is told otherwise
        return trial
    return replace(trial, units=units)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _frozen(one: Part, other: Part) -> list[str]:
    """The arrays that only one of two models trains."""
    return sorted(name for name in one.trainable ^ other.trainable if one.variables.get(name) and other.variables.get(name))


def _layouts(values: Array) -> list[Array]:
    """An output as it is, and with its channel moved to the other place."""
    return [values, np.moveaxis(values, 1, -1), np.moveaxis(values, -1, 1)] if values.ndim > 2 else [values]


def _concatenated(outputs: Sequence[Array]) -> list[Array]:
    """The last two outputs, of two directions, side by side, the second one in either order of time."""
    if len(outputs) % 2 or outputs[-2].shape[:-1] != outputs[-1].shape[:-1]:
        return []
    first, second = outputs[-2:]
    return [
        np.concatenate(each, -1) for each in ([first, second], [first, second[:, ::-1]] if first.ndim > 2 else [first, second])
    ]
