"""What a mutant is: a layer with one bug, and what the suite has to say of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from math import prod
from typing import Any
from unittest import mock

from crossnorm_conformance import compare
from crossnorm_conformance.case import Case
from crossnorm_conformance.cases import cases_of
from crossnorm_conformance.compare import Check, check_quantities
from crossnorm_conformance.implementations import Implementation, load
from crossnorm_conformance.oracle import QUANTITIES


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A bug in the layers of one method, ``implementation``'s.

    ``named`` is the quantity that the suite has to accuse. ``also`` are those that the bug harms on the way; any other quantity
    is right, and must not be accused.

    ``bug`` takes the place of the function ``replaces``, ``"module:name"``, and gets the function itself before its arguments.
    Or it is a class, mixed into that of the layer, and derived from a class without the bug.

    ``where``: a part of the ids of the cases that it takes, where few cases show the bug.
    """

    method: str
    named: str
    also: frozenset[str]
    implementation: str
    replaces: str
    bug: Any
    where: str = ""

    def __str__(self) -> str:
        return f"{self.method}-{self.bug.__name__}-{self.implementation}"

    @property
    def question(self) -> str:
        return next((question for question, names in QUANTITIES.items() if self.named in names), "errors")

    def cases(self) -> list[Case]:
        """Those that can show it, the cheapest first.

        Not in float64: there a textbook has no wider numbers.
        """
        sound = load(self.implementation)
        rows = [
            case
            for case in cases_of(self.method)
            if self.where in case.id
            and case.dtype != "float64"
            and case.defaults in (None, sound.framework)
            and not sound.unsupported(case, "cpu")
        ]
        return sorted(rows, key=lambda case: prod(case.shape))

    def broken(self) -> Implementation:
        """The implementation with the bug."""
        return _with(self.implementation, str(self), self.bug, self.replaces)

    def sound(self) -> list[Implementation]:
        """The implementation without it: as it is, and with the class that the mutant is derived from."""
        right = [load(self.implementation)]
        base = object if self.replaces else self.bug.__bases__[0]
        if base is not object:
            right.append(_with(self.implementation, f"{self.implementation}-{base.__name__}", base))
        return right


class Table(list[Mutant]):
    """The mutants of one implementation; called, it is a decorator that adds one."""

    def __init__(self, implementation: str) -> None:
        super().__init__()
        self.implementation = implementation

    def __call__(self, method: str, named: str, also: str = "", replaces: str = "", where: str = "") -> Callable[[Any], Any]:
        def add(bug: Any) -> Any:
            row = {"method": method, "named": named, "also": frozenset(also.split()), "replaces": replaces, "where": where}
            self.append(Mutant(implementation=self.implementation, bug=bug, **row))
            return bug

        return add


def _with(name: str, new_name: str, bug: Any, replaces: str = "") -> Implementation:
    """The named implementation, of which every layer has the bug."""

    class Broken(type(load(name))):  # type: ignore[misc]
        def build(self, case: Any) -> Any:
            return self.mixed(super().build(case))

        def misbuild(self, fault: Any) -> Any:
            return self.mixed(super().misbuild(fault))

        def mixed(self, layer: Any) -> Any:
            if not replaces:
                layer.__class__ = type(bug.__name__, (bug, type(layer)), {})
            return layer

        def run(self, *arguments: Any) -> Any:
            with replaced(replaces, bug):
                return super().run(*arguments)

        def misuse(self, *arguments: Any) -> Any:
            with replaced(replaces, bug):
                return super().misuse(*arguments)

    Broken.name = new_name
    return Broken()


@contextmanager
def replaced(place: str, bug: Any) -> Iterator[None]:
    """A world in which ``bug`` stands at ``place``."""
    if not place:
        yield
        return
    module, _, path = place.partition(":")
    *parents, leaf = path.split(".")
    owner = reduce(getattr, parents, import_module(module))
    original = getattr(owner, leaf)
    with mock.patch.object(owner, leaf, lambda *arguments, **named: bug(original, *arguments, **named)):
        yield


def checks_of(implementation: Any, case: Case, seed: int = 0) -> list[Check]:
    """Every check of a case but agreement, eager on the processor; whatever the implementation calls itself."""
    with mock.patch.object(compare, "load", return_value=implementation):
        return [
            check for question in QUANTITIES for check in check_quantities(question, implementation, case, "eager", "cpu", seed)
        ]
