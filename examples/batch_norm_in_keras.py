"""Batch normalization in Keras: the same classifier without it, with Keras' layer and with ours.

What you learn:

- where the layer goes: between a linear layer (dense, convolution) and its activation;
- what it buys: at the same learning rate and number of epochs the normalized models are far ahead of the plain ones;
- that `crossnorm.tensorflow.BatchNormalization` takes the place of `keras.layers.BatchNormalization`, with the same results.

`batch_norm_in_torch.py` is the same lesson in PyTorch. Run it, half a minute on one core:

    python examples/batch_norm_in_keras.py
"""

import keras
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import crossnorm.tensorflow

EPOCHS = 5
BATCH = 32
LEARNING_RATE = 0.03

NORMALIZATIONS = {
    "none": None,
    "keras": layers.BatchNormalization,
    "crossnorm": crossnorm.tensorflow.BatchNormalization,
}


def digits():
    """1797 handwritten digits, (8, 8, 1) with values in [0, 1]: training images and labels, validation images and labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    training_images, validation_images, training_labels, validation_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return training_images, training_labels, validation_images, validation_labels


def normalized(linear, normalization):
    """A linear layer, the normalization if there is one, the activation."""
    if normalization is None:
        return [linear, layers.ReLU()]
    # Keras' momentum is the weight of the OLD running statistic. Its default of 0.99 remembers hundreds of batches; our
    # training is only 225 batches long, so that the statistics used for validation would lag behind the weights.
    return [linear, normalization(momentum=0.9), layers.ReLU()]


def dense(normalization):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            *normalized(layers.Dense(64), normalization),
            *normalized(layers.Dense(64), normalization),
            *normalized(layers.Dense(64), normalization),
            layers.Dense(10),
        ]
    )


def convolutional(normalization):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *normalized(layers.Conv2D(16, 3, padding="same"), normalization),
            *normalized(layers.Conv2D(32, 3, strides=2), normalization),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def accuracies(build, normalization):
    """Build, compile, fit and evaluate a model: its accuracies on the training and on the validation images."""
    keras.utils.set_random_seed(0)
    training_images, training_labels, validation_images, validation_labels = digits()
    model = build(normalization)
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(training_images, training_labels, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    # fit normalizes with the statistics of each batch and updates the running ones; evaluate uses the running ones.
    _, training = model.evaluate(training_images, training_labels, verbose=0)
    _, validation = model.evaluate(validation_images, validation_labels, verbose=0)
    return training, validation


def main():
    """Print the table; return the accuracies by model and normalization."""
    results = {}
    print(f"Accuracy on the digits after {EPOCHS} epochs, Keras\n")
    print(f"{'model':<15}{'normalization':<15}{'training':>10}{'validation':>12}")
    for build in (dense, convolutional):
        for name, normalization in NORMALIZATIONS.items():
            training, validation = results[build.__name__, name] = accuracies(build, normalization)
            print(f"{build.__name__:<15}{name:<15}{training:>10.1%}{validation:>12.1%}", flush=True)
    return results


if __name__ == "__main__":
    main()
