"""Keras layers, ours and the native ones: described, built, taken apart, traced, converted."""

from .convert import convert as convert
from .convert import is_ours as is_ours
from .convert import synchronized as synchronized
from .inputs import signature as signature
from .layers import build as build
from .layers import describe as describe
from .layers import variables as variables
from .layers import write as write
from .parts import parts as parts
from .rebuild import activated as activated
from .rebuild import rebuilt as rebuilt
from .trace import layers_in as layers_in
from .trace import record as record
from .trace import replay as replay
from .trace import units as units
from .weights import load_model as load_model
from .weights import load_weights as load_weights
