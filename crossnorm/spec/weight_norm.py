from dataclasses import dataclass
from typing import ClassVar, Literal

from ._base import ArraySpec
from ._weight import EPS_PLACES, EpsPlace, WeightSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightNormSpec(WeightSpec):
    """Weight normalization: a weight's length is learned apart from its direction.

    Formula, for each row o of the raw weight, or for all of it (``norm_over="whole"``)::

        norm[o]   = sqrt(sum(w[o, :] ** 2))
        effective = scale[o] * w / denominator[o]

    | ``eps_place``           | denominator                |
    |-------------------------|----------------------------|
    | ``"maximum"``           | max(norm, eps)             |
    | ``"maximum_of_square"`` | sqrt(max(norm ** 2, eps))  |
    | ``"added_to_square"``   | sqrt(norm ** 2 + eps)      |

    | symbol       | shape                          | meaning                                                    |
    |--------------|--------------------------------|------------------------------------------------------------|
    | w, effective | (rows, *rest)                  | raw weight (the direction) and effective weight            |
    | scale        | (rows,), or () for the whole   | learned length, if the field says so                       |

    There is no state, and every mode is the same.

    Conventions
        - ``initial_scale``: ``"norm"``: the norm of the initial weight, so that nothing changes at first; ``"ones"``; or
          ``"data"``: from a first batch, as the paper's section 3 has it. There the layer's outputs ``t`` with ``scale = 1``
          and no bias are standardised for each row: ``scale = 1 / deviation(t)``, ``bias = -mean(t) / deviation(t)``, the
          biased deviation over batch and positions; one of 0 counts as 1. Until then it is ``"norm"``.
        - A norm of 0 counts as 1, a constant: a weight of zeros stays zero, with a finite gradient.
        - ``scale=False``: the effective weight has rows of norm 1.

    Raises
        SpecError: a field breaks its rule.

    References
        Salimans and Kingma 2016, arXiv:1602.07868, equations (2) (formula), (3) (gradients), (5) and (6)
        (initialisation from data).

    >>> WeightNormSpec(shape=(8, 3, 3, 3)).parameters
    (ArraySpec(name='scale', shape=(8,), initial=None),)
    >>> WeightNormSpec(shape=(8, 3), norm_over="whole").parameters[0].shape
    ()
    """

    method: ClassVar[str] = "weight_norm"

    eps: float = 0.0
    norm_over: Literal["row", "whole"] = "row"
    initial_scale: Literal["norm", "ones", "data"] = "norm"
    eps_place: EpsPlace = "maximum"

    def __post_init__(self) -> None:
        WeightSpec.__post_init__(self)
        self._choice("norm_over", ("row", "whole"))
        self._choice("initial_scale", ("norm", "ones", "data"))
        self._choice("eps_place", EPS_PLACES)
        if self.initial_scale == "data" and self.norm_over == "whole":
            self._refuse("initial_scale='data' with norm_over='whole'", "a batch gives one length for each row: say 'row'")

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return (self.rows,) if self.norm_over == "row" else ()

    @property
    def parameters(self) -> tuple[ArraySpec, ...]:
        return self._affine_parameters(1.0 if self.initial_scale == "ones" else None)
