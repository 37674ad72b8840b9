"""The report: the matrix method x implementation x question with the worst rounding units, counts, versions and the seed."""

import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from io import StringIO
from pathlib import Path
from typing import Any, get_origin

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

import crossnorm
from crossnorm.spec import SPECS

from .case import Case
from .cases import axes_of
from .compare import FAIL, KNOWN, PASS, UNSUPPORTED, Check
from .implementations import SuiteError, is_built_in, load
from .oracle import QUANTITIES
from .plan import MOST_COMPILED, Plan, every_id
from .register import stale
from .snippet import snippet

QUESTIONS = ("outputs", "gradients", "running_statistics", "agreement", "errors")
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one run found, as a JSON document has it. ``complaints``: register entries that no check bears out any
    more; ``expected``: the implementations and devices of which something must have been compared; ``cases``: what each check's
    case is; ``places``: where implementations that do not come with the suite are found; ``complete``: nothing broke it off."""

    methods: tuple[str, ...]
    implementations: tuple[str, ...]
    devices: tuple[str, ...]
    seed: int
    full: bool
    shards: tuple[tuple[int, int], ...]
    versions: Mapping[str, str]
    expected: tuple[tuple[str, str], ...]
    absent: Mapping[str, str]
    places: Mapping[str, str]
    cases: Mapping[str, Mapping[str, Any]]
    checks: tuple[Check, ...]
    complaints: tuple[str, ...] = ()
    complete: bool = True
    format: int = field(default=_FORMAT)

    @classmethod
    def of(
        cls, plan: Plan, checks: Sequence[Check], complaints: Sequence[str], drawn: Sequence[Case] = (), complete: bool = True
    ) -> "Report":
        """The report of a plan's checks. ``drawn``: the cases that are not among the listed ones."""
        found = {"python": platform.python_version(), "numpy": np.__version__, "crossnorm": crossnorm.__version__}
        for name in plan.implementations:
            found |= load(name).versions()
        able = [name for name in plan.implementations if set(plan.methods) & set(load(name).methods())]
        met = {check.case for check in checks}
        return cls(
            methods=plan.methods,
            implementations=plan.implementations,
            devices=plan.devices,
            seed=plan.seed,
            full=plan.full,
            shards=(plan.shard,),
            versions=found,
            expected=tuple((name, device) for name in able or plan.implementations for device in plan.devices),
            absent=dict(plan.absent),
            places={name: p for name in plan.implementations if (p := getattr(load(name), "place", None))},
            cases={case.id: case.to_dict() for case in (*plan.cases(), *drawn) if case.id in met},
            checks=tuple(checks),
            complaints=tuple(complaints),
            complete=complete,
        )

    @classmethod
    def merged(cls, reports: Sequence["Report"]) -> "Report":
        """One report of the shards of a run.

        Raises:
            SuiteError: they were made with different seeds, versions or selections.
        """
        first = reports[0]
        for name in ("seed", "versions", "methods", "implementations", "devices", "full"):
            for other in reports[1:]:
                if getattr(first, name) != getattr(other, name):
                    raise SuiteError(
                        f"merge: the reports do not belong together: {name} is {getattr(first, name)!r} in one and "
                        f"{getattr(other, name)!r} in another; merge the shards of one run"
                    )
        given = [shard for report in reports for shard in report.shards]
        if len(set(given)) < len(given):
            raise SuiteError(f"merge: a shard was given twice ({_names(sorted(given))}); give each report once")
        checks = {check.key: check for report in reports for check in report.checks}
        shards = tuple(sorted({shard for report in reports for shard in report.shards}))
        if len({count for _, count in shards}) > 1:
            raise SuiteError(f"merge: shards of different numbers of parts ({_names(shards)}); merge the shards of one run")
        return replace(
            first,
            shards=shards,
            cases={id: case for report in reports for id, case in report.cases.items()},
            checks=tuple(checks.values()),
            complaints=tuple(stale(first.implementations, list(checks.values()), every_id())),
            complete=all(report.complete for report in reports),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, for machines."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"counts": self.counts(), "passed": self.passed, "checks": [check.to_dict() for check in self.checks]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Report":
        """The inverse of ``to_dict``."""
        if values.get("format") != _FORMAT:
            raise SuiteError(f"report: format {values.get('format')!r} is not {_FORMAT}; it was written by another crossnorm")
        lists = {f.name: _tuple(values[f.name]) for f in fields(cls) if f.name != "checks"}
        for f in fields(cls):
            wanted = get_origin(f.type) or f.type
            if f.name in lists and not isinstance(lists[f.name], wanted):  # type: ignore[arg-type]
                raise TypeError(f"{f.name} is {lists[f.name]!r}")
        return cls(**{**lists, "checks": tuple(map(Check.from_dict, values["checks"]))})

    @classmethod
    def read(cls, path: Path) -> "Report":
        """The report in a file that ``--json`` wrote.

        Raises:
            SuiteError: there is no such file, or it holds something else.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise SuiteError(f"{path}: cannot be read ({error.strerror}); give a file that --json wrote") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SuiteError(f"{path}: is no report ({type(error).__name__}: {error}); give a file that --json wrote") from None

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), allow_nan=False), encoding="utf-8")

    @property
    def passed(self) -> bool:
        """No failing check, no complaint, nothing left out."""
        return not self.complaints and not self.idle() and not self.lacks() and not self.failures()

    def failures(self) -> list[Check]:
        """The failing checks, the simplest cases first."""

        def simplicity(check: Check) -> tuple[Any, ...]:
            case = self.cases.get(check.case)
            if case is None:
                return (0,)
            return (1, case["regime"] != "plain", case["dtype"] != "float32", math.prod(case["shape"]), check.step)

        return sorted((check for check in self.checks if check.verdict == FAIL), key=simplicity)

    def idle(self) -> list[str]:
        """The implementations and devices of which nothing was compared: a run that looked at nothing has shown nothing. One
        of several shards may be small."""
        if self.shards != ((1, 1),) and self.lacks():
            return []
        busy = {(c.implementation, c.device) for c in self.checks if c.question in QUANTITIES and c.verdict != UNSUPPORTED}
        return [f"{name} on {device}: nothing was compared" for name, device in self.expected if (name, device) not in busy]

    def lacks(self) -> list[str]:
        """What is missing of a whole run that was split, or that broke off. A single shard stands for itself."""
        count = self.shards[0][1]
        missing = (
            tuple((i, count) for i in range(1, count + 1) if (i, count) not in self.shards) if len(self.shards) > 1 else ()
        )
        broken = (
            [] if self.complete else ["the run broke off, and this is only a part of it: a process crashed, or was stopped"]
        )
        return broken + ([f"shard {_names(missing)} is missing"] if missing else [])

    def snippet(self, check: Check) -> str:
        """A few lines of Python that make a check again."""
        places = {name: self.places.get(name, name if is_built_in(name) else None) for name in self.implementations}
        found = [places.get(name) for name in check.implementation.split(" = ")]
        place = " = ".join(map(str, found)) if all(found) else None
        return snippet(check, self.cases.get(check.case), self.seed, place)

    def counts(self) -> dict[str, int]:
        """How many checks had each verdict."""
        counted = Counter(check.verdict for check in self.checks)
        return {verdict: counted[verdict] for verdict in (PASS, KNOWN, UNSUPPORTED, FAIL)}

    def cells(self) -> dict[tuple[str, str], dict[str, list[Check]]]:
        """The checks of each (method, implementation), by question. An agreement stands in the rows of both."""
        cells: dict[tuple[str, str], dict[str, list[Check]]] = {}
        for check in self.checks:
            names = dict.fromkeys(check.implementation.split(" = ")) if check.question in QUESTIONS else ()
            for implementation in names:
                row = cells.setdefault((check.method, implementation), {})
                row.setdefault(check.question, []).append(check)
        return {key: cells[key] for key in sorted(cells, key=self._order)}

    def axis_counts(self) -> dict[str, dict[str, Counter[str]]]:
        """For each method and axis, how many checks (unsupported ones aside) met each value: nothing drops out unseen."""
        ids = {id: Case.from_dict(case) for id, case in self.cases.items()}
        counts: dict[str, dict[str, Counter[str]]] = {}
        for check in self.checks:
            case = ids.get(check.case)
            if case is None or check.verdict == UNSUPPORTED:
                continue
            per_axis = counts.setdefault(check.method, {axis: Counter() for axis in axes_of(check.method).values()})
            for axis in per_axis:
                if axis == "execution":
                    values: Iterable[str] = check.execution.split("/")
                elif axis == "shape":
                    values = ("x".join(map(str, case.shape)),)
                else:
                    values = (str(getattr(case, axis)),)
                per_axis[axis].update(values)
        return counts

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = 100) -> str:
        """The report as plain text."""
        console = Console(file=StringIO(), width=max(width, 100), no_color=True, highlight=False)
        self.render(console)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return text

    def render(self, console: Console) -> None:
        """Print the failures, the matrix, the counts, and what the run was made of."""
        console.print("checks per axis value", style="bold")
        for method, axes in self.axis_counts().items():
            for axis, counts in axes.items():
                console.print(f"  {method} {axis}: " + ", ".join(f"{value} {count}" for value, count in sorted(counts.items())))
        self._failures(console)
        for device in self.devices:
            console.print(self._next_to_each_other(device))
            console.print(self._matrix(device))
        console.print(
            "A cell: the worst error in rounding units; *n known deviations (see the native's register), !n failures.\n"
            "More than 32 units is a failure, for a parameter's gradient that sums n terms more than max(32, sqrt(n)).\n"
            "agreement: the framework's layer against its counterpart in the other framework, directly."
        )
        self._divergences(console)
        if self.full:
            most = ", ".join(f"{name} {count}" for name, count in MOST_COMPILED.items())
            console.print(
                f"Compiled executions take the most time: of each method an implementation runs at most {most} cases."
            )
        for name, reason in self.absent.items():
            console.print(f"not run: {name} ({reason})", markup=False)
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        part = "" if self.shards == ((1, 1),) else f"; shard {_names(self.shards)}"
        console.print(f"{versions}; devices {', '.join(self.devices)}; seed {self.seed}{part}")
        counts = self.counts()
        console.print(f"{len(self.checks)} checks: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
        for complaint in self.complaints:
            console.print(f"STALE {complaint}", markup=False)
        for complaint in self.idle():
            console.print(f"NOTHING {complaint}", markup=False)
        for complaint in self.lacks():
            console.print(f"INCOMPLETE {complaint}", markup=False)

    def _failures(self, console: Console, most: int = 20) -> None:
        failed = self.failures()
        for c in failed[:most]:
            console.print(
                f"FAIL {c.implementation} [{c.execution}, {c.device}] {c.case} {c.quantity} step {c.step}: {c.reason}",
                style="red",
                markup=False,
            )
        if len(failed) > most:
            console.print(f"... and {len(failed) - most} more failing checks")
        if failed:
            for line in self.where():
                console.print(f"WHERE {line}", markup=False)
            console.print("the first of them again:", style="bold")
            console.print(self.snippet(failed[0]), markup=False)

    def _divergences(self, console: Console) -> None:
        rows = [check for check in self.checks if check.question == "divergences"]
        if rows:
            counts = Counter(check.verdict for check in rows)
            console.print(
                f"divergences between peers: {counts[KNOWN]} are as the catalogue says, {counts[FAIL]} have changed, "
                f"{counts[UNSUPPORTED]} lack a peer; crossnorm_conformance.divergences has each in a sentence"
            )

    def where(self) -> list[str]:
        """For each failing quantity the values of the axes outside of which it never fails: what the fault hangs on."""
        found: dict[tuple[str, str], list[Check]] = {}
        for check in self.checks:
            if check.case in self.cases and check.verdict != UNSUPPORTED and check.question != "agreement":
                found.setdefault((check.implementation, check.quantity), []).append(check)
        lines = []
        for (implementation, quantity), checks in found.items():
            failed = [check for check in checks if check.verdict == FAIL]
            if not failed:
                continue
            axes = []
            for axis in ("dtype", "layer", "layout", "regime", "mode", "execution", "step", "variant"):
                values = {str(self._axis(check, axis)) for check in checks}
                guilty = {str(self._axis(check, axis)) for check in failed}
                spared = values - guilty
                if spared:
                    few, word = (guilty, "only") if len(guilty) <= len(spared) else (spared, "never")
                    axes.append(f"{word} with {axis} {', '.join(sorted(few))}")
            where = "; ".join(axes) or "everywhere"
            lines.append(f"{implementation} {quantity}: {len(failed)} of {len(checks)} checks fail: {where}")
        return lines

    def _axis(self, check: Check, axis: str) -> Any:
        return getattr(check, axis) if axis in ("execution", "step") else self.cases[check.case][axis]

    def _matrix(self, device: str) -> Table:
        table = Table(title=f"worst rounding units on {device}", title_justify="left", title_style="bold")
        table.add_column("method", no_wrap=True)
        table.add_column("implementation", no_wrap=True)
        for question in QUESTIONS:
            table.add_column(question.replace("_", " "), justify="right")
        method = ""
        for (name, implementation), questions in self.cells().items():
            if method and name != method:
                table.add_section()
            cells = [cell_text([c for c in questions.get(q, []) if device in c.device.split("/")]) for q in QUESTIONS]
            table.add_row(name if name != method else "", implementation, *cells)
            method = name
        return table

    def _next_to_each_other(self, device: str) -> Table:
        """Each quantity's worst units, one column per implementation: the natives next to ours."""
        table = Table(title=f"the same by quantity, on {device}", title_justify="left", title_style="bold")
        table.add_column("method", no_wrap=True)
        table.add_column("quantity", no_wrap=True)
        for name in self.implementations:
            table.add_column(name, justify="right")
        worst: dict[tuple[str, str], dict[str, float]] = {}
        for check in self.checks:
            if check.units is not None and check.device == device and check.question in QUANTITIES:
                row = worst.setdefault((check.method, check.quantity), {})
                row[check.implementation] = max(row.get(check.implementation, 0.0), check.units)
        order = [(m, q) for m in self.methods for names in QUANTITIES.values() for q in names if (m, q) in worst]
        method = ""
        for name, quantity in order:
            if method and name != method:
                table.add_section()
            row = worst[name, quantity]
            cells = [rounded(row[i]) if i in row else "" for i in self.implementations]
            table.add_row(name if name != method else "", quantity, *cells)
            method = name
        return table

    def _order(self, key: tuple[str, str]) -> tuple[int, int]:
        return list(SPECS).index(key[0]), self.implementations.index(key[1])


def _tuple(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(map(_tuple, value)) if isinstance(value, list) else value


def _names(shards: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{number}/{count}" for number, count in shards)


def rounded(units: float) -> str:
    return f"{units:.1f}" if units < 100 else f"{units:.0e}".replace("e+0", "e").replace("e+", "e")


def cell_text(checks: list[Check]) -> Text:
    """The worst units and what is registered or fails, in the colour of the worst verdict."""
    if not checks:
        return Text("")
    compared = [check for check in checks if check.verdict != UNSUPPORTED]
    if not compared:
        return Text("no device" if all("no device" in check.reason for check in checks) else "unsupported", style="dim")
    units = [check.units for check in compared if check.units is not None]
    counts = Counter(check.verdict for check in compared)
    text = f"{rounded(max(units))}" if units else "ok" if counts[PASS] else ""
    known = f" *{counts[KNOWN]}" if counts[KNOWN] else ""
    failed = f" !{counts[FAIL]}" if counts[FAIL] else ""
    return Text((text + known + failed).strip(), style="bold red" if failed else "yellow" if known else "green")
