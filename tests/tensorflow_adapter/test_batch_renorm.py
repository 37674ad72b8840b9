"""Batch renormalization: values, the schedule, what it shares with batch normalization, and Keras' own renorm=True."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm import reference, rounding
from crossnorm.tensorflow import AxisError, BatchNormalization, BatchRenormalization
from tests.tensorflow_adapter.against_reference import GOAL, POLICY, REGIMES, check_channels

AT_ONCE = {"r_max_steps": None, "d_max_steps": None}
KERAS = {"eps": 1e-3, "renorm_decay": 0.6, "r_max": None, "r_min": 0.0, "d_max": None, **AT_ONCE}
SPECS = {
    "paper": crossnorm.BatchRenormSpec(channels=6, decay=0.8, r_max_steps=(2, 8), d_max_steps=(3, 5)),
    "tight": crossnorm.BatchRenormSpec(channels=6, decay=0.8, r_max=1.1, r_min=0.5, d_max=0.2, offset=False, **AT_ONCE),
    "keras": crossnorm.BatchRenormSpec(channels=6, decay=0.8, **KERAS),
    "biased": crossnorm.BatchRenormSpec(
        channels=6, decay=0.8, renorm_decay=0.5, running_quantity="biased_variance", r_max_steps=(0, 9)
    ),
    "unbiased": crossnorm.BatchRenormSpec(channels=6, decay=0.8, running_quantity="unbiased_variance", **AT_ONCE),
    "cumulative": crossnorm.BatchRenormSpec(channels=6, decay=None, scale=False, **AT_ONCE),
}
# Keras' renorm_clipping beside the bounds of the specification.
CLIPPINGS = [None, {"rmax": 1.5, "dmax": 0.3}, {"rmax": 2.0, "rmin": 0.8, "dmax": 0.0}, {"rmin": 0.9}]
X = np.random.default_rng(0).normal(1, 2, (8, 3, 4)).astype("f4")


def fill(layer, seed=0):
    """Random values for every weight but the counter."""
    random = np.random.default_rng(seed)
    for weight in layer.weights:
        if weight.name != "batches_tracked":
            weight.assign(random.uniform(0.5, 1.5, weight.shape))


def trained(layer, x=X, mask=None):
    """Output, and the gradients of a loss that makes them large, in training mode."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True, mask=mask)
    return [y, *tape.gradient(y, [x, *(w.value for w in layer.trainable_weights)], y**2 + 1)]


def same(ours, theirs):
    return all(np.array_equal(tf.cast(a, "float64"), tf.cast(b, "float64")) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", rounding.DTYPES)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("axis", [-1, 1])
def test_values(name, axis, dtype):
    regime = "plain" if dtype in POLICY else "mixed"
    for mode in (crossnorm.TRAIN, crossnorm.INFERENCE):
        check_channels(SPECS[name], (4, 6, 5, 3), axis, dtype, regime, mode, batches=3)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", ["paper", "keras", "biased"])
def test_many_values_in_a_graph(name, regime, axis):
    check_channels(SPECS[name], (4, 6, 50, 41), axis, "float32", regime, crossnorm.TRAIN, graph=True, batches=3)


@pytest.mark.parametrize("name", SPECS)
def test_pure_function_mirrors_the_reference_and_changes_nothing(name):
    random, spec = np.random.default_rng(0), SPECS[name]
    x = random.normal(size=(4, 6, 5))
    parameters = {a.name: random.normal(size=a.shape) for a in spec.parameters}
    state = {a.name: random.uniform(0.5, 1.5, a.shape) for a in spec.state} | {"batches_tracked": np.asarray(4)}
    before = {key: value.copy() for key, value in state.items()}
    for mode in (crossnorm.TRAIN, crossnorm.INFERENCE, crossnorm.UNTRACKED):
        y, new = crossnorm.tensorflow.functional.batch_renorm(spec, x, parameters, state, mode, axis=1)
        want = reference.forward(spec, x, parameters, state, mode)
        assert np.allclose(y, want.y.value, rtol=1e-12)
        assert set(new) == set(want.state)
        assert all(np.allclose(new[key], quantity.value, rtol=1e-12) for key, quantity in want.state.items())
    assert all((state[key] == before[key]).all() for key in state)


# What it shares with batch normalization.


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("quantity", ["biased", "unbiased"])
def test_without_correction_it_is_batch_normalization_bit_for_bit(quantity, axis, dtype, masked):
    mask = np.arange(24).reshape(8, 3) % 4 > 0 if masked else None
    plain = BatchNormalization(axis, epsilon=1e-5, momentum=0.8, running_variance=quantity, dtype=dtype)
    bounds = {"r_max": 1.0, "d_max": 0.0, **AT_ONCE}
    renorm = BatchRenormalization(axis, momentum=0.8, running_quantity=f"{quantity}_variance", dtype=dtype, **bounds)
    for layer in (plain, renorm):
        layer.build(X.shape)
        fill(layer)
    for _ in range(3):
        assert same(trained(renorm, mask=mask), trained(plain, mask=mask))
        assert same(renorm.weights[:4], plain.weights)
    assert same([renorm(X)], [plain(X)])


def test_before_the_schedule_starts_it_is_batch_normalization_bit_for_bit():
    renorm, plain = BatchRenormalization(r_max_steps=(2, 4), d_max_steps=(2, 4)), BatchNormalization(epsilon=1e-5)
    results = [(trained(renorm), trained(plain)) for _ in range(4)]
    assert [same(*pair) for pair in results] == [True, True, True, False]


def test_mask():
    """The layer sees of a masked batch what it sees of one that has only the positions where the mask is true."""
    mask = np.arange(24).reshape(8, 3) % 4 > 0
    masked, short = BatchRenormalization(**AT_ONCE), BatchRenormalization(**AT_ONCE)
    y, want = masked(X, training=True, mask=mask), short(X[mask], training=True)
    assert np.allclose(tf.boolean_mask(y, mask), want, atol=1e-6)
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(masked.weights, short.weights, strict=True))
    with pytest.raises(crossnorm.SpecError, match=r"^batch_renorm: a mask of shape"):
        masked(X, training=True, mask=mask[0])


# The schedule.


@pytest.mark.parametrize("compiled", [False, True])
def test_one_graph_follows_the_counter(compiled):
    layer = BatchRenormalization(momentum=1.0, epsilon=0.0, r_max=4.0, r_max_steps=(1, 3), d_max=2.0, d_max_steps=(2, 2))
    layer.build((2, 1))
    step = tf.function(lambda x: layer(x, training=True), jit_compile=compiled)
    # Mean 8 and standard deviation 8 where the running ones are 0 and 1: both corrections are at their bounds.
    outputs = [step(np.array([[0.0], [16.0]], "f4")).numpy().ravel().tolist() for _ in range(4)]
    assert outputs == [[-1.0, 1.0], [-1.0, 1.0], [-0.5, 4.5], [-2.0, 6.0]]
    assert step.experimental_get_tracing_count() == 1
    assert layer.batches_tracked.numpy() == 4


@pytest.mark.parametrize("step", [0, 4_999, 5_001, 22_500, 25_000, 39_999, 40_000, 10**9])
def test_bounds_are_those_of_the_specification(step):
    layer = BatchRenormalization(epsilon=0.0, dtype="float64", single_value="zero")
    layer.build((2, 1))
    layer.batches_tracked.assign(step)
    r_min, r_max, d_max = layer.spec.bounds(step)
    for moving_stddev, r, d in ((1e-3, r_max, d_max), (1e3, r_min, 0.001)):
        layer.moving_stddev.assign([moving_stddev])
        layer.batches_tracked.assign(step)
        layer.moving_mean.assign([0.0])
        y = layer(np.array([[0.0], [2.0]]), training=True)
        assert np.allclose(y.numpy().ravel(), [-r + min(d, d_max), r + min(d, d_max)], rtol=1e-14)


def test_the_counter_and_the_schedule_are_saved(tmp_path):
    model = keras.Sequential([keras.Input((3, 4)), BatchRenormalization(r_max_steps=(1, 8), d_max_steps=(2, 6))])
    for _ in range(4):
        model(X, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].spec == model.layers[0].spec
    assert loaded.layers[0].get_config() == model.layers[0].get_config()
    assert loaded.layers[0].batches_tracked.numpy() == 4
    assert same([loaded(X, training=True), *loaded.weights], [model(X, training=True), *model.weights])


# The layer.


@pytest.mark.parametrize("name", SPECS)
def test_from_spec_and_configuration(name):
    spec = SPECS[name]
    layer = crossnorm.tensorflow.layer(spec, name="norm")
    twin = type(layer).from_config(layer.get_config())
    for each in (layer, twin):
        assert type(each) is BatchRenormalization
        each.build((None, 3, 6))
        assert each.spec == spec
        assert each.get_config() == layer.get_config()
    moving = [w.name.replace("moving", "running").replace("stddev", "standard_deviation") for w in layer.non_trainable_weights]
    assert sorted(moving) == sorted(array.name for array in spec.state)


def test_defaults_are_the_specifications():
    layer = BatchRenormalization()
    layer.build((None, 5))
    assert layer.spec == crossnorm.BatchRenormSpec(channels=5)
    assert [(w.name, w.numpy().tolist()) for w in layer.non_trainable_weights] == [
        ("moving_mean", [0.0] * 5), ("moving_stddev", [1.0] * 5), ("batches_tracked", 0),
    ]  # fmt: skip


def test_frozen_is_inference():
    layer = BatchRenormalization()
    layer.build(X.shape)
    fill(layer)
    layer.trainable = False
    before = [w.numpy() for w in layer.weights]
    assert same([layer(X, training=True)], [layer(X)])
    assert same(layer.weights, before)


def test_fit_in_a_model():
    keras.utils.set_random_seed(0)
    layer = BatchRenormalization(r_max_steps=(0, 4), d_max_steps=(0, 4))
    model = keras.Sequential([keras.Input((3, 4)), layer, keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    losses = model.fit(X, X.sum((1, 2)), batch_size=4, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert layer.batches_tracked.numpy() == 60


def second_order(layer, x):
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(layer(x, training=True) ** 3)
        slope = tf.reduce_sum(inner.gradient(y, x) ** 2)
    return outer.gradient(slope, x)


@pytest.mark.parametrize("in_graph", [False, True])
def test_second_order_takes_the_corrections_for_constants_too(in_graph):
    """Keras composes the layer of differentiable operations and stops the gradients of r and d."""
    results = []
    for cls in (BatchNormalization, keras.layers.BatchNormalization):
        layer = cls(renorm=True, dtype="float64")
        layer.build(X.shape)
        fill(layer)
        function = tf.function(second_order) if in_graph else second_order
        results.append(function(layer, X.astype("f8")))
    assert np.allclose(*results, rtol=1e-9)


def test_unknown_sizes_and_xla():
    layer, want = BatchRenormalization(**AT_ONCE), BatchRenormalization(**AT_ONCE)(X, training=True)
    layer.build((None, None, 4))
    for options in ({}, {"jit_compile": True}):
        fresh = BatchRenormalization(**AT_ONCE)
        fresh.build((None, None, 4))
        signature = [tf.TensorSpec((None, None, 4))]
        step = tf.function(lambda x, fresh=fresh: fresh(x, training=True), input_signature=signature, **options)
        assert np.allclose(step(X), want, atol=1e-5)


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"r_max": 0.5}, "r = 1 must be allowed"),
        ({"r_min": 1.5}, "r = 1 must be allowed"),
        ({"d_max": -0.1}, "d = 0 must be allowed"),
        ({"d_max": float("nan")}, "d = 0 must be allowed"),
        ({"r_max_steps": (9, 3)}, "0 <= first <= last"),
        ({"r_max": None}, "give the final bound"),
        ({"momentum": 1.5}, "outside"),
        ({"renorm_decay": -0.5}, "outside"),
        ({"running_quantity": "variance"}, "is not one of"),
        ({"epsilon": -1.0}, "eps="),
    ],
)
def test_bad_arguments_now_and_later(arguments, sentence):
    with pytest.raises(crossnorm.SpecError, match=sentence):
        BatchRenormalization(**arguments)
    layer = BatchRenormalization()
    layer(X, training=True)
    before = [w.numpy() for w in layer.weights]
    for name, value in arguments.items():
        setattr(layer, name, value)
    for call in (layer, tf.function(layer)):
        with pytest.raises(crossnorm.SpecError, match=sentence):
            call(X, training=True)
    assert same(layer.weights, before)


def test_bad_input():
    layer = BatchRenormalization()
    layer.build(X.shape)
    before = [w.numpy() for w in layer.weights]
    for x, sentence in ((X[..., :2], "expected axis -1"), (X[0], "expected ndim=3"), (X.astype("i4"), "dtype int32")):
        with pytest.raises(crossnorm.SpecError, match=sentence):
            layer(x, training=True)
    with pytest.raises(crossnorm.SpecError, match="one value per statistic"):
        layer(X[:1, :1], training=True)
    assert same(layer.weights, before)
    with pytest.raises(AxisError, match="fewer than 2"):
        BatchRenormalization()(X[0, 0])


def test_single_value():
    layer = BatchRenormalization(single_value="zero", d_max=0.0, d_max_steps=None)
    assert (layer(np.ones((1, 4), "f4"), training=True).numpy() == 0).all()
    strict = BatchRenormalization()
    strict.build((None, 4))
    before = [w.numpy() for w in strict.weights]
    step = tf.function(lambda x: strict(x, training=True), jit_compile=True, input_signature=[tf.TensorSpec((None, 4))])
    assert np.isnan(step(np.ones((1, 4), "f4"))).all()
    assert same(strict.weights, before)


@pytest.mark.parametrize("known", [True, False])
def test_an_empty_batch_keeps_the_state(known):
    layer = BatchRenormalization(renorm_decay=0.5)
    layer(X, training=True)
    before = [w.numpy() for w in layer.weights]
    step = tf.function(lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((0 if known else None, 3, 4))])
    assert step(X[:0]).shape == (0, 3, 4)
    assert same(layer.weights, before)


# Keras' own.


def pair(clipping=None, **arguments):
    """Ours and the native layer, built, with the same random weights."""
    arguments = {"renorm": True, "renorm_clipping": clipping, "renorm_momentum": 0.7, "momentum": 0.9, **arguments}
    layers = BatchNormalization(**arguments), keras.layers.BatchNormalization(**arguments)
    for layer in layers:
        layer.build(X.shape)
        fill(layer)
    return layers


def near(ours, theirs):
    """Within a few units of rounding of the largest number; both compute in float32."""
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.abs(a - b).max() <= 2 * GOAL * rounding.unit_roundoff("float32") * max(np.abs(b).max(), 1)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("axis", [-1, 1])
def test_keras_renorm_is_ours_and_does_what_the_natives_does(axis, clipping):
    ours, native = pair(clipping, axis=axis)
    assert [(w.name, w.shape, w.dtype) for w in ours.weights] == [(w.name, w.shape, w.dtype) for w in native.weights]
    bounds = clipping or {}
    assert ours.spec == crossnorm.BatchRenormSpec(
        channels=X.shape[axis], eps=1e-3, decay=0.9, renorm_decay=0.7, single_value="zero", r_max=bounds.get("rmax"),
        r_min=bounds.get("rmin", 0.0), d_max=bounds.get("dmax"), **AT_ONCE,
    )  # fmt: skip
    for _ in range(3):
        near(trained(ours), trained(native))
        near(ours.weights, native.weights)
    near([ours(X)], [native(X)])


def test_keras_renorm_starts_as_the_native():
    start = {
        "moving_mean_initializer": keras.initializers.Constant(2.0),
        "moving_variance_initializer": keras.initializers.Constant(9.0),
    }
    for arguments in ({}, start):
        ours, native = (cls(renorm=True, **arguments) for cls in (BatchNormalization, keras.layers.BatchNormalization))
        for layer in (ours, native):
            layer.build(X.shape)
        assert same(ours.weights, native.weights)


def test_no_standard_deviation_counts_as_less_than_the_root_of_eps():
    ours, native = pair()
    for layer in (ours, native):
        layer.renorm_stddev.assign([0.0, 0.01, 0.03, 0.04])
    near(trained(ours)[:1], trained(native)[:1])
    near(ours.weights, native.weights)


def test_keras_renorm_with_a_mask():
    ours, native = pair({"rmax": 3.0, "dmax": 1.0})
    mask = np.arange(24).reshape(8, 3) % 3 > 0
    # Keras adds its global epsilon, 1e-7, to the number of positions.
    for a, b in zip(trained(ours, mask=mask), trained(native, mask=mask), strict=True):
        assert np.allclose(a, b, rtol=1e-5, atol=1e-4)
    near(ours.weights, native.weights)


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_keras_files_and_configuration_go_both_ways(clipping, tmp_path):
    ours, native = (keras.Sequential([keras.Input(X.shape[1:]), layer]) for layer in pair(clipping))
    config = native.layers[0].get_config()
    assert config.items() <= BatchNormalization.from_config(config).get_config().items()
    for i, (source, target) in enumerate([(native, ours), (ours, native)]):
        for suffix in (".weights.h5", ".keras"):
            fill(source, seed=i)
            path = tmp_path / f"{i}{suffix}"
            source.save_weights(path) if suffix == ".weights.h5" else source.save(path)
            target.load_weights(path)
            assert same(target.weights, source.weights)
    near([ours(X)], [native(X)])
    near(trained(ours.layers[0]), trained(native.layers[0]))
    near(ours.weights, native.weights)
    loaded = keras.saving.load_model(tmp_path / "1.keras")
    assert type(loaded.layers[0]) is BatchNormalization
    assert loaded.layers[0].renorm_clipping == (clipping or {})


def test_keras_renorm_loads_into_the_layer_of_its_specification():
    ours, _ = pair({"rmax": 1.5, "dmax": 0.3})
    layer = crossnorm.tensorflow.layer(ours.spec)
    layer.build(X.shape)
    layer.set_weights([*ours.get_weights(), np.asarray(0)])
    assert [w.name for w in layer.weights[:-1]] == [w.name for w in ours.weights]
    assert same(trained(layer), trained(ours))
    assert same(layer.weights[:-1], ours.weights)
    assert same([layer(X)], [ours(X)])


@pytest.mark.parametrize("clipping", [{"rmax": 0.5}, {"rmin": 1.5}, {"dmax": -1.0}, {"r_max": 3.0}, {"rmax": "3"}, 3.0])
def test_bad_clipping(clipping):
    with pytest.raises(crossnorm.SpecError, match=r"renorm_clipping|r_max|r_min|d_max"):
        BatchNormalization(renorm=True, renorm_clipping=clipping)


@pytest.mark.parametrize("arguments", [{"running_variance": "unbiased"}, {"track_running_stats": False}])
def test_keras_renorm_refuses_what_means_nothing_there(arguments):
    with pytest.raises(crossnorm.Unsupported, match="renorm=True keeps standard deviations"):
        BatchNormalization(renorm=True, **arguments)


def test_keras_renorm_of_plain_averages():
    layer = BatchNormalization(renorm=True, momentum=None)
    for x in (X, X + 1):
        layer(x, training=True)
    assert np.allclose(layer.moving_mean, X.mean((0, 1)) + 0.5, atol=1e-6)
    assert (layer.batches_tracked.numpy(), layer.spec.decay) == (2, None)
