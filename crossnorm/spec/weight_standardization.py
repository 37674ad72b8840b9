import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ._weight import WeightSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightStandardizationSpec(WeightSpec):
    """Weight standardization: each row of a weight, what one output sees, is standardised.

    Formula, over the n numbers of row o of the raw weight w::

        mean[o]     = sum(w[o, :]) / n
        variance[o] = sum((w[o, :] - mean[o]) ** 2) / (n - ddof)
        effective   = scale[o] * factor * (w - mean[o]) / denominator[o]

    | ``eps_place``   | denominator                       | used by                                        |
    |-----------------|-----------------------------------|------------------------------------------------|
    | ``"variance"``  | sqrt(variance + eps)              | timm                                           |
    | ``"deviation"`` | sqrt(variance) + eps              | the authors                                    |
    | ``"maximum"``   | sqrt(max(variance, eps / n))      | DeepMind's networks without normalizer, which  |
    |                 |                                   | write sqrt(max(n * variance, eps)) / sqrt(n)   |

    and ``factor`` is ``gain``, or ``gain / sqrt(n)`` if ``fan_in_scaling``.

    | symbol       | shape          | meaning                                                      |
    |--------------|----------------|--------------------------------------------------------------|
    | w, effective | (rows, *rest)  | raw and effective weight, arranged as `WeightSpec` says      |
    | scale        | (rows,)        | learned gain of each row, if the field says so; starts at 1  |
    | n            |                | numbers in a row: the fan-in                                 |

    There is no state, and every mode is the same.

    Conventions
        - ``ddof`` is what the divisor of the variance lacks: 0 or 1.
        - ``gain`` is the constant that makes up for the activation function: ``sqrt(2 / (1 - 1 / pi))`` for ReLU.
        - A row of one number, or of equal numbers, has an effective weight of 0. The variance's derivative counts as 0 there,
          a denominator of 0 as 1.

    Raises
        SpecError: a field breaks its rule.

    References
        Qiao, Wang, Liu, Shen and Yuille 2019, arXiv:1903.10520, equations (2) and (3); Brock, De and Smith 2021,
        arXiv:2101.08692, equation (1) for the scaled variant.

    >>> spec = WeightStandardizationSpec(shape=(8, 3, 3, 3), scale=True, gain=1.7, fan_in_scaling=True)
    >>> round(spec.factor, 4), spec.parameters[0].shape
    (0.3272, (8,))
    """

    method: ClassVar[str] = "weight_standardization"

    scale: bool = False
    ddof: Literal[0, 1] = 0
    eps_place: Literal["variance", "deviation", "maximum"] = "variance"
    gain: float = 1.0
    fan_in_scaling: bool = False

    def __post_init__(self) -> None:
        WeightSpec.__post_init__(self)
        if isinstance(self.ddof, bool) or self.ddof not in (0, 1):
            self._refuse(f"ddof={self.ddof!r} is not 0 or 1", "choose the biased or the unbiased variance")
        self._set("ddof", int(self.ddof))
        self._choice("eps_place", ("variance", "deviation", "maximum"))
        self._set("gain", self._number("gain", self.gain))
        if not (math.isfinite(self.gain) and self.gain > 0):
            self._refuse(f"gain={self.gain!r} is not a finite number > 0", "give the activation function's constant, or 1")
        self._flag("fan_in_scaling")

    @property
    def factor(self) -> float:
        """The constant that multiplies the standardised weight."""
        return self.gain / math.sqrt(self.columns) if self.fan_in_scaling else self.gain
