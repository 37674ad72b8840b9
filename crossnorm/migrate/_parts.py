"""The parts of a model: the layers that hold arrays, and every normalization layer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crossnorm.errors import MigrationError, Unsupported
from crossnorm.spec import NormSpec

from ._description import Description
from ._frameworks import framework_of, submodule
from ._settings import Attention, Linear, Recurrent, Slope, Unknown

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]
# From an array as a framework stores it to that of a part: it picks elements and puts them in order, and computes nothing.
Arrange = Callable[[Array], Array]
Settings = NormSpec | Linear | Recurrent | Attention | Slope | Unknown


@dataclass(frozen=True, kw_only=True)
class Part:
    """One layer of a model, in words that no framework owns.

    Attributes:
        name: its path in the model, with dots.
        framework: ``"torch"`` or ``"tensorflow"``.
        layer: the live layer; several parts may be of one (the layers of a stacked LSTM, the two kernels of a separable
            convolution).
        settings: what it is: a specification for a normalization, else one of `crossnorm.migrate._settings`.
        arrays: its arrays now, by their names and in the arrangement of the settings or the specification; copies.
        write: overwrites arrays in place, by the same names; nothing else changes. Shapes and dtypes were checked before.
        variables: the live parameters or variables behind each array, for optimizers and to find what is tied.
        arrange: for each array that is one variable's elements, from anything shaped as that variable, a momentum say, to the
            arrangement of the array; `put` goes back.
        axis: where the channel lies in what goes in and comes out.
        batch_axis: where the batch lies there.
        trainable: the names of the arrays that are learned now.
    """

    name: str
    framework: str
    layer: Any
    settings: Settings
    arrays: Arrays
    write: Callable[[Arrays], None] = field(repr=False)
    variables: Mapping[str, tuple[Any, ...]] = field(repr=False)
    arrange: Mapping[str, Arrange] = field(repr=False, default_factory=dict)
    axis: int = -1
    batch_axis: int = 0
    trainable: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        """A method's name, or dense, convolution, ...: parts of two kinds never match."""
        return self.settings.method if isinstance(self.settings, NormSpec) else self.settings.kind


def parts(model: Any) -> list[Part]:
    """The layers of a built torch module or Keras model that hold arrays, and its normalization layers, in order of definition.

    A layer that is used twice comes once. One that holds arrays and cannot be taken apart is of kind ``"unknown"``.

    >>> import torch
    >>> [(part.name, part.kind) for part in parts(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)))]
    [('0', 'dense'), ('1', 'layer_norm')]
    """
    framework = framework_of(model)
    if framework not in ("torch", "tensorflow"):
        raise MigrationError(f"parts: {type(model).__name__} is of {framework}; whole models are of torch or of Keras 3")
    found: list[Part] = submodule(framework, "parts").parts(model)
    return found


class Arranged(NamedTuple):
    """A variable, and how an array of a part is arranged from it."""

    variable: Any
    arrange: Arrange = np.asarray


class Access(NamedTuple):
    """How the variables of a framework are read, overwritten in place, and known to be learned."""

    framework: str
    read: Callable[[Any], Array]
    assign: Callable[[Any, Array], None]
    learned: Callable[[Any], bool]

    def part(self, name: str, layer: Any, settings: Settings, held: Mapping[str, Arranged], **where: int) -> Part:
        """The part whose arrays are ``held``; one variable may hold several of them."""

        def write(arrays: Arrays) -> None:
            stored = {id(held[name].variable): self.read(held[name].variable) for name in arrays}
            for name, array in arrays.items():
                put(stored[id(held[name].variable)], held[name].arrange, array)
            for variable in {id(held[name].variable): held[name].variable for name in arrays}.values():
                self.assign(variable, stored[id(variable)])

        values = {id(one.variable): self.read(one.variable) for one in held.values()}
        return Part(
            name=name,
            framework=self.framework,
            layer=layer,
            settings=settings,
            arrays={key: np.array(one.arrange(values[id(one.variable)]), order="C") for key, one in held.items()},
            write=write,
            variables={key: (one.variable,) for key, one in held.items()},
            arrange={key: one.arrange for key, one in held.items()},
            trainable=frozenset(key for key, one in held.items() if self.learned(one.variable)),
            **where,
        )

    def normalization(
        self,
        name: str,
        layer: Any,
        described: Description,
        write: Callable[[Arrays], None],
        variables: Mapping[str, tuple[Any, ...]],
        raw: Arrange = np.asarray,
        **where: int,
    ) -> Part:
        """The part of a normalization layer; ``raw`` arranges the raw weight of a reparametrization.

        The other arrays are vectors, or in the order of their variables. What was computed from its variable, and what has
        several, cannot be arranged.
        """
        arrange = {}
        for key, array in described.arrays.items():
            to_array = raw if key == "weight" else partial(np.reshape, shape=array.shape)
            if len(variables.get(key, ())) == 1:
                stored = self.read(variables[key][0])
                if stored.size == array.size and to_array(stored).tobytes() == array.tobytes():
                    arrange[key] = to_array
        return Part(
            name=name,
            framework=self.framework,
            layer=layer,
            settings=described.spec,
            arrays=described.arrays,
            write=write,
            variables=variables,
            arrange=arrange,
            trainable=frozenset(key for key, held in variables.items() if any(map(self.learned, held))),
            **where,
        )

    def unknown(self, name: str, layer: Any, reason: str, variables: Mapping[str, Any]) -> Part:
        """A layer that cannot be taken apart, with what it holds."""
        held = {key: Arranged(variable) for key, variable in variables.items()}
        shapes = tuple((key, tuple(variable.shape)) for key, variable in variables.items())
        return self.part(name, layer, Unknown(layer=type(layer).__name__, reason=reason, arrays=shapes), held)


def put(stored: Array, arrange: Arrange, values: Array) -> None:
    """Write ``values`` where ``arrange`` picks them from, in a contiguous array.

    >>> matrix = np.zeros((2, 3))
    >>> put(matrix, lambda array: array.T[:2], np.array([[1, 2], [3, 4]]))
    >>> matrix
    array([[1., 3., 0.],
           [2., 4., 0.]])
    """
    picked = arrange(stored)
    if np.may_share_memory(picked, stored):
        picked[...] = values
    else:
        stored.reshape(-1)[arrange(np.arange(stored.size).reshape(stored.shape))] = values


def permuted_rows(order: Sequence[int], rows: Arrange = np.asarray) -> Arrange:
    """Blocks of rows in another order, after ``rows``.

    >>> permuted_rows((1, 0))(np.arange(4))
    array([2, 3, 0, 1])
    """

    def arrange(array: Array) -> Array:
        blocks = np.split(rows(array), len(order))
        return np.concatenate([blocks[i] for i in order])

    return arrange


def walk(
    access: Access,
    model: Any,
    own: Callable[[Any, str], Mapping[str, Any]],
    take_apart: Callable[[Any], Iterable[Part]],
    children: Callable[[Any], Iterable[tuple[str, Any]]],
) -> list[Part]:
    """The parts of a model, by four functions of one of its layers.

    Args:
        own: from a layer and its path to the variables that belong to itself, by their names.
        take_apart: the parts of a layer, by names behind its path; none where it is of no known kind.
        children: the layers inside a layer, by their names.
    """
    found: list[Part] = []
    seen: set[int] = set()
    taken: set[str] = set()

    def visit(layer: Any, path: str, claimed: frozenset[int]) -> None:
        """``claimed``: the variables that belong to parts of the layers around this one."""
        if id(layer) in seen:
            return
        seen.add(id(layer))
        variables = own(layer, path)
        parts, reason = [], "some of its weights are reparametrized, others not"
        if claimed.isdisjoint(map(id, variables.values())):
            try:
                parts, reason = list(take_apart(layer)), "it is of no kind that can be moved"
            except (MigrationError, Unsupported) as error:
                reason = str(error)
        claimed |= {id(variable) for part in parts for held in part.variables.values() for variable in held}
        if left := {key: variable for key, variable in variables.items() if id(variable) not in claimed}:
            parts.append(access.unknown("", layer, reason, left))
            claimed |= set(map(id, left.values()))
        for part in parts:
            name = ".".join(filter(None, (path, part.name))) or type(layer).__name__
            found.append(replace(part, name=unique(name, taken)))
        for name, child in children(layer):
            visit(child, f"{path}.{name}" if path else name, claimed)

    visit(model, "", frozenset())
    return found


def unique(name: str, taken: set[str]) -> str:
    """``name``, or with a number behind it where it is taken; and takes it."""
    found = name
    for number in count(2):
        if found not in taken:
            break
        found = f"{name}_{number}"
    taken.add(found)
    return found
