"""Spectral normalization: what it converges to, when it iterates, where it starts, how it goes on from the native wrapper."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm.tensorflow import SpectralNormalization

LAYERS = {
    "dense": (lambda: keras.layers.Dense(5), (2, 4)),
    "convolution": (lambda: keras.layers.Conv2D(5, (3, 2)), (2, 5, 5, 3)),
    "transposed": (lambda: keras.layers.Conv2DTranspose(5, (3, 2)), (2, 4, 4, 3)),
    "depthwise": (lambda: keras.layers.DepthwiseConv2D((3, 2), depth_multiplier=2), (2, 5, 5, 3)),
    "embedding": (lambda: keras.layers.Embedding(7, 5), (2, 4)),
}


def x_of(name):
    random, shape = np.random.default_rng(0), LAYERS[name][1]
    return tf.constant(random.integers(0, 7, shape) if name == "embedding" else random.normal(size=shape).astype("f4"))


def wrapped(name="dense", **options):
    keras.utils.set_random_seed(0)
    wrapper = SpectralNormalization(LAYERS[name][0](), **options)
    wrapper.build(x_of(name).shape)
    return wrapper


def kernel(wrapper):
    return getattr(wrapper.layer, wrapper._kernel_names[0])


# The stored axes of the kernel, rows first.
ORDERS = {
    "dense": (1, 0),
    "convolution": (3, 2, 0, 1),
    "transposed": (2, 3, 0, 1),
    "depthwise": (2, 3, 0, 1),
    "embedding": (1, 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_converges_to_the_largest_singular_value(name):
    wrapper, x = wrapped(name, warm_up=0), x_of(name)
    for _ in range(200):
        wrapper(x, training=True)
    spec = wrapper.spec
    matrix = kernel(wrapper).numpy().transpose(ORDERS[name]).reshape(spec.rows, spec.columns)
    left, singular, right = np.linalg.svd(matrix)
    sign = np.sign(left[:, 0] @ wrapper.u.numpy())
    assert np.allclose(wrapper.effective_weight() * singular[0], kernel(wrapper), rtol=1e-5, atol=1e-6)
    assert np.allclose(wrapper.u, sign * left[:, 0], atol=1e-3)
    assert np.allclose(wrapper.v, sign * right[0], atol=1e-3)


@pytest.mark.parametrize("stored", ["u", "uv"])
def test_inference_is_right_before_any_training(stored):
    for seed in range(5):
        sigma = np.linalg.norm(wrapped(warm_up=30, stored=stored, seed=seed).effective_weight(), 2)
        assert abs(sigma - 1) < 0.01
    assert np.linalg.norm(wrapped(warm_up=0, seed=seed).effective_weight(), 2) > 1.01


def test_when_it_iterates():
    x, wrapper = x_of("dense"), wrapped(warm_up=1)
    model = keras.Sequential([keras.Input((4,)), wrapper])

    def moves(call):
        before = wrapper.u.numpy(), wrapper.v.numpy()
        call()
        return [not np.array_equal(a, b) for a, b in zip(before, (wrapper.u.numpy(), wrapper.v.numpy()), strict=True)]

    assert moves(lambda: wrapper(x, training=True)) == [True, True]
    assert moves(lambda: model(x, training=True)) == [True, True]
    for still in (
        lambda: wrapper(x),
        lambda: wrapper(x, training=False),
        lambda: model.predict(x, verbose=0),
        wrapper.effective_weight,
        lambda: wrapper.spec,
        model.get_weights,
    ):
        assert moves(still) == [False, False]
    for frozen in (wrapper, wrapper.layer, model):
        frozen.trainable = False
        assert moves(lambda: model(x, training=True)) == [False, False]
        frozen.trainable = True
    assert moves(lambda: model(x, training=True)) == [True, True]


def test_always():
    x, wrapper = x_of("dense"), wrapped(warm_up=0, iterate="always", iterations=200)
    assert np.allclose(np.linalg.norm(wrapper.effective_weight(), 2), 1, atol=1e-5)
    u = wrapper.u.numpy()
    assert np.allclose(wrapper(x), x @ wrapper.effective_weight(), atol=1e-6)
    assert np.array_equal(wrapper.u, u)


@pytest.mark.parametrize("name", LAYERS)
def test_the_kernel_is_left_alone(name):
    wrapper, x = wrapped(name), x_of(name)
    before = kernel(wrapper).numpy()
    for _ in range(3):
        wrapper(x, training=True)
    assert np.array_equal(kernel(wrapper), before)
    assert [w.name for w in wrapper.trainable_variables] == [w.name for w in wrapper.layer.trainable_variables]
    assert [w.name for w in wrapper.non_trainable_variables] == ["u", "v"]


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_an_embedding_takes_integers(dtype):
    wrapper = wrapped("embedding")
    y = wrapper(tf.cast([[1, 2]], dtype))
    assert (y.dtype, y.shape) == (tf.float32, (1, 2, 5))
    assert np.allclose(y[0], wrapper.effective_weight()[1:3])
    assert wrapper(keras.Input((4,), dtype=dtype)).dtype == "float32"


@pytest.mark.parametrize("stored", ["u", "uv"])
def test_a_kernel_of_zeros(stored):
    layer = keras.layers.Dense(3, kernel_initializer="zeros")
    wrapper, x = SpectralNormalization(layer, stored=stored), x_of("dense")
    for training in (False, True):
        with tf.GradientTape() as tape:
            y = wrapper(x, training=training)
        assert (y.numpy() == 0).all()
        assert np.allclose(tape.gradient(y, layer.kernel.value), np.repeat(x.numpy().sum(0)[:, None], 3, 1))
    layer.kernel.assign(np.random.default_rng(0).normal(size=(4, 3)))
    for _ in range(100):
        wrapper(x, training=True)
    assert np.allclose(np.linalg.norm(wrapper.effective_weight(), 2), 1, atol=1e-5)


def test_seeds():
    first, again, other = (wrapped(seed=seed, warm_up=0).u.numpy() for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)
    assert np.allclose(np.linalg.norm(first), 1)
    unseeded = [SpectralNormalization(keras.layers.Dense(5), warm_up=0) for _ in range(2)]
    for wrapper in unseeded:
        wrapper.build((None, 4))
    assert not np.allclose(*(wrapper.u for wrapper in unseeded))


def test_weights_bring_the_vectors():
    x, first, second = x_of("dense"), wrapped(), SpectralNormalization(keras.layers.Dense(5))
    for _ in range(3):
        first(x, training=True)
    second.build(x.shape)
    second.set_weights(first.get_weights())
    assert np.array_equal(first.u, second.u)
    assert np.array_equal(first(x), second(x))


def test_only_u():
    wrapper, x = wrapped(stored="u"), x_of("dense")
    assert wrapper.v is None
    assert [w.name for w in wrapper.non_trainable_variables] == ["u"]
    v = tf.linalg.matvec(kernel(wrapper).value, wrapper.u.value)
    assert np.allclose(wrapper(x), x @ (kernel(wrapper) / tf.norm(v)), atol=1e-6)
    wrapper.stored = "uv"
    with pytest.raises(crossnorm.SpecError, match="needs the weight 'v', which build did not make"):
        wrapper(x)


def test_several_kernels_have_vectors_each():
    wrapper = SpectralNormalization(keras.layers.SeparableConv1D(5, 3))
    wrapper(tf.ones((2, 6, 4)), training=True)
    assert {name: tuple(u.shape) for name, u in wrapper.u.items()} == {"depthwise_kernel": (4,), "pointwise_kernel": (5,)}
    assert {name: tuple(v.shape) for name, v in wrapper.v.items()} == {"depthwise_kernel": (3,), "pointwise_kernel": (4,)}
    assert set(wrapper.spec) == set(wrapper.effective_weight()) == set(wrapper.u)
    names = ["depthwise_kernel_u", "depthwise_kernel_v", "pointwise_kernel_u", "pointwise_kernel_v"]
    assert [w.name for w in wrapper.non_trainable_variables] == names


@pytest.mark.parametrize(
    "arguments",
    [
        {"iterations": -1},
        {"iterations": 1.5},
        {"warm_up": -1},
        {"iterate": "sometimes"},
        {"iteration_order": "both"},
        {"stored": "v"},
        {"stored": "u", "iteration_order": "u_first"},
        {"eps_place": "nowhere"},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(crossnorm.SpecError, match=f"SpectralNormSpec: {next(iter(arguments))}="):
        SpectralNormalization(keras.layers.Dense(3), **arguments)


# From the native wrapper.


def native_of(name, iterations):
    keras.utils.set_random_seed(0)
    native = keras.layers.SpectralNormalization(LAYERS[name][0](), power_iterations=iterations, name="its_name")
    native.build(x_of(name).shape)
    return native


@pytest.mark.parametrize("trained", [0, 3])
@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_from_native(name, iterations, trained):
    native = native_of(name, iterations)
    # The native casts what an embedding gives to the dtype of the indices: give it floats.
    x, indices = tf.cast(x_of(name), tf.float32), x_of(name)
    for _ in range(trained):
        native(x, training=True)
    ours, before = SpectralNormalization.from_native(native), native.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(before, native.get_weights(), strict=True))
    assert (ours.name, ours.layer.name) == ("its_name", native.layer.name)
    assert np.array_equal(kernel(ours), native.kernel)
    assert ours.spec == crossnorm.preset("keras", "spectral_norm", shape=ours.spec.shape, iterations=iterations)
    y = ours(indices, training=True)
    assert np.allclose(y, native(x, training=True), atol=2e-6)
    assert np.allclose(ours.u, native.vector_u[0], atol=1e-6)
    # The native has overwritten its kernel, by what ours divides the kernel by in passing.
    assert not np.array_equal(kernel(ours), native.kernel)


def test_from_what_is_no_native():
    for wrong in (keras.layers.Dense(3), SpectralNormalization(keras.layers.Dense(3))):
        with pytest.raises(crossnorm.tensorflow.ArgumentTypeError, match=r"is no keras\.layers\.SpectralNormalization"):
            SpectralNormalization.from_native(wrong)
    with pytest.raises(crossnorm.SpecError, match="is not built"):
        SpectralNormalization.from_native(keras.layers.SpectralNormalization(keras.layers.Dense(3)))
