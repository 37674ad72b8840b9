"""The right answer to a case: what the reference says, step after step, and how exact an answer has to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm import reference, rounding
from crossnorm.reference import Quantity

from .case import Arrays, Case, draw
from .linear import Linear

Array = NDArray[Any]
Key = tuple[int, str]

OUTPUTS = ("effective_weight", "y")
PARAMETER_GRADIENTS = (
    "dweight", "dscale", "doffset", "dmean_logits", "dvariance_logits", "dlearned_eps", "dthreshold",
)  # fmt: skip
RUNNING_STATISTICS = (
    "running_mean", "running_variance", "running_standard_deviation", "renorm_mean", "renorm_variance",
    "renorm_standard_deviation", "batches_tracked", "u", "v",
)  # fmt: skip
QUANTITIES = {"outputs": OUTPUTS, "gradients": ("dx", *PARAMETER_GRADIENTS), "running_statistics": RUNNING_STATISTICS}


@dataclass(frozen=True, slots=True)
class Oracle:
    """The reference's answer to a case: exact quantities and rounding units, keyed by (step, quantity)."""

    arrays: Arrays
    exact: Mapping[Key, Quantity]
    units: Mapping[Key, Array]
    stored: Mapping[Key, str]


@lru_cache(maxsize=2)
def oracle(case: Case, seed: int) -> Oracle:
    """Evaluate the reference on the case's inputs, and again on perturbed ones; the state runs through the steps."""
    arrays = draw(case, seed)

    def evaluate(values: Mapping[str, Array]) -> dict[Key, Quantity]:
        state = {array.name: values[array.name] for array in case.spec.state}
        quantities: dict[Key, Quantity] = {}
        for step, _ in case.steps:
            found, state = (
                _normalized(case, step, values, state)
                if case.layer is None
                else _through(case.layer, case, step, values, state)
            )
            quantities |= {(step, name): quantity for name, quantity in found.items()}
        return {key: quantities[key] for key in keys_of(case)}

    # Outputs and input gradients in the input's dtype, everything else in the one that sums are formed in.
    stored = {
        (step, name): case.dtype if name in ("y", "dx") else rounding.accumulation(case.dtype) for step, name in keys_of(case)
    }
    exact, units = rounding.unit(evaluate, arrays.oracle(case.dtype), arrays.dtypes, stored, case.seed(seed))
    return Oracle(arrays, exact, units, stored)


def keys_of(case: Case) -> list[tuple[int, str]]:
    """Every (step, quantity) that the case has, without running anything."""
    keys = []
    for step, _ in case.steps:
        keys += [(step, name) for name in (*(("effective_weight",) if case.layer else ()), "y")]
        if case.differentiates(step):
            inputs = ("x",) if case.inputs_differ else ()
            learned = (*(("weight",) if case.layer else ()), *(p.name for p in case.spec.parameters))
            keys += [(step, f"d{name}") for name in (*inputs, *(learned if case.mode != "frozen" else ()))]
        keys += [(step, array.name) for array in case.spec.state]
    return keys


def _normalized(
    case: Case, step: int, values: Mapping[str, Array], state: Mapping[str, Array]
) -> tuple[dict[str, Quantity], dict[str, Array]]:
    """One step of a layer that normalises its input."""
    x, mode = values[f"x{step}"], dict(case.steps)[step]
    parameters = {p.name: values[p.name] for p in case.spec.parameters}
    forward = reference.forward(case.spec, x, parameters, state, mode)
    gradients = {}
    if case.differentiates(step):
        gradients = reference.backward(case.spec, x, parameters, state, mode, values[f"upstream{step}"])
    found = {"y": forward.y, **{f"d{name}": quantity for name, quantity in gradients.items()}, **forward.state}
    return found, {name: quantity.value for name, quantity in forward.state.items()}


def _through(
    layer: Linear, case: Case, step: int, values: Mapping[str, Array], state: Mapping[str, Array]
) -> tuple[dict[str, Quantity], dict[str, Array]]:
    """One step of a linear layer with a reparametrized weight: the chain rule, from its outputs to the raw weight."""
    spec: Any = case.spec
    x, raw, mode = values[f"x{step}"], values[f"weight{step}"], dict(case.steps)[step]
    parameters = {p.name: values[p.name] for p in spec.parameters}
    forward = reference.forward(spec, raw, parameters, state, mode)
    weight = layer.restore(forward.y.value, spec)
    y = layer(weight, x)
    found = {"effective_weight": forward.y, "y": _sums(y, layer(weight**2, x if layer.kind == "embedding" else x**2))}
    if case.differentiates(step):
        upstream = values[f"upstream{step}"]
        if case.inputs_differ:
            squares = layer.input_gradient(weight**2, x, upstream**2)
            found["dx"] = _sums(layer.input_gradient(weight, x, upstream), squares)
        of_weight = layer.arrange(layer.weight_gradient(weight, x, upstream), spec)
        gradients = reference.backward(spec, raw, parameters, state, mode, of_weight)
        found |= {"dweight" if name == "x" else f"d{name}": quantity for name, quantity in gradients.items()}
    return found | forward.state, {name: quantity.value for name, quantity in forward.state.items()}


def _sums(value: Array, squares: Array) -> Quantity:
    """Sums of products, from the sums of the products' squares. The channels are apart from each other."""
    return Quantity(value, np.sqrt(squares), value.shape, (0, *range(2, value.ndim)))
