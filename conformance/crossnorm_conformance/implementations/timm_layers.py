"""``timm.layers`` as it is: its norm layers without an activation, and its weight-standardized convolutions."""

import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import nn

from crossnorm import NormSpec, WeightSpec

from ..case import Case
from ..cases import Fault
from ..linear import Linear
from ._peer import arguments_of
from ._torch import TorchImplementation
from .torch_nn import IMPLEMENTATION as TORCH_NN


def _layers() -> ModuleType:
    """``timm.layers``. It imports one class of torchvision, to recognise it, and torchvision is built for one build of torch
    only; the package around it imports far more. Without torchvision both are stand-ins while the layers are imported."""
    if find_spec("torchvision"):
        return import_module("timm.layers")
    names = ("timm", "torchvision", "torchvision.ops", "torchvision.ops.misc")
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    places = find_spec("timm").submodule_search_locations  # type: ignore[union-attr]
    sys.modules.update({name: ModuleType(name) for name in names})
    sys.modules["timm"].__path__ = places
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = nn.Module  # type: ignore[attr-defined]
    try:
        return import_module("timm.layers")
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)


layers: Any = _layers()

_CLASSES = {
    "batch_norm": layers.BatchNormAct2d,
    "group_norm": layers.GroupNorm,
    "layer_norm": layers.LayerNorm,
    "rms_norm": layers.RmsNorm,
    "filter_response_norm": layers.FilterResponseNormTlu2d,
}
# Of the channels at each position of an image.
_OF_CHANNELS = {"layer_norm": layers.LayerNorm2d, "rms_norm": layers.RmsNorm2d}


class TimmLayers(TorchImplementation):
    name = "timm"
    framework = "timm"

    def methods(self) -> tuple[str, ...]:
        return (*_CLASSES, "weight_standardization")

    def versions(self) -> dict[str, str]:
        return {"timm": version("timm"), "torch": torch.__version__}

    def executions(self) -> tuple[str, ...]:
        return ("eager",)

    def shows(self, case: Case, quantity: str) -> bool:
        return quantity != "effective_weight"  # computed inside the convolution

    def build(self, case: Case) -> nn.Module:
        if case.layout != "leading":
            return _layer(_CLASSES[case.spec.method], case.spec, defaults=bool(case.defaults))
        layer = _layer(_OF_CHANNELS[case.spec.method], case.spec)
        layer.register_forward_pre_hook(lambda _, inputs: inputs[0].movedim(-1, 1))
        layer.register_forward_hook(lambda _, inputs, y: y.movedim(1, -1))
        return layer

    def misbuild(self, fault: Fault) -> nn.Module:
        return _layer(_CLASSES[fault.spec.method], fault.spec, fault.arguments)

    def linear(self, spec: WeightSpec, layer: Linear) -> nn.Module:
        """The convolution standardizes its weight itself."""
        options: dict[str, Any] = {"groups": layer.groups, "padding": 0, "bias": False, "eps": spec.eps}
        if spec.scale:
            return layers.ScaledStdConv2d(layer.inputs, layer.outputs, layer.kernel, gamma=spec.gain, **options)
        return layers.StdConv2d(layer.inputs, layer.outputs, layer.kernel, **options)

    def wrap(self, spec: WeightSpec, module: nn.Module, **arguments: Any) -> None:
        """Nothing is left to be done."""

    def raw(self, spec: WeightSpec, module: Any) -> dict[str, torch.Tensor]:
        return {"weight": module.weight} | ({"scale": module.gain} if spec.scale else {})

    def lacks(self, case: Case) -> str:
        spec: Any = case.spec
        if case.layer is not None:
            return _lacks_of_convolutions(spec, case.layer)
        if spec.method in ("batch_norm", "filter_response_norm") and len(case.shape) != 4:
            return f"timm has {spec.method} for images only"
        if spec.method == "filter_response_norm":
            if not (spec.scale and spec.offset):
                return "timm.layers.FilterResponseNormTlu2d always has a scale and an offset"
            if spec.learned_eps or spec.threshold == "element":
                return "timm.layers.FilterResponseNormTlu2d has a threshold for each channel and no learned eps"
            return ""
        if spec.scale != getattr(spec, "offset", spec.scale):
            return f"timm has {spec.method} with scale and offset, or with neither"
        if case.layout == "leading":
            images = len(case.shape) == 4 and len(spec.parameter_shape) == 1
            if not images:
                return "timm normalises the last axes, or the channels of an image"
            return "" if getattr(spec, "subtract_mean", True) else "timm.layers.LayerNorm2d always subtracts the mean"
        return TORCH_NN.lacks(case)

    def inexpressible(self, fault: Fault) -> str:
        if isinstance(fault.spec, WeightSpec):
            return "timm's convolution standardizes its own weight: there is nothing to be wrapped"
        if fault.arguments.keys() & {"threshold", "learned_eps"}:
            return "timm.layers.FilterResponseNormTlu2d has no such argument"
        return ""


def _layer(cls: type[nn.Module], spec: NormSpec, changes: Any = None, defaults: bool = False) -> nn.Module:
    if spec.method == "batch_norm":
        arguments = arguments_of("torch", spec, changes)
        return cls(**{name: value for name, value in arguments.items() if name != "bias"}, apply_act=False)
    arguments = arguments_of("timm", spec, changes)
    if "apply_act" in arguments:
        arguments["apply_act"] = arguments["apply_act"] is not None
    if defaults:
        arguments = {name: arguments[name] for name in ("num_channels", "channels", "num_features") if name in arguments}
    return cls(**arguments)


def _lacks_of_convolutions(spec: Any, layer: Linear) -> str:
    if layer.kind not in ("convolution", "depthwise") or layer.rank != 2:
        return "timm standardizes the weights of Conv2d only"
    if layer.kind == "depthwise" and spec.depthwise_row != "output":
        return "torch has no depthwise layer apart from the convolution in groups"
    if (spec.eps_place, spec.ddof) != ("variance", 0):
        return "timm takes the biased variance and adds eps to it"
    if spec.scale != spec.fan_in_scaling or (spec.gain != 1 and not spec.scale):
        return "timm has scale, gain and the root of the fan-in together, or none of them"
    return ""


IMPLEMENTATION = TimmLayers()
