"""A port with three mistakes, found one after the other: `diff` runs both models and names the layer and the cause.

What you learn:

- that two models that give different predictions part at one layer first, and that `diff` finds it: each layer of the port is
  run alone, too, on what the layer of the original received, so that a mistake does not hide behind those before it;
- that a cause is no guess: the suspected field or array is put right, and what is left of the difference is measured;
- that predictions that agree are not the end: a training step is compared too, and the last of the three mistakes is one that
  no prediction shows.

Run it, some seconds on one core:

    python examples/find_where_two_models_part.py
"""

import keras
import torch
from _digits import digits, train_in_keras
from keras import layers
from rich.console import Console
from torch import nn

from crossnorm.migrate import convert, diff, rules


def original():
    """A network in Keras, trained for some steps."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, use_bias=False, name="conv1"),
            layers.BatchNormalization(momentum=0.9, name="bn1"),
            layers.ReLU(),
            layers.Conv2D(16, 3, use_bias=False, name="conv2"),
            layers.BatchNormalization(momentum=0.9, name="bn2"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, name="fc"),
        ]
    )
    images, labels, *_ = digits()
    train_in_keras(model, images[:640], labels[:640])
    return model


class Port(nn.Module):
    """The same network in torch, filled by hand. Do you see the mistakes?"""

    def __init__(self, source):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps=1e-3)
        self.conv2 = nn.Conv2d(8, 16, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)
        arrays = {layer.name: [torch.tensor(array) for array in layer.get_weights()] for layer in source.layers}
        with torch.no_grad():
            self.conv1.weight.copy_(arrays["conv1"][0].permute(3, 2, 0, 1))
            self.conv2.weight.copy_(arrays["conv2"][0].permute(3, 2, 1, 0))
            self.fc.weight.copy_(arrays["fc"][0].T)
            self.fc.bias.copy_(arrays["fc"][1])
            for name, layer in (("bn1", self.bn1), ("bn2", self.bn2)):
                own = layer.weight, layer.bias, layer.running_mean, layer.running_var
                for tensor, array in zip(own, arrays[name], strict=True):
                    tensor.copy_(array)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean((2, 3)))


def mend_kernel(port):
    # (3, 2, 1, 0) turns all axes around: (out, in, width, height).
    with torch.no_grad():
        port.conv2.weight.copy_(port.conv2.weight.mT.clone())


def mend_eps(port):
    # Keras' default is 1e-3, and torch's 1e-5.
    port.bn2.eps = 1e-3


def mend_estimator(port):
    # Keras stores the biased variance.
    convert(port, rules.semantics("keras"))


def main():
    """Find and mend; return what was found, in order, and the last comparison."""
    source = original()
    port = Port(source).eval()
    images, *_ = digits()
    found = []
    # Predictions first. With step=True, the default, a step of training is compared as well.
    for mend, step in ((mend_kernel, False), (mend_eps, False), (mend_estimator, True)):
        difference = diff(source, port, images[:16], step=step, names=("Keras", "the port"))
        print(difference, "\n")
        found.append(difference.first)
        mend(port)
    difference = diff(source, port, images[:16], names=("Keras", "the port"))
    Console().print(difference)
    return {"found": found, "at the end": difference}


if __name__ == "__main__":
    main()
