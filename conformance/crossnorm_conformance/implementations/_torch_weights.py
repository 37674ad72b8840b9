"""Running a reparametrized linear module, whoever reparametrized it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from crossnorm import SpectralNormSpec, WeightSpec

from ..case import Arrays, Case
from ..cases import Fault
from ..linear import Linear
from . import Misuse, Result
from ._torch_execution import compiled
from ._torch_tensors import Held, backward, in_shape, tensor

# The rows in which torch stores a weight.
_STORED = SpectralNormSpec(shape=1, transposed_row="input", embedding_row="input")


class Reparametrizes(Protocol):
    """What is asked of an implementation."""

    def linear(self, spec: WeightSpec, layer: Linear) -> nn.Module: ...
    def wrap(self, spec: WeightSpec, module: nn.Module, **arguments: Any) -> None: ...
    def raw(self, spec: WeightSpec, module: nn.Module) -> dict[str, torch.Tensor]: ...


def linear_module(layer: Linear) -> nn.Module:
    """The torch module of a linear layer."""
    if layer.kind == "dense":
        return nn.Linear(layer.inputs, layer.outputs, bias=False)
    if layer.kind == "embedding":
        return nn.Embedding(layer.inputs, layer.outputs)
    cls = getattr(nn, f"ConvTranspose{layer.rank}d" if layer.kind == "transposed" else f"Conv{layer.rank}d")
    module: nn.Module = cls(layer.inputs, layer.outputs, layer.kernel, groups=layer.groups, bias=False)
    return module


def run_weights(
    implementation: Reparametrizes, layer: Linear, case: Case, arrays: Arrays, execution: str, device: str
) -> dict[tuple[int, str], Result]:
    """Every step of a case about a weight. Weights stay float32 beside half inputs: autocast casts them."""
    spec: Any = case.spec
    module = implementation.linear(spec, layer).to(device)
    implementation.wrap(spec, module)
    if case.dtype == "float64":
        module = module.double()
    roles = [array.name for array in (*spec.parameters, *spec.state)]
    with torch.no_grad():
        for role in roles:
            start = implementation.raw(spec, module)[role]
            start.copy_(torch.from_numpy(np.array(arrays.values[role])).reshape(start.shape))

    def to_spec(values: Any) -> Any:
        return layer.arrange(layer.restore(values, _STORED), spec)

    held = Held(arrays)
    call = compiled(module) if execution == "compile" else module
    for step, mode in case.steps:
        module.train(mode.update_running)
        module.requires_grad_(case.mode != "frozen")
        module.zero_grad()
        weight = layer.arrange(layer.restore(arrays.values[f"weight{step}"], spec), _STORED)
        with torch.no_grad():
            implementation.raw(spec, module)["weight"].copy_(torch.from_numpy(np.array(weight)))
        x = held.give(f"x{step}", _input(case, arrays, step, device))
        # Cached: a native parametrization iterates whenever somebody reads the weight.
        with _mixed(case, device), nullcontext() if execution == "compile" else parametrize.cached():
            y = call(x)
            held.take(step, "effective_weight", module.weight, to_spec)
        held.take(step, "y", y)
        if case.differentiates(step):
            upstream = tensor(arrays.values[f"upstream{step}"], case.dtype, case.layout, device, channels=True)
            backward(y, held.give(f"upstream{step}", upstream))
            raw = implementation.raw(spec, module)
            held.take(step, "dx", x.grad)
            held.take(step, "dweight", raw["weight"].grad, to_spec)
            for parameter in spec.parameters:
                held.take(step, f"d{parameter.name}", raw[parameter.name].grad, in_shape(parameter.shape))
        for array in spec.state:
            held.take(step, array.name, implementation.raw(spec, module)[array.name].clone())
    return held.results()


def _input(case: Case, arrays: Arrays, step: int, device: str) -> torch.Tensor:
    values = arrays.values[f"x{step}"]
    if not case.inputs_differ:
        return torch.from_numpy(np.array(values)).to(device)
    return tensor(values, case.dtype, case.layout, device, channels=True).requires_grad_()


@contextmanager
def _mixed(case: Case, device: str) -> Iterator[None]:
    half = case.dtype in ("float16", "bfloat16")
    context: AbstractContextManager[Any] = torch.autocast(device, getattr(torch, case.dtype)) if half else nullcontext()
    with context:
        yield


def misuse_weights(implementation: Reparametrizes, fault: Fault) -> Misuse:
    """Ask for a reparametrization that cannot be."""
    spec: Any = fault.spec
    model, act = _misused(implementation, spec, fault)
    before = _arrays(model)
    try:
        act()
    except Exception as error:
        return Misuse(error, before, _arrays(model))
    return Misuse(None, before, _arrays(model))


def _misused(implementation: Reparametrizes, spec: WeightSpec, fault: Fault) -> tuple[nn.Module, Callable[[], None]]:
    """A model, and what is done to it."""
    rows, columns = spec.shape
    first, second = nn.Linear(columns, rows), nn.Linear(columns, rows)
    if fault.wrap == "no_kernel":
        first = nn.ReLU()  # type: ignore[assignment]
    if fault.wrap == "unbuilt":
        first = nn.LazyLinear(rows)
    if fault.wrap == "tied":
        second.weight = first.weight
    if fault.wrap in ("twice", "tied"):
        implementation.wrap(spec, first)
    arguments: dict[str, Any] = dict(fault.arguments)
    if fault.wrap == "unknown_kernel":
        arguments["name"] = "kernel"
    target = second if fault.wrap == "tied" else first
    return nn.ModuleList([first, second]), lambda: implementation.wrap(spec, target, **arguments)


def _arrays(model: nn.Module) -> dict[str, Any]:
    held = {name: value for name, value in model.state_dict().items() if not nn.parameter.is_lazy(value)}
    return {name: value.numpy().copy() for name, value in held.items()}
