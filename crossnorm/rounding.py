"""The rounding unit: the error that rounding the inputs once could have caused.

Evaluate the reference on the stored inputs: ``q``. Evaluate it again `DRAWS` times with every array multiplied by ``1 + s u``,
``s`` a random sign and ``u`` the unit roundoff of the array's dtype. One unit of a quantity is

    the largest change of ``q`` over the draws, within each statistics group
    + u of the accumulation dtype times the largest magnitude over the draws
    + u of the result's dtype times ``|q|``, where the result is stored in a narrower dtype; below the smallest normal number
      of that dtype rounding is absolute, so that this number counts there
    + the smallest normal number of the accumulation dtype: below it rounding is absolute, and many processors give 0.

More than `VERDICT` units is a failure. Nothing here can be tuned per test.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DRAWS = 8
VERDICT = 32
DTYPES = ("float32", "float64", "float16", "bfloat16")

_PRECISION = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


def precision(dtype: str) -> int:
    """The bits of the significand, the hidden one included.

    >>> precision("bfloat16")
    8
    """
    return _PRECISION[dtype]


def unit_roundoff(dtype: str) -> float:
    """Half the distance from 1 to the next number: 2 to the power of minus the precision.

    >>> unit_roundoff("float16") == 2.0 ** -11
    True
    """
    return 2.0 ** -_PRECISION[dtype]


def accumulation(dtype: str) -> str:
    """The dtype in which sums over values of ``dtype`` are formed, and in which their parameters and statistics are stored."""
    return "float64" if dtype == "float64" else "float32"


def oracle_dtype(dtype: str) -> type[np.floating[Any]] | None:
    """The dtype in which the reference judges ``dtype``: wider by at least ten bits. None where the platform has none."""
    if dtype != "float64":
        return np.float64
    return np.longdouble if np.finfo(np.longdouble).nmant + 1 >= 63 else None


def largest(dtype: str) -> float:
    """The largest finite number.

    >>> largest("float16")
    65504.0
    """
    if dtype == "bfloat16":
        return float(2.0**128 - 2.0**120)
    return float(np.finfo(dtype).max)


def smallest_normal(dtype: str) -> float:
    """The smallest positive number with all digits. bfloat16 has float32's exponents.

    >>> smallest_normal("float16") == 2.0**-14
    True
    """
    return float(np.finfo("float32" if dtype == "bfloat16" else dtype).tiny)


def round_to(values: Array, dtype: str) -> Array:
    """``values`` rounded to ``dtype``, stored in an array NumPy has: float32 for bfloat16, which it lacks.

    >>> float(round_to(np.array(1.01), "bfloat16"))
    1.0078125
    """
    with np.errstate(over="ignore", under="ignore"):
        if dtype != "bfloat16":
            return values.astype(dtype)
        # Round to nearest, ties to even, on the bits of the float32. The double rounding through float32 moves a test
        # input by nothing that matters.
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return np.where(np.isnan(values), np.float32(np.nan), rounded.view(np.float32)).reshape(np.shape(values))


def perturbed(values: Array, dtype: str, random: np.random.Generator) -> Array:
    """``values`` moved by one unit roundoff of ``dtype``, up or down at random."""
    signs = random.integers(0, 2, np.shape(values)) * 2 - 1
    return np.asarray(values * (1 + signs * values.dtype.type(unit_roundoff(dtype))))


def unit(
    evaluate: Callable[[Mapping[str, Array]], Mapping[str, Any]],
    inputs: Mapping[str, Array],
    dtypes: Mapping[str, str],
    stored: Mapping[str, str],
    seed: int,
) -> tuple[Mapping[str, Any], dict[str, Array]]:
    """Evaluate the quantities and their rounding units.

    Args:
        evaluate: from named arrays to named `crossnorm.reference.Quantity` objects.
        inputs: the named arrays, in the oracle's dtype, already rounded to their own.
        dtypes: each input's own dtype; an input without one (an integer, say) is not moved.
        stored: the dtype in which each quantity is stored by an implementation.
        seed: of the random signs.

    Returns:
        The quantities at ``inputs``, and for each name the unit at every element. Variances are in units of
        ``sqrt(v + eps)``, as `Quantity.comparable` says.
    """
    exact = evaluate(inputs)
    # Kept in the oracle's dtype: where it judges float64, magnitudes can lie beyond float64's range.
    change = {name: np.zeros_like(q.magnitude) for name, q in exact.items()}
    magnitude = {name: q.magnitude for name, q in exact.items()}
    random = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        for _ in range(DRAWS):
            moved = {
                name: perturbed(values, dtypes[name], random) if name in dtypes else values for name, values in inputs.items()
            }
            for name, q in evaluate(moved).items():
                difference = np.abs(q.comparable(q.value) - q.comparable(exact[name].value))
                change[name] = np.fmax(change[name], difference)
                magnitude[name] = np.fmax(magnitude[name], q.magnitude)
        units = {}
        for name, q in exact.items():
            accumulated = accumulation(stored[name])
            units[name] = q.over_groups(change[name]) + unit_roundoff(accumulated) * magnitude[name]
            units[name] = units[name] + units[name].dtype.type(smallest_normal(accumulated))
            if stored[name] != accumulated:
                rounded = np.maximum(np.abs(q.comparable(q.value)), smallest_normal(stored[name]))
                units[name] = units[name] + unit_roundoff(stored[name]) * rounded
    return exact, units


def in_units(got: Array, quantity: Any, unit: Array, stored: str) -> Array:
    """The error of ``got`` at every element, in rounding units; infinite where it cannot be excused.

    Integers and NaN must match. inf stands for every number beyond the largest one of the ``stored`` dtype, so that its error
    is the distance from there, and 0 where the exact result lies beyond. Zero error over a zero unit is 0.
    """
    want = quantity.comparable(quantity.value)
    if want.dtype.kind != "f":
        return np.where(np.asarray(got) == want, 0.0, np.inf)
    got = quantity.comparable(np.asarray(got).astype(want.dtype))
    limit = quantity.comparable(want.dtype.type(largest(stored)))
    with np.errstate(all="ignore"):
        overflowed = np.isinf(got) & (np.sign(got) == np.sign(want)) & ~np.isnan(want)
        error = np.where(overflowed, np.fmax(limit - np.abs(want), 0), np.abs(got - want))
        units = np.asarray(error / unit, np.float64)
        same = (error == 0) | (np.isnan(got) & np.isnan(want))
    return np.where(same, 0.0, np.where(np.isnan(units), np.inf, units))


def bound(terms: int) -> float:
    """The verdict's bound, for an element that sums ``terms`` terms: plain summation costs about half the root of ``terms``.

    >>> bound(1), bound(4096)
    (32, 64.0)
    """
    return max(VERDICT, math.sqrt(terms))
