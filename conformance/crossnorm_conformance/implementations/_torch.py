"""What the two torch implementations share: tensors from arrays, layouts, the steps of a case."""

import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from crossnorm import NormSpec, WeightSpec
from crossnorm.spec import SPECS

from ..case import Arrays, Case
from ..cases import Fault
from ..linear import Linear
from . import Misuse, Result
from ._peer import arguments_of
from ._torch_execution import Executed
from ._torch_tensors import Held, backward, in_shape, tensor
from ._torch_weights import linear_module, misuse_weights, run_weights

NAMES = {
    "running_mean": "running_mean",
    "running_variance": "running_var",
    "running_standard_deviation": "running_std",
    "renorm_mean": "renorm_mean",
    "renorm_variance": "renorm_var",
    "renorm_standard_deviation": "renorm_std",
    "batches_tracked": "num_batches_tracked",
    "scale": "weight",
    "offset": "bias",
    "mean_logits": "mean_weight",
    "variance_logits": "var_weight",
    "learned_eps": "learned_eps",
    "threshold": "tau",
}


class TorchImplementation:
    """Runs a ``torch.nn.Module``; subclasses say which one, and how they reparametrize a linear one."""

    name: str
    framework = "torch"
    native: str | None = None
    names: Mapping[str, str] = NAMES
    """The attributes of a layer by their roles."""

    def methods(self) -> tuple[str, ...]:
        """The methods that it has."""
        return tuple(SPECS)

    def build(self, case: Case) -> torch.nn.Module:
        """The layer of the case, with initial parameters."""
        raise NotImplementedError

    def misbuild(self, fault: Fault) -> torch.nn.Module:
        """The layer of a fault, its arguments as a user would pass them."""
        arguments = native_arguments(fault.spec, dict(fault.arguments))
        return self.layer_class(fault.spec, rank=2)(**arguments)

    def layer_class(self, spec: NormSpec, rank: int) -> type[torch.nn.Module]:
        """The class of a method's layer for a number of spatial dimensions."""
        raise NotImplementedError

    def linear(self, spec: WeightSpec, layer: Linear) -> torch.nn.Module:
        """The linear layer whose weight is to be reparametrized."""
        return linear_module(layer)

    def wrap(self, spec: WeightSpec, module: torch.nn.Module, **arguments: Any) -> None:
        """Reparametrize the module's weight; ``arguments`` are a fault's."""
        raise NotImplementedError

    def raw(self, spec: WeightSpec, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """What a reparametrized module holds: ``"weight"`` as torch stores it, ``"scale"``, ``"u"`` and ``"v"``."""
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

    def executions(self) -> tuple[str, ...]:
        compiles = any(map(shutil.which, ("c++", "g++", "clang++", "cl")))
        return ("eager", *(("compile",) if compiles else ()), "export", "autocast")

    def shows(self, case: Case, quantity: str) -> bool:
        return True

    def unsupported(self, case: Case, device: str) -> str:
        return self.lacks(case) if device in self.devices() else f"no device {device}"

    def lacks(self, case: Case) -> str:
        """What torch or the layer has no means for; empty if it has."""
        if case.layer is not None:
            return lacks_of_layers(case)
        return "torch normalises trailing dimensions only" if case.layout == "leading" else ""

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        if case.layer is not None:
            return run_weights(self, case.layer, case, arrays, execution, device)
        layer = self.build(case).to(device)
        if arrays.dtypes.get("scale", "") == "float64" or case.dtype == "float64":
            layer = layer.double()
        self._load(layer, case, arrays)
        channels = hasattr(case.spec, "channels")
        held = Held(arrays)
        executed = Executed(layer, execution, case.dtype, device)
        for step, mode in case.steps:
            executed.switch(training=mode.update_running, learning=case.mode != "frozen")
            arguments = case.dtype, case.layout, device, channels
            x = held.give(f"x{step}", tensor(arrays.values[f"x{step}"], *arguments).requires_grad_())
            y = executed(x)
            held.take(step, "y", y)
            if case.differentiates(step):
                backward(y, held.give(f"upstream{step}", tensor(arrays.values[f"upstream{step}"], *arguments)))
                held.take(step, "dx", x.grad)
                for parameter in case.spec.parameters:
                    gradient = executed.held(self.names[parameter.name]).grad
                    held.take(step, f"d{parameter.name}", gradient, in_shape(parameter.shape))
            for array in case.spec.state:
                if self.shows(case, array.name):
                    held.take(step, array.name, executed.held(self.names[array.name]).clone(), in_shape(array.shape))
        return held.results()

    def inexpressible(self, fault: Fault) -> str:
        return ""

    def misuse(self, fault: Fault) -> Misuse:
        if isinstance(fault.spec, WeightSpec):
            return misuse_weights(self, fault)
        before: dict[str, Any] = {}
        layer = None
        try:
            layer = self.misbuild(fault)
            before = self._state(layer)
            layer(torch.ones(fault.shape, dtype=getattr(torch, fault.dtype)))
        except Exception as error:
            return Misuse(error, before, self._state(layer))
        return Misuse(None, before, self._state(layer))

    def _load(self, layer: torch.nn.Module, case: Case, arrays: Arrays) -> None:
        with torch.no_grad():
            for role, name in self.names.items():
                if role in arrays.values and hasattr(layer, name):
                    held = getattr(layer, name)
                    held.copy_(torch.from_numpy(np.array(arrays.values[role])).reshape(held.shape))

    def _state(self, layer: torch.nn.Module | None) -> dict[str, Any]:
        return {} if layer is None else {name: buffer.numpy().copy() for name, buffer in layer.named_buffers()}


def lacks_of_layers(case: Case) -> str:
    """What torch's linear layers have no means for."""
    kind = case.layer.kind if case.layer else ""
    if kind == "depthwise" and getattr(case.spec, "depthwise_row", "output") != "output":
        return "torch has no depthwise layer apart from the convolution in groups"
    if kind == "embedding" and case.dtype in ("float16", "bfloat16"):
        return "torch's autocast leaves embeddings in float32"
    return ""


def parametrized(spec: WeightSpec, module: Any) -> dict[str, torch.Tensor]:
    """What `torch.nn.utils.parametrize` holds of a weight: the same names in the natives and in ours."""
    held = module.parametrizations.weight
    if spec.method == "weight_norm" and spec.scale:
        return {"weight": held.original1, "scale": held.original0}
    found = {"weight": held.original}
    names = {"scale": "gain", "u": "_u", "v": "_v"}
    return found | {role: getattr(held[0], name) for role, name in names.items() if hasattr(held[0], name)}


def native_arguments(spec: NormSpec, changes: Mapping[str, Any], framework: str = "torch") -> dict[str, Any]:
    """The constructor arguments of ``torch.nn`` for a specification's fields, by the names that the presets give them."""
    native = arguments_of(framework, spec, changes)
    if "affine" in native:
        native["affine"] = native["affine"] or native["bias"]
    return native


def spatial_rank(case: Case) -> int:
    """The number of spatial dimensions of the layer class: 1d takes inputs without any, too."""
    return max(len(case.shape) - 2, 1)
