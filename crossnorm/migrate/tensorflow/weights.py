"""Keras models and weights from files."""

from pathlib import Path

import keras

from crossnorm.errors import MigrationError


def load_model(path: Path) -> keras.Model:
    """A whole model, without code from the file."""
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever it meets
        reason = " ".join(str(error).split())
        raise MigrationError(
            f"crossnorm.migrate: {path} cannot be loaded ({reason}); import the layers of your own that it uses, and name the "
            "function that makes the model"
        ) from error


def load_weights(model: keras.Model, path: Path) -> None:
    """Weights that Keras saved, into a built model."""
    try:
        model.load_weights(path)
    except Exception as error:  # Keras raises whatever it meets
        reason = " ".join(str(error).split())
        raise MigrationError(
            f"crossnorm.migrate: the weights in {path} are not of {model.name!r} ({reason}); give those of this model"
        ) from error
