"""Whole models, in both directions: every kind of layer arrives, every layer is proved, and what cannot arrive is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers
from torch import nn

import crossnorm
import crossnorm.tensorflow
import crossnorm.torch
from crossnorm import MigrationError
from crossnorm.migrate import transfer
from crossnorm.rounding import VERDICT

RANDOM = np.random.default_rng(0)


class Last(nn.Module):
    """A recurrent module's sequence output, for `nn.Sequential`."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)[0]


class SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        return self.attention(x, x, x)[0]


def functional(shape, *steps, dtype="float32"):
    x = inputs = keras.Input(shape, dtype=dtype)
    for step in steps:
        x = step(x)
    return keras.Model(inputs, x)


def self_attention(**options):
    layer = layers.MultiHeadAttention(2, 4, **options)
    return lambda x: layer(x, x)


def convolutional():
    """Images, flattened, with a normalization behind the flattening whose arrays come in another order there."""
    torch_model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), crossnorm.torch.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 2), nn.GroupNorm(2, 4), nn.Flatten(), crossnorm.torch.BatchNorm1d(36), nn.ReLU(), nn.Linear(36, 36),
        nn.ReLU(), nn.Linear(36, 5),
    )  # fmt: skip
    keras_model = keras.Sequential(
        [
            keras.Input((8, 8, 3)), layers.Conv2D(6, 3, padding="same", use_bias=False),
            crossnorm.tensorflow.BatchNormalization(epsilon=1e-5), layers.ReLU(), layers.MaxPooling2D(),
            layers.Conv2D(4, 2), layers.GroupNormalization(2, epsilon=1e-5), layers.Flatten(),
            crossnorm.tensorflow.BatchNormalization(epsilon=1e-5), layers.ReLU(), layers.Dense(36, activation="relu"),
            layers.Dense(5),
        ]
    )  # fmt: skip
    return torch_model, keras_model


def linear(torch_module, keras_layer, shape):
    return nn.Sequential(torch_module), functional(shape, keras_layer)


def separable():
    torch_model = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.Conv2d(6, 5, 1))
    return torch_model, functional((6, 6, 3), layers.SeparableConv2D(5, 3, depth_multiplier=2))


def recurrent():
    torch_model = nn.Sequential(
        nn.Embedding(11, 6), Last(nn.LSTM(6, 4, batch_first=True)), Last(nn.GRU(4, 3, batch_first=True, bidirectional=True)),
        nn.LayerNorm(6, eps=1e-3), nn.Linear(6, 2),
    )  # fmt: skip
    keras_model = functional(
        (None,), layers.Embedding(11, 6), layers.LSTM(4, return_sequences=True),
        layers.Bidirectional(layers.GRU(3, return_sequences=True)), layers.LayerNormalization(), layers.Dense(2), dtype="int32",
    )  # fmt: skip
    return torch_model, keras_model


def stacked():
    torch_model = nn.Sequential(Last(nn.LSTM(5, 4, num_layers=2, batch_first=True)))
    return torch_model, functional((7, 5), layers.LSTM(4, return_sequences=True), layers.LSTM(4, return_sequences=True))


MODELS = {
    "convolutional": convolutional,
    "convolution 1d": lambda: linear(nn.Conv1d(4, 6, 3, stride=2, groups=2), layers.Conv1D(6, 3, strides=2, groups=2), (9, 4)),
    "convolution 3d": lambda: linear(nn.Conv3d(2, 3, (1, 2, 3)), layers.Conv3D(3, (1, 2, 3)), (4, 5, 6, 2)),
    "dilated": lambda: linear(nn.Conv2d(2, 3, 3, dilation=2), layers.Conv2D(3, 3, dilation_rate=2), (7, 7, 2)),
    "transposed": lambda: linear(nn.ConvTranspose2d(3, 4, 3, stride=2), layers.Conv2DTranspose(4, 3, strides=2), (5, 5, 3)),
    "depthwise": lambda: linear(nn.Conv2d(3, 6, 3, groups=3), layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 3)),
    "separable": separable,
    "recurrent": recurrent,
    "stacked": stacked,
    "attention": lambda: (SelfAttention(), functional((5, 8), self_attention())),
    "attention without bias": lambda: (SelfAttention(bias=False), functional((5, 8), self_attention(use_bias=False))),
}


def disturb(model):
    """Numbers that no initializer gives, so that nothing agrees by itself; variances stay positive."""
    if isinstance(model, nn.Module):
        with torch.no_grad():
            for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
                tensor.copy_(torch.tensor(RANDOM.uniform(0.2, 1.2, tensor.shape)) / max(1, tensor[:1].numel()) ** 0.5)
    else:
        model.set_weights([
            RANDOM.uniform(0.2, 1.2, w.shape).astype(w.dtype) / max(1, w[..., :1].size if w.ndim else 1) ** 0.5 if w.dtype.kind == "f" else w
            for w in model.get_weights()
        ])  # fmt: skip


@pytest.mark.parametrize("direction", ["torch to Keras", "Keras to torch"])
@pytest.mark.parametrize("model", MODELS)
def test_both_directions(model, direction):
    torch_model, keras_model = MODELS[model]()
    source, target = (torch_model, keras_model) if direction == "torch to Keras" else (keras_model, torch_model)
    disturb(source)
    disturb(target)
    report = transfer(source, target)
    assert 0 <= report.worst <= VERDICT
    assert report.rows[-1].source == "output"
    # Beside the report: the outputs themselves.
    shape = [4, *(size or 7 for size in keras_model.input_shape[1:])]
    x = (
        RANDOM.integers(0, 11, shape)
        if keras_model.inputs[0].dtype == "int32"
        else RANDOM.standard_normal(shape).astype("float32")
    )
    y = keras_model(x, training=False).numpy()
    if x.ndim > 3 or (x.ndim == 3 and "convolution" in model):
        x = np.moveaxis(x, -1, 1)
        y = np.moveaxis(y, -1, 1) if y.ndim > 2 else y
    np.testing.assert_allclose(torch_model.eval()(torch.tensor(x)).detach(), y, rtol=1e-4, atol=1e-5)


SPECS = {
    "batch_norm": crossnorm.BatchNormSpec(channels=6, eps=1e-4, decay=0.75),
    "batch_norm without offset": crossnorm.BatchNormSpec(channels=6, offset=False),
    "layer_norm": crossnorm.LayerNormSpec(shape=(6,)),
    "group_norm": crossnorm.GroupNormSpec(channels=6, groups=3),
    "instance_norm": crossnorm.InstanceNormSpec(channels=6, tracked=True),
    "rms_norm": crossnorm.RMSNormSpec(shape=(6,)),
    "batch_renorm": crossnorm.preset("keras", "batch_renorm", channels=6),
    "switchable_norm": crossnorm.SwitchableNormSpec(channels=6),
    "filter_response_norm": crossnorm.FilterResponseNormSpec(channels=6, learned_eps="channel"),
}


@pytest.mark.parametrize("direction", ["torch to Keras", "Keras to torch"])
@pytest.mark.parametrize("method", SPECS)
def test_every_method(method, direction):
    spec = SPECS[method]
    last = method.startswith(("layer", "rms"))
    norm = crossnorm.torch.layer(spec)
    torch_model = nn.Sequential(nn.Linear(6, 6), norm) if last else nn.Sequential(nn.Conv2d(3, 6, 2), norm)
    keras_norm = crossnorm.tensorflow.layer(spec)
    keras_model = functional((5, 6) if last else (6, 6, 3), layers.Dense(6) if last else layers.Conv2D(6, 2), keras_norm)
    source, target = (torch_model, keras_model) if direction == "torch to Keras" else (keras_model, torch_model)
    disturb(source)
    assert transfer(source, target).worst <= VERDICT


@pytest.mark.parametrize("method", ["weight_standardization", "spectral_norm", "weight_norm"])
@pytest.mark.parametrize("direction", ["torch to Keras", "Keras to torch"])
def test_every_reparametrization(method, direction):
    spec = crossnorm.preset("paper", method, shape=(6, 3, 2, 2))
    torch_model = nn.Sequential(crossnorm.torch.layer(spec, module=nn.Conv2d(3, 6, 2)), nn.ReLU())
    keras_model = functional((6, 6, 3), crossnorm.tensorflow.layer(spec, wrapped=layers.Conv2D(6, 2)), layers.ReLU())
    source, target = (torch_model, keras_model) if direction == "torch to Keras" else (keras_model, torch_model)
    disturb(source)
    assert transfer(source, target).worst <= VERDICT
