"""Torch's normalization layers and reparametrized modules, timm's and ours: described, built, written, as live tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossnorm.spec import WeightSpec

from .._description import Description, checked
from . import _activations, _reparametrizations
from ._held import Held, check_present, refuse


def describe(layer: nn.Module, name: str | None = None) -> Description:
    """See `crossnorm.migrate.describe`."""
    held = _held(layer, name)
    return checked(held.spec, held.layout, held.arrays(), "describe")


def build(description: Description, native: bool = False, holder: Any = None) -> nn.Module:
    """See `crossnorm.migrate.build`."""
    spec, layout, arrays = description
    if isinstance(spec, WeightSpec):
        layer, held = _reparametrizations.make(spec, layout, arrays, native, holder)
    elif holder is not None:
        refuse(holder, f"is the holder of {spec.method}, which is a layer of its own", "leave holder out")
    else:
        layer = _activations.make(spec, layout, native)
        held = _held(layer, None)
    for role, array in arrays.items():
        held.variables[role].data = held.stored(role, array)  # data: the array's dtype as well
    held.refresh()
    return layer


def write(layer: nn.Module, arrays: Mapping[str, NDArray[np.generic]], name: str | None = None) -> None:
    """Overwrite a layer's arrays in place, by the names of its description; its dtypes and devices stay.

    Args:
        layer: what `describe` describes.
        arrays: some or all, in the specification's shapes.
        name: of the reparametrized weight, where a module has several.

    Raises:
        MigrationError: no such layer; an array that it does not have, or of another shape. Nothing was written.

    >>> layer = nn.LayerNorm(2)
    >>> write(layer, {"scale": np.array([2.0, 3.0])})
    >>> layer.weight
    Parameter containing:
    tensor([2., 3.], requires_grad=True)
    """
    held = _held(layer, name)
    shapes = {role: array.shape for role, array in held.arrays().items()}
    for role, array in arrays.items():
        if shapes.get(role) != np.shape(array):
            there = f"an array {role!r} of shape {shapes[role]}" if role in shapes else f"no array {role!r}"
            refuse(layer, f"has {there}, not one of shape {np.shape(array)}", f"give some of {shapes}")
    new = {role: held.stored(role, array) for role, array in arrays.items()}
    with torch.no_grad():
        for role, tensor in new.items():
            held.variables[role].copy_(tensor)
        held.refresh()


def variables(layer: nn.Module, name: str | None = None) -> dict[str, Tensor]:
    """The live tensors behind a layer's arrays, in the shapes in which torch stores them.

    >>> layer = nn.LayerNorm(2)
    >>> variables(layer)["scale"] is layer.weight
    True
    """
    return dict(_held(layer, name).variables)


def _held(layer: Any, name: str | None) -> Held:
    held = _reparametrizations.look(layer, name)
    if held is None and name is None:
        held = _activations.look(layer)
    if held is None:
        check_present(layer, {})
        what = "is no normalization layer that is known" if name is None else f"has no reparametrized weight {name!r}"
        refuse(layer, what, "give one of torch.nn, timm or crossnorm.torch")
    return held
