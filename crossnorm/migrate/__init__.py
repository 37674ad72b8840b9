"""Moving trained models: from a layer to its description and back, between the frameworks, layer by layer.

This room imports the specifications and the rounding units. Each framework has a folder of its own here, which is imported when
an object of that framework comes along, so that whoever has one framework needs no other.

>>> import torch
>>> from crossnorm.migrate import build, describe
>>> build(*describe(torch.nn.LayerNorm(8, eps=1e-6)), framework="torch").spec.eps
1e-06
"""

from . import rules as rules
from ._convert import convert as convert
from ._description import Description as Description
from ._description import Layout as Layout
from ._description import build as build
from ._description import describe as describe
from ._diff import Difference as Difference
from ._diff import diff as diff
from ._files import load as load
from ._files import save as save
from ._optimizers import OptimizerTransfer as OptimizerTransfer
from ._optimizers import transfer_optimizer as transfer_optimizer
from ._parts import Part as Part
from ._parts import parts as parts
from ._settings import Attention as Attention
from ._settings import Linear as Linear
from ._settings import Recurrent as Recurrent
from ._transfer import Transfer as Transfer
from ._transfer import transfer as transfer
