"""Arrays that leave a layer of one framework and enter the same layer of the other make it compute the same."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import torch
from torch import nn

import crossnorm.tensorflow
import crossnorm.torch
from crossnorm.errors import MigrationError
from crossnorm.migrate._parts import parts, permuted_rows, put, unique
from crossnorm.migrate._settings import Attention, Linear, Recurrent, Slope, Unknown
from crossnorm.spec import NormSpec

layers = keras.layers


class First(nn.Module):
    """The first of the outputs."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *inputs):
        return self.inner(*inputs)[0]


SEQUENCE, LINE, IMAGE, VOLUME = (3, 7, 4), (3, 4, 11), (3, 4, 9, 8), (2, 4, 5, 6, 5)


# Heads of size 4: Keras rounds the root of the size to float32.
# The module, the layer, the shapes of the module's inputs.
CASES = {
    "dense": (lambda: nn.Linear(4, 5), lambda: layers.Dense(5), SEQUENCE),
    "dense without bias": (lambda: nn.Linear(4, 5, bias=False), lambda: layers.Dense(5, use_bias=False), SEQUENCE),
    "convolution of a line": (lambda: nn.Conv1d(4, 6, 3, dilation=2), lambda: layers.Conv1D(6, 3, dilation_rate=2), LINE),
    "convolution of an image": (lambda: nn.Conv2d(4, 6, (3, 2), 2), lambda: layers.Conv2D(6, (3, 2), 2), IMAGE),
    "convolution of a volume": (lambda: nn.Conv3d(4, 6, (3, 2, 1)), lambda: layers.Conv3D(6, (3, 2, 1)), VOLUME),
    "convolution, same": (lambda: nn.Conv2d(4, 6, 3, padding=1), lambda: layers.Conv2D(6, 3, padding="same"), IMAGE),
    "convolution, even": (lambda: nn.Conv2d(4, 6, 2, padding="same"), lambda: layers.Conv2D(6, 2, padding="same"), IMAGE),
    "convolution in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: layers.Conv2D(6, 3, groups=2), IMAGE),
    "transposed line": (lambda: nn.ConvTranspose1d(4, 6, 3, 2), lambda: layers.Conv1DTranspose(6, 3, 2), LINE),
    "transposed image": (lambda: nn.ConvTranspose2d(4, 6, (3, 2)), lambda: layers.Conv2DTranspose(6, (3, 2)), IMAGE),
    "transposed, same": (
        lambda: nn.ConvTranspose2d(4, 6, 4, 2, padding=1),
        lambda: layers.Conv2DTranspose(6, 4, 2, padding="same"),
        IMAGE,
    ),
    "transposed volume": (lambda: nn.ConvTranspose3d(4, 6, (3, 2, 1)), lambda: layers.Conv3DTranspose(6, (3, 2, 1)), VOLUME),
    "depthwise line": (lambda: nn.Conv1d(4, 8, 3, groups=4), lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), LINE),
    "depthwise image": (
        lambda: nn.Conv2d(4, 12, (3, 2), groups=4),
        lambda: layers.DepthwiseConv2D((3, 2), depth_multiplier=3),
        IMAGE,
    ),
    "separable line": (
        lambda: nn.Sequential(nn.Conv1d(4, 8, 3, 2, groups=4, bias=False), nn.Conv1d(8, 5, 1)),
        lambda: layers.SeparableConv1D(5, 3, 2, depth_multiplier=2),
        LINE,
    ),
    "separable image": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, (3, 2), groups=4, bias=False), nn.Conv2d(8, 5, 1)),
        lambda: layers.SeparableConv2D(5, (3, 2), depth_multiplier=2),
        IMAGE,
    ),
    "prelu": (lambda: nn.PReLU(4), lambda: layers.PReLU(shared_axes=[1, 2]), IMAGE),
    "lstm": (lambda: First(nn.LSTM(4, 5, batch_first=True)), lambda: layers.LSTM(5, return_sequences=True), SEQUENCE),
    "lstm without bias": (
        lambda: First(nn.LSTM(4, 5, bias=False, batch_first=True)),
        lambda: layers.LSTM(5, use_bias=False, return_sequences=True),
        SEQUENCE,
    ),
    "lstm in two layers and directions": (
        lambda: First(nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)),
        lambda: keras.Sequential([layers.Bidirectional(layers.LSTM(5, return_sequences=True)) for _ in range(2)]),
        SEQUENCE,
    ),
    "gru": (lambda: First(nn.GRU(4, 5, batch_first=True)), lambda: layers.GRU(5, return_sequences=True), SEQUENCE),
    "gru in two directions": (
        lambda: First(nn.GRU(4, 5, batch_first=True, bidirectional=True)),
        lambda: layers.Bidirectional(layers.GRU(5, return_sequences=True)),
        SEQUENCE,
    ),
    "attention": (
        lambda: First(nn.MultiheadAttention(8, 2, batch_first=True)),
        lambda: layers.MultiHeadAttention(2, 4),
        (3, 7, 8), (3, 5, 8), (3, 5, 8),
    ),
    "attention of three widths, without bias": (
        lambda: First(nn.MultiheadAttention(8, 2, kdim=3, vdim=5, bias=False, batch_first=True)),
        lambda: layers.MultiHeadAttention(2, 4, use_bias=False),
        (3, 7, 8), (3, 5, 3), (3, 5, 5),
    ),
    "batch_norm": (lambda: nn.BatchNorm2d(4, eps=0.01), lambda: layers.BatchNormalization(epsilon=0.01), IMAGE),
    "layer_norm": (lambda: nn.LayerNorm(4, eps=0.01), lambda: layers.LayerNormalization(epsilon=0.01), SEQUENCE),
    "group_norm": (lambda: nn.GroupNorm(2, 4, eps=0.01), lambda: layers.GroupNormalization(2, epsilon=0.01), IMAGE),
    "weight_norm": (
        lambda: crossnorm.torch.weight_norm(nn.ConvTranspose2d(4, 6, (3, 2))),
        lambda: crossnorm.tensorflow.WeightNormalization(layers.Conv2DTranspose(6, (3, 2))),
        IMAGE,
    ),
    "spectral_norm": (
        lambda: crossnorm.torch.spectral_norm(nn.Conv2d(4, 6, (3, 2))),
        lambda: crossnorm.tensorflow.SpectralNormalization(layers.Conv2D(6, (3, 2))),
        IMAGE,
    ),
    "weight_standardization": (
        lambda: crossnorm.torch.weight_standardization(nn.Conv2d(4, 8, 3, groups=2)),
        lambda: crossnorm.tensorflow.WeightStandardization(layers.Conv2D(8, 3, groups=2)),
        IMAGE,
    ),
}  # fmt: skip


def pair(case):
    """The module, the Keras model and the inputs of a case, all in float64."""
    module, layer, *shapes = CASES[case]
    random = np.random.default_rng(1)
    arrays = [random.standard_normal(shape) for shape in shapes]
    module = module().double().eval()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        inputs = [keras.Input(turned(array).shape[1:], dtype="float64") for array in arrays]
        layer = layer()
        if len(inputs) == 3:
            # Keras takes the value before the key.
            model = keras.Model(inputs, layer(inputs[0], inputs[2], key=inputs[1]))
        else:
            model = keras.Model(inputs, layer(*inputs))
    finally:
        keras.config.set_dtype_policy(before)
    return module, model, arrays


def turned(array):
    """Channels last: what has more than one axis of positions, or a line."""
    return np.moveaxis(array, 1, -1) if array.ndim > 3 or array.shape == LINE else array


def outputs(module, model, arrays):
    with torch.no_grad():
        one = turned_back(module(*map(torch.from_numpy, arrays)).numpy(), arrays)
    return one, model([turned(array) for array in arrays], training=False).numpy()


def turned_back(output, arrays):
    return np.moveaxis(output, 1, -1) if turned(arrays[0]) is not arrays[0] else output


def randomized(found):
    random = np.random.default_rng(2)
    for part in found:
        drawn = {
            name: random.uniform(-1, 1, part.arrays[name].shape)
            for name, held in part.variables.items()
            if held and name != "batches_tracked"
        }
        part.write({name: np.square(array) if name == "running_variance" else array for name, array in drawn.items()})


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("direction", ["to Keras", "to torch"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_agree_to_rounding(case, direction):
    module, model, arrays = pair(case)
    source, target = (module, model) if direction == "to Keras" else (model, module)
    randomized(parts(source))
    one, other = parts(source), parts(target)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert (a.kind, a.arrays.keys()) == (b.kind, b.arrays.keys())
        assert isinstance(a.settings, NormSpec) or a.settings == b.settings
        b.write({name: a.arrays[name] for name in b.arrays})
    mine, theirs = outputs(module, model, arrays)
    np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13)
    assert np.ptp(mine) > 0.1


def test_the_embedding_agrees():
    module, layer = nn.Embedding(9, 4), layers.Embedding(9, 4)
    layer.build((None, None))
    (one,), (other,) = parts(module), parts(layer)
    assert one.settings == other.settings
    other.write(one.arrays)
    indices = np.arange(8).reshape(2, 4)
    assert np.array_equal(module(torch.from_numpy(indices)).detach().numpy(), layer(indices).numpy())


def test_the_two_biases_of_an_lstm_survive_between_modules_and_are_one_in_keras():
    one, other, layer = nn.LSTM(3, 4), nn.LSTM(3, 4), layers.LSTM(4)
    layer.build((None, None, 3))
    (source,), (target,), (keras_part,) = parts(one), parts(other), parts(layer)
    target.write(source.arrays)
    assert torch.equal(one.bias_ih_l0, other.bias_ih_l0)
    assert torch.equal(one.bias_hh_l0, other.bias_hh_l0)
    keras_part.write(source.arrays)
    assert np.array_equal(layer.cell.bias.numpy(), (one.bias_ih_l0 + one.bias_hh_l0).detach().numpy())
    assert not parts(layer)[0].arrays["recurrent_bias"].any()


def test_a_gru_whose_reset_gate_acts_before_has_other_arrays_than_torch():
    layer = layers.GRU(4, reset_after=False)
    layer.build((None, None, 3))
    (part,), (other,) = parts(layer), parts(nn.GRU(3, 4))
    assert part.settings == replace(other.settings, reset_after=False)
    assert "recurrent_bias" not in part.arrays


def test_padding_has_one_form():
    def convolution(padding, **options):
        return Linear(kind="convolution", shape=(2, 2, 3), padding=padding, **options).padding

    assert convolution("same") == convolution([[1, 1]]) == ((1, 1),)
    assert convolution("valid") == convolution(()) == ((0, 0),)
    assert convolution("causal", dilation=(2,)) == ((4, 0),)
    assert convolution("same", stride=(2,)) == "same"
    assert Linear(kind="convolution", shape=(2, 2, 2), padding="same").padding == ((0, 1),)
    assert Linear(kind="convolution", shape=(2, 2, 1), padding="same", stride=(2,)).padding == ((0, 0),)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (Linear, {"kind": "sparse", "shape": (1, 2)}),
        (Linear, {"kind": ["dense"], "shape": (1, 2)}),
        (Linear, {"kind": "dense", "shape": (0, 2)}),
        (Linear, {"kind": "dense", "shape": (True, 2)}),
        (Linear, {"kind": "dense", "shape": (1.0, 2)}),
        (Linear, {"kind": "dense", "shape": 7}),
        (Linear, {"kind": "dense", "shape": (1, 2, 3)}),
        (Linear, {"kind": "dense", "shape": (1, 2), "stride": (1,)}),
        (Linear, {"kind": "dense", "shape": (1, 2), "activation": None}),
        (Linear, {"kind": "embedding", "shape": (1, 2), "bias": 1}),
        (Linear, {"kind": "convolution", "shape": (4, 4)}),
        (Linear, {"kind": "convolution", "shape": (4, 4, 3), "groups": 3}),
        (Linear, {"kind": "convolution", "shape": (4, 4, 3), "stride": (1, 1)}),
        (Linear, {"kind": "convolution", "shape": (4, 4, 3), "padding": "wide"}),
        (Linear, {"kind": "convolution", "shape": (4, 4, 3), "padding": {"a": 1}}),
        (Linear, {"kind": "convolution", "shape": (4, 4, 3), "padding": ((1, -1),)}),
        (Linear, {"kind": "convolution", "shape": (4, 4, 3), "padding": (1,)}),
        (Linear, {"kind": "convolution", "shape": (4, 4, 3), "padding_mode": "odd"}),
        (Linear, {"kind": "convolution", "shape": (4, 4, 3), "output_padding": (0,)}),
        (Linear, {"kind": "transposed_convolution", "shape": (4, 4, 3), "padding": "same"}),
        (Recurrent, {"kind": "rnn", "inputs": 1, "units": 1}),
        (Recurrent, {"kind": "gru", "inputs": 0, "units": 1}),
        (Recurrent, {"kind": "gru", "inputs": 1, "units": 1, "reverse": None}),
        (Attention, {"inputs": (1, 2), "heads": 1, "key_size": 1, "value_size": 1, "outputs": 1}),
        (Attention, {"inputs": (1, 2, 3), "heads": "2", "key_size": 1, "value_size": 1, "outputs": 1}),
        (Slope, {"channels": -1}),
        (Unknown, {"layer": "", "reason": "none", "arrays": ()}),
    ],
)
def test_settings_that_mean_nothing_are_refused(cls, fields):
    with pytest.raises(MigrationError, match=rf"^{cls.__name__}: \w+=.*; correct it$"):
        cls(**fields)


def test_put_is_the_inverse_of_what_picks():
    def halves(array):
        return permuted_rows((1, 0), np.transpose)(array[:, :4])

    stored = np.arange(12.0).reshape(2, 6)
    picked = halves(stored).copy()
    empty = np.full_like(stored, -1)
    put(empty, halves, picked)
    assert np.array_equal(empty[:, :4], stored[:, :4])
    assert (empty[:, 4:] == -1).all()


def test_names_become_unique():
    taken = set()
    assert [unique(name, taken) for name in ("a", "a", "a_2", "a")] == ["a", "a_2", "a_2_2", "a_3"]
