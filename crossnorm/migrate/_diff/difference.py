"""What `crossnorm.migrate.diff` found: a sentence, a table, a page."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table

from crossnorm.rounding import VERDICT

from .causes import Cause
from .pairing import Pair


@dataclass(frozen=True, kw_only=True)
class Row:
    """A pair of layers.

    Attributes:
        a, b: their names; empty where the other model has no such layer.
        kind: of the layer.
        units: how far the outputs are apart as the models run, in rounding units.
        alone: the same of the second layer alone, on the input of the first one; NaN where it could not be run alone.
        training: the same of outputs and gradients in training; NaN where there is nothing to compare.
        statistics: the same of what a step of training leaves behind.
        verdict: ``"agrees"``; ``"parts"``: here is a difference; ``"parts before"``: it lies between the layers before and this
            one; ``"follows"``: of what lies before; ``"unpaired"``; ``"unknown"``: a layer that could not be compared, of
            which only what it does to the layers behind it can be told.
        causes: why, each confirmed by substitution.
    """

    a: str
    b: str
    kind: str
    units: float
    alone: float = math.nan
    training: float = math.nan
    statistics: float = math.nan
    verdict: str = "agrees"
    causes: Sequence[Cause] = ()

    @classmethod
    def alone_in(cls, pair: Pair) -> "Row":
        """The row of a layer that the other model has not."""
        a, b = ("+".join(call.part.name for call in calls) for calls in pair)
        kind = (pair.one or pair.other)[0].part.kind
        return cls(a=a, b=b, kind=kind, units=math.nan, verdict="unknown" if kind == "unknown" else "unpaired")

    @property
    def name(self) -> str:
        """What the report calls the pair: one name where both models use it."""
        return self.a if self.a == self.b or not self.b else f"{self.a}/{self.b}" if self.a else self.b

    @property
    def agrees(self) -> bool:
        return self.verdict in ("agrees", "unknown")

    def __str__(self) -> str:
        if self.causes:
            return f"{self.name}: {'; '.join(map(str, self.causes))}"
        return f"{self.name}: {self.verdict}"


_TITLES = ("kind", "output", "alone", "training", "statistics", "verdict", "cause")
_LEGEND = (
    "Numbers are in rounding units: what rounding the weights and the inputs once changes; more than "
    f"{VERDICT} is a difference. Alone: the second layer on the input of the first."
)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The result of `crossnorm.migrate.diff`: true if the models part.

    Attributes:
        rows: one for each pair of layers in the order of execution, and one for the output of the models.
        notes: what could not be compared, or had to be guessed.
        names: of the models.
    """

    rows: Sequence[Row]
    notes: Sequence[str] = ()
    names: tuple[str, str] = ("a", "b")

    def __bool__(self) -> bool:
        return any(not row.agrees for row in self.rows)

    @property
    def culprits(self) -> list[Row]:
        """The rows where something is different, and does not only follow from what lies before."""
        return [row for row in self.rows if row.verdict in ("parts", "parts before")]

    @property
    def first(self) -> Row | None:
        """The first of them; else the first layer that only one model has."""
        others = [row for row in self.rows if not row.agrees]
        return next(iter([*self.culprits, *others]), None)

    def __str__(self) -> str:
        one, other = self.names
        if (row := self.first) is None:
            return f"{one} and {other} agree: {len(self.rows) - 1} layers, within {VERDICT} rounding units"
        if row.causes:
            sentence = f"{one} and {other} part: {row}"
        elif row.verdict == "unpaired":
            sentence = f"{one} and {other} part: {self._unpaired(row)}"
        elif row.verdict == "parts before":
            sentence = f"{one} and {other} part between {self._before(row)} and {row.name}, in what is no known layer"
        else:
            when = "" if max(row.units, row.alone) > VERDICT else ", in training"
            sentence = f"{one} and {other} part in {row.name}{when}, for no cause that could be confirmed"
        more = len(self.culprits) - 1
        return sentence + (f"; and {more} more layer{'s' * (more > 1)}" if more > 0 else "")

    def _unpaired(self, row: Row) -> str:
        """A name that stands alone in both models is of two kinds that cannot be compared."""
        alone = {bool(each.a): each for each in self.rows if each.name == row.name and not (each.a and each.b)}
        if len(alone) < 2:
            return f"{row.name} is in {self.names[0] if row.a else self.names[1]} only"
        mine, theirs = (_kind(alone[first]) for first in (True, False))
        return f"{row.name} is {mine} in {self.names[0]} and {theirs} in {self.names[1]}"

    def _before(self, row: Row) -> str:
        place = self.rows.index(row)
        return self.rows[place - 1].name if place else "the input"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; NaN and infinity are null."""
        rows = [
            {**asdict(row), "causes": [{"words": c.words, "share": c.share, "difference": c.difference} for c in row.causes]}
            for row in self.rows
        ]
        plain: dict[str, Any] = _finite(
            {"parts": bool(self), "summary": str(self), "models": list(self.names), "rows": rows, "notes": list(self.notes)}
        )
        return plain

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # A name that is cut says nothing: it goes on in the next line.
        table = Table(Column("layer", overflow="fold"), *_TITLES[:-1], padding=(0, 0, 0, 1))
        for row in self.rows:
            style = None if row.agrees else "dim" if row.verdict == "follows" else "bold"
            table.add_row(row.name, *_cells(row)[:-1], style=style)
        yield table
        yield _LEGEND
        # What a cause says is too long for a column.
        yield str(self)
        yield from (f"- {row}" for row in self.culprits if row is not self.first)
        yield from (f"- {note}" for note in self.notes)

    def to_html(self, path: str | Path) -> None:
        """Write the table as one page that needs nothing else."""
        cells = [
            (row.verdict.split()[0], "".join(f"<td>{escape(c)}</td>" for c in (row.name, *_cells(row)))) for row in self.rows
        ]
        rows = "".join(f'<tr class="{verdict}">{line}</tr>\n' for verdict, line in cells)
        titles = "".join(f"<th>{title}</th>" for title in ("layer", *_TITLES))
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        page = _PAGE.format(
            title=escape(f"{self.names[0]} against {self.names[1]}"),
            summary=escape(str(self)),
            titles=titles,
            rows=rows,
            legend=escape(_LEGEND),
            notes=notes,
        )
        Path(path).write_text(page, encoding="utf-8")


def _cells(row: Row) -> list[str]:
    numbers = [_shown(number) for number in (row.units, row.alone, row.training, row.statistics)]
    return [_kind(row), *numbers, row.verdict, "; ".join(map(str, row.causes))]


def _kind(row: Row) -> str:
    return row.kind.replace("_", " ")


def _shown(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.1f}" if number < 1000 else f"{number:.1e}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --bad: #c0392b; --quiet: #888; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }}
td:nth-child(n+3):nth-child(-n+6) {{ font-variant-numeric: tabular-nums; text-align: right; }}
.parts td, .unpaired td {{ color: var(--bad); font-weight: 600; }}
.follows td, p.legend {{ color: var(--quiet); }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
<table>
<thead><tr>{titles}</tr></thead>
<tbody>
{rows}</tbody>
</table>
<p class="legend">{legend}</p>
<ul>{notes}</ul>
</html>
"""
