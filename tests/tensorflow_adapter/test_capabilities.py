"""Whatever TensorFlow can do with the native layer it can do with ours, with the same result."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import crossnorm.tensorflow

LAYERS = {
    "BatchNormalization": {},
    "LayerNormalization": {},
    "LayerNormalization over axis 1": {"axis": 1},
    "GroupNormalization": {"groups": 3},
    "RMSNormalization": {},
}
X, DIRECTION = (tf.constant(np.random.default_rng(seed).normal(size=(4, 3, 6)), tf.float32) for seed in (0, 1))


def gradient(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x) ** 3)
    return tape.gradient(y, x)


def second_order(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(gradient(layer, x) ** 2)
    return tape.gradient(y, x)


def forward_mode(layer, x):
    with tf.autodiff.ForwardAccumulator(x, DIRECTION) as accumulator:
        y = layer(x)
    return accumulator.jvp(y)


def jacobian(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    return tape.jacobian(y, x)


def recompute(layer, x):
    return gradient(tf.recompute_grad(layer), x)


def graph(function, **options):
    return lambda layer, x: tf.function(lambda x: function(layer, x), **options)(x)


def call(layer, x):
    return layer(x)


UNKNOWN = {"input_signature": [tf.TensorSpec((None, None, 6))]}
UNKNOWN_BATCH = {"input_signature": [tf.TensorSpec((None, 3, 6))]}
CAPABILITIES = {
    "graph": graph(call),
    "unknown batch": graph(call, **UNKNOWN_BATCH),
    "unknown batch, gradient": graph(gradient, **UNKNOWN_BATCH),
    "unknown sizes": graph(call, **UNKNOWN),
    "unknown sizes, gradient": graph(gradient, **UNKNOWN),
    "XLA": graph(call, jit_compile=True),
    "XLA, gradient": graph(gradient, jit_compile=True),
    "second order": second_order,
    "second order in a graph": graph(second_order),
    "forward mode": forward_mode,
    "forward mode in a graph": graph(forward_mode),
    "forward mode through a function": lambda layer, x: forward_mode(tf.function(layer), x),
    "jacobian": jacobian,
    "recompute_grad": recompute,
    "vectorized_map": lambda layer, x: tf.vectorized_map(lambda one: layer(one[None])[0], x),
}


def result(cls, arguments, capability):
    layer = cls(**arguments)
    layer.build((None, 3, 6))
    training = {"training": True} if hasattr(layer, "moving_mean") and layer.moving_mean is not None else {}
    try:
        return capability(lambda x: layer(x, **training), X).numpy()
    except Exception as error:  # whatever the native cannot do, for whatever reason
        return error


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", LAYERS)
def test_ours_can_what_the_native_can(name, capability):
    cls = name.split()[0]
    ours, native = (
        result(getattr(module, cls), LAYERS[name], CAPABILITIES[capability]) for module in (crossnorm.tensorflow, keras.layers)
    )
    if isinstance(native, Exception):
        pytest.skip(f"the native layer cannot: {type(native).__name__}")
    assert not isinstance(ours, Exception), ours
    assert np.abs(ours - native).max() <= 1e-5 * np.abs(native).max() + 1e-5


def test_forward_over_backward_is_right_where_the_native_is_wrong():
    layer = crossnorm.tensorflow.LayerNormalization()
    with tf.autodiff.ForwardAccumulator(X, DIRECTION) as accumulator:
        dx = gradient(layer, X)
    wide = crossnorm.tensorflow.LayerNormalization(dtype="float64")
    x, direction = tf.cast(X, tf.float64), tf.cast(DIRECTION, tf.float64)
    difference = (gradient(wide, x + 1e-6 * direction) - gradient(wide, x - 1e-6 * direction)) / 2e-6
    assert np.allclose(accumulator.jvp(dx), difference, rtol=1e-4, atol=1e-4)
