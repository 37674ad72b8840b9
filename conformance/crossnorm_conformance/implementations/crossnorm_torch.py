"""``crossnorm.torch``."""

from typing import Any

import torch

import crossnorm
import crossnorm.torch
from crossnorm import NormSpec, WeightSpec

from ..case import Case
from ..cases import Fault
from ._torch import TorchImplementation, parametrized, spatial_rank
from .torch_nn import IMPLEMENTATION as NATIVE

_CLASSES = {
    "batch_norm": "BatchNorm{}d",
    "instance_norm": "InstanceNorm{}d",
    "group_norm": "GroupNorm",
    "layer_norm": "LayerNorm",
    "rms_norm": "RMSNorm",
    "batch_renorm": "BatchRenorm{}d",
    "switchable_norm": "SwitchableNorm{}d",
    "filter_response_norm": "FilterResponseNorm{}d",
}


class CrossnormTorch(TorchImplementation):
    name = "crossnorm-torch"
    native = NATIVE.name

    def layer_class(self, spec: NormSpec, rank: int) -> type[torch.nn.Module]:
        cls: type[torch.nn.Module] = getattr(crossnorm.torch, _CLASSES[spec.method].format(rank))
        return cls

    def build(self, case: Case) -> torch.nn.Module:
        if case.defaults:
            return self.layer_class(case.spec, spatial_rank(case))(*_required(case.spec))
        return crossnorm.torch.layer(case.spec, rank=spatial_rank(case))

    def misbuild(self, fault: Fault) -> torch.nn.Module:
        if fault.spec.method in NATIVE.methods():
            return super().misbuild(fault)
        # No native to borrow the names of its arguments from: ours are the fields' but for torch's own words.
        arguments: dict[str, Any] = dict(fault.arguments)
        if "decay" in arguments:
            arguments["momentum"] = 1 - arguments.pop("decay")
        return self.layer_class(fault.spec, rank=2)(*_required(fault.spec), **arguments)

    def wrap(self, spec: WeightSpec, module: torch.nn.Module, **arguments: Any) -> None:
        if arguments or _is_default(spec):
            getattr(crossnorm.torch, spec.method)(module, **arguments)
        else:
            crossnorm.torch.layer(spec, module=module)

    def raw(self, spec: WeightSpec, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        return parametrized(spec, module)

    def versions(self) -> dict[str, str]:
        return {"crossnorm": crossnorm.__version__, **super().versions()}


def _is_default(spec: WeightSpec) -> bool:
    """Whether no field but the shape was given: then no argument is."""
    return spec == type(spec)(shape=spec.shape)


def _required(spec: NormSpec) -> tuple[object, ...]:
    """The positional arguments without a default, in torch's order."""
    return tuple(getattr(spec, name) for name in ("groups", "channels", "shape") if hasattr(spec, name))


IMPLEMENTATION = CrossnormTorch()
