"""Other normalization layers inside a model of one framework."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from crossnorm.errors import MigrationError
from crossnorm.spec import NormSpec

from ._description import Description, build, describe
from ._frameworks import framework_of, room
from ._parts import parts

Model = TypeVar("Model")


def convert(model: Model, rule: Callable[[str, Any, Description], Any]) -> Model:
    """Replace normalization layers by others, as ``rule`` says.

    Parameters and statistics that the new layer has too are taken over; a torch module keeps the very same objects, so that an
    optimizer goes on. Names, hooks, dtype, device, what is trainable and the training flag survive. What is new starts as its
    specification says.

    Args:
        model: a torch module or a Keras model, built.
        rule: one of `crossnorm.migrate.rules`, or any function of a layer's name, the layer and its `Description` that returns
            the specification of the new layer, which will be ours, or the new layer, or None to keep the old one.

    Returns:
        The model with its new layers; use what is returned. A torch module or a subclassed Keras model is changed in place.
        Instead of a functional or sequential Keras model there is a new one, with copies of all weights. A Keras model that was
        compiled is compiled anew, with an optimizer that has no state yet.

    Raises:
        MigrationError: the rule returned something else, no layer was replaced, or one cannot be. The model is as it was.

    >>> import torch
    >>> from crossnorm.migrate import rules
    >>> convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)), rules.group_norm(4))[1]
    GroupNorm(4, 8, eps=1e-05, affine=True, bias=True)
    """
    framework = framework_of(model)
    if not callable(rule):
        raise MigrationError(f"convert: {rule!r} is no rule; give a function, or one of crossnorm.migrate.rules")
    replacements: dict[int, Any] = {}
    for part in parts(model):
        if not isinstance(part.settings, NormSpec) or id(part.layer) in replacements:
            continue
        described = describe(part.layer)
        wanted = rule(part.name, part.layer, described)
        if wanted is not None:
            replacement = _replacement(part.name, described, wanted, framework)
            if any(replacement is other for other in replacements.values()):
                raise MigrationError(
                    f"convert: for {part.name!r} the rule returned a layer that it gave before; return a new one"
                )
            replacements[id(part.layer)] = replacement
    if not replacements:
        raise MigrationError("convert: the rule replaced no layer; look at crossnorm.migrate.parts(model) for what is there")
    return room(framework).convert(model, replacements)


def _replacement(name: str, described: Description, wanted: Any, framework: str) -> Any:
    if not isinstance(wanted, NormSpec):
        if framework_of(wanted) != framework:
            raise MigrationError(
                f"convert: for {name!r} the rule returned a layer of another framework; return one of {framework}"
            )
        return wanted
    spec, layout, arrays = described
    arrays = {array.name: arrays.get(array.name) for array in (*wanted.parameters, *wanted.state)} | _of_holder(arrays)
    for array in (*wanted.parameters, *wanted.state):
        given = arrays[array.name]
        if given is None or given.shape != array.shape:
            if array.initial is None:
                raise MigrationError(
                    f"convert: {wanted.method} at {name!r} needs {array.name!r}, which {spec.method} has not; return a layer"
                )
            arrays[array.name] = _initial(array, described)
    return build(wanted, layout, arrays, framework=framework)


def _of_holder(arrays: dict[str, Any]) -> dict[str, Any]:
    """What a reparametrization's description has beside the specification's arrays."""
    return {name: arrays[name] for name in ("weight", "bias") if name in arrays}


def _initial(array: Any, described: Description) -> Any:
    if isinstance(array.initial, int):
        return np.full(array.shape, array.initial, np.int64)
    floats = [given.dtype for given in described.arrays.values() if given.dtype.kind not in "iu"]
    return np.full(array.shape, array.initial, floats[0] if floats else np.float32)
