"""From Keras to PyTorch: a convolutional network with batch normalization moves, and goes on learning as if it had stayed.

What you learn:

- how each kind of layer is carried over: `to_torch` is the whole migration, one case per layer;
- why a normalization layer is more than its four arrays: eps, the momentum and the estimator of the running variance differ
  between the frameworks. The layer's *specification* knows them, and `crossnorm.torch.layer(specification)` obeys it;
- how to tell rounding from a mistake: in float64 the two agree to nine digits and more, and in float32 the difference is
  measured in units of what rounding the weights and inputs once could have caused;
- what goes wrong with `torch.nn.BatchNorm2d`: the first predictions agree, and then the running variance drifts away.

Run it, under a minute on one core:

    python examples/keras_to_torch_digits.py
"""

import keras
import torch
from _digits import (
    BATCH,
    LEARNING_RATE,
    MOMENTUM,
    STEPS,
    digits,
    in_units,
    relative,
    train_in_keras,
    train_in_torch,
    units_of,
)
from keras import layers
from torch import nn

import crossnorm.tensorflow
import crossnorm.torch
from crossnorm.rounding import VERDICT

# 1. The source: a Keras network.


def network(dtype, normalization=crossnorm.tensorflow.BatchNormalization):
    """The network in Keras. (A dtype at each layer, so that the same network can be run in float32 and in float64.)"""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), dtype=dtype),
            # Padding "same" with stride 1, or "valid": with another stride Keras' "same" pads right and below only.
            layers.Conv2D(16, 3, padding="same", use_bias=False, dtype=dtype),
            normalization(momentum=0.9, dtype=dtype),
            layers.ReLU(dtype=dtype),
            layers.Conv2D(32, 3, strides=2, use_bias=False, dtype=dtype),
            normalization(momentum=0.9, dtype=dtype),
            layers.ReLU(dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(64, use_bias=False, dtype=dtype),
            normalization(momentum=0.9, dtype=dtype),
            layers.ReLU(dtype=dtype),
            layers.Dense(10, dtype=dtype),
        ]
    )


def trained():
    """The network after one epoch, and its accuracy on the validation images."""
    keras.utils.set_random_seed(0)
    training_images, training_labels, validation_images, validation_labels = digits()
    model = network("float32")
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE, MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(training_images, training_labels, batch_size=BATCH, epochs=1, verbose=0)
    return model, model.evaluate(validation_images, validation_labels, verbose=0)[1]


# 2. The migration.


def to_torch(source, normalization=crossnorm.torch.layer):
    """The torch network that computes what ``source`` computes; ``normalization`` makes a layer from a specification.

    torch wants images as (batch, channel, height, width), Keras has (batch, height, width, channel).
    """
    modules = []
    image = None
    for layer in source.layers:
        if isinstance(layer, layers.Conv2D):
            modules.append(_convolution(layer))
        elif isinstance(layer, layers.BatchNormalization):
            modules.append(_normalization(layer, normalization))
        elif isinstance(layer, layers.ReLU):
            modules.append(nn.ReLU())
        elif isinstance(layer, layers.Flatten):
            modules.append(nn.Flatten())
            image = layer.input.shape[1:]
        elif isinstance(layer, layers.Dense):
            modules.append(_dense(layer, image))
            image = None
        else:
            raise NotImplementedError(f"to_torch: no rule for {layer}; add one")
    return nn.Sequential(*modules)


def specification(layer):
    """Our layers know theirs; that of a layer of `keras.layers` is Keras' preset with the layer's own arguments."""
    if isinstance(layer, crossnorm.tensorflow.BatchNormalization):
        return layer.spec
    return crossnorm.preset("keras", "batch_norm", channels=layer.input.shape[-1], eps=layer.epsilon, decay=layer.momentum)


def _normalization(layer, normalization):
    rank = {2: 1, 4: 2}[len(layer.input.shape)]
    return _filled(
        normalization(specification(layer), rank=rank),
        layer,
        weight=layer.gamma.numpy(),
        bias=layer.beta.numpy(),
        running_mean=layer.moving_mean.numpy(),
        running_var=layer.moving_variance.numpy(),
    )


def _convolution(layer):
    module = nn.Conv2d(
        layer.input.shape[-1], layer.filters, layer.kernel_size, layer.strides, layer.padding, bias=layer.use_bias
    )
    # (height, width, in, out) to (out, in, height, width).
    return _filled(module, layer, weight=layer.kernel.numpy().transpose(3, 2, 0, 1), **_bias(layer))


def _dense(layer, image):
    kernel = layer.kernel.numpy()
    if image is not None:
        # The rows stand for the pixels of a flattened image, which torch flattens with the channel first.
        kernel = kernel.reshape(*image, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    module = nn.Linear(*kernel.shape, bias=layer.use_bias)
    return _filled(module, layer, weight=kernel.T, **_bias(layer))


def _bias(layer):
    return {"bias": layer.bias.numpy()} if layer.use_bias else {}


def _filled(module, layer, **arrays):
    """``module`` in the dtype of ``layer``, its state filled with ``arrays``; a missing one or a wrong shape is an error."""
    module.to(getattr(torch, layer.compute_dtype))
    module.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    return module


def native(spec, *, rank):
    """The layer of torch.nn next to ``spec``, for comparison: it cannot store the biased variance, as Keras does."""
    layer = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[rank]
    return layer(spec.channels, spec.eps, momentum=1 - spec.decay)


# 3. The same run in both frameworks: predictions, then some steps of training.


def run_keras(weights, images, labels, dtype):
    """Predictions for all ``images``; the losses of training, one step per batch; running statistics and predictions after."""
    model = network(dtype)
    model.set_weights(weights)
    results = train_in_keras(model, images.astype(dtype), labels)
    normalizations = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    for number, layer in enumerate(normalizations, 1):
        results[f"running mean {number}"] = layer.moving_mean.numpy()
        results[f"running variance {number}"] = layer.moving_variance.numpy()
    return results


def run_torch(weights, images, labels, dtype, normalization=crossnorm.torch.layer):
    """The same in torch."""
    source = network(dtype)
    source.set_weights(weights)
    model = to_torch(source, normalization)
    results = train_in_torch(model, images.astype(dtype), labels)
    normalizations = [module for module in model if hasattr(module, "running_var")]
    for number, module in enumerate(normalizations, 1):
        results[f"running mean {number}"] = module.running_mean.numpy()
        results[f"running variance {number}"] = module.running_var.numpy()
    return results


def main():
    """Print the comparison; return its numbers by column and result."""
    source, accuracy = trained()
    print(f"Trained in Keras for one epoch: {accuracy:.1%} of the validation images are recognised.\n")
    print("The same network in torch:\n", to_torch(source), "\n", sep="")

    images, labels, *_ = digits()
    data = source.get_weights(), images[: STEPS * BATCH], labels[: STEPS * BATCH]
    keras64, keras_units = units_of(run_keras, *data)
    torch64, torch_units = units_of(run_torch, *data)
    keras32, torch32 = run_keras(*data, "float32"), run_torch(*data, "float32")
    columns = {
        "float64": relative(torch64, keras64),
        "keras": in_units(keras32, keras64, keras_units),
        "torch": in_units(torch32, torch64, torch_units),
        "between": in_units(torch32, keras32, keras_units),
        "native": in_units(run_torch(*data, "float32", native), keras32, keras_units),
    }

    print(f"Predictions, {STEPS} steps of SGD with momentum on the same batches, predictions.")
    print("float64: relative difference between the frameworks. float32: in units of the model, more than 32 is a mistake:")
    print("each framework against its own float64; torch against Keras; with torch.nn's layers against Keras.\n")
    print(f"{'':<20}{'float64':>10}{'Keras':>8}{'torch':>8}{'between':>10}{'torch.nn':>10}")
    for name in keras64:
        row = {column: values[name] for column, values in columns.items()}
        print(
            f"{name:<20}{row['float64']:>10.0e}{row['keras']:>8.1f}{row['torch']:>8.1f}"
            f"{row['between']:>10.1f}{row['native']:>10.{0 if row['native'] > VERDICT else 1}f}"
        )
    print(
        "\nThe running variances of torch.nn drift away: it stores the unbiased estimator, n / (n - 1) times the biased one\n"
        f"of Keras, n being {BATCH} after the dense layer. The last predictions, which use them, have changed too."
    )
    return {"accuracy": accuracy, **columns}


if __name__ == "__main__":
    main()
