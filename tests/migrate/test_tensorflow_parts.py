"""A Keras model is taken apart into named parts; what cannot be taken apart is listed, and never lost."""

import keras
import numpy as np
import pytest

import crossnorm.tensorflow
from crossnorm.errors import MigrationError
from crossnorm.migrate._parts import parts, put
from crossnorm.migrate._settings import Attention, Recurrent

layers = keras.layers

# Keras' default needs a decomposition that TensorFlow has not in bfloat16.
PLAIN = {"recurrent_initializer": "glorot_uniform"}
IMAGE, SEQUENCE = (2, 9, 9, 4), (2, 5, 4)
KINDS = {
    "dense": (lambda: layers.Dense(3), SEQUENCE),
    "dense without bias": (lambda: layers.Dense(3, use_bias=False), SEQUENCE),
    "convolution": (lambda: layers.Conv2D(6, (3, 2), groups=2), IMAGE),
    "convolution, depthwise": (lambda: layers.DepthwiseConv2D((3, 2), depth_multiplier=2), IMAGE),
    "convolution, separable": (lambda: layers.SeparableConv1D(6, 3, depth_multiplier=2), SEQUENCE),
    "transposed_convolution": (lambda: layers.Conv2DTranspose(6, (3, 2)), IMAGE),
    "embedding": (lambda: layers.Embedding(5, 3), (2, 5)),
    "prelu": (lambda: layers.PReLU(shared_axes=[1, 2]), IMAGE),
    "lstm": (lambda: layers.Bidirectional(layers.LSTM(3, **PLAIN)), SEQUENCE),
    "lstm without bias": (lambda: layers.LSTM(3, use_bias=False, **PLAIN), SEQUENCE),
    "gru": (lambda: layers.GRU(3, **PLAIN), SEQUENCE),
    "gru of the old kind": (lambda: layers.GRU(3, reset_after=False, **PLAIN), SEQUENCE),
    "batch_norm": (lambda: layers.BatchNormalization(), IMAGE),
    "group_norm": (lambda: crossnorm.tensorflow.GroupNormalization(2), IMAGE),
    "layer_norm": (lambda: layers.LayerNormalization(axis=(-2, -1)), IMAGE),
    "weight_norm": (lambda: crossnorm.tensorflow.WeightNormalization(layers.Conv2DTranspose(6, (3, 2))), IMAGE),
    "weight_norm of rows": (lambda: crossnorm.tensorflow.WeightNormalization(layers.DepthwiseConv2D((3, 2))), IMAGE),
    "spectral_norm": (lambda: layers.SpectralNormalization(layers.Conv2D(3, 2)), IMAGE),
    "weight_standardization": (
        lambda: crossnorm.tensorflow.WeightStandardization(layers.SeparableConv2D(6, 3, depth_multiplier=2)),
        IMAGE,
    ),
}


def built(kind):
    make, shape = KINDS[kind]
    return keras.Sequential([keras.Input(shape[1:], shape[0]), make()])


def random_arrays(part, seed=0):
    random = np.random.default_rng(seed)
    return {name: np.asarray(random.uniform(0.5, 1.5, a.shape)).astype(a.dtype) for name, a in part.arrays.items()}


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_float16", "bfloat16"], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("policy")
def test_arrays_are_read_and_written_bit_for_bit(kind):
    model = built(kind)
    found = parts(model)
    assert {part.kind for part in found} == {kind.split()[0].rstrip(",")}
    written = []
    for i, part in enumerate(found):
        arrays = random_arrays(part, i)
        for counted_nowhere in {"batches_tracked"} & arrays.keys():
            arrays[counted_nowhere] = part.arrays[counted_nowhere]
        if part.kind == "lstm" and part.settings.bias:
            arrays["recurrent_bias"][...] = 0
        part.write(arrays)
        written.append(arrays)
    again = parts(model)
    for part, arrays in zip(again, written, strict=True):
        assert part.arrays.keys() == arrays.keys()
        for name, array in arrays.items():
            assert (part.arrays[name].dtype, part.arrays[name].tobytes()) == (array.dtype, array.tobytes()), name
        assert part.trainable == {name for name, held in part.variables.items() if any(v.trainable for v in held)}
    assert {id(v) for part in again for held in part.variables.values() for v in held} >= {
        id(v) for v in model.trainable_weights
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_moment_is_arranged_as_its_array_is(kind):
    model = built(kind)
    for i, part in enumerate(parts(model)):
        part.write({name: array for name, array in random_arrays(part, i).items() if name != "recurrent_bias"})
    for part in parts(model):
        assert part.arrange.keys() >= part.trainable
        for name, arrange in part.arrange.items():
            (variable,) = part.variables[name]
            stored = np.array(variable.numpy())
            assert arrange(stored).tobytes() == part.arrays[name].tobytes()
            stored.fill(0)
            put(stored, arrange, part.arrays[name])
            assert arrange(stored).tobytes() == part.arrays[name].tobytes()


def test_attention():
    inputs = [keras.Input((5, 6)), keras.Input((7, 3)), keras.Input((7, 4))]
    attention = layers.MultiHeadAttention(2, 3, value_dim=5, output_shape=8)
    model = keras.Model(inputs, attention(inputs[0], inputs[1], inputs[2]))
    (part,) = parts(model)
    assert part.settings == Attention(inputs=(6, 4, 3), heads=2, key_size=3, value_size=5, outputs=8)
    arrays = random_arrays(part)
    part.write(arrays)
    (again,) = parts(model)
    assert all(again.arrays[name].tobytes() == array.tobytes() for name, array in arrays.items())


def test_names_are_paths_and_shared_layers_come_once():
    shared = layers.Dense(3, name="shared")
    inner = keras.Sequential([keras.Input((3,)), shared, layers.LayerNormalization(name="norm")], name="inner")
    inputs = keras.Input((4, 3))
    x = layers.TimeDistributed(inner, name="each")(shared(inputs))
    x = layers.Dropout(0.5)(layers.Bidirectional(layers.LSTM(2, name="lstm"), name="both")(x))
    found = parts(keras.Model(inputs, x, name="outer"))
    names = [part.name for part in found]
    assert names == ["shared", "each.inner.norm", "both.forward_lstm", "both.backward_lstm"]
    assert found[-1].settings == Recurrent(kind="lstm", inputs=3, units=2, reverse=True)
    assert [part.name for part in parts(shared)] == ["Dense"]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [layers.Dense(3, name="same"), layers.Dense(3, name="same")]
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def test_subclassed_models_are_walked_and_equal_names_numbered():
    model = Subclassed()
    model(np.ones((2, 3), np.float32))
    assert [part.name for part in parts(model)] == ["same", "same_2", "norm"]


def test_axes_follow_the_data_format():
    convolution = layers.Conv2D(3, 2, data_format="channels_first")
    convolution.build((None, 4, 9, 9))
    norm = layers.BatchNormalization(axis=1)
    norm.build((None, 4, 9, 9))
    assert [parts(layer)[0].axis for layer in (convolution, norm)] == [1, 1]
    assert [part.axis for part in parts(built("convolution"))] == [-1]


class Doubled(layers.Dense):
    def call(self, x):
        return 2 * super().call(x)


class Token(layers.Layer):
    def build(self, shape):
        self.token = self.add_weight(shape=(3,), name="token")
        self.count = self.add_weight(shape=(), dtype="int64", trainable=False, name="count", initializer="zeros")
        self.seed = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + self.token


@pytest.mark.parametrize(
    ("make", "shape", "names"),
    [
        (lambda: Doubled(2), SEQUENCE, {"kernel", "bias"}),
        (Token, (2, 3), {"token"}),
        (lambda: layers.EinsumDense("abc,cd->abd", (None, 3)), SEQUENCE, {"kernel"}),
        (lambda: layers.SimpleRNN(3), SEQUENCE, {"kernel", "recurrent_kernel", "bias"}),
        (lambda: layers.PReLU(), IMAGE, {"alpha"}),
        (lambda: layers.Dense(2, lora_rank=1), (2, 4), {"kernel", "bias", "lora_kernel_a", "lora_kernel_b"}),
    ],
)
def test_what_is_not_known_is_listed(make, shape, names):
    layer = make()
    layer.build(shape)
    (part,) = parts(layer)
    assert part.kind == "unknown"
    assert {name.removeprefix("simple_rnn_cell_") for name in part.arrays} == names
    assert dict(part.settings.arrays) == {name: array.shape for name, array in part.arrays.items()}


def test_attention_that_torch_has_not_is_listed():
    inputs = keras.Input((5, 6))
    for layer in (layers.GroupQueryAttention(4, 4, 2), layers.MultiHeadAttention(2, 3, output_shape=(2, 3))):
        model = keras.Model(inputs, layer(inputs, inputs))
        found = parts(model)
        assert {part.kind for part in found} == {"unknown"}
        assert {id(v) for part in found for held in part.variables.values() for v in held} == {id(v) for v in model.weights}


def test_a_recurrent_layer_with_one_wrapped_kernel_is_listed():
    wrapper = crossnorm.tensorflow.WeightNormalization(layers.LSTM(3), kernel="kernel")
    wrapper.build(SEQUENCE)
    found = parts(wrapper)
    assert [part.kind for part in found] == ["weight_norm", "unknown"]
    assert found[1].arrays.keys() == {"lstm_cell_recurrent_kernel", "lstm_cell_bias"}


def test_frozen_layers_are_not_trainable():
    model = built("batch_norm")
    assert parts(model)[0].trainable == {"scale", "offset"}
    model.trainable = False
    assert parts(model)[0].trainable == set()


@pytest.mark.parametrize("model", [layers.Dense(3), keras.Sequential([layers.Dense(3)]), Subclassed()])
def test_what_is_not_built_is_refused_by_name(model):
    with pytest.raises(MigrationError, match=r"(dense|sequential|subclassed)\w*'.*not built; call the model once"):
        parts(model)
