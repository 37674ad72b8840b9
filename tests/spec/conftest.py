"""Specifications for every test of this room."""

import itertools

import pytest

import crossnorm
from crossnorm.spec import SPECS

_FLAGS = (True, False)
_ROWS = {
    "shape": ((4,), (4, 3, 3)),
    "transposed_row": ("output", "input"),
    "depthwise_row": ("output", "multiplier"),
    "embedding_row": ("output", "input"),
}
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
    "batch_renorm": {
        "eps": (1e-3,),
        "scale": _FLAGS,
        "channels": (6,),
        "decay": (None, 0.99),
        "renorm_decay": (None, 0.9),
        "running_quantity": ("standard_deviation", "biased_variance", "unbiased_variance"),
        "r_max": (1.0, 3.0),
        "r_min": (None, 0.0, 0.5),
        "d_max": (0.0, 5.0),
        "r_max_steps": (None, (5, 40), (7, 7)),
    },
    "switchable_norm": {
        "scale": _FLAGS,
        "offset": _FLAGS,
        "channels": (6,),
        "use_instance": _FLAGS,
        "use_batch": _FLAGS,
        "variance": ("biased", "unbiased_instance", "unbiased"),
        "decay": (None, 0.9),
        "pooled": _FLAGS,
        "initial_variance": (0.0, 1.0),
        "last_gamma": _FLAGS,
    },
    "filter_response_norm": {
        "scale": _FLAGS,
        "offset": _FLAGS,
        "channels": (6,),
        "learned_eps": (None, "scalar", "channel"),
        "threshold": (None, "channel"),
    },
    "weight_standardization": {
        **_ROWS,
        "scale": _FLAGS,
        "ddof": (0, 1),
        "eps_place": ("variance", "deviation", "maximum"),
        "gain": (1.0, 1.7),
        "fan_in_scaling": _FLAGS,
    },
    "spectral_norm": {
        **_ROWS,
        "iterations": (0, 3),
        "iteration_order": ("v_first",),
        "iterate": ("training", "always"),
        "stored": ("u", "uv"),
        "warm_up": (0, 15),
        "eps_place": ("maximum", "maximum_of_square", "added_to_square"),
    },
    "weight_norm": {
        **_ROWS,
        "scale": _FLAGS,
        "norm_over": ("row", "whole"),
        "initial_scale": ("norm", "ones"),
        "eps_place": ("maximum", "maximum_of_square", "added_to_square"),
    },
}
# What a method does not take together with the values above.
ALONE = {
    "filter_response_norm": ({"channels": 6, "threshold": "element", "spatial": (5, 3)},),
    "spectral_norm": ({"shape": (4, 3), "iteration_order": "u_first", "stored": "uv"},),
    "weight_norm": ({"shape": (4, 3), "initial_scale": "data"},),
    "batch_renorm": (
        {"channels": 6, "r_max": None, "d_max": None, "r_max_steps": None, "d_max_steps": None},
        {"channels": 6, "d_max_steps": (0, 1)},
        {"channels": 6, "single_value": "zero"},
    ),
}


@pytest.fixture(params=SPECS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def specifications(method: str) -> list[crossnorm.NormSpec]:
    """Every combination of the field values above, and those that stand alone."""
    fields = FIELDS[method]
    combinations = (dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values()))
    return [SPECS[method](**values) for values in (*combinations, *ALONE.get(method, ()))]
