"""Implementations: plain objects behind one protocol, NumPy arrays in and out. Ours are just implementations too.

A third party's comes in by the entry-point group ``crossnorm.implementations`` or as ``package.module:object``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, Protocol

from numpy.typing import NDArray

from crossnorm import CrossnormError

from ..case import Arrays, Case
from ..cases import Fault


class SuiteError(CrossnormError):
    """The suite was asked for something that it does not have: an implementation or a device, say."""


@dataclass(frozen=True, slots=True)
class Result:
    """One quantity as an implementation gave it. ``dtype`` is the framework's own; bfloat16 values come as float32."""

    values: NDArray[Any]
    dtype: str


@dataclass(frozen=True, slots=True)
class Misuse:
    """What happened when an implementation met a fault."""

    raised: Exception | None
    state_before: Mapping[str, NDArray[Any]]
    state_after: Mapping[str, NDArray[Any]]


class Implementation(Protocol):
    """What the suite asks of an implementation."""

    name: str
    framework: str
    """``"torch"`` or ``"keras"``: whose default arguments it shares."""
    native: str | None
    """The implementation that this one replaces: it sets the types of exceptions. None for a native one."""

    def methods(self) -> tuple[str, ...]:
        """The methods that it has at all."""

    def versions(self) -> dict[str, str]:
        """The distributions that matter to its results, with their versions."""

    def devices(self) -> tuple[str, ...]:
        """The devices that are present: ``"cpu"``, ``"cuda"``."""

    def executions(self) -> tuple[str, ...]:
        """How it can run: ``"eager"``, ``"function"``, ``"compile"``, ``"export"``, ``"xla"``, ``"autocast"``."""

    def shows(self, case: Case, quantity: str) -> bool:
        """Whether the quantity can be seen from outside at all."""

    def unsupported(self, case: Case, device: str) -> str:
        """Why it cannot run the case; empty if it can."""

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        """Run every step of the case; results are keyed by (step, quantity), in the reference's layout."""

    def inexpressible(self, fault: Fault) -> str:
        """Why the fault cannot be committed with it at all; empty if it can."""

    def misuse(self, fault: Fault) -> Misuse:
        """Build the layer that the fault describes, feed it the input that the fault describes, and tell what happened."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an implementation that comes with the suite lies. A witness is a peer that runs under ``--full`` or by name."""

    packages: str
    """What must be importable, separated by spaces."""
    module: str
    witness: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    """What must be set before it is imported: it runs in a process of its own then."""

    @property
    def missing(self) -> str:
        """The packages that are not installed, in words."""
        return " and ".join(package for package in self.packages.split() if not find_spec(package))


_BUILT_IN = {
    "crossnorm-torch": Place("torch", "crossnorm_torch"),
    "crossnorm-tensorflow": Place("tensorflow", "crossnorm_tensorflow"),
    "torch.nn": Place("torch", "torch_nn"),
    "torch.nn.utils": Place("torch", "torch_hooks"),
    "keras.layers": Place("tensorflow", "keras_layers"),
    "keras-on-torch": Place("keras torch", "keras_on_torch", witness=True, environment={"KERAS_BACKEND": "torch"}),
    "keras-on-jax": Place("keras jax", "keras_on_jax", witness=True, environment={"KERAS_BACKEND": "jax"}),
    "flax.nnx": Place("flax", "flax_nnx", witness=True),
    "onnxruntime": Place("onnxruntime onnx", "onnxruntime_operators", witness=True),
    "timm": Place("timm", "timm_layers", witness=True),
    "tensorflow": Place("tensorflow", "tensorflow_kernels", witness=True),
    "torch.compile": Place("torch", "torch_functional", witness=True),
}
_GROUP = "crossnorm.implementations"


def installed(names: Sequence[str] = (), full: bool = False) -> list[str]:
    """The implementations to run: those named, or all that are installed; witnesses only where ``full``."""
    if names:
        return [load(name).name for name in dict.fromkeys(names)]
    found = [name for name, place in _BUILT_IN.items() if (full or not place.witness) and not place.missing]
    return found + [load(point.name).name for point in entry_points(group=_GROUP)]


def absent(names: Sequence[str] = (), full: bool = False) -> dict[str, str]:
    """The implementations that come with the suite and are not run, each with the reason."""
    reasons = {}
    for name, place in _BUILT_IN.items() if not names else ():
        if place.missing:
            reasons[name] = f"{place.missing} is not installed"
        elif place.witness and not full:
            reasons[name] = "a witness runs under --full, or by name"
    return reasons


def is_built_in(name: str) -> bool:
    """Whether an implementation of that name comes with the suite."""
    return name in _BUILT_IN


def accompanies(implementation: Implementation) -> bool:
    """Whether it comes with the suite and is no witness: one of our layers, or a native that one replaces."""
    return implementation.name in _BUILT_IN and not _BUILT_IN[implementation.name].witness


# A third party's implementation is asked for by the place where it lies, and known by its own name from then on.
_third_parties: dict[str, Implementation] = {}


@cache
def load(name: str) -> Implementation:
    """The implementation of a name; an unknown one, or one whose framework is missing, is a `SuiteError`.

    One that does not come with the suite runs in a process of its own, as `isolated` says.
    """
    if name in _third_parties:
        return _third_parties[name]
    if name in _BUILT_IN:
        place = _BUILT_IN[name]
        if place.missing:
            raise SuiteError(f"implementation {name!r} needs {place.missing}, which is not installed")
        return isolated(name, place.environment) if place.environment else find(name)
    points = [point.name for point in entry_points(group=_GROUP)]
    if name not in points and ":" not in name:
        known = ", ".join([*_BUILT_IN, *points])
        raise SuiteError(f"unknown implementation {name!r}; choose among {known}, or name one as package.module:object")
    found = isolated(name, {})
    _third_parties[found.name] = found
    return found


def isolated(name: str, environment: Mapping[str, str]) -> Implementation:
    """The implementation of a name in a child process: it may hang or die there, and the run goes on."""
    from ..process import Remote  # the child needs this module first

    return Remote(name, environment)


def find(name: str) -> Implementation:
    """The implementation of a name, imported into this process."""
    if name in _BUILT_IN:
        implementation: Implementation = import_module(f"{__name__}.{_BUILT_IN[name].module}").IMPLEMENTATION
        return implementation
    points = {point.name: point for point in entry_points(group=_GROUP)}
    try:
        if name in points:
            found: Any = points[name].load()
        else:
            module, _, attribute = name.partition(":")
            found = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a third party's module may raise anything
        reason = str(error) or type(error).__name__
        raise SuiteError(f"implementation {name!r} cannot be loaded ({reason}); check the module and the object") from None
    _verify(name, found)
    return found


def add(implementation: Implementation) -> None:
    """Make an object known by its name, in this process."""
    _verify(implementation.name, implementation)
    load.cache_clear()
    _third_parties[implementation.name] = implementation


def _verify(place: str, found: Any) -> None:
    """Refuse an object that is no implementation, or that calls itself by the name of one that is built in."""
    members = [member for member in Implementation.__annotations__ | vars(Implementation) if not member.startswith("_")]
    missing = [member for member in members if not hasattr(found, member)]
    if isinstance(found, type) or missing:
        what = "a class" if isinstance(found, type) else f"it lacks {', '.join(missing)}"
        raise SuiteError(
            f"implementation {place!r} is no implementation ({what}); give an object with the members of "
            "crossnorm_conformance.implementations.Implementation, or what crossnorm_conformance.implementation() makes of one"
        )
    if found.name in _BUILT_IN:
        raise SuiteError(f"implementation {place!r} calls itself {found.name!r}, a name that is taken; give it one of its own")
