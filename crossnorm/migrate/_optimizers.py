"""The state and the settings of an optimizer, moved to another one that goes on as the first would."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

import numpy as np

from crossnorm.errors import MigrationError

from ._frameworks import find_framework, submodule
from ._parts import Array, Part, put

Pairs = Sequence[tuple[Part, Part]]

MOMENTS = {"sgd": ("momentum",), "adam": ("mean", "mean_of_square")}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How an optimizer steps, in words that no framework owns.

    ``decoupled``: weight decay shrinks the weights beside the step, as in AdamW and everywhere in Keras, and is not added to
    the gradient. ``eps`` is added to the root of the mean square, which torch corrects for its start first, and Keras later.
    """

    method: Literal["sgd", "adam"]
    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False
    beta_1: float = 0.0
    beta_2: float = 0.0
    eps: float = 0.0
    weight_decay: float = 0.0
    decoupled: bool = True

    @property
    def moments(self) -> tuple[str, ...]:
        """What is kept for each array: torch's momentum buffer, without the learning rate; or Adam's two means."""
        return () if self.method == "sgd" and not self.momentum else MOMENTS[self.method]


@dataclass(frozen=True)
class State:
    """What an optimizer keeps for one variable, in its shape; and how many steps it made, None where nobody counts."""

    moments: Mapping[str, Array]
    steps: int | None


class Optimizer(Protocol):
    """An optimizer of one framework, as ``optimizers.py`` in the framework's folder presents it."""

    name: str
    framework: str

    def rule(self) -> Rule:
        """How it steps now; a MigrationError names what has no counterpart elsewhere."""

    def trained(self) -> Sequence[Any]:
        """The variables that it updates."""

    def state(self, variable: Any) -> State:
        """What it keeps for one of them; zeros before the first step."""

    def check(self, rule: Rule, states: Sequence[tuple[Any, State]]) -> None:
        """Refuse what it cannot go on with."""

    def go_on(self, rule: Rule, states: Sequence[tuple[Any, State]]) -> list[str]:
        """Follow the rule from now on, from these states; what was changed, in words."""


class _Trained(NamedTuple):
    """An array that both optimizers update: the two parts, its name in them, the two variables."""

    source: Part
    target: Part
    name: str
    here: Any
    there: Any


@dataclass(frozen=True)
class OptimizerTransfer:
    """What was moved and set, and what will differ, in sentences."""

    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(f"- {note}" for note in self.notes)


def transfer_optimizer(source: Any, target: Any, pairs: Pairs) -> OptimizerTransfer:
    """Make an optimizer go on where another one stands, so that both models train on alike.

    Moves the state of SGD (momentum, Nesterov or not), Adam and AdamW between `torch.optim` and `keras.optimizers`, in either
    direction or within one of them, and sets learning rate, momentum, betas, epsilon and weight decay of the target as the
    source has them: the defaults differ. Each moment is arranged as its array is. Keras' velocity is minus the learning rate
    times torch's momentum buffer, so that the two part once the learning rate is changed.

    Args:
        source: the optimizer that trained the source's model.
        target: the optimizer of the target's model, a Keras one built.
        pairs: the parts of the two models that belong together, as `transfer` pairs them.

    Returns:
        Sentences on what was moved, what was set, and where the two will differ.

    Raises:
        MigrationError: another optimizer, a setting without counterpart (amsgrad, dampening, maximize, clipping, moving
            averages, gradient accumulation, loss scales, schedules, groups that differ, coupled against decoupled weight
            decay), arrays that only one of the two trains. The second bias of a torch LSTM is one: both move by the whole
            gradient, so that their sum goes twice as far as the only one of Keras; freeze it. The target is as it was.
    """
    one, other = _presented(source), _presented(target)
    rule = one.rule()
    other.rule()
    trained = _trained(pairs, one, other)
    states = _moved(trained, one, rule)
    other.check(rule, states)
    notes = [
        f"moved the state of {len(trained)} arrays from {one.name} to {other.name}",
        *_left_out(trained, one, other),
        *_eps_note(rule, trained, one, other),
        *other.go_on(rule, states),
    ]
    return OptimizerTransfer(tuple(notes))


def refuse(what: str, remedy: str) -> NoReturn:
    raise MigrationError(f"transfer_optimizer: {what}; {remedy}")


def _presented(optimizer: Any) -> Optimizer:
    bases = (("torch", "optim.Optimizer", "torch"), ("keras", "optimizers.Optimizer", "tensorflow"))
    framework = find_framework(optimizer, bases)
    if framework is None:
        refuse(f"{type(optimizer).__name__} is no optimizer of torch.optim or keras.optimizers", "give one of these")
    presented: Optimizer = submodule(framework, "optimizers").present(optimizer)
    return presented


def _trained(pairs: Pairs, one: Optimizer, other: Optimizer) -> list[_Trained]:
    """The arrays that both train; an error about those that one of them trains alone, or that cannot be arranged."""
    known = [{id(variable) for variable in optimizer.trained()} for optimizer in (one, other)]
    found, problems = [], []
    for source, target in pairs:
        for name in dict.fromkeys((*source.arrays, *target.arrays)):
            held = [part.variables.get(name, ()) for part in (source, target)]
            here, there = (any(id(v) in ids for v in variables) for variables, ids in zip(held, known, strict=True))
            if here != there:
                problems.append(f"{source.name} {name} is trained in the {'source' if here else 'target'} only")
            elif here and not (name in source.arrange and name in target.arrange):
                problems.append(f"{source.name} {name} is computed from what is trained")
            elif here:
                if target.arrays[name].dtype.itemsize < source.arrays[name].dtype.itemsize:
                    problems.append(f"{source.name} {name} would be rounded")
                found.append(_Trained(source, target, name, held[0][0], held[1][0]))
    problems += _ties(found)
    if problems:
        refuse(
            f"{len(problems)} arrays do not train alike: {'; '.join(problems)}",
            "freeze them in both models (requires_grad_(False), trainable=False), tie them in both, or leave the pair out",
        )
    if not found:
        refuse("no array of the pairs is trained by both optimizers", "give the optimizers of these two models")
    return found


def _ties(trained: Sequence[_Trained]) -> list[str]:
    """Arrays of different parts that are one variable in one of the models only."""
    tied = []
    for side in ("here", "there"):
        users: dict[int, set[tuple[str, str]]] = defaultdict(set)
        for each in trained:
            users[id(getattr(each, side))].add((each.source.name, each.name))
        tied.append({frozenset(names) for names in users.values() if len({part for part, _ in names}) > 1})
    return [
        f"{' and '.join(' '.join(name) for name in sorted(names))} are tied in the {side} only"
        for side, mine, theirs in (("source", *tied), ("target", *reversed(tied)))
        for names in mine - theirs
    ]


def _moved(trained: Sequence[_Trained], one: Optimizer, rule: Rule) -> list[tuple[Any, State]]:
    """The state of each variable of the target, arranged as its arrays are."""
    variables = {id(each.there): each.there for each in trained}
    moments: dict[int, dict[str, Array]] = defaultdict(dict)
    steps: dict[int, set[int | None]] = defaultdict(set)
    for source, target, name, here, there in trained:
        state = one.state(here)
        steps[id(there)].add(state.steps)
        for kept in rule.moments:
            moment = state.moments[kept]
            values = moments[id(there)].setdefault(kept, np.zeros(tuple(there.shape), moment.dtype))
            put(values, target.arrange[name], source.arrange[name](moment))
        if len(steps[id(there)]) > 1:
            refuse(f"the arrays of {target.name} made different numbers of steps", "train them together, or leave the pair out")
    return [(variables[key], State(moments[key], *steps[key])) for key in variables]


def _left_out(trained: Sequence[_Trained], one: Optimizer, other: Optimizer) -> list[str]:
    moved = {id(variable) for each in trained for variable in (each.here, each.there)}
    return [
        f"{count} variables that the {side} trains are in no pair: their state {fate}"
        for side, optimizer, fate in (("source", one, "was not moved"), ("target", other, "is what it was"))
        if (count := sum(id(variable) not in moved for variable in optimizer.trained()))
    ]


def _eps_note(rule: Rule, trained: Sequence[_Trained], one: Optimizer, other: Optimizer) -> list[str]:
    """How far the next step would be apart, as torch corrects the mean square for its start before epsilon is added.

    The same epsilon is the best choice: Keras' part of it in the step shrinks to torch's as the correction goes to 1, and any
    other epsilon would be wrong for good.
    """
    if rule.method != "adam" or not rule.eps or one.framework == other.framework:
        return []
    apart = length = 0.0
    for state in (one.state(variable) for variable in {id(each.here): each.here for each in trained}.values()):
        mean, square = (np.asarray(state.moments[kept], np.float64) for kept in rule.moments)
        correction = np.sqrt(1 - rule.beta_2 ** ((state.steps or 0) + 1))
        root = np.sqrt(square) / correction
        torch, keras = (mean / (root + eps) for eps in (rule.eps, rule.eps / correction))
        apart += np.sum((torch - keras) ** 2)
        length += np.sum(torch**2)
    size = (
        f"that changes the next step by {np.sqrt(apart / length):.1e} of its length, and less" if length else "it matters less"
    )
    return [f"Keras adds epsilon={rule.eps:g} before the root is corrected for its start, torch after: {size} with each step"]
