"""What a row sees of a peer: a short text, and whether it is as the row says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sighting:
    text: str
    holds: bool


def near(what: str, values: Any, wanted: Any, within: float = 1e-5) -> Sighting:
    """Every value is the wanted one, up to a relative error (an absolute one where zero is wanted)."""
    found, wanted = array(values), array(wanted)
    with np.errstate(invalid="ignore"):
        close = np.abs(found - wanted) <= within * np.where(wanted == 0, 1, np.abs(wanted))
    holds = bool(np.all(close | (found == wanted)))
    text = f"at most {np.abs(found).max():.2g}" if found.any() and not wanted.any() else _numbers(found)
    return Sighting(f"{what} {text}" + ("" if holds else f", not {_numbers(wanted)}"), holds)


def between(what: str, value: Any, low: float, high: float) -> Sighting:
    """The number lies in a band: for errors, whose digits depend on the machine's order of additions."""
    found = float(array(value))
    holds = low <= found <= high
    return Sighting(f"{what} {found:.3g}" + ("" if holds else f", not {low:.3g} to {high:.3g}"), holds)


def ruined(what: str, value: Any, least: float) -> Sighting:
    """An error of at least this size, or NaN: which of the two is a matter of luck."""
    found = float(array(value))
    holds = not found < least
    return Sighting(f"{what} {found:.3g}" + ("" if holds else f", less than {least:.3g}"), holds)


def same(what: str, value: Any, wanted: Any) -> Sighting:
    """The very value: a shape, a dtype, a count, a yes or no."""
    holds = bool(value == wanted)
    return Sighting(f"{what} {value}" + ("" if holds else f", not {wanted}"), holds)


def lost(what: str, values: Any) -> Sighting:
    """All of it is NaN."""
    found = array(values)
    holds = found.size > 0 and bool(np.isnan(found).all())
    return Sighting(f"{what} {_numbers(found)}" + ("" if holds else ", not NaN"), holds)


def raises(what: str, kind: type[Exception], act: Callable[[], Any]) -> Sighting:
    """The call raises an exception of this very type."""
    try:
        act()
    except Exception as error:
        return same(what, type(error).__name__, kind.__name__)
    return Sighting(f"{what} accepted, not {kind.__name__}", False)


def array(values: Any) -> Array:
    """Any peer's tensor as float64."""
    if hasattr(values, "detach"):
        values = values.detach().double().numpy()
    return np.asarray(values).astype(np.float64)


def normal(*shape: int, mean: float = 0.0, spread: float = 1.0) -> Array:
    """The same float32 numbers every time."""
    return (mean + spread * np.random.default_rng(0).normal(size=shape)).astype(np.float32)


def worst(values: Any, wanted: Any) -> float:
    """The largest absolute difference; NaN if there is one."""
    return float(np.abs(array(values) - array(wanted)).max())


def normalized(x: Array, axes: tuple[int, ...], eps: float = 0.0) -> Array:
    """(x - mean) / sqrt(variance + eps) in float64."""
    x = array(x)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def _numbers(values: Array) -> str:
    """One number, or the span of many."""
    if values.size == 0:
        return "nothing"
    low, high = (f"{bound:.5g}" for bound in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
