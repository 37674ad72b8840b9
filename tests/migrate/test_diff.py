"""`diff` against planted faults: one thing is wrong in a model, and the layer and the cause must be named; and sound pairs."""

import copy
import importlib
import json
import random
import sys

import keras
import numpy as np
import pytest
import torch
from keras import layers
from rich.console import Console
from torch import nn
from torch.nn import functional as F

import crossnorm.tensorflow
import crossnorm.torch
from crossnorm import BatchNormSpec, MigrationError
from crossnorm.migrate import convert, parts, rules, transfer
from crossnorm.migrate._diff import diff
from crossnorm.migrate._diff.command import load_inputs, load_model, run
from crossnorm.migrate._diff.resemblance import resemblance
from crossnorm.migrate._diff.resemblance import swapped as swapped_arrays

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


def test_a_gradient_that_differs_alone_is_found():
    model = copy.deepcopy(IMAGE)
    model[7].register_full_backward_hook(lambda module, below, above: (2 * below[0],))
    found = diff(IMAGE, model, IMAGES)
    assert [row.name for row in found.culprits] == ["7"]
    assert found.first.units == found.first.alone == 0
    assert found.first.training > 32
    assert str(found) == "a and b part in 7, in training, for no cause that could be confirmed"
    assert not diff(IMAGE, model, IMAGES, step=False)


def between_layers(operation):
    """Two layers with a function between them, which is no module."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return operation(self, self.norm(self.one(x)))

    return Model()


OPERATIONS = {
    "slope": (lambda m, y: m.other(F.leaky_relu(y, 0.17)), "other", "relu in a and leaky_relu of slope 0.17 in b, behind norm"),
    "unknown": (lambda m, y: m.other(torch.sin(y)), "other", "relu in a and something else in b, behind norm"),
    "factor": (lambda m, y: m.other(torch.relu(y) * 0.7), "other", "no factor in a and a factor of 0.7 in b, behind norm"),
    "output": (
        lambda m, y: torch.sigmoid(m.other(torch.relu(y))),
        "output",
        "no activation in a and sigmoid in b, behind other",
    ),
    "axis of softmax": (lambda m, y: m.other(torch.relu(y)).softmax(0), "output", "softmax over the batch in b, behind other"),
}


@pytest.mark.parametrize("fault", OPERATIONS)
def test_an_operation_between_layers_is_named(fault):
    operation, name, words = OPERATIONS[fault]
    a, b = shuffled(between_layers(lambda m, y: m.other(torch.relu(y)))), between_layers(operation).eval()
    b.load_state_dict(a.state_dict())
    named(diff(a, b, IMAGES), name, words)


def test_what_the_data_cannot_tell_apart_is_no_difference():
    a = shuffled(between_layers(lambda m, y: m.other(torch.relu(y))))
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.norm.bias += 100  # nothing is below 0 any more, and relu does nothing
    named(diff(a, b, IMAGES, step=False), "norm", "offset differs")


class Embedded(nn.Module):
    """An array beside the layers, and attention with a mask."""

    def __init__(self, mask=None):
        super().__init__()
        self.mask = mask
        self.tokens, self.position = nn.Embedding(11, 8), nn.Parameter(torch.zeros(6, 8))
        self.attention, self.again, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.tokens(x) + self.position
        return self.head(self.again(self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]))


def test_an_array_beside_the_layers_is_named():
    a = shuffled(Embedded())
    b = copy.deepcopy(a)
    assert not diff(a, b, TOKENS)
    b.position.data.mul_(2)
    before = b.position.data.clone()
    named(diff(a, b, TOKENS), "attention", "position of Embedded is 2 times the other")
    assert torch.equal(b.position.data, before)


def test_a_mask_is_named():
    a = shuffled(Embedded())
    b = copy.deepcopy(a)
    b.mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    named(diff(a, b, TOKENS), "attention", "attn mask None against of shape (6, 6)")


def test_a_layer_that_has_the_weights_of_another_is_named():
    a = shuffled(Embedded())
    b = copy.deepcopy(a)
    b.again, b.head = b.head, b.again
    found = diff(a, b, TOKENS, step=False)
    assert "weight is that of head" in str(found.first)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_precision_of_every_layer_is_named_in_both_directions(dtypes):
    a, b = (copy.deepcopy(SEQUENCE).to(dtype) for dtype in dtypes)
    words = "dtype {} against {} explains all".format(*(str(dtype).removeprefix("torch.") for dtype in dtypes))
    found = diff(a, b, TOKENS, step=False)
    assert {row.a for row in found.culprits} >= {"1.module", "3", "4"}
    assert all(words in str(row) for row in found.culprits), [str(row) for row in found.culprits]
    a, b = (copy.deepcopy(SEQUENCE).to(dtype) for dtype in (torch.float32, torch.bfloat16))
    assert "dtype float32 against bfloat16 explains all" in str(diff(a, b, TOKENS, step=False).first)


def test_channels_that_hardly_vary_are_no_difference():
    # What is divided by the spread is mostly rounding.
    a = shuffled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(epsilon=1e-5, momentum=0.9)]
    )
    model = convert(model, rules.semantics("torch"))
    transfer(a, model, inputs=IMAGES)
    found = diff(a, model, IMAGES * 1e-5)
    assert not found, str(found)


def test_what_explains_all_comes_before_what_explains_some():
    model = copy.deepcopy(IMAGE)
    model[1].train()
    model[1].running_mean.add_(1)
    named(diff(IMAGE, model, IMAGES, step=False), "1", "b is in training mode")


def test_what_arrays_have_in_common():
    part = parts(IMAGE)[1]
    one, other = np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, 8])
    assert swapped_arrays({"scale": one, "offset": other}, {"scale": other, "offset": one}) == [("scale", "offset")]
    assert not swapped_arrays({"scale": one, "offset": other}, {"scale": other, "offset": other})
    assert not swapped_arrays({"scale": one, "offset": other}, {"scale": 2 * one, "offset": one})
    assert not swapped_arrays({"scale": one, "offset": one}, {"scale": one, "offset": one})
    for array, words in {
        (2.0, 4, 6, 8): "is 2 times the other",
        (1.0, 2, 3, 5): "differs in channel 3 only",
        (4.0, 3, 2, 1): "has its rows in another order (3, 2, 1, 0)",
        (1.0, 1, 1, 1): "is still at its initial value 1",
        (0.0, 0, 0, 0): "is zero",
        (1.0, 2, np.inf, np.nan): "holds 2 of 4 values that are not finite",
        (1.0, 4, 9, 16): "differs",
    }.items():
        assert resemblance(part, "scale", one, np.array(array), 100) == words
    assert resemblance(part, "running_variance", one, one * 100 / 99, 100).startswith("is unbiased: 1.0101 times")
    assert resemblance(part, "running_variance", one, one * 0.99, 100).startswith("is biased: 0.99 times")


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


def test_a_layer_that_is_of_another_kind_in_each_model_is_named():
    model = copy.deepcopy(IMAGE)
    crossnorm.torch.spectral_norm(model[3])
    found = diff(IMAGE, model.eval(), IMAGES, step=False)
    assert str(found) == "a and b part: 3 is convolution in a and spectral norm in b"
    assert str(diff(model, IMAGE, IMAGES, step=False)) == "a and b part: 3 is spectral norm in a and convolution in b"


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
    at = {"eps": 1e-3, "momentum": 0.9, "axis": -1, "scale": True, "dilation_rate": 1, "activation": None}
    at |= {"padding": "same", "groups": 2, "heads": 2, "trainable": True} | options
    inputs = keras.Input((4, 4, 4))
    x = layers.Conv2D(4, 3, padding=at["padding"], dilation_rate=at["dilation_rate"], name="conv")(inputs)
    options = {"epsilon": at["eps"], "momentum": at["momentum"], "scale": at["scale"], "axis": at["axis"]}
    norm = layers.BatchNormalization(**options, name="norm")
    norm.trainable = at["trainable"]
    x = layers.ReLU(name="relu")(norm(x))
    x = layers.GroupNormalization(at["groups"], name="group")(x)
    x = layers.Reshape((-1, 4), name="flat")(x)
    x = layers.MultiHeadAttention(at["heads"], 4 // at["heads"], name="attention")(x, x)
    outputs = layers.Dense(3, activation=at["activation"], name="dense")(x)
    model = keras.Model(inputs, outputs)
    random = np.random.default_rng(1)
    for variable in model.weights:
        sign = 1 if "norm" in variable.path else random.choice([-1, 1])
        variable.assign(sign * random.uniform(0.2, 1.5, variable.shape))
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
    model = like(KERAS, keras_network(**change))
    # A step of training is slow in eager Keras: only where it shows something.
    named(diff(KERAS, model, RANDOM.standard_normal((5, 4, 4, 4)), step="training" in words or fault == "frozen"), name, words)


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


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("kind", ["images", "tokens"])
def test_a_sound_pair_of_two_frameworks_agrees(kind, turn):
    pair = (IMAGE, keras_images()) if kind == "images" else (SEQUENCE, keras_sequence())
    given = {"images": None if turn else IMAGES, "tokens": TOKENS}[kind]
    found = diff(*(reversed(pair) if turn else pair), given)
    assert not found, str(found)
    assert found.first is None
    assert not found.notes
    # The comparison saw the training step, too, and rounding made some difference there.
    assert all(row.training < 32 for row in found.rows[:-1])
    assert kind == "tokens" or 0 < max(row.statistics for row in found.rows[:-1]) < 32


def test_the_estimator_and_the_decay_are_named_between_frameworks():
    found = diff(IMAGE, keras_images("biased", 0.99), IMAGES)
    assert "decay 0.9 against 0.99" in str(found)
    assert "running variance unbiased against biased" in str(found)
    assert len(found.culprits) == 1


def faulty_kernel(model):
    model.layers[3].kernel.assign(model.layers[3].kernel.numpy()[::-1, ::-1])


def faulty_groups(model):
    model.layers[4].groups = 3


def untrained(model):
    model.layers[1].moving_mean.assign(np.zeros(4))


def unflattened(model):
    """The weights behind the flattening as they are in torch."""
    model.layers[7].kernel.assign(IMAGE[7].weight.detach().numpy().T)


CROSS_FAULTS = {
    "flipped kernel": (faulty_kernel, "3", "weight is flipped"),
    "groups": (faulty_groups, "4", "groups 2 against 3"),
    "stale": (untrained, "1", "running mean is still at its initial value 0"),
    "flattening": (unflattened, "7", "weight has its columns in another order"),
}


@pytest.mark.parametrize("fault", CROSS_FAULTS)
def test_a_fault_between_frameworks_is_named(fault):
    change, name, words = CROSS_FAULTS[fault]
    model = keras_images()
    change(model)
    found = diff(IMAGE, model, IMAGES, step=False)
    named(found, f"{name}/{model.layers[int(name)].name}", words)


def test_the_order_of_gates_is_named_between_frameworks():
    model = keras_sequence()
    lstm = next(layer for layer in model.layers if isinstance(layer, layers.LSTM))
    for variable in lstm.cell.weights:
        i, f, g, o = np.split(variable.numpy(), 4, axis=-1)
        variable.assign(np.concatenate([i, g, f, o], axis=-1))
    found = diff(SEQUENCE, model, TOKENS, step=False)
    named(found, f"1.module/{lstm.name}", "input weight has its gates in another order (0, 2, 1, 3)")


def test_half_precision_is_named_between_frameworks():
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, padding="same", dtype="mixed_float16")])
    source = nn.Sequential(IMAGE[0])
    model.layers[0].kernel.assign(source[0].weight.detach().numpy().transpose(2, 3, 1, 0))
    model.layers[0].bias.assign(source[0].bias.detach().numpy())
    named(diff(source, model, IMAGES, step=False), f"0/{model.layers[0].name}", "dtype float32 against float16")


def test_an_activation_inside_a_layer_is_the_same_as_one_behind_it():
    source = shuffled(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(2)])
    for linear, dense in zip(source[::2], model.layers, strict=True):
        dense.kernel.assign(linear.weight.detach().numpy().T)
        dense.bias.assign(linear.bias.detach().numpy())
    x = RANDOM.standard_normal((5, 4))
    for found in (diff(source, model, x), diff(model, source, x)):
        assert not found, str(found)
    without = nn.Sequential(source[0], nn.Identity(), source[2])
    found = diff(model, without, x, step=False)
    named(found, f"{model.layers[1].name}/2", f"relu in a and no activation in b, behind {model.layers[0].name}")


def test_padding_inside_a_layer_is_the_same_as_before_it():
    source = shuffled(nn.Sequential(nn.Conv2d(3, 4, 3, 2, padding=1), nn.Flatten(), nn.Linear(64, 2)))
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.ZeroPadding2D(1), layers.Conv2D(4, 3, 2), layers.Flatten(), layers.Dense(2)]
    )
    transfer(source, model, inputs=IMAGES)
    for found in (diff(source, model, IMAGES), diff(model, source)):
        assert not found, str(found)
    uneven = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3, 2), *source[1:])
    uneven[1].load_state_dict(source[0].state_dict())
    same = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, 2, padding="same"), *model.layers[2:]])
    same.layers[0].set_weights(model.layers[1].get_weights())
    assert not diff(uneven, same, IMAGES)
    named(diff(source, same, IMAGES, step=False), f"0/{same.layers[0].name}", "padding ((1, 1), (1, 1)) against same")
    kernel = same.layers[0].kernel
    kernel.assign(-kernel)
    named(diff(uneven, same, IMAGES, step=False), f"1/{same.layers[0].name}", "weight has the opposite sign")


def test_a_stacked_recurrent_module_is_several_layers():
    source = shuffled(nn.Sequential(nn.Embedding(11, 8), Last(nn.GRU(8, 6, 2, batch_first=True)), nn.Linear(6, 2)))
    inputs = keras.Input((6,), dtype="int64")
    x = layers.GRU(6, return_sequences=True)(layers.Embedding(11, 8)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.GRU(6, return_sequences=True)(x)))
    transfer(source, model, inputs=TOKENS)
    assert not diff(source, model, TOKENS)
    gru = model.layers[3]
    gru.cell.kernel.assign(2 * gru.cell.kernel)
    found = diff(source, model, TOKENS, step=False)
    assert found.first.kind == "gru"
    assert found.first.b == f"{model.layers[2].name}+{model.layers[3].name}"


def test_a_stack_of_two_directions_is_several_layers():
    source = nn.Sequential(nn.Embedding(11, 8), Last(nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)), nn.Linear(12, 2))
    inputs = keras.Input((6,), dtype="int64")
    x = layers.Embedding(11, 8)(inputs)
    for _ in range(2):
        x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    model = keras.Model(inputs, layers.Dense(2)(x))
    transfer(shuffled(source), model, inputs=TOKENS)
    for found in (diff(source, model, TOKENS), diff(model, source, TOKENS)):
        assert not found, str(found)


class Position(layers.Layer):
    def build(self, shape):
        self.position = self.add_weight(shape=(6, 8), name="position")

    def call(self, x):
        return x + self.position


def test_an_array_beside_the_layers_of_one_model_and_in_a_layer_of_the_other():
    source = shuffled(Embedded())
    inputs = keras.Input((6,), dtype="int64")
    x = Position(name="position")(layers.Embedding(11, 8)(inputs))
    model = keras.Model(inputs, layers.Dense(8)(layers.Dense(8)(layers.MultiHeadAttention(2, 4)(x, x))))
    position = model.get_layer("position").position
    position.assign(source.position.detach().numpy())
    transfer(source, model, inputs=TOKENS, skip=["Embedded", "position"])
    for found in (diff(source, model, TOKENS), diff(model, source)):
        assert not found, str(found)
        assert [row.verdict for row in found.rows if "position" in row.name] == ["unknown"]
    position.assign(2 * position)
    assert "in what is no known layer" in str(diff(source, model, TOKENS, step=False))


@pytest.mark.parametrize("activation", ["softmax", "exponential"])
def test_an_activation_that_torch_has_as_a_module_or_not_at_all(activation):
    found = diff(IMAGE, keras_images(), IMAGES, step=False)
    assert not found
    model = keras_images()
    model.layers[-1].activation = keras.activations.get(activation)
    for found in (diff(IMAGE, model, IMAGES, step=False), diff(model, IMAGE, step=False)):
        assert activation in str(found), str(found)
        assert found.first.name == "output"


# What is reported, and how models are named on the command line.


class Named(nn.Module):
    """Modules at paths, one after the other."""

    def __init__(self, modules):
        super().__init__()
        self.paths = list(modules)
        for path, module in modules.items():
            holder, *steps = self, *path.split(".")
            for step in steps[:-1]:
                if not hasattr(holder, step):
                    holder.add_module(step, nn.Module())
                holder = getattr(holder, step)
            holder.add_module(steps[-1], module)

    def forward(self, x):
        for path in self.paths:
            x = self.get_submodule(path)(x)
        return x


def test_the_report_as_table_page_and_dictionary(tmp_path):
    model = copy.deepcopy(IMAGE)
    attribute(1, eps=1e-3)(model)
    found = diff(IMAGE, model, IMAGES, names=("old <b>", "new"))
    sentence = str(found)
    assert sentence.startswith("old <b> and new part: 1: eps 1e-05 against 0.001 explains all of the 0.0")
    console = Console(width=150)
    with console.capture() as capture:
        console.print(found)
    table = capture.get()
    assert sentence in table
    assert "batch norm" in table
    assert table.count("follows") == 4
    names = {f"encoder.layers.{number}.self_attention.output": nn.Linear(2, 2) for number in (0, 1)}
    narrow = Console(width=80)
    with narrow.capture() as capture:
        narrow.print(diff(*(Named(names) for _ in range(2)), np.ones((3, 2), "float32")))
    column = "".join(line.split("│")[1].strip() for line in capture.get().splitlines() if line.startswith("│"))
    assert column == f"{''.join(names)}output"
    found.to_html(tmp_path / "diff.html")
    page = (tmp_path / "diff.html").read_text()
    assert page.count("<tr") == 1 + len(found.rows)
    assert "old &lt;b&gt;" in page
    assert "old <b>" not in page
    assert "http" not in page
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["parts"] is True
    assert plain["rows"][1]["causes"][0]["share"] == 1


def sound():
    return copy.deepcopy(IMAGE)


def broken():
    model = copy.deepcopy(IMAGE)
    swapped(model)
    return model


@pytest.fixture
def here(monkeypatch, tmp_path):
    """This module under a name that can be imported, and a folder with inputs."""
    monkeypatch.setitem(sys.modules, "the_models", sys.modules[__name__])
    np.save(tmp_path / "images.npy", IMAGES)
    np.savez(tmp_path / "images.npz", images=IMAGES)
    return tmp_path


def test_the_command(here, capsys):
    assert run("the_models:sound", "the_models:sound", [here / "images.npy"]) == 0
    assert "source and target agree" in capsys.readouterr().out
    status = run(
        "the_models:sound",
        "the_models:broken",
        [here / "images.npz"],
        pairs=["1=1"],
        html=here / "a.html",
        json=here / "a.json",
    )
    assert status == 1
    assert "scale and offset are swapped" in capsys.readouterr().out
    assert "swapped" in (here / "a.html").read_text()
    assert json.loads((here / "a.json").read_text())["models"] == ["source", "target"]


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_models_and_weights_from_files(here):
    torch.save(broken().state_dict(), here / "weights.pt")
    loaded = load_model(f"the_models:sound={here}/weights.pt")
    assert torch.equal(loaded[1].weight, broken()[1].weight)
    from safetensors.torch import save_file

    save_file(broken().state_dict(), here / "weights.safetensors")
    loaded = load_model(f"the_models:sound={here}/weights.safetensors")
    assert torch.equal(loaded[1].weight, broken()[1].weight)
    KERAS.save(here / "model.keras")
    model = load_model(f"{here}/model.keras")
    assert not diff(KERAS, model, step=False)
    KERAS.save_weights(here / "model.weights.h5")
    model = load_model(f"the_models:keras_network={here}/model.weights.h5")
    assert not diff(KERAS, model, step=False)
    assert [array.shape for array in load_inputs([here / "images.npy", here / "images.npz"])] == [IMAGES.shape] * 2


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


def test_what_the_command_refuses(here, capsys, monkeypatch):
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    torch.save({"weight": Evil()}, here / "evil.pt")
    torch.save({"x": torch.zeros(1)}, here / "other.pt")
    np.save(here / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    for text, words in {
        "checkpoint.pt": "holds arrays and no code that computes with them; name the function",
        "nothing": "names no model",
        "no_such_module:f": "cannot be imported",
        "the_models:no_such_function": "cannot be imported",
        "the_models:like": "cannot be called without arguments",
        "missing.keras": "does not exist",
        f"the_models:sound={here}/evil.pt": "holds no weights",
        f"the_models:sound={here}/other.pt": "are not of Sequential",
        f"the_models:sound={here}/missing.pt": "holds no weights",
    }.items():
        with pytest.raises(MigrationError, match=words):
            load_model(text)
    np.savez(here / "evil.npz", np.array([Evil()], dtype=object))
    (here / "broken.npz").write_bytes(b"PK\x03\x04 and nothing else")
    damaged = bytearray((here / "images.npz").read_bytes())
    damaged[300] ^= 255
    (here / "damaged.npz").write_bytes(damaged)
    for name in ("evil.npy", "evil.npz", "broken.npz", "damaged.npz"):
        with pytest.raises(MigrationError, match="no file of NumPy arrays"):
            load_inputs([here / name])
    for code, words in {
        "raise RuntimeError('no\\ndevice')": "RuntimeError: no device",
        "def f(:": "SyntaxError",
        "import sys; sys.exit(3)": "SystemExit: 3",
        "def f(): raise KeyError('x')": "cannot be called without arguments .KeyError",
    }.items():
        monkeypatch.delitem(sys.modules, "of_the_user", raising=False)
        (here / "of_the_user.py").write_text(code)
        importlib.invalidate_caches()
        with pytest.raises(MigrationError, match=words):
            load_model("of_the_user:f")
    with pytest.raises(MigrationError, match="its folder does not exist"):
        run("the_models:sound", "the_models:sound", [here / "images.npy"], html=here / "none" / "a.html")
    with pytest.raises(MigrationError, match="does not exist"):
        load_inputs([here / "missing.npy"])
    with pytest.raises(MigrationError, match="not of the form NAME=NAME"):
        run("the_models:sound", "the_models:sound", [here / "images.npy"], pairs=["1"])
    assert "code was run" not in capsys.readouterr().out


def test_what_diff_refuses():
    with pytest.raises(MigrationError, match="neither model declares the shape of its inputs"):
        diff(IMAGE, IMAGE)
    with pytest.raises(MigrationError, match="cannot run on the input of a, in no layout"):
        diff(IMAGE, shuffled(nn.Sequential(nn.Conv2d(7, 4, 3))), IMAGES)
    with pytest.raises(MigrationError, match="a cannot run on its input"):
        diff(shuffled(nn.Sequential(nn.Conv2d(7, 4, 3))), IMAGE, IMAGES)
    for nothing, words in ((IMAGES[:0], "is empty"), (np.full_like(IMAGES, np.nan), "no finite number")):
        with pytest.raises(MigrationError, match=words):
            diff(IMAGE, IMAGE, nothing)
    with pytest.raises(MigrationError, match="'nobody', which the first model does not call"):
        diff(IMAGE, copy.deepcopy(IMAGE), IMAGES, pairs={"nobody": "1"})
    with pytest.raises(MigrationError, match="neither a torch module nor a Keras"):
        diff(IMAGE, "model", IMAGES)


class Branches(nn.Module):
    """Two branches, called in either order, with names that tell nothing."""

    def __init__(self, turn):
        super().__init__()
        self.turn = turn
        names = ("long", "norm", "short", "head") if turn else ("a", "b", "c", "d")
        self.names = names
        made = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 3)
        for name, module in zip(names, made, strict=True):
            self.add_module(name, module)

    def forward(self, x):
        first, norm, short, head = (getattr(self, name) for name in self.names)
        if self.turn:
            side = short(x)
            return head(norm(first(x)) + side)
        return head(norm(first(x)) + short(x))


def test_branches_that_are_called_in_another_order():
    a, b = shuffled(Branches(False)), Branches(True).eval()
    b.load_state_dict(dict(zip(b.state_dict(), a.state_dict().values(), strict=True)))
    found = diff(a, b, IMAGES)
    assert not found, str(found)
    assert [row.name for row in found.rows] == ["a/long", "b/norm", "c/short", "d/head", "output"]
    b.norm.eps = 0.1
    named(diff(a, b, IMAGES, step=False), "b/norm", "eps 1e-05 against 0.1")


def test_pairs_that_the_user_names():
    a = shuffled(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    b = nn.Sequential(nn.Linear(4, 4), *copy.deepcopy(a))
    with torch.no_grad():
        b[0].weight.copy_(torch.eye(4))
        b[0].bias.zero_()
    x = RANDOM.standard_normal((5, 4))
    found = diff(a, b, x, pairs={"0": "1", "1": "2"})
    assert [row.verdict for row in found.rows] == ["unpaired", "agrees", "agrees", "agrees"]


def test_the_models_are_as_they_were():
    a, b = copy.deepcopy(IMAGE), broken()
    b[1].train()
    b[3].padding = (1, 1)  # what is wrong is put right in a new layer, which is initialized at random
    b.add_module("dropout", nn.Dropout(0.5))
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (a, b)]
    state = torch.get_rng_state()
    diff(a, b, IMAGES)
    for model, tensors in zip((a, b), before, strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [module.training for module in b.modules()].count(True) == 2
    assert b.dropout.p == 0.5
    assert torch.equal(state, torch.get_rng_state())
    model, padded = keras_network(groups=4), like(KERAS, keras_network(padding="valid"))
    state = random.getstate()
    values = [variable.numpy() for variable in model.variables]
    diff(KERAS, padded)
    diff(KERAS, model)
    assert random.getstate() == state
    assert all(np.array_equal(variable.numpy(), value) for variable, value in zip(model.variables, values, strict=True))
    assert not any("call" in vars(layer) for layer in model.layers)
