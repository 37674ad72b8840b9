from dataclasses import dataclass
from typing import ClassVar

from ._base import NormSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNormSpec(NormSpec):
    """Layer normalization: each sample is standardised over its own normalized dimensions.

    Formula::

        mean     = average of x over the normalized dimensions
        variance = average of (x - mean) ** 2 over the same
        y        = scale * (x - mean) / sqrt(variance + eps) + offset

    | symbol         | shape                   | meaning                                        |
    |----------------|-------------------------|------------------------------------------------|
    | x, y           | (*batch, *normalized) | input and output, any number of batch dimensions |
    | scale, offset  | ``shape``, (*normalized) | learned, one per normalized element            |

    State update: there is no state; every mode is the same function.

    Conventions
        - ``shape`` holds the sizes of the normalized dimensions, in order; which axes they are belongs to the layer.
        - ``eps`` is added to the variance, inside the root; the variance is the biased one.
        - ``subtract_mean=False`` keeps the numerator ``x`` and divides by the same root of *variance* plus eps. It is what
          Keras' deprecated ``rms_scaling=True`` computes, and not root mean square normalization.

    Raises
        SpecError: a field breaks its rule, an empty ``shape`` among them.

    References
        Ba, Kiros and Hinton 2016, arXiv:1607.06450, equations (3) and (4); the paper has no eps.

    >>> LayerNormSpec(shape=8).shape
    (8,)
    """

    method: ClassVar[str] = "layer_norm"
    reduces: ClassVar[frozenset[str]] = frozenset({"normalized"})

    shape: tuple[int, ...]
    offset: bool = True
    subtract_mean: bool = True

    def __post_init__(self) -> None:
        NormSpec.__post_init__(self)
        self._sizes()
        self._flag("subtract_mean")

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return self.shape
