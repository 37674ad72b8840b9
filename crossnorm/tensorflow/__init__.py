"""The TensorFlow adapter: Keras layers that obey the specifications, drop-in for the native ones.

It imports TensorFlow, Keras (on the TensorFlow backend) and the specifications, and nothing of another framework. Once it is
imported, models that hold its layers load from ``.keras`` files without ``custom_objects``.

>>> import crossnorm, crossnorm.tensorflow
>>> crossnorm.tensorflow.layer(crossnorm.preset("keras", "group_norm", channels=64)).groups
32
"""

from . import _requirements as _requirements  # first: a missing framework is one sentence
from . import functional as functional
from ._base import ArgumentTypeError as ArgumentTypeError
from ._base import AxisError as AxisError
from ._base import ShapeError as ShapeError
from ._layer import layer as layer
from ._requirements import FrameworkError as FrameworkError
from .batch_norm import BatchNormalization as BatchNormalization
from .batch_renorm import BatchRenormalization as BatchRenormalization
from .filter_response_norm import FilterResponseNormalization as FilterResponseNormalization
from .group_norm import GroupNormalization as GroupNormalization
from .instance_norm import InstanceNormalization as InstanceNormalization
from .layer_norm import LayerNormalization as LayerNormalization
from .rms_norm import RMSNormalization as RMSNormalization
from .spectral_norm import SpectralNormalization as SpectralNormalization
from .switchable_norm import SwitchableNormalization as SwitchableNormalization
from .weight_norm import WeightNormalization as WeightNormalization
from .weight_norm import initialize_from_data as initialize_from_data
from .weight_standardization import WeightStandardization as WeightStandardization
