from dataclasses import dataclass
from typing import ClassVar, Literal

from ._base import ArraySpec, NormSpec, running_state


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceNormSpec(NormSpec):
    """Instance normalization: each channel of each sample is standardised over its own positions.

    Formula::

        mean[b, c]     = sum(x[b, c, :]) / p
        variance[b, c] = sum((x[b, c, :] - mean[b, c]) ** 2) / p
        xhat           = (x - mean[b, c]) / sqrt(variance[b, c] + eps)
        y              = scale[c] * xhat + offset[c]

    With ``tracked=True`` a mode without batch statistics uses ``running_mean[c]`` and ``running_variance[c]`` instead, so
    that inference is one affine map per channel.

    | symbol                          | shape                        | meaning                            |
    |---------------------------------|------------------------------|------------------------------------|
    | x, y                            | (batch, channel, *spatial)  | input and output                   |
    | scale, offset                   | (channels,)                  | learned, if the fields say so      |
    | running_mean, running_variance  | (channels,)                  | state, if ``tracked``              |
    | batches_tracked                 | ()                           | state: integer, updates so far     |
    | p                               |                              | positions of one channel           |

    State update (``update_running``, only if ``tracked``)::

        running_mean     = decay * running_mean     + (1 - decay) * average over b of mean[b, c]
        running_variance = decay * running_variance + (1 - decay) * average over b of variance[b, c] * k

    with ``k = p / (p - 1)`` for ``"instance_mean_unbiased"`` and ``k = 1`` for ``"instance_mean_biased"`` (also where p = 1).
    Neither is the variance of the pooled batch.

    Conventions
        - ``eps`` is added to the variance, inside the root.
        - ``decay`` is the weight of the OLD statistic; ``None`` is the plain average of all batches. torch's
          ``momentum=None`` means ``decay=1`` here: its instance norm then never updates.
        - ``single_value``: what happens with one position, also in inference without state: ``"raise"``, or ``"zero"``:
          y = offset.
        - A batch without values changes no state.

    Raises
        SpecError: a field breaks its rule.

    References
        Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022, equation (2), with the learned scale and offset of
        batch normalization. The running statistics are PyTorch's addition.

    >>> InstanceNormSpec(channels=3).state
    ()
    """

    method: ClassVar[str] = "instance_norm"
    reduces: ClassVar[frozenset[str]] = frozenset({"spatial"})

    channels: int
    offset: bool = True
    tracked: bool = False
    decay: float | None = 0.9
    running_variance: Literal["instance_mean_biased", "instance_mean_unbiased"] = "instance_mean_unbiased"
    single_value: Literal["raise", "zero"] = "raise"

    def __post_init__(self) -> None:
        NormSpec.__post_init__(self)
        self._positive_integer("channels")
        self._flag("tracked")
        self._decay()
        self._choice("running_variance", ("instance_mean_biased", "instance_mean_unbiased"))
        self._choice("single_value", ("raise", "zero"))

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return (self.channels,)

    @property
    def state(self) -> tuple[ArraySpec, ...]:
        return running_state(self.channels, self.tracked)
