"""``python -m crossnorm_conformance.divergences > docs/divergences.md``: the catalogue as a page, with what is seen here."""

from importlib.metadata import packages_distributions, version
from textwrap import fill

from . import Divergence, divergences, waiting
from ._peers import PACKAGES
from .verdict import check_divergence

INTRODUCTION = """# Where the peers differ

Layers that share a name do not always share a function. Each row of this table is a program: it runs the peers' own layers on
a few numbers and looks. `crossnorm conformance` runs them all, and a row fails as soon as a peer does something else than it
says, so that a new release is noticed. "keras" is Keras on TensorFlow, "keras on torch" and "keras on jax" run in a process of
their own. Errors are the largest absolute ones against float64, unless said otherwise.

This page is written by `python -m crossnorm_conformance.divergences > docs/divergences.md`; last with
{versions}.

| number | method | peers | what differs, and how it bites | what was seen |
|---:|---|---|---|---|
"""

WAITING = """
## Not shown

These rows are known and wait for something.

"""


def document() -> str:
    """The page."""
    rows = [f"{row_of(divergence)} {_seen(divergence)} |\n" for divergence in divergences()]
    waits = [f"{waiting_line(number)}\n" for number in waiting()]
    return INTRODUCTION.format(versions=fill(_versions(), 120)) + "".join(rows) + WAITING + "".join(waits)


def row_of(divergence: Divergence) -> str:
    """The cells of a row that no run changes."""
    point = f"{divergence.point} [thread]({divergence.link})" if divergence.link else divergence.point
    number = f'<a id="{anchor(divergence.number)}"></a>{divergence.number}'
    return f"| {number} | {divergence.method} | {', '.join(divergence.peers)} | {point} |"


def anchor(number: int) -> str:
    """Where a link from another page leads to."""
    return f"divergence-{number}"


def waiting_line(number: int) -> str:
    """The line of a row that waits."""
    return f"- {number}. {waiting()[number]}"


def _seen(divergence: Divergence) -> str:
    (check,) = check_divergence(divergence)
    return check.reason.removeprefix(f"{divergence.point} (seen: ").removesuffix(")")


def _versions() -> str:
    found = packages_distributions()
    names = dict.fromkeys(package for packages in PACKAGES.values() for package in packages if package in found)
    return ", ".join(f"{name} {version(found[name][0])}" for name in names)


if __name__ == "__main__":
    print(document(), end="")
