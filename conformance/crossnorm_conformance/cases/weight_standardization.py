"""Cases of weight standardization."""

from functools import partial

from crossnorm import WeightStandardizationSpec

from ..case import Case
from . import _weights
from ._base import Fault

AXES = _weights.axes(
    {
        "timm": {"eps": 1e-6},
        "authors": {"eps": 1e-5, "eps_place": "deviation", "ddof": 1},
        "authors_tensorflow": {"eps": 1e-5, "eps_place": "deviation"},
        "scaled": {"eps": 1e-6, "scale": True, "gain": 1.7139588594436646, "fan_in_scaling": True},
        "deepmind": {"eps": 1e-4, "eps_place": "maximum", "scale": True, "fan_in_scaling": True},
        "rows": {"eps": 1e-3, "ddof": 1, "transposed_row": "input", "depthwise_row": "multiplier"},
    },
    without=("embedding",),
)
build = partial(_weights.build, WeightStandardizationSpec)


def cases() -> list[Case]:
    return _weights.cases(WeightStandardizationSpec, AXES, timm="convolution2d")


def faults() -> list[Fault]:
    spec = WeightStandardizationSpec(shape=(4, 6))
    return _weights.faults(WeightStandardizationSpec) + [
        Fault(name=f"{name}_{value}", spec=spec, arguments={name: value}, shape=(2, 6))
        for name, value in (("ddof", 2), ("gain", 0.0), ("eps_place", "nowhere"))
    ]
