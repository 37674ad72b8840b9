"""All weights of a model into another one: its parts matched, copied, and proved."""

from .transfer import Transfer as Transfer
from .transfer import transfer as transfer
