from dataclasses import dataclass
from typing import ClassVar, Literal

from ._base import ArraySpec
from ._weight import EPS_PLACES, EpsPlace, WeightSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectralNormSpec(WeightSpec):
    """Spectral normalization: a weight is divided by its largest singular value, found by power iteration.

    Formula, with the raw weight as a matrix W of (rows, columns)::

        sigma     = u' W v
        effective = W / sigma

    ``u`` and ``v`` approximate the first left and right singular vectors and count as constants: the gradient is
    ``dW = G / sigma - sum(G * W) / sigma ** 2 * u v'`` for a gradient ``G`` of the effective weight.

    State update (``update_running``), ``iterations`` times before sigma is formed::

        v = unit(W' u)        u = unit(W v)         iteration_order = "v_first" (the paper)
        u = unit(W v)         v = unit(W' u)        iteration_order = "u_first"

    where ``unit(p) = p / denominator(p)``, and a product ``p`` of norm 0 leaves the vector as it was.

    | ``eps_place``           | denominator                   |
    |-------------------------|-------------------------------|
    | ``"maximum"``           | max(norm(p), eps)             |
    | ``"maximum_of_square"`` | sqrt(max(norm(p) ** 2, eps))  |
    | ``"added_to_square"``   | sqrt(norm(p) ** 2 + eps)      |

    | symbol       | shape          | meaning                                                    |
    |--------------|----------------|------------------------------------------------------------|
    | W, effective | (rows, *rest)  | raw and effective weight, arranged as `WeightSpec` says    |
    | u            | (rows,)        | state                                                      |
    | v            | (columns,)     | state, if ``stored="uv"``                                  |

    Conventions
        - A mode that uses batch statistics but updates none iterates without storing; one that does neither (inference)
          takes u and v as stored, unless ``iterate="always"``: then it iterates too, without storing.
        - ``stored="u"``: where no iteration gives v, ``v = unit(W' u)``. Not with ``"u_first"``, which starts from v.
        - ``u`` starts as a normal random vector of norm 1, then ``warm_up`` iterations on the weight at hand follow, so that
          inference is right before any training; v is ``unit(W' u)`` before the first of them.
        - sigma = 0 counts as 1, a constant: a weight of zeros stays zero, with a finite gradient.
        - A weight of one dimension is a matrix with one column.

    Raises
        SpecError: a field breaks its rule.

    References
        Miyato, Kataoka, Koyama and Yoshida 2018, arXiv:1802.05957, equations (8), (12) (gradient), Algorithm 1, appendix A.

    >>> spec = SpectralNormSpec(shape=(8, 3, 3, 3))
    >>> {array.name: array.shape for array in spec.state}
    {'u': (8,), 'v': (27,)}
    """

    method: ClassVar[str] = "spectral_norm"

    eps: float = 1e-12
    scale: bool = False
    iterations: int = 1
    iteration_order: Literal["v_first", "u_first"] = "v_first"
    iterate: Literal["training", "always"] = "training"
    stored: Literal["u", "uv"] = "uv"
    warm_up: int = 15
    eps_place: EpsPlace = "maximum"

    def __post_init__(self) -> None:
        WeightSpec.__post_init__(self)
        if self.scale:
            self._refuse("scale=True", "spectral normalization learns no scale")
        self._count("iterations")
        self._count("warm_up")
        self._choice("iteration_order", ("v_first", "u_first"))
        self._choice("iterate", ("training", "always"))
        self._choice("stored", ("u", "uv"))
        if self.stored == "u" and self.iteration_order == "u_first":
            self._refuse("stored='u' with iteration_order='u_first'", "that order starts from v: store 'uv', or say 'v_first'")
        self._choice("eps_place", EPS_PLACES)

    @property
    def state(self) -> tuple[ArraySpec, ...]:
        u, v = ArraySpec("u", (self.rows,), None), ArraySpec("v", (self.columns,), None)
        return (u, v) if self.stored == "uv" else (u,)
