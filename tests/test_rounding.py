"""The rounding unit is sane: sound arithmetic scores a few units, a deliberate bug scores more than the verdict allows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import crossnorm
from crossnorm import TRAIN, reference, rounding
from crossnorm.reference import Quantity
from crossnorm.rounding import DTYPES, VERDICT, in_units, largest, round_to, unit, unit_roundoff

# Rounding to a dtype

BFLOAT16 = [
    # 8 bits: next to 1 the numbers are 2^-7 apart
    (1.0, 1.0),
    (1 + 2**-7, 1 + 2**-7),
    (1 + 2**-9, 1.0),
    (1 + 2**-8 + 2**-20, 1 + 2**-7),
    # ties go to the even one
    (1 + 2**-8, 1.0),
    (1 + 3 * 2**-8, 1 + 2**-6),
    (-1 - 2**-8, -1.0),
    (-1 - 3 * 2**-8, -1 - 2**-6),
    # carries into the exponent
    (2 - 2**-9, 2.0),
    # the largest number is 2^128 - 2^120; from its midpoint to 2^128 on, rounding overflows
    (2.0**128 - 2.0**120, 2.0**128 - 2.0**120),
    (2.0**128 - 2.0**119 - 2.0**105, 2.0**128 - 2.0**120),
    (2.0**128 - 2.0**119, np.inf),
    (1e300, np.inf),
    (-1e300, -np.inf),
    (np.inf, np.inf),
    # the smallest subnormal is 2^-133; half of it is a tie, to zero
    (2.0**-133, 2.0**-133),
    (2.0**-134, 0.0),
    (3 * 2.0**-135, 2.0**-133),
]


@pytest.mark.parametrize(("value", "rounded"), BFLOAT16)
def test_bfloat16_by_hand(value, rounded):
    assert round_to(np.array(value), "bfloat16") == rounded


def test_bfloat16_keeps_nan_the_sign_of_zero_and_the_shape():
    negative_nan = np.array(0xFFFFFFFF, np.uint32).view(np.float32)
    assert np.isnan(round_to(np.array([np.nan, -np.nan, negative_nan]), "bfloat16")).all()
    assert np.signbit(round_to(np.array(-0.0), "bfloat16"))
    for shape in ((), (0,), (2, 3), (2, 0, 3)):
        rounded = round_to(np.ones(shape), "bfloat16")
        assert rounded.shape == shape
        assert rounded.dtype == np.float32
    assert round_to(np.ones((4, 6))[::2, ::-1], "bfloat16").shape == (2, 6)


@given(st.floats(-(2.0**127), 2.0**127, width=32))
def test_bfloat16_is_the_nearest_of_its_neighbours(value):
    rounded = float(round_to(np.array(value), "bfloat16"))
    bits = int(np.float32(value).view(np.uint32))
    below = np.array([bits & 0xFFFF0000, (bits & 0xFFFF0000) + 0x10000], np.uint32).view(np.float32).astype(float)
    assert rounded in below
    assert abs(rounded - value) == np.abs(below - value).min()
    assert float(round_to(np.array(rounded), "bfloat16")) == rounded


@pytest.mark.parametrize("dtype", DTYPES)
def test_roundoff_and_largest(dtype):
    """1 + u is a tie and rounds to 1, 1 + 2u does not round; the largest number is itself and twice it is inf."""
    u = np.longdouble(unit_roundoff(dtype))
    assert round_to(1 + u, dtype) == 1
    assert round_to(1 + 2 * u, dtype) == 1 + 2 * u
    assert round_to(np.array(largest(dtype)), dtype) == largest(dtype)
    assert round_to(np.array(largest(dtype), np.longdouble) * 2, dtype) == np.inf


def test_accumulation_and_oracle():
    assert [rounding.accumulation(dtype) for dtype in DTYPES] == ["float32", "float64", "float32", "float32"]
    assert rounding.oracle_dtype("float32") is np.float64
    assert rounding.oracle_dtype("float64") in (np.longdouble, None)


# Units of the reference itself, evaluated in float32

SHAPE = (16, 8, 7, 7)
SPECIFICATIONS = [
    crossnorm.BatchNormSpec(channels=8),
    crossnorm.LayerNormSpec(shape=SHAPE[1:]),
    crossnorm.GroupNormSpec(channels=8, groups=2),
    crossnorm.InstanceNormSpec(channels=8, tracked=True),
    crossnorm.RMSNormSpec(shape=SHAPE[1:]),
]


def draw(spec, dtype="float32", offset=0.0):
    """Random inputs by name, in the dtype in which they are stored."""
    random = np.random.default_rng(0)
    inputs = {"x": random.standard_normal(SHAPE) + offset, "upstream": random.standard_normal(SHAPE)}
    inputs |= {array.name: random.standard_normal(array.shape) + 0.5 for array in spec.parameters}
    inputs |= {array.name: random.random(array.shape) + 0.5 for array in spec.state if array.shape}
    return {name: round_to(values, dtype) for name, values in inputs.items()}


def evaluator(spec, mode=TRAIN):
    """Every quantity of a training step as a function of the named arrays."""

    def evaluate(arrays):
        parameters = {array.name: arrays[array.name] for array in spec.parameters}
        state = {array.name: arrays[array.name] if array.shape else np.asarray(5) for array in spec.state}
        result = reference.forward(spec, arrays["x"], parameters, state, mode)
        gradients = reference.backward(spec, arrays["x"], parameters, state, mode, arrays["upstream"])
        return {"y": result.y, **result.state, **{f"d{name}": gradient for name, gradient in gradients.items()}}

    return evaluate


def score(spec, implementation, dtype="float32", offset=0.0, oracle=np.float64):
    """The worst units of each quantity that ``implementation``, another specification, computes in ``dtype``."""
    inputs = draw(spec, dtype, offset)
    names = evaluator(spec)(inputs)
    stored = dict.fromkeys(names, dtype)
    exact = {name: values.astype(oracle) for name, values in inputs.items()}
    quantities, units = unit(evaluator(spec), exact, dict.fromkeys(inputs, dtype), stored, seed=0)
    got = evaluator(implementation)(inputs)
    return {name: in_units(got[name].value, quantities[name], units[name], stored[name]).max() for name in names}


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("spec", SPECIFICATIONS, ids=lambda spec: spec.method)
def test_sound_arithmetic_scores_a_few_units(spec, offset):
    for name, worst in score(spec, spec, offset=offset).items():
        terms = np.prod(SHAPE) // 8 if name in ("dscale", "doffset") else 1
        assert worst < (8 if name[0] == "y" or terms == 1 else rounding.bound(terms)), (name, worst)


@pytest.mark.skipif(rounding.oracle_dtype("float64") is None, reason="this platform has nothing wider than float64")
@pytest.mark.parametrize("spec", SPECIFICATIONS, ids=lambda spec: spec.method)
def test_sound_arithmetic_in_float64(spec):
    assert max(score(spec, spec, "float64", oracle=np.longdouble).values()) < VERDICT


@pytest.mark.parametrize("spec", SPECIFICATIONS, ids=lambda spec: spec.method)
@pytest.mark.parametrize(("eps", "wrong"), [(1e-5, 1e-4), (1e-4, 0.0)], ids=["ten_times", "forgotten"])
def test_wrong_eps_fails(spec, eps, wrong):
    scores = score(spec.replace(eps=eps), spec.replace(eps=wrong))
    assert scores["y"] > VERDICT
    assert scores["dx"] > VERDICT


@pytest.mark.parametrize(
    ("spec", "change", "quantity"),
    [
        (SPECIFICATIONS[0], {"running_variance": "biased"}, "running_variance"),
        (SPECIFICATIONS[0], {"decay": 0.1}, "running_mean"),
        (SPECIFICATIONS[0], {"decay": 0.1}, "running_variance"),
        (SPECIFICATIONS[0], {"decay": None}, "running_mean"),
        (SPECIFICATIONS[3], {"running_variance": "instance_mean_biased"}, "running_variance"),
        (SPECIFICATIONS[1], {"subtract_mean": False}, "y"),
        (SPECIFICATIONS[1], {"subtract_mean": False}, "dx"),
        (SPECIFICATIONS[2], {"groups": 4}, "y"),
    ],
)
def test_wrong_convention_fails(spec, change, quantity):
    assert score(spec, spec.replace(**change))[quantity] > VERDICT


def test_variance_from_one_pass_fails():
    """E[x^2] - E[x]^2 at an offset of 100: what the verdict is for."""
    spec = SPECIFICATIONS[1]
    inputs = draw(spec, "float32", offset=100.0)
    quantities, units = unit(
        evaluator(spec),
        {name: values.astype(np.float64) for name, values in inputs.items()},
        dict.fromkeys(inputs, "float32"),
        dict.fromkeys(evaluator(spec)(inputs), "float32"),
        seed=0,
    )
    x = inputs["x"]
    mean = np.mean(x, axis=(1, 2, 3), keepdims=True)
    variance = np.mean(x * x, axis=(1, 2, 3), keepdims=True) - mean**2
    y = (x - mean) / np.sqrt(variance + np.float32(spec.eps)) * inputs["scale"] + inputs["offset"]
    assert in_units(y, quantities["y"], units["y"], "float32").max() > VERDICT


# The unit's parts


def evaluate_sum(arrays):
    """Two channels, each a sum of its row: values of very different size."""
    x = arrays["x"]
    value = x.sum(axis=1)
    return {"sum": Quantity(value, np.abs(value) * 0, value.shape), "copy": Quantity(x, np.abs(x) * 0, x.shape, (1,))}


def test_unit_belongs_to_its_group():
    """A bad channel must not excuse a good one."""
    x = np.array([[1.0, 2.0, 3.0], [1e6, 2e6, 3e6]])
    _, units = unit(evaluate_sum, {"x": x}, {"x": "float32"}, {"sum": "float32", "copy": "float32"}, seed=0)
    u = unit_roundoff("float32")
    np.testing.assert_allclose(units["copy"], [[3 * u] * 3, [3e6 * u] * 3], rtol=1e-6)
    assert 0 < units["sum"][0] <= 6.1 * u
    np.testing.assert_allclose(units["sum"][1], 1e6 * units["sum"][0], rtol=1e-6)


def test_unit_of_what_no_input_moves_is_the_smallest_normal_number():
    x = np.array([[1.0, 2.0]])
    _, units = unit(evaluate_sum, {"x": x}, {}, {"sum": "float32", "copy": "float32"}, seed=0)
    assert units["sum"] == np.finfo(np.float32).tiny


@pytest.mark.parametrize(("want", "excused"), [(1e-39, True), (1e-36, False)])
def test_only_a_result_below_the_smallest_normal_number_may_be_zero(want, excused):
    exact, units = unit(evaluate_sum, {"x": np.array([[want]])}, {}, {"sum": "float32", "copy": "float32"}, seed=0)
    error = in_units(np.zeros(1, np.float32), exact["sum"], units["sum"], "float32")
    assert (error <= 1).all() == excused


def test_a_result_below_the_smallest_normal_number_of_float16_may_be_rounded_to_its_steps():
    step = 2.0**-24
    want = np.array([[0.48, 3.49, 100.51]]) * step
    exact, units = unit(evaluate_sum, {"x": want}, {}, {"sum": "float32", "copy": "float16"}, seed=0)
    assert (in_units(round_to(want, "float16"), exact["copy"], units["copy"], "float16") <= 1).all()
    assert (in_units(round_to(want + 40 * step, "float16"), exact["copy"], units["copy"], "float16") > 32).all()


def test_magnitude_and_narrow_storage_add_to_the_unit():
    quantity = Quantity(np.array([4.0]), np.array([16.0]), (1,))

    def constant(arrays):
        return {"q": quantity}

    for stored, expected in {
        "float32": 2.0**-24 * 16,
        "float64": 2.0**-53 * 16,
        "float16": 2.0**-24 * 16 + 2.0**-11 * 4,
        "bfloat16": 2.0**-24 * 16 + 2.0**-8 * 4,
    }.items():
        assert unit(constant, {}, {}, {"q": stored}, seed=0)[1]["q"] == expected


def test_the_seed_decides():
    spec = SPECIFICATIONS[4]
    inputs = {name: values.astype(float) for name, values in draw(spec).items()}
    dtypes, stored = dict.fromkeys(inputs, "float32"), {"y": "float32", "dx": "float32", "dscale": "float32"}
    one, again, other = (unit(evaluator(spec), inputs, dtypes, stored, seed)[1]["dscale"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


# Errors in units


def units_of(got, want, unit_, stored="float32", eps=None):
    want = np.atleast_1d(np.array(want, float))
    quantity = Quantity(want, np.zeros(want.shape), want.shape, eps=eps)
    return in_units(np.atleast_1d(np.array(got, float)), quantity, np.full(want.shape, float(unit_)), stored)[0]


BIG = largest("float16")


@pytest.mark.parametrize(
    ("got", "want", "unit_", "units"),
    [
        (3.0, 1.0, 0.5, 4),
        (-1.0, 1.0, 0.5, 4),
        (1.0, 1.0, 0.0, 0),
        (1.0 + 1e-9, 1.0, 0.0, np.inf),
        (np.nan, np.nan, 0.5, 0),
        (np.inf, np.inf, 0.5, 0),
        (-np.inf, -np.inf, 0.5, 0),
        (np.nan, 1.0, 0.5, np.inf),
        (1.0, np.nan, 0.5, np.inf),
        (np.inf, 1.0, 0.5, 2 * (largest("float32") - 1)),
        (1.0, np.inf, 0.5, np.inf),
        (-np.inf, np.inf, 0.5, np.inf),
        (np.nan, np.inf, 0.5, np.inf),
        (np.inf, np.nan, 0.5, np.inf),
        (np.nan, 1.0, np.inf, np.inf),
    ],
)
def test_error_in_units(got, want, unit_, units):
    assert units_of(got, want, unit_) == units


@pytest.mark.parametrize(
    ("got", "want", "unit_", "units"),
    [
        (np.inf, 2 * BIG, 1.0, 0),  # overflows: inf is right
        (-np.inf, -2 * BIG, 1.0, 0),
        (BIG, 2 * BIG, 1.0, BIG),
        (-np.inf, 2 * BIG, 1.0, np.inf),
        (np.nan, 2 * BIG, 1.0, np.inf),
        (BIG, BIG + 8, 1.0, 8),  # near the largest number the error is a distance, as anywhere
        (np.inf, BIG + 8, 1.0, 0),
        (np.inf, BIG - 8, 1.0, 8),
        (-np.inf, BIG - 8, 1.0, np.inf),
        (np.inf, BIG / 2, 1.0, BIG / 2),
    ],
)
def test_overflow_of_the_stored_dtype(got, want, unit_, units):
    assert units_of(got, want, unit_, stored="float16") == units


def test_a_variance_is_compared_as_a_root():
    """sqrt(8 + 1) = 3 against sqrt(3 + 1) = 2; a negative variance is no number."""
    assert units_of(8.0, 3.0, 0.5, eps=1.0) == 2
    assert units_of(-3.0, 3.0, 0.5, eps=1.0) == np.inf


def test_integers_are_compared_exactly():
    count = Quantity(np.asarray(6), np.asarray(0.0), ())
    assert [in_units(np.asarray(got), count, np.asarray(0.0), "float32") for got in (6, 7, 6.5)] == [0, np.inf, np.inf]


def test_bound_of_a_sum():
    assert [rounding.bound(terms) for terms in (1, 1024, 4096, 10**6)] == [32, 32, 64, 1000]
