"""A specification is a value: frozen, hashable, a JSON document, refused with one sentence where it breaks a rule."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import crossnorm
from crossnorm import (
    BatchNormSpec,
    GroupNormSpec,
    InstanceNormSpec,
    LayerNormSpec,
    Mode,
    RMSNormSpec,
    SpecError,
)
from crossnorm.spec import SPECS, ArraySpec

# A value


def test_frozen_slotted_and_keyword_only(specifications):
    spec = specifications[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.eps = 1.0
    assert not hasattr(spec, "__dict__")
    with pytest.raises(TypeError):
        type(spec)(6)


def test_equal_specifications_are_one_key_and_different_ones_are_not(specifications):
    assert len(set(specifications)) == len(specifications)
    assert set(copy.deepcopy(specifications)) == set(specifications)


def test_survives_json_and_pickle(specifications):
    for spec in specifications:
        document = json.loads(json.dumps(spec.to_dict()))
        assert type(spec).from_dict(document) == spec
        assert crossnorm.from_dict(document) == spec
        assert pickle.loads(pickle.dumps(spec)) == spec


def test_replace_keeps_the_rest_and_validates_again(specifications):
    for spec in specifications:
        changed = spec.replace(eps=0.5)
        assert changed.eps == 0.5
        assert changed.replace(eps=spec.eps) == spec
        with pytest.raises(SpecError, match=r"eps=-1\.0"):
            spec.replace(eps=-1)


def test_stores_plain_python_values():
    spec = BatchNormSpec(channels=np.int64(3), eps=np.float32(0.5), decay=np.float64(0.25))
    assert [type(value) for value in (spec.channels, spec.eps, spec.decay)] == [int, float, float]
    shape = LayerNormSpec(shape=np.array([2, 3])).shape
    assert shape == (2, 3)
    assert [type(size) for size in shape] == [int, int]
    assert RMSNormSpec(shape=[4]).shape == RMSNormSpec(shape=4).shape == (4,)


# What it knows

_RUNNING = (
    ArraySpec("running_mean", (6,), 0.0),
    ArraySpec("running_variance", (6,), 1.0),
    ArraySpec("batches_tracked", (), 0),
)


@pytest.mark.parametrize(
    ("spec", "shape", "state"),
    [
        (BatchNormSpec(channels=6), (6,), _RUNNING),
        (BatchNormSpec(channels=6, tracked=False), (6,), ()),
        (InstanceNormSpec(channels=6), (6,), ()),
        (InstanceNormSpec(channels=6, tracked=True), (6,), _RUNNING),
        (GroupNormSpec(channels=6, groups=2), (6,), ()),
        (LayerNormSpec(shape=(2, 3)), (2, 3), ()),
    ],
)
def test_parameters_and_state(spec, shape, state):
    scale, offset = ArraySpec("scale", shape, 1.0), ArraySpec("offset", shape, 0.0)
    assert spec.parameters == (scale, offset)
    assert spec.replace(offset=False).parameters == (scale,)
    assert spec.replace(scale=False).parameters == (offset,)
    assert spec.replace(scale=False, offset=False).parameters == ()
    assert spec.state == state


def test_rms_norm_has_no_offset():
    assert RMSNormSpec(shape=(2, 3)).parameters == (ArraySpec("scale", (2, 3), 1.0),)
    assert RMSNormSpec(shape=3, scale=False).parameters == ()


def test_reduced_roles():
    assert {method: set(spec.reduces) for method, spec in SPECS.items()} == {
        "batch_norm": {"batch", "spatial"},
        "layer_norm": {"normalized"},
        "group_norm": {"group", "spatial"},
        "instance_norm": {"spatial"},
        "rms_norm": {"normalized"},
    }


# Decay: torch says momentum = 1 - decay


@given(st.decimals(min_value=0, max_value=1, places=6, allow_nan=False).map(float))
def test_decay_leaves_no_residue(written):
    """A number written with 6 decimals is found again, whichever side wrote it and however often it is converted."""
    from_keras = BatchNormSpec(channels=1, decay=written).decay
    from_torch = BatchNormSpec(channels=1, decay=1 - written).decay
    assert from_keras == written
    assert round(1 - from_torch, 15) == written
    assert BatchNormSpec(channels=1, decay=round(1 - from_torch, 15)).decay == written


def test_decay_of_the_default_momentum():
    assert BatchNormSpec(channels=1, decay=1 - 0.1).decay == 0.9
    assert BatchNormSpec(channels=1, decay=1 - 0.9).decay == 0.1  # 1 - 0.9 is 0.09999999999999998
    assert BatchNormSpec(channels=1, decay=1 - 0.1) == BatchNormSpec(channels=1)


# Modes


def test_modes():
    assert Mode(True, True) == crossnorm.TRAIN
    assert Mode(False, False) == crossnorm.INFERENCE
    assert Mode(True, False) == crossnorm.UNTRACKED
    with pytest.raises(SpecError, match=r"Mode: update_running=True with use_batch_statistics=False; .*; use Mode"):
        Mode(False, True)


# Bad values. Each message: who, the offending value, the rule, the remedy.

_REQUIRED = {
    "batch_norm": {"channels": 6},
    "layer_norm": {"shape": (4,)},
    "group_norm": {"channels": 6, "groups": 2},
    "instance_norm": {"channels": 6},
    "rms_norm": {"shape": (4,)},
}
_BAD_NUMBERS = ("1e-5", True, None, [1e-5], np.ones(2), 1 + 0j, 10**400)
_BAD_SIZES = (0, -3, 2.0, "3", True, None, np.ones(2, int), (3,))


def _bad_values():
    for method, spec in SPECS.items():
        fields = {field.name for field in dataclasses.fields(spec)}
        yield from ((method, "eps", value, "not a finite number >= 0") for value in (-1e-5, float("nan"), float("inf")))
        yield from ((method, "eps", value, "is not a number; give a float") for value in _BAD_NUMBERS)
        for flag in fields & {"scale", "offset", "tracked", "subtract_mean"}:
            yield from ((method, flag, value, "is not True or False") for value in (1, None, "yes"))
        for size in fields & {"channels", "groups"}:
            yield from ((method, size, value, "is not an integer >= 1; give the number of") for value in _BAD_SIZES)
        if "shape" in fields:
            yield from ((method, "shape", value, "is empty; give at least one") for value in ((), []))
            bad_shapes = (0, (2, 0), (-1,), (2.0,), 2.0, True, (True,), None, "ab", ((2, 3),))
            yield from ((method, "shape", value, "holds what is not an integer >= 1; give the sizes") for value in bad_shapes)
        if "decay" in fields:
            yield from ((method, "decay", value, "is outside [0, 1]; decay is the weight of the OLD") for value in (1.5, -0.1))
            yield method, "decay", float("nan"), "is outside [0, 1]"
            yield from ((method, "decay", value, "is not a number; give a float") for value in ("0.9", True, [0.9]))
            yield from ((method, "running_variance", value, "is not one of") for value in ("sample", None, True))
            yield from ((method, "single_value", value, "is not one of 'raise', 'zero'; choose") for value in ("nan", None))
    yield "group_norm", "groups", 4, "channels=6 is not divisible by groups=4; choose groups among 1, 2, 3, 6"


@pytest.mark.parametrize(("method", "field", "value", "rule"), list(_bad_values()))
def test_bad_value_is_refused_in_one_sentence(method, field, value, rule):
    with pytest.raises(SpecError) as caught:
        SPECS[method](**{**_REQUIRED[method], field: value})
    message = str(caught.value)
    assert message.startswith(f"{SPECS[method].__name__}: ")
    assert f"{field}=" in message
    assert rule in message
    assert "; " in message, "the remedy follows a semicolon"
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "rms_norm"}, "method='rms_norm' is not 'batch_norm'; use crossnorm.from_dict"),
        ({"version": 2}, r"version=2 is not one of 1..1; .* upgrade"),
        ({"version": "1"}, "version='1' is not one of"),
        ({"momentum": 0.1}, "unknown field 'momentum'; the fields are eps, scale, channels"),
        ({"momentum": 0.1, 3: 4}, "unknown field 'momentum', 3; the fields are"),
    ],
)
def test_bad_document(changes, message):
    document = BatchNormSpec(channels=3).to_dict()
    with pytest.raises(SpecError, match=f"^BatchNormSpec: {message}"):
        BatchNormSpec.from_dict({**document, **changes})


def test_document_without_a_required_field():
    with pytest.raises(SpecError, match=r"^GroupNormSpec: missing field 'channels', 'groups'; give every field"):
        GroupNormSpec.from_dict({"eps": 1e-5})


@pytest.mark.parametrize("document", [{}, {"method": "no_norm"}, {"method": ["rms_norm"]}])
def test_document_of_an_unknown_method(document):
    with pytest.raises(SpecError, match=r"unknown method .*; the methods are batch_norm, layer_norm"):
        crossnorm.from_dict(document)


def test_a_typo_is_not_swallowed():
    with pytest.raises(TypeError, match="epsilon"):
        BatchNormSpec(channels=3, epsilon=1e-3)


def test_arrays_of_other_names_or_shapes_are_refused():
    class Sized:
        def __init__(self, *shape):
            self.shape = shape

    spec = crossnorm.BatchNormSpec(channels=3, offset=False)
    state = {"running_mean": Sized(3), "running_variance": Sized(3), "batches_tracked": Sized()}
    spec.check_arrays({"scale": Sized(3)}, state)
    for parameters, held in (
        ({"gamma": Sized(3)}, state),
        ({}, state),
        ({"scale": Sized(4)}, state),
        ({"scale": Sized(3)}, {}),
        ({"scale": Sized(3)}, state | {"moving_mean": Sized(3)}),
    ):
        with pytest.raises(crossnorm.SpecError, match=r"BatchNormSpec: .* are not .*; give an array"):
            spec.check_arrays(parameters, held)
