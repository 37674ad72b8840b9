"""Which part of one model is which of the other."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase

import numpy as np

from crossnorm.errors import MigrationError

from .._parts import Part
from .._settings import Linear, Unknown

Pairs = list[tuple[Part, Part]]

# Fields that say how a layer trains; at inference two layers that differ in nothing else compute the same.
TRAINING_FIELDS = frozenset(
    {
        "decay",
        "renorm_decay",
        "running_variance",
        "running_quantity",
        "single_value",
        "initial_variance",
        "last_gamma",
        "pooled",
    }
    | {"r_max", "r_min", "d_max", "r_max_steps", "d_max_steps", "iterations", "iteration_order", "warm_up", "initial_scale"}
)


def match(source: Sequence[Part], target: Sequence[Part], mapping: Mapping[str, str], skip: Iterable[str]) -> Pairs:
    """The pairs of parts, in the order of ``source``.

    What ``mapping`` names is paired first. The rest is paired by name if every name has its equal, whatever the separators;
    else by order if the two sequences of kinds and shapes are the same; else by those names that agree, by those kinds and
    shapes that come once, and the rest by order.

    Args:
        source, target: the parts of the two models, in the order in which they are executed, or defined.
        mapping: names in ``source``, and whom they are in ``target``.
        skip: names, with ``*`` and ``?``, of parts of either model that stay out of it.

    Raises:
        MigrationError: with everything that is unmatched, ambiguous or of an unknown kind.
    """
    problems = [*_wrong_names(mapping, source, target), *_wrong_globs(skip, [*source, *target])]
    source, target = ([part for part in parts if not _any(part.name, skip)] for parts in (source, target))
    # Within one framework the arrays of a layer of the same class are the same, whatever it is.
    foreign = {part.framework for part in source} != {part.framework for part in target}
    for side, parts in (("source", source), ("target", target)):
        problems += [
            f"{side} {part.name}: {part.settings.layer} cannot be taken apart: {part.settings.reason}"
            for part in parts
            if isinstance(part.settings, Unknown) and foreign
        ]
    if problems:
        raise refusal(problems)
    by_name = {part.name: part for part in target}
    fixed = {part.name: by_name[mapping[part.name]] for part in source if part.name in mapping}
    taken = {part.name for part in fixed.values()}
    left, right = [p for p in source if p.name not in fixed], [p for p in target if p.name not in taken]
    fixed |= _match_rest(left, right)
    pairs = [(part, fixed[part.name]) for part in source]
    if problems := [*_misfits(pairs), *_other_functions(pairs)]:
        raise refusal(problems)
    return pairs


def refusal(problems: Sequence[str]) -> MigrationError:
    """All problems in one error."""
    listed = "".join(f"\n  - {problem}" for problem in problems)
    return MigrationError(
        f"transfer: there {'is a problem' if len(problems) == 1 else f'are {len(problems)} problems'}, and nothing was written:"
        f"{listed}\n"
        "name pairs by mapping={source name: target name}, leave parts out by skip=[name], or change one of the models"
    )


def inference_differences(one: Part, other: Part) -> list[str]:
    """Fields of the two specifications that make them compute something else at inference, in words."""
    return [f"{name} {a!r} against {b!r}" for name, a, b in _differences(one, other) if not _of_training(name, one)]


def training_differences(one: Part, other: Part) -> list[str]:
    """Fields of the two specifications that make them train otherwise, in words."""
    return [f"{name} {a!r} against {b!r}" for name, a, b in _differences(one, other) if _of_training(name, one)]


def _of_training(name: str, part: Part) -> bool:
    if name in ("iterations", "iteration_order") and getattr(part.settings, "iterate", "training") == "always":
        return False
    return name in TRAINING_FIELDS


def _differences(one: Part, other: Part) -> list[tuple[str, object, object]]:
    a, b = one.settings, other.settings
    if isinstance(a, Linear):
        # What one layer pads or activates, the other model may leave to a layer beside it.
        return []
    values = [(field.name, getattr(a, field.name), getattr(b, field.name)) for field in fields(a)]
    return [(name, x, y) for name, x, y in values if x != y]


def _match_rest(source: list[Part], target: list[Part]) -> dict[str, Part]:
    names = _same_names(source, target)
    if len(names) == len(source) == len(target):
        return names
    order = _same_order(source, target)
    if order is None:
        taken = {part.name for part in names.values()}
        left, right = [p for p in source if p.name not in names], [p for p in target if p.name not in taken]
        alone = _alone(left, right)
        taken = {part.name for part in alone.values()}
        rest = _same_order([p for p in left if p.name not in alone], [p for p in right if p.name not in taken])
        if rest is None:
            raise refusal([*_unmatched("source", left, right), *_unmatched("target", right, left), *_parting(left, right)])
        return names | alone | rest
    contradictions = [
        f"source {name}: by its name it is target {part.name}, by the order target {order[name].name}"
        for name, part in names.items()
        if order[name] is not part and not _automatic(part)
    ]
    if contradictions:
        raise refusal(contradictions)
    return order


def _same_names(source: list[Part], target: list[Part]) -> dict[str, Part]:
    """Parts whose names agree but for separators and capitals, and are alone in that."""
    keys: dict[str, list[Part]] = defaultdict(list)
    for part in target:
        keys[_key(part.name)].append(part)
    counts = Counter(_key(part.name) for part in source)
    found = {part.name: keys[_key(part.name)] for part in source if counts[_key(part.name)] == 1}
    return {name: parts[0] for name, parts in found.items() if len(parts) == 1}


def _automatic(part: Part) -> bool:
    """Whether a name is nobody's choice: Keras counts the layers of a class, over all models."""
    counted = re.sub(r"(_\d+)?$", "", part.name.rpartition(".")[2])
    return part.framework == "tensorflow" and counted.replace("_", "") == type(part.layer).__name__.lower()


def _alone(source: list[Part], target: list[Part]) -> dict[str, Part]:
    """The parts whose kind and shapes come once on either side: branches are not executed in the same order everywhere."""
    mine, theirs = (Counter(map(_signature, parts)) for parts in (source, target))
    there = {_signature(part): part for part in target}
    keys = {part.name: _signature(part) for part in source}
    return {name: there[key] for name, key in keys.items() if mine[key] == theirs[key] == 1}


def _same_order(source: list[Part], target: list[Part]) -> dict[str, Part] | None:
    """The parts one after the other, if they are of the same kinds and shapes."""
    if [_signature(part) for part in source] != [_signature(part) for part in target]:
        return None
    return {one.name: other for one, other in zip(source, target, strict=True)}


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", ".", name.lower()).strip(".")


def _signature(part: Part) -> tuple[object, ...]:
    kind = part.settings.layer if isinstance(part.settings, Unknown) else part.kind
    return kind, tuple(sorted((name, np.shape(array)) for name, array in part.arrays.items()))


def _shown(part: Part) -> str:
    shapes = ", ".join(f"{name} {np.shape(array)}" for name, array in part.arrays.items())
    return f"{part.kind} with {shapes}" if shapes else part.kind


def _misfits(pairs: Pairs) -> list[str]:
    """Parts that belong together by name or by the user's word, and cannot be one."""
    return [
        f"source {one.name}: {_shown(one)} does not fit target {other.name}: {_shown(other)}"
        for one, other in pairs
        if _signature(one) != _signature(other)
    ]


def _other_functions(pairs: Pairs) -> list[str]:
    """Parts that fit and compute different things; those that differ in the same are told together."""
    found: dict[str, list[tuple[Part, Part]]] = defaultdict(list)
    for one, other in pairs:
        if _signature(one) == _signature(other) and (differences := inference_differences(one, other)):
            found[", ".join(differences)].append((one, other))
    return [
        f"source {alike[0][0].name} and target {alike[0][1].name}"
        + (f", and {len(alike) - 1} more pairs," if len(alike) > 1 else "")
        + f" compute different things: {what}; convert one of them, or build it from the other's specification"
        for what, alike in found.items()
    ]


def _unmatched(side: str, parts: list[Part], others: list[Part]) -> list[str]:
    """The parts of a kind and shape that the other side has in another number."""
    mine, theirs = (Counter(_signature(part) for part in each) for each in (parts, others))
    return [
        f"{side} {part.name}: {_shown(part)} has no counterpart"
        if not theirs[_signature(part)]
        else f"{side} {part.name}: {_shown(part)} is one of {mine[_signature(part)]} beside {theirs[_signature(part)]}"
        for part in parts
        if mine[_signature(part)] != theirs[_signature(part)]
    ]


def _parting(source: list[Part], target: list[Part]) -> list[str]:
    """Where the order parts, if all else is the same."""
    if Counter(map(_signature, source)) != Counter(map(_signature, target)):
        return []
    one, other = next((a, b) for a, b in zip(source, target, strict=True) if _signature(a) != _signature(b))
    return [f"source {one.name} stands where target {other.name} does, and the names do not agree: the order is ambiguous"]


def _any(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _wrong_names(mapping: Mapping[str, str], source: Sequence[Part], target: Sequence[Part]) -> list[str]:
    problems = []
    for side, names, parts in (("source", list(mapping), source), ("target", list(mapping.values()), target)):
        there = [part.name for part in parts]
        problems += [
            f"mapping names {name!r}, which is no part of the {side}; its parts are {', '.join(there[:12])}"
            + (", ..." if len(there) > 12 else "")
            for name in names
            if name not in there
        ]
        problems += [f"mapping names {side} {name!r} {count} times" for name, count in Counter(names).items() if count > 1]
    return problems


def _wrong_globs(skip: Iterable[str], parts: Sequence[Part]) -> list[str]:
    return [f"skip names {glob!r}, which is no part" for glob in skip if not any(_any(part.name, [glob]) for part in parts)]
