"""How the version of a method that one framework has is written down."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Argument:
    """What a framework calls one field.

    ``complement``: its value is one minus the field's. ``written``: its default as the framework writes it, where that is
    not the value of the field.
    """

    name: str
    complement: bool = False
    written: str | None = None

    def native(self, value: Any) -> Any:
        return round(1 - value, 15) if self.complement and value is not None else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One framework's version of one method.

    ``fields``: the specification's fields that its defaults amount to. ``arguments``: the constructor arguments that set
    them; a field without an argument is fixed there. ``from_input``: fields with a default that the layer takes from its input.
    ``notes``: what no field expresses (dtypes, masks, odd input).
    """

    name: str
    fields: Mapping[str, Any]
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    from_input: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def same(**names: str) -> dict[str, Argument]:
    """Arguments that mean the field itself: the field's name, then theirs."""
    return {ours: Argument(theirs) for ours, theirs in names.items()}


EPS_UNNAMED = "the paper adds an eps without a value: 1e-5 is ours"
