"""Cases of instance normalization."""

from collections.abc import Mapping
from typing import Any

from crossnorm import InstanceNormSpec

from ..case import Case
from . import _base
from ._base import Axes, Fault, channels_of, cover, default_cases, large_cases

AXES = Axes(
    variants={
        "affine": {"eps": 1e-5},
        "no_scale": {"eps": 1e-3, "scale": False},
        "no_offset": {"eps": 0.1, "offset": False},
        "bare": {"eps": 1e-3, "scale": False, "offset": False},
        "tracked": {"eps": 1e-3, "tracked": True, "decay": 0.7},
        "tracked_biased": {"eps": 1e-5, "tracked": True, "decay": 0.8, "running_variance": "instance_mean_biased"},
        "tracked_cumulative": {"eps": 1e-4, "tracked": True, "decay": None},
    },
    shapes=((4, 6, 5), (2, 3, 2), (2, 6, 4, 5), (2, 4, 3, 4, 5), (4, 16, 14, 14)),
    layouts=("channels_first", "channels_last", "strided"),
)


def build(fields: Mapping[str, Any], shape: tuple[int, ...], regime: str) -> tuple[InstanceNormSpec, tuple[int, ...]]:
    fields, shape = channels_of(fields, shape, regime, one_value=shape[:2])
    return InstanceNormSpec(single_value="zero", **fields), shape


def cases() -> list[Case]:
    return (
        cover(AXES, build)
        + large_cases(AXES, build, "affine", (4, 4, 112, 112), "channels_last")
        + default_cases("instance_norm", (4, 6, 5, 3), ("torch", "keras", "flax", "onnx"), channels=6)
    )


def faults() -> list[Fault]:
    spec = InstanceNormSpec(channels=4, tracked=True)
    shape = (2, 4, 3, 3)
    return _base.faults(spec, shape, {"wrong_rank": (4,), "wrong_channels": (2, 5, 3, 3)}) + [
        Fault(name=f"decay_{decay}", spec=spec, arguments={"decay": decay}, shape=shape) for decay in (-0.5, 1.5, float("nan"))
    ]
