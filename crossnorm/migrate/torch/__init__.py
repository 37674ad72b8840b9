"""Torch modules, ours and the native ones: described, built, taken apart."""

from .trace import record as record
from .trace import replay as replay
from .trace import units as units
