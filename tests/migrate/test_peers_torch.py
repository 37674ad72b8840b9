"""timm's layers: what they obey is described, and ours goes on as they would; what no specification says is refused."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

if find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)

from crossnorm import (
    BatchNormSpec,
    FilterResponseNormSpec,
    GroupNormSpec,
    LayerNormSpec,
    RMSNormSpec,
    WeightStandardizationSpec,
)
from crossnorm.errors import MigrationError, Unsupported
from crossnorm.migrate import Layout, Linear, build, describe
from crossnorm.migrate.torch import variables, write
from crossnorm_conformance.implementations.timm_layers import layers

IMAGES, WORDS = (2, 4, 5, 5), (2, 3, 4)
PLAIN = {"apply_act": False}
RELU_GAIN = 1.7139588594436646  # timm's constant for ReLU

LAYERS = {
    "BatchNormAct2d": (
        lambda: layers.BatchNormAct2d(4, eps=1e-3, momentum=0.25, **PLAIN),
        BatchNormSpec(channels=4, eps=1e-3, decay=0.75),
        IMAGES,
    ),
    "BatchNormAct2d-untracked": (
        lambda: layers.BatchNormAct2d(4, affine=False, track_running_stats=False, **PLAIN),
        BatchNormSpec(channels=4, tracked=False, scale=False, offset=False),
        IMAGES,
    ),
    "BatchNormAct2d-dropout": (
        lambda: layers.BatchNormAct2d(4, drop_layer=lambda: nn.Dropout(0.0), **PLAIN), BatchNormSpec(channels=4), IMAGES
    ),
    "GroupNorm": (lambda: layers.GroupNorm(4, 2), GroupNormSpec(channels=4, groups=2), IMAGES),
    "GroupNorm1": (
        lambda: layers.GroupNorm1(4, affine=False), GroupNormSpec(channels=4, groups=1, scale=False, offset=False), IMAGES
    ),
    "GroupNormAct": (lambda: layers.GroupNormAct(4, 2, **PLAIN), GroupNormSpec(channels=4, groups=2), IMAGES),
    "LayerNorm": (lambda: layers.LayerNorm(4), LayerNormSpec(shape=4, eps=1e-6), WORDS),
    "LayerNormFp32": (lambda: layers.LayerNormFp32(4), LayerNormSpec(shape=4, eps=1e-6), WORDS),
    "LayerNormAct": (lambda: layers.LayerNormAct(4, **PLAIN), LayerNormSpec(shape=4, eps=1e-5), WORDS),
    "RmsNorm": (lambda: layers.RmsNorm(4), RMSNormSpec(shape=4, eps=1e-6), WORDS),
    "RmsNorm-plain": (lambda: layers.RmsNorm(4, affine=False), RMSNormSpec(shape=4, eps=1e-6, scale=False), WORDS),
    "FilterResponseNormTlu2d": (
        lambda: layers.FilterResponseNormTlu2d(4), FilterResponseNormSpec(channels=4, eps=1e-5), IMAGES
    ),
    "FilterResponseNormTlu2d-linear": (
        lambda: layers.FilterResponseNormTlu2d(4, **PLAIN), FilterResponseNormSpec(channels=4, eps=1e-5, threshold=None), IMAGES
    ),
    "FilterResponseNormAct2d": (
        lambda: layers.FilterResponseNormAct2d(4, **PLAIN), FilterResponseNormSpec(channels=4, eps=1e-5, threshold=None), IMAGES
    ),
    "StdConv2d": (
        lambda: layers.StdConv2d(4, 6, 3, groups=2, bias=True),
        WeightStandardizationSpec(shape=(6, 2, 3, 3), eps=1e-6),
        IMAGES,
    ),
    "StdConv2dSame": (
        lambda: layers.StdConv2dSame(4, 6, 3), WeightStandardizationSpec(shape=(6, 4, 3, 3), eps=1e-6), IMAGES
    ),
    "ScaledStdConv2d": (
        lambda: layers.ScaledStdConv2d(4, 6, 3, gamma=RELU_GAIN, gain_init=0.5),
        WeightStandardizationSpec(shape=(6, 4, 3, 3), eps=1e-6, scale=True, fan_in_scaling=True, gain=RELU_GAIN),
        IMAGES,
    ),
}  # fmt: skip


def randomized(layer):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.1)
    return layer


def inputs(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LAYERS)
def test_what_timm_obeys_is_described_and_ours_goes_on(name):
    make, spec, shape = LAYERS[name]
    layer = randomized(make())
    layer(inputs(shape, 1))
    description = describe(layer)
    assert description.spec == spec
    assert variables(layer).keys() == description.arrays.keys()
    again = build(*description, framework="torch")
    rebuilt = describe(again)
    assert rebuilt.spec == spec
    for role, array in description.arrays.items():
        assert rebuilt.arrays[role].tobytes() == array.tobytes(), role
    for mode in (True, False):
        layer.train(mode)
        again.train(mode)
        torch.testing.assert_close(again(inputs(shape, 2)), layer(inputs(shape, 2)))
    for role, array in describe(layer).arrays.items():
        np.testing.assert_allclose(describe(again).arrays[role], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_timm_layers_are_written_in_place(name):
    make, _, shape = LAYERS[name]
    layer = randomized(make())
    new = {role: array * 2 for role, array in describe(layer).arrays.items()}
    write(layer, new)
    for role, array in describe(layer).arrays.items():
        assert np.array_equal(array, new[role])
    layer.eval()
    expected = build(describe(layer).spec, describe(layer).layout, new, framework="torch").eval()
    torch.testing.assert_close(layer(inputs(shape, 2)), expected(inputs(shape, 2)))


@pytest.mark.parametrize("make", [lambda: layers.LayerNorm2d(4), lambda: layers.RmsNorm2d(4)])
def test_the_channels_of_images_are_described_with_their_axis(make):
    layer = randomized(make())
    description = describe(layer)
    assert description.layout == Layout(axis=1, rank=2)
    with pytest.raises(Unsupported, match="permute the input"):
        build(*description, framework="torch")
    again = build(description.spec, Layout(), description.arrays, framework="torch")
    x = inputs(IMAGES, 1)
    torch.testing.assert_close(again(x.movedim(1, -1)).movedim(-1, 1), layer(x))


@pytest.mark.parametrize("gain", [1.7, 1.1, 0.3, RELU_GAIN])
@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_the_gain_is_found_in_what_timm_keeps_of_it(gain, channels):
    layer = layers.ScaledStdConv2d(channels, 6, 3, gamma=gain)
    found = describe(layer).spec.gain
    assert found * (9 * channels) ** -0.5 == layer.scale
    assert found == gain if gain != RELU_GAIN else abs(found - gain) < 1e-15  # several long numbers give the same


def test_the_holder_of_a_standardized_weight():
    holder = describe(layers.StdConv2d(4, 6, 3, stride=2, groups=2)).layout.holder
    assert holder == Linear(
        kind="convolution", shape=(6, 2, 3, 3), groups=2, stride=(2, 2), padding=((1, 1), (1, 1)), dilation=(1, 1)
    )
    strided = describe(layers.StdConv2dSame(4, 6, 3, stride=2))
    assert strided.layout.holder.padding == "same"
    with pytest.raises(Unsupported, match="padding='same'"):
        build(*strided, framework="torch")


class Changed(layers.LayerNorm):
    def forward(self, x):
        return super().forward(x) + 1


REFUSED = {
    "activation": (lambda: layers.BatchNormAct2d(4), "act=ReLU"),
    "dropout": (lambda: layers.BatchNormAct2d(4, drop_layer=nn.Dropout, **PLAIN), "drop=Dropout"),
    "group_activation": (lambda: layers.GroupNormAct(4, 2), "act=ReLU"),
    "response_activation": (lambda: layers.FilterResponseNormAct2d(4), "act=ReLU"),
    "frozen": (lambda: layers.FrozenBatchNormAct2d(4, **PLAIN), "no normalization layer"),
    "simple": (lambda: layers.SimpleNorm(4), "no normalization layer"),
    "evo": (lambda: layers.EvoNorm2dS0(4, groups=2), "no normalization layer"),
    "subclass": (lambda: Changed(4), "changes what its base class computes"),
    "twice": (lambda: nn.utils.parametrizations.weight_norm(layers.StdConv2d(4, 6, 3)), "normalizes weight twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_specification_says_is_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(MigrationError, match=words):
        describe(make())
