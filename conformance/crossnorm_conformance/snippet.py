"""A few lines of Python that make one check again."""

from collections.abc import Mapping
from pprint import pformat
from typing import Any

from .compare import Check

_CASE = """\
from crossnorm_conformance import Case, {door}

case = Case.from_dict(
{case}
)
{call}
"""
_DIVERGENCE = """\
from crossnorm_conformance.divergences import divergences

print({{row.number: row for row in divergences()}}[{number}].demonstrate())
"""
_FAULT = """\
from crossnorm_conformance import rerun

print(rerun({implementation!r}, {fault!r}))
"""


def snippet(check: Check, case: Mapping[str, Any] | None, seed: int, place: str | None) -> str:
    """The lines for a check. ``case`` is the case as a dictionary, None for a bad input; ``place`` is where the implementation
    is found, None for a layer that was given to `crossnorm_conformance.check` and has no name to be found by."""
    if check.question == "divergences":
        return _DIVERGENCE.format(number=check.case.split("-")[1])
    if case is None:
        return _FAULT.format(implementation=place or check.implementation, fault=check.case)
    text = "\n".join(f"    {line}" for line in pformat(dict(case), width=110, sort_dicts=False).splitlines())
    if place is None:
        call = f"print(check(LAYER, case.spec, cases=[case], seed={seed}))  # LAYER: what was given to check()"
        return _CASE.format(door="check", case=text, call=call)
    how = f"execution={check.execution!r}, device={check.device!r}, seed={seed}"
    return _CASE.format(door="rerun", case=text, call=f"print(rerun({place!r}, case, {how}))")
