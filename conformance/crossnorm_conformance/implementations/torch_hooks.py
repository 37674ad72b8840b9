"""``torch.nn.utils``: spectral and weight normalization by the old forward hooks."""

import warnings
from typing import Any

import torch
from torch import nn

from crossnorm import SpectralNormSpec, WeightSpec

from ..case import Case
from ..cases import Fault
from ._torch import TorchImplementation, native_arguments
from .torch_nn import inexpressible_of_weights, lacks_of_weights


class TorchHooks(TorchImplementation):
    name = "torch.nn.utils"

    def methods(self) -> tuple[str, ...]:
        return ("spectral_norm", "weight_norm")

    def wrap(self, spec: WeightSpec, module: nn.Module, **arguments: Any) -> None:
        name = arguments.pop("name", "weight")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # weight_norm is deprecated
            if isinstance(spec, SpectralNormSpec):
                nn.utils.spectral_norm(module, name, **native_arguments(spec, arguments, "torch_hook"))
            else:
                nn.utils.weight_norm(module, name, dim=0 if spec.norm_over == "row" else None)  # type: ignore[attr-defined]

    def raw(self, spec: WeightSpec, module: Any) -> dict[str, torch.Tensor]:
        if isinstance(spec, SpectralNormSpec):
            return {"weight": module.weight_orig, "u": module.weight_u, "v": module.weight_v}
        return {"weight": module.weight_v, "scale": module.weight_g}

    def lacks(self, case: Case) -> str:
        return lacks_of_weights(case, self.name, "v_first")

    def inexpressible(self, fault: Fault) -> str:
        return inexpressible_of_weights(fault)


IMPLEMENTATION = TorchHooks()
