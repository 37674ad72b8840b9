"""Cases beyond the listed ones: hypothesis draws specifications, shapes, layouts and values, and shrinks what fails."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from crossnorm import CrossnormError
from crossnorm.rounding import accumulation, precision
from crossnorm.spec import spec_class

from .case import Case
from .cases import axes_of, builder_of
from .compare import FAIL, Check, check_quantities
from .implementations import Implementation
from .oracle import QUANTITIES, oracle
from .register import judge

EXAMPLES = 100
_QUESTIONS = tuple(QUANTITIES)


def check_drawn(
    method: str, implementation: Implementation, device: str, seed: int, examples: int = EXAMPLES
) -> tuple[list[Check], list[Case]]:
    """The checks of the drawn cases, and the cases. Of those that fail only the smallest one that hypothesis found is kept."""
    passed: dict[str, tuple[Case, list[Check]]] = {}
    failed: dict[str, tuple[Case, list[Check]]] = {}

    def examine(case: Case) -> None:
        try:
            answer = oracle(case, seed)
        except RuntimeError:
            assume(False)  # no inputs that keep off a kink
        assume(not any(_vanishes(answer.exact[key].value, answer.stored[key]) for key in answer.exact))
        rows = [c for question in _QUESTIONS for c in check_quantities(question, implementation, case, "eager", device, seed)]
        broken = any(judge(check).verdict == FAIL for check in rows)
        (failed if broken else passed)[case.id] = (case, rows)
        if broken:
            raise _Found(case.id)

    search: Callable[[], None] = seeded(zlib.crc32(f"{method}-{implementation.name}".encode()) ^ seed)(
        settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )(given(cases(method))(examine))
    )
    try:
        search()
    except _Found as smallest:
        passed[smallest.args[0]] = failed[smallest.args[0]]
    return [check for _, rows in passed.values() for check in rows], [case for case, _ in passed.values()]


def _vanishes(values: Any, dtype: str) -> bool:
    """Whether some exact values lie below the normal numbers of the dtype that sums are formed in: nobody could store them."""
    magnitude = np.abs(values)
    return bool(((magnitude > 0) & (magnitude < np.finfo(accumulation(dtype)).tiny)).any())


class _Found(Exception):
    """A case with a failing check; the argument is its id."""


@st.composite
def cases(draw: st.DrawFn, method: str) -> Case:
    """Cases of one method: a listed variant with other numbers in it, any small shape, any regime or an offset and a spread."""
    axes = axes_of(method)
    dtype = draw(st.sampled_from(tuple(axes.dtypes)), label="dtype")
    fields = _fields(draw, method, axes.variants[draw(st.sampled_from(sorted(axes.variants)), label="variant")])
    regime = draw(st.sampled_from((*axes.regimes, "drawn", "drawn")), label="regime")
    # Weights of 1e-15 under an eps that outweighs their squares: the square of the singular value leaves the range.
    assume(not (axes.layers and regime == "small" and fields.get("eps_place", "maximum") != "maximum"))
    shape = _shape(draw, draw(st.sampled_from(tuple(axes.shapes)), label="rank"), fields)
    # Outputs and inputs of a layer can be in two groups.
    shape = tuple(2 * size for size in shape) if axes.layers else shape
    place = {"layer": draw(st.sampled_from(tuple(axes.layers)), label="layer")} if axes.layers else {}
    try:
        built = builder_of(method)(fields, shape, "plain" if regime == "drawn" else regime, *place.values())
    except CrossnormError:
        assume(False)
    data = _data(draw, dtype) if regime == "drawn" else None
    row = dict(zip(("spec", "shape", *place), built, strict=True))
    if not place:
        row["layout"] = draw(st.sampled_from(tuple(axes.layouts)), label="layout")
    case = Case(
        **row,
        variant=f"drawn_{zlib.crc32(repr((row, data)).encode()):08x}",
        dtype=dtype,
        regime=regime,
        mode=draw(st.sampled_from(tuple(axes.modes)), label="mode"),
        data=data,
    )
    # torch's group norm refuses a sample that is alone with one value per group, and so does its drop-in.
    assume(case.layer is not None or case.values_per_group > 1 or shape[0] > 1)
    return case


def _fields(draw: st.DrawFn, method: str, variant: Any) -> dict[str, Any]:
    """A variant with an eps, a decay and flags of its own, where the method has them."""
    fields = dict(variant)
    known = spec_class(method).__dataclass_fields__
    if fields.get("eps", 1) > 0 and draw(st.booleans(), label="another eps"):
        fields["eps"] = draw(st.sampled_from((1e-7, 1e-6, 3e-5, 1e-3, 0.25, 2.0)), label="eps")
    for name in ("decay", "renorm_decay"):
        if fields.get(name) is not None:
            fields[name] = draw(st.integers(0, 100), label=name) / 100
    for name in ("scale", "offset"):
        if name in known and draw(st.integers(0, 3), label=f"without {name}") == 3:
            fields[name] = False
    return fields


def _shape(draw: st.DrawFn, like: tuple[int, ...], fields: dict[str, Any]) -> tuple[int, ...]:
    """A shape of the same rank with small sizes; channels in equal groups, pairs where the groups are pairs."""
    sizes = [draw(st.integers(1, 7), label="size") for _ in like]
    if "groups" in fields:
        sizes[1] *= fields["groups"] or 2
    return tuple(sizes)


def _data(draw: st.DrawFn, dtype: str) -> tuple[float, float, int]:
    """An offset of up to the root of the dtype's precision in spreads, a spread around 1, and a number for the rest."""
    bits = precision(dtype)
    spread = 2.0 ** draw(st.integers(-bits // 3, bits // 3), label="spread")
    ratio = draw(st.sampled_from((-1, 1)), label="sign") * 2.0 ** draw(st.integers(-2, bits // 2), label="offset / spread")
    return spread * ratio, spread, draw(st.integers(0, 2**31 - 1), label="data")
