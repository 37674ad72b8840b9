"""Weight standardization: the peers' formulas, rows without a variance, and the learned gain."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm.tensorflow import WeightStandardization

SHAPE = (3, 2, 4, 5)  # as Keras stores it
W = np.random.default_rng(0).normal(0.1, 0.02, SHAPE)
GAIN = np.random.default_rng(1).uniform(0.5, 1.5, 5)
FAN_IN = 3 * 2 * 4


def timm(w, gain):
    return (w - w.mean((0, 1, 2))) / np.sqrt(w.var((0, 1, 2)) + 1e-6)


def timm_scaled(w, gain):
    return timm(w, None) * gain * FAN_IN**-0.5


def authors(w, gain):
    return (w - w.mean((0, 1, 2))) / (w.std((0, 1, 2), ddof=1) + 1e-5)


def authors_tensorflow(w, gain):
    return (w - w.mean((0, 1, 2))) / (w.std((0, 1, 2)) + 1e-5)


def deepmind(w, gain):
    scale = 1 / np.sqrt(np.maximum(w.var((0, 1, 2)) * FAN_IN, 1e-4)) * gain
    return w * scale - w.mean((0, 1, 2)) * scale


@pytest.mark.parametrize("peer", [timm, timm_scaled, authors, authors_tensorflow, deepmind])
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_peers(peer, size):
    spec = crossnorm.preset(peer.__name__, "weight_standardization", shape=(5, 4, 3, 2))
    wrapper = crossnorm.tensorflow.layer(spec, wrapped=keras.layers.Conv2D(5, (3, 2), dtype="float64"))
    wrapper.build((None, 6, 6, 4))
    wrapper.layer.kernel.assign(W * size)
    if spec.scale:
        wrapper.gain.assign(GAIN)
    else:
        assert wrapper.gain is None
    assert np.allclose(wrapper.effective_weight(), peer(W * size, GAIN), rtol=1e-10)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
@pytest.mark.parametrize("eps_place", ["variance", "deviation", "maximum"])
def test_rows_without_a_variance_are_zero(eps_place, epsilon, ddof):
    options = {"eps_place": eps_place, "epsilon": epsilon, "ddof": ddof, "scale": True}
    one_number = WeightStandardization(keras.layers.DepthwiseConv2D(1), **options)
    constant = keras.initializers.Constant(0.1)
    equal = [WeightStandardization(keras.layers.Dense(3, kernel_initializer=constant), **options) for _ in range(2)]
    # The mean of so many equal numbers, rounded, is another number.
    for wrapper, x in ((one_number, tf.ones((2, 4, 4, 3))), (equal[0], tf.ones((2, 7))), (equal[1], tf.ones((2, 1001)))):
        with tf.GradientTape() as tape:
            y = wrapper(x)
        assert (wrapper.effective_weight().numpy() == 0).all()
        assert (y.numpy() == 0).all()
        assert all(np.isfinite(g).all() for g in tape.gradient(y, [v.value for v in wrapper.trainable_variables]))


def test_the_mean_does_not_count():
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 64)).astype("f4"))
    wrapper = WeightStandardization(keras.layers.Dense(5, use_bias=False))
    before = wrapper(x)
    # Multiples of 2 ** -10 below 1, to which 4096 can be added without a rounding.
    kernel = np.round(wrapper.layer.kernel.numpy() * 1024) / 1024
    wrapper.layer.kernel.assign(kernel)
    before = wrapper(x)
    wrapper.layer.kernel.assign(kernel + 4096)
    assert np.allclose(wrapper(x), before, atol=1e-5)


def test_the_learned_gain_and_the_constant():
    wrapper = WeightStandardization(keras.layers.Dense(5), scale=True, gain=1.7, epsilon=0.0)
    wrapper.build((None, 4))
    assert (wrapper.gain.shape, wrapper.gain.numpy().tolist()) == ((5,), [1.0] * 5)
    assert (wrapper.constant_gain, wrapper.get_config()["gain"], wrapper.spec.gain) == (1.7, 1.7, 1.7)
    assert np.allclose(wrapper.effective_weight().numpy().std(0), 1.7, rtol=1e-5)
    assert wrapper.gain in wrapper.trainable_variables
    wrapper.gain.assign([1, 2, 3, 4, 5])
    assert np.allclose(wrapper.effective_weight().numpy().std(0), 1.7 * np.arange(1, 6), rtol=1e-5)


def test_both_kernels_of_a_separable_convolution():
    wrapper = WeightStandardization(keras.layers.SeparableConv2D(5, 3), scale=True, epsilon=0.0)
    wrapper.build((None, 6, 6, 4))
    assert {name: tuple(gain.shape) for name, gain in wrapper.gain.items()} == {
        "depthwise_kernel": (4,),
        "pointwise_kernel": (5,),
    }
    effective = wrapper.effective_weight()
    assert np.allclose(effective["depthwise_kernel"].numpy().std((0, 1)), 1, rtol=1e-5)
    assert np.allclose(effective["pointwise_kernel"].numpy().std((0, 1, 2)), 1, rtol=1e-5)
    one = WeightStandardization(keras.layers.SeparableConv2D(5, 3), kernel="pointwise_kernel", scale=True)
    one.build((None, 6, 6, 4))
    assert (one.gain.shape, one.gain.name, one.spec.shape) == ((5,), "gain", (5, 4, 1, 1))


@pytest.mark.parametrize(
    "arguments", [{"ddof": 2}, {"ddof": True}, {"gain": 0.0}, {"gain": float("inf")}, {"eps_place": "nowhere"}, {"scale": 1}]
)
def test_bad_arguments(arguments):
    with pytest.raises(crossnorm.SpecError, match=f"WeightStandardizationSpec: {next(iter(arguments))}="):
        WeightStandardization(keras.layers.Dense(3), **arguments)
