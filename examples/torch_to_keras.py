"""From PyTorch to Keras: a trained ResNet-18 moves, and goes on learning as if it had stayed.

What you learn:

- that the torch model is read as it is: modules in modules, weights (out, in, height, width), images with the channel first;
- what has to be written with care in Keras: padding on all sides where the stride is 2, and torch's eps and momentum;
- that `convert` makes a functional Keras model anew with other layers, here with those that store the variance that torch
  stores, and that 20 steps of fine-tuning then give the same losses and the same predictions.

`keras_to_torch.py` goes the other way. Run it, about a minute on one core:

    python examples/torch_to_keras.py
"""

from functools import partial

import keras
import torch
from _fine_tuning import fine_tuned, fit_in_torch
from _resnet18 import ResNet18, resnet18
from torch import nn

from crossnorm.migrate import convert, rules, transfer


def main():
    """Print the migration and the fine-tuning; return the numbers."""
    torch.manual_seed(0)
    source = ResNet18(normalization=nn.BatchNorm2d)
    accuracy = fit_in_torch(source)
    print(f"ResNet-18, trained in torch for one epoch: {accuracy:.1%} of the validation images are recognised.\n")

    # torch's defaults in Keras' words: its momentum is the weight of the new value, 0.1, and Keras' that of the old one.
    target = resnet18(normalization=partial(keras.layers.BatchNormalization, epsilon=1e-5, momentum=0.9))
    target = convert(target, rules.semantics("torch"))
    report = transfer(source, target)
    print(report, "\n")

    return {"accuracy": accuracy, "report": report, "distances": fine_tuned(source, target)}


if __name__ == "__main__":
    main()
