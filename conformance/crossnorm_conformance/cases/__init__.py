"""The rows of the suite: one file per method, each with ``cases()`` and ``faults()``, found by their name."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from crossnorm.spec import SPECS, spec_class

from ..case import Case
from ._base import Axes, Fault


def axes_of(method: str) -> Axes:
    """The axes of one method."""
    axes: Axes = import_module(f"{__name__}.{method}").AXES
    return axes


def builder_of(method: str) -> Callable[..., Any]:
    """The function of one method that makes a specification and a shape of a variant's fields, a shape and a regime."""
    build: Callable[..., Any] = import_module(f"{__name__}.{method}").build
    return build


@cache
def cases_of(method: str) -> tuple[Case, ...]:
    """The default cases of one method."""
    return tuple(import_module(f"{__name__}.{method}").cases())


def faults_of(method: str) -> list[Fault]:
    """The bad inputs of one method."""
    faults: list[Fault] = import_module(f"{__name__}.{method}").faults()
    return faults


def methods(names: Sequence[str] = ()) -> list[str]:
    """The methods' names, all of them if none is given; an unknown one is a ``SpecError``."""
    return list(dict.fromkeys(spec_class(name).method for name in names)) or list(SPECS)
