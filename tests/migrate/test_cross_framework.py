"""From torch to Keras and back, and the other way: the specification is the same, the arrays are, and what is computed is."""

import keras
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import crossnorm.tensorflow
import crossnorm.torch
from crossnorm.errors import Unsupported
from crossnorm.migrate import build, describe

T, L = crossnorm.torch, keras.layers
K = crossnorm.tensorflow
STEPS = {"r_max_steps": (1, 3), "d_max_steps": (0, 4)}

# A torch module, and the shape of an input.
MODULES = {
    "batch": (lambda: nn.BatchNorm2d(3, momentum=0.25), (4, 3, 5, 6)),
    "batch, features": (lambda: nn.BatchNorm1d(3, eps=1e-3), (6, 3)),
    "batch, length": (lambda: nn.BatchNorm1d(3, momentum=None), (4, 3, 5)),
    "batch, plain": (lambda: nn.BatchNorm3d(3, affine=False), (2, 3, 2, 3, 2)),
    "batch, untracked": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 6)),
    "batch, ours": (lambda: T.BatchNorm2d(3, running_variance="biased", single_value="zero"), (4, 3, 5, 6)),
    "layer": (lambda: nn.LayerNorm(5), (4, 3, 5)),
    "layer, two axes": (lambda: nn.LayerNorm((3, 5), eps=0.1, bias=False), (4, 3, 5)),
    "group": (lambda: nn.GroupNorm(2, 6), (3, 6, 4, 5)),
    "instance": (lambda: nn.InstanceNorm2d(3), (4, 3, 5, 6)),
    "instance, tracked": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (4, 3, 7)),
    "rms": (lambda: nn.RMSNorm((3, 5)), (4, 3, 5)),
    "renorm": (lambda: T.BatchRenorm2d(3, **STEPS), (4, 3, 5, 6)),
    "renorm, two pairs": (lambda: T.BatchRenorm1d(3, renorm_decay=0.7, **STEPS), (4, 3, 7)),
    "renorm, variance": (lambda: T.BatchRenorm1d(3, running_quantity="unbiased_variance", **STEPS), (6, 3)),
    "switchable": (lambda: T.SwitchableNorm2d(3, last_gamma=True, pooled=True), (4, 3, 5, 6)),
    "switchable, features": (lambda: T.SwitchableNorm1d(3, use_instance=False), (6, 3)),
    "response": (lambda: T.FilterResponseNorm2d(3, learned_eps="channel"), (4, 3, 5, 6)),
    "response, elements": (
        lambda: T.FilterResponseNorm2d(3, learned_eps="scalar", threshold="element", spatial=(5, 6)),
        (4, 3, 5, 6),
    ),
    "standardization": (lambda: T.weight_standardization(nn.Conv2d(4, 6, 3, padding=1), scale=True, gain=1.7), (2, 4, 5, 6)),
    "standardization, groups": (lambda: T.weight_standardization(nn.Conv1d(4, 6, 3, groups=2), ddof=1), (2, 4, 7)),
    "standardization, depthwise": (lambda: T.weight_standardization(nn.Conv2d(4, 8, 3, groups=4, bias=False)), (2, 4, 5, 6)),
    "spectral": (lambda: parametrizations.spectral_norm(nn.Linear(4, 6), n_power_iterations=2), (3, 4)),
    "spectral, transposed": (lambda: parametrizations.spectral_norm(nn.ConvTranspose2d(4, 6, 4, 2, 1)), (2, 4, 5, 6)),
    "spectral, hook": (lambda: nn.utils.spectral_norm(nn.Conv1d(4, 6, 3, dilation=2, padding="same")), (2, 4, 7)),
    "spectral, embedding": (lambda: parametrizations.spectral_norm(nn.Embedding(7, 4)), None),
    "spectral, ours": (lambda: T.spectral_norm(nn.ConvTranspose1d(4, 6, 3), iterate="always", warm_up=2), (2, 4, 7)),
    "spectral, u": (lambda: T.spectral_norm(nn.Embedding(7, 4), stored="u"), None),
    "length": (lambda: parametrizations.weight_norm(nn.Conv3d(4, 6, 2)), (2, 4, 3, 3, 2)),
    "length, transposed": (lambda: parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3)), (2, 4, 5, 6)),
    "length, whole": (lambda: parametrizations.weight_norm(nn.Linear(4, 6, bias=False), dim=None), (3, 4)),
    "length, ours": (lambda: T.weight_norm(nn.Conv2d(4, 6, 1, stride=2), eps=1e-3, eps_place="added_to_square"), (2, 4, 5, 6)),
    "direction": (lambda: T.weight_norm(nn.Embedding(7, 4), scale=False), None),
}

# A Keras layer, and the shape of an input.
LAYERS = {
    "batch": (lambda: L.BatchNormalization(momentum=0.7), (4, 5, 6, 3)),
    "batch, features": (lambda: K.BatchNormalization(momentum=None, scale=False), (6, 3)),
    "batch, first": (lambda: L.BatchNormalization(axis=1), (4, 3, 5)),
    "renorm": (lambda: L.BatchNormalization(renorm=True, renorm_clipping={"rmax": 1.5, "dmax": 0.2}), (4, 5, 3)),
    "renorm, ours": (lambda: K.BatchRenormalization(**STEPS), (4, 5, 3)),
    "layer": (lambda: L.LayerNormalization(axis=[-1, -2]), (4, 3, 5)),
    "layer, from the front": (lambda: L.LayerNormalization(axis=[1, 2], center=False), (4, 3, 5)),
    "group": (lambda: L.GroupNormalization(groups=2), (3, 4, 6)),
    "instance": (lambda: K.InstanceNormalization(track_running_stats=True), (4, 5, 3)),
    "rms": (lambda: L.RMSNormalization(), (4, 5)),
    "switchable": (lambda: K.SwitchableNormalization(), (4, 5, 3)),
    "response": (lambda: K.FilterResponseNormalization(threshold="element"), (4, 5, 6, 3)),
    "standardization": (lambda: K.WeightStandardization(L.DepthwiseConv2D(3, depth_multiplier=2)), (2, 5, 6, 3)),
    "spectral": (lambda: L.SpectralNormalization(L.Conv2D(4, 3, padding="same")), (2, 5, 6, 3)),
    "spectral, embedding": (lambda: K.SpectralNormalization(L.Embedding(7, 4)), None),
    "length": (lambda: K.WeightNormalization(L.Conv2DTranspose(4, 3)), (2, 5, 6, 3)),
}


def inputs(shape, seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 7, (5,)) if shape is None else generator.normal(0.3, 1.5, shape).astype("float32")


def keras_output(layer, x, training):
    takes = isinstance(layer, L.Wrapper) or "training" in layer._call_signature.parameters
    return np.array(layer(x, training=training) if takes else layer(x))


def torch_output(module, x, training):
    module.train(training)
    with torch.no_grad():
        return module(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def channels_last(x, moves):
    return np.moveaxis(x, 1, -1) if moves and x.ndim > 2 else x


def channels_first(x, moves):
    return np.moveaxis(x, -1, 1) if moves and x.ndim > 2 else x


def moves_channels(spec):
    return spec.method not in ("layer_norm", "rms_norm")


def assert_same(one, other):
    """The same specification and arrays; the counter is dropped by Keras layers that do not count."""
    assert one.spec == other.spec
    assert list(one.arrays) == list(other.arrays)
    for name, array in one.arrays.items():
        twin = other.arrays[name]
        assert (array.dtype, array.shape) == (twin.dtype, twin.shape), name
        if name != "batches_tracked":
            assert array.tobytes() == twin.tobytes(), name


def counts(layer):
    return getattr(layer, "batches_tracked", None) is not None


def assert_computes_the_same(module, layer, shape, moves):
    """Both train on and infer alike; ``shape`` is torch's."""
    for seed, training in enumerate((False, True, True, False)):
        x = inputs(shape, seed)
        y = torch_output(module, x, training)
        assert np.allclose(channels_first(keras_output(layer, channels_last(x, moves), training), moves), y, 1e-4, 2e-5), (
            training
        )
    one, other = describe(module).arrays, describe(layer).arrays
    for name in one.keys() - {"batches_tracked"}:
        assert np.allclose(one[name], other[name], 1e-4, 1e-5), name


@pytest.mark.parametrize("case", MODULES)
def test_from_torch_to_keras_and_back(case):
    torch.manual_seed(0)
    make, shape = MODULES[case]
    module = make()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.ndim == 1 and len(tensor) == 3:
            tensor.data.uniform_(0.5, 1.5)
    for seed in range(2):
        torch_output(module, inputs(shape, seed + 10), training=True)
    there = describe(module)
    layer = build(*there, framework="tensorflow")
    assert_same(describe(layer), there)
    if counts(layer):
        assert describe(layer).arrays["batches_tracked"] == there.arrays["batches_tracked"]
    back = build(*describe(layer), framework="torch")
    assert_same(describe(back), there)
    assert describe(back).layout == there.layout
    assert_computes_the_same(module, layer, shape, moves_channels(there.spec))


@pytest.mark.parametrize("case", LAYERS)
def test_from_keras_to_torch_and_back(case):
    keras.utils.set_random_seed(0)
    make, shape = LAYERS[case]
    layer = make()
    layer.build((None,) if shape is None else (None, *shape[1:]))
    generator = np.random.default_rng(1)
    for weight in layer.weights:
        if weight.dtype != "int64":
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    for seed in range(2):
        keras_output(layer, inputs(shape, seed + 10), training=True)
    there = describe(layer)
    module = build(*there, framework="torch")
    assert_same(describe(module), there)
    back = build(*describe(module), framework="tensorflow")
    assert_same(describe(back), there)
    native = isinstance(layer, L.SpectralNormalization)
    assert describe(build(*there, framework="tensorflow", native=native)).layout == there.layout
    if native:  # its inference does not normalize, and its training overwrites the kernel
        return
    moves = moves_channels(there.spec) and there.layout.axis is None
    first = None if shape is None else channels_first(np.empty(shape), moves).shape
    assert_computes_the_same(module, layer, first, moves)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: T.weight_norm(nn.ConvTranspose1d(4, 6, 3, groups=2)), "groups=2, where Keras has no groups"),
        (
            lambda: T.weight_norm(nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular")),
            "padding_mode='circular', where Keras adds",
        ),
        (lambda: T.weight_norm(nn.Conv1d(4, 6, 3, padding=1, stride=2)), r"padding=\(\(1, 1\),\), where Keras pads by one"),
        (lambda: T.weight_norm(nn.ConvTranspose1d(4, 6, 3, 2, 1, 1)), "where Keras cuts off"),
        (lambda: T.spectral_norm(nn.Linear(4, 6)).half(), "would not keep their dtypes in a layer that stores"),
    ],
)
def test_what_keras_has_no_means_for(module, message):
    with pytest.raises(Unsupported, match=message):
        build(*describe(module()), framework="tensorflow")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(3), lambda: nn.LayerNorm(3), lambda: T.weight_norm(nn.Linear(3, 2))])
def test_dtypes(make, dtype):
    there = describe(make().to(dtype))
    layer = build(*there, framework="tensorflow")
    assert layer.dtype_policy.name == str(dtype).removeprefix("torch.")
    assert_same(describe(layer), there)
    assert_same(describe(build(*describe(layer), framework="torch")), there)
