"""Which call in one model is which in the other, where shapes, kinds and even the number of layers may be what differs."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np

from crossnorm.errors import MigrationError
from crossnorm.spec import NormSpec

from .._trace import Call


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
    fixed = [Pair((call,), (partner,)) for call, partner in _by_name(one, other, given)]
    taken = {call.key for pair in fixed for call in pair.one}, {call.key for pair in fixed for call in pair.other}
    rest = ([call for call in calls if call.key not in keys] for calls, keys in zip((one, other), taken, strict=True))
    return _in_order([*fixed, *_by_kind(*rest, sizes)], one, other)


def _in_order(pairs: Sequence[Pair], one: Sequence[Call], other: Sequence[Call]) -> list[Pair]:
    """The pairs as the first model calls them; what only the other has, behind what comes before it there."""
    here, there = ({call.key: number for number, call in enumerate(calls)} for calls in (one, other))
    both = sorted((there[pair.other[-1].key], here[pair.one[-1].key]) for pair in pairs if pair.one and pair.other)

    def place(pair: Pair) -> tuple[int, int]:
        if pair.one:
            return here[pair.one[-1].key], -1
        number = there[pair.other[-1].key]
        return next((mine for theirs, mine in reversed(both) if theirs < number), -1), number

    return sorted(pairs, key=place)


def _by_name(one: Sequence[Call], other: Sequence[Call], given: Mapping[str, str]) -> list[tuple[Call, Call]]:
    """The pairs that names decide: those given, and all others if every name and kind has its equal."""
    partners = {_key(call): call for call in other}
    if not given and partners.keys() == {_key(call) for call in one} and len(partners) == len(one) == len(other):
        return [(call, partners[_key(call)]) for call in one]
    named = {(call.part.name, call.number): call for call in other}
    links = [(call, named.get((given.get(call.part.name, ""), call.number))) for call in one]
    return [(call, partner) for call, partner in links if partner is not None]


def _by_kind(one: Sequence[Call], other: Sequence[Call], sizes: Mapping[int, int]) -> list[Pair]:
    """Runs of the same kinds and shapes first, then what has its like somewhere else, then kinds between these."""
    left, right = ([call for call in calls for _ in range(sizes[id(call.part.layer)])] for calls in (one, other))
    signatures = [[_signature(call) for call in calls] for calls in (left, right)]
    matcher = SequenceMatcher(None, *signatures, autojunk=False)
    links: list[tuple[Call | None, Call | None]] = []
    for block in matcher.get_matching_blocks():
        links += _between_blocks(left, right, links, block.a, block.b)
        links += zip(left[block.a : block.a + block.size], right[block.b : block.b + block.size], strict=True)
    return _joined(_reunited(links))


def _between_blocks(
    left: Sequence[Call], right: Sequence[Call], links: Sequence[tuple[Call | None, Call | None]], end_i: int, end_j: int
) -> list[tuple[Call | None, Call | None]]:
    """Links of what lies before two places and is not linked yet."""
    i, j = (sum(link[side] is not None for link in links) for side in (0, 1))
    mine, theirs = left[i:end_i], right[j:end_j]
    matcher = SequenceMatcher(None, [call.part.kind for call in mine], [call.part.kind for call in theirs], autojunk=False)
    found: list[tuple[Call | None, Call | None]] = []
    for _, i, last_i, j, last_j in matcher.get_opcodes():
        some, others = list(mine[i:last_i]), list(theirs[j:last_j])
        while some and others and _comparable(some[0], others[0]):
            found.append((some.pop(0), others.pop(0)))
        found += [(call, None) for call in some]
        found += [(None, call) for call in others]
    return found


def _reunited(links: Sequence[tuple[Call | None, Call | None]]) -> list[tuple[Call | None, Call | None]]:
    """Calls without partner that have the same kind and shapes: the models call some branches in another order."""
    free = [partner for call, partner in links if call is None and partner is not None]
    found: list[tuple[Call | None, Call | None]] = []
    for call, partner in links:
        if call is not None and partner is None:
            partner = next((each for each in free if _signature(each) == _signature(call)), None)
            free = [each for each in free if each is not partner]
        if call is not None or partner in free:
            found.append((call, partner))
    return [(call, partner) for call, partner in found if call is not None or partner in free]


def _signature(call: Call) -> tuple[object, ...]:
    return call.part.kind, tuple(sorted((name, np.shape(array)) for name, array in call.part.arrays.items() if array.ndim))


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
