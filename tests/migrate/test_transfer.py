"""Whole models, in both directions: every kind of layer arrives, every layer is proved, and what cannot arrive is refused."""

import random
import re
from itertools import pairwise

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
    def __init__(self, heads=2, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, heads, batch_first=True, **options)

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


def generator():
    """Numbers that become an image, behind a normalization."""
    torch_model = nn.Sequential(
        nn.Linear(5, 64, bias=False), nn.BatchNorm1d(64, eps=1e-3), nn.ReLU(), nn.Unflatten(1, (4, 4, 4)),
        nn.ConvTranspose2d(4, 3, 4, 2, 1),
    )  # fmt: skip
    keras_model = functional(
        (5,), layers.Dense(64, use_bias=False), layers.BatchNormalization(), layers.ReLU(), layers.Reshape((4, 4, 4)),
        layers.Conv2DTranspose(3, 4, 2, padding="same"),
    )  # fmt: skip
    return torch_model, keras_model


def autoencoder():
    """One dense layer that takes an image and gives one."""
    torch_model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 18), nn.Tanh(), nn.Unflatten(1, (2, 3, 3)), nn.Conv2d(2, 3, 2),
        nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    keras_model = functional(
        (5, 5, 3), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(18, activation="tanh"), layers.Reshape((3, 3, 2)),
        layers.Conv2D(3, 2), layers.Flatten(), layers.Dense(4),
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


def tagger(cell, torch_cell):
    """The last step of a sequence is what counts; torch gives all of them."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = torch_cell(5, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    return Tagger(), functional((7, 5), cell(4), layers.Dense(3))


def stacked():
    torch_model = nn.Sequential(Last(nn.LSTM(5, 4, num_layers=2, batch_first=True)))
    return torch_model, functional((7, 5), layers.LSTM(4, return_sequences=True), layers.LSTM(4, return_sequences=True))


MODELS = {
    "convolutional": convolutional,
    "generator": generator,
    "autoencoder": autoencoder,
    "convolution 1d": lambda: linear(nn.Conv1d(4, 6, 3, stride=2, groups=2), layers.Conv1D(6, 3, strides=2, groups=2), (9, 4)),
    "convolution 3d": lambda: linear(nn.Conv3d(2, 3, (1, 2, 3)), layers.Conv3D(3, (1, 2, 3)), (4, 5, 6, 2)),
    "dilated": lambda: linear(nn.Conv2d(2, 3, 3, dilation=2), layers.Conv2D(3, 3, dilation_rate=2), (7, 7, 2)),
    "transposed": lambda: linear(nn.ConvTranspose2d(3, 4, 3, stride=2), layers.Conv2DTranspose(4, 3, strides=2), (5, 5, 3)),
    "depthwise": lambda: linear(nn.Conv2d(3, 6, 3, groups=3), layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 3)),
    "separable": separable,
    "recurrent": recurrent,
    "stacked": stacked,
    "last step of an LSTM": lambda: tagger(layers.LSTM, nn.LSTM),
    "last step of a GRU": lambda: tagger(layers.GRU, nn.GRU),
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
        for weight in model.weights:
            if weight.dtype == "float32":
                weight.assign(RANDOM.uniform(0.2, 1.2, weight.shape) / max(1, np.prod(weight.shape[:-1])) ** 0.5)


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
    elif y.ndim > 3:
        y = np.moveaxis(y, -1, 1)
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


# What is refused, and that nothing was written then.


class Functional(nn.Module):
    """Two convolutions with something between them that is no module."""

    def __init__(self, between, channels=4):
        super().__init__()
        self.first, self.second, self.between = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, 1), between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.table


class Tied(nn.Module):
    """A dense layer whose weight is the table of an embedding."""

    def __init__(self, tied):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


class Shared(nn.Module):
    """One layer called twice."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 4)

    def forward(self, x):
        return self.dense(torch.tanh(self.dense(x)))


class Branches(nn.Module):
    """Two layers of one shape side by side; nothing but their use tells which is which."""

    def __init__(self, swapped=False):
        super().__init__()
        self.one, self.two, self.swapped = nn.Linear(4, 4), nn.Linear(4, 4), swapped

    def forward(self, x):
        if self.swapped:
            second, first = self.two(x), self.one(x)
        else:
            first, second = self.one(x), self.two(x)
        return torch.sigmoid(first) * second


def dense(*sizes, **options):
    return nn.Sequential(*(nn.Linear(a, b, **options) for a, b in pairwise(sizes)))


def lazily():
    return nn.Sequential(nn.LazyLinear(3))


X = torch.tensor(RANDOM.standard_normal((4, 4)), dtype=torch.float32)
IMAGE = torch.tensor(RANDOM.standard_normal((2, 3, 5, 5)), dtype=torch.float32)
IDS = torch.tensor([[1, 2, 6], [0, 3, 3]])


def with_nan():
    model = dense(4, 4)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    return model


REFUSED = {
    "a missing activation": (
        lambda: Functional(torch.relu), lambda: Functional(lambda x: x), IMAGE, "what reaches them differs",
    ),
    "another activation behind the last layer": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()), X,
        "all layers agree, and the outputs",
    ),
    "another stride": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1, stride=2)), lambda: nn.Sequential(nn.Conv2d(3, 4, 1)), IMAGE,
        "they differ in stride (2, 2) against (1, 1)",
    ),
    "another eps": (
        lambda: nn.Sequential(nn.LayerNorm(4, eps=1e-2)), lambda: nn.Sequential(nn.LayerNorm(4)), X, "eps 0.01 against 1e-05",
    ),
    "other heads": (
        lambda: SelfAttention(2), lambda: SelfAttention(4), torch.zeros(2, 3, 8), "heads 2 against 4",
    ),
    "a lazy module": (lazily, lambda: dense(4, 3), X, "lazy"),
    "no counterpart": (lambda: dense(4, 4, 3), lambda: dense(4, 4), X, "source 1: dense with weight (3, 4), bias (3,)"),
    "no bias": (lambda: dense(4, 4), lambda: dense(4, 4, bias=False), X, "does not fit"),
    "digits that would be lost": (lambda: dense(4, 4).double(), lambda: dense(4, 4), X, "would be rounded to the float32"),
    "halves": (lambda: dense(4, 4), lambda: dense(4, 4).half(), X, "would be rounded to the float16"),
    "a NaN": (with_nan, lambda: dense(4, 4), X, "gives NaN or infinity"),
    "a tie that is none in the source": (lambda: Tied(False), lambda: Tied(True), IDS, "is tied to that of another part"),
    "inputs of another shape": (
        lambda: dense(4, 4), lambda: dense(4, 4), X[:, :3], "the source cannot be run on inputs of shapes [(4, 3)]",
    ),
    "no shape declared": (lambda: dense(4, 4), lambda: dense(4, 4), None, "declares the shape of its inputs"),
    "strings": (lambda: dense(4, 4), lambda: dense(4, 4), np.array(["a"]), "holds no numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_proved_is_undone(case):
    make_source, make_target, inputs, words = REFUSED[case]
    source, target = make_source(), make_target()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()} if "lazy" not in case else {}
    with pytest.raises(MigrationError) as caught:
        transfer(source, target, inputs=inputs)
    assert words in str(caught.value)
    for name, tensor in before.items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_one_model_is_not_two():
    model = dense(4, 4)
    with pytest.raises(MigrationError, match="the same model"):
        transfer(model, model, inputs=X)


def test_an_unbuilt_model_says_so():
    with pytest.raises(MigrationError, match="is not built"):
        transfer(dense(4, 4), keras.Sequential([layers.Dense(4)]), inputs=X)


def test_a_layer_of_another_library_is_refused():
    with pytest.raises(MigrationError, match="neither a torch module nor a Keras"):
        transfer(dense(4, 4), object(), inputs=X)


def test_the_order_of_execution_counts_and_not_that_of_definition():
    """The names are other ones, the shapes are the same, and the second model defines its layers the other way round."""

    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.b, self.a = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return torch.sigmoid(self.a(x)) * self.b(x)

    report = transfer(Branches(), Reversed(), inputs=X)
    assert [(row.source, row.target) for row in report.rows] == [("one", "a"), ("two", "b"), ("output", "output")]


def test_a_wrong_pair_by_order_is_found_by_the_proof():
    """Both branches are called in the other order here: by the order they are swapped, and the product is not symmetric."""

    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            second, first = self.b(x), self.a(x)
            return torch.sigmoid(first) * second

    source, target = Branches(), Swapped()
    before = target.a.weight.detach().clone()
    with pytest.raises(MigrationError, match="the outputs of the models differ"):
        transfer(source, target, inputs=X)
    assert torch.equal(target.a.weight, before)
    report = transfer(source, target, {"one": "a", "two": "b"}, inputs=X)
    assert report.worst <= VERDICT
    assert torch.equal(target.a.weight, source.one.weight)


def test_shared_layers_have_a_row_for_each_call():
    report = transfer(Shared(), Shared(), inputs=X)
    assert [row.source for row in report.rows] == ["dense", "dense", "output"]


def test_ties_in_one_model_are_noted():
    report = transfer(Tied(True), Tied(False), inputs=IDS)
    assert any("embedding.weight and head.weight are tied in the source only" in note for note in report.notes)
    assert not any("tied" in note for note in transfer(Tied(True), Tied(True), inputs=IDS).notes)


def test_what_trains_otherwise_is_noted():
    source = nn.Sequential(nn.BatchNorm1d(4, momentum=0.5))
    target = nn.Sequential(crossnorm.torch.BatchNorm1d(4, running_variance="biased"))
    target[0].weight.requires_grad_(False)
    notes = "\n".join(transfer(source, target, inputs=X).notes)
    assert "training will differ in decay 0.5 against 0.9: 0" in notes
    assert "running_variance 'unbiased' against 'biased': 0" in notes
    assert "what is trainable differs: 0" in notes
    assert "transfer_optimizer" in notes


def test_a_new_head_stays_out():
    source, target = dense(4, 5, 3), dense(4, 5, 7)
    head = target[1].weight.detach().clone()
    with pytest.raises(MigrationError, match="all layers agree, and the outputs"):
        transfer(source, target, skip=["1"], inputs=X)
    target = nn.Sequential(target[0], nn.ReLU())
    source = nn.Sequential(source[0], nn.ReLU())
    assert transfer(source, target, inputs=X).worst <= VERDICT
    assert head.shape == (7, 5)


def test_halves_into_halves():
    source, target = dense(4, 6, 4).half(), dense(4, 6, 4).half()
    assert transfer(source, target, inputs=X).worst <= VERDICT
    assert torch.equal(source[0].weight, target[0].weight)


def test_halves_into_floats_are_noted():
    report = transfer(dense(4, 4).half(), dense(4, 4), inputs=X.half())
    assert any("fewer digits became wider" in note for note in report.notes)


def test_the_models_stay_in_their_modes_and_keep_their_statistics():
    source, target = (nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)) for _ in range(2))
    source.train()
    target.eval()
    source[0].running_mean.fill_(3.0)
    transfer(source, target, inputs=X)
    assert source.training
    assert source[1].training
    assert not target.training
    assert source[0].running_mean.tolist() == target[0].running_mean.tolist() == [3.0] * 4
    assert all(parameter.grad is None for parameter in source.parameters())


def test_a_report_is_a_table():
    text = str(transfer(dense(4, 3), dense(4, 3), inputs=X))
    assert "dense" in text
    assert "1 layers moved" in text


def test_a_subclassed_keras_model():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.body, self.head = layers.Dense(5, activation="relu"), layers.Dense(2)

        def call(self, x):
            return self.head(self.body(x))

    target = Model()
    target(np.zeros((1, 4), "float32"))
    source = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    assert transfer(source, target, inputs=X).worst <= VERDICT
    np.testing.assert_allclose(target(tf.constant(X.numpy())), source(X).detach(), rtol=1e-5, atol=1e-6)


def test_the_two_biases_of_torch_are_noted():
    torch_model, keras_model = stacked()
    assert any("two biases" in note for note in transfer(torch_model, keras_model).notes)


def test_half_computation_is_named_where_the_proof_fails():
    source = nn.Sequential(nn.Linear(4, 3))
    target = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype="mixed_float16")])
    with pytest.raises(MigrationError, match="what they compute in, float32 against float16"):
        transfer(source, target, inputs=X)


def test_a_progress_bar_is_drawn_on_stderr(capsys):
    transfer(dense(4, 4), dense(4, 4), inputs=X, progress=True)
    captured = capsys.readouterr()
    assert "copying" in captured.err
    assert captured.out == ""
    transfer(dense(4, 4), dense(4, 4), inputs=X)
    assert capsys.readouterr().err == ""


# What a proof must not overlook, and what it must not refuse.


class Heads(nn.Module):
    """Three outputs, of which the last two are computed in one order or the other."""

    def __init__(self, names):
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.Linear(4, 4))

    def forward(self, x):
        outputs = {name: getattr(self, name)(x) for name in self.names}
        return tuple(outputs[name] for name in sorted(outputs))


def test_all_outputs_are_compared():
    """By the order of execution the two last heads are swapped, and every layer agrees with its pair."""
    target = Heads(["t1", "t3", "t2"])
    before = target.t2.weight.detach().clone()
    with pytest.raises(MigrationError, match="in output 1"):
        transfer(Heads(["s1", "s2", "s3"]), target, inputs=X)
    assert torch.equal(target.t2.weight, before)
    report = transfer(Heads(["s1", "s2", "s3"]), Heads(["t1", "t2", "t3"]), inputs=X)
    assert [row.source for row in report.rows if row.kind == "model"] == ["output", "output 1", "output 2"]


def test_outputs_that_only_one_model_has_are_noted():
    report = transfer(nn.LSTM(4, 3, batch_first=True), functional((5, 4), layers.LSTM(3, return_sequences=True)))
    assert any("1 of 3 outputs were compared" in note for note in report.notes)


def flattening():
    torch_model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.Flatten(), nn.Linear(36, 5))
    keras_model = functional((5, 5, 3), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(5))
    return torch_model, keras_model


def test_a_flattening_that_zeros_hide_is_refused():
    source, target = flattening()
    nn.init.zeros_(source[1].weight)
    before = target.get_weights()
    with pytest.raises(MigrationError, match="the same in several orders"):
        transfer(source, target)
    for one, other in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    # Where the weights do not care either there is nothing to know.
    nn.init.constant_(source[3].weight, 0.5)
    assert transfer(source, target).worst <= VERDICT


def test_an_image_that_zeros_hide_is_refused():
    source, target = generator()
    nn.init.zeros_(source[1].weight)
    with pytest.raises(MigrationError, match="the same in several orders"):
        transfer(source, target)


def test_zeros_that_hide_what_stands_around_them_are_noted():
    source, target = dense(4, 4, 4), dense(4, 4, 4)
    nn.init.zeros_(source[0].weight)
    nn.init.zeros_(source[0].bias)
    assert any("nothing but zeros comes out of 0:" in note for note in transfer(source, target, inputs=X).notes)


def word_tagger(batch_first, entries=9):
    return nn.Sequential(nn.Embedding(entries, 6), Last(nn.LSTM(6, 4, batch_first=batch_first)), nn.Linear(4, 3))


def keras_word_tagger(entries=9, **options):
    steps = layers.Embedding(entries, 6, **options), layers.LSTM(4, return_sequences=True), layers.Dense(3)
    return functional((None,), *steps, dtype="int32")


@pytest.mark.parametrize("given", [False, True])
def test_the_batch_may_lie_behind_the_steps(given):
    words = RANDOM.integers(0, 9, (3, 5))
    source, target = word_tagger(batch_first=False), keras_word_tagger()
    inputs, target_inputs = (words.T, words) if given else (None, None)
    assert transfer(source, target, inputs=inputs, target_inputs=target_inputs).worst <= VERDICT
    np.testing.assert_allclose(source(torch.tensor(words.T)).detach().swapaxes(0, 1), target(words), rtol=1e-5, atol=1e-6)
    assert transfer(keras_word_tagger(), source, inputs=words if given else None).worst <= VERDICT


@pytest.mark.parametrize("batch_first", [False, True])
def test_the_last_step_of_a_sequence(batch_first):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 4, batch_first=batch_first), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1] if batch_first else self.lstm(x.swapaxes(0, 1))[0][-1])

    for source, target in (
        (Classifier(), functional((7, 6), layers.LSTM(4), layers.Dense(2))),
        (functional((7, 6), layers.LSTM(4), layers.Dense(2)), Classifier()),
    ):
        report = transfer(source, target)
        assert report.worst <= VERDICT
        assert not any("trainable" in note for note in report.notes)


def test_a_mask_in_one_model_only_is_seen():
    with pytest.raises(MigrationError, match="part by"):
        transfer(word_tagger(batch_first=True, entries=5000), keras_word_tagger(5000, mask_zero=True))


def test_both_directions_of_a_layer_are_called():
    source, target = recurrent()
    assert not any("not called" in note for note in transfer(source, target).notes)


def test_names_that_keras_made_by_counting_are_no_names():
    keras.backend.clear_session()
    source = functional((4,), layers.Dense(4), layers.Dense(4))
    keras.backend.clear_session()
    layers.Dense(1)
    target = functional((4,), layers.Dense(4), layers.Dense(4))
    assert source.layers[2].name == target.layers[1].name
    assert transfer(source, target).worst <= VERDICT


def test_the_first_layer_that_runs_says_where_the_channels_lie():
    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(4, 2), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

    def keras_model():
        return functional((6, 6, 3), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(2))

    assert transfer(HeadFirst(), keras_model()).worst <= VERDICT
    assert transfer(keras_model(), HeadFirst()).worst <= VERDICT


def test_an_activation_that_cannot_be_undone_leaves_the_worst_error_a_number():
    source, target = nn.Sequential(nn.Linear(4, 3), nn.GELU()), functional((4,), layers.Dense(3, activation="gelu"))
    report = transfer(source, target)
    assert np.isnan(report.rows[0].units)
    assert 0 <= report.worst <= VERDICT


def test_inputs_of_any_make():
    assert transfer(dense(4, 4).bfloat16(), dense(4, 4).bfloat16(), inputs=X.bfloat16()).worst <= VERDICT
    assert transfer(dense(4, 4), dense(4, 4), inputs=X.to_sparse()).worst <= VERDICT
    for bad in (X[:0], keras.Input((4,)), {"x": X}):
        with pytest.raises(MigrationError, match="inputs: "):
            transfer(dense(4, 4), dense(4, 4), inputs=bad)


def test_arguments_of_the_wrong_kind():
    with pytest.raises(MigrationError, match="is no dictionary"):
        transfer(dense(4, 4), dense(4, 4), [("0", "0")], inputs=X)
    with pytest.raises(MigrationError, match="skip names 'head'"):
        transfer(dense(4, 4), dense(4, 4), skip="head", inputs=X)


def test_an_embedding_that_shrinks_its_weight_when_it_is_called_stays_as_it_was():
    source = nn.Sequential(nn.Embedding(7, 4, max_norm=0.1))
    before = source[0].weight.detach().clone()
    with pytest.raises(MigrationError, match="source 0"):
        transfer(source, nn.Sequential(nn.Embedding(7, 4)), inputs=IDS)
    assert torch.equal(source[0].weight, before)


def test_a_graph_that_waits_for_its_backward_pass_is_left_alone():
    source = nn.Sequential(nn.BatchNorm1d(4)).eval()
    loss = source(X.clone().requires_grad_()).sum()
    transfer(source, nn.Sequential(nn.BatchNorm1d(4)), inputs=X)
    loss.backward()


def test_the_seeds_of_later_layers_are_those_they_would_have_been():
    source, target = (functional((4,), layers.Dropout(0.5), layers.Dense(3)) for _ in range(2))
    before = random.getstate()
    transfer(source, target)
    assert random.getstate() == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_of_the_proof_undoes_the_copy(error):
    class Failing(nn.Module):
        """Runs a few times only."""

        def __init__(self):
            super().__init__()
            self.dense, self.runs = nn.Linear(4, 4), [0]

        def forward(self, x):
            self.runs[0] += 1
            if self.runs[0] > 2:
                raise error("broken")
            return self.dense(x)

    target = dense(4, 4)
    before = target[0].weight.detach().clone()
    with pytest.raises(MigrationError if error is RuntimeError else error, match="broken"):
        transfer(Failing(), target, inputs=X)
    assert torch.equal(target[0].weight, before)


def test_an_optimizer_follows_the_weights_of_an_image():
    """The state of the dense layer behind which an image begins is put in the order of its rows."""
    source, target = generator()
    disturb(source)
    report = transfer(source, target)
    moved, _ = report.pairs[0]
    np.testing.assert_array_equal(moved.arrays["weight"], target.layers[1].kernel.numpy().T)
    np.testing.assert_array_equal(moved.arrange["weight"](source[0].weight.detach().numpy()), moved.arrays["weight"])
    assert not np.array_equal(moved.arrays["weight"], source[0].weight.detach().numpy())


class Repeated(nn.Module):
    """One layer several times, whose output does not matter."""

    def __init__(self, times):
        super().__init__()
        self.dense, self.times = nn.Linear(4, 4), times

    def forward(self, x):
        y = x
        for _ in range(self.times):
            y = self.dense(y)
        return x + 0 * y


class Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 4)

    def forward(self, x):
        self.dense(x)


def expanded():
    """A weight all of whose rows are one."""
    model = dense(4, 4)
    model[0].weight.data = torch.ones(1, 4).expand(4, 4)
    return model


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (lambda: Repeated(1), lambda: Repeated(2), "target dense is called more often than source dense"),
        (Silent, Silent, "Silent gives no tensor"),
        (lambda: dense(4, 4), expanded, "target 0 cannot be overwritten in place"),
        (lambda: torch.jit.script(dense(4, 4)), lambda: dense(4, 4), "is compiled by TorchScript"),
        (lambda: dense(4, 4).to(torch.float8_e4m3fn), lambda: dense(4, 4), "in torch.float8_e4m3fn"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_models_that_cannot_be_compared(source, target, words):
    with pytest.raises(MigrationError, match=words):
        transfer(source(), target(), inputs=X)


def test_an_encoder_with_a_mask_of_padding():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(9, 8)
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

        def forward(self, x):
            return self.encoder(self.words(x), src_key_padding_mask=x == 0)

    assert transfer(Encoder(), Encoder(), inputs=torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]])).worst <= VERDICT
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_negative_zero_comes_back():
    target = functional((5, 4), layers.LSTM(3, return_sequences=True), layers.Activation("tanh"))
    bias = target.layers[1].cell.bias
    bias.assign(np.full(bias.shape, -0.0))
    with pytest.raises(MigrationError, match="was undone"):
        transfer(Last(nn.LSTM(4, 3, batch_first=True)), target)
    assert np.signbit(bias.numpy()).all()


def test_a_layer_of_unknown_kind_moves_within_one_framework():
    source, target = nn.Sequential(Unknown(), nn.Linear(3, 2)), nn.Sequential(Unknown(), nn.Linear(3, 2))
    with torch.no_grad():
        source[0].table.copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert transfer(source, target, inputs=X[:, :3]).worst <= VERDICT
    assert target[0].table.tolist() == [1.0, 2.0, 3.0]


def test_a_layer_of_unknown_kind_does_not_move_between_frameworks():
    target = functional((3,), layers.EinsumDense("ab,b->ab", (3,)))
    with pytest.raises(MigrationError, match="source 0: Unknown cannot be taken apart") as caught:
        transfer(nn.Sequential(Unknown()), target, inputs=X[:, :3])
    assert "target einsum_dense: EinsumDense cannot be taken apart" in re.sub(r"_\d+", "", str(caught.value))
