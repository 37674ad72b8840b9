"""Cases of batch renormalization."""

from collections.abc import Mapping
from typing import Any

from crossnorm import BatchRenormSpec

from ..case import Case
from . import _base
from ._base import Axes, Fault, channels_of, cover, default_cases, large_cases

_NO_SCHEDULE = {"r_max_steps": None, "d_max_steps": None}
AXES = Axes(
    variants={
        # The first training step is the fourth update: the bounds are still relaxing.
        "paper": {"decay": 0.7, "r_max_steps": (2, 8), "d_max_steps": (3, 5)},
        "batch_norm": {"decay": 0.7, "r_max": 1.0, "d_max": 0.0, "running_quantity": "unbiased_variance", **_NO_SCHEDULE},
        "keras": {
            "eps": 1e-3, "decay": 0.8, "renorm_decay": 0.6, "r_max": None, "d_max": None, "r_min": 0.0, **_NO_SCHEDULE,
        },
        "two_variances": {"decay": 0.8, "renorm_decay": 0.5, "running_quantity": "biased_variance", "r_max_steps": (0, 4)},
        "cumulative": {"eps": 1e-3, "decay": None, "r_min": 0.5, "r_max": 1.5, "d_max": 0.5, **_NO_SCHEDULE},
        "bare": {"decay": 0.5, "scale": False, "offset": False, "running_quantity": "biased_variance", **_NO_SCHEDULE},
    },
    shapes=((2, 3), (8, 6), (4, 6, 5), (2, 6, 4, 5), (2, 4, 3, 4, 5), (8, 16, 14, 14)),
    layouts=("channels_first", "channels_last", "strided"),
)  # fmt: skip


def build(fields: Mapping[str, Any], shape: tuple[int, ...], regime: str) -> tuple[BatchRenormSpec, tuple[int, ...]]:
    fields, shape = channels_of(fields, shape, regime, one_value=(1, shape[1]))
    if regime == "overflow":
        # A large d times the huge scale would leave the range before the sum is formed.
        fields |= {"d_max": 0.05}
    return BatchRenormSpec(single_value="zero", **fields), shape


def cases() -> list[Case]:
    return (
        cover(AXES, build)
        + large_cases(AXES, build, "two_variances", (32, 4, 56, 56), "channels_last")
        + large_cases(AXES, build, "paper", (16, 4, 56, 56), "channels_first")
        + default_cases("batch_renorm", (4, 6, 5, 3), ("crossnorm", "keras"), channels=6)
    )


def faults() -> list[Fault]:
    spec = BatchRenormSpec(channels=4)
    shape = (2, 4, 3, 3)
    rows = [("r_max", 0.5), ("r_min", 1.5), ("r_min", -1.0), ("d_max", -0.1), ("d_max", float("nan")), ("r_max_steps", (9, 3))]
    rows += [("decay", 1.5), ("renorm_decay", -0.5)]
    return _base.faults(spec, shape, {"wrong_rank": (4,), "wrong_channels": (2, 5, 3, 3)}) + [
        Fault(name=f"{name}_{value}", spec=spec, arguments={name: value}, shape=shape) for name, value in rows
    ]
