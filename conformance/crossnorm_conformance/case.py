"""A case: one specification met with one kind of data. Everything that a run needs is drawn from the case's id and a seed."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm import INFERENCE, TRAIN, FilterResponseNormSpec, Mode, NormSpec, SpectralNormSpec, from_dict, reference
from crossnorm.rounding import accumulation, largest, oracle_dtype, precision, round_to, unit_roundoff
from crossnorm.spec import ArraySpec

from .linear import Linear

Array = NDArray[Any]

TRAINING_STEPS = 3
_LARGE = 100_000
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
# Those that a weight can be in.
WEIGHT_REGIMES = (*(regime for regime in REGIMES if regime not in ("overflow", "batch_of_one")), "zero")

_SPREAD = {"float32": 1e15, "bfloat16": 1e15, "float64": 1e100, "float16": 1e3}
# Outputs leave the range of their dtype while every intermediate result stays inside, of ``a * x + b`` too. The spread
# keeps a = scale / sqrt(variance) inside, the small scale and the positive mean keep b = offset - mean * a.
_OVERFLOW_SPREAD = 64.0
_OVERFLOW_SCALE = 0.15
_OVERFLOW_OFFSET = 0.8
_OVERFLOW_SCALE_ALONE = 0.8
_OVERFLOW_UPSTREAM = {"float32": 1e-20, "bfloat16": 1e-20, "float64": 1e-200, "float16": 1e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the suite.

    ``shape`` is the reference's: (batch, channel, *spatial), (*batch, *normalized), or of a weight (rows, *rest). ``variant``
    names the specification, ``layer`` the layer whose weight it is about. ``defaults`` says whose default arguments the case
    is about, a framework's or ``"crossnorm"``: the layer is built without any.
    """

    variant: str
    spec: NormSpec
    shape: tuple[int, ...]
    layout: str = "contiguous"
    layer: Linear | None = None
    dtype: str
    regime: str
    mode: str
    executions: tuple[str, ...] = ("eager",)
    defaults: str | None = None
    data: tuple[float, float, int] | None = None

    @property
    def id(self) -> str:
        size = "x".join(map(str, self.shape))
        place = str(self.layer or self.layout)
        return "-".join((self.spec.method, self.variant, size, place, self.dtype, self.regime, self.mode))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, from which the case can be made again."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"spec": self.spec.to_dict(), "layer": None if self.layer is None else asdict(self.layer)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Case":
        """The inverse of ``to_dict``."""
        layer = values["layer"] and Linear(**_tuples(values["layer"]))
        return cls(**{**_tuples(values), "spec": from_dict(values["spec"]), "layer": layer})

    def seed(self, seed: int) -> int:
        """A seed of its own for each case, so that adding a case moves no other."""
        return zlib.crc32(self.id.encode()) ^ seed

    @property
    def steps(self) -> tuple[tuple[int, Mode], ...]:
        """Three training steps and then inference; or a single step. One step shows what a sum over many values does."""
        if self.mode == "train":
            count = TRAINING_STEPS if prod(self.shape) <= _LARGE else 1
            return (*((step, TRAIN) for step in range(1, count + 1)), (count + 1, INFERENCE))
        return ((1, INFERENCE),)

    def differentiates(self, step: int) -> bool:
        """Whether gradients are asked for: not in the inference that follows training."""
        return self.mode != "train" or step < len(self.steps)

    @property
    def inputs_differ(self) -> bool:
        """Whether the input has a gradient: the ids of an embedding have none."""
        return self.layer is None or self.layer.kind != "embedding"

    def updates(self, step: int) -> bool:
        """Whether the step may change the running statistics."""
        return dict(self.steps)[step].update_running

    @property
    def group_count(self) -> tuple[int, ...]:
        """The shape of one number per statistics group, ready to broadcast against the input."""
        reduces, rank = self.spec.reduces, len(self.shape)
        if self.layer is not None:
            return (self.shape[0],) + (1,) * (rank - 1)
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


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


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
    """The inputs of ``case``: ``x1``, ``upstream1``, ... for each step (``weight1``, ... too, where the case is about one), the
    parameters and the state. Never default values, unless the case is about defaults."""
    random = np.random.default_rng(case.seed(seed))
    values = _draw(case, random) if case.layer is None else _draw_weights(case, case.layer, random)
    numbers = {name: value for name, value in values.items() if value.dtype.kind == "f"}
    # Parameters and state stay float32 beside half inputs; so do weights, as mixed precision keeps them.
    stored = {name: case.dtype if name.startswith(("x", "upstream")) else accumulation(case.dtype) for name in numbers}
    return Arrays(values | {name: round_to(value, stored[name]) for name, value in numbers.items()}, stored)


def _draw(case: Case, random: np.random.Generator) -> dict[str, Array]:
    offset, spread = _offset_and_spread(case, random)
    values: dict[str, Array] = {}
    for step, _ in case.steps:
        values[f"x{step}"] = _input(case, offset, spread, random)
        upstream = _OVERFLOW_UPSTREAM[case.dtype] if case.regime == "overflow" else 1.0
        values[f"upstream{step}"] = random.standard_normal(case.shape) * upstream
    for parameter in case.spec.parameters:
        values[parameter.name] = _parameter(case, parameter, random)
    channel_offset, channel_spread = (_per_channel(case, v) for v in (offset, spread))
    for array in case.spec.state:
        if array.name == "batches_tracked":
            values[array.name] = np.asarray(0 if case.defaults else 3)
        elif case.defaults:
            values[array.name] = np.full(array.shape, array.initial)
        elif array.name.endswith("_mean"):
            shift = random.uniform(0, 1, array.shape) if case.regime == "overflow" else random.standard_normal(array.shape)
            values[array.name] = channel_offset + channel_spread * shift
        else:
            variance = channel_spread**2 * random.uniform(0.5, 2.0, array.shape)
            values[array.name] = np.sqrt(variance) if array.name.endswith("_standard_deviation") else variance
    if isinstance(case.spec, FilterResponseNormSpec) and case.spec.threshold:
        _keep_off_the_threshold(case, values, lambda: _input(case, offset, spread, random), random)
    return values


def _draw_weights(case: Case, layer: Linear, random: np.random.Generator) -> dict[str, Array]:
    """Three training steps away from one weight, as an optimizer would take them, and the inputs of the layer."""
    offset, spread = _offset_and_spread(case, random)
    weight = _input(case, offset, spread, random)
    values: dict[str, Array] = {}
    for step, _ in case.steps:
        moves = step > 1 and case.regime != "constant"
        values[f"weight{step}"] = weight * (1 + 0.05 * moves * random.standard_normal(case.shape))
        x = random.integers(0, layer.inputs, layer.input_shape)
        values[f"x{step}"] = x if layer.kind == "embedding" else random.standard_normal(layer.input_shape)
        y = layer(layer.restore(weight, case.spec), values[f"x{step}"])  # type: ignore[arg-type]
        values[f"upstream{step}"] = random.standard_normal(y.shape)
    for parameter in case.spec.parameters:
        values[parameter.name] = _parameter(case, parameter, random)
    if isinstance(case.spec, SpectralNormSpec):
        values |= _vectors(case.spec, weight, random)
    return values


def _vectors(spec: SpectralNormSpec, weight: Array, random: np.random.Generator) -> dict[str, Array]:
    """Vectors of norm 1, one iteration away from random ones: a product with random ones could be next to nothing."""
    matrix = weight.reshape(spec.rows, spec.columns)
    u, v = random.standard_normal(spec.rows), random.standard_normal(spec.columns)
    if matrix.any():
        v = matrix.T @ (u / np.linalg.norm(u))
        u = matrix @ (v / np.linalg.norm(v))
    vectors = {"u": u / np.linalg.norm(u), "v": v / np.linalg.norm(v)}
    return {array.name: vectors[array.name] for array in spec.state}


# How near to the threshold a value may come, in roundings of its own: nearer, and it is drawn again, since which side it is on
# decides its gradient.
_NEAR = 8


def _keep_off_the_threshold(
    case: Case, values: dict[str, Array], fresh: Callable[[], Array], random: np.random.Generator
) -> None:
    """Draw again the inputs whose normalised values come too near to the threshold. Where that does not help, since a value
    that is alone is normalised to its sign, move the threshold."""
    spec = case.spec.replace(threshold=None, spatial=None)
    parameters = {p.name: round_to(values[p.name], accumulation(case.dtype)).astype(np.longdouble) for p in spec.parameters}
    shared = (0, *range(1 + values["threshold"].ndim, len(case.shape)))
    for attempt in range(100):
        stuck = np.zeros(values["threshold"].shape, bool)
        for name in (f"x{step}" for step, _ in case.steps):
            x = round_to(values[name], case.dtype).astype(np.longdouble)
            z = reference.forward(spec, x, parameters, {}, INFERENCE).y
            level = np.expand_dims(values["threshold"], shared)[0]
            near = np.abs(z.value - level) < _NEAR * unit_roundoff(case.dtype) * (z.magnitude + np.abs(level))
            stuck |= near.any(shared)
            values[name] = np.where(near, fresh(), values[name])
        if not stuck.any():
            return
        if attempt >= 20 and not case.defaults:
            values["threshold"] = values["threshold"] + stuck * random.uniform(-0.5, 0.5, stuck.shape)
    raise RuntimeError(f"{case.id}: no inputs were found that keep off the threshold; change the case")


def _offset_and_spread(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    bits = precision(case.dtype)
    ones = np.ones(case.group_count)
    if case.data:
        return ones * case.data[0], ones * case.data[1]
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
    if case.regime == "zero":
        return np.zeros(case.shape)
    if case.regime == "constant":
        index = tuple(0 if size > 1 or axis == 0 else slice(None) for axis, size in enumerate(case.group_count))
        # A group of channels is one group: all of its channels are constant.
        if case.layer is not None:
            index = (0,)
        elif hasattr(case.spec, "groups"):
            index = (0, slice(0, case.spec.channels // case.spec.groups))
        elif "batch" in case.spec.reduces:
            index = (slice(None), 0)
        x[index] = 1.234 * 2.0 ** (precision(case.dtype) / 2)
    if case.regime == "outlier":
        x.flat[random.integers(x.size)] = 1e3
    return x


def _parameter(case: Case, parameter: ArraySpec, random: np.random.Generator) -> Array:
    if case.defaults and parameter.initial is not None:
        return np.full(parameter.shape, parameter.initial)
    value = random.uniform(0.5, 1.5, parameter.shape) * random.choice((-1.0, 1.0), parameter.shape)
    if case.regime == "overflow" and parameter.name in ("scale", "offset"):
        alone = not getattr(case.spec, "offset", False)
        share = {"scale": _OVERFLOW_SCALE_ALONE if alone else _OVERFLOW_SCALE, "offset": _OVERFLOW_OFFSET}[parameter.name]
        return random.uniform(0.9, 1.0, parameter.shape) * share * largest(case.dtype)
    return np.asarray(value)


def _per_channel(case: Case, values: Array) -> Array:
    """One number per channel from one per statistics group: the state belongs to channels."""
    channels = getattr(case.spec, "channels", None)
    if channels is None:
        return np.zeros(())
    return np.broadcast_to(values, case.group_count)[0].reshape(channels, -1)[:, 0]
