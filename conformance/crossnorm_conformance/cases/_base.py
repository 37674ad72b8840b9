"""How a method's axes become cases, and how a fault is described."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from crossnorm import NormSpec, preset
from crossnorm.rounding import DTYPES
from crossnorm.spec import spec_class

from ..case import MODES, REGIMES, Case
from ..covering import covering_rows, sparing

EXECUTIONS = ("eager", "function")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One bad input. ``arguments`` are specification fields with values that the specification itself would refuse;
    ``shape`` and ``dtype`` describe the input that a layer built for ``spec`` then meets in training. ``wrap`` is what is wrong
    with the dense layer that a reparametrization is asked to change, one of `WRAPS`."""

    name: str
    spec: NormSpec
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...]
    dtype: str = "float32"
    wrap: str = ""

    @property
    def id(self) -> str:
        return f"{self.spec.method}-{self.name}"


# A layer without a kernel; a kernel's name that it does not have; a layer that is wrapped already; two layers with one kernel;
# a question about a layer that is not built.
WRAPS = ("no_kernel", "unknown_kernel", "twice", "tied", "unbuilt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The axes of one method. ``variants``: named fields of its specification; ``shapes``: what the input may look like, or the
    number of outputs and inputs of the ``layers`` whose weight it is about."""

    variants: Mapping[str, Mapping[str, Any]]
    shapes: Sequence[tuple[int, ...]]
    layouts: Sequence[str] = ()
    layers: Sequence[str] = ()
    regimes: Sequence[str] = REGIMES
    dtypes: Sequence[str] = DTYPES
    modes: Sequence[str] = MODES

    def values(self) -> dict[str, Sequence[Any]]:
        """Every axis of the suite with its values."""
        place = {"layer": tuple(self.layers)} if self.layers else {"layout": tuple(self.layouts)}
        return {
            "variant": tuple(self.variants),
            "shape": tuple(self.shapes),
            **place,
            "dtype": tuple(self.dtypes),
            "regime": tuple(self.regimes),
            "mode": tuple(self.modes),
            "execution": EXECUTIONS,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Rows in which every pair of axis values meets. Tracing costs more than running: few rows are compiled."""
        eager, compiled = EXECUTIONS
        return sparing(covering_rows(self.values()), "execution", compiled, eager)


def cover(axes: Axes, build: Any) -> list[Case]:
    """Cases in which every pair of axis values meets. ``build(fields, shape, regime)`` gives the specification and the
    shape, which the regime may have changed (a batch of one, say); for weights ``build(fields, shape, regime, layer)`` gives
    the layer, too."""
    cases: dict[str, Case] = {}
    for row in axes.rows():
        execution = row.pop("execution")
        place = ("layer",) if axes.layers else ()
        built = build(axes.variants[row["variant"]], *(row[axis] for axis in ("shape", "regime", *place)))
        fields = dict(zip(("spec", "shape", *place), built, strict=True))
        case = Case(**{**row, **fields, "executions": (execution,)})
        known = cases.get(case.id)
        if known and execution not in known.executions:
            case = replace(known, executions=EXECUTIONS)
        cases[case.id] = case
    return [*cases.values(), *(() if axes.layers else _zeros(axes, build))]


def _zeros(axes: Axes, build: Any) -> list[Case]:
    """Inputs of zeros in each dtype: many layers leave them as they are."""
    variant = next(iter(axes.variants))
    spec, shape = build(axes.variants[variant], axes.shapes[0], "zero")
    row = {"variant": variant, "spec": spec, "shape": shape, "layout": axes.layouts[0], "regime": "zero", "mode": axes.modes[0]}
    return [Case(**row, dtype=dtype) for dtype in axes.dtypes]


def large_cases(axes: Axes, build: Any, variant: str, shape: tuple[int, ...], layout: str) -> list[Case]:
    """Sums over many values, where accumulation errors show: the regimes and dtypes in which natives are known to suffer."""
    cases = []
    for regime, dtype in product(("offset_1e4", "mixed"), ("float32", "bfloat16")):
        spec, size = build(axes.variants[variant], shape, regime)
        row = {"variant": variant, "layout": layout, "dtype": dtype, "regime": regime, "mode": "train"}
        cases.append(Case(spec=spec, shape=size, **row))
    return cases


def channels_of(
    variant: Mapping[str, Any], shape: tuple[int, ...], regime: str, one_value: tuple[int, ...]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The variant's fields and the shape (batch, channel, *spatial), as the regime wants them. ``one_value``: the leading
    sizes of an input with one value per statistic."""
    if regime == "batch_of_one":
        shape = (1, *shape[1:])
    if regime == "one_value":
        shape = (*one_value, *(1 for _ in shape[2:]))
    return _fields(variant, regime, offset=True) | {"channels": shape[1]}, shape


def normalized_of(
    variant: Mapping[str, Any], shape: tuple[int, ...], regime: str, offset: bool
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The same for (*batch, *normalized); the entry ``dimensions`` of the variant says how many are normalized, ``offset``
    whether there can be one."""
    fields = _fields(variant, regime, offset)
    dimensions = fields.pop("dimensions")
    batch, normalized = shape[:-dimensions], shape[-dimensions:]
    if regime == "batch_of_one":
        batch = tuple(1 for _ in batch)
    if regime == "one_value":
        normalized = tuple(1 for _ in normalized)
    return fields | {"shape": normalized}, batch + normalized


def _fields(variant: Mapping[str, Any], regime: str, offset: bool) -> dict[str, Any]:
    """Huge parameters are what makes the output overflow, so there must be some."""
    if regime == "overflow":
        return {**variant, "scale": True} | ({"offset": True} if offset else {})
    return dict(variant)


# Where a framework that has no argument for the channels' axis, or a default of its own, expects them.
_LAYOUTS = {"flax": "channels_last"}


def default_cases(
    method: str, size: tuple[int, ...], frameworks: Sequence[str] = ("torch", "keras"), **fields: Any
) -> list[Case]:
    """For each framework one case that omits every argument. ``"crossnorm"`` stands for layers that no framework has: there
    the defaults are the specification's."""
    return [
        Case(
            variant=f"{framework}_defaults",
            spec=spec_class(method)(**fields) if framework == "crossnorm" else preset(framework, method, **fields),
            shape=size,
            layout=_LAYOUTS.get(framework, "channels_first") if "channels" in fields else "contiguous",
            dtype="float32",
            regime="plain",
            mode="train",
            executions=EXECUTIONS,
            defaults=framework,
        )
        for framework in frameworks
    ]


def faults(spec: NormSpec, shape: tuple[int, ...], wrong_shapes: Mapping[str, tuple[int, ...]]) -> list[Fault]:
    """The bad inputs that every method has."""
    rows = [Fault(name=name, spec=spec, shape=wrong) for name, wrong in wrong_shapes.items()]
    rows += [Fault(name=f"eps_{value}", spec=spec, arguments={"eps": value}, shape=shape) for value in (-1e-3, float("nan"))]
    rows.append(Fault(name="integer_dtype", spec=spec, shape=shape, dtype="int32"))
    return rows
