"""Which call in one model is which in the other, where shapes, kinds and even the number of layers may be what differs."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from crossnorm.errors import MigrationError
from crossnorm.spec import NormSpec

from ._trace import Call


class Pair(NamedTuple):
    """What is one in both models: usually one call each; none where the other has nothing like it; several where one layer of a
    model, a stacked LSTM say, is several layers of the other."""

    one: tuple[Call, ...]
    other: tuple[Call, ...]

    @property
    def single(self) -> bool:
        return len(self.one) == len(self.other) == 1


def paired(
    one: Sequence[Call], other: Sequence[Call], sizes: Mapping[int, int], names: Mapping[str, str] | None = None
) -> list[Pair]:
    """The calls of two runs, in the order of execution: by the names given, by equal names, then by kinds in their order.

    Args:
        one, other: the calls.
        sizes: how many parts a layer is, by its id.
        names: of parts of one model, and who they are in the other.
    """
    given = dict(names or {})
    for side, calls, asked in (("first", one, given), ("second", other, given.values())):
        if unknown := sorted(set(asked) - {call.part.name for call in calls}):
            raise MigrationError(
                f"diff: pairs names {', '.join(map(repr, unknown))}, which the {side} model does not call; it calls "
                f"{', '.join(sorted({call.part.name for call in calls}))}"
            )
    pairs: list[Pair] = []
    i = j = 0
    for call, partner in [*_by_name(one, other, given), (None, None)]:
        end_i = len(one) if call is None else one.index(call)
        end_j = len(other) if partner is None else other.index(partner)
        pairs += _by_kind(one[i:end_i], other[j:end_j], sizes)
        if call is not None and partner is not None:
            pairs.append(Pair((call,), (partner,)))
        i, j = end_i + 1, end_j + 1
    return pairs


def _by_name(one: Sequence[Call], other: Sequence[Call], given: Mapping[str, str]) -> list[tuple[Call | None, Call | None]]:
    """The pairs that names decide: those given, and all if every name and kind has its equal, in the same order."""
    if not given and [_key(call) for call in one] == [_key(call) for call in other]:
        return list(zip(one, other, strict=True))
    partners = {(call.part.name, call.number): call for call in other}
    found: list[tuple[Call | None, Call | None]] = []
    last = -1
    for call in one:
        partner = partners.get((given.get(call.part.name, ""), call.number))
        if partner is None:
            continue
        place = other.index(partner)
        if place <= last:
            raise MigrationError(
                f"diff: the pair {call.part.name!r}, {partner.part.name!r} contradicts the order of execution of the pairs "
                "before it; name others"
            )
        found.append((call, partner))
        last = place
    return found


def _by_kind(one: Sequence[Call], other: Sequence[Call], sizes: Mapping[int, int]) -> list[Pair]:
    left, right = ([call for call in calls for _ in range(sizes[id(call.part.layer)])] for calls in (one, other))
    matcher = SequenceMatcher(None, [call.part.kind for call in left], [call.part.kind for call in right], autojunk=False)
    links: list[tuple[Call | None, Call | None]] = []
    for _, i, end_i, j, end_j in matcher.get_opcodes():
        mine, theirs = left[i:end_i], right[j:end_j]
        while mine and theirs and _comparable(mine[0], theirs[0]):
            links.append((mine.pop(0), theirs.pop(0)))
        links += [(call, None) for call in mine]
        links += [(None, call) for call in theirs]
    return _joined(links)


def _joined(links: Sequence[tuple[Call | None, Call | None]]) -> list[Pair]:
    """One pair of all links that share a call."""
    pairs: list[Pair] = []
    for call, partner in links:
        if pairs and ((call is not None and call in pairs[-1].one) or (partner is not None and partner in pairs[-1].other)):
            last = pairs.pop()
            mine = last.one if call is None or call in last.one else (*last.one, call)
            theirs = last.other if partner is None or partner in last.other else (*last.other, partner)
            pairs.append(Pair(mine, theirs))
        else:
            pairs.append(Pair(() if call is None else (call,), () if partner is None else (partner,)))
    return pairs


def _comparable(one: Call, other: Call) -> bool:
    """Whether one may stand for the other: the same kind, or two normalizations."""
    return one.part.kind == other.part.kind or all(isinstance(call.part.settings, NormSpec) for call in (one, other))


def _key(call: Call) -> tuple[str, str, int]:
    return re.sub(r"[^a-z0-9]+", ".", call.part.name.lower()).strip("."), call.part.kind, call.number
