"""Weight normalization: where the gain starts, also from data, and what its gradients are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm import reference
from crossnorm.tensorflow import WeightNormalization, initialize_from_data

X = tf.constant(np.random.default_rng(0).normal(1, 2, (64, 6, 4)).astype("f4"))


@pytest.mark.parametrize("norm_over", ["row", "whole"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.Dense(5),
        lambda: keras.layers.Conv1D(5, 3),
        lambda: keras.layers.SeparableConv1D(5, 3),
        lambda: keras.layers.GRU(5),
    ],
)
def test_nothing_changes_at_first(make, norm_over):
    keras.utils.set_random_seed(0)
    layer = make()
    wanted = layer(X)
    assert np.allclose(WeightNormalization(layer, norm_over=norm_over)(X), wanted, atol=1e-5)


def test_initial_scale():
    for initial_scale, length in (("ones", np.ones(5)), ("norm", None), ("data", None)):
        wrapper = WeightNormalization(keras.layers.Dense(5), initial_scale=initial_scale)
        wrapper.build((None, 4))
        norms = np.linalg.norm(wrapper.layer.kernel, axis=0)
        assert np.allclose(wrapper.gain, norms if length is None else length)
        assert np.allclose(wrapper.effective_weight(), wrapper.layer.kernel / norms * wrapper.gain, atol=1e-6)


def test_a_kernel_of_zeros_is_finite_and_can_learn():
    layer = keras.layers.Dense(3, kernel_initializer="zeros")
    wrapper = WeightNormalization(layer)
    with tf.GradientTape() as tape:
        y = wrapper(X)
    of_kernel, of_gain = tape.gradient(y, [layer.kernel.value, wrapper.gain.value])
    assert (y.numpy() == 0).all()
    assert (wrapper.gain.numpy() == 1).all()
    assert np.allclose(of_kernel, np.repeat(X.numpy().sum((0, 1))[:, None], 3, 1), rtol=1e-5)
    assert (of_gain.numpy() == 0).all()


def test_the_gradient_of_the_direction_is_orthogonal_to_it():
    wrapper = WeightNormalization(keras.layers.Dense(5))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(wrapper(X) ** 2)
    gradient = tape.gradient(loss, wrapper.layer.kernel.value)
    along = tf.reduce_sum(gradient * wrapper.layer.kernel.value, 0) / tf.norm(wrapper.layer.kernel.value, axis=0)
    assert np.abs(along).max() < 1e-5 * np.abs(gradient).max()


# From data.


def outputs(wrapper, x):
    """The wrapped layer's outputs before its activation function, as (positions, rows)."""
    layer = wrapper.layer
    activation, layer.activation = layer.activation, keras.activations.linear
    y = wrapper(x).numpy()
    layer.activation = activation
    return y.reshape(-1, wrapper.spec.rows)


LAYERS = {
    "dense": lambda **options: keras.layers.Dense(5, **options),
    "convolution": lambda **options: keras.layers.Conv1D(5, 3, strides=2, **options),
    "transposed": lambda **options: keras.layers.Conv1DTranspose(5, 3, **options),
    "depthwise": lambda **options: keras.layers.DepthwiseConv1D(3, depth_multiplier=2, **options),
    "grouped": lambda **options: keras.layers.Conv1D(6, 3, groups=2, **options),
    "einsum": lambda use_bias=True, **options: keras.layers.EinsumDense(
        "abc,cd->abd", (None, 5), bias_axes="d" if use_bias else None, **options
    ),
}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_initialisation_from_data(kind, use_bias):
    wrapper = WeightNormalization(LAYERS[kind](use_bias=use_bias, activation="relu"), initial_scale="data")
    model = keras.Sequential([keras.Input((6, 4)), wrapper])
    if use_bias:
        wrapper.layer.bias.assign(tf.ones_like(wrapper.layer.bias) * 3)
    wrapper.gain.assign(tf.ones_like(wrapper.gain))
    raw = wrapper.layer.kernel.numpy()
    bias, before = wrapper.layer.bias, outputs(wrapper, X)
    initialize_from_data(model, X)
    t = outputs(wrapper, X)
    assert np.allclose(t.std(0), 1, atol=1e-4)
    scale, offset = reference.weight_norm.initialize(before.astype("f8") - (3 if use_bias else 0))
    assert np.allclose(wrapper.gain, scale, rtol=1e-4)
    if use_bias:
        assert np.allclose(t.mean(0), 0, atol=1e-4)
        assert np.allclose(bias, offset, atol=1e-4)
    assert wrapper.layer.activation is keras.activations.relu
    assert np.array_equal(wrapper.layer.kernel, raw)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.second = WeightNormalization(keras.layers.Dense(3, activation="tanh"), name="second")
        self.first = WeightNormalization(keras.layers.Conv1D(5, 2, activation="relu"), name="first")
        self.norm = keras.layers.BatchNormalization()

    def call(self, x, training=None):
        return self.second(self.norm(self.first(x), training=training))


def functional():
    x = keras.Input((6, 4))
    first = WeightNormalization(keras.layers.Conv1D(5, 2, activation="relu"), name="first")
    second = WeightNormalization(keras.layers.Dense(3, activation="tanh"), name="second")
    return keras.Model(x, second(keras.layers.BatchNormalization()(first(x))))


@pytest.mark.parametrize("make", [Subclassed, functional])
def test_a_layer_sees_what_the_initialised_ones_before_it_make(make):
    model = make()
    model(X)
    first, second = (next(layer for layer in model.layers if layer.name == name) for name in ("first", "second"))
    norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    statistics = [w.numpy() for w in norm.weights]
    initialize_from_data(model, X)
    assert all(np.array_equal(a, b) for a, b in zip(statistics, [w.numpy() for w in norm.weights], strict=True))
    for wrapper, x in ((first, X), (second, norm(first(X)))):
        t = outputs(wrapper, x)
        assert np.allclose(t.mean(0), 0, atol=1e-4)
        assert np.allclose(t.std(0), 1, atol=1e-4)


def test_a_model_that_is_not_built_yet_and_a_layer_that_is_called_twice():
    shared = WeightNormalization(keras.layers.Dense(4))
    model = keras.Sequential([shared, shared])
    initialize_from_data(model, X)
    assert np.allclose(outputs(shared, X).std(0), 1, atol=1e-4)


def test_an_output_that_is_always_the_same():
    wrapper = WeightNormalization(keras.layers.Dense(3))
    initialize_from_data(wrapper, tf.ones((8, 4)))
    assert (wrapper.gain.numpy() == 1).all()
    assert np.allclose(wrapper(tf.ones((8, 4))), 0, atol=1e-6)


def test_an_embedding_has_a_gain_only():
    wrapper = WeightNormalization(keras.layers.Embedding(9, 3))
    indices = np.arange(9).reshape(3, 3)
    initialize_from_data(wrapper, indices)
    assert np.allclose(wrapper(indices).numpy().reshape(-1, 3).std(0), 1, atol=1e-5)


def test_half_precision():
    wrapper = WeightNormalization(keras.layers.Dense(3, dtype="mixed_float16", activation="relu"))
    initialize_from_data(wrapper, X)
    t = outputs(wrapper, X).astype("f4")
    assert np.allclose(t.std(0), 1, atol=0.01)
    assert np.allclose(t.mean(0), 0, atol=0.01)


def test_losses_are_added_once():
    wrapper = WeightNormalization(keras.layers.Dense(3, activity_regularizer="l2"))
    initialize_from_data(wrapper, X)
    assert len(wrapper.losses) == 1


WRONG = {
    "one length for all rows": lambda: WeightNormalization(keras.layers.Dense(3), norm_over="whole"),
    "learns no gain": lambda: WeightNormalization(keras.layers.Dense(3), scale=False),
    "several kernels": lambda: WeightNormalization(keras.layers.SeparableConv1D(3, 2)),
    "recurrent": lambda: WeightNormalization(keras.layers.GRU(3), kernel="kernel"),
    "rows that are not its outputs": lambda: WeightNormalization(keras.layers.Conv1DTranspose(3, 2), transposed_row="input"),
    "a bias that is not one for each row": lambda: WeightNormalization(
        keras.layers.EinsumDense("abc,cd->abd", (6, 3), bias_axes="bd")
    ),
}


@pytest.mark.parametrize("reason", WRONG)
def test_layers_without_an_output_for_each_row(reason):
    first = WeightNormalization(keras.layers.Dense(4), name="first")
    model = keras.Sequential([keras.Input((6, 4)), first, WRONG[reason]()])
    before = model.get_weights()
    with pytest.raises(crossnorm.SpecError, match=f"^initialize_from_data: .*{reason}") as raised:
        initialize_from_data(model, X)
    assert "\n" not in str(raised.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    first(X)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_nothing_to_initialise_and_no_time_for_it():
    with pytest.raises(crossnorm.SpecError, match="called no weight-normalized layer"):
        initialize_from_data(keras.Sequential([keras.layers.Dense(3)]), X)
    wrapper = WeightNormalization(keras.layers.Dense(3))
    wrapper.build(X.shape)
    before = wrapper.get_weights()
    with pytest.raises(crossnorm.SpecError, match=r"inside a tf\.function"):
        tf.function(lambda: initialize_from_data(wrapper, X))()
    with pytest.raises(ValueError, match="incompatible"):
        initialize_from_data(wrapper, X[..., :2])
    assert all(np.array_equal(a, b) for a, b in zip(before, wrapper.get_weights(), strict=True))


@pytest.mark.parametrize(
    "arguments",
    [
        {"norm_over": "columns"},
        {"initial_scale": "random"},
        {"initial_scale": "data", "norm_over": "whole"},
        {"eps_place": "nowhere"},
        {"scale": 1},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(crossnorm.SpecError, match=f"WeightNormSpec: {next(iter(arguments))}="):
        WeightNormalization(keras.layers.Dense(3), **arguments)
