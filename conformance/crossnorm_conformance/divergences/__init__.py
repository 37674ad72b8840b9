"""Where two peers do different things under the same name: each row of this catalogue runs them and looks.

A file per theme. A row is a generator function that yields what it sees (``_sightings``) under the decorator `divergence`; no
framework is imported before a row runs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from ._peers import contained
from ._sightings import Sighting

THEMES = ("running_statistics", "masks", "defaults_and_shapes", "accuracy", "dtypes", "weights")


class Changed(Exception):
    """A peer no longer does what its row says. The message is what was seen instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """One row. ``point``: what differs and how it bites. ``demonstrate`` runs the peers, returns what was seen, and raises
    `Changed` where that is not what the point says."""

    number: int
    title: str
    point: str
    method: str
    peers: tuple[str, ...]
    demonstrate: Callable[[], str]
    link: str = ""


_ROWS: dict[int, Divergence] = {}


def divergence(
    number: int, method: str, peers: tuple[str, ...], point: str, link: str = ""
) -> Callable[[Callable[[], Iterator[Sighting]]], Callable[[], Iterator[Sighting]]]:
    """Register a generator of sightings as a row; its title is the function's name."""

    def register(look: Callable[[], Iterator[Sighting]]) -> Callable[[], Iterator[Sighting]]:
        def demonstrate() -> str:
            with contained(peers):
                sightings = list(look())
            seen = "; ".join(sighting.text for sighting in sightings)
            if not all(sighting.holds for sighting in sightings):
                raise Changed(seen)
            return seen

        title = look.__name__.replace("_", "-")
        _ROWS[number] = Divergence(
            number=number, title=title, point=point, method=method, peers=peers, demonstrate=demonstrate, link=link
        )
        return look

    return register


@cache
def divergences() -> tuple[Divergence, ...]:
    """All rows that can be run, in order of number."""
    for theme in THEMES:
        import_module(f"{__name__}.{theme}")
    return tuple(_ROWS[number] for number in sorted(_ROWS))


def waiting() -> dict[int, str]:
    """The rows that nothing here can show: what differs, and what they wait for."""
    return dict(_WAITING)


_WAITING = {
    47: "The authors' switchable normalization loses all digits at an offset of 1e4: waits for their repository as a peer.",
    75: "TLU's threshold is one per channel in timm and one per element in TensorFlow Addons: waits for TensorFlow Addons, "
    "which no Keras 3 can load.",
    76: "TensorFlow Addons' norms do not run on Keras 3: waits for an environment with TensorFlow Addons.",
    78: "Local response normalization multiplies alpha with the sum in TensorFlow and with the mean in torch and ONNX: waits "
    "for a specification of that method.",
}
