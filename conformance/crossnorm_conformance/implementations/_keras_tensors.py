"""Between NumPy arrays and Keras layers, whatever the backend."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from ..case import Case
from . import Result

POLICIES = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}

Step = Callable[[keras.layers.Layer, Any, Any, bool | None], tuple[Any, Any, dict[str, Any]]]
"""From a layer, its input, the upstream gradient and ``training`` to the output, the input's gradient, and the gradients of the
trainable variables by their paths; the layer's state moves as training moves it."""


def policy(case: Case) -> str:
    """Half inputs go beside float32 variables."""
    return POLICIES.get(case.dtype, case.dtype)


def dense(values: Any, dtype: str) -> Any:
    """An array as the backend's tensor. A view of another array is copied: some backends would keep its strides."""
    return keras.ops.cast(np.ascontiguousarray(values), dtype)


def call(layer: keras.layers.Layer, x: Any, training: bool | None) -> Any:
    """Inference is what a layer does that is told nothing."""
    return layer(x, training=True) if training and layer._call_has_training_arg else layer(x)


def result(values: Any, arrange: Callable[[Any], Any] = np.asarray) -> Result | None:
    """A tensor as NumPy has it; bfloat16, which NumPy lacks, as float32. A gradient that is missing stays so."""
    if values is None:
        return None
    dtype = keras.backend.standardize_dtype(values.dtype)
    held = keras.ops.convert_to_numpy(values)
    return Result(np.array(arrange(held.astype(np.float32) if dtype == "bfloat16" else held)), dtype)


def given(results: dict[tuple[int, str], Result | None]) -> dict[tuple[int, str], Result]:
    """Those that there are."""
    return {key: value for key, value in results.items() if value is not None}


def state_of(layer: keras.layers.Layer | None) -> dict[str, Any]:
    return {} if layer is None else {v.path: np.array(v) for v in layer.non_trainable_variables}
