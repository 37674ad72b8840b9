"""A torch module of somebody's own, a function that builds one, or a plain function of tensors."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from crossnorm import NormSpec, WeightSpec

from ..case import Case
from . import _given
from ._torch import TorchImplementation


class Given(_given.Given, TorchImplementation):
    """Its parameters and buffers are found by torch's usual names, or by the roles that were given."""

    def layouts(self, spec: NormSpec) -> Sequence[str]:
        if self._layouts is not None:
            return self._layouts
        return ("channels_first", "channels_last", "strided") if hasattr(spec, "channels") else ("contiguous", "strided")

    def executions(self) -> tuple[str, ...]:
        return ("eager", "compile", "export", "autocast")

    def build(self, case: Case) -> nn.Module:
        if self.kind == "function":
            return _Function(self.layer, case.spec)
        return copy.deepcopy(self.layer) if self.kind == "layer" else self.made(case.spec)

    def shows(self, case: Case, quantity: str) -> bool:
        # Many layers do without a counter; what it is needed for shows in the statistics.
        return quantity != "batches_tracked" or hasattr(self.build(case), self.names[quantity])

    def try_out(self, case: Case) -> None:
        if case.layer is not None:
            return
        layer = self.build(case).eval()
        for array in (*case.spec.parameters, *case.spec.state):
            if array.name != "batches_tracked":
                _given.find_attribute(self.name, [layer], array.name, [self.names[array.name]])
        with torch.no_grad():
            layer(torch.zeros(case.shape))

    def wrap(self, spec: WeightSpec, module: nn.Module, **arguments: Any) -> None:
        if self.kind == "function":
            parametrize.register_parametrization(module, "weight", _Function(self.layer, spec))
        else:
            self.layer(module)

    def raw(self, spec: WeightSpec, module: nn.Module) -> dict[str, torch.Tensor]:
        roles = ["weight", *(array.name for array in (*spec.parameters, *spec.state))]
        owners: list[Any] = [module]
        if parametrize.is_parametrized(module):
            held: Any = module.parametrizations
            owners = [held.weight, *held.weight]
        # A hook leaves a plain tensor in the weight's own place.
        names = {role: [*_HELD.get(role, ()), self.names.get(role, role), role] for role in roles}
        return {role: _given.find_attribute(self.name, owners, role, names[role]) for role in roles}


# What torch's own parametrizations and hooks call what they hold.
_HELD = {
    "weight": ("original", "original1", "weight_orig", "weight_v"),
    "scale": ("original0", "weight_g", "gain"),
    "u": ("_u", "weight_u"),
    "v": ("_v", "weight_v"),
}


class _Function(nn.Module):
    """A plain function with the parameters and the state of a specification, by their roles and by torch's names."""

    def __init__(self, function: Any, spec: NormSpec) -> None:
        super().__init__()
        self.function, self.spec = function, spec
        for array in spec.parameters:
            self.register_parameter(array.name, nn.Parameter(torch.full(array.shape, array.initial or 0.0)))
        for array in spec.state:
            dtype = torch.int64 if array.name == "batches_tracked" else torch.float32
            self.register_buffer(array.name, torch.full(array.shape, array.initial or 0, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parameters = {array.name: getattr(self, array.name) for array in self.spec.parameters}
        state = {array.name: getattr(self, array.name) for array in self.spec.state}
        y, new = _given.call(self.function, x, parameters, state, self.training)
        if self.training:
            with torch.no_grad():
                for name, value in new.items():
                    state[name].copy_(torch.as_tensor(value))
        return y
