"""What became better, worse or new since an earlier run."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from .compare import FAIL, UNSUPPORTED, Check
from .report import Report, rounded

Change = tuple[Check | None, Check | None]

# Units move a little with the number of threads and the build: a change is more than one unit and more than a quarter.
_STEP = 1.0
_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The checks that differ, as (earlier, now). ``versions``: what was installed then and now, where that differs."""

    broken: tuple[Change, ...]
    mended: tuple[Change, ...]
    worse: tuple[Change, ...]
    better: tuple[Change, ...]
    new: tuple[Change, ...]
    gone: tuple[Change, ...]
    versions: dict[str, tuple[str, str]]

    @classmethod
    def between(cls, earlier: Report, now: Report) -> "Trend":
        """Compare two runs check by check. What only one of them ran is new or gone."""
        old = {check.key: check for check in earlier.checks if check.verdict != UNSUPPORTED}
        new = {check.key: check for check in now.checks if check.verdict != UNSUPPORTED}
        both: list[Change] = [(old[key], check) for key, check in new.items() if key in old]

        def where(is_so: Callable[[Check, Check], bool]) -> tuple[Change, ...]:
            found = [(a, b) for a, b in both if a and b and is_so(a, b)]
            return tuple(sorted(found, key=lambda change: -_distance(change)))

        names = sorted({*earlier.versions, *now.versions})
        versions = {name: (earlier.versions.get(name, "absent"), now.versions.get(name, "absent")) for name in names}
        return cls(
            broken=where(lambda a, b: b.verdict == FAIL != a.verdict),
            mended=where(lambda a, b: a.verdict == FAIL != b.verdict),
            worse=where(lambda a, b: a.verdict == b.verdict and _rises(a.units, b.units)),
            better=where(lambda a, b: a.verdict == b.verdict and _rises(b.units, a.units)),
            new=tuple((None, check) for key, check in new.items() if key not in old),
            gone=tuple((check, None) for key, check in old.items() if key not in new),
            versions={name: pair for name, pair in versions.items() if pair[0] != pair[1]},
        )

    def render(self, console: Console, most: int = 10) -> None:
        """Print the counts and the largest changes."""
        names = ("broken", "mended", "worse", "better", "new", "gone")
        console.print("since the baseline: " + ", ".join(f"{len(getattr(self, name))} {name}" for name in names), style="bold")
        for name, (then, now) in self.versions.items():
            console.print(f"  {name} {then} -> {now}")
        for name in names[:4]:
            for a, b in getattr(self, name)[:most]:
                where = f"{b.implementation} [{b.execution}, {b.device}] {b.case} {b.quantity} step {b.step}"
                console.print(f"  {name}: {where}: {told(a)} -> {told(b)}", markup=False)


def _rises(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and b > a + _STEP and b > a * (1 + _SHARE)


def _distance(change: Change) -> float:
    units = [check.units or 0.0 for check in change if check]
    return abs(units[-1] - units[0])


def told(check: Check) -> str:
    """A verdict with its size."""
    return check.verdict if check.units is None else f"{check.verdict} at {rounded(check.units)} units"
