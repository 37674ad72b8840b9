"""Dtypes: what is rounded when, in which dtype statistics are taken, and in which the output comes."""

import numpy as np

from . import divergence
from ._child import on_backend
from ._peers import jnp, keras, nnx, timm_layers, torch
from ._sightings import Sighting, array, between, near, normal, same


def _rounded(values):
    """To bfloat16 and back."""
    return torch.tensor(values).bfloat16().double().numpy()


@divergence(
    49,
    "rms_norm",
    ("torch", "keras"),
    "In bfloat16, torch's RMS norm rounds once, after the weight; Keras under mixed_bfloat16 rounds the scale first: a "
    "quarter of the outputs differ by one rounding, so no conversion is exact to the bit.",
)
def order_of_rounding():
    weight, x = normal(256, mean=1.0, spread=0.3), _rounded(normal(64, 256))
    ratio = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    layer = torch.nn.RMSNorm(256, eps=1e-6)
    layer.load_state_dict({"weight": torch.tensor(weight)})
    y = array(layer(torch.tensor(x).bfloat16()))
    yield between("torch, share equal to rounding once", (y == _rounded(ratio * weight)).mean(), 0.995, 1)
    yield between("to rounding before the weight", (y == _rounded(_rounded(ratio) * _rounded(weight))).mean(), 0, 0.9)
    layer = keras.layers.RMSNormalization(epsilon=1e-6, dtype="mixed_bfloat16")
    layer.build(x.shape)
    layer.set_weights([weight])
    y = array(layer(x.astype("float32")))
    yield between("keras, to a rounded scale", (y == _rounded(ratio * _rounded(weight))).mean(), 0.995, 1)
    yield between("to one in float32", (y == _rounded(ratio * weight)).mean(), 0, 0.9)


@divergence(
    50,
    "batch_norm",
    ("keras",),
    "Under mixed_bfloat16, Keras' batch norm rounds float32 input to bfloat16 before it takes statistics, and its layer norm "
    "does not: a feature between 1000.1 and 1000.4 has no variance left.",
)
def cast_before_statistics():
    x = np.linspace(1000.1, 1000.4, 16, dtype="float32").reshape(16, 1)
    layer = keras.layers.BatchNormalization(momentum=0.0, dtype="mixed_bfloat16")
    layer(x, training=True)
    yield near("batch norm, moving variance of a true 0.0085", layer.moving_variance, 0)
    y = keras.layers.LayerNormalization(epsilon=1e-6, dtype="mixed_bfloat16")(x.reshape(1, 16))
    yield near("layer norm, spread of the output", array(y).std(), 1, within=1e-2)
    y = keras.layers.GroupNormalization(1, epsilon=1e-6, dtype="mixed_bfloat16")(x.reshape(1, 16))
    yield near("group norm", array(y).std(), 1, within=1e-2)


@divergence(
    51,
    "layer_norm",
    ("torch", "keras", "flax"),
    "bfloat16 input beside float32 parameters comes out of flax as float32 and of torch and Keras as bfloat16: the residual "
    "stream of a ported model changes its dtype.",
)
def output_dtype():
    x = normal(4, 8)
    yield same("flax", str(nnx.LayerNorm(8, rngs=nnx.Rngs(0))(jnp.asarray(x, "bfloat16")).dtype), "float32")
    yield same("torch", str(torch.nn.LayerNorm(8)(torch.tensor(x).bfloat16()).dtype), "torch.bfloat16")
    y = keras.layers.LayerNormalization(dtype="mixed_bfloat16")(keras.ops.cast(x, "bfloat16"))
    yield same("keras", y.dtype.name, "bfloat16")


@divergence(
    52,
    "layer_norm",
    ("torch",),
    "torch's autocast leaves every norm in the input's dtype on the CPU, and lifts layer, RMS and group norm, but not batch "
    "and instance norm, to float32 on CUDA: mixed precision returns other dtypes on other devices.",
)
def autocast():
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    nn = torch.nn
    lifted = {"layer": nn.LayerNorm(8), "RMS": nn.RMSNorm(8), "group": nn.GroupNorm(2, 4)}
    kept = {"batch": nn.BatchNorm1d(4), "instance": nn.InstanceNorm1d(4)}
    for device in devices:
        x = torch.tensor(normal(2, 4, 8)).to(device, torch.bfloat16)
        for name, layer in (lifted | kept).items():
            with torch.autocast(device, dtype=torch.bfloat16):
                dtype = layer.to(device)(x).dtype
            wanted = torch.float32 if device == "cuda" and name in lifted else torch.bfloat16
            yield same(f"{device}, {name} norm", dtype, wanted)
    if "cuda" not in devices:
        yield Sighting("cuda: no device, not looked at", True)


@divergence(
    53,
    "batch_norm",
    ("keras", "keras on torch", "keras on jax"),
    "keras.ops.moments clips the mean of bfloat16 numbers to 65504, float16's largest, on TensorFlow and JAX, and not on "
    "torch: statistics of one's own from it are wrong for large values.",
)
def moments_in_bfloat16():
    mean, _ = keras.ops.moments(keras.ops.cast(np.full((4, 1), 1e6, "float32"), "bfloat16"), axes=[0])
    # The nearest bfloat16 numbers to 65504 and to a million.
    yield same("mean of a million, on TensorFlow", float(array(mean)[0]), 65536.0)
    yield same("on JAX", on_backend("jax")["large moments"], 65536.0)
    yield same("on torch", on_backend("torch")["large moments"], 999424.0)


@divergence(
    54,
    "filter_response_norm",
    ("timm",),
    "timm's filter response normalization squares float16 input in float16: values of 300 overflow and the output is 0 "
    "instead of 1, so inference in half precision dies.",
)
def filter_response_in_half():
    layer = timm_layers("filter_response_norm").FilterResponseNormAct2d(4, apply_act=False)
    for dtype, wanted in ((torch.float32, 1), (torch.float16, 0)):
        yield near(str(dtype), layer(torch.full((1, 4, 2, 2), 300.0, dtype=dtype)), wanted)
