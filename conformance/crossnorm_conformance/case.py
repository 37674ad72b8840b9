"""A case: one specification met with one kind of data. Everything that a run needs is drawn from the case's id and a seed."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm import INFERENCE, TRAIN, Mode, NormSpec
from crossnorm.rounding import accumulation, largest, oracle_dtype, precision, round_to

Array = NDArray[Any]

TRAINING_STEPS = 3
MODES = ("train", "inference", "frozen")

REGIMES = (
    "plain",
    "offset_quarter",
    "offset_half",
    "offset_1e2",
    "offset_1e4",
    "small",
    "large",
    "overflow",
    "constant",
    "outlier",
    "batch_of_one",
    "one_value",
    "mixed",
)

_SPREAD = {"float32": 1e15, "bfloat16": 1e15, "float64": 1e100, "float16": 1e3}
# Outputs leave the range of their dtype while every intermediate result stays inside, of ``a * x + b`` too. The spread
# keeps a = scale / sqrt(variance) inside, the small scale and the positive mean keep b = offset - mean * a.
_OVERFLOW_SPREAD = 64.0
_OVERFLOW_SCALE = 0.15
_OVERFLOW_OFFSET = 0.8
_OVERFLOW_SCALE_ALONE = 0.8
_OVERFLOW_UPSTREAM = {"float32": 1e-30, "bfloat16": 1e-30, "float64": 1e-300, "float16": 1e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the suite.

    ``shape`` is the reference's: (batch, channel, *spatial) or (*batch, *normalized). ``variant`` names the specification,
    ``defaults`` the framework whose default arguments the case is about: the layer is built without any.
    """

    variant: str
    spec: NormSpec
    shape: tuple[int, ...]
    layout: str
    dtype: str
    regime: str
    mode: str
    executions: tuple[str, ...] = ("eager",)
    defaults: str | None = None

    @property
    def id(self) -> str:
        size = "x".join(map(str, self.shape))
        return "-".join((self.spec.method, self.variant, size, self.layout, self.dtype, self.regime, self.mode))

    def seed(self, seed: int) -> int:
        """A seed of its own for each case, so that adding a case moves no other."""
        return zlib.crc32(self.id.encode()) ^ seed

    @property
    def steps(self) -> tuple[tuple[int, Mode], ...]:
        """Three training steps and then inference; or a single step."""
        if self.mode == "train":
            return (*((step, TRAIN) for step in range(1, TRAINING_STEPS + 1)), (TRAINING_STEPS + 1, INFERENCE))
        return ((1, INFERENCE),)

    def differentiates(self, step: int) -> bool:
        """Whether gradients are asked for: not in the inference that follows training."""
        return self.mode != "train" or step <= TRAINING_STEPS

    def updates(self, step: int) -> bool:
        """Whether the step may change the running statistics."""
        return dict(self.steps)[step].update_running

    @property
    def group_count(self) -> tuple[int, ...]:
        """The shape of one number per statistics group, ready to broadcast against the input."""
        reduces, rank = self.spec.reduces, len(self.shape)
        if "normalized" in reduces:
            normalized = len(self.spec.parameter_shape)
            return self.shape[: rank - normalized] + (1,) * normalized
        return (1 if "batch" in reduces else self.shape[0], self.shape[1]) + (1,) * (rank - 2)

    @property
    def values_per_group(self) -> int:
        """How many values one statistic is taken from."""
        groups = getattr(self.spec, "groups", None)
        count = int(np.prod(self.group_count)) if groups is None else self.shape[0] * groups
        return int(np.prod(self.shape)) // count

    def single_valued(self, mode: Mode) -> bool:
        """Whether a statistic is taken from one value: what some frameworks refuse."""
        uses_batch = mode.use_batch_statistics or not getattr(self.spec, "tracked", False)
        return uses_batch and self.values_per_group == 1


@dataclass(frozen=True, slots=True)
class Arrays:
    """The inputs of a case, rounded to their own dtype (bfloat16 is stored in float32 arrays) and in the oracle's."""

    values: Mapping[str, Array]
    dtypes: Mapping[str, str]

    def oracle(self, dtype: str) -> dict[str, Array]:
        oracle = oracle_dtype(dtype)
        return {n: v if v.dtype.kind == "i" else v.astype(oracle) for n, v in self.values.items()}

    def named(self, names: Any) -> dict[str, Array]:
        return {name: self.values[name] for name in names if name in self.values}


def draw(case: Case, seed: int) -> Arrays:
    """The inputs of ``case``: ``x1``, ``upstream1``, ... for each step, the parameters and the state. Never default values,
    unless the case is about defaults."""
    random = np.random.default_rng(case.seed(seed))
    offset, spread = _offset_and_spread(case, random)
    values: dict[str, Array] = {}
    for step, _ in case.steps:
        values[f"x{step}"] = _input(case, offset, spread, random)
        upstream = _OVERFLOW_UPSTREAM[case.dtype] if case.regime == "overflow" else 1.0
        values[f"upstream{step}"] = random.standard_normal(case.shape) * upstream
    for parameter in case.spec.parameters:
        values[parameter.name] = _parameter(case, parameter.name, parameter.shape, parameter.initial, random)
    channel_offset, channel_spread = (_per_channel(case, v) for v in (offset, spread))
    for array in case.spec.state:
        if case.defaults:
            values[array.name] = np.full(array.shape, array.initial)
        elif array.name == "running_mean":
            shift = random.uniform(0, 1, array.shape) if case.regime == "overflow" else random.standard_normal(array.shape)
            values[array.name] = channel_offset + channel_spread * shift
        elif array.name == "running_variance":
            values[array.name] = channel_spread**2 * random.uniform(0.5, 2.0, array.shape)
    stored = {name: case.dtype if name.startswith(("x", "upstream")) else accumulation(case.dtype) for name in values}
    rounded = {name: round_to(value, stored[name]) for name, value in values.items()}
    if case.spec.state:
        rounded["batches_tracked"] = np.asarray(0 if case.defaults else 3)
    return Arrays(rounded, stored)


def _offset_and_spread(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    bits = precision(case.dtype)
    ones = np.ones(case.group_count)
    offsets = {
        "offset_quarter": 2.0 ** (bits / 4),
        "offset_half": 2.0 ** (bits / 2),
        "offset_1e2": 1e2,
        "offset_1e4": 1e4,
    }
    spreads = {"small": 1 / _SPREAD[case.dtype], "large": _SPREAD[case.dtype], "overflow": _OVERFLOW_SPREAD}
    if case.regime == "mixed":
        decades = 2 if case.dtype == "float16" else 3
        signs = random.choice((-1.0, 1.0), ones.shape)
        return (
            signs * 10 ** random.uniform(-decades, decades, ones.shape),
            10 ** random.uniform(-decades, decades, ones.shape),
        )
    spread = ones * spreads.get(case.regime, 1.0)
    return ones * offsets.get(case.regime, 0.3) * np.where(spread == 1, 1, spread), spread


def _input(case: Case, offset: Array, spread: Array, random: np.random.Generator) -> Array:
    x = offset + spread * random.standard_normal(case.shape)
    if case.regime == "constant":
        index = tuple(0 if size > 1 or axis == 0 else slice(None) for axis, size in enumerate(case.group_count))
        # A group of channels is one group: all of its channels are constant.
        if hasattr(case.spec, "groups"):
            index = (0, slice(0, case.spec.channels // case.spec.groups))
        elif "batch" in case.spec.reduces:
            index = (slice(None), 0)
        x[index] = 1.234 * 2.0 ** (precision(case.dtype) / 2)
    if case.regime == "outlier":
        x.flat[random.integers(x.size)] = 1e3
    return x


def _parameter(case: Case, name: str, shape: tuple[int, ...], initial: float, random: np.random.Generator) -> Array:
    if case.defaults:
        return np.full(shape, initial)
    value = random.uniform(0.5, 1.5, shape) * random.choice((-1.0, 1.0), shape)
    if case.regime == "overflow":
        alone = not getattr(case.spec, "offset", False)
        share = {"scale": _OVERFLOW_SCALE_ALONE if alone else _OVERFLOW_SCALE, "offset": _OVERFLOW_OFFSET}[name]
        return random.uniform(0.9, 1.0, shape) * share * largest(case.dtype)
    return value


def _per_channel(case: Case, values: Array) -> Array:
    """One number per channel from one per statistics group: the state belongs to channels."""
    channels = getattr(case.spec, "channels", None)
    if channels is None:
        return np.zeros(())
    return np.broadcast_to(values, case.group_count)[0].reshape(channels, -1)[:, 0]
