"""What the examples with ResNet-18 share: a trained source, and 20 steps of fine-tuning in both frameworks, compared."""

import copy

import keras
import torch
from _digits import BATCH, LEARNING_RATE, MOMENTUM, digits, in_units, relative, train_in_keras, train_in_torch, units_of

STEPS = 20
# In float64 the network is slow, and a few steps tell whether the two compute the same.
STEPS_IN_FLOAT64 = 5
FINE_BATCH = 16
FINE_RATE = 2.0**-8
# Four draws instead of eight: the units are smaller for it and the verdict stricter.
DRAWS = 4


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


def tuned_in_torch(module, images, labels):
    """Predictions, the losses of fine-tuning, and predictions, in the images' dtype. The module itself stays as it is."""
    twin = copy.deepcopy(module).to(getattr(torch, images.dtype.name))
    return train_in_torch(twin, images, labels, torch.optim.SGD(twin.parameters(), FINE_RATE, MOMENTUM), FINE_BATCH)


def tuned_in_keras(model, images, labels):
    """The same in Keras."""

    def in_dtype(layer):
        return type(layer).from_config(layer.get_config() | {"dtype": images.dtype.name})

    twin = keras.models.clone_model(model, clone_function=in_dtype)
    twin.set_weights(model.get_weights())
    return train_in_keras(twin, images, labels, keras.optimizers.SGD(FINE_RATE, MOMENTUM), FINE_BATCH)


def with_units(module, images, labels):
    """The results of torch, and their units: how far its own run moves when weights and images are rounded otherwise.

    The other examples take float64 for it. Here a few of ten million ReLUs are so close to zero that rounding decides on which
    side they are. Where one changes sides the gradient jumps, and only a run in float32 does that as often as the other one.
    """
    names = [name for name, value in module.state_dict().items() if value.is_floating_point()]

    def run(weights, images, labels, _):
        moved = copy.deepcopy(module)
        rounded = {name: torch.tensor(weight.astype("float32")) for name, weight in zip(names, weights, strict=True)}
        moved.load_state_dict(module.state_dict() | rounded)
        return tuned_in_torch(moved, images.astype("float32"), labels)

    return units_of(run, [module.state_dict()[name].numpy() for name in names], images, labels, DRAWS)


def fine_tuned(module, model, **others):
    """Train both models on, and ``others`` in torch; print the losses, and how far the results are apart.

    Returns:
        Distances by result: ``"float64"``, between the frameworks, relative; ``"float32"``, in units; the others' from
        ``module``, in units.
    """
    images, labels, *_ = digits()
    few, many = slice(STEPS_IN_FLOAT64 * FINE_BATCH), slice(STEPS * FINE_BATCH)
    doubles = images[few].astype("float64"), labels[few]
    data = images[many], labels[many]
    in_torch, units = with_units(module, *data)
    in_keras = tuned_in_keras(model, *data)
    columns = {
        "float64": relative(tuned_in_torch(module, *doubles), tuned_in_keras(model, *doubles)),
        "float32": in_units(in_torch, in_keras, units),
        **{name: in_units(in_torch, tuned_in_torch(other, *data), units) for name, other in others.items()},
    }
    print(f"The losses of {STEPS} steps of fine-tuning:\n")
    print(f"{'step':<18}{'torch':>12}{'Keras':>12}")
    for step, losses in enumerate(zip(in_torch["losses"], in_keras["losses"], strict=True), 1):
        print(f"{step:<18}" + "".join(f"{loss:>12.7f}" for loss in losses))
    print("\nHow far apart: relative in float64; in units of the model in float32, where more than 32 is a mistake:\n")
    print(f"{'':<18}" + "".join(f"{name:>12}" for name in columns))
    for name, distance in columns["float64"].items():
        print(f"{name:<18}{distance:>12.0e}" + "".join(f"{columns[column][name]:>12.1f}" for column in list(columns)[1:]))
    return columns
