"""From a row to a check: it holds, a peer has changed, or a peer is not here."""

from ..compare import FAIL, KNOWN, UNSUPPORTED, Check
from ..running import told
from . import Changed, Divergence
from ._peers import lacking


def check_divergence(divergence: Divergence) -> list[Check]:
    """One check: a known deviation while the row holds, a failure once a peer does something else."""
    verdict, reason = _judged(divergence)
    return [
        Check(
            question="divergences",
            method=divergence.method,
            case=f"divergence-{divergence.number}-{divergence.title}",
            implementation=", ".join(divergence.peers),
            execution="eager",
            device="cpu",
            quantity="divergence",
            step=1,
            verdict=verdict,
            reason=reason,
        )
    ]


def _judged(divergence: Divergence) -> tuple[str, str]:
    reason = lacking(divergence.peers)
    if reason:
        return UNSUPPORTED, reason
    try:
        return KNOWN, f"{divergence.point} (seen: {divergence.demonstrate()})"
    except Changed as change:
        return FAIL, f"changed: {change}"
    except Exception as error:
        return FAIL, f"changed: raised {told(error)}"
