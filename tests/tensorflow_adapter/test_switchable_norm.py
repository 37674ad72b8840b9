"""Switchable normalization: values, derivatives, the state, the layer in Keras, bad input."""

import copy
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm import reference, rounding
from crossnorm.tensorflow import AxisError, SwitchableNormalization
from tests.tensorflow_adapter.against_reference import POLICY, REGIMES, check_channels

SPECS = {
    "paper": crossnorm.SwitchableNormSpec(channels=6, decay=0.7),
    "authors": crossnorm.SwitchableNormSpec(channels=6, variance="unbiased_instance", initial_variance=0.0),
    "authors-1d": crossnorm.SwitchableNormSpec(channels=6, variance="unbiased", use_instance=False),
    "sum-and-average": crossnorm.SwitchableNormSpec(channels=6, decay=None, pooled=True, offset=False),
    "pooled": crossnorm.SwitchableNormSpec(channels=6, decay=0.5, pooled=True, scale=False),
    "no-batch": crossnorm.SwitchableNormSpec(channels=6, use_batch=False, last_gamma=True),
    "layer-only": crossnorm.SwitchableNormSpec(channels=6, use_batch=False, use_instance=False, scale=False, offset=False),
}
X = np.random.default_rng(0).normal(1, 2, (8, 3, 4)).astype("f4")


@pytest.mark.parametrize("dtype", rounding.DTYPES)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("axis", [-1, 1])
def test_values(name, axis, dtype):
    spec = SPECS[name]
    for regime in ("plain",) if dtype in POLICY else ("mixed", "large"):
        for mode in (crossnorm.TRAIN, crossnorm.INFERENCE) if spec.use_batch else (crossnorm.TRAIN,):
            check_channels(spec, (4, 6, 5, 3), axis, dtype, regime, mode)


@pytest.mark.parametrize("regime", [*REGIMES, "constant_1e4", "offset_1e4", "outlier", "tiny"])
@pytest.mark.parametrize("name", ["paper", "no-batch"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_many_values_in_a_graph(name, axis, regime, monkeypatch):
    monkeypatch.setitem(REGIMES, "constant_1e4", lambda x: np.where(np.arange(6) == 1, 10000.1234, x))
    monkeypatch.setitem(REGIMES, "offset_1e4", lambda x: x + 1e4)
    monkeypatch.setitem(REGIMES, "outlier", lambda x: np.where(np.arange(x.size).reshape(x.shape) == 7, 1e4, x))
    monkeypatch.setitem(REGIMES, "tiny", lambda x: x * 1e-12)
    check_channels(SPECS[name], (4, 6, 50, 40), axis, "float32", regime, crossnorm.TRAIN, graph=True)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (1, 6, 5, 3), (1, 6), (3, 6, 67), (2, 6, 3, 4, 5)])
def test_other_shapes(shape):
    for name, regime in itertools.product(SPECS, ("plain", "constant")):
        check_channels(SPECS[name], shape, -1, "float32", regime, crossnorm.TRAIN)


def test_channels_between_positions():
    check_channels(SPECS["paper"], (4, 6, 5, 3), 2, "float32", "plain", crossnorm.TRAIN)


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(9, 7), (1, 131), (64, 40)])
def test_sizes_that_only_the_graph_knows(axis, sizes):
    layer = SwitchableNormalization(axis=axis)
    shape = [*sizes]
    shape.insert(axis - 1, 4)
    x = np.random.default_rng(0).normal(1e3, 1, (3, *shape)).astype("f4")
    signature = tf.TensorSpec([None if i != axis else 4 for i in range(4)])
    function = tf.function(lambda x: layer(x, training=True), input_signature=[signature])
    wide = SwitchableNormalization(axis=axis, dtype="float64")
    assert np.allclose(function(x), wide(x, training=True), atol=5e-4)
    for ours, exact in zip(layer.weights, wide.weights, strict=True):
        assert np.allclose(ours, exact, rtol=1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_pure_function_mirrors_the_reference_and_changes_nothing(name):
    random, spec = np.random.default_rng(0), SPECS[name]
    x = random.normal(size=(4, 6, 5, 3))
    parameters = {a.name: random.normal(size=a.shape) for a in spec.parameters}
    state = {a.name: random.uniform(0.5, 1.5, a.shape) for a in spec.state}
    state |= {"batches_tracked": np.asarray(4)} if state else {}
    before = copy.deepcopy(state)
    for mode, axis in itertools.product((crossnorm.TRAIN, crossnorm.INFERENCE, crossnorm.UNTRACKED), (1, 2, 3)):
        moved = np.moveaxis(x, 1, axis)
        y, new = crossnorm.tensorflow.functional.switchable_norm(spec, moved, parameters, state, mode, axis=axis)
        want = reference.forward(spec, x, parameters, state, mode)
        assert np.allclose(np.moveaxis(y, axis, 1), want.y.value, rtol=1e-12)
        assert set(new) == set(want.state)
        assert all(np.allclose(new[name], quantity.value, rtol=1e-12) for name, quantity in want.state.items())
    assert all((state[name] == before[name]).all() for name in state)


# Gradients of gradients, graphs.


def composed(x):
    """The paper's formulas in TensorFlow's own operations, as a layer of equal logits has them."""
    mean_in = tf.reduce_mean(x, axis=1, keepdims=True)
    variance_in = tf.reduce_mean((x - mean_in) ** 2, axis=1, keepdims=True)
    mean, variance = mean_in, variance_in
    for axis in (2, 0):
        average = tf.reduce_mean(mean_in, axis=axis, keepdims=True)
        mean += average
        variance += tf.reduce_mean(variance_in + (mean_in - average) ** 2, axis=axis, keepdims=True)
    return (x - mean / 3) * tf.math.rsqrt(variance / 3 + 1e-5)


def gradient(function, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(function(x) ** 3)
    return tape.gradient(y, x)


def second_order(function, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(gradient(function, x) ** 2)
    return tape.gradient(y, x)


def forward_mode(function, x):
    with tf.autodiff.ForwardAccumulator(x, tf.reverse(x, [0])) as accumulator:
        y = function(x)
    return accumulator.jvp(y)


def jacobian(function, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return tape.jacobian(y, x)


@pytest.mark.parametrize("options", [None, {}, {"jit_compile": True}, {"input_signature": [tf.TensorSpec((None, None, 4))]}])
@pytest.mark.parametrize("capability", [gradient, second_order, forward_mode, jacobian])
@pytest.mark.parametrize("positions", [3, 70])
def test_derivatives_are_those_of_the_composition(positions, capability, options):
    layer = SwitchableNormalization()
    x = tf.constant(np.random.default_rng(0).normal(1, 2, (3, positions, 4)), tf.float32)
    layer.build(x.shape)
    if capability is jacobian and options:
        options = {}
    results = []
    for function in (lambda x: layer(x, training=True), composed):

        def run(x, function=function):
            return capability(function, x)

        results.append((run if options is None else tf.function(run, **options))(x).numpy())
    ours, want = results
    assert np.abs(ours - want).max() <= 2e-5 * np.abs(want).max()


def test_second_order_through_the_parameters():
    """The gradient of a gradient's size by the logits and gamma, against differences in float64."""
    layer = SwitchableNormalization(dtype="float64")
    x = tf.constant(X, tf.float64)
    layer.build(x.shape)
    for weight in layer.trainable_weights:
        weight.assign(np.random.default_rng(1).normal(size=weight.shape))

    def size():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x, training=True) ** 3)
        return tf.reduce_sum(tape.gradient(y, x) ** 2)

    with tf.GradientTape() as tape:
        value = size()
    gradients = tape.gradient(value, [w.value for w in layer.trainable_weights])
    for weight, got in zip(layer.trainable_weights, gradients, strict=True):
        start = weight.numpy()
        for i in range(start.size):
            step = 1e-6 * (np.arange(start.size) == i)
            values = []
            for sign in (1, -1):
                weight.assign(start + sign * step)
                values.append(size().numpy())
            weight.assign(start)
            assert np.isclose(got.numpy()[i], (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-6 * np.abs(value))


# The state.


def test_sum_and_average_is_the_variance_of_all_batches_together():
    layer = SwitchableNormalization(momentum=None, pooled=True)
    for batch in X.reshape(4, 2, 3, 4):
        layer(batch, training=True)
    wide = X.reshape(-1, 4).astype("f8")
    assert np.allclose(layer.moving_mean, wide.mean(0), rtol=1e-6)
    assert np.allclose(layer.moving_variance, wide.var(0), rtol=1e-5)
    assert layer.batches_tracked.numpy() == 4


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("empty", [X[:0], X[:, :0]])
def test_an_empty_batch_keeps_the_state(empty, known):
    layer = SwitchableNormalization(momentum=None, pooled=True)
    layer(X, training=True)
    before = [w.numpy() for w in layer.weights]
    signature = tf.TensorSpec(empty.shape if known else [None, None, 4])

    @tf.function(input_signature=[signature])
    def step(x):
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
        return y, tape.gradient(y, [w.value for w in layer.trainable_weights])

    y, gradients = step(empty)
    assert y.shape == empty.shape
    assert all((gradient.numpy() == 0).all() for gradient in gradients)
    assert all((w.numpy() == b).all() for w, b in zip(layer.weights, before, strict=True))


def test_modes():
    layer = SwitchableNormalization()
    layer(X, training=True)
    before, inference = [w.numpy() for w in layer.weights], layer(X)
    layer.trainable = False
    assert np.array_equal(layer(X, training=True), inference)
    assert all((w.numpy() == b).all() for w, b in zip(layer.weights, before, strict=True))
    alone = SwitchableNormalization(use_batch=False)
    assert np.array_equal(alone(X, training=True), alone(X))
    assert [w.name for w in alone.weights] == ["gamma", "beta", "mean_logits", "variance_logits"]


# The layer.


@pytest.mark.parametrize("name", SPECS)
def test_from_spec_configuration_and_files(name, tmp_path):
    spec = SPECS[name]
    layer = crossnorm.tensorflow.layer(spec, name="norm", layout="channels_first")
    twin = type(layer).from_config(layer.get_config())
    for each in (layer, twin):
        assert type(each) is SwitchableNormalization
        each.build((None, 6, 5, 3))
        assert each.spec == spec
        assert each.get_config() == layer.get_config()
    counted = [a for a in (*spec.parameters, *spec.state) if a.name != "batches_tracked" or spec.decay is None]
    assert [(tuple(w.shape), w.numpy().ravel()[0]) for w in layer.weights] == [
        (a.shape, np.float32(a.initial)) for a in counted
    ]
    model = keras.Sequential([keras.Input((6, 5, 3)), layer])
    for weight in model.weights:
        weight.assign(np.random.default_rng(0).uniform(0.5, 1.5, weight.shape))
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype("f4")
    for other in (keras.saving.load_model(tmp_path / "model.keras"), copy.deepcopy(model)):
        assert other.layers[0].spec == spec
        assert np.array_equal(other(x), model(x))


def test_defaults_are_the_specifications():
    layer = SwitchableNormalization()
    layer.build((None, 3, 5))
    assert layer.spec == crossnorm.SwitchableNormSpec(channels=5)
    names = ["gamma", "beta", "mean_logits", "variance_logits", "moving_mean", "moving_variance"]
    assert [w.name for w in layer.weights] == names


def test_options_reach_the_weights():
    parameters = ("gamma", "beta", "mean_logits", "variance_logits")
    options = {f"{name}_regularizer": "l2" for name in parameters} | {f"{name}_constraint": "non_neg" for name in parameters}
    start = {f"{name}_initializer": keras.initializers.Constant(i) for i, name in enumerate((*parameters, "moving_mean"))}
    layer = SwitchableNormalization(**options, **start, moving_variance_initializer="zeros", last_gamma=True)
    for each in (layer, SwitchableNormalization.from_config(layer.get_config())):
        each.build(X.shape)
        assert [w.numpy()[0] for w in each.weights] == [0, 1, 2, 3, 4, 0]
        assert all(type(w.regularizer) is keras.regularizers.L2 for w in each.trainable_weights)
        assert all(type(w.constraint) is keras.constraints.NonNeg for w in each.trainable_weights)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_policies(policy):
    layer = SwitchableNormalization(dtype=policy)
    y = layer(tf.cast(X, layer.compute_dtype), training=True)
    assert y.dtype.name == layer.compute_dtype
    assert all(w.dtype == layer.variable_dtype for w in layer.weights)
    assert np.allclose(tf.cast(y, "float64"), SwitchableNormalization()(X, training=True), atol=0.02)


@pytest.mark.parametrize("jit", [True, False])
def test_fit_in_a_model(jit):
    keras.utils.set_random_seed(0)
    layer = SwitchableNormalization(momentum=None)
    model = keras.Sequential([keras.Input((3, 4)), layer, keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=jit)
    before = [w.numpy() for w in layer.weights]
    losses = model.fit(X, X.sum((1, 2)), batch_size=4, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all((w.numpy() != b).any() for w, b in zip(layer.weights, before, strict=True))
    assert layer.batches_tracked.numpy() == 60


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"momentum": 1.5}, "decay=1.5 is outside"),
        ({"variance": "half"}, "variance='half' is not one of"),
        ({"initial_variance": -1.0}, r"initial_variance=-1\.0 is not a finite number >= 0"),
        ({"use_batch": 1}, "use_batch=1 is not True or False"),
        ({"pooled": "yes"}, "pooled='yes' is not True or False"),
        ({"epsilon": float("nan")}, "eps="),
    ],
)
def test_bad_arguments_now_and_later(arguments, sentence):
    with pytest.raises(crossnorm.SpecError, match=sentence):
        SwitchableNormalization(**arguments)
    layer = SwitchableNormalization()
    layer(X, training=True)
    before = [w.numpy() for w in layer.weights]
    for name, value in arguments.items():
        setattr(layer, name, value)
    for call in (layer, tf.function(layer)):
        with pytest.raises(crossnorm.SpecError, match=sentence):
            call(X, training=True)
    assert all((w.numpy() == b).all() for w, b in zip(layer.weights, before, strict=True))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("use_instance", False, "parameters of shapes"),
        ("use_batch", False, "parameters of shapes"),
        ("momentum", None, "momentum=None needs the weight that counts batches"),
    ],
)
def test_what_is_set_later_needs_its_weights(name, value, sentence):
    layer = SwitchableNormalization()
    layer(X, training=True)
    before = [w.numpy() for w in layer.weights]
    setattr(layer, name, value)
    with pytest.raises(crossnorm.SpecError, match=sentence):
        layer(X, training=True)
    assert all((w.numpy() == b).all() for w, b in zip(layer.weights, before, strict=True))


def test_bad_input():
    layer = SwitchableNormalization()
    layer(X, training=True)
    before = [w.numpy() for w in layer.weights]
    for x, sentence in ((X[..., :2], "expected axis -1"), (X[0], "expected ndim=3"), (X.astype("i4"), "dtype int32")):
        with pytest.raises(crossnorm.SpecError, match=sentence):
            layer(x, training=True)
    assert all((w.numpy() == b).all() for w, b in zip(layer.weights, before, strict=True))
    with pytest.raises(AxisError, match="fewer than 2"):
        SwitchableNormalization()(X[0, 0])
    with pytest.raises(AxisError, match="axis=0 is the batch"):
        SwitchableNormalization(axis=0)(X)
    with pytest.raises(TypeError, match="not an integer"):
        SwitchableNormalization(axis="last")
    with pytest.raises(crossnorm.SpecError, match="which picks the class"):
        SwitchableNormalization.from_spec(crossnorm.BatchNormSpec(channels=4))
