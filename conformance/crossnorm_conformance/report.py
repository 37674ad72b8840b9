"""The report: the matrix method x implementation x question with the worst rounding units, counts, versions and the seed."""

import json
import math
import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import crossnorm

from .cases import axes_of
from .compare import FAIL, KNOWN, PASS, UNSUPPORTED, Check
from .implementations import load
from .oracle import QUANTITIES
from .plan import Plan

QUESTIONS = ("outputs", "gradients", "running_statistics", "agreement", "errors")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found. ``complaints``: register entries that no check bears out any more."""

    plan: Plan
    checks: tuple[Check, ...]
    complaints: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """No failing check, no stale register entry, and no implementation of which nothing was compared."""
        return not self.complaints and not self.idle() and all(check.verdict != FAIL for check in self.checks)

    def idle(self) -> list[str]:
        """The implementations and devices on which nothing was compared: a run that looked at nothing has shown nothing."""
        busy = {(c.implementation, c.device) for c in self.checks if c.question in QUANTITIES and c.verdict != UNSUPPORTED}
        able = [name for name in self.plan.implementations if set(self.plan.methods) & set(load(name).methods())]
        wanted = [(name, device) for name in able or self.plan.implementations for device in self.plan.devices]
        return [f"{name} on {device}: nothing was compared" for name, device in wanted if (name, device) not in busy]

    def versions(self) -> dict[str, str]:
        """What was installed where the run took place."""
        found = {"python": platform.python_version(), "numpy": np.__version__, "crossnorm": crossnorm.__version__}
        for name in self.plan.implementations:
            found |= load(name).versions()
        return found

    def counts(self) -> dict[str, int]:
        """How many checks had each verdict."""
        counted = Counter(check.verdict for check in self.checks)
        return {verdict: counted[verdict] for verdict in (PASS, KNOWN, UNSUPPORTED, FAIL)}

    def cells(self) -> dict[tuple[str, str], dict[str, list[Check]]]:
        """The checks of each (method, implementation), by question. An agreement stands in the rows of both."""
        cells: dict[tuple[str, str], dict[str, list[Check]]] = {}
        for check in self.checks:
            for implementation in check.implementation.split(" = "):
                row = cells.setdefault((check.method, implementation), {})
                row.setdefault(check.question, []).append(check)
        return {key: cells[key] for key in sorted(cells, key=self._order)}

    def axis_counts(self) -> dict[str, dict[str, Counter[str]]]:
        """For each method and axis, how many checks (unsupported ones aside) met each value: nothing drops out unseen."""
        ids = {case.id: case for case in self.plan.cases()}
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

    def write_json(self, path: str | Path) -> None:
        """Everything, for machines."""
        document: dict[str, Any] = {
            "versions": self.versions(),
            "seed": self.plan.seed,
            "devices": self.plan.devices,
            "counts": self.counts(),
            "complaints": self.complaints,
            "checks": [check.to_dict() | {"units": _number(check.units)} for check in self.checks],
        }
        Path(path).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")

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
        for device in self.plan.devices:
            console.print(self._next_to_each_other(device))
            console.print(self._matrix(device))
        console.print(
            "A cell: the worst error in rounding units; *n known deviations (see the native's register), !n failures.\n"
            "More than 32 units is a failure, for a parameter's gradient that sums n terms more than max(32, sqrt(n)).\n"
            "agreement: the framework's layer against its counterpart in the other framework, directly."
        )
        versions = ", ".join(f"{name} {version}" for name, version in self.versions().items())
        console.print(f"{versions}; devices {', '.join(self.plan.devices)}; seed {self.plan.seed}")
        counts = self.counts()
        console.print(f"{len(self.checks)} checks: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
        for complaint in self.complaints:
            console.print(f"STALE {complaint}")
        for complaint in self.idle():
            console.print(f"NOTHING {complaint}")

    def _failures(self, console: Console, most: int = 20) -> None:
        failed = [check for check in self.checks if check.verdict == FAIL]
        for c in failed[:most]:
            console.print(
                f"FAIL {c.implementation} [{c.execution}, {c.device}] {c.case} {c.quantity} step {c.step}: {c.reason}"
            )
        if len(failed) > most:
            console.print(f"... and {len(failed) - most} more failing checks")

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
            cells = [_cell([c for c in questions.get(q, []) if c.device in (device, "")]) for q in QUESTIONS]
            table.add_row(name if name != method else "", implementation, *cells)
            method = name
        return table

    def _next_to_each_other(self, device: str) -> Table:
        """Each quantity's worst units, one column per implementation: the natives next to ours."""
        table = Table(title=f"the same by quantity, on {device}", title_justify="left", title_style="bold")
        table.add_column("method", no_wrap=True)
        table.add_column("quantity", no_wrap=True)
        for name in self.plan.implementations:
            table.add_column(name, justify="right")
        worst: dict[tuple[str, str], dict[str, float]] = {}
        for check in self.checks:
            if check.units is not None and check.device == device and check.question in QUANTITIES:
                row = worst.setdefault((check.method, check.quantity), {})
                row[check.implementation] = max(row.get(check.implementation, 0.0), check.units)
        order = [(m, q) for m in self.plan.methods for names in QUANTITIES.values() for q in names if (m, q) in worst]
        method = ""
        for name, quantity in order:
            if method and name != method:
                table.add_section()
            row = worst[name, quantity]
            cells = [_round(row[i]) if i in row else "" for i in self.plan.implementations]
            table.add_row(name if name != method else "", quantity, *cells)
            method = name
        return table

    def _order(self, key: tuple[str, str]) -> tuple[int, int]:
        return self.plan.methods.index(key[0]), self.plan.implementations.index(key[1])


def _number(units: float | None) -> float | str | None:
    """JSON has no infinity."""
    return "inf" if units is not None and math.isinf(units) else units


def _round(units: float) -> str:
    return f"{units:.1f}" if units < 100 else f"{units:.0e}".replace("e+0", "e").replace("e+", "e")


def _cell(checks: list[Check]) -> str:
    if not checks:
        return ""
    compared = [check for check in checks if check.verdict != UNSUPPORTED]
    if not compared:
        return "no device" if all("no device" in check.reason for check in checks) else "unsupported"
    units = [check.units for check in compared if check.units is not None]
    counts = Counter(check.verdict for check in compared)
    text = f"{_round(max(units))}" if units else "ok" if counts[PASS] else ""
    known = f" *{counts[KNOWN]}" if counts[KNOWN] else ""
    failed = f" !{counts[FAIL]}" if counts[FAIL] else ""
    return (text + known + failed).strip()
