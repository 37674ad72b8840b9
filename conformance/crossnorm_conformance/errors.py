"""Judging what an implementation does with bad input."""

import numpy as np

from crossnorm import CrossnormError, WeightSpec

from .cases import Fault
from .compare import FAIL, PASS, UNSUPPORTED, Check
from .implementations import Implementation, load


def check_misuse(fault: Fault, implementation: Implementation) -> list[Check]:
    """Two checks: the exception and, of a layer that has one, the state afterwards.

    A native layer must raise. One of ours must raise a ``CrossnormError`` in one sentence, of the native's type where the
    native raises and a ``ValueError`` where it does not.
    """
    labels = {
        "question": "errors",
        "method": fault.spec.method,
        "case": fault.id,
        "implementation": implementation.name,
        "execution": "eager",
        "device": "cpu",
        "step": 1,
    }
    try:
        reason = implementation.inexpressible(fault)
        if reason:
            return [Check(**labels, quantity=name, verdict=UNSUPPORTED, reason=reason) for name in ("exception", "state")]
        misuse = implementation.misuse(fault)
    except Exception as error:  # a third party's may raise anything; the exception that is asked for comes inside the answer
        return [Check(**labels, quantity="exception", verdict=FAIL, reason=f"no answer: {error}")]
    complaint = _wrong_exception(fault, implementation, misuse.raised)
    # Where nothing was raised, the exception is the complaint; a changed state then follows from it.
    changed = misuse.raised is not None and any(
        not np.array_equal(value, misuse.state_after.get(name, np.nan), equal_nan=True)
        for name, value in misuse.state_before.items()
    )
    exception = Check(**labels, quantity="exception", verdict=FAIL if complaint else PASS, reason=complaint)
    if not misuse.state_before:
        return [exception]
    return [
        exception,
        Check(
            **labels,
            quantity="state",
            verdict=FAIL if changed else PASS,
            reason="the failed call changed the state" if changed else "",
        ),
    ]


def _wrong_exception(fault: Fault, implementation: Implementation, raised: Exception | None) -> str:
    if raised is None:
        return "accepted, and went on"
    if implementation.native is None:
        return ""
    if not isinstance(raised, CrossnormError):
        return f"raised {type(raised).__name__}, which is no CrossnormError: {raised}"
    if len(str(raised).splitlines()) != 1:
        return f"raised {type(raised).__name__} with more than one sentence: {raised}"
    native = load(implementation.native)
    # A reparametrization is no drop-in, so its exceptions are ours.
    comparable = fault.spec.method in native.methods() and not isinstance(fault.spec, WeightSpec)
    theirs = native.misuse(fault).raised if comparable and not native.inexpressible(fault) else None
    wanted = type(theirs) if theirs is not None else ValueError
    if not isinstance(raised, wanted):
        return f"raised {type(raised).__name__}, which is no {wanted.__name__}, the native's type"
    return ""
