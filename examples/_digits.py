"""What the examples with both frameworks share: the images, the same training steps in each, and the unit of a model."""

import keras
import numpy as np
import tensorflow as tf
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from crossnorm.rounding import DRAWS, perturbed, unit_roundoff

BATCH = 32
STEPS = 5
PREDICTED = BATCH * STEPS
# Keras' optimizers round these to float32, also where the weights are float64, and torch's do not: with 0.9 the losses would
# agree to eight digits only. Sums of few powers of two are the same in both.
LEARNING_RATE = 0.0625
MOMENTUM = 0.875


def digits():
    """1797 handwritten digits, (8, 8, 1) with values in [0, 1]: training images and labels, validation images and labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    training_images, validation_images, training_labels, validation_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return training_images, training_labels, validation_images, validation_labels


def batches(images, size=BATCH):
    return [slice(first, first + size) for first in range(0, len(images), size)]


def train_in_keras(model, images, labels, optimizer=None, batch=BATCH):
    """Predictions for the first ``images``, the losses of training, one step per batch, and the predictions after it.

    The images have the dtype of the model.
    """
    images = tf.constant(images)
    # Keras: velocity = momentum * velocity - rate * gradient; weight += velocity.
    optimizer = optimizer or keras.optimizers.SGD(LEARNING_RATE, MOMENTUM)
    first = model(images[:PREDICTED], training=False).numpy()
    losses = []
    for part in batches(images, batch):
        with tf.GradientTape() as tape:
            logits = model(images[part], training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels[part], logits))
        optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)
        losses.append(loss.numpy())
    last = model(images[:PREDICTED], training=False).numpy()
    return {"first predictions": first, "losses": np.array(losses), "last predictions": last}


def train_in_torch(model, images, labels, optimizer=None, batch=BATCH):
    """The same in torch, which wants images as (batch, channel, height, width)."""
    images = torch.tensor(images.transpose(0, 3, 1, 2))
    labels = torch.tensor(labels)
    # torch: velocity = momentum * velocity + gradient; weight -= rate * velocity. The same as long as the rate is constant.
    optimizer = optimizer or torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM)
    with torch.no_grad():
        first = model.eval()(images[:PREDICTED]).numpy()
    model.train()
    losses = []
    for part in batches(images, batch):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[part]), labels[part])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        last = model.eval()(images[:PREDICTED]).numpy()
    return {"first predictions": first, "losses": np.array(losses), "last predictions": last}


def units_of(run, weights, images, labels, draws=DRAWS):
    """The unit of every result of ``run``: its largest change when weights and inputs move by one rounding of float32, and the
    rounding of the result itself.

    There is no exact answer for a whole network, and training amplifies every difference. So the yardstick is the framework's
    own run in float64, repeated with each weight and each pixel multiplied by 1 + 2^-24 or 1 - 2^-24 at random. With fewer
    ``draws`` the units are smaller, and the verdict stricter.
    """
    random = np.random.default_rng(0)
    weights, images = [weight.astype("float64") for weight in weights], images.astype("float64")
    exact = run(weights, images, labels, "float64")
    moves = {name: np.zeros_like(values) for name, values in exact.items()}
    for _ in range(draws):
        moved_weights = [perturbed(weight, "float32", random) for weight in weights]
        moved = run(moved_weights, perturbed(images, "float32", random), labels, "float64")
        moves = {name: np.maximum(moves[name], np.abs(moved[name] - exact[name])) for name in moves}
    # Some of 1600 predictions hardly move in any draw, by luck; the largest change over all images is no such luck.
    moves = {name: move.max(axis=0) if name.endswith("predictions") else move for name, move in moves.items()}
    return exact, {name: move + unit_roundoff("float32") * np.abs(exact[name]) for name, move in moves.items()}


def in_units(one, other, units):
    """The largest difference of each result, in its units."""
    return {name: float(np.max(np.abs(one[name] - other[name]) / units[name])) for name in one}


def relative(one, other):
    """The largest difference of each result, relative to the largest value."""
    return {name: float(np.max(np.abs(one[name] - other[name])) / np.max(np.abs(other[name]))) for name in other}
