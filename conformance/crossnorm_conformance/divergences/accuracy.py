"""Accuracy in float32: the largest error of an output against float64, on data of spread one about a mean far from zero.

A mean of 1e4 is itself known to 1e-3 only, so errors of that size are the input's rounding. The bands are wide: the digits
depend on the order of additions, which is the processor's.
"""

import numpy as np

from . import divergence
from ._child import on_backend
from ._peers import keras, nnx, onnx_model, run_onnxruntime, torch
from ._sightings import array, between, near, normal, normalized, ruined, worst

SHAPE, GROUPS = (4, 8, 32, 32), 4
# A sound layer's error grows with the mean, E[x^2] - E[x]^2 has one that grows with its square: at least so much at each mean.
SOUND, UNSOUND = 2e-6, {1e2: 1e-3, 1e3: 5e-2, 1e4: 1.0}


def _grouped(x):
    """Group norm of (batch, channel, ...) in float64, epsilon 1e-5."""
    split = x.reshape(x.shape[0], GROUPS, -1)
    return normalized(split, (2,), 1e-5).reshape(x.shape)


def _group_norm(mean, layout):
    """torch's group norm in a memory layout: its errors in the output and, relative to the largest, in both gradients."""
    layer = torch.nn.GroupNorm(GROUPS, SHAPE[1])
    x = torch.tensor(normal(*SHAPE, mean=mean)).contiguous(memory_format=layout).requires_grad_()
    upstream = torch.tensor(normal(*SHAPE)).flip(0).contiguous(memory_format=layout)
    y = layer(x)
    y.backward(upstream)
    exact = torch.nn.GroupNorm(GROUPS, SHAPE[1]).double()
    twin = x.detach().double().contiguous().requires_grad_()
    exact(twin).backward(upstream.double().contiguous())
    pairs = ((x.grad, twin.grad), (layer.weight.grad, exact.weight.grad))
    return worst(y, _grouped(array(x))), *(worst(got, wanted) / np.abs(array(wanted)).max() for got, wanted in pairs)


@divergence(
    37,
    "group_norm",
    ("torch",),
    "torch's group norm on the CPU loses all digits at a mean of 1000 spreads once the input is channels_last, and is sound "
    "on contiguous input: a memory format decides whether the output means anything.",
    link="https://github.com/pytorch/pytorch/issues/51102",
)
def group_norm_layout():
    for mean, least in UNSOUND.items():
        yield between(f"mean {mean:g}: contiguous", _group_norm(mean, torch.contiguous_format)[0], 0, SOUND * mean)
        yield ruined("channels_last", _group_norm(mean, torch.channels_last)[0], least)


@divergence(
    38,
    "group_norm",
    ("torch",),
    "The gradients of torch's group norm on the CPU, at a mean of 1000 spreads, are off by percents and more on channels_last "
    "input and by less than a thousandth on contiguous input.",
    link="https://github.com/pytorch/pytorch/issues/140913",
)
def group_norm_gradients():
    sound, unsound = (_group_norm(1e3, layout)[1:] for layout in (torch.contiguous_format, torch.channels_last))
    for name, small, large in zip(("x", "gamma"), sound, unsound, strict=True):
        yield between(f"gradient of {name}: contiguous", small, 0, 1e-3)
        yield ruined("channels_last", large, 1e-2)


@divergence(
    39,
    "batch_norm",
    ("torch",),
    "torch's batch norm on the CPU is many times less exact on channels_last input than on contiguous input.",
)
def batch_norm_layout():
    for mean in (1e3, 1e4):
        x = torch.tensor(normal(16, 4, 32, 32, mean=mean))
        wanted, layer = normalized(array(x), (0, 2, 3), 1e-5), torch.nn.BatchNorm2d(4)
        sound, unsound = worst(layer(x), wanted), worst(layer(x.contiguous(memory_format=torch.channels_last)), wanted)
        yield between(f"mean {mean:g}: contiguous", sound, 0, SOUND * mean)
        yield between("channels_last / contiguous", unsound / sound, 4, 1e3)


@divergence(
    40,
    "batch_norm",
    ("keras on torch", "keras on jax"),
    "Keras' batch and group norm lose all digits on its torch backend at a mean of 1000 spreads and are NaN at 10000, where "
    "the same model on JAX is right: the torch backend computes E[x^2] - E[x]^2.",
    link="https://github.com/keras-team/keras/issues/18795",
)
def keras_on_torch_offsets():
    torch_errors, jax_errors = (on_backend(backend)["offsets"] for backend in ("torch", "jax"))
    for layer in ("batch", "group"):
        for i, (mean, least) in enumerate(UNSOUND.items()):
            yield between(f"{layer} norm, mean {mean:g}: on JAX", jax_errors[layer][i], 0, SOUND * mean)
            yield ruined("on torch", torch_errors[layer][i], least)


@divergence(
    41,
    "batch_norm",
    ("keras on torch",),
    "On Keras' torch backend, data of mean 3000 and spread 0.5 gives negative moving variances and NaN in training and in "
    "inference: one layer on raw temperatures or time stamps ruins the model.",
    link="https://github.com/keras-team/keras/issues/20713",
)
def keras_on_torch_negative_variance():
    seen = on_backend("torch")["negative variance"]
    yield between("true variance 0.25; least moving variance", seen["least"], -100, -0.1)
    yield between("greatest", seen["greatest"], 0.5, 100)
    yield between("share of NaN in training", seen["nan in training"], 0.01, 0.99)
    yield between("in inference", seen["nan in inference"], 0.01, 0.99)


def _keras_errors(mean, **arguments):
    """The errors of Keras' batch, group and layer norm, on the TensorFlow backend."""
    x, eps = normal(32, 8, 8, 16, mean=mean), 1e-3
    split = x.reshape(32, 8, 8, GROUPS, 4)
    return {
        "batch": worst(keras.layers.BatchNormalization(**arguments)(x, training=True), normalized(x, (0, 1, 2), eps)),
        "group": worst(keras.layers.GroupNormalization(GROUPS)(x), normalized(split, (1, 2, 4), eps).reshape(x.shape)),
        "layer": worst(keras.layers.LayerNormalization()(x), normalized(x, (3,), eps)),
    }


@divergence(
    42,
    "batch_norm",
    ("keras",),
    "Keras' batch, group and layer norm on TensorFlow stay within a few times the input's own rounding up to a mean of 10000 "
    "spreads: the sound side of what its torch backend and its synchronized batch norm lose.",
)
def keras_on_tensorflow_offsets():
    for mean in (1e2, 1e3, 1e4):
        for name, error in _keras_errors(mean).items():
            yield between(f"mean {mean:g}, {name}", error, 0, SOUND * mean)


@divergence(
    43,
    "batch_norm",
    ("keras",),
    "synchronized=True makes Keras' batch norm lose all digits at a mean of 1000 spreads, even on one device, by E[x^2] - "
    "E[x]^2: turning the switch on changes what is computed.",
)
def synchronized_offsets():
    for mean, least in UNSOUND.items():
        yield between(f"mean {mean:g}: plain", _keras_errors(mean)["batch"], 0, SOUND * mean)
        yield ruined("synchronized", _keras_errors(mean, synchronized=True)["batch"], least)


def _flax_errors(mean, **arguments):
    """The errors of flax's batch, layer and group norm."""
    x, eps = normal(8, 8, 8, 16, mean=mean), 1e-6
    arguments |= {"rngs": nnx.Rngs(0), "epsilon": eps}
    split = x.reshape(8, 8, 8, GROUPS, 4)
    group = nnx.GroupNorm(16, num_groups=GROUPS, **arguments)
    return {
        "batch": worst(nnx.BatchNorm(16, use_running_average=False, **arguments)(x), normalized(x, (0, 1, 2), eps)),
        "layer": worst(nnx.LayerNorm(16, **arguments)(x), normalized(x, (3,), eps)),
        "group": worst(group(x), normalized(split, (1, 2, 4), eps).reshape(x.shape)),
    }


@divergence(
    44,
    "layer_norm",
    ("flax",),
    "flax's batch, layer and group norm compute E[x^2] - E[x]^2 by default and lose all digits at a mean of 1000 spreads: raw "
    "pixels or time stamps come out as noise.",
)
def flax_fast_variance():
    for mean, least in UNSOUND.items():
        for name, error in _flax_errors(mean).items():
            yield ruined(f"mean {mean:g}, {name}", error, least)


@divergence(
    45,
    "layer_norm",
    ("flax",),
    "use_fast_variance=False makes flax's norms as exact as any other's: it has to be asked for, and no checkpoint says so.",
)
def flax_two_pass_variance():
    for mean in UNSOUND:
        for name, error in _flax_errors(mean, use_fast_variance=False).items():
            yield between(f"mean {mean:g}, {name}", error, 0, SOUND * mean)


@divergence(
    46,
    "group_norm",
    ("onnxruntime",),
    "onnxruntime's group norm loses all digits at a mean of 1000 spreads and is NaN or noise at 10000, where its layer and "
    "instance norm are sound: an exported model is worse than the one that was trained.",
)
def onnxruntime_group_norm():
    for mean, least in UNSOUND.items():
        x = normal(2, 8, 32, 32, mean=mean)
        cases = {
            "layer": ("LayerNormalization", 32, 17, {"axis": -1}, normalized(x, (3,), 1e-5)),
            "instance": ("InstanceNormalization", 8, 22, {}, normalized(x, (2, 3), 1e-5)),
            "group": ("GroupNormalization", 8, 21, {"num_groups": GROUPS}, _grouped(x)),
        }
        for name, (operator, size, opset, attributes, wanted) in cases.items():
            feeds = {"x": x, "scale": np.ones(size, "float32"), "bias": np.zeros(size, "float32")}
            model = onnx_model(operator, feeds, outputs=1, opset=opset, epsilon=1e-5, **attributes)
            error = worst(run_onnxruntime(model, feeds)[0], wanted)
            what = f"mean {mean:g}, {name}"
            yield ruined(what, error, least) if name == "group" else between(what, error, 0, SOUND * mean)


@divergence(
    48,
    "group_norm",
    ("torch",),
    "A constant channel of 10000 comes out of torch's batch and group norm as some hundredths, and of its layer norm as zero: "
    "a dead channel adds an offset of its own.",
)
def constant_channel():
    x = torch.full((4, 4, 8, 8), 1e4) + torch.tensor([0.1])
    for name, layer in (("batch norm", torch.nn.BatchNorm2d(4)), ("group norm", torch.nn.GroupNorm(2, 4))):
        yield between(name, np.abs(array(layer(x))).max(), 1e-4, 10)
    yield near("layer norm", torch.nn.LayerNorm((8, 8))(x), 0)
