"""``keras.layers`` on the torch backend, in a process where Keras has that backend."""

from typing import Any

import keras
import torch

from ._keras_natives import NativeLayers, demand_backend
from ._keras_tensors import Step, call
from ._torch_tensors import strided


class KerasOnTorch(NativeLayers):
    name = "keras-on-torch"

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "keras": keras.__version__}

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

    def executions(self) -> tuple[str, ...]:
        return ("eager",)

    def stepper(self, execution: str) -> Step:
        return _step

    def tensor(self, values: Any, dtype: str, layout: str) -> torch.Tensor:
        dense = super().tensor(values, dtype, layout)
        return strided(dense) if layout == "strided" else dense


def _step(
    layer: keras.layers.Layer, x: torch.Tensor, upstream: torch.Tensor, training: bool | None
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor | None]]:
    # Ids have no gradient.
    x.requires_grad_(x.is_floating_point())
    variables = {v.path: v.value for v in layer.trainable_variables}
    y = call(layer, x, training)
    wanted = [tensor for tensor in (x, *variables.values()) if tensor.requires_grad]
    found = torch.autograd.grad(y, wanted, upstream, allow_unused=True) if y.requires_grad else [None] * len(wanted)
    gradients = dict(zip(map(id, wanted), found, strict=True))
    return y, gradients.get(id(x)), {path: gradients[id(value)] for path, value in variables.items()}


demand_backend(KerasOnTorch.name, "torch")
IMPLEMENTATION = KerasOnTorch()
