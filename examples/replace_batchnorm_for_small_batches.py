"""Batches of two: batch normalization trains with one thing and infers with another. `convert` replaces it in a trained model.

What you learn:

- what happens to a batch norm that was fine with batches of 32 when memory allows two: in training each value is judged by one
  other image, and the loss that training lowers has little to do with the loss at inference;
- that `convert(model, rules.group_norm(8))` puts group normalization in its place, in every layer, with the scale and offset
  that were learned. Names, other weights, hooks, dtype and device stay;
- that the replaced model computes something else at first and has to be trained on, and that it does the same in training and
  in inference, whatever the batch.

Needs torch alone. Run it, some seconds on one core:

    python examples/replace_batchnorm_for_small_batches.py
"""

import copy

import torch
from batch_norm_in_torch import accuracy, digits
from torch import nn

from crossnorm.migrate import convert, rules

RATE = 0.01


def network():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, padding="same", bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(288, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU()),
        nn.Linear(64, 10),
    )


def fit(model, images, labels, batch, epochs):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), RATE * batch / 32, momentum=0.9)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch):
            # torch's batch norm refuses a last batch of one.
            if len(chosen) > 1:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
                optimizer.step()


def loss(model, images, labels, batch):
    """The mean loss in batches, in the mode that the model is in. A last batch of one is left out."""
    parts = [(x, y) for x, y in zip(images.split(batch), labels.split(batch), strict=True) if len(x) > 1]
    with torch.no_grad():
        total = sum(nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in parts)
    return (total / sum(len(x) for x, _ in parts)).item()


def main():
    """Print the table; return the numbers by model."""
    torch.manual_seed(0)
    images, labels, validation_images, validation_labels = digits()
    trained = network()
    fit(trained, images, labels, batch=32, epochs=3)

    # The trained model, then the two ways to go on with two images at a time.
    kept, replaced = copy.deepcopy(trained), convert(copy.deepcopy(trained), rules.group_norm(8))
    at_once = accuracy(replaced, validation_images, validation_labels)
    print(replaced[1], "\n")
    fit(kept, images, labels, batch=2, epochs=2)
    fit(replaced, images, labels, batch=2, epochs=2)

    results = {}
    print(f"{'':<32}{'loss, training':>16}{'loss, inference':>17}{'accuracy':>10}")
    for name, model, batch in (
        ("batch norm, batches of 32", trained, 32),
        ("batch norm, then batches of 2", kept, 2),
        ("group norm, then batches of 2", replaced, 2),
    ):
        training = loss(copy.deepcopy(model).train(), images, labels, batch)  # a copy: it moves the running statistics
        inference = loss(model.eval(), images, labels, batch)
        right = accuracy(model, validation_images, validation_labels)
        results[name] = {"training": training, "inference": inference, "accuracy": right}
        print(f"{name:<32}{training:>16.3f}{inference:>17.3f}{right:>10.1%}")
    print(f"\nLosses of the training images, accuracy on the others. Replaced and not yet trained on: {at_once:.1%}.")
    return {"at once": at_once, **results}


if __name__ == "__main__":
    main()
