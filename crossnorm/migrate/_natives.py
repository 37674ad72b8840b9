"""What frameworks call the fields of a specification: read from a native layer, and written into its constructor."""

import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from crossnorm.errors import MigrationError, SpecError, Unsupported
from crossnorm.spec import NormSpec
from crossnorm.spec.presets import PEERS, spec_class

from ._description import Layout
from ._settings import Linear

# Where a framework has no argument for these, it takes them from its input or from the layer that holds the weight.
_SIZES = ("channels", "shape", "spatial")


def spec_of(layer: Any, method: str, framework: str, **known: Any) -> NormSpec:
    """The specification that a native layer obeys now: what its attributes say, and what its framework fixes.

    ``known``: fields that its attributes do not say: sizes of the input, and flags where the arrays that are there decide.

    >>> from types import SimpleNamespace
    >>> layer = SimpleNamespace(epsilon=0.5, momentum=0.75, center=True, scale=False)
    >>> spec_of(layer, "batch_norm", "keras", channels=4).decay
    0.75
    """
    spec: NormSpec = obeyed(layer, lambda: spec_class(method)(**_read_fields(layer, method, framework, known)))
    return spec


def _read_fields(layer: Any, method: str, framework: str, known: dict[str, Any]) -> dict[str, Any]:
    peer = PEERS[method][framework]
    flags = {f.name for f in fields(spec_class(method)) if isinstance(f.default, bool)}
    values = {**peer.fields, **known}
    for field, argument in peer.arguments.items():
        if field in known:
            continue
        name, key = _place(argument.name)
        value = getattr(layer, name)
        if key is not None:
            value = (value or {}).get(key)
        if value is None and (argument.written or "").startswith("None"):
            continue
        values[field] = bool(value) if field in flags else argument.native(value)
    return values


def arguments_of(spec: NormSpec, framework: str, free: tuple[str, ...] = (), **fixed: Any) -> dict[str, Any]:
    """The arguments that make a framework's own layer obey ``spec``; a convention that it cannot have is Unsupported.

    ``free``: fields that may have any value. ``fixed``: fields that the framework fixes otherwise than its preset says.

    >>> import crossnorm
    >>> arguments_of(crossnorm.GroupNormSpec(channels=4, groups=2), "keras")
    {'epsilon': 1e-05, 'scale': True, 'groups': 2, 'center': True}
    """
    if framework not in PEERS[spec.method]:
        raise Unsupported(f"crossnorm.migrate: {framework} has no {spec.method} of its own; build crossnorm's: native=False")
    peer, arguments = PEERS[spec.method][framework], {}
    defaults = {f.name: f.default for f in fields(spec) if f.default is not MISSING} | dict(peer.fields) | fixed
    free += _SIZES if getattr(spec, "tracked", True) else (*_SIZES, "decay", "running_variance")
    for field in (f.name for f in fields(spec)):
        value, argument, default = getattr(spec, field), peer.arguments.get(field), defaults.get(field)
        if field not in free and (value != default if argument is None else value is None and default is not None):
            native_lacks(spec, field, f"{peer.name} has {default!r}")
        if argument is None:
            continue
        name, key = _place(argument.name)
        if key is None:
            arguments[name] = argument.native(value)
        elif value is not None:
            arguments.setdefault(name, {})[key] = value
    return arguments


def obeyed(layer: Any, spec: Callable[[], Any]) -> Any:
    """What ``spec`` gives; a layer whose attributes break its rules cannot be moved."""
    try:
        return spec()
    except (SpecError, TypeError) as error:
        refuse(layer, f"has attributes that no specification allows ({error})", "set them right")


def last_axis_first(kernel: NDArray[np.generic]) -> NDArray[np.generic]:
    """A kernel (\\*kernel, inputs, outputs) with its last axis, the row, and then the inputs first.

    >>> last_axis_first(np.zeros((3, 5, 2, 8))).shape
    (8, 2, 3, 5)
    """
    last = kernel.ndim - 1
    return np.ascontiguousarray(np.transpose(kernel, (last, last - 1, *range(last - 1))))


# Refusals.


def called(layer: Any) -> str:
    """How errors call a layer: by its name, as Keras' layers have one, or else by its class."""
    name = getattr(layer, "name", None)
    return f"the layer {name!r}" if isinstance(name, str) else f"the {type(layer).__name__}"


def refuse(layer: Any, what: str, remedy: str) -> NoReturn:
    """A layer that cannot be moved."""
    raise MigrationError(f"crossnorm.migrate: {called(layer)} {what}; {remedy}")


def inexpressible(thing: NormSpec | Linear, field: str, reason: str, layout: Layout | None = None) -> NoReturn:
    """A field of a specification, of settings or of a layout for which a framework has no means."""
    kind = thing.method if isinstance(thing, NormSpec) else f"a {thing.kind.replace('_', ' ')}"
    value = getattr(thing if layout is None else layout, field)
    raise Unsupported(f"crossnorm.migrate: {kind} with {field}={value!r}, where {reason}")


def native_lacks(spec: NormSpec, field: str, reason: str, layout: Layout | None = None) -> NoReturn:
    """The same where only the framework's own layer has none."""
    inexpressible(spec, field, f"{reason}; build crossnorm's own layer: native=False", layout)


def _place(argument: str) -> tuple[str, str | None]:
    """The name of an argument, and the key of the dictionary that it is, if it is one: ``renorm_clipping['rmax']``."""
    found = re.fullmatch(r"(\w+)\['(\w+)'\]", argument)
    return (found[1], found[2]) if found else (argument, None)
