"""crossnorm: normalization layers that mean the same thing in PyTorch and TensorFlow.

This door opens on the specifications and imports neither framework. The layers live in ``crossnorm.torch`` and
``crossnorm.tensorflow``.

>>> import crossnorm
>>> crossnorm.preset("keras", "batch_norm", channels=16).eps
0.001
"""

from .errors import CrossnormError as CrossnormError
from .errors import MigrationError as MigrationError
from .errors import SpecError as SpecError
from .errors import Unsupported as Unsupported
from .spec import INFERENCE as INFERENCE
from .spec import TRAIN as TRAIN
from .spec import UNTRACKED as UNTRACKED
from .spec import BatchNormSpec as BatchNormSpec
from .spec import BatchRenormSpec as BatchRenormSpec
from .spec import FilterResponseNormSpec as FilterResponseNormSpec
from .spec import GroupNormSpec as GroupNormSpec
from .spec import InstanceNormSpec as InstanceNormSpec
from .spec import LayerNormSpec as LayerNormSpec
from .spec import Mode as Mode
from .spec import NormSpec as NormSpec
from .spec import RMSNormSpec as RMSNormSpec
from .spec import SpectralNormSpec as SpectralNormSpec
from .spec import SwitchableNormSpec as SwitchableNormSpec
from .spec import WeightNormSpec as WeightNormSpec
from .spec import WeightSpec as WeightSpec
from .spec import WeightStandardizationSpec as WeightStandardizationSpec
from .spec import from_dict as from_dict
from .spec import preset as preset

__version__ = "0.1.0"
