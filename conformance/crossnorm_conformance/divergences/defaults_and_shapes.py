"""Defaults and shapes: epsilons, which axes are normalized, and what the parameters look like."""

import warnings

import numpy as np

from . import divergence
from ._child import on_backend
from ._peers import keras, nnx, onnx_model, onnxruntime, run_onnxruntime, run_reference, torch
from ._sightings import array, between, near, normal, normalized, raises, same, worst


@divergence(
    26,
    "layer_norm",
    ("torch", "keras", "flax"),
    "Layer norm's default epsilon is 1e-5 in torch, 1e-3 in Keras and 1e-6 in flax: 'with defaults', activations of a small "
    "spread are scaled differently, by a factor of three at 0.01.",
)
def default_epsilon():
    x = normal(8, 64)
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    for spread in (0.1, 0.01):
        y = array(torch.nn.LayerNorm(64)(torch.tensor(x * spread)))
        theirs = array(keras.layers.LayerNormalization()(x * spread)), array(nnx.LayerNorm(64, rngs=nnx.Rngs(0))(x * spread))
        for name, other, eps in zip(("keras", "flax"), theirs, (1e-3, 1e-6), strict=True):
            wanted = np.sqrt((spread**2 + 1e-5) / (spread**2 + eps))
            yield near(f"spread {spread}: {name} / torch", other.std() / y.std(), wanted, within=1e-4)


@divergence(
    27,
    "rms_norm",
    ("torch", "keras", "flax"),
    "torch's RMSNorm without an epsilon takes float32's machine epsilon, for halves too, and float64's for doubles, where "
    "Keras and flax take 1e-6: an export has to say the number.",
    link="https://github.com/pytorch/pytorch/issues/155527",
)
def epsilon_none():
    layer = torch.nn.RMSNorm(4)
    # y = x / sqrt(x^2 + eps), solved for eps; in a half precision, the rounding of y is the error that is left.
    for name, size, kind, within in (
        ("float16", 3e-4, np.float32, 3e-3),
        ("bfloat16", 3e-4, np.float32, 3e-2),
        ("float32", 3e-4, np.float32, 1e-4),
        ("float64", 1e-8, np.float64, 1e-4),
    ):
        x = torch.full((1, 4), size, dtype=getattr(torch, name))
        y = layer.to(x.dtype)(x)
        yield near(f"torch {name}", array(x)[0, 0] ** 2 * (1 / array(y)[0, 0] ** 2 - 1), np.finfo(kind).eps, within)
    x = np.full((1, 4), 1e-3, "float32")
    for name, other in (("keras", keras.layers.RMSNormalization()), ("flax", nnx.RMSNorm(4, rngs=nnx.Rngs(0)))):
        yield near(name, 1e-6 * (1 / array(other(x))[0, 0] ** 2 - 1), 1e-6, within=1e-4)


@divergence(
    28,
    "instance_norm",
    ("torch",),
    "torch's InstanceNorm1d takes a matrix for one unbatched instance of (channel, length): rows are normalized, as by layer "
    "norm, with a warning about the number of features at most, and with none where the matrix is square.",
)
def matrix_as_one_instance():
    x = torch.tensor(normal(4, 6, mean=5.0))
    rows = torch.nn.functional.layer_norm(x, (6,))
    for channels, matrix in ((6, x), (4, x[:, :4])):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y = torch.nn.InstanceNorm1d(channels, affine=matrix.shape[0] == channels)(matrix)
        rows = torch.nn.functional.layer_norm(matrix, matrix.shape[1:])
        shape = "x".join(map(str, matrix.shape))
        yield near(f"InstanceNorm1d({channels}) of {shape}, error against layer norm of rows", worst(y, rows), 0)
        yield same("warnings", len(caught), int(channels == 6))


@divergence(
    29,
    "batch_norm",
    ("torch", "keras"),
    "torch's BatchNorm1d normalizes axis 1 of three, and says nothing where the length equals the number of features: a Keras "
    "model of (batch, length, channel), ported without a transpose, normalizes time.",
)
def channels_last_sequence():
    x = normal(4, 5, 6, mean=np.arange(30.0).reshape(5, 6))
    y = torch.nn.BatchNorm1d(5)(torch.tensor(x))
    yield near("torch, error against statistics over batch and axis 2", worst(y, normalized(x, (0, 2), 1e-5)), 0, within=1e-4)
    y = keras.layers.BatchNormalization()(x, training=True)
    yield near("keras, over batch and axis 1", worst(y, normalized(x, (0, 1), 1e-3)), 0, within=1e-4)


@divergence(
    30,
    "group_norm",
    ("torch", "keras"),
    "One value per group raises in torch for a batch of one, and gives noise for a batch of two, where Keras gives the offset "
    "exactly: the behaviour depends on the size of the batch.",
)
def one_value_per_group():
    x = normal(2, 64, mean=5.0)
    layer = torch.nn.GroupNorm(64, 64)
    yield raises("torch, batch of one", ValueError, lambda: layer(torch.tensor(x[:1])))
    yield between("of two, largest output", np.abs(array(layer(torch.tensor(x)))).max(), 1e-9, 1e-2)
    yield same("keras", float(np.abs(array(keras.layers.GroupNormalization(64)(x))).max()), 0.0)


@divergence(
    31,
    "instance_norm",
    ("torch", "keras"),
    "torch's instance norm raises for an image of one pixel, in inference too, and Keras' group norm of one channel each "
    "gives the offset: an image pyramid or a tile of the wrong size crashes one of the two.",
)
def one_pixel():
    x = normal(2, 3, 1, 1, mean=5.0)
    layer = torch.nn.InstanceNorm2d(3).eval()
    yield raises("torch, in inference", ValueError, lambda: layer(torch.tensor(x)))
    yield near("keras", keras.layers.GroupNormalization(-1, axis=1)(x, training=False), 0)


@divergence(
    32,
    "rms_norm",
    ("keras",),
    "LayerNormalization(rms_scaling=True) divides by the standard deviation about the mean, not by the root mean square: a "
    "checkpoint of such 'RMS' layers is none of RMSNormalization.",
)
def rms_scaling():
    x = normal(4, 64, mean=10.0)
    y = keras.layers.LayerNormalization(rms_scaling=True)(x)
    wanted = x / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    yield near("mean 10, spread 1: output / (x / deviation)", array(y) / wanted, 1, within=1e-4)
    yield between("largest output", array(y).max(), 10, 20)
    yield between("of RMSNormalization", array(keras.layers.RMSNormalization()(x)).max(), 1, 1.5)


@divergence(
    33,
    "layer_norm",
    ("torch", "keras"),
    "Layer norm over an image has weights of (channel, height, width) in torch and (height, width, channel) in Keras: they "
    "need a transpose, and a flat copy fits in shape where the three sizes agree, and is wrong.",
)
def weights_over_an_image():
    x, weight, bias = normal(2, 3, 3, 3), *normal(2, 3, 3, 3)[::-1]
    torch_layer = torch.nn.LayerNorm((3, 3, 3))
    torch_layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    wanted = array(torch_layer(torch.tensor(x))).transpose(0, 2, 3, 1)
    layer = keras.layers.LayerNormalization(axis=(1, 2, 3), epsilon=1e-5)
    layer.build((2, 3, 3, 3))
    for name, order, low, high in (("transposed", (1, 2, 0), 0, 1e-5), ("copied flat", (0, 1, 2), 0.1, 100)):
        layer.set_weights([weight.transpose(order), bias.transpose(order)])
        yield between(f"{name}, keras against torch", worst(layer(x.transpose(0, 2, 3, 1)), wanted), low, high)


@divergence(
    34,
    "layer_norm",
    ("torch", "flax"),
    "flax's layer norm over two axes keeps one scale per feature, torch's one per element: neither state converts without a "
    "broadcast.",
)
def parameters_of_two_axes():
    layer = nnx.LayerNorm(6, reduction_axes=(-2, -1), rngs=nnx.Rngs(0))
    x = normal(2, 4, 6)
    yield near("flax, error against statistics over both", worst(layer(x), normalized(x, (1, 2), 1e-6)), 0)
    yield same("its scale", tuple(layer.scale.shape), (6,))
    yield same("torch", tuple(torch.nn.LayerNorm((4, 6)).weight.shape), (4, 6))


@divergence(
    35,
    "batch_norm",
    ("torch", "keras"),
    "Keras can learn an offset without a scale, torch cannot: BatchNorm1d(affine=False, bias=True) has no parameters, so the "
    "port needs a scale of one that is frozen.",
)
def offset_without_scale():
    layer = keras.layers.BatchNormalization(scale=False)
    layer.build((2, 3))
    yield same("keras learns", [weight.name for weight in layer.trainable_weights], ["beta"])
    layer = torch.nn.BatchNorm1d(3, affine=False, bias=True)
    yield same("torch", [name for name, _ in layer.named_parameters()], [])


@divergence(
    36,
    "group_norm",
    ("onnx", "onnxruntime"),
    "ONNX' GroupNormalization scales per group in opset 18 and per channel in 21: a per-channel layer has no opset-18 form.",
)
def group_norm_opsets():
    x = normal(2, 6, 4)
    scales = {18: np.array([1.0, 3.0], "float32"), 21: np.arange(1.0, 7.0, dtype="float32")}
    for opset, scale in scales.items():
        feeds = {"x": x, "scale": scale, "bias": np.zeros_like(scale)}
        model = onnx_model("GroupNormalization", feeds, outputs=1, opset=opset, num_groups=2, epsilon=1e-5)
        wanted = normalized(x.reshape(2, 2, 3, 4), (2, 3), 1e-5).reshape(2, 6, 4) * np.repeat(scale, 6 // scale.size)[:, None]
        what = f"opset {opset}, scale of {scale.size} for 2 groups, 6 channels"
        yield near(f"{what}: ONNX reference, error", worst(run_reference(model, feeds)[0], wanted), 0)
        yield near("onnxruntime", worst(run_onnxruntime(model, feeds)[0], wanted), 0)
    model = onnx_model("GroupNormalization", feeds, outputs=1, opset=18, num_groups=2, epsilon=1e-5)
    yield raises("opset 18, scale of 6: ONNX reference", TypeError, lambda: run_reference(model, feeds))
    refusal = onnxruntime.capi.onnxruntime_pybind11_state.Fail
    yield raises("onnxruntime", refusal, lambda: run_onnxruntime(model, feeds))


@divergence(
    77,
    "rms_norm",
    ("keras", "keras on torch"),
    "On Keras' torch backend, layer and RMS normalization over a leading axis raise, or normalize the last axis instead where "
    "its size is the same, without a word.",
    link="https://github.com/keras-team/keras/pull/23510",
)
def leading_axis_on_torch():
    for name, seen in on_backend("torch")["leading axis"].items():
        yield same(f"{name}(axis=1) of 2x3x4x5", seen["raised"], "RuntimeError")
        yield near("of 2x4x4, error against the last axis", seen["last axis"], 0)
        yield between("against axis 1", seen["axis 1"], 0.1, 10)
    x = normal(2, 4, 4)
    y = keras.layers.LayerNormalization(axis=1)(x)
    yield near("layer norm on TensorFlow, against axis 1", worst(y, normalized(x, (1,), 1e-3)), 0)
