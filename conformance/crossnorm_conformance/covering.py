"""Covering arrays: few rows in which every pair of values of any two axes meets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, product

import numpy as np

Row = dict[str, object]


def pairs(axes: Mapping[str, Sequence[object]]) -> set[tuple[str, object, str, object]]:
    """Every pair of values of two different axes.

    >>> len(pairs({"a": (1, 2), "b": (3, 4, 5)}))
    6
    """
    return {(a, x, b, y) for a, b in combinations(axes, 2) for x, y in product(axes[a], axes[b])}


def pairs_of(row: Row) -> set[tuple[str, object, str, object]]:
    """The pairs that one row covers."""
    return {(a, row[a], b, row[b]) for a, b in combinations(row, 2)}


def covering_rows(axes: Mapping[str, Sequence[object]]) -> list[Row]:
    """Rows that cover every pair, chosen greedily: of some random rows around an open pair the one that covers most.

    >>> rows = covering_rows({"a": (1, 2), "b": (3, 4), "c": (5, 6)})
    >>> pairs({"a": (1, 2), "b": (3, 4), "c": (5, 6)}) == set().union(*map(pairs_of, rows))
    True
    """
    random = np.random.default_rng(0)
    # A list, not a set: the order decides which rows come out, and must not depend on the hash seed.
    uncovered = dict.fromkeys((a, x, b, y) for a, b in combinations(axes, 2) for x, y in product(axes[a], axes[b]))
    rows: list[Row] = []
    while uncovered:
        a, x, b, y = next(iter(uncovered))
        best: Row = {}
        most = 0
        for _ in range(24):
            row = {axis: values[random.integers(len(values))] for axis, values in axes.items()} | {a: x, b: y}
            gain = sum(pair in uncovered for pair in pairs_of(row))
            if gain > most:
                best, most = row, gain
        rows.append(best)
        for pair in pairs_of(best):
            uncovered.pop(pair, None)
    return rows


def sparing(rows: Sequence[Row], axis: str, dear: object, cheap: object) -> list[Row]:
    """The same rows with the ``dear`` value of an axis in no more of them than its pairs need; the rest take the ``cheap`` one.

    >>> rows = [{"a": 1, "b": 3}, {"a": 1, "b": 3}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
    >>> [row["b"] for row in sparing(rows, "b", 3, 4)]
    [4, 3, 3, 4]
    """
    rows = list(rows)
    met = Counter(pair for row in rows if row[axis] == dear for pair in pairs_of(row))
    for number, row in enumerate(rows):
        own = [pair for pair in pairs_of(row) if (axis, dear) in (pair[:2], pair[2:])]
        if row[axis] == dear and all(met[pair] > 1 for pair in own):
            met.subtract(own)
            rows[number] = {**row, axis: cheap}
    return rows
