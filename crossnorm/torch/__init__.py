"""crossnorm.torch: the layers for PyTorch. This room imports torch and the specifications, nothing else.

Every layer is a subclass of the torch.nn layer of the same name and takes its place: same arguments, defaults, parameters,
buffers and checkpoints. What works on the native works on ours, except in tools that look for the native class itself:
``torch.fx.symbolic_trace`` takes for leaves the modules that live in torch.nn only, so that a tracer has to name ours in
``is_leaf_module``; ``torch.ao.quantization.fuse_modules`` has to be told of ours in ``additional_fuser_method_mapping``.

>>> import crossnorm, torch
>>> crossnorm.torch.layer(crossnorm.preset("keras", "batch_norm", channels=8))
BatchNorm2d(8, eps=0.001, momentum=0.01, affine=True, bias=True, track_running_stats=True, running_variance='biased', \
single_value='zero')
"""

from typing import Any

from crossnorm.errors import SpecError as _SpecError
from crossnorm.errors import Unsupported as _Unsupported
from crossnorm.spec import NormSpec as _NormSpec

from . import _base as _base  # first: it looks for torch
from . import _weight as _weight
from . import functional as functional
from ._base import ArgumentError as ArgumentError
from ._base import DtypeError as DtypeError
from ._base import InputError as InputError
from ._base import ShapeError as ShapeError
from ._base import TorchMissing as TorchMissing
from .batch_norm import BatchNorm1d as BatchNorm1d
from .batch_norm import BatchNorm2d as BatchNorm2d
from .batch_norm import BatchNorm3d as BatchNorm3d
from .batch_renorm import BatchRenorm1d as BatchRenorm1d
from .batch_renorm import BatchRenorm2d as BatchRenorm2d
from .batch_renorm import BatchRenorm3d as BatchRenorm3d
from .filter_response_norm import FilterResponseNorm1d as FilterResponseNorm1d
from .filter_response_norm import FilterResponseNorm2d as FilterResponseNorm2d
from .filter_response_norm import FilterResponseNorm3d as FilterResponseNorm3d
from .group_norm import GroupNorm as GroupNorm
from .instance_norm import InstanceNorm1d as InstanceNorm1d
from .instance_norm import InstanceNorm2d as InstanceNorm2d
from .instance_norm import InstanceNorm3d as InstanceNorm3d
from .layer_norm import LayerNorm as LayerNorm
from .rms_norm import RMSNorm as RMSNorm
from .spectral_norm import SpectralNorm as SpectralNorm
from .spectral_norm import spectral_norm as spectral_norm
from .switchable_norm import SwitchableNorm1d as SwitchableNorm1d
from .switchable_norm import SwitchableNorm2d as SwitchableNorm2d
from .switchable_norm import SwitchableNorm3d as SwitchableNorm3d
from .weight_norm import WeightNorm as WeightNorm
from .weight_norm import initialize_from_data as initialize_from_data
from .weight_norm import weight_norm as weight_norm
from .weight_standardization import WeightStandardization as WeightStandardization
from .weight_standardization import weight_standardization as weight_standardization

# A method whose layers differ by rank has one class for each number of spatial dimensions.
_LAYERS: dict[str, Any] = {
    "batch_norm": {1: BatchNorm1d, 2: BatchNorm2d, 3: BatchNorm3d},
    "layer_norm": LayerNorm,
    "group_norm": GroupNorm,
    "instance_norm": {1: InstanceNorm1d, 2: InstanceNorm2d, 3: InstanceNorm3d},
    "rms_norm": RMSNorm,
    "batch_renorm": {1: BatchRenorm1d, 2: BatchRenorm2d, 3: BatchRenorm3d},
    "filter_response_norm": {1: FilterResponseNorm1d, 2: FilterResponseNorm2d, 3: FilterResponseNorm3d},
    "switchable_norm": {1: SwitchableNorm1d, 2: SwitchableNorm2d, 3: SwitchableNorm3d},
}

# These change a module that there is already.
_REPARAMETRIZATIONS: dict[str, Any] = {
    "weight_standardization": WeightStandardization,
    "spectral_norm": SpectralNorm,
    "weight_norm": WeightNorm,
}


def layer(
    spec: _NormSpec,
    *,
    rank: int | None = None,
    layout: str | None = None,
    device: Any = None,
    dtype: Any = None,
    module: _base.nn.Module | None = None,
    name: str = "weight",
) -> Any:
    """The layer that obeys ``spec``.

    Args:
        spec: any specification that this room implements.
        rank: the number of spatial dimensions, 1, 2 or 3 (2 unless told otherwise); methods that do not care ignore it.
        layout: ``"channels_first"``, or None for the same; channels last is a memory format here, a property of the tensor.
        device: where the parameters live.
        dtype: of the parameters and statistics.
        module: for a reparametrization: what it is applied to. It is changed, and returned; the arguments above have no use.
        name: of the module's parameter that is reparametrized.

    Raises:
        SpecError: no layer for this rank; a reparametrization without a module, or another method with one.
        ArgumentError: the module has no such parameter, of another shape, or one that cannot be reparametrized.
        Unsupported: no layer for this method, or another layout.

    >>> import crossnorm, torch
    >>> layer(crossnorm.GroupNormSpec(channels=8, groups=2, eps=1e-6))
    GroupNorm(2, 8, eps=1e-06, affine=True, bias=True)
    >>> type(layer(crossnorm.BatchNormSpec(channels=8), rank=1)).__name__
    'BatchNorm1d'
    >>> layer(crossnorm.WeightNormSpec(shape=(2, 3)), module=torch.nn.Linear(3, 2)).parametrizations.weight[0]
    WeightNorm(shape=(2, 3))
    """
    reparametrization = _REPARAMETRIZATIONS.get(spec.method)
    if reparametrization is not None and module is not None:
        return _weight.apply_spec(reparametrization, spec, module, name)  # type: ignore[arg-type]
    if reparametrization is not None or module is not None:
        needs = "needs a module to work on: give module=" if module is None else "makes its own layer: leave module= out"
        raise _SpecError(f"crossnorm.torch.layer: module={type(module).__name__} with {spec.method}, which {needs}")
    if layout not in (None, "channels_first"):
        raise _Unsupported(
            f"crossnorm.torch.layer: layout={layout!r} is not 'channels_first'; torch layers take (batch, channel, *spatial), "
            "and channels last is a memory format of the tensor: use x.to(memory_format=torch.channels_last)"
        )
    choice = _LAYERS.get(spec.method)
    if choice is None:
        raise _Unsupported(
            f"crossnorm.torch.layer: no layer for {spec.method}; there are {', '.join([*_LAYERS, *_REPARAMETRIZATIONS])}"
        )
    if isinstance(choice, dict):
        rank = 2 if rank is None else rank
        if rank not in choice:
            raise _SpecError(f"crossnorm.torch.layer: rank={rank!r} is not 1, 2 or 3; give the number of spatial dimensions")
        choice = choice[rank]
    return choice.from_spec(spec, device=device, dtype=dtype)
