"""ResNet-18 for small images, written as an engineer would write it in each framework: 11.2 million weights, 10 classes.

He, Zhang, Ren and Sun 2015, arXiv:1512.03385, with the first convolution 3x3 and no pooling before the blocks, as is usual for
small images. Nothing here knows of migration: the two are two programs with the names that are usual there.
"""

from collections.abc import Callable
from contextlib import contextmanager

import keras
from keras import layers
from torch import nn

import crossnorm.tensorflow
import crossnorm.torch

STAGES = (1, 2, 4, 8)  # times the width
BLOCKS = 2
CLASSES = 10

# 1. torch: modules that hold modules.


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, normalization: Callable):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = normalization(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = normalization(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), normalization(outputs))

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet18(nn.Module):
    """Of images as (batch, channel, height, width)."""

    def __init__(self, channels: int = 1, width: int = 64, normalization: Callable = crossnorm.torch.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = normalization(width)
        inputs = width
        for stage, factor in enumerate(STAGES, 1):
            blocks = []
            for block in range(BLOCKS):
                blocks.append(BasicBlock(inputs, width * factor, 2 if stage > 1 and block == 0 else 1, normalization))
                inputs = width * factor
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


# 2. Keras: a graph of layers.


@contextmanager
def _policy(dtype):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    yield
    keras.config.set_dtype_policy(before)


def resnet18(
    size: int = 8,
    channels: int = 1,
    width: int = 64,
    normalization: Callable = crossnorm.tensorflow.BatchNormalization,
    dtype: str = "float32",
) -> keras.Model:
    """Of images as (batch, height, width, channel)."""

    def convolution(x, outputs, kernel, stride, name):
        if kernel > 1:
            # Padding "same" with a stride of 2 would add to the right and below only, and torch adds on all sides.
            x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
        return layers.Conv2D(outputs, kernel, stride, use_bias=False, name=name)(x)

    def basic_block(x, outputs, stride, name):
        y = convolution(x, outputs, 3, stride, f"{name}_conv1")
        y = layers.ReLU(name=f"{name}_relu1")(normalization(name=f"{name}_bn1")(y))
        y = convolution(y, outputs, 3, 1, f"{name}_conv2")
        y = normalization(name=f"{name}_bn2")(y)
        if stride != 1 or x.shape[-1] != outputs:
            x = convolution(x, outputs, 1, stride, f"{name}_downsample_conv")
            x = normalization(name=f"{name}_downsample_bn")(x)
        return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([y, x]))

    with _policy(dtype):
        images = keras.Input((size, size, channels))
        x = convolution(images, width, 3, 1, "conv1")
        x = layers.ReLU(name="relu1")(normalization(name="bn1")(x))
        for stage, factor in enumerate(STAGES, 1):
            for block in range(BLOCKS):
                x = basic_block(x, width * factor, 2 if stage > 1 and block == 0 else 1, f"layer{stage}_{block}")
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        return keras.Model(images, layers.Dense(CLASSES, name="fc")(x), name="resnet18")
