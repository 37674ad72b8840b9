"""The layers and the pure functions against the reference, in rounding units."""

import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm import reference, rounding

GOAL, GOAL_PARAMETERS = 8, 32

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
REGIMES = {
    "plain": lambda x: x,
    "offset": lambda x: x + 4096,
    "constant": lambda x: np.where(np.arange(6) == 1, 3.7, x),
    "mixed": lambda x: (x + 1e3 * np.arange(6)) * 10.0 ** np.arange(-3, 3),
}
POLICY = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
WEIGHTS = {"scale": ("gamma", "scale"), "offset": ("beta",)}


def weight(layer, name):
    return next(w for w in layer.weights if w.name in WEIGHTS.get(name, (name.replace("running", "moving"),)))


def to_tensor(values, dtype):
    return tf.cast(tf.constant(np.asarray(values, np.float64)), dtype)


def check(spec, to_layout, to_reference, axis, shape, dtype, regime, mode, graph):
    """The layer of ``spec`` against the reference; three steps if it has a state, which runs through."""
    random = np.random.default_rng(len(shape) + len(dtype) + len(regime))
    accumulation, oracle = rounding.accumulation(dtype), rounding.oracle_dtype(dtype)
    layer = crossnorm.tensorflow.layer(spec, axis=axis, dtype=POLICY.get(dtype, dtype))
    layer.build(to_layout(np.zeros(shape)).shape)
    arrays = {a.name: random.uniform(0.5, 1.5, a.shape) for a in (*spec.parameters, *spec.state) if a.name != "batches_tracked"}
    arrays = {name: rounding.round_to(value, accumulation) for name, value in arrays.items()}
    for name, value in arrays.items():
        weight(layer, name).assign(value)
    batches = 0
    parameters = {a.name for a in spec.parameters}
    training = {"training": mode == crossnorm.TRAIN} if spec.method in ("batch_norm", "instance_norm") else {}

    def step(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **training)
        return y, tape.gradient(y, [x, *(weight(layer, name).value for name in sorted(parameters))], upstream)

    step = tf.function(step) if graph else step
    for number in range(3 if spec.state and mode.update_running else 1):
        # The regimes shape the channels, which are the last normalized dimension where there are none.
        channel = 1 if hasattr(spec, "channels") else -1
        x = np.moveaxis(REGIMES[regime](np.moveaxis(random.normal(size=shape), channel, -1)), -1, channel)
        x = rounding.round_to(x, dtype)
        upstream = rounding.round_to(random.normal(size=shape), dtype)
        values = {name: np.asarray(value, oracle) for name, value in {**arrays, "x": x, "upstream": upstream}.items()}

        def evaluate(inputs, batches=batches):
            p = {name: inputs[name] for name in parameters}
            s = {a.name: inputs.get(a.name, np.asarray(batches)) for a in spec.state}
            forward = reference.forward(spec, inputs["x"], p, s, mode)
            backward = reference.backward(spec, inputs["x"], p, s, mode, inputs["upstream"])
            return {"y": forward.y, **{f"d{n}": q for n, q in backward.items()}, **forward.state}

        dtypes = {name: dtype if name in ("x", "upstream") else accumulation for name in values}
        stored = {name: dtype if name in ("y", "dx") else accumulation for name in evaluate(values)}
        exact, units = rounding.unit(evaluate, values, dtypes, stored, seed=number)
        y, (dx, *gradients) = step(to_tensor(to_layout(x), dtype), to_tensor(to_layout(upstream), dtype))
        assert y.dtype.name == dx.dtype.name == dtype
        got = {"y": to_reference(tf.cast(y, "float64").numpy()), "dx": to_reference(tf.cast(dx, "float64").numpy())}
        got |= {f"d{name}": gradient.numpy() for name, gradient in zip(sorted(parameters), gradients, strict=True)}
        got |= {a.name: weight(layer, a.name).numpy() for a in spec.state if a.name != "batches_tracked"}
        for name, value in got.items():
            worst = rounding.in_units(value, exact[name], units[name], stored[name]).max()
            goal = GOAL_PARAMETERS if name in ("dscale", "doffset") else GOAL
            assert worst <= goal, f"step {number}, {name}: {worst} rounding units"
        arrays |= {a.name: got[a.name] for a in spec.state if a.name in got}
        batches += mode.update_running
    if getattr(layer, "batches_tracked", None) is not None:
        assert layer.batches_tracked.numpy() == batches


def check_channels(spec, shape, axis, dtype, regime, mode, graph=False):
    check(spec, lambda x: np.moveaxis(x, 1, axis), lambda x: np.moveaxis(x, axis, 1), axis, shape, dtype, regime, mode, graph)


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
