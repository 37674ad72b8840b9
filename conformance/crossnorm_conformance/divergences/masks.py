"""Masks and padding, which Keras and flax know and torch does not."""

import numpy as np

from . import divergence
from ._child import on_backend
from ._peers import jnp, keras, nnx, tf, torch
from ._sightings import array, lost, near, normal, raises, same, worst


def _padded():
    """Sequences of four steps, the last two of them zeros for padding."""
    x = normal(2, 4, 3, mean=5.0)
    x[:, 2:] = 0
    return x


def _kept(layer):
    """Whether a mask that goes into a layer of a functional model comes out of it."""
    masked = keras.layers.Masking()(keras.Input((4, 3)))
    return getattr(layer(masked), "_keras_mask", None) is not None


@divergence(
    18,
    "batch_norm",
    ("keras", "flax"),
    "A batch that is masked as a whole is averaged into Keras' moving statistics as mean 0 and variance 0, and makes flax's "
    "NaN: inference drifts or dies.",
)
def everything_masked():
    x, mask = normal(2, 4, 3), np.zeros((2, 4), bool)
    layer = keras.layers.BatchNormalization(momentum=0.5, moving_mean_initializer="ones")
    layer(x, training=True, mask=mask)
    yield near("keras, moving mean after 1", layer.moving_mean, 0.5)
    yield near("moving variance after 1", layer.moving_variance, 0.5)
    layer = nnx.BatchNorm(3, use_running_average=False, rngs=nnx.Rngs(0))
    layer(x, mask=mask[..., None])
    yield lost("flax, mean", layer.mean[...])
    yield lost("variance", layer.var[...])


@divergence(
    19,
    "batch_norm",
    ("torch", "keras"),
    "A Masking layer far upstream takes the padding out of Keras' batch statistics, and nothing in the code of the batch norm "
    "shows it: torch's statistics of the same model are others.",
    link="https://github.com/pytorch/pytorch/issues/70529",
)
def mask_from_upstream():
    x = _padded()
    layer = keras.layers.BatchNormalization(momentum=0.0)
    keras.Sequential([keras.layers.Masking(), layer])(x, training=True)
    yield near("mean / mean of what is no padding: keras", array(layer.moving_mean) / x[:, :2].mean((0, 1)), 1)
    layer = torch.nn.BatchNorm1d(3, momentum=1.0)
    layer(torch.tensor(x).transpose(1, 2))
    yield near("torch", array(layer.running_mean) / x[:, :2].mean((0, 1)), 0.5)


@divergence(
    20,
    "batch_norm",
    ("keras",),
    "With channels first, Keras lays the mask of (batch, time) upon (batch, channel): it raises, or masks channels where the "
    "two sizes agree.",
)
def mask_with_channels_first():
    x, mask = normal(2, 3, 3, mean=5.0), np.array([[True, True, False]] * 2)
    layer = keras.layers.BatchNormalization(axis=1, momentum=0.0)
    layer(x, training=True, mask=mask)
    means = array(layer.moving_mean)
    yield near("3 steps, the last one masked, 3 channels: first two means / of all steps", means[:2] / x.mean((0, 2))[:2], 1)
    yield near("last mean", means[2], 0)
    layer = keras.layers.BatchNormalization(axis=1)
    yield raises("4 channels", tf.errors.InvalidArgumentError, lambda: layer(normal(2, 4, 3), training=True, mask=mask))


@divergence(
    21,
    "batch_norm",
    ("keras", "keras on torch", "keras on jax"),
    "A masked batch norm of one channel raises on Keras' torch and JAX backends, and works on TensorFlow: a model with one "
    "feature per time step runs on one backend only.",
)
def mask_of_one_channel():
    layer = keras.layers.BatchNormalization(momentum=0.0)
    x = normal(2, 4, 1)
    layer(x, training=True, mask=np.ones((2, 4), bool))
    yield near("on TensorFlow, moving / batch mean", array(layer.moving_mean) / x.mean(), 1)
    for backend in ("torch", "jax"):
        yield same(f"on {backend}", on_backend(backend)["mask of one channel"], "IndexError")


@divergence(
    22,
    "batch_norm",
    ("keras",),
    "NaN in masked places leaves Keras' statistics and the other outputs alone, but every gradient becomes NaN even where the "
    "loss is masked: the forward test passes and training breaks.",
)
def nan_under_a_mask():
    x, mask = normal(2, 4, 3), np.array([[True, True, True, False]] * 2)
    x[:, 3] = np.nan
    layer = keras.layers.BatchNormalization(momentum=0.0)
    layer.build(x.shape)
    inputs = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = layer(inputs, training=True, mask=mask)
        loss = tf.reduce_sum(tf.boolean_mask(y, mask) ** 3)
    dx, dgamma = tape.gradient(loss, [inputs, layer.gamma.value])
    yield near("moving mean / mean of what is not masked", array(layer.moving_mean) / x[:, :3].mean((0, 1)), 1, within=1e-4)
    yield same("loss finite", bool(np.isfinite(loss)), True)
    yield lost("gradient of gamma", dgamma)
    yield lost("of x where nothing is masked", array(dx)[mask])


@divergence(
    23,
    "group_norm",
    ("keras",),
    "Group and layer normalization take a mask along and say supports_masking, but count the padding in their statistics, and "
    "a mask given by hand is a TypeError.",
)
def mask_that_is_ignored():
    x = _padded()
    mask = np.ones((2, 4), bool)
    for layer in (keras.layers.GroupNormalization(groups=1), keras.layers.LayerNormalization(axis=(1, 2))):
        name = type(layer).__name__
        yield near(f"{name}, output moves by the mask", worst(layer(keras.layers.Masking()(x)), layer(x)), 0)
        yield same("supports_masking", layer.supports_masking, True)
        yield raises(f"{name}(mask=)", TypeError, lambda layer=layer: layer(x, mask=mask))


@divergence(
    24,
    "rms_norm",
    ("keras",),
    "RMSNormalization and SpectralNormalization destroy the mask that Batch-, Layer-, Group- and UnitNormalization hand on: "
    "an attention or LSTM behind them sees the padding.",
)
def mask_that_is_destroyed():
    layers = keras.layers
    destroying = [layers.RMSNormalization(), layers.SpectralNormalization(layers.Dense(3))]
    keeping = [layers.BatchNormalization(), layers.LayerNormalization(), layers.GroupNormalization(1)]
    for layer in (*destroying, *keeping, layers.UnitNormalization()):
        yield same(f"{type(layer).__name__} keeps it", _kept(layer), layer not in destroying)


@divergence(
    25,
    "group_norm",
    ("flax",),
    "flax's group norm wants a mask with as many channels as the input, where its batch and layer norm take one of (batch, "
    "time, 1): the same mask is a TypeError there.",
)
def mask_shape_of_group_norm():
    x, mask = normal(2, 4, 6), jnp.ones((2, 4, 1), bool)
    group = nnx.GroupNorm(6, num_groups=2, rngs=nnx.Rngs(0))
    yield raises("mask of one channel: group norm", TypeError, lambda: group(x, mask=mask))
    yield same("of all channels", group(x, mask=jnp.repeat(mask, 6, -1)).shape, x.shape)
    batch = nnx.BatchNorm(6, use_running_average=False, rngs=nnx.Rngs(0))
    for name, layer in (("batch norm", batch), ("layer norm", nnx.LayerNorm(6, rngs=nnx.Rngs(0)))):
        yield near(f"{name}, moves by such a mask", worst(layer(x, mask=mask), layer(x)), 0, within=1e-5)
