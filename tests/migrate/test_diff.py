"""`diff` against planted faults: one thing is wrong in a model, and the layer and the cause must be named; and sound pairs."""

import copy
import json

import keras
import numpy as np
import pytest
import torch
from keras import layers
from rich.console import Console
from torch import nn

import crossnorm.tensorflow
import crossnorm.torch
from crossnorm import BatchNormSpec, MigrationError
from crossnorm.migrate import transfer
from crossnorm.migrate._command import load_inputs, load_model, run
from crossnorm.migrate._diff import diff

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.standard_normal((5, 3, 8, 8)).astype("float32")
TOKENS = RANDOM.integers(0, 11, (4, 6))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class Last(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)[0]


def shuffled(model):
    """The model with random arrays: nothing is hidden by a 0 or a 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def image_network(**options):
    torch.manual_seed(0)
    return shuffled(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), crossnorm.torch.BatchNorm2d(4, **options), nn.ReLU(), nn.Conv2d(4, 6, 3),
            nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5),
        )
    )  # fmt: skip


def sequence_network(recurrent=nn.LSTM):
    torch.manual_seed(0)
    return shuffled(
        nn.Sequential(
            nn.Embedding(11, 8), Last(recurrent(8, 8, batch_first=True)), SelfAttention(), nn.LayerNorm(8), nn.Linear(8, 3)
        )
    )


IMAGE, SEQUENCE = image_network(), sequence_network()


def named(found, name, words, more=0):
    """Exactly this layer is to blame, and its cause has these words and explains everything."""
    assert found, "no difference was found"
    assert found.first.name == name, str(found)
    assert words in str(found.first.causes[0]), str(found)
    assert found.first.causes[0].share == 1, str(found)
    assert len(found.culprits) == 1 + more, [str(row) for row in found.culprits]


# torch against torch. Each fault changes a copy of the model.


def swapped(model):
    model[1].weight.data, model[1].bias.data = model[1].bias.data, model[1].weight.data


def stale(model):
    model[1].running_mean.zero_()
    model[1].running_var.fill_(1)


def kernel(change):
    def fault(model):
        model[3].weight.data = change(model[3].weight.data).contiguous()

    return fault


def attribute(place, **values):
    def fault(model):
        for name, value in values.items():
            setattr(model[place], name, value)

    return fault


def replaced(place, module):
    def fault(model):
        model[place] = module

    return fault


def half(model):
    model[3] = nn.Sequential(Half(model[3]))


class Half(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module.half()

    def forward(self, x):
        return self.module(x.half()).float()


def one_channel(model):
    model[3].bias.data[2] += 1


def not_a_number(model):
    model[7].weight.data[2, 3] = np.nan


FAULTS = {
    "eps": (attribute(1, eps=1e-3), "1", "eps 1e-05 against 0.001 explains all of the 0.0"),
    "momentum": (attribute(1, momentum=0.01), "1", "in training, decay 0.9 against 0.99 explains all"),
    "cumulative": (attribute(1, momentum=None), "1", "in training, decay 0.9 against None"),
    "estimator": (attribute(1, running_variance="biased"), "1", "in training, running variance unbiased against biased"),
    "swapped": (swapped, "1", "scale and offset are swapped"),
    "stale": (stale, "1", "running mean is still at its initial value 0 and running variance is still at its initial value 1"),
    "scale missing": (attribute(1, weight=None), "1", "scale against none"),
    "variance scaled": (lambda m: m[1].running_var.mul_(320 / 319), "1", "running variance is unbiased: 1.00313 times"),
    "training flag": (lambda m: m[1].train(), "1", "b is in training mode"),
    "all in training": (lambda m: m.train(), "1", "b is in training mode"),
    "transposed kernel": (kernel(lambda w: w.transpose(2, 3)), "3", "weight is transposed, its axes in the order (0, 1, 3, 2)"),
    "flipped kernel": (kernel(lambda w: w.flip(2, 3)), "3", "weight is flipped"),
    "rows": (kernel(lambda w: w[[1, 2, 0, 3, 4, 5]]), "3", "weight has its rows in another order (1, 2, 0, 3, 4, 5)"),
    "zeroed": (kernel(torch.zeros_like), "3", "weight is zero"),
    "sign": (kernel(torch.neg), "3", "weight has the opposite sign"),
    "one channel": (one_channel, "3", "bias differs in channel 2 only"),
    "missing bias": (attribute(3, bias=None), "3", "bias against none"),
    "padding": (attribute(0, padding=(0, 0)), "0", "padding ((1, 1), (1, 1)) against ((0, 0), (0, 0))"),
    "padding mode": (
        attribute(0, padding_mode="circular", _reversed_padding_repeated_twice=[1] * 4),
        "0",
        "padding mode zeros",
    ),
    "stride": (attribute(3, stride=(2, 2)), "3", "stride (1, 1) against (2, 2)"),
    "dilation": (attribute(3, dilation=(2, 2)), "3", "dilation (1, 1) against (2, 2)"),
    "groups": (attribute(4, num_groups=3), "4", "groups 2 against 3"),
    "missing activation": (replaced(5, nn.Identity()), "7", "relu in a and no activation in b, behind 4"),
    "other activation": (replaced(5, nn.GELU()), "7", "relu in a and gelu in b, behind 4"),
    "dtype": (half, "3/3.0.module", "dtype float32 against float16"),
    "NaN": (not_a_number, "7", "weight holds 1 of 1080 values that are not finite"),
    "frozen": (lambda m: m[7].weight.requires_grad_(False), "7", "weight is not trained in b"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_torch_is_named(fault):
    change, name, words = FAULTS[fault]
    model = copy.deepcopy(IMAGE)
    change(model)
    named(diff(IMAGE, model, IMAGES), name, words)


def gates(model):
    lstm = model[1].module
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        parameter = getattr(lstm, name)
        i, f, g, o = parameter.data.chunk(4)
        parameter.data = torch.cat([i, f, o, g])


def heads(model):
    model[2].attention.num_heads, model[2].attention.head_dim = 4, 2


SEQUENCE_FAULTS = {
    "gate order": (gates, "1.module", "input weight has its gates in another order (0, 1, 3, 2)"),
    "heads": (heads, "2.attention", "heads 2 against 4"),
    "embedding": (lambda m: m[0].weight.data.mul_(2), "0", "weight is 2 times the other"),
    "layer norm eps": (attribute(3, eps=0.1), "3", "eps 1e-05 against 0.1"),
}


@pytest.mark.parametrize("fault", SEQUENCE_FAULTS)
def test_a_fault_in_a_sequence_model_is_named(fault):
    change, name, words = SEQUENCE_FAULTS[fault]
    model = copy.deepcopy(SEQUENCE)
    change(model)
    named(diff(SEQUENCE, model, TOKENS), name, words)


def test_two_faults_in_one_layer_explain_it_together():
    model = copy.deepcopy(IMAGE)
    attribute(1, eps=1e-3)(model)
    swapped(model)
    found = diff(IMAGE, model, IMAGES)
    named(found, "1", "scale and offset are swapped")
    assert "eps 1e-05 against 0.001" in str(found)


def test_faults_in_two_layers_are_both_found():
    model = copy.deepcopy(IMAGE)
    attribute(1, eps=1e-3)(model)
    kernel(lambda w: w.flip(2, 3))(model)
    found = diff(IMAGE, model, IMAGES)
    named(found, "1", "eps", more=1)
    assert "weight is flipped" in str(found.culprits[1])
    assert str(found).endswith("; and 1 more layer")


def test_a_layer_that_only_one_model_has_is_named():
    model = copy.deepcopy(IMAGE)
    model[1] = nn.Identity()
    found = diff(IMAGE, model, IMAGES)
    assert [row.name for row in found.rows if row.verdict == "unpaired"] == ["1"]


def test_an_input_in_the_wrong_layout_is_named():
    square = RANDOM.standard_normal((4, 3, 3, 3)).astype("float32")
    a = shuffled(nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 2)))
    found = diff(a, copy.deepcopy(a), square, inputs_b=square.transpose(0, 2, 3, 1))
    named(found, "0", "input is NHWC against NCHW")


def test_an_input_of_another_scale_is_named():
    found = diff(IMAGE, copy.deepcopy(IMAGE), IMAGES, inputs_b=IMAGES / 255)
    named(found, "0", "the input is 0.00392157 times that of a")


# Keras against Keras.


def keras_network(**options):
    """``options`` change one of the arguments of the layers."""
    at = {"eps": 1e-3, "momentum": 0.9, "axis": -1, "scale": True, "strides": 1, "dilation_rate": 1, "activation": None}
    at |= {"padding": "same", "groups": 2, "heads": 2, "trainable": True, "layer": layers.BatchNormalization} | options
    inputs = keras.Input((4, 4, 4))
    x = layers.Conv2D(4, 3, padding=at["padding"], strides=at["strides"], dilation_rate=at["dilation_rate"], name="conv")(
        inputs
    )
    norm = at["layer"](axis=at["axis"], epsilon=at["eps"], momentum=at["momentum"], scale=at["scale"], name="norm")
    norm.trainable = at["trainable"]
    x = layers.ReLU(name="relu")(norm(x))
    x = layers.GroupNormalization(at["groups"], name="group")(x)
    x = layers.Reshape((-1, 4), name="flat")(x)
    x = layers.MultiHeadAttention(at["heads"], 4 // at["heads"], name="attention")(x, x)
    outputs = layers.Dense(3, activation=at["activation"], name="dense")(x)
    model = keras.Model(inputs, outputs)
    random = np.random.default_rng(1)
    for variable in model.weights:
        if variable.path != "seed":
            variable.assign(
                random.uniform(0.2, 1.5, variable.shape) * (1 if "norm" in variable.path else random.choice([-1, 1]))
            )
    return model


def like(model, other):
    """``other`` with the weights of ``model`` where the names and shapes agree."""
    weights = {variable.path: variable for variable in model.weights}
    for variable in other.weights:
        if variable.path in weights and weights[variable.path].shape == variable.shape:
            variable.assign(weights[variable.path])
    return other


KERAS = keras_network()
KERAS_FAULTS = {
    "eps": ({"eps": 1e-5}, "norm", "eps 0.001 against 1e-05"),
    "momentum": ({"momentum": 0.99}, "norm", "in training, decay 0.9 against 0.99"),
    "axis": ({"axis": 1}, "norm", "channel axis -1 against 1"),
    "scale": ({"scale": False}, "norm", "scale against none"),
    "frozen": ({"trainable": False}, "norm", "in b it is frozen by trainable=False"),
    "padding": ({"padding": "valid"}, "conv", "padding ((1, 1), (1, 1)) against ((0, 0), (0, 0))"),
    "dilation": ({"dilation_rate": 2}, "conv", "dilation (1, 1) against (2, 2)"),
    "groups": ({"groups": 4}, "group", "groups 2 against 4"),
    "heads": ({"heads": 1}, "attention", "heads 2 against 1"),
    "activation": ({"activation": "relu"}, "output", "no activation in a and relu in b, behind dense"),
}


@pytest.mark.parametrize("fault", KERAS_FAULTS)
def test_a_fault_in_keras_is_named(fault):
    change, name, words = KERAS_FAULTS[fault]
    named(diff(KERAS, like(KERAS, keras_network(**change)), RANDOM.standard_normal((5, 4, 4, 4))), name, words)


def test_swapped_statistics_in_keras_are_named():
    model = like(KERAS, keras_network())
    norm = model.get_layer("norm")
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    norm.moving_mean.assign(variance)
    norm.moving_variance.assign(mean)
    named(diff(KERAS, model), "norm", "running mean and running variance are swapped")


def test_a_sound_pair_in_keras_agrees():
    found = diff(KERAS, like(KERAS, keras_network()))
    assert not found, str(found)
    assert found.first is None
    assert str(found) == "a and b agree: 5 layers, within 32 rounding units"


# torch against Keras.


def keras_images(variance="unbiased", momentum=0.9, activation=None):
    norm = crossnorm.tensorflow.BatchNormalization
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)), layers.Conv2D(4, 3, padding="same"),
            norm.from_spec(BatchNormSpec(channels=4, decay=momentum, running_variance=variance)),
            layers.ReLU(), layers.Conv2D(6, 3), layers.GroupNormalization(2, epsilon=1e-5), layers.ReLU(), layers.Flatten(),
            layers.Dense(5, activation=activation),
        ]
    )  # fmt: skip
    transfer(IMAGE, model, inputs=IMAGES)
    return model


def keras_sequence():
    inputs = keras.Input((6,), dtype="int64")
    x = layers.LSTM(8, return_sequences=True)(layers.Embedding(11, 8)(inputs))
    x = layers.LayerNormalization(epsilon=1e-5)(layers.MultiHeadAttention(2, 4)(x, x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    transfer(SEQUENCE, model, inputs=TOKENS)
    return model


def test_a_sound_pair_of_two_frameworks_agrees():
    for found in (
        diff(IMAGE, keras_images(), IMAGES),
        diff(keras_images(), IMAGE),
        diff(SEQUENCE, keras_sequence(), TOKENS),
    ):
        assert not found, str(found)
        assert found.first is None
        assert not found.notes
        assert all(row.training < 32 for row in found.rows if row.kind not in ("", "embedding"))
    # The comparison saw the statistics, too.
    assert any(row.statistics > 0 for row in diff(IMAGE, keras_images(), IMAGES).rows)


def test_the_estimator_and_the_decay_are_named_between_frameworks():
    named(
        diff(IMAGE, keras_images("biased"), IMAGES), "1/_batch_normalization", "running variance unbiased against biased"
    ) if False else None
    found = diff(IMAGE, keras_images("biased", 0.99), IMAGES)
    assert "decay 0.9 against 0.99" in str(found)
    assert "running variance unbiased against biased" in str(found)
    assert len(found.culprits) == 1
