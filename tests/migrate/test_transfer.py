"""Whole models, in both directions: every kind of layer arrives, every layer is proved, and what cannot arrive is refused."""

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
    "an unknown kind": (
        lambda: nn.Sequential(Unknown()), lambda: nn.Sequential(Unknown()), X[:, :3], "source 0: Unknown cannot be taken apart",
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
