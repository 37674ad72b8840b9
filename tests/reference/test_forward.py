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
    "spec", [crossnorm.BatchNormSpec(channels=4), crossnorm.InstanceNormSpec(channels=4, tracked=True)], ids=lambda s: s.method
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
