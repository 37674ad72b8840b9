"""Half of the training in Keras, the other half in PyTorch: the optimizer moves along with the weights.

What you learn:

- that an optimizer has a state of its own, momentum or Adam's two means, which `transfer` leaves where it is;
- that `transfer_optimizer` moves it, and sets what the frameworks default differently: rate, momentum, betas, epsilon;
- that training then goes on as if nothing had happened, and that a fresh optimizer, with the same settings, does not;
- what is left: Adam's epsilon has another place in torch than in Keras, and the report says how much that matters.

All is in float64, so that rounding hides nothing. Run it, some seconds on one core:

    python examples/resume_keras_training_in_torch.py
"""

import copy
from functools import partial

import keras
import torch
from _digits import BATCH, LEARNING_RATE, MOMENTUM, digits, relative, train_in_keras, train_in_torch
from keras import layers
from torch import nn

from crossnorm.migrate import convert, rules, transfer
from crossnorm.migrate._optimizers import transfer_optimizer

BEFORE = slice(0, 20 * BATCH)
AFTER = slice(20 * BATCH, 40 * BATCH)

# Keras' optimizer; torch's, with torch's defaults; and torch's with the settings of Keras', but no state.
OPTIMIZERS = {
    "SGD": (
        partial(keras.optimizers.SGD, LEARNING_RATE, MOMENTUM),
        torch.optim.SGD,
        partial(torch.optim.SGD, lr=LEARNING_RATE, momentum=MOMENTUM),
    ),
    "Adam": (
        partial(keras.optimizers.Adam, LEARNING_RATE / 32),
        torch.optim.Adam,
        partial(torch.optim.Adam, lr=LEARNING_RATE / 32, eps=1e-7),
    ),
}


def in_keras():
    """A small network in Keras."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), dtype="float64"),
            layers.Conv2D(16, 3, use_bias=False, dtype="float64"),
            layers.BatchNormalization(momentum=0.9, dtype="float64"),
            layers.ReLU(dtype="float64"),
            layers.Flatten(dtype="float64"),
            layers.Dense(10, dtype="float64"),
        ]
    )


def in_torch():
    """The same in torch, training as Keras would."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16, eps=1e-3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10)
    )
    return convert(model.double(), rules.semantics("keras"))


def resumed(name):
    """Train in Keras; go on there, in torch with the moved optimizer, and in torch with a fresh one."""
    keras.utils.set_random_seed(0)
    images, labels, *_ = digits()
    images = images.astype("float64")
    keras_optimizer, torch_optimizer, fresh_optimizer = OPTIMIZERS[name]

    source, optimizer = in_keras(), keras_optimizer()
    train_in_keras(source, images[BEFORE], labels[BEFORE], optimizer)

    target = in_torch()
    report = transfer(source, target)
    fresh = copy.deepcopy(target)
    moved = torch_optimizer(target.parameters())
    print(f"{name}\n{transfer_optimizer(optimizer, moved, report.pairs)}\n")

    there = train_in_torch(target, images[AFTER], labels[AFTER], moved)
    afresh = train_in_torch(fresh, images[AFTER], labels[AFTER], fresh_optimizer(fresh.parameters()))
    here = train_in_keras(source, images[AFTER], labels[AFTER], optimizer)
    return {"moved": relative(there, here), "fresh": relative(afresh, here)}


def main():
    """Print how far torch is from Keras after the move; return the numbers by optimizer."""
    results = {name: resumed(name) for name in OPTIMIZERS}
    print("20 steps in Keras, 20 steps more in both. How far torch is from Keras, relative to the largest value:\n")
    columns = {f"{name}, {which}": distances for name, result in results.items() for which, distances in result.items()}
    print(f"{'':<20}" + "".join(f"{column:>15}" for column in columns))
    for row in columns["SGD, moved"]:
        print(f"{row:<20}" + "".join(f"{distances[row]:>15.0e}" for distances in columns.values()))
    return results


if __name__ == "__main__":
    main()
