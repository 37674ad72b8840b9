"""The report for a browser: one file that loads nothing.

The header and the matrix are plain HTML. Single checks are arrays in which every text stands once; the page's script makes the
page of a cell from them when it is opened. A cell is (device, method, question, implementation).
"""

import ast
import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from crossnorm import rounding
from crossnorm.spec import SPECS

from .compare import FAIL, KNOWN, PASS, UNSUPPORTED, Check
from .report import QUESTIONS, Report, cell_text, rounded
from .trend import Trend, told

Cell = tuple[str, str, str, str]

_VERDICTS = (PASS, KNOWN, FAIL)
_CHANGES = ("broken", "mended", "worse", "better")
# What stands above the matrix is short: the cells hold the rest.
_MOST_FAILING_CELLS = 3
_MOST_CHANGES = 10
# Enough to tell a number of 24 bits; the digits that a page need not show are a third of it.
_DIGITS = 10
_LEGEND = (1, 2, 4, 8, 16, 32, 100, 1e3, 1e4, 1e5)


def html(report: Report, trend: Trend | None) -> str:
    """One self-contained HTML document."""
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"units": rounded, "number": "{:,}".format}
    script = _template("report.js")
    page = environment.get_template("report.html").render(
        report=report,
        trend=trend,
        verdict=_verdict(report),
        matrices=_matrices(report),
        failing=_failing(report),
        divergences=list(_divergences(report)),
        changes=_changes(trend) if trend else {},
        legend=[(units, _heat(units, rounding.bound(1))) for units in _LEGEND],
        bound=rounding.bound(1),
        verdicts=(*_VERDICTS, UNSUPPORTED),
        most=_MOST_FAILING_CELLS,
        style=_template("report.css"),
        script=script,
        # Even if a text got past the escaping, a browser would run nothing but this very script, and load nothing.
        fingerprint=b64encode(sha256(script.encode()).digest()).decode(),
        data=_embedded(_data(report, trend)),
    )
    return _valid(page)


def _valid(text: str) -> str:
    """An exception may quote bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode()


def _template(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _verdict(report: Report) -> str:
    if report.passed:
        return "passed"
    missing = bool(report.idle() or report.lacks())
    if not report.failures() and not report.complaints:
        return "incomplete"
    return "failed, and incomplete" if missing else "failed"


def _cells(report: Report) -> dict[Cell, list[Check]]:
    """The checks of each cell. An agreement stands in the cells of both implementations."""
    cells: dict[Cell, list[Check]] = {}
    for check in report.checks:
        if check.question in QUESTIONS:
            for implementation in dict.fromkeys(check.implementation.split(" = ")):
                cells.setdefault((check.device, check.method, check.question, implementation), []).append(check)
    return cells


def _matrices(report: Report) -> list[dict[str, Any]]:
    """One for each device: rows method x question, columns the implementations."""
    cells = _cells(report)
    matrices = []
    for device in dict.fromkeys([*report.devices, *(device for device, *_ in cells)]):
        here = [cell for cell in cells if cell[0] == device]
        columns = [name for name in report.implementations if any(cell[3] == name for cell in here)]
        rows: dict[str, dict[str, list[dict[str, Any] | None]]] = {}
        for method in SPECS:
            for question in QUESTIONS:
                row = [(device, method, question, name) for name in columns]
                if any(cell in cells for cell in row):
                    rows.setdefault(method, {})[question] = [
                        _shown(cell, cells[cell]) if cell in cells else None for cell in row
                    ]
        if rows:
            matrices.append({"device": device, "columns": columns, "rows": rows})
    return matrices


def _shown(cell: Cell, checks: Sequence[Check]) -> dict[str, Any]:
    """What the matrix shows of a cell. ``heat`` is its place on the colour scale, None where nothing was compared."""
    verdicts = {check.verdict for check in checks}
    compared = [check for check in checks if check.verdict != UNSUPPORTED]
    kind = next(name for name in (FAIL, KNOWN, PASS, UNSUPPORTED) if name in verdicts)
    return {
        "link": _link(cell),
        "text": cell_text(list(checks)).plain,
        "kind": kind.split()[0],
        "heat": max((_heat_of(check) for check in compared), default=None),
    }


def _heat_of(check: Check) -> float:
    """An error of no known size is the largest, unless it is none."""
    if check.units is None or check.bound is None:
        return 0.0 if check.verdict == PASS else 1.0
    return _heat(check.units, check.bound)


def _heat(units: float, bound: float) -> float:
    """The place on the colour scale, logarithmic: 0 up to a 32nd of the bound, 1/2 at the bound, 0.7 right above it, 1 from a
    thousand times the bound on."""
    if units <= bound:
        return 0.5 * max(0.0, 1 + math.log(units / bound, 32)) if units else 0.0
    return 0.7 + 0.3 * min(1.0, math.log10(units / bound) / 3) if bound else 1.0


def _link(cell: Cell, check: Check | None = None) -> str:
    """The address of a cell's page, and of a check in it."""
    address = f"#cell={_path(cell)}"
    if check is None:
        return address
    return f"{address}&row={_path((check.case, check.implementation, check.execution, check.quantity, str(check.step)))}"


def _path(parts: Sequence[str]) -> str:
    return "/".join(quote(part, safe="", errors="replace") for part in parts)


def _link_of(check: Check) -> str:
    return _link((check.device, check.method, check.question, check.implementation.split(" = ")[0]), check)


def _excess(check: Check) -> float:
    """How far a check is from its bound; no number is farthest."""
    return math.inf if check.units is None or not check.bound else check.units / check.bound


def _failing(report: Report) -> list[dict[str, Any]]:
    """The cells with failures, the worst first."""
    found = []
    for cell, checks in _cells(report).items():
        failed = [check for check in checks if check.verdict == FAIL]
        if failed:
            worst = max(failed, key=_excess)
            links = {"link": _link(cell), "worst_link": _link(cell, worst)}
            found.append({"cell": cell, "failed": len(failed), "of": len(checks), "worst": worst} | links)
    return sorted(found, key=lambda one: (-_excess(one["worst"]), -one["failed"]))


def _divergences(report: Report) -> Iterator[dict[str, Any]]:
    """The rows of the catalogue of divergences, in order of their numbers; the cases are ``divergence-<number>-<title>``."""
    checks = [check for check in report.checks if check.question == "divergences"]
    for check in sorted(checks, key=lambda check: int(check.case.split("-")[1])):
        _, number, title = check.case.split("-", 2)
        kind = check.verdict.split()[0]
        yield {
            "number": number,
            "title": title.replace("-", " "),
            "kind": kind,
            "check": check,
            "snippet": report.snippet(check),
        }


def _changes(trend: Trend) -> dict[str, list[dict[str, str]]]:
    """The largest changes of each kind."""
    return {
        kind: [
            {"link": _link_of(now), "case": now.case, "where": now.implementation, "quantity": now.quantity}
            | {"then": told(then), "now": told(now)}
            for then, now in getattr(trend, kind)[:_MOST_CHANGES]
        ]
        for kind in _CHANGES
    }


class _Interned(dict[Any, int]):
    """Things that occur often, each once: from the thing to its place in the list."""

    def __missing__(self, thing: Any) -> int:
        self[thing] = len(self)
        return self[thing]


def _data(report: Report, trend: Trend | None) -> dict[str, Any]:
    """What the script needs. ``runs``: the run's texts, the place of its snippet, and its rows, a row per check. ``refused``:
    what was not compared, by reason, with the cases and how many checks of each."""
    texts, lines, snippets = _Interned(), _Interned(), _Interned()
    cases: dict[str, list[int]] = {}
    runs: dict[tuple[str, ...], list[Any]] = {}
    refused: dict[tuple[str, ...], Counter[int]] = {}
    before = {now.key: (kind, told(then)) for kind in _CHANGES for then, now in getattr(trend, kind, ())}
    for check in report.checks:
        if check.question not in QUESTIONS:
            continue
        if check.case not in cases:
            cases[check.case] = [texts[f"{name} = {value}"] for name, value in _fields(report, check.case)]
        case = texts[check.case]
        if check.verdict == UNSUPPORTED:
            why = (check.device, check.method, check.question, check.implementation, check.reason)
            refused.setdefault(why, Counter())[case] += 1
            continue
        run = (check.device, check.method, check.question, check.implementation, check.case, check.execution)
        if run not in runs:
            # Snippets differ in few lines.
            place = snippets[tuple(lines[line] for line in report.snippet(check).split("\n"))]
            runs[run] = [*(texts[text] for text in run), place, []]
        runs[run][-1].append(_row(check, texts, before.get(check.key)))
    why_not = [
        [*(texts[text] for text in why), [number for pair in counts.items() for number in pair]]
        for why, counts in refused.items()
    ]
    return {
        "questions": {question: _asked(question) for question in QUESTIONS},
        "verdicts": _VERDICTS,
        "seed": report.seed,
        "texts": list(map(_valid, texts)),
        "lines": list(map(_valid, lines)),
        "snippets": list(snippets),
        "cases": {texts[id]: fields for id, fields in cases.items()},
        "runs": list(runs.values()),
        "refused": why_not,
    }


def _row(check: Check, texts: _Interned, before: tuple[str, str] | None) -> list[Any]:
    """One check, without what its run says; what is missing at the end is left out."""
    exact = check.verdict != PASS or "-float64-" in check.case
    row = [
        texts[check.quantity],
        check.step,
        _VERDICTS.index(check.verdict),
        _number(check.units, 6),
        _number(check.bound, 6),
        texts[check.reason] if check.reason else None,
        texts[f"[{', '.join(map(str, check.element))}]"] if check.got is not None else None,
        _number(check.got, 17 if exact else _DIGITS),
        _number(check.want, 17 if exact else _DIGITS),
        _number(check.allowed, 4),
        *(texts[text] for text in before or ()),
    ]
    while row[-1] is None:
        row.pop()
    return row


def _number(value: float | None, digits: int) -> float | int | str | None:
    """JSON has neither infinity nor NaN."""
    if value is None:
        return None
    if not math.isfinite(value):
        return str(value)
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e6 else short


def _fields(report: Report, id: str) -> Iterator[tuple[str, Any]]:
    """What a case consists of, its specification field by field; nothing for a bad input."""
    for name, value in report.cases.get(id, {}).items():
        if name == "spec":
            yield from ((f"spec.{field}", setting) for field, setting in value.items())
        elif value is not None:
            yield name, value


def _asked(question: str) -> str:
    """The sentence at the head of the question's file."""
    return ast.get_docstring(ast.parse((files(__package__) / f"test_{question}.py").read_text(encoding="utf-8"))) or ""
