"""``crossnorm.torch``."""

import torch

import crossnorm
import crossnorm.torch
from crossnorm import NormSpec

from ..case import Case
from ._torch import TorchImplementation, spatial_rank
from .torch_nn import IMPLEMENTATION as NATIVE


class CrossnormTorch(TorchImplementation):
    name = "crossnorm-torch"
    native = NATIVE.name

    def layer_class(self, spec: NormSpec, rank: int) -> type[torch.nn.Module]:
        cls: type[torch.nn.Module] = getattr(crossnorm.torch, NATIVE.layer_class(spec, rank).__name__)
        return cls

    def build(self, case: Case) -> torch.nn.Module:
        if case.defaults:
            return self.layer_class(case.spec, spatial_rank(case))(*_required(case.spec))
        return crossnorm.torch.layer(case.spec, rank=spatial_rank(case))

    def versions(self) -> dict[str, str]:
        return {"crossnorm": crossnorm.__version__, **super().versions()}


def _required(spec: NormSpec) -> tuple[object, ...]:
    """The positional arguments without a default, in torch's order."""
    return tuple(getattr(spec, name) for name in ("groups", "channels", "shape") if hasattr(spec, name))


IMPLEMENTATION = CrossnormTorch()
