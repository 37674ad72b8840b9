"""``torch.nn`` as it is, with the parametrizations of ``torch.nn.utils.parametrizations``."""

from typing import Any

import torch
from torch.nn.utils import parametrizations

from crossnorm import BatchNormSpec, InstanceNormSpec, LayerNormSpec, NormSpec, SpectralNormSpec, WeightNormSpec, WeightSpec

from ..case import Case
from ..cases import Fault
from ._torch import TorchImplementation, lacks_of_layers, native_arguments, parametrized, spatial_rank

_CLASSES = {
    "batch_norm": "BatchNorm{}d",
    "instance_norm": "InstanceNorm{}d",
    "group_norm": "GroupNorm",
    "layer_norm": "LayerNorm",
    "rms_norm": "RMSNorm",
}


class TorchNN(TorchImplementation):
    name = "torch.nn"

    def methods(self) -> tuple[str, ...]:
        return (*_CLASSES, "spectral_norm", "weight_norm")

    def layer_class(self, spec: NormSpec, rank: int) -> type[torch.nn.Module]:
        cls: type[torch.nn.Module] = getattr(torch.nn, _CLASSES[spec.method].format(rank))
        return cls

    def build(self, case: Case) -> torch.nn.Module:
        cls = self.layer_class(case.spec, spatial_rank(case))
        arguments = native_arguments(case.spec, {})
        if case.defaults:
            required = ("num_features", "num_channels", "num_groups", "normalized_shape")
            arguments = {name: arguments[name] for name in required if name in arguments}
        return cls(**arguments)

    def wrap(self, spec: WeightSpec, module: torch.nn.Module, **arguments: Any) -> None:
        name = arguments.pop("name", "weight")
        if isinstance(spec, SpectralNormSpec):
            parametrizations.spectral_norm(module, name, **native_arguments(spec, arguments))
        elif isinstance(spec, WeightNormSpec):
            parametrizations.weight_norm(module, name, dim=0 if spec.norm_over == "row" else None)

    def raw(self, spec: WeightSpec, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        return parametrized(spec, module)

    def inexpressible(self, fault: Fault) -> str:
        return inexpressible_of_weights(fault)

    def lacks(self, case: Case) -> str:
        if case.layer is not None:
            return lacks_of_weights(case, self.name, "u_first")
        spec = case.spec
        if not spec.scale and getattr(spec, "offset", False):
            return "torch.nn has no offset without a scale"
        # What training stores does not matter where nothing is trained.
        updates = case.mode == "train" and getattr(spec, "tracked", False)
        if isinstance(spec, BatchNormSpec) and updates and spec.running_variance != "unbiased":
            return "torch.nn.BatchNorm stores the unbiased variance only"
        if isinstance(spec, InstanceNormSpec) and updates:
            if spec.running_variance != "instance_mean_unbiased":
                return "torch.nn.InstanceNorm stores the mean of unbiased variances only"
            if spec.decay is None:
                return "torch.nn.InstanceNorm has no cumulative average"
        if isinstance(spec, LayerNormSpec) and not spec.subtract_mean:
            return "torch.nn.LayerNorm always subtracts the mean"
        if isinstance(spec, BatchNormSpec | InstanceNormSpec) and any(case.single_valued(mode) for _, mode in case.steps):
            return "torch.nn refuses one value per statistic"
        if spec.method == "group_norm" and case.values_per_group == 1 and case.shape[0] == 1:
            return "torch.nn.GroupNorm refuses one value per group in a batch of one"
        return super().lacks(case)


def lacks_of_weights(case: Case, who: str, order: str) -> str:
    """What torch's spectral and weight normalization, old and new, have no means for."""
    spec, kind = case.spec, case.layer.kind if case.layer else ""
    if spec.eps_place != "maximum":  # type: ignore[attr-defined]
        return f"{who} bounds norms from below by eps"
    if isinstance(spec, SpectralNormSpec):
        if spec.iteration_order != order or spec.iterate != "training" or spec.stored != "uv":
            return f"{who} iterates {order.replace('_', ' ')}, in training, and stores u and v"
        if spec.iterations == 0:
            return f"{who} iterates once at least"
        # The rows of a transposed convolution are outputs here, inputs in weight normalization.
        rows = {"transposed": "output", "embedding": "input"}
    else:
        if not spec.scale or spec.eps:
            return f"{who} has no weight normalization without a length, or with eps"
        rows = {"transposed": "input", "embedding": "input"}
    if kind in rows and getattr(spec, f"{kind}_row") != rows[kind] and getattr(spec, "norm_over", "row") == "row":
        return f"{who}: the rows of this layer are its {rows[kind]}s"
    return lacks_of_layers(case)


def inexpressible_of_weights(fault: Fault) -> str:
    """torch's weight normalization takes neither eps nor anything else."""
    if isinstance(fault.spec, WeightNormSpec) and fault.arguments:
        return "torch's weight normalization has no such argument"
    if isinstance(fault.spec, SpectralNormSpec) and not set(fault.arguments) <= {"eps", "iterations"}:
        return "torch's spectral normalization has no such argument"
    return ""


IMPLEMENTATION = TorchNN()
