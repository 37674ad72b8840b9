"""Filter response normalization: values, the threshold, the layer in Keras, bad input."""

import copy
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm import reference, rounding
from crossnorm.tensorflow import AxisError, FilterResponseNormalization, ShapeError
from tests.tensorflow_adapter.against_reference import POLICY, REGIMES, check_channels

SPECS = {
    "paper": crossnorm.FilterResponseNormSpec(channels=6),
    "scalar": crossnorm.FilterResponseNormSpec(channels=6, learned_eps="scalar", offset=False),
    "channel": crossnorm.FilterResponseNormSpec(channels=6, learned_eps="channel", scale=False),
    "element": crossnorm.FilterResponseNormSpec(channels=6, threshold="element", spatial=(5, 3)),
    "bare": crossnorm.FilterResponseNormSpec(channels=6, threshold=None, scale=False, offset=False),
}
X = np.random.default_rng(0).normal(1, 2, (8, 3, 4)).astype("f4")


def threshold_in_a_gap(spec):
    """Puts each threshold amid the values, into their widest gap, so that no rounding moves a value across it."""

    def prepare(arrays, x):
        if spec.threshold is None:
            return
        bare = spec.replace(threshold=None, spatial=None)
        wide = {name: np.asarray(value, "f8") for name, value in arrays.items() if name != "threshold"}
        z = reference.forward(bare, np.asarray(x, "f8"), wide, {}, crossnorm.TRAIN).y.value
        rows = z if spec.threshold == "element" else np.moveaxis(z, 1, -1).reshape(-1, spec.channels)
        middle = np.sort(rows, 0)[len(rows) // 4 : -(len(rows) // 4)]
        widest = np.diff(middle, axis=0).argmax(0)[None]
        low, high = (np.take_along_axis(middle, widest + i, 0)[0] for i in (0, 1))
        # Where all values are the same, they pass.
        arrays["threshold"] = np.where(low < high, (low + high) / 2, low - 1).astype(arrays["threshold"].dtype)

    return prepare


def trained(layer, x, upstream=1.0):
    """Output, and the gradients of the input and the weights."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    return [y, *tape.gradient(y, [x, *(w.value for w in layer.trainable_weights)], tf.ones_like(y) * upstream)]


@pytest.mark.parametrize("dtype", rounding.DTYPES)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_values(name, axis, dtype):
    spec = SPECS[name]
    for regime in ("plain",) if dtype in POLICY else ("mixed", "constant", "large"):
        prepare = threshold_in_a_gap(spec)
        check_channels(spec, (4, 6, 5, 3), axis, dtype, regime, crossnorm.TRAIN, prepare=prepare)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", ["paper", "scalar", "element"])
def test_many_values_in_a_graph(name, regime, axis):
    spec = SPECS[name].replace(spatial=(50, 41) if name == "element" else None)
    prepare = threshold_in_a_gap(spec)
    check_channels(spec, (4, 6, 50, 41), axis, "float32", regime, crossnorm.TRAIN, graph=True, prepare=prepare)


def test_other_ranks():
    prepare = threshold_in_a_gap(SPECS["paper"])
    for shape in ((4, 6), (4, 6, 5), (4, 6, 5, 3, 2)):
        check_channels(SPECS["paper"], shape, -1, "float32", "plain", crossnorm.TRAIN, prepare=prepare)


@pytest.mark.parametrize("name", SPECS)
def test_pure_function_mirrors_the_reference(name):
    random, spec = np.random.default_rng(0), SPECS[name]
    x, parameters = random.normal(size=(4, 6, 5, 3)), {a.name: random.normal(size=a.shape) for a in spec.parameters}
    want = reference.forward(spec, x, parameters, {}, crossnorm.TRAIN).y.value
    for axis in (1, 2, 3):
        y, state = crossnorm.tensorflow.functional.filter_response_norm(
            spec, np.moveaxis(x, 1, axis), parameters, {}, crossnorm.INFERENCE, axis=axis
        )
        assert np.allclose(np.moveaxis(y, axis, 1), want, rtol=1e-12)
        assert state == {}


# The threshold.


def test_a_tie_goes_to_the_input():
    layer = FilterResponseNormalization()
    x = np.array([[[0.0, 0.0, -2.0], [0.0, 0.0, 2.0]]], "f4")
    y, dx, dgamma, dbeta, dtau = trained(layer, x)
    assert y.numpy().tolist() == [[[0, 0, 0], [0, 0, pytest.approx(1)]]]
    assert dbeta.numpy().tolist() == [2, 2, 1]
    assert dtau.numpy().tolist() == [0, 0, 1]
    assert np.allclose(dx[..., :2], 1e3)
    assert dgamma.numpy().tolist() == [0, 0, pytest.approx(1)]


def test_what_is_cut_off_passes_no_gradient_whatever_it_is():
    upstream = np.ones(X.shape, "f4")
    layer = FilterResponseNormalization(tau_initializer=keras.initializers.Constant(100.0), learned_eps="channel")
    y, dx, *_, dtau = trained(layer, X, np.where(np.arange(8) == 1, np.inf, 1.0).reshape(8, 1, 1) * upstream)
    assert (y.numpy() == 100).all()
    assert (dx.numpy() == 0).all()
    assert np.isinf(dtau).all()


def test_nan_stays_visible():
    x = X.copy()
    x[0, 0, 0] = np.nan
    y, dx, *_ = trained(FilterResponseNormalization(), x)
    for values in (y.numpy(), dx.numpy()):
        assert np.isnan(values[0, :, 0]).all()
        assert np.isnan(values).sum() == 3


def test_a_negative_learned_eps_counts_by_its_size():
    def layer(value):
        return FilterResponseNormalization(learned_eps="scalar", learned_epsilon_initializer=keras.initializers.Constant(value))

    *positive, dpositive, _ = trained(layer(0.5), X, X)
    *negative, dnegative, _ = trained(layer(-0.5), X, X)
    assert all(np.array_equal(a, b) for a, b in zip(positive, negative, strict=True))
    assert dpositive.numpy() == -dnegative.numpy() != 0
    assert trained(layer(0.0), X, X)[-2].numpy() == 0


def test_squares_of_half_precision_are_float32():
    for dtype in ("float16", "bfloat16"):
        y = FilterResponseNormalization(threshold=None)(tf.cast([[[-300.0], [300.0]]], dtype))
        assert np.allclose(tf.cast(y, "float32"), [[[-1], [1]]])


# Gradients of gradients, graphs.


def composed(x):
    """The paper's formulas in TensorFlow's own operations, as the layer has them by default."""
    r = tf.math.rsqrt(tf.reduce_mean(x * x, axis=1, keepdims=True) + 1e-6 + 1e-4)
    return tf.maximum(x * r, 0)


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
def test_derivatives_are_those_of_the_composition(capability, options):
    layer = FilterResponseNormalization(learned_eps="scalar")
    layer.build(X.shape)
    x = tf.constant(X)
    if capability is jacobian and options:
        options = {}
    results = []
    for function in (layer, composed):

        def run(x, function=function):
            return capability(function, x)

        results.append((run if options is None else tf.function(run, **options))(x))
    assert np.allclose(*results, rtol=1e-4, atol=1e-5)


# The layer.


@pytest.mark.parametrize("name", SPECS)
def test_from_spec_configuration_and_files(name, tmp_path):
    spec = SPECS[name]
    layer = crossnorm.tensorflow.layer(spec, name="norm", layout="channels_first")
    twin = type(layer).from_config(layer.get_config())
    for each in (layer, twin):
        assert type(each) is FilterResponseNormalization
        each.build((None, 6, 5, 3))
        assert each.spec == spec
        assert each.get_config() == layer.get_config()
    assert [tuple(w.shape) for w in layer.weights] == [array.shape for array in spec.parameters]
    assert [w.numpy().ravel()[0] for w in layer.weights] == [np.float32(array.initial) for array in spec.parameters]
    model = keras.Sequential([keras.Input((6, 5, 3)), layer])
    for weight in model.weights:
        weight.assign(np.random.default_rng(0).uniform(0.5, 1.5, weight.shape))
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 6, 5, 3)).astype("f4")
    for other in (keras.saving.load_model(tmp_path / "model.keras"), copy.deepcopy(model)):
        assert other.layers[0].spec == spec
        assert np.array_equal(other(x), model(x))


def test_defaults_are_the_specifications():
    layer = FilterResponseNormalization()
    layer.build((None, 3, 5))
    assert layer.spec == crossnorm.FilterResponseNormSpec(channels=5)
    assert [w.name for w in layer.weights] == ["gamma", "beta", "tau"]


def test_options_reach_the_weights():
    options = {
        f"{weight}_{option}": value
        for weight, (option, value) in itertools.product(
            ("gamma", "beta", "learned_epsilon", "tau"), (("regularizer", "l2"), ("constraint", "non_neg"))
        )
    }
    layer = FilterResponseNormalization(learned_eps="channel", **options)
    layer.build(X.shape)
    for each in (layer, FilterResponseNormalization.from_config(layer.get_config())):
        each.build(X.shape) if not each.built else None
        assert len(each.weights) == 4
        assert all(type(w.regularizer) is keras.regularizers.L2 for w in each.weights)
        assert all(type(w.constraint) is keras.constraints.NonNeg for w in each.weights)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_policies(policy):
    layer = FilterResponseNormalization(dtype=policy)
    y = layer(tf.cast(X, layer.compute_dtype))
    assert y.dtype.name == layer.compute_dtype
    assert all(w.dtype == layer.variable_dtype for w in layer.weights)
    assert np.allclose(tf.cast(y, "float64"), FilterResponseNormalization()(X), atol=0.02)


def test_fit_in_a_model():
    keras.utils.set_random_seed(0)
    layer = FilterResponseNormalization(threshold="element", learned_eps="scalar")
    model = keras.Sequential([keras.Input((3, 4)), layer, keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    before = [w.numpy() for w in layer.weights]
    losses = model.fit(X, X.sum((1, 2)), batch_size=4, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert all((w.numpy() != b).any() for w, b in zip(layer.weights, before, strict=True))


def test_an_empty_batch():
    for results in (trained(FilterResponseNormalization(), X[:0]), trained(FilterResponseNormalization(), X[:, :0])):
        assert results[0].shape == results[1].shape
        assert all((gradient.numpy() == 0).all() for gradient in results[2:])


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"learned_eps": "many"}, "learned_eps='many' is not one of"),
        ({"threshold": "sample"}, "threshold='sample' is not one of"),
        ({"epsilon": -1.0}, "eps="),
        ({"epsilon": float("nan")}, "eps="),
    ],
)
def test_bad_arguments_now_and_later(arguments, sentence):
    with pytest.raises(crossnorm.SpecError, match=sentence):
        FilterResponseNormalization(**arguments)
    layer = FilterResponseNormalization()
    layer.build(X.shape)
    for name, value in arguments.items():
        setattr(layer, name, value)
    for call in (layer, tf.function(layer)):
        with pytest.raises(crossnorm.SpecError, match=sentence):
            call(X)


def test_bad_input():
    layer = FilterResponseNormalization()
    layer.build(X.shape)
    for x, sentence in ((X[..., :2], "expected axis -1"), (X[0], "expected ndim=3"), (X.astype("i4"), "dtype int32")):
        with pytest.raises(crossnorm.SpecError, match=sentence):
            layer(x)
    with pytest.raises(AxisError, match="fewer than 2"):
        FilterResponseNormalization()(X[0, 0])
    with pytest.raises(AxisError, match="axis=0 is the batch"):
        FilterResponseNormalization(axis=0)(X)
    with pytest.raises(TypeError, match="not an integer"):
        FilterResponseNormalization(axis="last")


def test_an_element_wise_threshold_knows_its_positions():
    layer = FilterResponseNormalization(threshold="element")
    layer(X)
    with pytest.raises(ShapeError, match="expected axis 1 of input shape to have value 3"):
        layer(X[:, :2])
    with pytest.raises(crossnorm.SpecError, match="needs to know every position"):
        FilterResponseNormalization(threshold="element")(keras.Input((None, 4)))
    with pytest.raises(crossnorm.SpecError, match=r"spatial=\(\) is empty"):
        FilterResponseNormalization(threshold="element")(X[0])
    with pytest.raises(ShapeError, match=r"the specification says \(6, 5, 3\)"):
        crossnorm.tensorflow.layer(SPECS["element"])(np.ones((2, 5, 4, 6), "f4"))
    spec = SPECS["element"]
    parameters = {array.name: np.ones(array.shape) for array in spec.parameters}
    with pytest.raises(ShapeError, match=r"the positions \(5, 4\) of an input of shape \(2, 5, 4, 6\)"):
        crossnorm.tensorflow.functional.filter_response_norm(spec, np.ones((2, 5, 4, 6)), parameters, {}, crossnorm.TRAIN)


def test_what_is_set_later_needs_its_weight():
    layer = FilterResponseNormalization(threshold=None)
    layer.build(X.shape)
    layer.threshold = "channel"
    with pytest.raises(crossnorm.SpecError, match="parameters of shapes"):
        layer(X)
