"""Which suspect it is: each is put right in turn, the layer runs again, and what is left of the difference is measured."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm.errors import Unsupported
from crossnorm.rounding import VERDICT, bound, precision, unit_roundoff

from .._parts import Part
from .._trace import Call, Replay
from .suspects import Suspect, needed

Array = NDArray[Any]


@dataclass(frozen=True)
class Cause:
    """What is different, and which share of the difference between the two layers it explains: 1 is all of it."""

    words: str
    share: float
    difference: float
    suspect: Suspect | None = field(repr=False, default=None)

    def __str__(self) -> str:
        if self.share == 0:
            return f"{self.words}, and something else"
        share = "all" if self.share == 1 else f"{min(self.share, 0.99):.0%}"
        what = f"the {self.difference:.2g} difference" if np.isfinite(self.difference) else "the difference"
        # "eps 0.001 against 1e-05" is a subject, "the kernel is flipped" a sentence.
        which = " " if " against " in self.words or self.words.endswith(",") else ", which "
        several = self.words.count(" against ") > 1
        return f"{self.words}{which}{'together explain' if several else 'explains'} {share} of {what}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One layer alone, on the inputs of the other model's layer, against what that one gave.

    Attributes:
        room: the folder of its framework.
        call: which call of it is repeated.
        parts: all parts of the layer, and ``spare`` the arrays of the other layer.
        inputs, cotangent, training: what it gets.
        target: what the other layer gave, by the names of the quantities.
        units: of the target, by the same names.
        activation: what has to follow, since it is in the other layer.
    """

    room: Any
    call: Call
    parts: Sequence[Part]
    spare: Mapping[str, Array]
    inputs: Mapping[str, Array]
    target: Mapping[str, Array]
    units: Mapping[str, Array]
    cotangent: Array | None = None
    training: bool | None = None
    activation: str = "linear"

    def run(self, suspect: Suspect | None = None) -> dict[str, Array]:
        """What the layer gives, as it is or with one change."""
        call, part, training, inputs = self.call, self.call.part, self.training, self.inputs
        changes: Mapping[tuple[int, str], Array] = {}
        if suspect is not None:
            training = training if suspect.training is None else suspect.training
            changes = suspect.arrays
            if suspect.arguments is not None:
                call = replace(call, args=suspect.arguments.args, kwargs=suspect.arguments.kwargs)
            if suspect.fields or suspect.settings is not None or suspect.dtype:
                changes = {}
                try:
                    part = self._rebuilt(suspect)
                except Unsupported:
                    if not isinstance(suspect.fields.get("padding"), tuple):
                        raise
                    # Amounts that this framework's layer cannot add itself are added before it.
                    around = [(0, 0), *suspect.fields["padding"], (0, 0)]
                    inputs = {name: np.pad(x, around) for name, x in inputs.items()}
                    part = self._rebuilt(replace(suspect, fields={**suspect.fields, "padding": ()}))
        if self.activation != "linear":
            part = self.room.activated(part, self.activation)
        with written(self.parts, changes):
            return quantities(self.room.replay(call, inputs, part=part, training=training, cotangent=self.cotangent))

    def _rebuilt(self, suspect: Suspect) -> Part:
        part = self.call.part
        settings = part.settings if suspect.settings is None else suspect.settings
        settings = replace(settings, **suspect.fields)
        last = len(self.parts) - 1
        own = {**part.arrays, **{name: array for (number, name), array in suspect.arrays.items() if number == last}}
        arrays = needed(settings, own, self.spare)
        dtypes = {name: suspect.dtype or part.arrays.get(name, array).dtype for name, array in arrays.items()}
        cast = {
            name: array if array.dtype.kind in "iu" else np.asarray(array).astype(dtypes[name])
            for name, array in arrays.items()
        }
        return self.room.rebuilt(part, settings, cast, suspect.dtype)

    def distances(self, suspect: Suspect | None = None) -> dict[str, float]:
        """How far each quantity is from the target, in units; infinite where the layer cannot run."""
        try:
            got = self.run(suspect)
        except Exception:  # whatever a framework raises where shapes do not fit
            return dict.fromkeys(self.target, np.inf)
        return {name: off(values, got.get(name), self._unit(name, suspect)) for name, values in self.target.items()}

    def _unit(self, name: str, suspect: Suspect | None) -> Array:
        """A layer that is put into a coarser dtype rounds as that one does."""
        if suspect is None or not suspect.dtype or precision(suspect.dtype) >= precision(self.call.dtype):
            return self.units[name]
        size = np.max(np.abs(self.target[name]), initial=0)
        return np.asarray(self.units[name] + unit_roundoff(suspect.dtype) * size)

    def difference(self) -> float:
        """The largest difference of the output, or of what else is compared if that agrees, as a plain number."""
        try:
            got = self.run()
        except Exception:
            return np.inf
        far = self.distances()
        name = "output" if far.get("output", 0) > VERDICT else max(far, key=lambda each: far[each])
        if name not in got or got[name].shape != self.target[name].shape:
            return np.inf
        return float(np.max(np.abs(got[name] - self.target[name]), initial=0))

    def causes(self, suspects: Sequence[Suspect], known: Suspect | None = None) -> list[Cause]:
        """The suspects that explain the difference: one, if one explains all of it; else as many as it takes.

        ``known`` has been found before, and explains what it can without being named again.
        """
        before, size = self._left(known), self.difference()
        if before <= VERDICT:
            return []
        # What explains everything counts the same, whatever rounding is left: then the plainest is first.
        tried = sorted(
            ((max(self._left(_both(known, each)), VERDICT), number, each) for number, each in enumerate(suspects)),
            key=lambda each: each[:2],
        )
        found: Suspect | None = None
        rest = before
        for _, _, each in tried:
            after = self._left(_both(known, _both(found, each)))
            if after < 0.9 * rest:
                found, rest = _both(found, each), after
            if rest <= VERDICT:
                break
        if rest > VERDICT and len(suspects) > 1:
            # Where none changes anything alone, each may hide the others.
            needed = list(suspects)
            if self._left(_both(known, reduce(and_, needed))) <= VERDICT:
                for each in suspects:
                    others = [one for one in needed if one is not each]
                    if others and self._left(_both(known, reduce(and_, others))) <= VERDICT:
                        needed = others
                found, rest = reduce(and_, needed), 0.0
        if found is None:
            return []
        share = 1 if rest <= VERDICT else 1 - rest / before if np.isfinite(before) else 0
        return [Cause(found.words, share, size, found)]

    def _left(self, suspect: Suspect | None) -> float:
        return worst(self.distances(suspect), self.target)


def _both(one: Suspect | None, other: Suspect) -> Suspect:
    return other if one is None else one & other


def quantities(replay: Replay) -> dict[str, Array]:
    """All that a replay gave, by names for a reader."""
    return {
        "output": replay.output,
        **{f"gradient of the {name}": values for name, values in replay.input_gradients.items()},
        **{f"gradient of {name}": values for name, values in replay.gradients.items()},
        **replay.states,
    }


def off(want: Array, got: Array | None, unit: Array) -> float:
    """The largest error in units; a missing array, another shape, and NaN or infinity in one only are infinitely far."""
    if got is None or want.shape != got.shape:
        return np.inf
    if any(size not in (1, wide) for size, wide in zip(unit.shape[::-1], want.shape[::-1], strict=False)):
        unit = np.max(unit)  # of another layer's shape
    with np.errstate(invalid="ignore"):
        error = np.abs(np.asarray(got, np.float64) - want) / unit
    same = (want == got) | (np.isnan(want) & np.isnan(got))
    return float(np.max(np.where(same, 0, np.nan_to_num(error, nan=np.inf)), initial=0))


def allowed(name: str, target: Mapping[str, Array]) -> float:
    """The verdict's bound for a quantity: a parameter's gradient sums many terms."""
    output = target["output"]
    return bound(output.size // max(output.shape[-1], 1)) if name.startswith("gradient of ") else VERDICT


def worst(distances: Mapping[str, float], target: Mapping[str, Array]) -> float:
    """The largest distance, each in proportion to its bound."""
    return max((far * VERDICT / allowed(name, target) for name, far in distances.items()), default=0.0)


@contextmanager
def written(parts: Sequence[Part], changes: Mapping[tuple[int, str], Array]) -> Iterator[None]:
    """Other values in some arrays of a live layer."""
    numbers = {number for number, _ in changes}
    try:
        for number in numbers:
            own = parts[number].arrays
            parts[number].write(
                {name: np.asarray(x).astype(own[name].dtype) for (n, name), x in changes.items() if n == number}
            )
        yield
    finally:
        for number in numbers:
            parts[number].write({name: parts[number].arrays[name] for n, name in changes if n == number})
