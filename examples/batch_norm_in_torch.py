"""Batch normalization in PyTorch: the same classifier without it, with torch's layer and with ours.

What you learn:

- where the layer goes: between a linear layer (linear, convolution) and its activation;
- what it buys: at the same learning rate and number of epochs the normalized models are far ahead of the plain ones;
- that `crossnorm.torch.BatchNorm1d` and `BatchNorm2d` take the place of the layers in `torch.nn`, with the same results;
- why `model.train()` and `model.eval()` matter.

`batch_norm_in_keras.py` is the same lesson in Keras. Run it, some seconds on one core:

    python examples/batch_norm_in_torch.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import crossnorm.torch

EPOCHS = 5
BATCH = 32
LEARNING_RATE = 0.03

# Two layers each: after a dense layer and after a convolution.
NORMALIZATIONS = {
    "none": (None, None),
    "torch": (nn.BatchNorm1d, nn.BatchNorm2d),
    "crossnorm": (crossnorm.torch.BatchNorm1d, crossnorm.torch.BatchNorm2d),
}


def digits():
    """1797 handwritten digits, (1, 8, 8) with values in [0, 1]: training images and labels, validation images and labels."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    training, validation = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    labels = torch.tensor(labels)
    return images[training], labels[training], images[validation], labels[validation]


def normalized(linear, normalization, channels):
    """A linear layer, the normalization if there is one, the activation."""
    if normalization is None:
        return [linear, nn.ReLU()]
    # torch's momentum is the weight of the NEW running statistic: 0.1 is what Keras calls 0.9.
    return [linear, normalization(channels, momentum=0.1), nn.ReLU()]


def dense(normalization, _):
    return nn.Sequential(
        nn.Flatten(),
        *normalized(nn.Linear(64, 64), normalization, 64),
        *normalized(nn.Linear(64, 64), normalization, 64),
        *normalized(nn.Linear(64, 64), normalization, 64),
        nn.Linear(64, 10),
    )


def convolutional(_, normalization):
    return nn.Sequential(
        *normalized(nn.Conv2d(1, 16, 3, padding="same"), normalization, 16),
        *normalized(nn.Conv2d(16, 32, 3, stride=2), normalization, 32),
        nn.Flatten(),
        nn.Linear(32 * 3 * 3, 10),
    )


def fit(model, images, labels):
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    # In training mode the layers normalize with the statistics of each batch, and update the running ones.
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def accuracy(model, images, labels):
    # In evaluation mode they use the running statistics: a prediction does not depend on the rest of its batch.
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).double().mean().item()


def accuracies(build, normalization):
    """Build, fit and evaluate a model: its accuracies on the training and on the validation images."""
    torch.manual_seed(0)
    training_images, training_labels, validation_images, validation_labels = digits()
    model = build(*normalization)
    fit(model, training_images, training_labels)
    return accuracy(model, training_images, training_labels), accuracy(model, validation_images, validation_labels)


def main():
    """Print the table; return the accuracies by model and normalization."""
    results = {}
    print(f"Accuracy on the digits after {EPOCHS} epochs, PyTorch\n")
    print(f"{'model':<15}{'normalization':<15}{'training':>10}{'validation':>12}")
    for build in (dense, convolutional):
        for name, normalization in NORMALIZATIONS.items():
            training, validation = results[build.__name__, name] = accuracies(build, normalization)
            print(f"{build.__name__:<15}{name:<15}{training:>10.1%}{validation:>12.1%}", flush=True)
    return results


if __name__ == "__main__":
    main()
