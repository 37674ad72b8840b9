"""What frameworks call the fields of a specification, read from a native layer and written into its constructor."""

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from crossnorm.errors import MigrationError, SpecError, Unsupported
from crossnorm.spec import NormSpec
from crossnorm.spec.presets import PEERS, spec_class

# What a layer learns from its input, or has an argument for that says no more than an array's shape does.
_SIZES = ("channels", "shape", "spatial")


def fields_of(layer: Any, method: str, framework: str) -> dict[str, Any]:
    """The fields that a native layer's attributes amount to now, with those that its framework fixes; without the sizes.

    >>> from types import SimpleNamespace
    >>> fields_of(SimpleNamespace(epsilon=0.5, momentum=0.75, center=True, scale=False), "batch_norm", "keras")["decay"]
    0.75
    """
    peer = PEERS[method][framework]
    flags = {f.name for f in fields(spec_class(method)) if isinstance(f.default, bool)}
    values = dict(peer.fields)
    for field, argument in peer.arguments.items():
        if field in _SIZES:
            continue
        name, key = _place(argument.name)
        value = getattr(layer, name)
        if key is not None:
            value = (value or {}).get(key)
        if value is None and (argument.written or "").startswith("None"):
            continue
        values[field] = bool(value) if field in flags else argument.native(value)
    return values


def arguments_of(spec: NormSpec, framework: str, **fixed: Any) -> dict[str, Any]:
    """The arguments that make a framework's own layer obey ``spec``; a convention that it cannot have is Unsupported.

    ``fixed``: fields that the framework fixes now as its preset does not say.

    >>> import crossnorm
    >>> arguments_of(crossnorm.GroupNormSpec(channels=4, groups=2), "keras")
    {'epsilon': 1e-05, 'scale': True, 'groups': 2, 'center': True}
    """
    if framework not in PEERS[spec.method]:
        raise Unsupported(f"crossnorm.migrate: {framework} has no {spec.method} of its own; build crossnorm's: native=False")
    peer, arguments = PEERS[spec.method][framework], {}
    defaults = {f.name: f.default for f in fields(spec) if f.default is not MISSING} | dict(peer.fields) | fixed
    for field in (f.name for f in fields(spec) if f.name not in _SIZES):
        value, argument, default = getattr(spec, field), peer.arguments.get(field), defaults.get(field)
        if field in ("decay", "running_variance") and not getattr(spec, "tracked", True):
            continue
        if (argument is None and value != default) or (value is None and default is not None):
            refuse(spec, field, f"{peer.name}, which has {default!r}")
        if argument is None:
            continue
        name, key = _place(argument.name)
        if key is None:
            arguments[name] = argument.native(value)
        elif value is not None:
            arguments.setdefault(name, {})[key] = value
    return arguments


def spec_of(who: str, method: str, values: Mapping[str, Any]) -> NormSpec:
    """The specification with these fields, for a layer called ``who``."""
    return obeyed(who, lambda: spec_class(method)(**values))


def obeyed(who: str, spec: Callable[[], NormSpec]) -> NormSpec:
    """The specification; a layer, called ``who``, whose attributes break its rules cannot be moved."""
    try:
        return spec()
    except SpecError as error:
        raise MigrationError(f"crossnorm.migrate: {who} obeys no specification: {error}") from None


def last_axis_first(kernel: NDArray[np.generic]) -> NDArray[np.generic]:
    """A kernel (\\*kernel, inputs, outputs) with its last axis, the row, and then the inputs first.

    >>> last_axis_first(np.zeros((3, 5, 2, 8))).shape
    (8, 2, 3, 5)
    """
    last = kernel.ndim - 1
    return np.transpose(kernel, (last, last - 1, *range(last - 1)))


def refuse(spec: NormSpec, field: str, native: str) -> NoReturn:
    """A convention that a native layer has no means for."""
    what = f"{spec.method} with {field}={getattr(spec, field)!r} is beyond {native}"
    raise Unsupported(f"crossnorm.migrate: {what}; build crossnorm's own layer: native=False")


def _place(argument: str) -> tuple[str, str | None]:
    """The name of an argument, and the key of the dictionary that it is, if it is one: ``renorm_clipping['rmax']``."""
    found = re.fullmatch(r"(\w+)\['(\w+)'\]", argument)
    return (found[1], found[2]) if found else (argument, None)
