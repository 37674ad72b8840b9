"""What is worth knowing after a transfer."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from .matching import Pairs, training_differences

Array = NDArray[Any]


def training_notes(pairs: Pairs) -> list[str]:
    notes = []
    training: dict[str, list[str]] = defaultdict(list)
    for a, b in pairs:
        for difference in training_differences(a, b):
            training[difference].append(a.name)
    notes += [f"training will differ in {what}: {some(names)}" for what, names in training.items()]
    # The second bias that is none in Keras is nothing to learn there.
    frozen = [b.name for a, b in pairs if (a.trainable ^ b.trainable) - {"recurrent_bias"}]
    if frozen:
        notes.append(f"what is trainable differs: {some(frozen)}")
    twice = [a.name for a, b in pairs if [p.variables.get("recurrent_bias") for p in (a, b)].count(()) == 1]
    if twice:
        notes.append(f"torch has two biases where Keras has their sum, and trains both: {some(twice)}")
    wider = [b.name for a, b in pairs if any(array.dtype != b.arrays[name].dtype for name, array in a.arrays.items())]
    if wider:
        notes.append(f"arrays of fewer digits became wider ones: {some(wider)}")
    for side, position in (("source", 0), ("target", 1)):
        only = _ties(pairs, position) - _ties(pairs, 1 - position)
        notes += [f"{' and '.join(names)} are tied in the {side} only: training will part them" for names in sorted(only)]
    return [*notes, "the optimizer's state was not moved; transfer_optimizer moves that of SGD and Adam"]


def some(names: Sequence[str]) -> str:
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
