"""The pure functions: ``(spec, x, parameters, state, mode, *, axis) -> (y, new_state)``, the same for every method.

``parameters`` and ``state`` hold the arrays that the specification names; other names or shapes are refused. `batch_norm`
and `batch_renorm` also take a mask. They mirror ``crossnorm.reference.forward``, and the layers are built on them.

Those of the reparametrizations are ``(spec, weight, parameters, state, mode) -> (effective_weight, new_state)``, rows first.
"""

from .batch_norm import batch_norm as batch_norm
from .batch_renorm import batch_renorm as batch_renorm
from .filter_response_norm import filter_response_norm as filter_response_norm
from .group_norm import group_norm as group_norm
from .instance_norm import instance_norm as instance_norm
from .layer_norm import layer_norm as layer_norm
from .rms_norm import rms_norm as rms_norm
from .spectral_norm import spectral_norm as spectral_norm
from .switchable_norm import switchable_norm as switchable_norm
from .weight_norm import weight_norm as weight_norm
from .weight_standardization import weight_standardization as weight_standardization
