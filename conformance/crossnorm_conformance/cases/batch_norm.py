"""Cases of batch normalization."""

from collections.abc import Mapping
from typing import Any

from crossnorm import BatchNormSpec

from ..case import Case
from . import _base
from ._base import Axes, Fault, channels_of, cover, default_cases, large_cases

AXES = Axes(
    variants={
        "unbiased": {"eps": 1e-5, "decay": 0.7},
        "biased": {"eps": 1e-3, "decay": 0.8, "running_variance": "biased"},
        "cumulative": {"eps": 1e-3, "decay": None},
        "no_scale": {"eps": 1e-3, "decay": 0.6, "running_variance": "biased", "scale": False},
        "no_offset": {"eps": 0.1, "decay": 0.9, "offset": False},
        "bare": {"eps": 1e-5, "decay": 0.5, "scale": False, "offset": False},
        "untracked": {"eps": 1e-4, "tracked": False},
    },
    shapes=((2, 3), (8, 6), (4, 6, 5), (2, 6, 4, 5), (2, 4, 3, 4, 5), (8, 16, 14, 14)),
    layouts=("channels_first", "channels_last", "strided"),
)


def build(fields: Mapping[str, Any], shape: tuple[int, ...], regime: str) -> tuple[BatchNormSpec, tuple[int, ...]]:
    fields, shape = channels_of(fields, shape, regime, one_value=(1, shape[1]))
    return BatchNormSpec(single_value="zero", **fields), shape


def cases() -> list[Case]:
    return (
        cover(AXES, build)
        + large_cases(AXES, build, "biased", (32, 4, 56, 56), "channels_last")
        + large_cases(AXES, build, "unbiased", (16, 4, 56, 56), "channels_last")
        + default_cases("batch_norm", (4, 6, 5, 3), ("torch", "keras", "flax", "onnx"), channels=6)
    )


def faults() -> list[Fault]:
    spec = BatchNormSpec(channels=4)
    shape = (2, 4, 3, 3)
    return _base.faults(spec, shape, {"wrong_rank": (4,), "wrong_channels": (2, 5, 3, 3)}) + [
        Fault(name=f"decay_{decay}", spec=spec, arguments={"decay": decay}, shape=shape) for decay in (-0.5, 1.5, float("nan"))
    ]
