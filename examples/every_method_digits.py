"""Every method, in both frameworks: the same specification, the same initial weights, the same training.

What you learn:

- how a layer comes from a specification: `crossnorm.tensorflow.layer(spec)` and `crossnorm.torch.layer(spec)`; where a method
  reparametrizes a weight, with the layer that has it;
- where each array of a specification is kept in either framework: the tables `NAMES` and `NAMES_OF_METHOD`;
- that five training steps with each method give the same losses, and afterwards the same predictions, up to rounding: the
  difference is measured in units of what rounding the weights and inputs once could have caused.

Run it, under a minute on one core:

    python examples/every_method_digits.py
"""

from functools import cache, partial

import keras
import torch
from _digits import BATCH, STEPS, digits, in_units, relative, train_in_keras, train_in_torch, units_of
from keras import layers
from torch import nn

import crossnorm
import crossnorm.tensorflow
import crossnorm.torch
from crossnorm.spec import WeightSpec

CHANNELS, FEATURES = 16, 32
KERNEL = (CHANNELS, 1, 3, 3)

# Nothing but what training with so few steps needs: a fast average, and a schedule that begins and ends within them.
SPECIFICATIONS = [
    crossnorm.BatchNormSpec(channels=CHANNELS),
    crossnorm.LayerNormSpec(shape=FEATURES),
    crossnorm.GroupNormSpec(channels=CHANNELS, groups=4),
    crossnorm.InstanceNormSpec(channels=CHANNELS, tracked=True),
    crossnorm.RMSNormSpec(shape=FEATURES),
    crossnorm.BatchRenormSpec(channels=CHANNELS, decay=0.75, r_max=1.5, d_max=0.5, r_max_steps=(1, 3), d_max_steps=(1, 4)),
    crossnorm.SwitchableNormSpec(channels=CHANNELS),
    crossnorm.FilterResponseNormSpec(channels=CHANNELS, learned_eps="scalar"),
    crossnorm.WeightStandardizationSpec(shape=KERNEL, scale=True, gain=1.7, fan_in_scaling=True),
    crossnorm.SpectralNormSpec(shape=KERNEL),
    crossnorm.WeightNormSpec(shape=KERNEL),
]

# Where a layer keeps the arrays of its specification: in Keras, in torch.
NAMES = {
    "scale": ("gamma", "weight"),
    "offset": ("beta", "bias"),
    "running_mean": ("moving_mean", "running_mean"),
    "running_variance": ("moving_variance", "running_var"),
    "running_standard_deviation": ("moving_stddev", "running_std"),
    "mean_logits": ("mean_logits", "mean_weight"),
    "variance_logits": ("variance_logits", "var_weight"),
    "learned_eps": ("learned_epsilon", "learned_eps"),
    "threshold": ("tau", "tau"),
}
# Where a method differs. Those of a reparametrization are in the Keras wrapper, and in the parametrized module of torch.
NAMES_OF_METHOD = {
    "rms_norm": {"scale": ("scale", "weight")},
    "weight_standardization": {"scale": ("gain", "parametrizations.weight.0.gain")},
    "spectral_norm": {"u": ("u", "parametrizations.weight.0._u"), "v": ("v", "parametrizations.weight.0._v")},
    "weight_norm": {"scale": ("gain", "parametrizations.weight.original0")},
}


# 1. The network in Keras. The method stands after the convolution or after the dense layer, or in the convolution.


@cache
def keras_network(spec, dtype):
    """Made once; every run sets all of its weights."""
    convolution = layers.Conv2D(CHANNELS, 3, padding="same", use_bias=False, dtype=dtype)
    after_convolution, after_dense = [], []
    if isinstance(spec, WeightSpec):
        convolution = crossnorm.tensorflow.layer(spec, wrapped=convolution, dtype=dtype)
    else:
        normalization = crossnorm.tensorflow.layer(spec, dtype=dtype)
        (after_convolution if hasattr(spec, "channels") else after_dense).append(normalization)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), dtype=dtype),
            convolution,
            *after_convolution,
            layers.ReLU(dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(FEATURES, use_bias=False, dtype=dtype),
            *after_dense,
            layers.ReLU(dtype=dtype),
            layers.Dense(10, dtype=dtype),
        ]
    )


# 2. The same network in torch, with the arrays of the other.


def torch_network(spec, source):
    """The torch network with the arrays of ``source``, a Keras network for the same specification."""
    convolution, normalization = source.layers[0], None
    if not isinstance(spec, WeightSpec):
        (normalization,) = (layer for layer in source.layers if getattr(layer, "spec", None) == spec)
    hidden, logits = (layer for layer in source.layers if isinstance(layer, layers.Dense))
    dtype = getattr(torch, logits.compute_dtype)

    ours = _convolution(spec, convolution, dtype)
    after_convolution, after_dense = [], []
    if normalization is not None:
        module = crossnorm.torch.layer(spec, dtype=dtype)
        _copy(spec, normalization, module)
        (after_convolution if hasattr(spec, "channels") else after_dense).append(module)
    return nn.Sequential(
        ours,
        *after_convolution,
        nn.ReLU(),
        nn.Flatten(),
        _dense(hidden, dtype, image=(8, 8, CHANNELS)),
        *after_dense,
        nn.ReLU(),
        _dense(logits, dtype),
    )


def _convolution(spec, layer, dtype):
    module = nn.Conv2d(1, CHANNELS, 3, padding="same", bias=False, dtype=dtype)
    kernel = (layer.layer if isinstance(spec, WeightSpec) else layer).kernel
    with torch.no_grad():
        # (height, width, in, out) to (out, in, height, width).
        module.weight.copy_(torch.tensor(kernel.numpy().transpose(3, 2, 0, 1)))
    if isinstance(spec, WeightSpec):
        module = crossnorm.torch.layer(spec, module=module)
        _copy(spec, layer, module)
    return module


def _dense(layer, dtype, image=None):
    kernel = layer.kernel.numpy()
    if image is not None:
        # The rows stand for the pixels of a flattened image, which torch flattens with the channel first.
        kernel = kernel.reshape(*image, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    module = nn.Linear(*kernel.shape, bias=layer.use_bias, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(kernel.T))
        if layer.use_bias:
            module.bias.copy_(torch.tensor(layer.bias.numpy()))
    return module


def _copy(spec, layer, module):
    """Every array of ``spec`` from the Keras layer to the torch module; the counter of the batches starts at 0 in both."""
    names = NAMES | NAMES_OF_METHOD.get(spec.method, {})
    arrays = dict(module.named_parameters()) | dict(module.named_buffers())
    for array in (*spec.parameters, *spec.state):
        if array.name == "batches_tracked":
            continue
        keras_name, torch_name = names[array.name]
        target = arrays[torch_name]
        with torch.no_grad():
            target.copy_(torch.tensor(getattr(layer, keras_name).numpy()).reshape(target.shape))


# 3. The same run in both.


def run_keras(spec, weights, images, labels, dtype):
    model = keras_network(spec, dtype)
    model.set_weights(weights)
    return train_in_keras(model, images.astype(dtype), labels)


def run_torch(spec, weights, images, labels, dtype):
    source = keras_network(spec, dtype)
    source.set_weights(weights)
    return train_in_torch(torch_network(spec, source), images.astype(dtype), labels)


def compared(spec, images, labels):
    """The last losses in float32 and how far the frameworks are apart: in units of the model, and in float64."""
    keras.utils.set_random_seed(0)
    weights = keras_network(spec, "float32").get_weights()
    in_torch, in_keras = partial(run_torch, spec), partial(run_keras, spec)
    torch64, units = units_of(in_torch, weights, images, labels)
    data = weights, images, labels
    keras32, torch32 = in_keras(*data, "float32"), in_torch(*data, "float32")
    return {
        "keras": float(keras32["losses"][-1]),
        "torch": float(torch32["losses"][-1]),
        "units": in_units(keras32, torch32, units),
        "float64": relative(in_keras(*data, "float64"), torch64),
    }


def main():
    """Print the comparison; return its numbers by method."""
    images, labels, *_ = digits()
    images, labels = images[: STEPS * BATCH], labels[: STEPS * BATCH]
    print(
        f"Loss of step {STEPS} in float32; the largest difference between the frameworks over all {STEPS} losses and over the"
    )
    print("predictions after them, in units of the model, more than 32 being a mistake; and over both in float64, relative.\n")
    print(f"{'':<24}{'Keras':>9}{'torch':>9}{'losses':>9}{'predictions':>13}{'float64':>9}")
    results = {}
    for spec in SPECIFICATIONS:
        row = results[spec.method] = compared(spec, images, labels)
        print(
            f"{spec.method:<24}{row['keras']:>9.5f}{row['torch']:>9.5f}"
            f"{row['units']['losses']:>9.1f}{row['units']['last predictions']:>13.1f}{max(row['float64'].values()):>9.0e}"
        )
    return results


if __name__ == "__main__":
    main()
