"""Between NumPy arrays and what Keras layers give."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..case import Case
from . import Result

POLICIES = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}


def policy(case: Case) -> str:
    """Half inputs go beside float32 variables."""
    return POLICIES.get(case.dtype, case.dtype)


def result(values: tf.Tensor, arrange: Callable[[Any], Any] = np.asarray) -> Result:
    held = tf.cast(values, tf.float32) if values.dtype == tf.bfloat16 else values
    return Result(np.array(arrange(held.numpy())), values.dtype.name)


def state_of(layer: keras.layers.Layer | None) -> dict[str, Any]:
    return {} if layer is None else {v.path: np.array(v) for v in layer.non_trainable_variables}
