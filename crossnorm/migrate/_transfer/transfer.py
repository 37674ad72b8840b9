"""All weights of a model into another model, of another framework or the same, and the report."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import track
from rich.table import Table

from crossnorm.errors import MigrationError
from crossnorm.rounding import VERDICT

from .matching import Pairs, match, refusal
from .notes import training_notes
from .proof import Row, prove
from .running import Model, agree_on_inputs, first_line

Array = NDArray[Any]


_LARGE = 200_000_000


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
        return max((row.units for row in self.rows if row.units == row.units), default=0.0)

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
    if not isinstance(mapping, Mapping | None):
        raise MigrationError(f"transfer: mapping={mapping!r} is no dictionary; give {{source name: target name}}")
    one, other = Model("source", source, inputs), Model("target", target, target_inputs)
    agree_on_inputs(one, other)
    pairs = match(one.executed(), other.executed(), mapping or {}, (skip,) if isinstance(skip, str) else tuple(skip))
    if problems := [*_roundings(pairs), *_conflicts(pairs)]:
        raise refusal(problems)
    if progress is None:
        progress = sum(array.nbytes for a, _ in pairs for array in a.arrays.values()) > _LARGE
    bar = Console(stderr=True, quiet=not progress)
    try:
        for a, b in track(pairs, "copying", console=bar):
            try:
                b.write(a.arrays)
            except RuntimeError as error:
                raise MigrationError(
                    f"transfer: the arrays of target {b.name} cannot be overwritten in place ({first_line(error)}); clone them"
                ) from error
        with bar.status("proving"):
            proof = prove(pairs, one, other)
    except BaseException:
        for _, part in pairs:
            with suppress(RuntimeError):  # what cannot be overwritten was not
                part.write(part.arrays)
        raise
    return Transfer(proof.pairs, proof.rows, [*proof.notes, *training_notes(pairs)])


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
