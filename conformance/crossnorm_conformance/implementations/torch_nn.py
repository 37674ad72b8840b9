"""``torch.nn`` as it is."""

import torch

from crossnorm import BatchNormSpec, InstanceNormSpec, LayerNormSpec, NormSpec

from ..case import Case
from ._torch import TorchImplementation, native_arguments, spatial_rank

_CLASSES = {
    "batch_norm": "BatchNorm{}d",
    "instance_norm": "InstanceNorm{}d",
    "group_norm": "GroupNorm",
    "layer_norm": "LayerNorm",
    "rms_norm": "RMSNorm",
}


class TorchNN(TorchImplementation):
    name = "torch.nn"

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

    def lacks(self, case: Case) -> str:
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


IMPLEMENTATION = TorchNN()
