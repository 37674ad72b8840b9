"""Which call in one model is which in the other, where shapes, kinds and even the number of layers may be what differs."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from crossnorm.errors import MigrationError
from crossnorm.spec import NormSpec

from ._trace import Call

Pairs = list[tuple[Call | None, Call | None]]


def paired(one: Sequence[Call], other: Sequence[Call], names: Mapping[str, str] | None = None) -> Pairs:
    """The calls of two runs, in the order of execution: by the names given, by equal names, then by kinds in their order.

    A call that the other run has not is paired with None.
    """
    given = dict(names or {})
    for side, calls, asked in (("first", one, given), ("second", other, given.values())):
        if unknown := sorted(set(asked) - {call.part.name for call in calls}):
            raise MigrationError(
                f"diff: pairs names {', '.join(map(repr, unknown))}, which the {side} model does not call; it calls "
                f"{', '.join(sorted({call.part.name for call in calls}))}"
            )
    fixed = _by_name(one, other, given)
    pairs: Pairs = []
    i = j = 0
    for call, partner in [*fixed, (None, None)]:
        end_i = len(one) if call is None else one.index(call)
        end_j = len(other) if partner is None else other.index(partner)
        pairs += _by_kind(one[i:end_i], other[j:end_j])
        if call is not None:
            pairs.append((call, partner))
        i, j = end_i + 1, end_j + 1
    return pairs


def _by_name(one: Sequence[Call], other: Sequence[Call], given: Mapping[str, str]) -> list[tuple[Call, Call]]:
    """The longest run of pairs that the names decide and the orders of both models agree on."""
    partners = {_key(call.part.name, call.number): call for call in other}
    found: list[tuple[Call, Call]] = []
    last = -1
    for call in one:
        name = given.get(call.part.name)
        partner = partners.get(_key(call.part.name if name is None else name, call.number))
        # By the name alone only what is also of the same kind: "0" and "1" are names of many things.
        if partner is None or (name is None and partner.part.kind != call.part.kind):
            continue
        place = other.index(partner)
        if place > last:
            found.append((call, partner))
            last = place
        elif name is not None:
            raise MigrationError(
                f"diff: pairs={{{call.part.name!r}: {name!r}}} contradicts the order of execution of the pairs before; name others"
            )
    complete = len(found) == len(one) == len(other)
    return found if complete else [pair for pair in found if pair[0].part.name in given]


def _by_kind(one: Sequence[Call], other: Sequence[Call]) -> Pairs:
    matcher = SequenceMatcher(None, [call.part.kind for call in one], [call.part.kind for call in other], autojunk=False)
    pairs: Pairs = []
    for _, i, end_i, j, end_j in matcher.get_opcodes():
        left, right = list(one[i:end_i]), list(other[j:end_j])
        while left and right and _comparable(left[0], right[0]):
            pairs.append((left.pop(0), right.pop(0)))
        pairs += [(call, None) for call in left]
        pairs += [(None, call) for call in right]
    return pairs


def _comparable(one: Call, other: Call) -> bool:
    """Whether one may stand for the other: the same kind, or two normalizations."""
    return one.part.kind == other.part.kind or all(isinstance(call.part.settings, NormSpec) for call in (one, other))


def _key(name: str, number: int) -> tuple[str, int]:
    return re.sub(r"[^a-z0-9]+", ".", name.lower()).strip("."), number
