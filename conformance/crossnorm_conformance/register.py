"""Registers of known deviations. Each belongs to one implementation: ``registers/<implementation>.toml``.

An entry says where (globs over case ids, questions, quantities, executions, devices; ``raises`` if the layer raises there, or
gives an answer of which no size can be told: another dtype, a state that moved), why, and where that is documented. It is
strict: a glob that matches no failing check is an error, so that an entry cannot outlive its deviation.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from .compare import FAIL, KNOWN, UNSUPPORTED, Check
from .implementations import SuiteError


@dataclass(frozen=True, slots=True)
class Deviation:
    """One glob of one entry."""

    implementation: str
    cases: str
    reason: str
    link: str
    questions: tuple[str, ...] = ("*",)
    quantities: tuple[str, ...] = ("*",)
    executions: tuple[str, ...] = ("*",)
    devices: tuple[str, ...] = ("*",)
    raises: bool = False

    def covers(self, check: Check) -> bool:
        """Whether the check lies where the entry says."""
        return (
            self.implementation == check.implementation
            and fnmatchcase(check.case, self.cases)
            and _any(check.question, self.questions)
            and _any(check.quantity, self.quantities)
            and _any(check.execution, self.executions)
            and _any(check.device, self.devices)
        )


_SELECTORS = ("questions", "quantities", "executions", "devices")

# Those that --register has read.
_given: dict[str, tuple[Deviation, ...]] = {}


def register(implementation: str) -> tuple[Deviation, ...]:
    """The register of an implementation; empty where it has none."""
    return _given.get(implementation) or _own(implementation)


def read(path: Path) -> None:
    """Take a third party's register, ``<implementation>.toml``, into account."""
    if not path.is_file():
        raise SuiteError(f"--register {path}: there is no such file; give <implementation>.toml")
    _given[path.stem] = _parsed(path, path.stem)


@cache
def _own(implementation: str) -> tuple[Deviation, ...]:
    path = files(__package__) / "registers" / f"{implementation}.toml"
    return _parsed(path, implementation) if path.is_file() else ()


def _parsed(path: Traversable, implementation: str) -> tuple[Deviation, ...]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path.name}: is no TOML ({error}); mend the file") from None
    if unknown := set(document) - {"deviation"}:
        raise SuiteError(f"{path.name}: unknown table {', '.join(sorted(unknown))}; a register holds [[deviation]] entries")
    entries = document.get("deviation", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SuiteError(f"{path.name}: deviation = {entries!r} is no list of entries; a register holds [[deviation]] entries")
    return tuple(found for entry in entries for found in _deviations(path.name, implementation, entry))


def _deviations(file: str, implementation: str, entry: Mapping[str, Any]) -> list[Deviation]:
    """One entry: a deviation for each of its globs. What it says wrongly is a `SuiteError`."""
    words = {"cases", "reason", "link", "raises", *_SELECTORS}
    if unknown := set(entry) - words:
        known = ", ".join(sorted(words))
        raise SuiteError(f"{file}: unknown word {', '.join(sorted(unknown))} in an entry; the words are {known}")
    if missing := {"cases", "reason", "link"} - set(entry):
        raise SuiteError(f"{file}: an entry lacks {', '.join(sorted(missing))}; every deviation has cases, a reason and a link")
    for name in ("cases", *_SELECTORS):
        value = entry.get(name, ["*"])
        if not isinstance(value, list) or not value or not all(isinstance(glob, str) for glob in value):
            raise SuiteError(f'{file}: {name} = {value!r} is no list of globs; write {name} = ["..."]')
    for name in ("reason", "link"):
        if not isinstance(entry[name], str):
            raise SuiteError(f'{file}: {name} = {entry[name]!r} is no text; write {name} = "..."')
    if not isinstance(entry.get("raises", False), bool):
        raise SuiteError(f"{file}: raises = {entry['raises']!r} is neither true nor false")
    selectors = {name: tuple(entry[name]) for name in _SELECTORS if name in entry}
    texts = (entry["reason"], entry["link"])
    return [Deviation(implementation, glob, *texts, **selectors, raises=entry.get("raises", False)) for glob in entry["cases"]]


def judge(check: Check) -> Check:
    """A failing check that the register knows becomes a known deviation, with the register's reason. An error of unknown
    size, an exception for one, is excused only where the entry says so. The agreement of two implementations is excused where
    either is registered."""
    if check.verdict != FAIL:
        return check
    for name in check.implementation.split(" = "):
        for deviation in register(name):
            sized = check.units is not None or check.question == "errors" or deviation.raises
            if sized and deviation.covers(replace(check, implementation=name)):
                return replace(check, verdict=KNOWN, reason=f"{deviation.reason} ({deviation.link})")
    return check


def stale(implementations: Iterable[str], checks: list[Check], whole: set[str]) -> list[str]:
    """Entries that no check bears out any more, each as a sentence. An entry is judged only where the ``whole`` set of cases
    that it could match has been run."""
    complaints = []
    run = {check.case for check in checks}
    for name in implementations:
        own = [check for check in checks if check.implementation == name and check.verdict == KNOWN]
        compared = [check for check in checks if check.implementation == name and check.verdict != UNSUPPORTED]
        for deviation in register(name):
            reach = {case for case in whole if fnmatchcase(case, deviation.cases)}
            if not reach:
                complaints.append(f"registers/{name}.toml: {deviation.cases!r} matches no case; delete or mend the entry")
                continue
            judged = reach <= run and any(
                c.case in reach and _any(c.device, deviation.devices) and _any(c.execution, deviation.executions)
                for c in compared
            )
            if judged and not any(deviation.covers(check) for check in own):
                complaints.append(
                    f"registers/{name}.toml: {deviation.cases!r} ({deviation.reason}) matches no failing check any more; "
                    "delete or narrow the entry"
                )
    return complaints


def _any(value: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(value, glob) for glob in globs)
