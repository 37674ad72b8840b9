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
    BatchRenormSpec,
    FilterResponseNormSpec,
    GroupNormSpec,
    InstanceNormSpec,
    LayerNormSpec,
    Mode,
    RMSNormSpec,
    SpecError,
    SpectralNormSpec,
    SwitchableNormSpec,
    WeightNormSpec,
    WeightStandardizationSpec,
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
        document = json.loads(json.dumps(spec.to_dict(), allow_nan=False))
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
    renorm = BatchRenormSpec(channels=1, r_max=np.int64(3), d_max_steps=[np.int64(1), 2])
    assert (type(renorm.r_max), renorm.d_max_steps, type(renorm.d_max_steps[0])) == (float, (1, 2), int)
    counts = SpectralNormSpec(shape=4, iterations=np.int8(2), warm_up=np.int64(0))
    assert [type(value) for value in (counts.iterations, counts.warm_up)] == [int, int]
    assert type(WeightStandardizationSpec(shape=4, ddof=np.int64(1)).ddof) is int


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
        "batch_renorm": {"batch", "spatial"},
        "switchable_norm": {"batch", "channel", "spatial"},
        "filter_response_norm": {"spatial"},
        "weight_standardization": {"input", "kernel"},
        "spectral_norm": {"input", "kernel"},
        "weight_norm": {"input", "kernel"},
    }


def test_state_of_batch_renorm():
    def state(**fields):
        return {array.name: array for array in BatchRenormSpec(channels=6, **fields).state}

    counter = {"batches_tracked": ArraySpec("batches_tracked", (), 0)}

    def arrays(**initial):
        return {name: ArraySpec(name, (6,), value) for name, value in initial.items()} | counter

    assert state() == arrays(running_mean=0.0, running_standard_deviation=1.0)
    for variance in ("biased_variance", "unbiased_variance"):
        pair = {"running_mean": 0.0, "running_variance": 1.0}
        assert state(running_quantity=variance) == arrays(**pair)
        assert state(running_quantity=variance, renorm_decay=0.9) == arrays(**pair, renorm_mean=0.0, renorm_variance=1.0)
    assert state(renorm_decay=0.9) == arrays(
        running_mean=0.0,
        running_standard_deviation=1.0,
        renorm_mean=0.0,
        renorm_standard_deviation=1.0,
        running_variance=1.0,
    )


def test_parameters_and_state_of_switchable_norm():
    affine = (ArraySpec("scale", (6,), 1.0), ArraySpec("offset", (6,), 0.0))

    def logits(k):
        return (ArraySpec("mean_logits", (k,), 1.0), ArraySpec("variance_logits", (k,), 1.0))

    spec = SwitchableNormSpec(channels=6)
    assert spec.statistics == ("instance", "layer", "batch")
    assert spec.parameters == affine + logits(3)
    assert spec.state == _RUNNING
    assert spec.replace(use_batch=False).statistics == ("instance", "layer")
    assert spec.replace(use_batch=False).parameters == affine + logits(2)
    assert spec.replace(use_batch=False).state == ()
    assert spec.replace(use_instance=False, use_batch=False).parameters == affine + logits(1)
    assert spec.replace(last_gamma=True, offset=False).parameters == (ArraySpec("scale", (6,), 0.0), *logits(3))
    assert spec.replace(initial_variance=0).state[1] == ArraySpec("running_variance", (6,), 0.0)


def test_parameters_of_filter_response_norm():
    def shapes(**fields):
        return {array.name: (array.shape, array.initial) for array in FilterResponseNormSpec(channels=6, **fields).parameters}

    affine = {"scale": ((6,), 1.0), "offset": ((6,), 0.0)}
    assert shapes() == affine | {"threshold": ((6,), 0.0)}
    assert shapes(threshold=None, offset=False) == {"scale": ((6,), 1.0)}
    assert shapes(learned_eps="scalar", threshold=None) == affine | {"learned_eps": ((), 1e-4)}
    assert shapes(learned_eps="channel") == affine | {"learned_eps": ((6,), 1e-4), "threshold": ((6,), 0.0)}
    assert shapes(threshold="element", spatial=[5, 3]) == affine | {"threshold": ((6, 5, 3), 0.0)}


def test_arrays_of_the_reparametrizations():
    shape = (8, 3, 2, 2)
    assert WeightStandardizationSpec(shape=shape).parameters == ()
    assert WeightStandardizationSpec(shape=shape, scale=True).parameters == (ArraySpec("scale", (8,), 1.0),)
    assert WeightNormSpec(shape=shape).parameters == (ArraySpec("scale", (8,), None),)
    assert WeightNormSpec(shape=shape, initial_scale="ones", norm_over="whole").parameters == (ArraySpec("scale", (), 1.0),)
    assert WeightNormSpec(shape=shape, scale=False).parameters == ()
    assert SpectralNormSpec(shape=shape).parameters == ()
    u, v = ArraySpec("u", (8,), None), ArraySpec("v", (12,), None)
    assert SpectralNormSpec(shape=shape).state == (u, v)
    assert SpectralNormSpec(shape=shape, stored="u").state == (u,)
    vector = SpectralNormSpec(shape=8)
    assert (vector.rows, vector.columns) == (8, 1)


def test_the_factor_of_weight_standardization():
    spec = WeightStandardizationSpec(shape=(8, 3, 2, 2), gain=1.5)
    assert spec.factor == 1.5
    assert spec.replace(fan_in_scaling=True).factor == 1.5 / 12**0.5


# The bounds of batch renorm


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, (1.0, 1.0, 0.0)),
        (10, (1.0, 1.0, 0.0)),
        (20, (1 / 2, 2.0, 5.0)),
        (30, (1 / 3, 3.0, 5.0)),
        (10**9, (1 / 3, 3.0, 5.0)),
    ],
)
def test_the_bounds_relax(step, expected):
    spec = BatchRenormSpec(channels=1, r_max=3, d_max=5, r_max_steps=(10, 30), d_max_steps=(10, 20))
    assert spec.bounds(step) == expected


def test_the_bounds_without_a_schedule_hold_from_the_first_step():
    spec = BatchRenormSpec(channels=1, r_max=4, d_max=2, r_max_steps=None, d_max_steps=None)
    assert spec.bounds(0) == spec.bounds(100) == (0.25, 4.0, 2.0)


def test_a_schedule_may_be_a_jump():
    spec = BatchRenormSpec(channels=1, r_max=4, d_max=2, r_max_steps=(7, 7), d_max_steps=(0, 0))
    assert [spec.bounds(step) for step in (0, 6, 7)] == [(1.0, 1.0, 2.0), (1.0, 1.0, 2.0), (0.25, 4.0, 2.0)]


def test_r_min_of_its_own():
    spec = BatchRenormSpec(channels=1, r_max=3, r_min=0.5, r_max_steps=(0, 2))
    assert [spec.bounds(step)[:2] for step in (0, 1, 2)] == [(1.0, 1.0), (0.75, 2.0), (0.5, 3.0)]
    unbounded = BatchRenormSpec(channels=1, r_max=None, r_min=0.5, r_max_steps=None, d_max=None, d_max_steps=None)
    assert unbounded.bounds(0) == (0.5, float("inf"), float("inf"))
    assert unbounded.replace(r_min=None).bounds(0) == (0.0, float("inf"), float("inf"))


def test_defaults_that_the_documentation_promises():
    renorm = BatchRenormSpec(channels=1)
    assert (renorm.decay, renorm.r_max, renorm.d_max) == (0.99, 3.0, 5.0)
    assert (renorm.r_max_steps, renorm.d_max_steps) == ((5_000, 40_000), (5_000, 25_000))
    assert SpectralNormSpec(shape=1).replace(warm_up=0) == SpectralNormSpec(shape=1, warm_up=0, iterations=1, eps=1e-12)
    assert (FilterResponseNormSpec(channels=1).eps, FilterResponseNormSpec(channels=1).threshold) == (1e-6, "channel")
    assert not WeightStandardizationSpec(shape=1).scale
    assert WeightNormSpec(shape=1).scale


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
    "batch_renorm": {"channels": 6},
    "switchable_norm": {"channels": 6},
    "filter_response_norm": {"channels": 6},
    "weight_standardization": {"shape": (4, 3)},
    "spectral_norm": {"shape": (4, 3)},
    "weight_norm": {"shape": (4, 3)},
}
_FLAGS = {"scale", "offset", "tracked", "subtract_mean", "use_instance", "use_batch", "pooled", "last_gamma", "fan_in_scaling"}
_CHOICES = {
    "single_value", "running_variance", "running_quantity", "variance", "transposed_row",
    "depthwise_row", "embedding_row", "iteration_order", "iterate", "stored", "norm_over", "initial_scale",
}  # fmt: skip
_BAD_NUMBERS = ("1e-5", True, None, [1e-5], np.ones(2), 1 + 0j, 10**400)
_BAD_COUNTS = (-1, 1.0, "1", True, None)
_BAD_SIZES = (0, -3, 2.0, "3", True, None, np.ones(2, int), (3,))


def _bad_values():
    for method, spec in SPECS.items():
        fields = {field.name for field in dataclasses.fields(spec)}
        yield from ((method, "eps", value, "not a finite number >= 0") for value in (-1e-5, float("nan"), float("inf")))
        yield from ((method, "eps", value, "is not a number; give a float") for value in _BAD_NUMBERS)
        for flag in fields & _FLAGS:
            yield from ((method, flag, value, "is not True or False") for value in (1, None, "yes"))
        for size in fields & {"channels", "groups"}:
            yield from ((method, size, value, "is not an integer >= 1; give the number of") for value in _BAD_SIZES)
        if "shape" in fields:
            yield from ((method, "shape", value, "is empty; give at least one") for value in ((), []))
            bad_shapes = (0, (2, 0), (-1,), (2.0,), 2.0, True, (True,), None, "ab", ((2, 3),))
            yield from ((method, "shape", value, "holds what is not an integer >= 1; give the sizes") for value in bad_shapes)
        for decay in fields & {"decay", "renorm_decay"}:
            yield from ((method, decay, value, f"is outside [0, 1]; {decay} is the weight of the OLD") for value in (1.5, -0.1))
            yield method, decay, float("nan"), "is outside [0, 1]"
            yield from ((method, decay, value, "is not a number; give a float") for value in ("0.9", True, [0.9]))
        for choice in fields & _CHOICES:
            yield from ((method, choice, value, "is not one of '") for value in ("sample", True, 1))
        if "eps_place" in fields:
            yield from ((method, "eps_place", value, "; choose one of them") for value in ("root", None, True))
    yield from ((method, "single_value", None, "'raise', 'zero'; choose") for method in ("batch_norm", "batch_renorm"))
    yield "group_norm", "groups", 4, "channels=6 is not divisible by groups=4; choose groups among 1, 2, 3, 6"

    renorm, a_steps = "batch_renorm", "is not two integers 0 <= first <= last; say when"
    yield from ((renorm, "r_max", value, "is not a finite number >= 1; r = 1 must be") for value in (0.9, -1, float("inf")))
    yield from ((renorm, "r_min", value, "is not in [0, 1]; r = 1 must be") for value in (1.1, -0.1, float("nan")))
    yield from ((renorm, "d_max", value, "is not a finite number >= 0; d = 0 must be") for value in (-1, float("nan")))
    for bound in ("r_max", "r_min", "d_max"):
        yield from ((renorm, bound, value, "is not a number; give a float") for value in ("3", True, [3.0]))
    for steps in ("r_max_steps", "d_max_steps"):
        bad_steps = (5, "ab", (), (1,), (1, 2, 3), (5, 4), (-1, 4), (1.0, 2), (True, 2), {1: 2, 3: 4})
        yield from ((renorm, steps, value, a_steps) for value in bad_steps)

    initial = "initial_variance"
    yield from (("switchable_norm", initial, v, "is not a finite number >= 0") for v in (-1.0, float("inf"), float("nan")))
    yield from (("switchable_norm", initial, value, "is not a number; give a float") for value in ("1", True, None))

    frn = "filter_response_norm"
    yield from ((frn, "learned_eps", value, "is not one of None, 'scalar', 'channel'; choose") for value in ("sample", True, 1))
    yield from ((frn, "threshold", value, "is not one of None, 'channel', 'element'; choose") for value in ("sample", True, 1))
    yield frn, "threshold", "element", "with spatial=None; an element-wise threshold, and nothing else, needs the sizes"
    yield frn, "spatial", (5, 3), "threshold='channel' with spatial=(5, 3); an element-wise threshold, and nothing else"

    standardization = "weight_standardization"
    yield from ((standardization, "ddof", value, "is not 0 or 1; choose") for value in (2, -1, 0.5, True, None, "1"))
    yield from ((standardization, "gain", value, "is not a finite number > 0; give") for value in (0, -1, float("inf")))
    yield from ((standardization, "gain", value, "is not a number; give a float") for value in ("1", True, None))

    for count in ("iterations", "warm_up"):
        yield from (("spectral_norm", count, value, "is not an integer >= 0; give the number of") for value in _BAD_COUNTS)
    yield "spectral_norm", "scale", True, "spectral normalization learns no scale"


def test_every_choice_and_flag_is_tried():
    """A new field of a specification must not slip past the list of bad values."""
    tried = {(method, field) for method, field, *_ in _bad_values()}
    assert tried >= {(method, field.name) for method, spec in SPECS.items() for field in dataclasses.fields(spec)}


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
    ("method", "fields", "message"),
    [
        ("spectral_norm", {"stored": "u", "iteration_order": "u_first"}, "that order starts from v: store 'uv', or say"),
        (
            "batch_renorm",
            {"r_max": None},
            r"r_max_steps=\(5000, 40000\) without r_max; give the final bound, or r_max_steps=None",
        ),
        (
            "batch_renorm",
            {"d_max": None},
            r"d_max_steps=\(5000, 25000\) without d_max; give the final bound, or d_max_steps=None",
        ),
        ("weight_norm", {"initial_scale": "data", "norm_over": "whole"}, "a batch gives one length for each row: say 'row'"),
        ("filter_response_norm", {"threshold": "element", "spatial": (0, 3)}, r"spatial=\(0, 3\) holds what is not an integer"),
        ("filter_response_norm", {"threshold": "element", "spatial": ()}, r"spatial=\(\) is empty"),
        ("filter_response_norm", {"threshold": None, "spatial": (5, 3)}, "threshold=None with spatial="),
    ],
)
def test_fields_that_exclude_each_other(method, fields, message):
    with pytest.raises(SpecError, match=f"^{SPECS[method].__name__}: .*{message}"):
        SPECS[method](**_REQUIRED[method], **fields)


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
