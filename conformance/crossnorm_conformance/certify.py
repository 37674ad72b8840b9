"""The suite on a layer of somebody's own, in three lines of a test: `check`; `implementation` for the command; `rerun`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from inspect import signature
from math import prod
from typing import Any

from crossnorm import NormSpec, WeightSpec
from crossnorm.rounding import DTYPES
from crossnorm.spec import SPECS

from .case import MODES, Case
from .cases import axes_of, builder_of, faults_of
from .cases._base import Axes, cover
from .compare import Check, check_agreement, check_quantities, outcome
from .errors import check_misuse
from .implementations import Implementation, SuiteError, add, is_built_in, load
from .implementations._given import kind_of
from .oracle import QUANTITIES, keys_of
from .plan import Plan
from .register import judge
from .report import Report

# The rooms that know how to run what somebody gives, by the framework.
_ROOMS = {"torch": "_given_torch", "keras": "_given_keras", "numpy": "_given_numpy"}
# Whose word for it names the argument of a function that wraps a linear layer.
_WRAPPED = {"module": "torch", "layer": "keras"}
# Cases of layers with many channels are smaller in batch and positions.
_LARGEST = 30_000


def check(
    layer: Any,
    spec: NormSpec,
    *,
    name: str | None = None,
    framework: str | None = None,
    roles: Mapping[str, str] | None = None,
    dtypes: Sequence[str] = DTYPES,
    layouts: Sequence[str] | None = None,
    modes: Sequence[str] = MODES,
    rank: int | None = None,
    cases: Iterable[Case] | None = None,
    seed: int = 0,
) -> Report:
    """Check a layer of your own against a specification.

    Every regime of the suite that the specification allows meets every layout, dtype and mode, pairwise; outputs, gradients and
    state are compared with the reference in rounding units. It runs in this process: a layer that hangs hangs the test.

    Args:
        layer: a ``torch.nn.Module`` or a ``keras.layers.Layer`` built for ``spec``; a function without arguments, or of a
            specification, that builds one; or a plain function ``f(x, *, scale, offset, ...)`` of arrays, its keywords the
            specification's parameters. One whose specification has state takes the state's names and ``training``, too, and
            returns ``(y, {name: new state})``. For a reparametrization: a function that changes a linear module and returns it
            or None (torch), that wraps a linear layer (Keras), or ``f(weight, *, ...)`` of arrays.
        spec: what the layer should do.
        name: how the report calls it; by default the name of its class or function.
        framework: ``"torch"``, ``"keras"`` or ``"numpy"``; needed only for a plain function of tensors. The argument of
            a function that wraps a linear layer tells it by its name: ``module`` or ``layer``.
        roles: the layer's names for the specification's parameters and state, ``{"scale": "g"}``, where they are not the
            framework's usual ones.
        dtypes, layouts, modes: all by default. A Keras layer is told its axis when it is made, so for it the layout is
            ``channels_last`` unless you say otherwise.
        rank: the number of spatial dimensions that the layer takes; by default all that it does not refuse.
        cases: run these instead.
        seed: of the data.

    Returns:
        The report: ``report.passed``, ``report.failures()``, and as text what is wrong, by how much, and how to see it again.

    Raises:
        SuiteError: the layer cannot be run at all: no such framework, a parameter that is not found, no case that fits.

    >>> import crossnorm, numpy as np
    >>> def layer_norm(x, *, scale, offset):
    ...     mean = x.mean(-1, keepdims=True)
    ...     variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    ...     return (x - mean) / np.sqrt(variance + x.dtype.type(1e-2)) * scale + offset
    >>> check(layer_norm, crossnorm.LayerNormSpec(shape=(6,), eps=1e-2), dtypes=("float32", "float64")).passed
    True
    """
    given = _room(layer, spec, framework).Given(
        layer, name=name or _name_of(layer), spec=spec, methods=(spec.method,), roles=roles or {}, layouts=layouts
    )
    _introduce(given)
    for word, asked, known in (("dtypes", dtypes, DTYPES), ("modes", modes, MODES)):
        if not asked or not set(asked) <= set(known):
            raise SuiteError(f"check: {word}={list(asked)} are not of {', '.join(known)}; leave it out for all of them")
    rows = list(cases) if cases is not None else fitting(spec, given.layouts(spec), dtypes, modes, rank)
    if not rows:
        raise SuiteError(f"check: no case of the suite fits {spec} with these dtypes, layouts and modes; ask for more of them")
    given.look(rows)
    checks = [
        found
        for case in rows
        for execution in [e for e in case.executions if e in given.executions()] or given.executions()[:1]
        for question in QUANTITIES
        if any(quantity in QUANTITIES[question] for _, quantity in keys_of(case))
        for found in check_quantities(question, given, case, execution, "cpu", seed)
    ]
    plan = Plan(methods=(spec.method,), implementations=(given.name,), devices=("cpu",), seed=seed)
    return Report.of(plan, [judge(found) for found in checks], (), rows)


def implementation(
    factory: Callable[..., Any],
    *,
    methods: Sequence[str],
    framework: str,
    name: str | None = None,
    roles: Mapping[str, str] | None = None,
) -> Implementation:
    """What ``crossnorm conformance --implementation package.module:object`` takes: your layers under the suite's own cases.

    Args:
        factory: from a specification of one of the ``methods`` to a layer, as in `check`. It raises ``crossnorm.Unsupported``
            for a specification that the layer has no means for; the report tells the reason.
        methods: the names of the methods that there are layers for.
        framework: ``"torch"``, ``"keras"`` or ``"numpy"``.
        name, roles: as in `check`.

    Raises:
        SuiteError: an unknown method or framework.
    """
    unknown = [method for method in methods if method not in SPECS]
    if unknown or not methods:
        raise SuiteError(f"implementation: methods={list(methods)} are not of {', '.join(SPECS)}; name those that you have")
    given: Implementation = _module_of(framework).Given(
        factory, name=name or _name_of(factory), spec=None, methods=tuple(methods), roles=roles or {}, layouts=None
    )
    return given


def rerun(
    implementation: str | Implementation,
    case: Case | str,
    *,
    execution: str = "eager",
    device: str = "cpu",
    seed: int = 0,
) -> Report:
    """Run one case, or one bad input by its id, with one implementation, or with two that shall agree (``"a = b"``).

    >>> from crossnorm_conformance.cases import cases_of
    >>> print(rerun("no-such-implementation", cases_of("rms_norm")[0]))
    Traceback (most recent call last):
    ...
    crossnorm_conformance.implementations.SuiteError: unknown implementation 'no-such-implementation'; choose among ...
    """
    if not isinstance(implementation, str):
        _introduce(implementation)
        implementation = implementation.name
    found = [load(name) for name in implementation.split(" = ")]
    if isinstance(case, str):
        faults = {fault.id: fault for method in SPECS for fault in faults_of(method)}
        if case not in faults:
            raise SuiteError(f"rerun: there is no bad input {case!r}; the ids are in the report")
        checks, method, rows = check_misuse(faults[case], found[0]), faults[case].spec.method, []
    else:
        checks, method, rows = _asked(found, case, execution, device, seed), case.spec.method, [case]
    names = tuple(one.name for one in found)
    plan = Plan(methods=(method,), implementations=names, devices=tuple(device.split("/")), seed=seed)
    return Report.of(plan, [judge(check) for check in checks], (), rows)


def _introduce(implementation: Implementation) -> None:
    """Make it known by its name. What another one of that name has answered is forgotten."""
    add(implementation)
    outcome.cache_clear()


def _asked(found: Sequence[Implementation], case: Case, execution: str, device: str, seed: int) -> list[Check]:
    if len(found) == 2:
        first, second = found
        executions, devices = (execution.split("/") * 2)[:2], (device.split("/") * 2)[:2]
        return check_agreement((first, second), case, tuple(executions), tuple(devices), seed)  # type: ignore[arg-type]
    return [c for question in QUANTITIES for c in check_quantities(question, found[0], case, execution, device, seed)]


def fitting(
    spec: NormSpec,
    layouts: Sequence[str],
    dtypes: Sequence[str] = DTYPES,
    modes: Sequence[str] = MODES,
    rank: int | None = None,
) -> list[Case]:
    """The cases that a layer can be asked which is built for one specification: those whose specification is that one."""
    axes = axes_of(spec.method)
    given: dict[str, Any] = {"variants": {"given": _fields(spec)}, "regimes": axes.regimes, "dtypes": dtypes, "modes": modes}
    if isinstance(spec, WeightSpec):
        kind = "dense" if len(spec.shape) == 2 else f"convolution{len(spec.shape) - 2}d"
        own = Axes(**given, shapes=(spec.shape[:2],), layers=(kind,))
    else:
        shapes = [shape for shape in _shapes(spec, axes) if rank is None or len(shape) == rank + 2]
        own = Axes(**given, shapes=tuple(dict.fromkeys(shapes)), layouts=layouts)
    found = cover(own, builder_of(spec.method)) if own.shapes else []
    return [case for case in found if _is_about(case, spec)]


def _is_about(case: Case, spec: NormSpec) -> bool:
    """Whether a case is about the specification, and not about what its regime has made of it."""
    if hasattr(spec, "single_value"):
        raises = spec.single_value == "raise" and any(case.single_valued(mode) for _, mode in case.steps)
        return not raises and case.spec.replace(single_value=spec.single_value) == spec
    return case.spec == spec


def _fields(spec: NormSpec) -> dict[str, Any]:
    """The entries that a builder takes for a variant: every field but those that it sets from the shape."""
    fields = {name: value for name, value in spec.to_dict().items() if name not in ("method", "version", "single_value")}
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    if isinstance(spec, WeightSpec):
        del tuples["shape"]
    elif "channels" in tuples:
        del tuples["channels"]
    else:
        tuples |= {"dimensions": len(tuples.pop("shape"))}
    return tuples


def _shapes(spec: NormSpec, axes: Axes) -> list[tuple[int, ...]]:
    """The suite's shapes with the specification's own sizes in them, smaller where they would be too large."""
    if hasattr(spec, "channels"):
        spatial = getattr(spec, "spatial", None)
        shapes = [(batch, spec.channels, *(spatial or rest)) for batch, _, *rest in axes.shapes]
    else:
        normalized = spec.parameter_shape
        shapes = [(*batch, *normalized) for batch in ((8, 4), (2,), (2, 3), (4, 16))]
    return [shape for shape in shapes if prod(shape) <= _LARGEST] or [(2, *shapes[0][1:])]


def _room(layer: Any, spec: NormSpec, framework: str | None) -> Any:
    """The module for what was given: told by the classes of the layer, without an import of any framework."""
    if isinstance(layer, type) or not callable(layer):
        raise SuiteError(f"check: {layer!r} is no layer and no function; give a layer, or a function that builds one")
    told, kind = framework, kind_of(layer)
    if told is None and kind == "wrapper":
        told = _WRAPPED[next(iter(signature(layer).parameters))]
    if told is None:
        made = layer if kind != "factory" else layer(spec) if signature(layer).parameters else layer()
        names = {base.__module__.partition(".")[0] for base in type(made).__mro__}
        told = next((name for name in ("torch", "keras") if name in names), "numpy")
    return _module_of(told)


def _module_of(framework: str) -> Any:
    if framework not in _ROOMS:
        raise SuiteError(f"framework={framework!r} is not one of {', '.join(_ROOMS)}; say where the layer's tensors come from")
    return import_module(f"{__package__}.implementations.{_ROOMS[framework]}")


def _name_of(layer: Any) -> str:
    """The name of a function or a class, and never one that the suite has already."""
    name = getattr(layer, "__name__", type(layer).__name__).strip("<>")
    return f"{name} (given)" if is_built_in(name) else name
