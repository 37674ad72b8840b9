"""What a model declares of its inputs."""

from typing import Any

import keras


def signature(model: Any) -> list[tuple[tuple[int | None, ...], str]] | None:
    """Shapes and dtypes, None for an open size; None of a model that takes what it is given."""
    try:
        inputs = keras.tree.flatten(model.inputs)
    except (AttributeError, ValueError):
        return None
    return [(tuple(each.shape), str(each.dtype)) for each in inputs] if inputs else None
