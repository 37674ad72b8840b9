"""Cases of spectral normalization."""

from functools import partial

from crossnorm import SpectralNormSpec

from ..case import Case
from . import _weights
from ._base import Fault

AXES = _weights.axes(
    {
        "paper": {},
        "torch": {"iteration_order": "u_first", "embedding_row": "input"},
        "torch_hook": {"embedding_row": "input"},
        "keras": {"eps": 1e-7, "stored": "u", "transposed_row": "input", "depthwise_row": "multiplier"},
        "flax": {"eps": 1e-12, "eps_place": "added_to_square", "stored": "u", "iterate": "always"},
        "tfa": {"eps": 1e-12, "eps_place": "maximum_of_square", "stored": "u"},
        "three": {"iterations": 3},
        "none": {"iterations": 0},
    }
)
build = partial(_weights.build, SpectralNormSpec)


def cases() -> list[Case]:
    return _weights.cases(SpectralNormSpec, AXES, flax="dense")


def faults() -> list[Fault]:
    spec = SpectralNormSpec(shape=(4, 6))
    return _weights.faults(SpectralNormSpec) + [
        Fault(name=f"{name}_{value}", spec=spec, arguments={name: value}, shape=(2, 6))
        for name, value in (("iterations", -1), ("iterations", 1.5), ("warm_up", -1), ("iterate", "sometimes"))
    ]
