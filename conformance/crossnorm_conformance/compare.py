"""From a case and an implementation to checks: the oracle's answer, the implementation's, the distance in rounding units."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm import rounding
from crossnorm.reference import Quantity

from .case import Case, draw
from .implementations import Implementation, Result, load
from .oracle import PARAMETER_GRADIENTS, QUANTITIES, RUNNING_STATISTICS, keys_of, oracle
from .plan import Plan
from .running import Unanswered, run

Array = NDArray[Any]

PASS, KNOWN, UNSUPPORTED, FAIL = "pass", "known deviation", "unsupported", "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One (case, implementation, execution, quantity, step) with its verdict. ``units`` is None where nothing was compared.

    ``element`` is the index of the worst element, ``got`` and ``want`` are its values, ``allowed`` is their largest distance.
    """

    question: str
    method: str
    case: str
    implementation: str
    execution: str
    device: str
    quantity: str
    step: int
    verdict: str
    units: float | None = None
    bound: float | None = None
    reason: str = ""
    element: tuple[int, ...] = ()
    got: float | None = None
    want: float | None = None
    allowed: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What stays the same from one run to another."""
        return (self.case, self.implementation, self.execution, self.device, self.question, self.quantity, str(self.step))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, which leaves out what is not there; JSON has neither infinity nor NaN."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
            if value not in (None, "", ())
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Check":
        """The inverse of ``to_dict``."""
        numbers = {n: float(v) for n, v in values.items() if n in ("units", "bound", "got", "want", "allowed")}
        return cls(**{**values, **numbers, "element": tuple(values.get("element", ()))})


@lru_cache(maxsize=16)
def outcome(
    implementation: str, case: Case, execution: str, device: str, seed: int
) -> dict[tuple[int, str], Result] | Unanswered:
    """Run an implementation on a case, on arrays of its own; what it raises is its answer."""
    try:
        return run(load(implementation), case, draw(case, seed), execution, device)
    except Unanswered as error:
        return error


def bound_of(case: Case, quantity: str, size: int) -> float:
    """The verdict's bound: parameter gradients are sums. A logit's goes over the whole input. Beside half inputs the sum is
    wider than what it sums, and costs nothing."""
    if quantity not in PARAMETER_GRADIENTS or rounding.accumulation(case.dtype) != case.dtype:
        return rounding.bound(1)
    terms = int(np.prod(case.shape)) // (1 if quantity.endswith("_logits") else max(size, 1))
    return rounding.bound(terms * case.layer.terms if case.layer else terms)


def why_not(implementation: Implementation, case: Case, device: str) -> str:
    """Why an implementation cannot run a case; empty if it can, or cannot even say."""
    try:
        return implementation.unsupported(case, device)
    except Exception:  # a third party's may raise anything; running it will tell
        return ""


def unsupported(plan: Plan) -> Iterator[Check]:
    """The checks of a plan that no run can answer."""
    for case in plan.cases():
        for implementation, execution, device in plan.runs(case):
            if why_not(implementation, case, device):
                for question in QUANTITIES:
                    yield from check_quantities(question, implementation, case, execution, device, plan.seed)
        for first, second, devices in plan.pairs(case):
            if why_not(first, case, devices[0]) or why_not(second, case, devices[1]):
                yield from check_agreement((first, second), case, executions_of((first, second), case), devices, plan.seed)


def executions_of(pair: tuple[Implementation, Implementation], case: Case) -> tuple[str, str]:
    """How each of two is run where they are held against each other: as the case wants it, if it can."""
    first, second = (next((e for e in case.executions if e in i.executions()), i.executions()[0]) for i in pair)
    return first, second


def check_quantities(
    question: str, implementation: Implementation, case: Case, execution: str, device: str, seed: int
) -> list[Check]:
    """Every check of one question on one run."""
    labels: dict[str, Any] = {
        "question": question,
        "method": case.spec.method,
        "case": case.id,
        "implementation": implementation.name,
        "execution": execution,
        "device": device,
    }
    expected = [key for key in keys_of(case) if key[1] in QUANTITIES[question]]
    try:
        expected = [key for key in expected if implementation.shows(case, key[1])]
        reason = implementation.unsupported(case, device)
    except Exception as error:  # a third party's may raise anything
        return [Check(**labels, quantity=q, step=s, verdict=FAIL, reason=str(error)) for s, q in expected]
    if reason:
        return [Check(**labels, quantity=q, step=s, verdict=UNSUPPORTED, reason=reason) for s, q in expected]
    answers = oracle(case, seed)
    got = outcome(implementation.name, case, execution, device, seed)
    checks = []
    for step, name in expected:
        key = (step, name)
        labels |= {"quantity": name, "step": step}
        if isinstance(got, Unanswered):
            checks.append(Check(**labels, verdict=FAIL, reason=str(got)))
            continue
        exact, stored = answers.exact[key], answers.stored[key]
        complaint = _complaint(got.get(key), exact, stored if exact.value.dtype.kind == "f" else "integer")
        if complaint:
            checks.append(Check(**labels, verdict=FAIL, reason=complaint))
            continue
        values = got[key].values
        if name in RUNNING_STATISTICS and not case.updates(step):
            # Nothing may move: the state is compared with what this implementation itself held before, to the last bit.
            before = got[step - 1, name].values if step > 1 else answers.arrays.values[name]
            same = np.array_equal(values, before, equal_nan=True)
            checks.append(
                Check(**labels, verdict=PASS, units=0.0, bound=0.0)
                if same
                else Check(**labels, verdict=FAIL, bound=0.0, reason="the state moved, though this mode updates nothing")
            )
            continue
        errors = rounding.in_units(values, exact, answers.units[key], stored)
        checks.append(_measured(labels, case, errors, values, exact.value, answers.units[key]))
    return checks


def check_agreement(
    pair: tuple[Implementation, Implementation], case: Case, executions: tuple[str, str], devices: tuple[str, str], seed: int
) -> list[Check]:
    """Two implementations against each other, or one on two devices, in the units of the case."""
    labels: dict[str, Any] = {
        "question": "agreement",
        "method": case.spec.method,
        "case": case.id,
        "implementation": f"{pair[0].name} = {pair[1].name}",
        "execution": "/".join(executions),
        "device": "/".join(dict.fromkeys(devices)),
    }
    keys = [
        (step, name)
        for step, name in keys_of(case)
        if all(implementation.shows(case, name) for implementation in pair)
        and (name not in RUNNING_STATISTICS or case.updates(step))
    ]
    reasons = [f"{i.name}: {why}" for i, device in zip(pair, devices, strict=True) if (why := i.unsupported(case, device))]
    reason = "; ".join(reasons)
    if reason:
        return [Check(**labels, quantity=q, step=s, verdict=UNSUPPORTED, reason=reason) for s, q in keys]
    first, second = (outcome(i.name, case, e, d, seed) for i, e, d in zip(pair, executions, devices, strict=True))
    answers = oracle(case, seed)
    checks = []
    for step, name in keys:
        key = (step, name)
        labels |= {"quantity": name, "step": step}
        exact = answers.exact[key]
        if isinstance(first, Unanswered) or isinstance(second, Unanswered) or key not in first or key not in second:
            checks.append(Check(**labels, verdict=FAIL, reason="one of the two gave no answer"))
            continue
        if first[key].values.shape != second[key].values.shape:
            checks.append(Check(**labels, verdict=FAIL, reason="the two gave different shapes"))
            continue
        # One framework's answer plays the exact one; the units stay those of the case.
        values, other = first[key].values, second[key].values.astype(exact.value.dtype)
        errors = rounding.in_units(
            values, Quantity(other, exact.magnitude, exact.view, exact.axes, exact.eps), answers.units[key], answers.stored[key]
        )
        checks.append(_measured(labels, case, errors, values, other, answers.units[key]))
    return checks


def _complaint(result: Result | None, exact: Quantity, stored: str) -> str:
    """What is wrong with the form of an answer: its absence, shape or dtype."""
    if result is None:
        return "gave no value (a missing gradient, say)"
    if result.values.shape != exact.value.shape:
        return f"shape={result.values.shape}, but should be {exact.value.shape}"
    if stored == "integer":
        wrong = "int" not in result.dtype
        return f"dtype={result.dtype}, but should be an integer" if wrong else ""
    return f"dtype={result.dtype}, but should be {stored}" if result.dtype != stored else ""


def _measured(labels: Mapping[str, Any], case: Case, errors: Array, got: Array, want: Array, unit: Array) -> Check:
    """The check of one quantity whose errors are known: its worst element against the bound."""
    bound = bound_of(case, labels["quantity"], got.size)
    if not errors.size:
        return Check(**labels, verdict=PASS, units=0.0, bound=bound)
    element = np.unravel_index(int(np.argmax(errors)), errors.shape)
    worst = float(errors[element])
    details: dict[str, Any] = {
        "element": tuple(map(int, element)),
        "got": float(got[element]),
        "want": float(want[element]),
        "allowed": bound * float(unit[element]),
    }
    reason = _worst(worst, got[element], want[element], float(unit[element]), details["element"]) if worst > bound else ""
    return Check(**labels, verdict=FAIL if worst > bound else PASS, units=worst, bound=bound, reason=reason, **details)


def _worst(units: float, got: Any, want: Any, unit: float, element: tuple[int, ...]) -> str:
    """Where the error is largest, what was got and what was wanted there."""
    place = f" at [{', '.join(map(str, element))}]" if element else ""
    return f"{units:.3g} units{place}: got {got}, want {want}, one unit is {unit:.3g}"
