"""Weights from a file, without unpickling code."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from crossnorm.errors import MigrationError


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dictionary, which ``torch.save`` or safetensors wrote."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, UnpicklingError, RuntimeError, SafetensorError) as error:
        raise MigrationError(f"crossnorm.migrate: {path} holds no weights ({_line(error)}); save a state_dict()") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        shown = " ".join(str(error).split())
        raise MigrationError(
            f"crossnorm.migrate: the weights in {path} are not of {type(model).__name__} ({shown}); give those of this model"
        ) from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
