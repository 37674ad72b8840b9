"""Cases of switchable normalization."""

from collections.abc import Mapping
from typing import Any

from crossnorm import SwitchableNormSpec

from ..case import Case
from . import _base
from ._base import Axes, Fault, channels_of, cover, default_cases, large_cases

AXES = Axes(
    variants={
        "paper": {"decay": 0.7},
        "authors": {"variance": "unbiased_instance", "initial_variance": 0.0},
        "authors_1d": {"variance": "unbiased", "use_instance": False, "decay": 0.997},
        "sum_and_average": {"decay": None, "pooled": True, "eps": 1e-3},
        "pooled": {"decay": 0.5, "pooled": True},
        "no_batch": {"use_batch": False, "eps": 1e-3},
        "bare": {"scale": False, "offset": False, "variance": "unbiased"},
    },
    shapes=((2, 3), (8, 6), (4, 6, 5), (2, 6, 4, 5), (2, 4, 3, 4, 5), (8, 16, 14, 14)),
    layouts=("channels_first", "channels_last", "strided"),
)


def build(fields: Mapping[str, Any], shape: tuple[int, ...], regime: str) -> tuple[SwitchableNormSpec, tuple[int, ...]]:
    fields, shape = channels_of(fields, shape, regime, one_value=(2, shape[1]))
    return SwitchableNormSpec(**fields), shape


def cases() -> list[Case]:
    return (
        cover(AXES, build)
        + large_cases(AXES, build, "paper", (16, 4, 56, 56), "channels_last")
        + large_cases(AXES, build, "authors", (4, 4, 112, 112), "channels_first")
        + default_cases("switchable_norm", (4, 6, 5, 3), ("crossnorm",), channels=6)
    )


def faults() -> list[Fault]:
    spec = SwitchableNormSpec(channels=4)
    shape = (2, 4, 3, 3)
    rows = [("decay", 1.5), ("variance", "half"), ("initial_variance", -1.0)]
    return _base.faults(spec, shape, {"wrong_rank": (4,), "wrong_channels": (2, 5, 3, 3)}) + [
        Fault(name=f"{name}_{value}", spec=spec, arguments={name: value}, shape=shape) for name, value in rows
    ]
