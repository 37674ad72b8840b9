"""Keras' dense, convolutional and embedding layers in the words of `Linear`: what the words say is what the layers do."""

from itertools import product

import keras
import numpy as np
import pytest

from crossnorm.errors import MigrationError, Unsupported
from crossnorm.migrate import Linear
from crossnorm.migrate.tensorflow.linear import layer_of, settings_of

L = keras.layers


def built(layer, shape):
    layer.build(shape)
    for weight in layer.weights:
        weight.assign(np.random.default_rng(len(weight.shape)).uniform(0.5, 1.5, weight.shape))
    return layer


def twin(layer):
    """The layer of its settings, with its weights."""
    other, shape = layer_of(settings_of(layer))
    other.build(shape)
    assert settings_of(other) == settings_of(layer)
    other.set_weights(layer.get_weights())
    return other


X = np.random.default_rng(0).normal(size=(2, 9, 4)).astype("float32")
STRIDES = [{"strides": 1, "groups": 2}, {"strides": 2}, {"dilation_rate": 2}]


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_convolutions_add_what_is_said(size, padding):
    for options in STRIDES:
        layer = built(L.Conv1D(6, size, padding=padding, **options), (None, None, 4))
        settings = settings_of(layer)
        assert (settings.kind, settings.shape, settings.bias) == ("convolution", (6, 4 // options.get("groups", 1), size), True)
        twin(layer)
        if settings.padding == "same":
            assert "strides" in options
            continue
        plain = built(L.Conv1D(6, size, padding="valid", **options), (None, None, 4))
        assert np.allclose(plain(np.pad(X, ((0, 0), *settings.padding, (0, 0)))), layer(X), atol=1e-5)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_transposed_convolutions_cut_off_what_is_said(size, padding):
    for step, more in product((1, 2, 3), (None, 1)):
        taken = (more or 0) + (size % 2 if padding == "same" and more is not None else 1)
        if more is not None and (not 1 <= taken <= step or more >= step):
            continue  # nothing that Keras computes
        options = {"strides": step, "use_bias": False}
        layer = built(L.Conv1DTranspose(3, size, padding=padding, output_padding=more, **options), (None, None, 4))
        settings = settings_of(layer)
        assert settings.shape == (4, 3, size)
        full = np.zeros((2, 8 * step + size, 3), "float32")
        for place in range(9):
            full[:, step * place : step * place + size] += np.einsum("bi,koi->bko", X[:, place], layer.kernel.numpy())
        ((before, after),), (added,) = settings.padding, settings.output_padding
        wanted = np.pad(full[:, before : full.shape[1] - after], ((0, 0), (0, added), (0, 0)))
        assert np.allclose(layer(X), wanted, atol=1e-5), (step, more)
        twin(layer)


@pytest.mark.parametrize(
    ("layer", "shape", "settings"),
    [
        (L.Dense(3, activation="relu"), (None, 4), Linear(kind="dense", shape=(3, 4), bias=True, activation="relu")),
        (L.Embedding(7, 4), (None,), Linear(kind="embedding", shape=(7, 4))),
        (
            L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
            (None, None, None, 4),
            Linear(kind="convolution", shape=(8, 1, 3, 3), groups=4),
        ),
        (
            L.Conv2D(6, 1, strides=2, padding="same"),
            (None, 8, 8, 4),
            Linear(kind="convolution", shape=(6, 4, 1, 1), bias=True, stride=(2, 2)),
        ),
        (
            L.Conv2D(6, 3, padding="same", data_format="channels_first"),
            (None, 4, 8, 8),
            Linear(kind="convolution", shape=(6, 4, 3, 3), bias=True, padding=((1, 1), (1, 1))),
        ),
        (L.Conv3D(6, 2, groups=2), (None, 5, 5, 5, 4), Linear(kind="convolution", shape=(6, 2, 2, 2, 2), bias=True, groups=2)),
    ],
)
def test_settings(layer, shape, settings):
    assert settings_of(built(layer, shape)) == settings
    twin(layer)


def test_a_separable_convolution_is_two():
    layer = built(L.SeparableConv1D(6, 3, padding="same", depth_multiplier=2, activation="relu"), (None, None, 4))
    assert settings_of(layer) is None
    depthwise, pointwise = (layer_of(settings_of(layer, name)) for name in ("depthwise_kernel", "pointwise_kernel"))
    for part, shape in (depthwise, pointwise):
        part.build(shape)
    depthwise[0].set_weights([layer.depthwise_kernel])
    pointwise[0].set_weights([layer.pointwise_kernel, layer.bias])
    assert np.allclose(pointwise[0](depthwise[0](X)), layer(X), atol=1e-5)


class Doubled(L.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


def test_what_is_no_plain_layer():
    assert settings_of(built(Doubled(3), (None, 4))) is None
    assert settings_of(built(L.LSTM(3), (None, 4, 2))) is None
    with pytest.raises(MigrationError, match="is not built"):
        settings_of(L.Dense(3))
    custom = built(L.Dense(3, activation=lambda x: x * 2), (None, 4))
    with pytest.raises(Unsupported, match="activation='custom <lambda>', where Keras has no such function"):
        layer_of(settings_of(custom))
