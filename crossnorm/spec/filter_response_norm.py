from dataclasses import dataclass
from typing import ClassVar, Literal

from ._base import ArraySpec, NormSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterResponseNormSpec(NormSpec):
    """Filter response normalization: each channel of each sample is divided by its own root mean square, then thresholded.

    Formula, over the p positions of one channel of one sample::

        square[b, c] = sum(x[b, c, :] ** 2) / p
        xhat         = x / sqrt(square[b, c] + eps + |learned_eps|)
        z            = scale[c] * xhat + offset[c]
        y            = max(z, threshold)               (y = z without a threshold)

    | symbol        | shape                               | meaning                                                   |
    |---------------|-------------------------------------|-----------------------------------------------------------|
    | x, y          | (batch, channel, *spatial)         | input and output                                          |
    | scale, offset | (channels,)                         | learned, if the fields say so                             |
    | learned_eps   | () or (channels,)                   | learned, ``"scalar"`` or ``"channel"``; starts at 1e-4    |
    | threshold     | (channels,) or (channels, *spatial) | learned, ``"channel"`` or ``"element"``; starts at 0      |
    | p             |                                     | positions of one channel                                  |

    There is no state, and every mode is the same.

    Conventions
        - The squares are formed in float32 at least, whatever the input's dtype.
        - ``threshold=None``: no thresholded linear unit.
        - ``spatial``: the sizes of the positions, which an element-wise threshold needs and nothing else has.
        - Where ``z`` equals the threshold the gradient goes to ``z``, so that a layer fed with zeros can still learn. The
          derivative of ``|learned_eps|`` at 0 is 0.

    Raises
        SpecError: a field breaks its rule.

    References
        Singh and Krishnan 2019, arXiv:1911.09737, equations (1) and (2) (filter response normalization), (3) (threshold);
        section 3.2 for the learned eps.

    >>> [array.name for array in FilterResponseNormSpec(channels=4, learned_eps="scalar").parameters]
    ['scale', 'offset', 'learned_eps', 'threshold']
    >>> FilterResponseNormSpec(channels=4, threshold="element", spatial=(5, 3)).parameters[-1].shape
    (4, 5, 3)
    """

    method: ClassVar[str] = "filter_response_norm"
    reduces: ClassVar[frozenset[str]] = frozenset({"spatial"})

    eps: float = 1e-6
    channels: int
    offset: bool = True
    learned_eps: Literal["scalar", "channel"] | None = None
    threshold: Literal["channel", "element"] | None = "channel"
    spatial: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        NormSpec.__post_init__(self)
        self._positive_integer("channels")
        self._choice("learned_eps", (None, "scalar", "channel"))
        self._choice("threshold", (None, "channel", "element"))
        if (self.threshold == "element") != (self.spatial is not None):
            self._refuse(
                f"threshold={self.threshold!r} with spatial={self.spatial!r}",
                "an element-wise threshold, and nothing else, needs the sizes of the positions",
            )
        if self.spatial is not None:
            self._sizes("spatial")

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return (self.channels,)

    @property
    def parameters(self) -> tuple[ArraySpec, ...]:
        arrays = self._affine_parameters(1.0)
        if self.learned_eps:
            arrays += (ArraySpec("learned_eps", () if self.learned_eps == "scalar" else (self.channels,), 1e-4),)
        if self.threshold:
            arrays += (ArraySpec("threshold", (self.channels, *(self.spatial or ())), 0.0),)
        return arrays
