"""All weights of a model into another model, of another framework or the same, and the proof that the two compute the same."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from crossnorm.rounding import VERDICT

from ._matching import Pairs

Array = NDArray[Any]

# Fewer bytes are copied before a bar could be drawn.
_LARGE = 200_000_000


@dataclass(frozen=True)
class Row:
    """One pair of layers in one call: names, and the largest error of the target's output in rounding units of the model."""

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
