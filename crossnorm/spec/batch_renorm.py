import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ._axes import integer
from ._base import ArraySpec, NormSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRenormSpec(NormSpec):
    """Batch renormalization: batch normalization whose training output is corrected towards the running statistics.

    Formula, with the batch's own statistics (``use_batch_statistics``)::

        mean[c]      = sum(x[:, c, :]) / n
        deviation[c] = sqrt(sum((x[:, c, :] - mean[c]) ** 2) / n + eps)
        r[c]         = clip(deviation[c] / s[c], r_min, r_max)
        d[c]         = clip((mean[c] - m[c]) / s[c], -d_max, d_max)
        xhat         = (x - mean[c]) / deviation[c]
        y            = scale[c] * (xhat * r[c] + d[c]) + offset[c]

    where ``m`` and ``s`` are the running mean and standard deviation before this batch (``s = sqrt(variance + eps)`` where the
    variance is kept; never less than ``sqrt(eps)``). ``r`` and ``d`` count as constants: no gradient flows through them.
    Without batch statistics::

        y = scale[c] * (x - running mean) / (running standard deviation) + offset[c]

    | symbol                             | shape                        | meaning                                    |
    |------------------------------------|------------------------------|--------------------------------------------|
    | x, y                               | (batch, channel, *spatial)  | input and output, any number of positions  |
    | scale, offset                      | (channels,)                  | learned, if the fields say so              |
    | running_mean                       | (channels,)                  | state                                      |
    | running_variance                   | (channels,)                  | state, if a variance is kept               |
    | running_standard_deviation         | (channels,)                  | state, if ``"standard_deviation"`` is kept |
    | renorm_mean, renorm_variance or    | (channels,)                  | state, if ``renorm_decay`` is given        |
    | renorm_standard_deviation          |                              |                                            |
    | batches_tracked                    | ()                           | state: integer t, updates so far           |
    | n                                  |                              | values per channel: batch times positions  |

    State update (``update_running``), for every quantity ``q`` of the batch that is kept::

        running_q = decay * running_q + (1 - decay) * q

    The bounds relax with ``t``, the number of updates before this batch. With ``r_max_steps = (a, b)``::

        ramp  = clip((t - a) / (b - a), 0, 1)       (1 from t = b on, where a = b)
        r_max = 1 + (r_max - 1) * ramp
        r_min = 1 / r_max, or 1 + (r_min - 1) * ramp if a r_min is given

    and ``d_max * ramp`` with ``d_max_steps``. Up to step ``a`` it is batch normalization: r = 1 and d = 0.

    Conventions
        - ``running_quantity``: ``"standard_deviation"``, eps included, as in the paper; ``"biased_variance"`` or
          ``"unbiased_variance"`` (n / (n - 1) times the biased one; 1 where n = 1), as batch normalization keeps it.
        - ``renorm_decay=None``: one pair of running quantities serves r, d and inference. A number: a second pair, decayed by
          it, is ``m`` and ``s``, and the running pair serves inference only. Together with ``"standard_deviation"`` inference
          then reads a ``running_variance`` that each update sets to ``max(running_standard_deviation ** 2 - eps, 0)``:
          Keras keeps both.
        - ``r_max=None`` and ``d_max=None`` are no bounds; ``r_min=None`` is ``1 / r_max``, ``r_min=0`` no bound.
        - ``r_max_steps=None``, ``d_max_steps=None``: the bounds hold from the first step on.
        - ``decay`` is the weight of the OLD statistic, one minus the paper's alpha; ``None`` averages all batches.
        - ``single_value``: what training does with one value per channel: ``"raise"``, or ``"zero"``: xhat = 0.
        - A batch without values changes no state.

    Raises
        SpecError: a field breaks its rule; bounds that exclude r = 1 or d = 0 are none.

    References
        Ioffe 2017, arXiv:1702.03275, Algorithm 1 (training, moving averages, inference); section 4 for the schedule
        (r_max from 1 to 3 and d_max from 0 to 5, relaxed from step 5,000 to step 40,000 and 25,000; alpha = 0.01).

    >>> spec = BatchRenormSpec(channels=3)
    >>> spec.bounds(0), spec.bounds(22_500), spec.bounds(100_000)
    ((1.0, 1.0, 0.0), (0.5, 2.0, 4.375), (0.3333333333333333, 3.0, 5.0))
    >>> [array.name for array in spec.state]
    ['running_mean', 'running_standard_deviation', 'batches_tracked']
    """

    method: ClassVar[str] = "batch_renorm"
    reduces: ClassVar[frozenset[str]] = frozenset({"batch", "spatial"})

    channels: int
    offset: bool = True
    decay: float | None = 0.99
    renorm_decay: float | None = None
    running_quantity: Literal["standard_deviation", "biased_variance", "unbiased_variance"] = "standard_deviation"
    r_max: float | None = 3.0
    r_min: float | None = None
    d_max: float | None = 5.0
    r_max_steps: tuple[int, int] | None = (5_000, 40_000)
    d_max_steps: tuple[int, int] | None = (5_000, 25_000)
    single_value: Literal["raise", "zero"] = "raise"

    def __post_init__(self) -> None:
        NormSpec.__post_init__(self)
        self._positive_integer("channels")
        self._decay()
        self._decay("renorm_decay")
        self._choice("running_quantity", ("standard_deviation", "biased_variance", "unbiased_variance"))
        self._bound("r_max", 1.0, math.inf, "r = 1 must be allowed; None is no bound")
        self._bound("r_min", 0.0, 1.0, "r = 1 must be allowed; None is 1 / r_max")
        self._bound("d_max", 0.0, math.inf, "d = 0 must be allowed; None is no bound")
        for bound in ("r_max", "d_max"):
            self._steps(f"{bound}_steps", getattr(self, bound))
        self._choice("single_value", ("raise", "zero"))

    def bounds(self, step: int) -> tuple[float, float, float]:
        """``r_min``, ``r_max`` and ``d_max`` after ``step`` updates; infinite where there is no bound.

        >>> BatchRenormSpec(channels=1, r_max=None, d_max=None, r_max_steps=None, d_max_steps=None).bounds(0)
        (0.0, inf, inf)
        """
        ramp = _ramp(step, self.r_max_steps)
        r_max = math.inf if self.r_max is None else 1 + (self.r_max - 1) * ramp
        r_min = 1 / r_max if self.r_min is None else 1 + (self.r_min - 1) * ramp
        d_max = math.inf if self.d_max is None else self.d_max * _ramp(step, self.d_max_steps)
        return r_min, r_max, d_max

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return (self.channels,)

    @property
    def state(self) -> tuple[ArraySpec, ...]:
        deviation = self.running_quantity == "standard_deviation"
        names = {"running_mean": 0.0, f"running_{'standard_deviation' if deviation else 'variance'}": 1.0}
        if self.renorm_decay is not None:
            names |= {name.replace("running", "renorm"): initial for name, initial in names.items()}
            if deviation:
                names |= {"running_variance": 1.0}
        return (*(ArraySpec(n, (self.channels,), v) for n, v in names.items()), ArraySpec("batches_tracked", (), 0))

    def _bound(self, name: str, low: float, high: float, remedy: str) -> None:
        value: Any = getattr(self, name)
        if value is None:
            return
        bound = self._number(name, value)
        if not (low <= bound <= high and math.isfinite(bound)):
            upper = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"a finite number >= {low:g}"
            self._refuse(f"{name}={value!r} is not {upper}", remedy)
        self._set(name, bound)

    def _steps(self, name: str, bound: float | None) -> None:
        value: Any = getattr(self, name)
        if value is None:
            return
        if bound is None:
            self._refuse(f"{name}={value!r} without {name.removesuffix('_steps')}", f"give the final bound, or {name}=None")
        steps: tuple[Any, ...] = tuple(map(integer, value)) if isinstance(value, list | tuple) else ()
        if len(steps) != 2 or None in steps or not 0 <= steps[0] <= steps[1]:
            self._refuse(
                f"{name}={value!r} is not two integers 0 <= first <= last", "say when the bound starts and ends to relax"
            )
        self._set(name, steps)


def _ramp(step: int, steps: tuple[int, int] | None) -> float:
    """From 0 at the first of ``steps`` to 1 at the last; 1 without any."""
    if steps is None or step >= steps[1]:
        return 1.0
    first, last = steps
    return (step - first) / (last - first) if step > first else 0.0
