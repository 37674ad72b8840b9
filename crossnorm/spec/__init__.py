"""The standard: one frozen dataclass per method, whose docstring is the mathematics.

This room imports the standard library only, because everything else in the project is judged by it.
"""

from ._base import INFERENCE as INFERENCE
from ._base import TRAIN as TRAIN
from ._base import UNTRACKED as UNTRACKED
from ._base import ArraySpec as ArraySpec
from ._base import Mode as Mode
from ._base import NormSpec as NormSpec
from ._weight import WeightSpec as WeightSpec
from .batch_norm import BatchNormSpec as BatchNormSpec
from .batch_renorm import BatchRenormSpec as BatchRenormSpec
from .filter_response_norm import FilterResponseNormSpec as FilterResponseNormSpec
from .group_norm import GroupNormSpec as GroupNormSpec
from .instance_norm import InstanceNormSpec as InstanceNormSpec
from .layer_norm import LayerNormSpec as LayerNormSpec
from .presets import FRAMEWORKS as FRAMEWORKS
from .presets import PEERS as PEERS
from .presets import SPECS as SPECS
from .presets import comparison as comparison
from .presets import preset as preset
from .presets import spec_class as spec_class
from .rms_norm import RMSNormSpec as RMSNormSpec
from .spectral_norm import SpectralNormSpec as SpectralNormSpec
from .switchable_norm import SwitchableNormSpec as SwitchableNormSpec
from .weight_norm import WeightNormSpec as WeightNormSpec
from .weight_standardization import WeightStandardizationSpec as WeightStandardizationSpec


def from_dict(data: dict[str, object]) -> NormSpec:
    """The specification that ``to_dict`` wrote; the entry ``"method"`` picks its class.

    >>> spec = RMSNormSpec(shape=(8,))
    >>> from_dict(spec.to_dict()) == spec
    True
    """
    return spec_class(str(data.get("method"))).from_dict(data)
