"""Torch's normalization layers and reparametrized modules, timm's and ours: described, built, written, as live tensors."""

from collections.abc import Mapping

from torch import Tensor, nn

from crossnorm.spec import WeightSpec

from .._description import Description
from .._held import Array, Held
from .._natives import refuse
from . import _activations, _reparametrizations
from ._held import check_present, take_dtypes


def describe(layer: nn.Module, name: str | None = None) -> Description:
    """See `crossnorm.migrate.describe`."""
    return _look(layer, name).describe()


def build(description: Description, native: bool = False, holder: nn.Module | None = None) -> nn.Module:
    """See `crossnorm.migrate.build`. The layer takes the dtypes of the arrays."""
    spec, _, arrays = description
    if isinstance(spec, WeightSpec):
        held = _reparametrizations.make(description, native, holder)
    else:
        held = _activations.make(description, native)
    take_dtypes(held, arrays)
    held.fill(arrays)
    module: nn.Module = held.layer
    return module


def write(layer: nn.Module, arrays: Mapping[str, Array], name: str | None = None) -> None:
    """See `crossnorm.migrate._held.Held.write`.

    >>> import numpy as np
    >>> layer = nn.LayerNorm(2)
    >>> write(layer, {"scale": np.array([2.0, 3.0], np.float32)})
    >>> layer.weight
    Parameter containing:
    tensor([2., 3.], requires_grad=True)
    """
    _look(layer, name).write(arrays)


def variables(layer: nn.Module, name: str | None = None) -> dict[str, tuple[Tensor, ...]]:
    """See `crossnorm.migrate._held.Held.variables`.

    >>> layer = nn.LayerNorm(2)
    >>> variables(layer)["scale"][0] is layer.weight
    True
    """
    return _look(layer, name).variables()


def _look(layer: nn.Module, name: str | None) -> Held:
    held = _reparametrizations.look(layer, name)
    if held is None and name is None:
        held = _activations.look(layer)
    if held is not None:
        return held
    check_present(layer, {})
    if name is not None:
        refuse(layer, f"has no reparametrized weight {name!r}", "name one that is, or leave out the name")
    refuse(layer, "is no normalization layer that is known", "give one of torch.nn, timm or crossnorm.torch")
