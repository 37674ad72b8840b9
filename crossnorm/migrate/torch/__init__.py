"""Torch modules, ours and the native ones: described, built, taken apart."""

from crossnorm import torch as _torch  # noqa: F401 (first: it looks for torch)

from .layers import build as build
from .layers import describe as describe
from .layers import variables as variables
from .layers import write as write
