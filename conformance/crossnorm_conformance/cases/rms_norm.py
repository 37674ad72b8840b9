"""Cases of root mean square normalization. The batch dimensions are written first, then the normalized ones."""

from collections.abc import Mapping
from typing import Any

from crossnorm import RMSNormSpec

from ..case import Case
from . import _base
from ._base import Axes, Fault, cover, default_cases, large_cases, normalized_of

AXES = Axes(
    variants={
        "scaled": {"eps": 1e-6, "dimensions": 1},
        "two_dimensions": {"eps": 1e-3, "dimensions": 2},
        "large_eps": {"eps": 0.1, "dimensions": 1},
        "bare": {"eps": 1e-5, "dimensions": 1, "scale": False},
    },
    shapes=((8, 4, 6), (2, 3, 2), (2, 3, 4, 5), (2, 2, 3, 4, 5), (4, 16, 192)),
    layouts=("contiguous", "strided", "leading"),
)


def build(fields: Mapping[str, Any], shape: tuple[int, ...], regime: str) -> tuple[RMSNormSpec, tuple[int, ...]]:
    fields, shape = normalized_of(fields, shape, regime, offset=False)
    return RMSNormSpec(**fields), shape


def cases() -> list[Case]:
    return (
        cover(AXES, build)
        + large_cases(AXES, build, "scaled", (2048, 96), "contiguous")
        + default_cases("rms_norm", (4, 5, 12), ("torch", "keras", "flax", "onnx", "timm"), shape=(12,))
    )


def faults() -> list[Fault]:
    spec = RMSNormSpec(shape=(4, 3))
    shape = (2, 4, 3)
    return [
        *_base.faults(spec, shape, {"wrong_rank": (3,), "wrong_shape": (2, 4, 5)}),
        Fault(name="empty_shape", spec=spec, arguments={"shape": ()}, shape=shape),
    ]
