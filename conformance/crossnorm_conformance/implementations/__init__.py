"""Implementations: plain objects behind one protocol, NumPy arrays in and out. Ours are just implementations too.

A third party's comes in by the entry-point group ``crossnorm.implementations`` or as ``package.module:object``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        """How it can run: ``"eager"``, ``"function"``."""

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


# Name: the packages that it needs, and its module here.
_BUILT_IN = {
    "crossnorm-torch": ("torch", "crossnorm_torch"),
    "crossnorm-tensorflow": ("tensorflow", "crossnorm_tensorflow"),
    "torch.nn": ("torch", "torch_nn"),
    "torch.nn.utils": ("torch", "torch_hooks"),
    "keras.layers": ("tensorflow", "keras_layers"),
    "flax.nnx": ("flax", "flax_nnx"),
    "tensorflow": ("tensorflow", "tensorflow_kernels"),
    "torch.compile": ("torch", "torch_functional"),
    "timm": ("timm", "timm_layers"),
    "onnxruntime": ("onnxruntime onnx", "onnxruntime_operators"),
}


def installed(names: Sequence[str] = ()) -> list[str]:
    """The implementations to run: those named, or all whose framework is installed."""
    if names:
        return [load(name).name for name in dict.fromkeys(names)]
    found = [name for name, (packages, _) in _BUILT_IN.items() if not _missing(packages)]
    return found + [load(point.name).name for point in entry_points(group="crossnorm.implementations")]


def _missing(packages: str) -> list[str]:
    return [package for package in packages.split() if not find_spec(package)]


# A third party's implementation is asked for by the place where it lies, and known by its own name from then on.
_third_parties: dict[str, Implementation] = {}


@cache
def load(name: str) -> Implementation:
    """The implementation of a name; an unknown one, or one whose framework is missing, is a `SuiteError`."""
    if name in _third_parties:
        return _third_parties[name]
    if name in _BUILT_IN:
        packages, module = _BUILT_IN[name]
        if missing := _missing(packages):
            remedy = f'"crossnorm[{packages}]"' if packages in ("torch", "tensorflow") else " ".join(missing)
            raise SuiteError(
                f"implementation {name!r} needs {' and '.join(missing)}, which is not installed; pip install {remedy}"
            )
        implementation: Implementation = import_module(f"{__name__}.{module}").IMPLEMENTATION
        return implementation
    points = {point.name: point for point in entry_points(group="crossnorm.implementations")}
    try:
        if name in points:
            found: Any = points[name].load()
        else:
            module, _, attribute = name.partition(":")
            if not attribute:
                known = ", ".join([*_BUILT_IN, *points])
                raise SuiteError(f"unknown implementation {name!r}; choose among {known}, or name one as package.module:object")
            found = getattr(import_module(module), attribute)
    except SuiteError:
        raise
    except Exception as error:  # a third party's module may raise anything
        raise SuiteError(f"implementation {name!r} cannot be loaded ({error}); check the module and the object") from None
    _verify(name, found)
    _third_parties[found.name] = found
    return found


def _verify(place: str, found: Any) -> None:
    """Refuse an object that is no implementation, or that calls itself by the name of one that is built in."""
    members = [member for member in Implementation.__annotations__ | vars(Implementation) if not member.startswith("_")]
    missing = [member for member in members if not hasattr(found, member)]
    if isinstance(found, type) or missing:
        what = "a class" if isinstance(found, type) else f"it lacks {', '.join(missing)}"
        raise SuiteError(
            f"implementation {place!r} is no implementation ({what}); give an object with the members of "
            "crossnorm_conformance.implementations.Implementation"
        )
    if found.name in _BUILT_IN:
        raise SuiteError(f"implementation {place!r} calls itself {found.name!r}, a name that is taken; give it one of its own")
