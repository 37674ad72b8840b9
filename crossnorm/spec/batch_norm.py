from dataclasses import dataclass
from typing import ClassVar, Literal

from ._base import ArraySpec, NormSpec, running_state


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchNormSpec(NormSpec):
    """Batch normalization: each channel is standardised over the batch and all positions.

    Formula, with the batch's own statistics (``use_batch_statistics``)::

        mean[c]     = sum(x[:, c, :]) / n
        variance[c] = sum((x[:, c, :] - mean[c]) ** 2) / n
        y           = scale[c] * (x - mean[c]) / sqrt(variance[c] + eps) + offset[c]

    and without them the same with ``running_mean`` and ``running_variance`` in their place.

    | symbol                          | shape                        | meaning                                  |
    |---------------------------------|------------------------------|------------------------------------------|
    | x, y                            | (batch, channel, *spatial)  | input and output, any number of positions |
    | scale, offset                   | (channels,)                  | learned, if the fields say so            |
    | running_mean, running_variance  | (channels,)                  | state, if ``tracked``                    |
    | batches_tracked                 | ()                           | state: integer, updates so far           |
    | n                               |                              | values per channel: batch times positions |

    State update (``update_running``)::

        running_mean     = decay * running_mean     + (1 - decay) * mean
        running_variance = decay * running_variance + (1 - decay) * variance * k

    with ``k = 1`` for ``"biased"`` and ``k = n / (n - 1)`` for ``"unbiased"`` (1 where n = 1). With ``decay=None`` the
    t-th update uses ``decay = (t - 1) / t``: the plain average of all batches.

    Conventions
        - ``eps`` is added to the variance, inside the root.
        - ``decay`` is the weight of the OLD statistic: torch's ``1 - momentum``, Keras' ``momentum``.
        - ``running_variance`` is the estimator that is *stored*; the batch is always normalised by the biased one.
        - ``tracked=False``: no state at all, every mode uses the batch's statistics.
        - ``single_value``: what training does with one value per channel: ``"raise"``, or ``"zero"``: y = offset, variance 0.
        - A batch without values changes no state.

    Raises
        SpecError: a field breaks its rule.

    References
        Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithm 1 (training), Algorithm 2 lines 8 to 11 (inference;
        line 10 is the unbiased estimator).

    >>> spec = BatchNormSpec(channels=3, decay=0.99, running_variance="biased")
    >>> [array.name for array in spec.state]
    ['running_mean', 'running_variance', 'batches_tracked']
    >>> BatchNormSpec(channels=3, decay=1.5)
    Traceback (most recent call last):
    ...
    crossnorm.errors.SpecError: BatchNormSpec: decay=1.5 is outside [0, 1]; decay is the weight of the OLD statistic: \
1 - momentum in torch, momentum in Keras
    """

    method: ClassVar[str] = "batch_norm"
    reduces: ClassVar[frozenset[str]] = frozenset({"batch", "spatial"})

    channels: int
    offset: bool = True
    decay: float | None = 0.9
    running_variance: Literal["biased", "unbiased"] = "unbiased"
    tracked: bool = True
    single_value: Literal["raise", "zero"] = "raise"

    def __post_init__(self) -> None:
        NormSpec.__post_init__(self)
        self._positive_integer("channels")
        self._decay()
        self._choice("running_variance", ("biased", "unbiased"))
        self._flag("tracked")
        self._choice("single_value", ("raise", "zero"))

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return (self.channels,)

    @property
    def state(self) -> tuple[ArraySpec, ...]:
        return running_state(self.channels, self.tracked)
