"""Cases of filter response normalization."""

from collections.abc import Mapping
from typing import Any

from crossnorm import FilterResponseNormSpec

from ..case import Case
from . import _base
from ._base import Axes, Fault, channels_of, cover, default_cases, large_cases

AXES = Axes(
    variants={
        "paper": {},
        "timm": {"eps": 1e-5},
        "tfa": {"threshold": "element", "learned_eps": "scalar"},
        "learned_eps": {"learned_eps": "channel", "eps": 0.1},
        "no_threshold": {"threshold": None, "eps": 1e-3},
        "no_scale": {"scale": False},
        "bare": {"scale": False, "offset": False, "threshold": None, "learned_eps": "scalar"},
    },
    shapes=((2, 3), (4, 6, 5), (2, 6, 4, 5), (2, 4, 3, 4, 5), (8, 16, 14, 14)),
    layouts=("channels_first", "channels_last", "strided"),
)


def build(fields: Mapping[str, Any], shape: tuple[int, ...], regime: str) -> tuple[FilterResponseNormSpec, tuple[int, ...]]:
    fields, shape = channels_of(fields, shape, regime, one_value=(2, shape[1]))
    if fields.get("threshold") == "element":
        # Without positions an element is a channel.
        fields |= {"spatial": shape[2:]} if len(shape) > 2 else {"threshold": "channel"}
    return FilterResponseNormSpec(**fields), shape


def cases() -> list[Case]:
    return (
        cover(AXES, build)
        + large_cases(AXES, build, "paper", (4, 4, 112, 112), "channels_last")
        + default_cases("filter_response_norm", (4, 6, 5, 3), ("crossnorm", "timm"), channels=6)
    )


def faults() -> list[Fault]:
    spec = FilterResponseNormSpec(channels=4)
    shape = (2, 4, 3, 3)
    rows = [("learned_eps", "many"), ("threshold", "sample")]
    return _base.faults(spec, shape, {"wrong_rank": (4,), "wrong_channels": (2, 5, 3, 3)}) + [
        Fault(name=f"{name}_{value}", spec=spec, arguments={name: value}, shape=shape) for name, value in rows
    ]
