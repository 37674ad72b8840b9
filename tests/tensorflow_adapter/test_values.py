"""The layers and the pure functions against the reference, in rounding units."""

import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm import reference, rounding
from tests.tensorflow_adapter.against_reference import POLICY, REGIMES, check, check_channels

CHANNEL_SPECS = {
    "batch": crossnorm.BatchNormSpec(channels=6, decay=0.8),
    "batch-biased": crossnorm.BatchNormSpec(channels=6, decay=0.8, running_variance="biased", offset=False),
    "batch-cumulative": crossnorm.BatchNormSpec(channels=6, decay=None, scale=False),
    "batch-untracked": crossnorm.BatchNormSpec(channels=6, tracked=False),
    "group": crossnorm.GroupNormSpec(channels=6, groups=2),
    "instance": crossnorm.InstanceNormSpec(channels=6),
    "instance-tracked": crossnorm.InstanceNormSpec(channels=6, tracked=True, decay=0.8),
    "instance-cumulative": crossnorm.InstanceNormSpec(
        channels=6, tracked=True, decay=None, running_variance="instance_mean_biased"
    ),
}
ROW_SPECS = {
    "layer": crossnorm.LayerNormSpec(shape=6),
    "layer-bare": crossnorm.LayerNormSpec(shape=6, scale=False, offset=False),
    "layer-two": crossnorm.LayerNormSpec(shape=(5, 6), scale=False),
    "layer-uncentered": crossnorm.LayerNormSpec(shape=6, subtract_mean=False),
    "rms": crossnorm.RMSNormSpec(shape=6),
    "rms-bare": crossnorm.RMSNormSpec(shape=(5, 6), scale=False),
}


@pytest.mark.parametrize("dtype", rounding.DTYPES)
@pytest.mark.parametrize("name", CHANNEL_SPECS)
@pytest.mark.parametrize("axis", [-1, 1])
def test_channels(name, axis, dtype):
    regime = "plain" if dtype in POLICY else "mixed"
    for mode in (crossnorm.TRAIN, crossnorm.INFERENCE) if CHANNEL_SPECS[name].state else (crossnorm.TRAIN,):
        check_channels(CHANNEL_SPECS[name], (4, 6, 5, 3), axis, dtype, regime, mode)


@pytest.mark.parametrize("name", ["batch", "group", "instance"])
def test_channels_between_positions(name):
    check_channels(CHANNEL_SPECS[name], (4, 6, 5, 3), 2, "float32", "plain", crossnorm.TRAIN)


@pytest.mark.parametrize("dtype", rounding.DTYPES)
@pytest.mark.parametrize("name", ROW_SPECS)
def test_rows(name, dtype):
    spec = ROW_SPECS[name]
    for regime in ("constant", "mixed") if dtype in ("float32", "float64") else ("plain",):
        axis = list(range(-len(spec.shape), 0))
        check(spec, lambda x: x, lambda x: x, axis, (4, 5, 6), dtype, regime, crossnorm.TRAIN, False)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", ["batch", "group", "instance"])
def test_many_values_in_a_graph(name, regime):
    check_channels(CHANNEL_SPECS[name], (4, 6, 50, 41), -1, "float32", regime, crossnorm.TRAIN, graph=True)


@pytest.mark.parametrize("axis", [0, 1, (0, 2), [2, 0]])
def test_layer_norm_over_any_axes(axis):
    random = np.random.default_rng(0)
    x = random.normal(size=(4, 5, 6)).astype("f4")
    axes = sorted([axis] if isinstance(axis, int) else axis)
    others = [i for i in range(3) if i not in axes]
    spec = crossnorm.LayerNormSpec(shape=tuple(x.shape[i] for i in axes))
    parameters = {a.name: random.uniform(0.5, 1.5, a.shape).astype("f4") for a in spec.parameters}
    y, state = crossnorm.tensorflow.functional.layer_norm(spec, x, parameters, {}, crossnorm.TRAIN, axis=axis)
    want = reference.forward(spec, x.transpose(others + axes).astype("f8"), parameters, {}, crossnorm.TRAIN).y.value
    assert np.allclose(y.numpy().transpose(others + axes), want, atol=2e-6)
    assert state == {}


@pytest.mark.parametrize("method", ["batch_norm", "instance_norm"])
def test_pure_functions_mirror_the_reference_and_change_nothing(method):
    random = np.random.default_rng(0)
    spec = crossnorm.from_dict({"method": method, "channels": 3, "tracked": True, "decay": None})
    x = random.normal(size=(4, 3, 5))
    parameters = {a.name: random.normal(size=a.shape) for a in spec.parameters}
    state = {"running_mean": random.normal(size=3), "running_variance": np.ones(3), "batches_tracked": np.asarray(4)}
    before = {name: value.copy() for name, value in state.items()}
    function = getattr(crossnorm.tensorflow.functional, method)
    for mode in (crossnorm.TRAIN, crossnorm.INFERENCE, crossnorm.UNTRACKED):
        y, new = function(spec, x, parameters, state, mode, axis=1)
        want = reference.forward(spec, x, parameters, state, mode)
        assert np.allclose(y, want.y.value, rtol=1e-12)
        assert set(new) == set(want.state)
        for name, quantity in want.state.items():
            assert np.allclose(new[name], quantity.value, rtol=1e-12)
    assert all((state[name] == before[name]).all() for name in state)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_masked_batch_norm_of_many_values(offset, graph):
    """Output, statistics and gradient are within a few roundings of what float64 makes of the same numbers."""
    random = np.random.default_rng(0)
    x = (offset + random.normal(size=(32, 3136, 4))).astype("f4")
    mask, upstream = random.uniform(size=(32, 3136)) < 0.9, random.normal(size=x.shape).astype("f4")
    layer = crossnorm.tensorflow.BatchNormalization(momentum=0.0)
    layer.build(x.shape)

    def step(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
        return y, tape.gradient(y, x, upstream)

    y, dx = (tf.function(step) if graph else step)(tf.constant(x), tf.constant(upstream))
    wide, weights, count = x.astype("f8"), mask[..., None], mask.sum()
    mean, variance = wide[mask].mean(0), wide[mask].var(0)
    r = 1 / np.sqrt(variance + 1e-3)
    xhat = (wide - mean) * r
    average, slope = upstream.sum((0, 1), "f8") / count, (upstream * xhat).sum((0, 1)) / count
    want = {"y": xhat, "mean": mean, "variance": variance, "dx": r * (upstream - weights * (average + xhat * slope))}
    got = {"y": y, "mean": layer.moving_mean, "variance": layer.moving_variance, "dx": dx}
    for name, value in got.items():
        size = np.abs(wide if name == "mean" else want[name]).max()
        assert np.abs(value - want[name]).max() <= 4 * np.finfo("f4").eps * size, name
