"""Cases of group normalization."""

from collections.abc import Mapping
from typing import Any

from crossnorm import GroupNormSpec

from ..case import Case
from . import _base
from ._base import Axes, Fault, channels_of, cover, default_cases, large_cases

AXES = Axes(
    variants={
        "affine": {"eps": 1e-5, "groups": 2},
        "one_group": {"eps": 1e-3, "groups": 1},
        "pairs": {"eps": 1e-4, "groups": None},
        "no_scale": {"eps": 1e-3, "groups": 2, "scale": False},
        "no_offset": {"eps": 0.1, "groups": 2, "offset": False},
        "bare": {"eps": 1e-5, "groups": 2, "scale": False, "offset": False},
    },
    shapes=((8, 6), (2, 4), (4, 6, 5), (2, 6, 4, 5), (2, 4, 3, 4, 5), (4, 16, 14, 14)),
    layouts=("channels_first", "channels_last", "strided"),
)


def build(fields: Mapping[str, Any], shape: tuple[int, ...], regime: str) -> tuple[GroupNormSpec, tuple[int, ...]]:
    fields, shape = channels_of(fields, shape, regime, one_value=shape[:2])
    if fields["groups"] is None:
        fields["groups"] = shape[1] // 2
    if regime == "one_value":
        fields["groups"] = shape[1]
    return GroupNormSpec(**fields), shape


def cases() -> list[Case]:
    return (
        cover(AXES, build)
        + large_cases(AXES, build, "affine", (4, 8, 64, 64), "channels_last")
        + default_cases("group_norm", (2, 6, 5, 3), ("torch", "onnx"), channels=6, groups=3)
        + default_cases("group_norm", (2, 64, 3, 2), ("keras", "flax", "timm"), channels=64)
    )


def faults() -> list[Fault]:
    spec = GroupNormSpec(channels=4, groups=2)
    shape = (2, 4, 3, 3)
    return [
        *_base.faults(spec, shape, {"wrong_rank": (4,), "wrong_channels": (2, 6, 3, 3)}),
        Fault(name="groups_do_not_divide", spec=spec, arguments={"groups": 3}, shape=shape),
        Fault(name="groups_zero", spec=spec, arguments={"groups": 0}, shape=shape),
    ]
