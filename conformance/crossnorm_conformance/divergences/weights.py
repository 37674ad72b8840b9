"""Reparametrized weights: spectral and weight normalization, weight standardization; and group norm's axes in flax."""

from functools import partial
from itertools import pairwise

import numpy as np

from . import divergence
from ._peers import jnp, keras, linen, nnx, tf, timm_layers, torch
from ._sightings import array, between, lost, near, normal, normalized, raises, ruined, same, worst


def _sigma(matrix):
    """The largest singular value."""
    return float(np.linalg.norm(array(matrix), 2))


def _keras_spectral(layer, shape, kernel=None):
    """Keras' wrapper about a layer, built for inputs of a shape, with a kernel and the same u every time."""
    wrapper = keras.layers.SpectralNormalization(layer)
    wrapper.build(shape)
    wrapper.vector_u.assign(normal(*wrapper.vector_u.shape))
    if kernel is not None:
        wrapper.kernel.assign(kernel)
    return wrapper


def _dense(kernel):
    """Keras' wrapper about a dense layer with this kernel of (inputs, outputs)."""
    return _keras_spectral(keras.layers.Dense(kernel.shape[1], use_bias=False), (None, kernel.shape[0]), kernel)


def _linear(kernel, normalize, **arguments):
    """torch's linear layer with Keras' kernel under one of torch's normalizations."""
    layer = torch.nn.Linear(*kernel.shape, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(kernel.T))
    return normalize(layer, **arguments)


def _spectral():
    return torch.nn.utils.parametrizations.spectral_norm


@divergence(
    55,
    "spectral_norm",
    ("torch", "keras"),
    "Keras' SpectralNormalization does nothing in inference: a fresh or loaded critic has the raw kernel and is no "
    "1-Lipschitz function until it has been trained, where torch's inference divides by sigma.",
)
def inference_without_normalization():
    kernel = normal(6, 8)
    effective = _dense(kernel)(np.eye(6, dtype="float32"), training=False)
    yield near("sigma, effective / raw: keras", _sigma(effective) / _sigma(kernel), 1)
    layer = _linear(kernel, _spectral()).eval()
    yield near("torch, effective", _sigma(layer.weight), 1, within=2e-2)


@divergence(
    56,
    "spectral_norm",
    ("torch", "keras"),
    "Every call with training=True overwrites Keras' kernel with its quotient: the function changes from call to call without "
    "any optimizer, and the trained weight is gone, where torch keeps it.",
)
def kernel_overwritten():
    kernel, eye = normal(6, 8), np.eye(6, dtype="float32")
    wrapper = _dense(kernel)
    outputs = [array(wrapper(eye, training=True)) for _ in range(3)]
    for call, (before, after) in enumerate(pairwise(outputs), start=1):
        yield between(f"keras, output moves from call {call} to {call + 1} by", worst(before, after), 1e-3, 10)
    yield between("kernel moved by", worst(wrapper.kernel, kernel), 0.1, 10)
    layer = _linear(kernel, _spectral())
    for _ in range(3):
        layer(torch.tensor(eye))
    yield near("torch, original moved by", worst(layer.parametrizations.weight.original.T, kernel), 0)


@divergence(
    57,
    "spectral_norm",
    ("torch", "keras"),
    "No gradient goes through sigma in Keras, nor is it divided by sigma: it is that of a plain layer with the quotient as "
    "its kernel, so the optimizer works on another problem than the paper's and torch's.",
    link="https://github.com/tensorflow/addons/issues/2414",
)
def gradient_through_sigma():
    kernel, x, upstream = normal(6, 8), normal(5, 6), normal(5, 8)
    wrapper = _dense(kernel)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(wrapper(x, training=True) * upstream)
    gradient = array(tape.gradient(loss, wrapper.kernel.value))
    plain = array(x).T @ array(upstream)
    yield near("keras, error against x'G", worst(gradient, plain), 0, within=1e-4)
    layer = _linear(kernel, _spectral())
    (layer(torch.tensor(x)) * torch.tensor(upstream)).sum().backward()
    u, v = (array(getattr(layer.parametrizations.weight[0], name)) for name in ("_u", "_v"))
    sigma = u @ array(kernel).T @ v
    wanted = (plain - (plain * array(kernel)).sum() / sigma * np.outer(v, u)) / sigma
    got = array(layer.parametrizations.weight.original.grad).T
    yield near("torch, against the paper's", worst(got, wanted), 0, within=1e-4)
    yield between("norm of keras' / torch's", np.linalg.norm(gradient) / np.linalg.norm(got), 1.5, 100)


@divergence(
    58,
    "spectral_norm",
    ("keras",),
    "trainable=False does not keep Keras' SpectralNormalization from rewriting its kernel in training: a frozen discriminator "
    "changes while the generator is trained.",
)
def frozen_kernel_overwritten():
    wrapper = _dense(normal(6, 8))
    wrapper.trainable = False
    wrapper(np.eye(6, dtype="float32"), training=True)
    yield same("trainable weights", len(wrapper.trainable_weights), 0)
    yield between("kernel moved by", worst(wrapper.kernel, normal(6, 8)), 0.1, 10)


@divergence(
    59,
    "spectral_norm",
    ("keras",),
    "SpectralNormalization about an Embedding casts its output to the dtype of the indices: integer ids give integers, zeros "
    "as a rule, and the layer cannot be trained on the input it is made for.",
)
def embedding_of_integers():
    wrapper = _keras_spectral(keras.layers.Embedding(5, 4), (None, 2), normal(5, 4, spread=0.1))
    ids = keras.ops.convert_to_tensor([[0, 1], [2, 3]], dtype="int32")
    y = wrapper(ids, training=False)
    yield same("output of int32 ids", y.dtype.name, "int32")
    yield near("its values", y, 0)
    y = wrapper(keras.ops.cast(ids, "float32"), training=False)
    yield between("the same from float ids, largest", np.abs(array(y)).max(), 1e-2, 1)


@divergence(
    60,
    "spectral_norm",
    ("torch", "keras"),
    "Keras keeps the last axis of every kernel: for a transposed convolution that is its input channels, where torch keeps "
    "the output channels, and for a depthwise one the multiplier: sigma is another number, and weights do not convert.",
)
def kept_axis():
    layers, images = keras.layers, (None, 8, 8, 4)
    transposed = _keras_spectral(layers.Conv2DTranspose(6, 3), images)
    depthwise = _keras_spectral(layers.DepthwiseConv2D(3, depth_multiplier=2), images)
    yield same("4 to 6 channels, 3x3: keras keeps", transposed.vector_u.shape[-1], 4)
    spectral, nn = _spectral(), torch.nn
    yield same("torch", len(spectral(nn.ConvTranspose2d(4, 6, 3)).parametrizations.weight[0]._u), 6)
    yield same("depthwise, 4 channels, multiplier 2: keras", depthwise.vector_u.shape[-1], 2)
    yield same("torch", len(spectral(nn.Conv2d(4, 8, 3, groups=4)).parametrizations.weight[0]._u), 8)


@divergence(
    61,
    "spectral_norm",
    ("torch", "keras"),
    "One power iteration updates v before u in Keras and in torch's hook, and u before v in torch's parametrization: with the "
    "same weight and the same u, the first two agree and the third does not.",
)
def order_of_iteration():
    kernel, u = normal(6, 8), normal(8)
    u /= np.linalg.norm(u)
    v = kernel @ u / np.linalg.norm(kernel @ u)
    wrapper, eye = _dense(kernel), np.eye(6, dtype="float32")
    wrapper.vector_u.assign(u[None])
    hook = _linear(kernel, torch.nn.utils.spectral_norm)
    hook.weight_u.copy_(torch.tensor(u))
    parametrized = _linear(kernel, _spectral())
    parametrized.parametrizations.weight[0]._u.copy_(torch.tensor(u))
    parametrized.parametrizations.weight[0]._v.copy_(torch.tensor(v))
    wanted = array(wrapper(eye, training=True))
    yield near("keras against the hook", worst(hook(torch.tensor(eye)), wanted), 0)
    yield between("against the parametrization", worst(parametrized(torch.tensor(eye)), wanted), 1e-3, 1)


@divergence(
    62,
    "spectral_norm",
    ("torch",),
    "Reading .weight of torch's parametrization in training runs a power iteration each time: two readings differ, so logging "
    "or tying a weight changes the training. The hook's does not.",
)
def weight_that_moves_when_read():
    kernel = normal(6, 8)
    layer = _linear(kernel, _spectral())
    with torch.no_grad():
        layer.parametrizations.weight[0]._v.copy_(torch.eye(6)[0])
    yield between("parametrization, two readings differ by", worst(layer.weight, layer.weight), 1e-3, 10)
    layer = _linear(kernel, torch.nn.utils.spectral_norm)
    layer(torch.ones(1, 6))
    yield near("hook", worst(layer.weight, layer.weight), 0)


@divergence(
    63,
    "spectral_norm",
    ("torch",),
    "A checkpoint of torch's spectral norm hook does not load into its parametrization; one of the weight norm hook does, and "
    "none goes the other way: old GAN checkpoints need a converter.",
)
def checkpoints_of_hooks():
    kernel, utils = normal(6, 8), torch.nn.utils
    loads = {}
    for name in ("spectral_norm", "weight_norm"):
        hook, new = (_linear(kernel, getattr(module, name)) for module in (utils, utils.parametrizations))
        loads[f"{name}, parametrization into hook"] = partial(hook.load_state_dict, new.state_dict())
        loads[f"{name}, hook into parametrization"] = partial(new.load_state_dict, hook.state_dict())
    loading = loads.pop("weight_norm, hook into parametrization")
    for what, load in loads.items():
        yield raises(what, RuntimeError, load)
    yield same("weight_norm, hook into parametrization, keys missing", loading().missing_keys, [])


@divergence(
    64,
    "spectral_norm",
    ("torch",),
    "Inference before any training gives a spectral norm of one under torch's parametrization, which runs 15 iterations when "
    "it is applied, and a far larger one under its hook.",
)
def inference_before_training():
    kernel = normal(6, 8)
    yield near("parametrization, sigma", _sigma(_linear(kernel, _spectral()).eval().weight), 1, within=2e-2)
    hook = _linear(kernel, torch.nn.utils.spectral_norm).eval()
    hook(torch.ones(1, 6))
    yield between("hook", _sigma(hook.weight), 1.2, 1e4)


@divergence(
    65,
    "weight_norm",
    ("torch", "keras", "flax"),
    "A weight of zeros is NaN under torch's spectral and weight norm and finite under Keras' spectral norm and both of "
    "flax's: a residual branch that starts at zero kills the model in torch.",
    link="https://github.com/pytorch/pytorch/issues/19126",
)
def zero_weight():
    kernel, x = np.zeros((6, 8), "float32"), np.ones((2, 6), "float32")
    for name in ("spectral_norm", "weight_norm"):
        layer = _linear(kernel, getattr(torch.nn.utils.parametrizations, name))
        yield lost(f"torch's {name}", layer(torch.tensor(x)))
    yield near("keras' spectral norm", _dense(kernel)(x, training=True), 0)
    dense = linen.Dense(8, kernel_init=linen.initializers.zeros)
    for name, wrapper, arguments in (
        ("spectral", linen.SpectralNorm(dense), {"update_stats": True}),
        ("weight", linen.WeightNorm(dense), {}),
    ):
        y, _ = wrapper.init_with_output(_key(), x, **arguments)
        yield near(f"flax's {name} norm", y, 0)


def _key():
    return nnx.Rngs(0).params()


@divergence(
    66,
    "weight_norm",
    ("torch",),
    "dim=-1 of torch's weight norm means the whole tensor, with one gain, and of its spectral norm the last axis: another "
    "method than asked for, without a word.",
)
def negative_dim():
    parametrizations, kernel = torch.nn.utils.parametrizations, normal(8, 4)
    for dim, shape in ((-1, ()), (1, (1, 8)), (0, (4, 1))):
        gain = _linear(kernel, parametrizations.weight_norm, dim=dim).parametrizations.weight.original0
        yield same(f"weight norm of 4x8, dim {dim}: gain", tuple(gain.shape), shape)
    layer = _linear(kernel, parametrizations.spectral_norm, dim=-1)
    yield same("spectral norm, dim -1: u", len(layer.parametrizations.weight[0]._u), 8)


@divergence(
    67,
    "weight_norm",
    ("torch",),
    "torch's weight norm of a transposed convolution has one gain per input channel, its spectral norm one u per output "
    "channel: the same module is normalized along two axes.",
)
def transposed_convolution():
    parametrizations, layer = torch.nn.utils.parametrizations, torch.nn.ConvTranspose2d
    gain = parametrizations.weight_norm(layer(3, 8, 2)).parametrizations.weight.original0
    yield same("3 to 8 channels: weight norm's gain", tuple(gain.shape), (3, 1, 1, 1))
    yield same("spectral norm's u", len(parametrizations.spectral_norm(layer(3, 8, 2)).parametrizations.weight[0]._u), 8)


@divergence(
    68,
    "spectral_norm",
    ("flax",),
    "nnx.SpectralNorm overwrites the kernel with its quotient in inference too: evaluating a model changes it.",
    link="https://github.com/google/flax/issues/5576",
)
def evaluation_that_writes():
    dense = nnx.Linear(6, 8, use_bias=False, rngs=nnx.Rngs(0))
    dense.kernel[...] = jnp.asarray(normal(6, 8))
    layer = nnx.SpectralNorm(dense, rngs=nnx.Rngs(0))
    before = _sigma(dense.kernel[...])
    layer(np.ones((1, 6), "float32"), update_stats=False)
    yield between("sigma of the stored kernel, after / before one evaluation", _sigma(dense.kernel[...]) / before, 0.01, 0.9)


@divergence(
    69,
    "weight_norm",
    ("flax",),
    "nnx.WeightNorm's scale is no parameter, so it gets no gradient and is never trained; and it starts at one, so that "
    "wrapping a layer changes its function.",
    link="https://github.com/google/flax/issues/5577",
)
def scale_that_is_no_parameter():
    dense = nnx.Linear(6, 8, use_bias=False, rngs=nnx.Rngs(0))
    x = normal(2, 6)
    before = array(dense(x))
    layer = nnx.WeightNorm(dense, rngs=nnx.Rngs(0))
    yield between("output moves by wrapping", worst(layer(x), before), 1e-2, 10)
    parameters = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))]
    yield same("parameters", parameters, ["layer_instance/kernel"])


@divergence(
    70,
    "group_norm",
    ("flax",),
    "nnx.GroupNorm with reduction_axes of its own is wrong without a word, and linen's is right: a causal or per-position "
    "group norm, ported from one to the other, is another function.",
)
def group_norm_over_chosen_axes():
    x, arguments = normal(2, 6, 6, 6), {"num_groups": 2, "reduction_axes": (-1,), "use_fast_variance": False}
    wanted = normalized(x.reshape(2, 6, 6, 2, 3), (4,), 1e-6).reshape(x.shape)
    layer = nnx.GroupNorm(6, rngs=nnx.Rngs(0), **arguments)
    yield ruined("over the channels of each position: nnx, error", worst(layer(x), wanted), 0.1)
    y, _ = linen.GroupNorm(**arguments).init_with_output(_key(), x)
    yield near("linen", worst(y, wanted), 0, within=1e-4)


def _timm_weight(kind, channels, weight):
    """The effective weight of one of timm's convolutions, (output, input, height, width), from its answer to unit images."""
    layer = getattr(timm_layers("std_conv"), kind)(channels, weight.shape[0], weight.shape[2], padding=0, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    rows = array(layer(torch.eye(weight[0].size).reshape(-1, *weight.shape[1:])))
    return rows[:, :, 0, 0].T.reshape(weight.shape)


def _centred(weight):
    return array(weight) - array(weight).mean((1, 2, 3), keepdims=True)


@divergence(
    71,
    "weight_standardization",
    ("timm",),
    "timm standardizes by the biased deviation, as the authors' TensorFlow lines do, and the authors' PyTorch lines by the "
    "unbiased one: weights differ by 1.4 % at a fan-in of 36 and by 6 % in a depthwise 3x3 convolution.",
)
def standardization_estimator():
    for channels, size in ((4, 36), (1, 9)):
        weight = normal(8, channels, 3, 3)
        biased, unbiased = (_centred(weight) / (weight.std((1, 2, 3), ddof=ddof, keepdims=True) + 1e-5) for ddof in (0, 1))
        found = _timm_weight("StdConv2d", channels, weight)
        yield near(f"fan-in {size}: timm / unbiased formula", found / unbiased, np.sqrt(size / (size - 1)), within=1e-3)
        yield near("/ biased formula", found / biased, 1, within=1e-3)


@divergence(
    72,
    "weight_standardization",
    ("timm",),
    "timm's scaled standardization adds its epsilon to the variance, the NFNets' own formula bounds variance times fan-in "
    "from below: the same small weights come out 66 % larger in timm.",
)
def standardization_of_small_weights():
    for spread, wanted in ((1.0, 1.0), (1e-4, 1e-2 / 6 / np.sqrt(1e-8 + 1e-6))):
        weight = normal(8, 4, 3, 3)
        weight = (spread * _centred(weight) / weight.std((1, 2, 3), keepdims=True)).astype("float32")
        formula = _centred(weight) / np.sqrt(np.maximum(array(weight).var((1, 2, 3), keepdims=True) * 36, 1e-4))
        ratio = _timm_weight("ScaledStdConv2d", 4, weight) / formula
        yield near(f"spread {spread:g}: timm / NFNets' formula", np.median(ratio), wanted, within=1e-3)


@divergence(
    73,
    "weight_standardization",
    ("timm",),
    "A fan-in of one, that of a 1x1 depthwise convolution, is an error in timm, by batch norm's rule about one value per "
    "channel, where the formula gives zeros.",
)
def standardization_of_one_value():
    weight = normal(8, 1, 1, 1)
    for kind in ("StdConv2d", "ScaledStdConv2d"):
        yield raises(kind, ValueError, lambda kind=kind: _timm_weight(kind, 1, weight))
