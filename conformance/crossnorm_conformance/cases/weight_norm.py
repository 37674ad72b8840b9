"""Cases of weight normalization."""

from functools import partial

from crossnorm import WeightNormSpec

from ..case import Case
from . import _weights
from ._base import Fault

AXES = _weights.axes(
    {
        "paper": {},
        "torch": {"transposed_row": "input", "embedding_row": "input"},
        "whole": {"norm_over": "whole"},
        "tfa": {"eps": 1e-12, "eps_place": "maximum_of_square", "transposed_row": "input", "depthwise_row": "multiplier"},
        "flax": {"eps": 1e-12, "eps_place": "added_to_square"},
        "direction": {"scale": False, "eps": 1e-6},
    }
)
build = partial(_weights.build, WeightNormSpec)


def cases() -> list[Case]:
    return _weights.cases(WeightNormSpec, AXES, flax="dense")


def faults() -> list[Fault]:
    spec = WeightNormSpec(shape=(4, 6))
    return _weights.faults(WeightNormSpec) + [
        Fault(name=f"{name}_{value}", spec=spec, arguments={name: value}, shape=(2, 6))
        for name, value in (("norm_over", "columns"), ("initial_scale", "random"), ("eps_place", "nowhere"))
    ]
