"""What the examples with ResNet-18 share: a trained source, and 20 steps of fine-tuning in both frameworks, compared."""

import copy

import keras
import numpy as np
import torch
from _digits import BATCH, LEARNING_RATE, MOMENTUM, digits, in_units, relative, train_in_keras, train_in_torch

from crossnorm.rounding import perturbed, unit_roundoff

STEPS = 20
FINE_BATCH = 16
FINE_RATE = 2.0**-7
DRAWS = 2


def fit_in_keras(model):
    """One epoch of the digits; the accuracy on the validation images."""
    images, labels, validation_images, validation_labels = digits()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(LEARNING_RATE / 4, MOMENTUM), loss, metrics=["accuracy"])
    model.fit(images, labels, batch_size=BATCH, epochs=1, verbose=0)
    return model.evaluate(validation_images, validation_labels, verbose=0)[1]


def fit_in_torch(module):
    """The same in torch."""
    images, labels, validation_images, validation_labels = digits()
    train_in_torch(module, images, labels, torch.optim.SGD(module.parameters(), LEARNING_RATE / 4, MOMENTUM))
    with torch.no_grad():
        predictions = module(torch.tensor(validation_images.transpose(0, 3, 1, 2))).argmax(1).numpy()
    return float((predictions == validation_labels).mean())


def batches(dtype="float32"):
    """The images and labels of the 20 steps."""
    images, labels, *_ = digits()
    return images[: STEPS * FINE_BATCH].astype(dtype), labels[: STEPS * FINE_BATCH]


def tuned_in_torch(module, images, labels):
    """Predictions, the losses of the 20 steps, and predictions; the module stays as it is."""
    twin = copy.deepcopy(module)
    return train_in_torch(twin, images, labels, torch.optim.SGD(twin.parameters(), FINE_RATE, MOMENTUM), FINE_BATCH)


def tuned_in_keras(model, images, labels):
    """The same in Keras."""
    twin = in_dtype(model, images.dtype.name)
    return train_in_keras(twin, images, labels, keras.optimizers.SGD(FINE_RATE, MOMENTUM), FINE_BATCH)


def in_dtype(model, dtype):
    """A copy of a Keras model that computes in ``dtype``."""
    twin = keras.models.clone_model(model, clone_function=lambda layer: type(layer).from_config(layer.get_config() | {"dtype": dtype}))
    twin.set_weights(model.get_weights())
    return twin
