"""The cases of the reparametrizations: what differs between them is the specification only."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from crossnorm import WeightSpec
from crossnorm.spec import PEERS

from ..case import WEIGHT_REGIMES, Case
from ..linear import Linear
from . import _base
from ._base import WRAPS, Axes, Fault, cover

# Outputs and inputs; a depthwise layer has twice as many outputs as inputs, whatever stands here.
SIZES = ((4, 6), (6, 2), (16, 12))
_LAYERS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "convolution1d": {"kind": "convolution", "kernel": (3,)},
    "convolution2d": {"kind": "convolution", "kernel": (3, 2)},
    "convolution3d": {"kind": "convolution", "kernel": (2, 2, 2)},
    "grouped_convolution2d": {"kind": "convolution", "kernel": (3, 2), "groups": 2},
    "transposed1d": {"kind": "transposed", "kernel": (3,)},
    "transposed2d": {"kind": "transposed", "kernel": (3, 2)},
    "depthwise": {"kind": "depthwise", "kernel": (3, 3)},
    "embedding": {"kind": "embedding"},
}


def axes(variants: Mapping[str, Mapping[str, Any]], without: tuple[str, ...] = ()) -> Axes:
    """Every layer but those that the method is ``without``."""
    layers = [layer for layer in _LAYERS if layer not in without]
    return Axes(variants=variants, shapes=SIZES, layers=layers, regimes=WEIGHT_REGIMES)


def cases(method: type[WeightSpec], axes: Axes, **peers: str) -> list[Case]:
    """A covering of the axes, our own default arguments on a dense layer and on a convolution, and those of ``peers``, each
    on the layer that it is given with."""

    defaults = []
    for framework, layer in (("crossnorm", "dense"), ("crossnorm", "convolution2d"), *peers.items()):
        fields = PEERS[method.method][framework].fields if framework != "crossnorm" else {}
        spec, shape, linear = build(method, fields, (4, 6), "plain", layer)
        row = {"variant": f"{framework}_defaults", "dtype": "float32", "regime": "plain", "mode": "train"}
        defaults.append(Case(spec=spec, shape=shape, layer=linear, executions=_base.EXECUTIONS, defaults=framework, **row))
    return cover(axes, partial(build, method)) + defaults


def build(
    method: type[WeightSpec], fields: Mapping[str, Any], size: tuple[int, int], regime: str, layer: str
) -> tuple[WeightSpec, tuple[int, ...], Linear]:
    """The specification, the shape in the rows that it wants, and the linear layer whose weight it is about."""
    outputs, inputs = size
    linear = Linear(outputs=outputs, inputs=inputs, **_LAYERS[layer])
    if linear.kind == "depthwise":
        linear = replace(linear, outputs=2 * inputs, groups=inputs)
    if regime == "one_value":
        linear = replace(linear, kernel=tuple(1 for _ in linear.kernel))
        if linear.kind != "depthwise":
            linear = replace(linear, inputs=linear.groups)
    spec = method(shape=linear.weight_shape, **fields)
    # The shape is of the rows that the specification wants.
    shapes = {
        ("transposed", "input"): (linear.inputs, linear.outputs // linear.groups, *linear.kernel),
        ("depthwise", "multiplier"): (linear.outputs // linear.groups, linear.inputs, *linear.kernel),
        ("embedding", "input"): (linear.inputs, linear.outputs),
    }
    row = getattr(spec, f"{linear.kind}_row", "output")
    shape = shapes.get((linear.kind, row), linear.weight_shape)
    return spec.replace(shape=shape), shape, linear


def faults(method: type[WeightSpec]) -> list[Fault]:
    """What can be wrong with the layer, and an eps that no reparametrization takes."""
    spec = method(shape=(4, 6))
    rows = [Fault(name=wrap, spec=spec, shape=(2, 6), wrap=wrap) for wrap in WRAPS]
    return rows + [
        Fault(name=f"eps_{value}", spec=spec, arguments={"eps": value}, shape=(2, 6)) for value in (-1e-3, float("nan"))
    ]
