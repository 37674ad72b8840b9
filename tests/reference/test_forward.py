"""``forward`` against numbers worked out by hand. eps is large, so that adding it in another place shows."""

import numpy as np
import pytest

import crossnorm
from crossnorm import INFERENCE, TRAIN, UNTRACKED, reference


def output(spec, x, parameters=None, state=None, mode=TRAIN):
    arrays = {name: np.array(values, float) for name, values in (parameters or {}).items()}
    return reference.forward(spec, np.array(x, float), arrays, state or {}, mode).y.value


def running(mean, variance, batches=0):
    return {
        "running_mean": np.array(mean, float),
        "running_variance": np.array(variance, float),
        "batches_tracked": np.array(batches),
    }


def plain(cls, **fields):
    """A specification without parameters."""
    return cls(scale=False, offset=False, **fields)


# Batch normalization: a channel over the batch and all positions


def test_batch_norm():
    # channel 0: 1, 3: mean 2, variance 1, plus eps 3: root 2; channel 1: 0, 8: mean 4, variance 16, plus 9 would be 25
    x = [[1, 0], [3, 8]]
    np.testing.assert_array_equal(
        output(plain(crossnorm.BatchNormSpec, channels=2, eps=3, tracked=False), x)[:, 0], [-1 / 2, 1 / 2]
    )
    np.testing.assert_array_equal(
        output(plain(crossnorm.BatchNormSpec, channels=2, eps=9, tracked=False), x)[:, 1], [-4 / 5, 4 / 5]
    )


def test_batch_norm_averages_over_positions_too():
    # 0, 2, 4, 6, 8, 10 in one channel: mean 5, squares 25, 9, 1, 1, 9, 25: variance 70 / 6; eps 26 / 6 makes it 16
    x = [[[0, 2, 4]], [[6, 8, 10]]]
    got = output(plain(crossnorm.BatchNormSpec, channels=1, eps=26 / 6, tracked=False), x)
    np.testing.assert_allclose(got, [[[-5 / 4, -3 / 4, -1 / 4]], [[1 / 4, 3 / 4, 5 / 4]]], rtol=1e-15)


def test_batch_norm_scale_and_offset():
    spec = crossnorm.BatchNormSpec(channels=1, eps=3)
    got = output(spec, [[1], [3]], {"scale": [10], "offset": [7]}, running([0], [1]))
    np.testing.assert_array_equal(got, [[7 - 5], [7 + 5]])


def test_batch_norm_inference():
    # running mean 10, running variance 5, eps 4: root 3
    spec = plain(crossnorm.BatchNormSpec, channels=1, eps=4)
    np.testing.assert_array_equal(output(spec, [[1], [13]], state=running([10], [5]), mode=INFERENCE), [[-3], [1]])


# Layer normalization: a sample over its normalized dimensions


def test_layer_norm():
    # 0, 2, 4: mean 2, variance 8 / 3; eps 4 / 3 makes it 4. The second row: mean 5, variance 0.
    got = output(plain(crossnorm.LayerNormSpec, shape=3, eps=4 / 3), [[0, 2, 4], [5, 5, 5]])
    np.testing.assert_allclose(got, [[-1, 0, 1], [0, 0, 0]], rtol=1e-15)


def test_layer_norm_over_two_dimensions():
    # 0, 0, 4, 4: mean 2, variance 4; eps 12: root 4. Scale and offset per element.
    spec = crossnorm.LayerNormSpec(shape=(2, 2), eps=12)
    parameters = {"scale": [[2, 4], [6, 8]], "offset": [[1, 2], [3, 4]]}
    np.testing.assert_array_equal(output(spec, [[[0, 0], [4, 4]]], parameters), [[[1 - 1, 2 - 2], [3 + 3, 4 + 4]]])


def test_layer_norm_without_subtracting_the_mean():
    # the same 0, 2, 4 divided by the same 2
    got = output(plain(crossnorm.LayerNormSpec, shape=3, eps=4 / 3, subtract_mean=False), [[0, 2, 4]])
    np.testing.assert_allclose(got, [[0, 1, 2]], rtol=1e-15)


# Group normalization: neighbouring channels of a sample, and all positions


def test_group_norm():
    # channels 0, 1: values 1, 3; channels 2, 3: values 10, 30: mean 20, variance 100; eps 0
    got = output(plain(crossnorm.GroupNormSpec, channels=4, groups=2, eps=0), [[[1], [3], [10], [30]]])
    np.testing.assert_array_equal(got, [[[-1], [1], [-1], [1]]])
    # eps 3: the first group's root is 2
    got = output(plain(crossnorm.GroupNormSpec, channels=4, groups=2, eps=3), [[[1], [3], [10], [30]]])
    np.testing.assert_array_equal(got[0, :2, 0], [-1 / 2, 1 / 2])


def test_group_norm_scale_and_offset_belong_to_channels():
    spec = crossnorm.GroupNormSpec(channels=4, groups=2, eps=0)
    got = output(spec, [[1, 3, 10, 30]], {"scale": [1, 2, 3, 4], "offset": [10, 20, 30, 40]})
    np.testing.assert_array_equal(got, [[10 - 1, 20 + 2, 30 - 3, 40 + 4]])


# Instance normalization: a channel of a sample over its positions


def test_instance_norm():
    # 1, 3: mean 2, variance 1; 2, 6: mean 4, variance 4; eps 0, then eps 5 for the second: root 3
    x = [[[1, 3], [2, 6]]]
    np.testing.assert_array_equal(output(plain(crossnorm.InstanceNormSpec, channels=2, eps=0), x), [[[-1, 1], [-1, 1]]])
    got = output(plain(crossnorm.InstanceNormSpec, channels=2, eps=5), x)
    np.testing.assert_allclose(got[0, 1], [-2 / 3, 2 / 3], rtol=1e-15)


def test_tracked_instance_norm_infers_with_running_statistics():
    spec = plain(crossnorm.InstanceNormSpec, channels=1, eps=4, tracked=True)
    got = output(spec, [[[1, 13]]], state=running([10], [5]), mode=INFERENCE)
    np.testing.assert_array_equal(got, [[[-3, 1]]])


def test_untracked_instance_norm_is_the_same_in_every_mode():
    spec = plain(crossnorm.InstanceNormSpec, channels=1, eps=0)
    np.testing.assert_array_equal(output(spec, [[[1, 3]]], mode=INFERENCE), [[[-1, 1]]])


# RMS normalization


def test_rms_norm():
    # 3, 4: mean square 12.5, plus eps 12.5: root 5
    spec = crossnorm.RMSNormSpec(shape=2, eps=12.5)
    np.testing.assert_allclose(output(spec, [[3, 4]], {"scale": [10, 100]}), [[6, 80]], rtol=1e-15)


# Batch renormalization: batch normalization, corrected by clipped constants


def renorm(**fields):
    """Bounds from the first step on, none unless given."""
    free = {"r_max": None, "d_max": None, "r_max_steps": None, "d_max_steps": None}
    return plain(crossnorm.BatchRenormSpec, channels=1, **{**free, **fields})


def pair(mean, spread, batches=0, name="standard_deviation"):
    return {"running_mean": np.array([mean]), f"running_{name}": np.array([spread]), "batches_tracked": np.array(batches)}


@pytest.mark.parametrize(
    ("bounds", "r", "d"),
    [
        ({}, 1 / 2, 1 / 4),
        ({"r_max": 1.25}, 0.8, 1 / 4),  # from below by 1 / r_max
        ({"r_max": 1.25, "r_min": 0.75}, 0.75, 1 / 4),
        ({"r_max": 1.25, "r_min": 0.0}, 1 / 2, 1 / 4),
        ({"d_max": 0.125}, 1 / 2, 1 / 8),
    ],
)
def test_batch_renorm(bounds, r, d):
    # 1, 3: mean 2, variance 1, plus eps 3: deviation 2, xhat -1/2, 1/2. Against mean 1, deviation 4: r = 2 / 4, d = 1 / 4.
    got = output(renorm(eps=3, **bounds), [[1], [3]], state=pair(1.0, 4.0))
    np.testing.assert_allclose(got, [[-r / 2 + d], [r / 2 + d]], rtol=1e-15)
    # a variance of 13 is the same deviation
    spec = renorm(eps=3, running_quantity="biased_variance", **bounds)
    np.testing.assert_array_equal(output(spec, [[1], [3]], state=pair(1.0, 13.0, name="variance")), got)


def test_batch_renorm_clips_on_the_other_side():
    # 0, 4: mean 2, deviation 2; against mean 8, deviation 1: r = 2, d = -6
    got = output(renorm(eps=0, r_max=1.5, d_max=4), [[0], [4]], state=pair(8.0, 1.0))
    np.testing.assert_array_equal(got, [[-1.5 - 4], [1.5 - 4]])


def test_batch_renorm_scale_and_offset():
    spec = renorm(eps=3).replace(scale=True, offset=True)
    got = output(spec, [[1], [3]], {"scale": [10], "offset": [7]}, pair(1.0, 4.0))
    np.testing.assert_array_equal(got, [[7 + 10 * (-1 / 4 + 1 / 4)], [7 + 10 * (1 / 4 + 1 / 4)]])


def test_batch_renorm_never_divides_by_less_than_the_root_of_eps():
    # mean 3, variance 0, eps 4: deviation 2; running deviation 1 counts as 2: d = (3 - 1) / 2
    np.testing.assert_array_equal(output(renorm(eps=4), [[3], [3]], state=pair(1.0, 1.0)), [[1], [1]])


@pytest.mark.parametrize(("batches", "r", "d"), [(0, 1.0, 0.0), (2, 1.0, 0.0), (4, 2.0, 1.0), (6, 3.0, 2.0), (9, 3.0, 2.0)])
def test_batch_renorm_schedule(batches, r, d):
    # mean 8, variance 16, eps 0: deviation 4, xhat -1, 1; against mean 0, deviation 1 both are clipped: r < 4, d < 8
    spec = renorm(eps=0, r_max=3, r_max_steps=(2, 6), d_max=2, d_max_steps=(2, 6))
    got = output(spec, [[4], [12]], state=pair(0.0, 1.0, batches))
    np.testing.assert_array_equal(got, [[-r + d], [r + d]])


def test_batch_renorm_inference():
    x = [[1], [13]]
    deviation, variance = (renorm(eps=4, running_quantity=q) for q in ("standard_deviation", "biased_variance"))
    np.testing.assert_array_equal(output(deviation, x, state=pair(10.0, 3.0), mode=INFERENCE), [[-3], [1]])
    np.testing.assert_array_equal(output(variance, x, state=pair(10.0, 5.0, name="variance"), mode=INFERENCE), [[-3], [1]])


def test_batch_renorm_with_two_pairs():
    # Training takes the renorm pair, mean 1 and deviation 4; inference the running mean 10 and the running variance 5.
    spec = renorm(eps=3, renorm_decay=0.5)
    second = {"renorm_mean": np.array([1.0]), "renorm_standard_deviation": np.array([4.0]), "running_variance": np.array([6.0])}
    state = {**pair(10.0, 1e3), **second}
    np.testing.assert_array_equal(output(spec, [[1], [3]], state=state), [[-1 / 4 + 1 / 4], [1 / 4 + 1 / 4]])
    np.testing.assert_array_equal(output(spec, [[1], [13]], state=state, mode=INFERENCE), [[-3], [1]])


# Switchable normalization: two samples, two channels, two positions

# means 1, 6; 4, 9 and variances 1, 4; 4, 1. Sample 0: mean 3.5, variance 8.75. Channel 0: mean 2.5, variance 4.75.
_SWITCHED = [[[0, 2], [4, 8]], [[2, 6], [8, 10]]]
_ONLY = {"instance": [1e4, 0, 0], "layer": [0, 1e4, 0], "batch": [0, 0, 1e4]}  # exp(1e4) overflows


def switchable(**fields):
    return plain(crossnorm.SwitchableNormSpec, channels=2, **fields)


def test_switchable_norm():
    # means weigh 1/2, 1/4, 1/4: 0.5 + 0.875 + 0.625 = 2; variances 1/4, 1/2, 1/4: 0.25 + 4.375 + 1.1875, plus eps: 16
    logits = {"mean_logits": np.log([2, 1, 1]), "variance_logits": np.log([1, 2, 1])}
    got = output(switchable(eps=16 - 5.8125), _SWITCHED, logits, running([0, 0], [1, 1]))
    np.testing.assert_allclose(got[0, 0], [-2 / 4, 0], atol=1e-15)


def test_switchable_norm_scale_and_offset():
    spec = crossnorm.SwitchableNormSpec(channels=2, eps=3)
    logits = {"mean_logits": _ONLY["instance"], "variance_logits": _ONLY["instance"]}
    got = output(spec, _SWITCHED, {"scale": [10, 0], "offset": [7, 9], **logits}, running([0, 0], [1, 1]))
    np.testing.assert_array_equal(got[0], [[7 - 5, 7 + 5], [9, 9]])


@pytest.mark.parametrize(
    ("name", "estimator", "mean", "variance"),
    [
        ("instance", "biased", 1, 1),
        ("layer", "biased", 3.5, 8.75),
        ("batch", "biased", 2.5, 4.75),
        ("instance", "unbiased_instance", 1, 2),
        ("layer", "unbiased_instance", 3.5, 11.25),  # 2 and 8, plus 6.25
        ("batch", "unbiased_instance", 2.5, 7.25),  # 2 and 8, plus 2.25
        ("instance", "unbiased", 1, 2),
        ("layer", "unbiased", 3.5, 35 / 3),
        ("batch", "unbiased", 2.5, 19 / 3),
    ],
)
def test_switchable_norms_statistics(name, estimator, mean, variance):
    parameters = {"mean_logits": _ONLY[name], "variance_logits": _ONLY[name]}
    got = output(switchable(eps=1, variance=estimator), _SWITCHED, parameters, running([0, 0], [1, 1]))
    np.testing.assert_allclose(got[0, 0], (np.array([0, 2]) - mean) / np.sqrt(variance + 1), rtol=1e-14)


def test_switchable_norm_inference():
    # the running mean 10 and variance 28 in place of the batch's, half of each with the layer's 3.5 and 8.75
    logits = {"mean_logits": [0, 0], "variance_logits": [0, 0]}
    state = running([10, 0], [28, 0])
    got = output(switchable(eps=25 - 18.375, use_instance=False), _SWITCHED, logits, state, INFERENCE)
    np.testing.assert_allclose(got[0, 0], [-6.75 / 5, -4.75 / 5], rtol=1e-15)


@pytest.mark.parametrize("estimator", ["biased", "unbiased_instance", "unbiased"])
def test_a_single_value_has_variance_zero(estimator):
    """Whatever is divided by n - 1."""
    spec = plain(crossnorm.SwitchableNormSpec, channels=1, eps=4, variance=estimator)
    logits = {"mean_logits": [0, 0, -1e4], "variance_logits": [0, 0, 0]}
    got = output(spec, [[[5]]], logits, running([0], [1]))
    np.testing.assert_array_equal(got, [[[0]]])


# Filter response normalization


def response(**fields):
    return crossnorm.FilterResponseNormSpec(channels=1, **{"eps": 12.5, "threshold": None, **fields})


def test_filter_response_norm():
    # 3, 4: mean square 12.5, plus eps 12.5: root 5
    got = output(response(scale=False, offset=False), [[[3, 4]]])
    np.testing.assert_allclose(got, [[[0.6, 0.8]]], rtol=1e-15)
    got = output(response(), [[[3, 4]]], {"scale": [10], "offset": [-7]})
    np.testing.assert_allclose(got, [[[-1, 1]]], rtol=1e-14)


@pytest.mark.parametrize("shape", ["scalar", "channel"])
@pytest.mark.parametrize("learned", [4.5, -4.5])
def test_filter_response_norm_with_a_learned_eps(shape, learned):
    spec = response(eps=8, learned_eps=shape, scale=False, offset=False)
    got = output(spec, [[[3, 4]]], {"learned_eps": learned if shape == "scalar" else [learned]})
    np.testing.assert_allclose(got, [[[0.6, 0.8]]], rtol=1e-15)


def test_filter_response_norm_with_a_threshold():
    x = [[[[3, 4], [4, 3]]]] * 2
    parameters = {"scale": [10], "offset": [-7], "threshold": [0.25]}
    got = output(response(threshold="channel"), x, parameters)
    np.testing.assert_allclose(got, [[[[0.25, 1], [1, 0.25]]]] * 2, rtol=1e-14)
    parameters["threshold"] = [[[-2, 5], [0.5, -0.5]]]
    got = output(response(threshold="element", spatial=(2, 2)), x, parameters)
    np.testing.assert_allclose(got, [[[[-1, 5], [1, -0.5]]]] * 2, rtol=1e-14)


def test_an_element_wise_threshold_needs_its_own_positions():
    spec = response(threshold="element", spatial=(1,), scale=False, offset=False)
    with pytest.raises(ValueError, match=r"FilterResponseNormSpec: an input of shape \(2, 1, 3\)"):
        output(spec, np.ones((2, 1, 3)), {"threshold": [[0]]})


# Weight standardization: a row over its numbers


@pytest.mark.parametrize(
    ("fields", "denominator"),
    [
        ({}, 2),  # 1, 5: mean 3, variance 4
        ({"ddof": 1}, 8**0.5),
        ({"eps": 5}, 3),
        ({"eps": 1, "ddof": 1}, 3),
        ({"eps": 5, "eps_place": "deviation"}, 7),
        ({"eps": 7, "eps_place": "maximum"}, 2),  # 7 / 2 < 4
        ({"eps": 18, "eps_place": "maximum"}, 3),
        ({"gain": 10.0}, 1 / 5),
        ({"gain": 10.0, "fan_in_scaling": True}, 2**0.5 / 5),
    ],
)
def test_weight_standardization(fields, denominator):
    spec = crossnorm.WeightStandardizationSpec(shape=(2, 2), **{"eps": 0.0, **fields})
    np.testing.assert_allclose(
        output(spec, [[1, 5], [5, 1]]), [[-2 / denominator, 2 / denominator], [2 / denominator, -2 / denominator]]
    )
    got = output(spec.replace(scale=True), [[1, 5], [5, 1]], {"scale": [3, -1]})
    np.testing.assert_allclose(got, [[-6 / denominator, 6 / denominator], [-2 / denominator, 2 / denominator]])


@pytest.mark.parametrize("place", ["variance", "deviation", "maximum"])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 7)])
def test_a_row_of_equal_numbers_is_standardized_to_zero(shape, ddof, place):
    """Also where their mean, in floating point, is not quite one of them."""
    for eps in (0.0, 1e-5):
        spec = crossnorm.WeightStandardizationSpec(shape=shape, eps=eps, ddof=ddof, eps_place=place)
        np.testing.assert_array_equal(output(spec, np.full(shape, 0.1)), np.zeros(shape))


# Spectral normalization: a matrix over an estimate of its largest singular value


def spectral(shape, u, v=None, **fields):
    spec = crossnorm.SpectralNormSpec(shape=shape, stored="u" if v is None else "uv", **fields)
    state = {"u": np.array(u, float), "v": np.array(v, float)} if v is not None else {"u": np.array(u, float)}
    return spec, state


def test_spectral_norm():
    # v = (3, 4) / 5, u = 1: sigma 5
    spec, state = spectral((1, 2), [1], [1, 0])
    np.testing.assert_allclose(output(spec, [[3, 4]], state=state), [[0.6, 0.8]], rtol=1e-15)


@pytest.mark.parametrize(("order", "sigma"), [("v_first", 3), ("u_first", 4)])
def test_spectral_norms_order(order, sigma):
    # u and v start at the singular vectors of different singular values: the first to move decides
    spec, state = spectral((2, 2), [1, 0], [0, 1], iteration_order=order)
    np.testing.assert_allclose(output(spec, [[3, 0], [0, 4]], state=state), [[3 / sigma, 0], [0, 4 / sigma]], rtol=1e-15)


def test_spectral_norms_iterations():
    # u = (1, 1): after k iterations it is (1, 4^k) up to its length, v one step before (1, 2 * 4^(k-1))
    weight = np.array([[1.0, 0.0], [0.0, 2.0]])
    for iterations in (1, 2, 3):
        spec, state = spectral((2, 2), [1, 1], [1, 0], iterations=iterations)
        u, v = np.array([1.0, 4.0**iterations]), np.array([1.0, 2 * 4.0 ** (iterations - 1)])
        u, v = u / np.sqrt(u @ u), v / np.sqrt(v @ v)
        np.testing.assert_allclose(output(spec, weight, state=state), weight / (u @ weight @ v), rtol=1e-14)
        new = step(spec, weight, state)
        np.testing.assert_allclose(new["u"], u, rtol=1e-14)
        np.testing.assert_allclose(new["v"], v, rtol=1e-14)


@pytest.mark.parametrize(
    ("place", "eps", "v", "u"),
    [
        ("maximum", 4, [0.6, 0.8], 1),  # the norm 5 is greater; then 5 is again
        ("maximum", 10, [0.3, 0.4], 0.25),  # w v = 2.5
        ("maximum_of_square", 100, [0.3, 0.4], 0.25),
        ("added_to_square", 144, [3 / 13, 4 / 13], (25 / 13) / ((25 / 13) ** 2 + 144) ** 0.5),
    ],
)
def test_where_spectral_norms_eps_is_added(place, eps, v, u):
    spec, state = spectral((1, 2), [1], [1, 0], eps=eps, eps_place=place)
    new = step(spec, [[3, 4]], state)
    np.testing.assert_allclose(new["v"], v, rtol=1e-15)
    np.testing.assert_allclose(new["u"], [u], rtol=1e-15)


def test_when_spectral_norm_iterates():
    # Stored: sigma = 2 * 3 = 6; after an iteration 5 (u = 1).
    for iterate, inferred in (("training", 6), ("always", 5)):
        spec, state = spectral((1, 2), [2], [1, 0], iterate=iterate)
        sigmas = {mode: 3 / output(spec, [[3, 4]], state=state, mode=mode)[0, 0] for mode in (TRAIN, UNTRACKED, INFERENCE)}
        assert sigmas == pytest.approx({TRAIN: 5, UNTRACKED: 5, INFERENCE: inferred}, rel=1e-15)
        for mode in (UNTRACKED, INFERENCE):
            np.testing.assert_array_equal(step(spec, [[3, 4]], state, mode)["u"], [2])
        np.testing.assert_array_equal(step(spec, [[3, 4]], state)["u"], [1])


@pytest.mark.parametrize(("iterations", "mode"), [(1, INFERENCE), (0, TRAIN)])
def test_spectral_norm_with_u_alone(iterations, mode):
    # u = 2 (not of norm 1): v = (6, 8) / 10, sigma = 2 * 5
    spec, state = spectral((1, 2), [2], iterations=iterations)
    np.testing.assert_allclose(output(spec, [[3, 4]], state=state, mode=mode), [[0.3, 0.4]], rtol=1e-15)


@pytest.mark.parametrize("mode", [TRAIN, UNTRACKED, INFERENCE])
@pytest.mark.parametrize("v", [None, [1, 0]])
def test_a_weight_of_zeros_stays_zero(v, mode):
    spec, state = spectral((2, 2), [0.6, 0.8], v, iterations=2)
    np.testing.assert_array_equal(output(spec, np.zeros((2, 2)), state=state, mode=mode), np.zeros((2, 2)))
    for name, vector in step(spec, np.zeros((2, 2)), state, mode).items():
        np.testing.assert_array_equal(vector, state[name])


def test_a_sigma_of_zero_counts_as_one():
    spec, state = spectral((2, 2), [3, 4], [1, 0])
    weight = [[4, 1], [-3, 1]]  # u' W v = 0
    np.testing.assert_array_equal(output(spec, weight, state=state, mode=INFERENCE), weight)


def test_spectral_norm_of_one_dimension():
    # a column: v = 1, u = (3, 4) / 5
    spec, state = spectral((2,), [1, 0], [1])
    np.testing.assert_allclose(output(spec, [3, 4], state=state), [0.6, 0.8], rtol=1e-15)


# Weight normalization: length and direction


@pytest.mark.parametrize(
    ("fields", "denominator"),
    [
        ({}, 5),
        ({"eps": 4}, 5),
        ({"eps": 10}, 10),
        ({"eps": 24, "eps_place": "maximum_of_square"}, 5),
        ({"eps": 100, "eps_place": "maximum_of_square"}, 10),
        ({"eps": 144, "eps_place": "added_to_square"}, 13),
    ],
)
def test_weight_norm(fields, denominator):
    spec = crossnorm.WeightNormSpec(shape=(2, 2), **fields)
    got = output(spec, [[3, 4], [-4, 3]], {"scale": [10, -20]})
    np.testing.assert_allclose(got, np.array([[30, 40], [80, -60]]) / denominator, rtol=1e-15)
    whole = spec.replace(norm_over="whole")
    got = output(whole, [[3, 0], [0, 4]], {"scale": 10})
    np.testing.assert_allclose(got, np.array([[30, 0], [0, 40]]) / denominator, rtol=1e-15)
    got = output(whole.replace(scale=False), [[3, 0], [0, 4]])
    np.testing.assert_allclose(got, np.array([[3, 0], [0, 4]]) / denominator, rtol=1e-15)


@pytest.mark.parametrize("place", ["maximum", "maximum_of_square", "added_to_square"])
@pytest.mark.parametrize("eps", [0.0, 1e-12])
def test_a_row_of_zeros_stays_zero(eps, place):
    spec = crossnorm.WeightNormSpec(shape=(2, 2), eps=eps, eps_place=place)
    np.testing.assert_allclose(output(spec, [[0, 0], [3, 4]], {"scale": [10, 5]}), [[0, 0], [3, 4]], rtol=1e-12)


def test_weight_norms_initialization_from_data():
    # row 0: 0, 6, 0, 6, 3, 3: mean 3, deviation root 6; row 1: equal numbers, whose deviation of 0 counts as 1
    outputs = np.array([[[0, 6], [0.1, 0.1]], [[0, 6], [0.1, 0.1]], [[3, 3], [0.1, 0.1]]])
    assert outputs[:, 1].mean() != 0.1  # as floating point has it
    scale, bias = reference.weight_norm.initialize(outputs)
    np.testing.assert_allclose(scale, [6**-0.5, 1], rtol=1e-15)
    np.testing.assert_allclose(bias, [-3 * 6**-0.5, -0.1], rtol=1e-15)


# Running statistics


def step(spec, x, state, mode=TRAIN):
    new = reference.forward(spec, np.array(x, float), {}, state, mode).state
    assert list(new) == [array.name for array in spec.state]
    return {name: quantity.value for name, quantity in new.items()}


@pytest.mark.parametrize(("estimator", "variance"), [("biased", 4.0), ("unbiased", 4.25)])
def test_batch_norm_update(estimator, variance):
    # 1, 3: mean 2, biased variance 1, unbiased 2. Mean: 0.75 * 10 + 0.25 * 2 = 8. Variance: 0.75 * 5 + 0.25 * (1 or 2).
    spec = plain(crossnorm.BatchNormSpec, channels=1, decay=0.75, running_variance=estimator)
    state = step(spec, [[1], [3]], running([10], [5], batches=6))
    assert state == {"running_mean": [8.0], "running_variance": [variance], "batches_tracked": 7}


@pytest.mark.parametrize(
    ("estimator", "variance"), [("instance_mean_biased", 3.75 + 0.25 * 2.5), ("instance_mean_unbiased", 3.75 + 0.25 * 5)]
)
def test_instance_norm_update(estimator, variance):
    # 1, 3: mean 2, variance 1; 6, 10: mean 8, variance 4; averages 5 and 2.5 (unbiased: 2 and 8, average 5).
    # The pooled variance of 1, 3, 6, 10 would be 11.5.
    spec = plain(crossnorm.InstanceNormSpec, channels=1, decay=0.75, tracked=True, running_variance=estimator)
    state = step(spec, [[[1, 3]], [[6, 10]]], running([10], [5], batches=0))
    assert state == {"running_mean": [7.5 + 0.25 * 5], "running_variance": [variance], "batches_tracked": 1}


def test_decay_none_is_the_plain_average_of_the_batches(draw):
    """Whatever the state starts from."""
    spec = plain(crossnorm.BatchNormSpec, channels=4, decay=None)
    batches = [draw(spec, (5, 4, 3), seed).x for seed in range(4)]
    state = running([7.0] * 4, [9.0] * 4)
    for x in batches:
        state = {name: quantity.value for name, quantity in reference.forward(spec, x, {}, state, TRAIN).state.items()}
    np.testing.assert_allclose(np.float64(state["running_mean"]), np.mean([x.mean((0, 2)) for x in batches], 0, float))
    want = np.mean([x.var((0, 2), ddof=1) for x in batches], 0, float)
    np.testing.assert_allclose(np.float64(state["running_variance"]), want)
    assert state["batches_tracked"] == 4


# 1, 3: mean 2, biased variance 1, unbiased 2, eps 3: deviation 2
@pytest.mark.parametrize(
    ("quantity", "spread"), [("standard_deviation", 0.75 * 4 + 0.25 * 2), ("biased_variance", 3.25), ("unbiased_variance", 3.5)]
)
def test_batch_renorm_update(quantity, spread):
    name = "standard_deviation" if quantity == "standard_deviation" else "variance"
    state = step(renorm(eps=3, decay=0.75, running_quantity=quantity), [[1], [3]], pair(10.0, 4.0, 6, name))
    assert state == {"running_mean": [8.0], f"running_{name}": [spread], "batches_tracked": 7}


def test_batch_renorm_update_of_two_pairs():
    spec = renorm(eps=3, decay=0.75, renorm_decay=0.5)
    second = {
        "renorm_mean": np.array([10.0]),
        "renorm_standard_deviation": np.array([4.0]),
        "running_variance": np.array([9.0]),
    }
    state = step(spec, [[1], [3]], {**pair(10.0, 4.0, 6), **second})
    assert state == {
        "running_mean": [8.0],
        "running_standard_deviation": [3.5],
        "renorm_mean": [6.0],
        "renorm_standard_deviation": [3.0],
        "running_variance": [3.5**2 - 3],
        "batches_tracked": 7,
    }
    # a deviation below the root of eps is a variance of 0
    state = step(spec.replace(decay=1.0), [[1], [3]], {**pair(10.0, 1.0, 6), **second})
    assert state["running_variance"] == [0]


@pytest.mark.parametrize(
    ("fields", "variance"),
    [
        ({}, 0.75 * 5 + 0.25 * 4.75),
        ({"variance": "unbiased_instance"}, 0.75 * 5 + 0.25 * 7.25),
        ({"variance": "unbiased"}, 0.75 * 5 + 0.25 * 19 / 3),
        ({"pooled": True}, 0.75 * 5 + 0.25 * (4.75 + 0.75 * 7.5**2)),
    ],
)
def test_switchable_norm_update(fields, variance):
    """Channel 0: mean 2.5 and variance 4.75, the old mean 10."""
    data = np.array(_SWITCHED, float)
    logits = {"mean_logits": np.zeros(3), "variance_logits": np.zeros(3)}
    state = reference.forward(switchable(decay=0.75, **fields), data, logits, running([10, 0], [5, 0], 6), TRAIN).state
    assert state["running_mean"].value[0] == 7.5 + 0.25 * 2.5
    np.testing.assert_allclose(state["running_variance"].value[0], variance, rtol=1e-15)
    assert state["batches_tracked"].value == 7


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_decay_at_its_ends(decay):
    """0 keeps the new statistics only, 1 the old ones only."""
    spec = plain(crossnorm.BatchNormSpec, channels=1, decay=decay, running_variance="biased")
    state = step(spec, [[1], [3]], running([10], [5]))
    assert (state["running_mean"], state["running_variance"]) == ((10, 5) if decay else (2, 1))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_unbiased_is_n_over_n_minus_one_times_biased(n, draw):
    spec = plain(crossnorm.BatchNormSpec, channels=4, decay=0.0)
    x = np.float64(draw(spec, (n, 4)).x)
    state = running([0.0] * 4, [1.0] * 4)
    unbiased = step(spec, x, state)["running_variance"]
    biased = step(spec.replace(running_variance="biased"), x, state)["running_variance"]
    np.testing.assert_allclose(unbiased / biased, n / (n - 1), rtol=1e-14)


def test_one_value_per_channel():
    """It equals its mean: the output is the offset, and variance 0 enters the average without the factor 1 / 0."""
    spec = crossnorm.BatchNormSpec(channels=1, decay=0.75, single_value="zero")
    result = reference.forward(
        spec, np.array([[8.0]]), {"scale": np.ones(1), "offset": np.array([5.0])}, running([4], [4]), TRAIN
    )
    assert result.y.value == 5
    assert result.state["running_mean"].value == 0.75 * 4 + 0.25 * 8
    assert result.state["running_variance"].value == 0.75 * 4


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (crossnorm.BatchNormSpec(channels=4), (0, 4)),
        (crossnorm.BatchNormSpec(channels=4), (0, 4, 3)),
        (crossnorm.BatchNormSpec(channels=4), (3, 4, 0)),
        (crossnorm.InstanceNormSpec(channels=4, tracked=True), (0, 4, 3)),
        (crossnorm.InstanceNormSpec(channels=4, tracked=True), (3, 4, 0)),
        (crossnorm.BatchRenormSpec(channels=4), (0, 4)),
        (crossnorm.BatchRenormSpec(channels=4, renorm_decay=0.5), (3, 4, 0)),
        (crossnorm.SwitchableNormSpec(channels=4), (0, 4, 3)),
        (crossnorm.SwitchableNormSpec(channels=4, pooled=True), (3, 4, 0)),
    ],
)
def test_a_batch_without_values_changes_no_state(spec, shape, draw):
    data = draw(spec, shape)
    result = reference.forward(spec, data.x, data.parameters, data.state, TRAIN)
    assert result.y.value.shape == shape
    for name, array in data.state.items():
        np.testing.assert_array_equal(result.state[name].value, array)
    gradients = reference.backward(spec, data.x, data.parameters, data.state, TRAIN, data.upstream)
    assert gradients["x"].value.shape == shape
    np.testing.assert_array_equal(gradients["scale"].value, np.zeros(4))


@pytest.mark.parametrize("mode", [INFERENCE, UNTRACKED])
@pytest.mark.parametrize(
    "spec",
    [
        crossnorm.BatchNormSpec(channels=4),
        crossnorm.InstanceNormSpec(channels=4, tracked=True),
        crossnorm.BatchRenormSpec(channels=4, renorm_decay=0.5),
        crossnorm.SwitchableNormSpec(channels=4),
        crossnorm.SpectralNormSpec(shape=(3, 4, 5), iterate="always"),
    ],
    ids=lambda s: s.method,
)
def test_only_training_changes_the_state(spec, mode, draw):
    data = draw(spec, (3, 4, 5))
    state = reference.forward(spec, data.x, data.parameters, data.state, mode).state
    assert list(state) == list(data.state)
    for name, array in data.state.items():
        np.testing.assert_array_equal(state[name].value, array)


# Any case


def test_inputs_are_left_alone_and_the_dtype_is_kept(case, draw):
    spec, shape, mode = case
    for dtype in (np.float64, np.longdouble):
        data, again = draw(spec, shape, dtype=dtype), draw(spec, shape, dtype=dtype)
        result = reference.forward(spec, data.x, data.parameters, data.state, mode)
        gradients = reference.backward(spec, data.x, data.parameters, data.state, mode, data.upstream)
        for name, quantity in {"y": result.y, **result.state, **gradients}.items():
            assert quantity.value.dtype == dtype or name == "batches_tracked"
        for kept, fresh in ((data.x, again.x), (data.upstream, again.upstream)):
            np.testing.assert_array_equal(kept, fresh)
        for name, array in again.state.items():
            np.testing.assert_array_equal(data.state[name], array)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (crossnorm.BatchNormSpec(channels=4), (4,)),
        (crossnorm.GroupNormSpec(channels=4, groups=2), (4,)),
        (crossnorm.InstanceNormSpec(channels=4), (2, 4)),
        (crossnorm.LayerNormSpec(shape=(4, 3)), (3,)),
        (crossnorm.RMSNormSpec(shape=(4, 3)), (3,)),
        (crossnorm.BatchRenormSpec(channels=4), (4,)),
        (crossnorm.SwitchableNormSpec(channels=4), (4,)),
        (crossnorm.FilterResponseNormSpec(channels=4), (4,)),
    ],
)
def test_too_low_a_rank(spec, shape):
    x = np.zeros(shape)
    parameters = {array.name: np.full(array.shape, array.initial) for array in spec.parameters}
    state = {array.name: np.full(array.shape, array.initial) for array in spec.state}
    with pytest.raises(ValueError, match=f"^{type(spec).__name__}: an input of shape .* has fewer than"):
        reference.forward(spec, x, parameters, state, TRAIN)
    with pytest.raises(ValueError, match=f"^{type(spec).__name__}: an input of shape .* has fewer than"):
        reference.backward(spec, x, parameters, state, TRAIN, x)


@pytest.mark.parametrize("method", ["weight_standardization", "spectral_norm", "weight_norm"])
def test_a_weight_of_another_shape(method, draw):
    spec = crossnorm.spec.spec_class(method)(shape=(4, 3))
    data = draw(spec, (3, 4))
    with pytest.raises(ValueError, match=rf"^{type(spec).__name__}: a weight of shape \(3, 4\) is not of shape \(4, 3\)"):
        reference.forward(spec, data.x, data.parameters, data.state, TRAIN)
    with pytest.raises(ValueError, match=rf"^{type(spec).__name__}: a weight of shape \(3, 4\) is not of shape \(4, 3\)"):
        reference.backward(spec, data.x, data.parameters, data.state, TRAIN, data.upstream)
