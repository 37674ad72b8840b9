from dataclasses import dataclass
from typing import ClassVar

from ._base import NormSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupNormSpec(NormSpec):
    """Group normalization: the channels of a sample are cut into groups, each standardised over its channels and positions.

    Formula, with ``g = c // (channels // groups)`` the group of channel c::

        mean[b, g]     = average of x[b, c, :] over all positions and
                         the channels c of group g
        variance[b, g] = average of (x[b, c, :] - mean[b, g]) ** 2 over the same
        xhat[b, c, :]  = (x[b, c, :] - mean[b, g]) / sqrt(variance[b, g] + eps)
        y[b, c, :]     = scale[c] * xhat[b, c, :] + offset[c]

    | symbol         | shape                        | meaning                                   |
    |----------------|------------------------------|-------------------------------------------|
    | x, y           | (batch, channel, *spatial)  | input and output, any number of positions |
    | scale, offset  | (channels,)                  | learned, if the fields say so             |

    State update: there is no state; every mode is the same function.

    Conventions
        - Groups are runs of neighbouring channels.
        - ``eps`` is added to the variance, inside the root; the variance is the biased one.
        - ``groups=channels`` is instance normalization; ``groups=1`` is layer normalization over channel and positions,
          but with one scale and offset per channel.

    Raises
        SpecError: a field breaks its rule, ``groups`` does not divide ``channels`` among them.

    References
        Wu and He 2018, arXiv:1803.08494, equations (1), (2), (6) and (7).

    >>> GroupNormSpec(channels=10, groups=4)
    Traceback (most recent call last):
    ...
    crossnorm.errors.SpecError: GroupNormSpec: channels=10 is not divisible by groups=4; choose groups among 1, 2, 5, 10
    """

    method: ClassVar[str] = "group_norm"
    reduces: ClassVar[frozenset[str]] = frozenset({"group", "spatial"})

    channels: int
    groups: int
    offset: bool = True

    def __post_init__(self) -> None:
        NormSpec.__post_init__(self)
        self._positive_integer("channels")
        self._positive_integer("groups")
        if self.channels % self.groups:
            divisors = ", ".join(str(d) for d in range(1, self.channels + 1) if self.channels % d == 0)
            self._refuse(
                f"channels={self.channels} is not divisible by groups={self.groups}", f"choose groups among {divisors}"
            )

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return (self.channels,)
