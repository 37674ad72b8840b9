"""Specifications for every test of this room."""

import itertools

import pytest

import crossnorm
from crossnorm.spec import SPECS

_FLAGS = (True, False)
_TRACKED = {
    "eps": (0.0, 1e-3),
    "scale": _FLAGS,
    "offset": _FLAGS,
    "channels": (6,),
    "decay": (None, 0.0, 0.9, 1.0),
    "tracked": _FLAGS,
    "single_value": ("raise", "zero"),
}
FIELDS = {
    "batch_norm": {**_TRACKED, "running_variance": ("biased", "unbiased")},
    "layer_norm": {
        "eps": (0.0, 1e-3),
        "scale": _FLAGS,
        "offset": _FLAGS,
        "shape": ((4,), (2, 3)),
        "subtract_mean": _FLAGS,
    },
    "group_norm": {"eps": (0.0, 1e-3), "scale": _FLAGS, "offset": _FLAGS, "channels": (6,), "groups": (1, 3, 6)},
    "instance_norm": {**_TRACKED, "running_variance": ("instance_mean_biased", "instance_mean_unbiased")},
    "rms_norm": {"eps": (0.0, 1e-3), "scale": _FLAGS, "shape": ((4,), (2, 3))},
}


@pytest.fixture(params=SPECS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def specifications(method: str) -> list[crossnorm.NormSpec]:
    """Every combination of the field values above."""
    fields = FIELDS[method]
    return [SPECS[method](**dict(zip(fields, values, strict=True))) for values in itertools.product(*fields.values())]
