from dataclasses import dataclass
from typing import ClassVar, Literal

from ._base import ArraySpec, NormSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SwitchableNormSpec(NormSpec):
    """Switchable normalization: learned mixtures of instance, layer and batch statistics, one for means, one for variances.

    Formula, for sample b, channel c and its p positions::

        mean_in[b, c]     = sum(x[b, c, :]) / p
        variance_in[b, c] = sum((x[b, c, :] - mean_in[b, c]) ** 2) / p
        mean_ln[b]        = average over c of mean_in[b, c]
        variance_ln[b]    = average over c of
                            variance_in[b, c] + (mean_in[b, c] - mean_ln[b]) ** 2
        mean_bn[c]        = average over b of mean_in[b, c]
        variance_bn[c]    = average over b of
                            variance_in[b, c] + (mean_in[b, c] - mean_bn[c]) ** 2

        w        = softmax(mean_logits)
        v        = softmax(variance_logits)
        mean     = sum over k in (in, ln, bn) of w[k] * mean_k
        variance = sum over k in (in, ln, bn) of v[k] * variance_k
        xhat     = (x - mean[b, c]) / sqrt(variance[b, c] + eps)
        y        = scale[c] * xhat + offset[c]

    Without batch statistics ``running_mean`` and ``running_variance`` take the place of ``mean_bn`` and ``variance_bn``; the
    others always come from the sample at hand.

    | symbol                         | shape                        | meaning                                          |
    |--------------------------------|------------------------------|--------------------------------------------------|
    | x, y                           | (batch, channel, *spatial)  | input and output                                 |
    | scale, offset                  | (channels,)                  | learned, if the fields say so                    |
    | mean_logits, variance_logits   | (k,)                         | learned; k statistics in the order in, ln, bn    |
    | running_mean, running_variance | (channels,)                  | state, if ``use_batch``                          |
    | batches_tracked                | ()                           | state, if ``use_batch``: integer, updates so far |

    State update (``update_running``)::

        running_mean     = decay * running_mean     + (1 - decay) * mean_bn
        running_variance = decay * running_variance + (1 - decay) * (variance_bn + e)

    with ``e = 0`` or, if ``pooled``, ``e = decay * (mean_bn - old running_mean) ** 2``: the variance of all batches together
    instead of the average of theirs. With ``decay=None`` the t-th update uses ``decay = (t - 1) / t``.

    Conventions
        - ``use_instance=False``, ``use_batch=False``: the mixture has no such statistic, the logits no such entry. The layer's
          statistics are always there.
        - ``variance``: ``"biased"`` is the formula above. ``"unbiased_instance"``: ``variance_in`` has p - 1 in place of p, and
          the other two are derived from that one. ``"unbiased"``: every variance is multiplied by n / (n - 1), n the number of
          its values. Wherever that would divide by zero the factor is 1.
        - ``decay=None`` with ``pooled=True`` is the authors' sum-and-average mode (``using_moving_average=False``), divided.
        - ``last_gamma``: ``scale`` starts at 0 instead of 1.
        - ``initial_variance``: where ``running_variance`` starts.
        - ``eps`` is added to the mixed variance, inside the root.
        - A batch without values changes no state.

    Raises
        SpecError: a field breaks its rule.

    References
        Luo, Ren, Peng, Zhang and Li 2018, arXiv:1806.10779, equation (3) (mixtures), (4) (derived statistics), (5) (softmax).

    >>> spec = SwitchableNormSpec(channels=4)
    >>> {array.name: array.shape for array in spec.parameters}
    {'scale': (4,), 'offset': (4,), 'mean_logits': (3,), 'variance_logits': (3,)}
    >>> SwitchableNormSpec(channels=4, use_batch=False).state
    ()
    """

    method: ClassVar[str] = "switchable_norm"
    reduces: ClassVar[frozenset[str]] = frozenset({"batch", "channel", "spatial"})

    channels: int
    offset: bool = True
    use_instance: bool = True
    use_batch: bool = True
    variance: Literal["biased", "unbiased_instance", "unbiased"] = "biased"
    decay: float | None = 0.9
    pooled: bool = False
    initial_variance: float = 1.0
    last_gamma: bool = False

    def __post_init__(self) -> None:
        NormSpec.__post_init__(self)
        self._positive_integer("channels")
        for name in ("use_instance", "use_batch", "pooled", "last_gamma"):
            self._flag(name)
        self._choice("variance", ("biased", "unbiased_instance", "unbiased"))
        self._decay()
        self._set("initial_variance", self._number("initial_variance", self.initial_variance))
        if not 0 <= self.initial_variance < float("inf"):
            self._refuse(f"initial_variance={self.initial_variance!r} is not a finite number >= 0", "use 1 or 0")

    @property
    def statistics(self) -> tuple[str, ...]:
        """The statistics that are mixed, in the order of the logits.

        >>> SwitchableNormSpec(channels=4, use_instance=False).statistics
        ('layer', 'batch')
        """
        used = {"instance": self.use_instance, "layer": True, "batch": self.use_batch}
        return tuple(name for name, use in used.items() if use)

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return (self.channels,)

    @property
    def parameters(self) -> tuple[ArraySpec, ...]:
        affine = self._affine_parameters(0.0 if self.last_gamma else 1.0)
        logits = (len(self.statistics),)
        return (*affine, ArraySpec("mean_logits", logits, 1.0), ArraySpec("variance_logits", logits, 1.0))

    @property
    def state(self) -> tuple[ArraySpec, ...]:
        if not self.use_batch:
            return ()
        return (
            ArraySpec("running_mean", (self.channels,), 0.0),
            ArraySpec("running_variance", (self.channels,), self.initial_variance),
            ArraySpec("batches_tracked", (), 0),
        )
