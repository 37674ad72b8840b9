"""Everything in which two layers differ, each as one change that would make it equal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm.spec import NormSpec

from .._parts import Part
from .._trace import Call
from .resemblance import resemblance, swapped, values_of

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A change of the second layer.

    Attributes:
        words: what is different.
        fields: of its settings, with the values of the first layer; ``settings``: all of them.
        arrays: by the number of the layer's part and the name.
        training: the mode.
        dtype: in which it computes.
        arguments: the call whose arguments it gets beside its inputs.
    """

    words: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    settings: Any = None
    arrays: Mapping[tuple[int, str], Array] = field(default_factory=dict)
    training: bool | None = None
    dtype: str | None = None
    arguments: Call | None = field(default=None, repr=False)

    def __and__(self, other: "Suspect") -> "Suspect":
        return Suspect(
            words=f"{self.words} and {other.words}",
            fields={**self.fields, **other.fields},
            settings=self.settings or other.settings,
            arrays={**self.arrays, **other.arrays},
            training=other.training if self.training is None else self.training,
            dtype=self.dtype or other.dtype,
            arguments=self.arguments or other.arguments,
        )


def suspects(
    a: Call,
    b: Call,
    parts: tuple[Sequence[Part], Sequence[Part]],
    names: tuple[str, str],
    order: Array | None,
    known: Sequence[Part],
) -> list[Suspect]:
    """What may be the cause, the plainest first.

    Args:
        a, b: the calls.
        parts: all parts of each layer.
        names: of the models.
        order: of the features of ``a`` in which ``b`` takes them, behind a flattened image.
        known: all parts of the first model.
    """
    found = [*_mode(a, b, names), *_dtype(a, b, parts), *_arguments(a, b), *_fields(a, b)]
    count = a.output.size // max(a.output.shape[-1], 1) if a.output.ndim else 1
    if len(parts[0]) == len(parts[1]):
        for number, (one, other) in enumerate(zip(*parts, strict=True)):
            prefix = f"{one.name.rpartition('.')[2]}: " if len(parts[0]) > 1 else ""
            found += _arrays(one, other, number, prefix, count, order, known)
    return found


def _mode(a: Call, b: Call, names: tuple[str, str]) -> list[Suspect]:
    frozen = [part.framework == "tensorflow" and not part.layer.trainable for part in (a.part, b.part)]
    if frozen[0] != frozen[1]:
        # In Keras such a layer knows one mode only; a new one with the same settings is trainable.
        change: dict[str, Any] = {"training": False} if frozen[0] else {"settings": b.part.settings}
        return [Suspect(words=f"in {names[frozen[1]]} it is frozen by trainable=False", **change)]
    if bool(a.training) == bool(b.training):
        return []
    who = names[0] if a.training else names[1]
    return [Suspect(words=f"{who} is in training mode", training=bool(a.training))]


def _dtype(a: Call, b: Call, parts: tuple[Sequence[Part], Sequence[Part]]) -> list[Suspect]:
    if a.dtype == b.dtype:
        return []
    # Where the weights were rounded as well, the unrounded ones belong to it.
    arrays = {
        (number, name): array
        for number, (one, other) in enumerate(zip(*parts, strict=False))
        for name, array in one.arrays.items()
        if name in other.arrays and np.array_equal(array.astype(other.arrays[name].dtype), other.arrays[name], equal_nan=False)
    }
    return [Suspect(words=f"dtype {a.dtype} against {b.dtype}", dtype=a.dtype, arrays=arrays)]


def _arguments(a: Call, b: Call) -> list[Suspect]:
    """What else a layer is called with, a mask say; of another framework it cannot be put in place."""
    if a.part.framework != b.part.framework or a.part.kind != b.part.kind:
        return []
    names = [name for name in {**a.kwargs, **b.kwargs} if name not in (*a.inputs, "training")]
    given = {name: tuple(_shown(call.kwargs.get(name)) for call in (a, b)) for name in names}
    words = [
        f"{_spelled(name)} {'of other values' if x[:2] == y[:2] != () else f'{x[0]} against {y[0]}'}"
        for name, (x, y) in given.items()
        if x != y
    ]
    return [Suspect(words=" and ".join(words), arguments=a)] if words else []


def _shown(value: Any) -> tuple[Any, ...]:
    """A value in words; of an array also what tells it from others."""
    if not hasattr(value, "shape"):
        return (repr(value),)
    array = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
    return f"of shape {array.shape}", array.dtype.name, array.tobytes()


def _fields(a: Call, b: Call) -> list[Suspect]:
    one, other = a.part.settings, b.part.settings
    if type(one) is not type(other):
        return [Suspect(words=f"{_spelled(a.part.kind)} against {_spelled(b.part.kind)}", settings=one)]
    found = []
    for each in fields(one):
        x, y = getattr(one, each.name), getattr(other, each.name)
        # An activation may be a layer of its own in the other model: what lies between the layers tells.
        if x == y or (each.name == "activation" and "linear" in (x, y)):
            continue
        words = _field_words(each.name, x, y)
        if each.name in ("channels", "shape") and a.part.axis != b.part.axis and a.part.framework == b.part.framework:
            words = f"channel axis {a.part.axis} against {b.part.axis}"
        found.append(Suspect(words=words, fields={each.name: x}))
    return found


def _field_words(name: str, x: Any, y: Any) -> str:
    if isinstance(x, bool) and isinstance(y, bool) and name in ("bias", "scale", "offset"):
        return f"{name} against none" if x else f"no {name} against one"
    shown = [each if isinstance(each, str) else repr(each) for each in (x, y)]
    return f"{_spelled(name)} {shown[0]} against {shown[1]}"


def _spelled(name: str) -> str:
    return name.replace("_", " ")


def _arrays(
    one: Part, other: Part, number: int, prefix: str, count: int, order: Array | None, known: Sequence[Part]
) -> list[Suspect]:
    here, there = values_of(one), values_of(other)
    if order is not None:
        here = {name: x[..., order] if x.shape[-1:] == order.shape else x for name, x in here.items()}
    found = []
    for x, y in swapped(here, there):
        words = f"{prefix}{_spelled(x)} and {_spelled(y)} are swapped"
        found.append(Suspect(words=words, arrays={(number, x): here[x], (number, y): here[y]}))
    for name, x in here.items():
        y = there.get(name, np.zeros(0))
        if x.shape == y.shape and not np.array_equal(x, y, equal_nan=True) and name != "batches_tracked":
            words = f"{prefix}{_spelled(name)} {_taken(one, name, y, known) or resemblance(other, name, x, y, count)}"
            changes = {(number, name): x}
            if name == "bias" and "recurrent_bias" in here and one.kind == "lstm":
                changes[number, "recurrent_bias"] = here["recurrent_bias"]
            found.append(Suspect(words=words, arrays={key: each for key, each in changes.items() if key[1] in other.arrays}))
    return sorted(found, key=lambda suspect: suspect.words.endswith("differs"))


def _taken(one: Part, name: str, array: Array, known: Sequence[Part]) -> str:
    """Whose array it is in the first model, if that is not ``one`` but another layer."""
    others = [part for part in known if part is not one and name in part.arrays]
    owners = [part.name for part in others if np.array_equal(part.arrays[name], array)]
    return f"is that of {owners[0]}" if len(owners) == 1 and np.ptp(array) else ""


def loose_suspects(ones: Sequence[Part], others: Sequence[Part]) -> list[tuple[Part, Suspect]]:
    """Arrays that modules hold beside their layers and that differ, each with the part of the second model that holds it."""
    held = [(part, name, array) for part in ones for name, array in part.arrays.items()]
    found = []
    for other in others:
        for name, y in other.arrays.items():
            likes = [(part, x) for part, n, x in held if n == name and x.shape == y.shape]
            # Of several the one with the same path.
            part, x = next((each for each in likes if each[0].name == other.name), likes[0] if len(likes) == 1 else (None, y))
            if part is not None and not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
                words = f"{_spelled(name)} of {other.name} {resemblance(other, name, x, y, 1)}"
                found.append((other, Suspect(words=words, arrays={(0, name): x})))
    return found


def needed(settings: Any, arrays: Mapping[str, Array], spare: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays that a layer of some settings has: its own as far as they fit, else those of the other layer."""
    if isinstance(settings, NormSpec):
        shapes = {array.name: array.shape for array in (*settings.parameters, *settings.state)}
        shapes |= {name: np.shape(arrays[name]) for name in ("weight", "bias") if name in arrays}
    elif hasattr(settings, "shape"):
        outputs = settings.shape[1] * settings.groups if settings.kind == "transposed_convolution" else settings.shape[0]
        shapes = {"weight": settings.shape} | ({"bias": (outputs,)} if settings.bias else {})
    else:
        return {**spare, **arrays}
    counters = {"batches_tracked": np.zeros((), np.int64)}
    return {
        name: next(held[name] for held in (arrays, spare, counters) if name in held and np.shape(held[name]) == shape)
        for name, shape in shapes.items()
    }
