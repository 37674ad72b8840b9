"""Keras on another backend needs a process of its own; all that the rows ask of a backend is looked at in one.

This file is also the program that runs there, by itself: it imports nothing of the suite.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np


def on_backend(backend: str) -> dict[str, Any]:
    """What Keras does on that backend."""
    finished = _finished(backend)
    if finished.returncode:
        raise RuntimeError(f"Keras on {backend} ended with status {finished.returncode}: {finished.stderr.strip()[-300:]}")
    seen: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return seen


@cache
def _finished(backend: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    # -P: the files beside this one are no top-level modules.
    command = [sys.executable, "-P", "-W", "ignore", __file__, backend]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def _raised(act: Callable[[], Any]) -> str:
    try:
        act()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def _normal(*shape: int, mean: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return (mean + spread * np.random.default_rng(0).normal(size=shape)).astype("float32")


def _error(y: Any, x: np.ndarray, axes: tuple[int, ...], eps: float = 1e-3) -> float:
    """Of an output, against statistics over these axes in float64."""
    x = x.astype("float64")
    wanted = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
    return float(np.abs(y - wanted).max())


def _mask_of_one_channel(keras: Any) -> str:
    """Batch norm of one channel, with a mask."""
    layer = keras.layers.BatchNormalization()
    return _raised(lambda: layer(_normal(2, 4, 1), training=True, mask=np.ones((2, 4), bool)))


def _large_moments(keras: Any) -> float:
    """The mean that ``ops.moments`` finds of a million in bfloat16."""
    mean, _ = keras.ops.moments(keras.ops.cast(np.full((4, 1), 1e6, "float32"), "bfloat16"), axes=[0])
    return float(keras.ops.convert_to_numpy(keras.ops.cast(mean, "float32"))[0])


def _offsets(keras: Any) -> dict[str, list[float]]:
    """Errors of batch and group norm at an offset of 1e2, 1e3, 1e4 with a spread of one."""
    errors: dict[str, list[float]] = {"batch": [], "group": []}
    for mean in (1e2, 1e3, 1e4):
        x = _normal(8, 6, 6, 8, mean=mean)
        y = keras.layers.BatchNormalization()(x, training=True)
        errors["batch"].append(_error(keras.ops.convert_to_numpy(y), x, (0, 1, 2)))
        y = keras.ops.convert_to_numpy(keras.layers.GroupNormalization(groups=4)(x)).reshape(8, 6, 6, 4, 2)
        errors["group"].append(_error(y, x.reshape(8, 6, 6, 4, 2), (1, 2, 4)))
    return errors


def _negative_variance(keras: Any) -> dict[str, float]:
    """The moving variance after one batch of mean 3e3 and spread 0.5, and how much of the output is NaN."""
    x = _normal(32, 256, mean=3e3, spread=0.5)
    layer = keras.layers.BatchNormalization(momentum=0.0)
    trained = keras.ops.convert_to_numpy(layer(x, training=True))
    inferred = keras.ops.convert_to_numpy(layer(x, training=False))
    variance = keras.ops.convert_to_numpy(layer.moving_variance)
    return {
        "least": float(variance.min()),
        "greatest": float(variance.max()),
        "nan in training": float(np.isnan(trained).mean()),
        "nan in inference": float(np.isnan(inferred).mean()),
    }


def _leading_axis(keras: Any) -> dict[str, Any]:
    """Layer and RMS norm over axis 1: what a shape of different sizes raises, and the error where sizes agree."""
    seen: dict[str, Any] = {}
    x = _normal(2, 4, 4)
    for name in ("LayerNormalization", "RMSNormalization"):
        layer = getattr(keras.layers, name)
        seen[name] = {"raised": _raised(lambda layer=layer: layer(axis=1)(_normal(2, 3, 4, 5)))}
        y = keras.ops.convert_to_numpy(layer(axis=1)(x))
        rms = np.sqrt((x.astype("float64") ** 2).mean(1, keepdims=True) + 1e-6)
        last = np.sqrt((x.astype("float64") ** 2).mean(-1, keepdims=True) + 1e-6)
        if name == "LayerNormalization":
            seen[name] |= {"axis 1": _error(y, x, (1,)), "last axis": _error(y, x, (2,))}
        else:
            seen[name] |= {"axis 1": float(np.abs(y - x / rms).max()), "last axis": float(np.abs(y - x / last).max())}
    return seen


def _synchronized(keras: Any) -> dict[str, dict[str, float]]:
    """Two replicas of batch norm on data of different means: errors against the statistics of both, and of its own."""
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    x = _normal(2, 4, 3, 2)
    x[1] += 3
    seen = {}
    for name, mask in (("without a mask", None), ("with a mask", tf.ones((4, 3), bool))):
        with strategy.scope():
            layer = keras.layers.BatchNormalization(synchronized=True)
            layer.build((4, 3, 2))
        shares = strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(x[context.replica_id_in_sync_group])
        )
        y = strategy.run(tf.function(lambda share, layer=layer, mask=mask: layer(share, training=True, mask=mask)), (shares,))
        y = np.stack([local.numpy() for local in strategy.experimental_local_results(y)])
        seen[name] = {"global": _error(y, x, (0, 1, 2)), "local": _error(y, x, (1, 2))}
    return seen


_QUESTIONS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "torch": {
        "mask of one channel": _mask_of_one_channel,
        "large moments": _large_moments,
        "offsets": _offsets,
        "negative variance": _negative_variance,
        "leading axis": _leading_axis,
    },
    "jax": {"mask of one channel": _mask_of_one_channel, "large moments": _large_moments, "offsets": _offsets},
    "tensorflow": {"synchronized": _synchronized},
}

if __name__ == "__main__":
    import keras

    print(json.dumps({name: look(keras) for name, look in _QUESTIONS[sys.argv[1]].items()}))
