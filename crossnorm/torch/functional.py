"""The pure functions: ``f(spec, x, parameters, state, mode) -> (y, new_state)``, one signature for every method.

They do what the layers do, without a layer: nothing is stored and nothing is mutated. Those of the reparametrizations take a
raw weight, rows first, for ``x``, and give the effective one for ``y``.
"""

from .batch_norm import batch_norm as batch_norm
from .batch_renorm import batch_renorm as batch_renorm
from .filter_response_norm import filter_response_norm as filter_response_norm
from .group_norm import group_norm as group_norm
from .instance_norm import instance_norm as instance_norm
from .layer_norm import layer_norm as layer_norm
from .rms_norm import rms_norm as rms_norm
from .spectral_norm import effective_weight as spectral_norm  # noqa: F401 (part of this door)
from .switchable_norm import switchable_norm as switchable_norm
from .weight_norm import effective_weight as weight_norm  # noqa: F401
from .weight_standardization import effective_weight as weight_standardization  # noqa: F401
