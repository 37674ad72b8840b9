from dataclasses import dataclass
from typing import ClassVar

from ._base import NormSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class RMSNormSpec(NormSpec):
    """Root mean square normalization: each sample is divided by the root mean square of its normalized dimensions.

    Formula::

        y = scale * x / sqrt(average of x ** 2 over the normalized dimensions + eps)

    | symbol | shape                      | meaning                                        |
    |--------|----------------------------|------------------------------------------------|
    | x, y   | (*batch, *normalized)    | input and output, any number of batch dimensions |
    | scale  | ``shape``, (*normalized)  | learned, one per normalized element            |

    State update: there is no state; every mode is the same function.

    Conventions
        - No mean is subtracted and there is no offset.
        - ``eps`` is added to the mean square, inside the root. torch's ``eps=None`` stands for the machine epsilon of the
          dtype it computes in: 2 ** -23 (float32 and narrower) or 2 ** -52 (float64); here it is always a number.

    Raises
        SpecError: a field breaks its rule, an empty ``shape`` among them.

    References
        Zhang and Sennrich 2019, arXiv:1910.07467, equation (4), without its bias; the paper has no eps.

    >>> RMSNormSpec(shape=8, eps=1e-6).parameters
    (ArraySpec(name='scale', shape=(8,), initial=1.0),)
    """

    method: ClassVar[str] = "rms_norm"
    reduces: ClassVar[frozenset[str]] = frozenset({"normalized"})

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        NormSpec.__post_init__(self)
        self._sizes()

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return self.shape
