"""Keras layers, ours and the native ones: described, built, taken apart, traced, converted."""

from .inputs import signature as signature
from .parts import parts as parts
from .trace import record as record
from .trace import replay as replay
from .trace import units as units
