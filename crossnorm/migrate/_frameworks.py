"""Which framework an object is of, without importing one, and the folder of this room that knows it."""

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from crossnorm.errors import MigrationError

if TYPE_CHECKING:
    from ._parts import Part


class Room(Protocol):
    """What each framework's folder offers."""

    def describe(self, layer: Any, name: str | None) -> Any: ...
    def build(self, description: Any, native: bool, holder: Any) -> Any: ...
    def parts(self, model: Any) -> "list[Part]": ...


# Of each framework the module, in it the class of layers, and what it is called here.
_LAYERS = (
    ("torch", "nn.Module", "torch"),
    ("keras", "layers.Layer", "tensorflow"),
    ("tf_keras", "layers.Layer", "tf_keras"),
    ("flax.nnx", "Module", "flax"),
)


def find_framework(thing: Any, bases: Iterable[tuple[str, str, str]] = _LAYERS) -> str | None:
    """The framework of which ``thing`` is an instance, if one is imported."""
    for module, attribute, framework in bases:
        base = sys.modules.get(module)
        for step in attribute.split("."):
            base = getattr(base, step, None)
        if base is not None and isinstance(thing, base):
            return framework
    return None


def framework_of(thing: Any) -> str:
    """``"torch"``, ``"tensorflow"`` (Keras 3), ``"tf_keras"`` or ``"flax"``."""
    if (framework := find_framework(thing)) is None:
        raise MigrationError(
            f"crossnorm.migrate: {type(thing).__name__} is neither a torch module nor a Keras or Flax layer; give one of these"
        )
    return framework


def room(framework: str) -> Any:
    """The folder of this room for a framework."""
    return import_module(f"crossnorm.migrate.{framework}")


def submodule(framework: str, name: str) -> Any:
    """One module of that folder."""
    return import_module(f"crossnorm.migrate.{framework}.{name}")
