"""What every specification shares: validation, serialisation, and the words for modes and arrays."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, ClassVar, NoReturn, Self

from crossnorm.errors import SpecError

from ._axes import integer


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One parameter or one state array: its name, its shape and the value that fills it at the start.

    ``initial=None``: no constant fills it; the specification's docstring says what does.
    """

    name: str
    shape: tuple[int, ...]
    initial: float | None


@dataclass(frozen=True, slots=True)
class Mode:
    """Two independent switches that replace the words *training* and *evaluation*.

    | frameworks say                                      | use_batch_statistics | update_running |
    |-----------------------------------------------------|----------------------|----------------|
    | torch ``train()``, Keras ``training=True``          | True                 | True           |
    | torch ``eval()``, Keras inference                   | False                | False          |
    | torch ``track_running_stats=False``                 | True                 | False          |
    | Keras ``trainable=False`` (parameters constant too) | False                | False          |

    A method without state ignores the mode. Spectral normalization iterates where batch statistics are used, and stores what it
    found where the state is updated.
    """

    use_batch_statistics: bool
    update_running: bool

    def __post_init__(self) -> None:
        if self.update_running and not self.use_batch_statistics:
            raise SpecError(
                "Mode: update_running=True with use_batch_statistics=False; running statistics are "
                "updated from the batch's own; use Mode(True, True) or Mode(False, False)"
            )


TRAIN = Mode(True, True)
INFERENCE = Mode(False, False)
UNTRACKED = Mode(True, False)


@dataclass(frozen=True, kw_only=True, slots=True)
class NormSpec:
    """Base of the specifications: frozen, keyword-only, hashable, made of plain Python values.

    A specification names roles (batch, channel, spatial, normalized), never axis numbers, and knows its
    parameters, its state and which roles are averaged over. It is a cache key, a test id and a JSON document.
    """

    method: ClassVar[str]
    version: ClassVar[int] = 1
    reduces: ClassVar[frozenset[str]]

    eps: float = 1e-5
    scale: bool = True

    def __post_init__(self) -> None:
        self._set("eps", self._number("eps", self.eps))
        if not (math.isfinite(self.eps) and self.eps >= 0):
            self._refuse(f"eps={self.eps!r} is not a finite number >= 0", "eps keeps a denominator from 0; use 1e-5, say")
        for name in ("scale", "offset"):
            if hasattr(self, name):
                self._flag(name)

    # What a specification knows.

    @property
    def parameters(self) -> tuple[ArraySpec, ...]:
        """The learned arrays, in the order in which every framework stores them."""
        return self._affine_parameters(1.0)

    def _affine_parameters(self, scale: float | None) -> tuple[ArraySpec, ...]:
        """``scale``, which starts at the value given, and ``offset``, as far as the fields want them."""
        initial = {"scale": scale, "offset": 0.0}
        return tuple(ArraySpec(name, self.parameter_shape, v) for name, v in initial.items() if getattr(self, name, False))

    @property
    def state(self) -> tuple[ArraySpec, ...]:
        """The arrays that training updates without a gradient; empty for most methods."""
        return ()

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def check_arrays(self, parameters: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Refuse parameters or state of other names or shapes than the specification's; anything with a ``shape`` will do."""
        for kind, wanted, given in (("parameters", self.parameters, parameters), ("state", self.state, state)):
            shapes = {name: tuple(getattr(array, "shape", ())) for name, array in given.items()}
            expected = {array.name: array.shape for array in wanted}
            if shapes != expected:
                self._refuse(f"{kind} of shapes {shapes} are not {expected}", "give an array of that shape for each name")

    # Serialisation.

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary that also holds the method's name and version."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"method": self.method, "version": self.version, **values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; unknown keys, another method or a newer version are a ``SpecError``."""
        values = dict(data)
        method, version = values.pop("method", cls.method), values.pop("version", cls.version)
        if method != cls.method:
            raise SpecError(
                f"{cls.__name__}: method={method!r} is not {cls.method!r}; use crossnorm.from_dict, which picks the class"
            )
        if not isinstance(version, int) or not 1 <= version <= cls.version:
            raise SpecError(
                f"{cls.__name__}: version={version!r} is not one of 1..{cls.version}; "
                "the document was written by a newer crossnorm: upgrade"
            )
        unknown = sorted(set(values) - {f.name for f in fields(cls)}, key=repr)
        if unknown:
            raise SpecError(
                f"{cls.__name__}: unknown field {', '.join(map(repr, unknown))}; "
                f"the fields are {', '.join(f.name for f in fields(cls))}"
            )
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise SpecError(
                f"{cls.__name__}: missing field {', '.join(map(repr, missing))}; give every field without a default"
            )
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return replace(self, **changes)

    # Validation.

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise SpecError(f"{type(self).__name__}: {what}; {remedy}")

    def _number(self, name: str, value: Any) -> float:
        try:
            if not isinstance(value, bool | str):
                return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
        self._refuse(f"{name}={value!r} is not a number", "give a float")

    def _flag(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, bool):
            self._refuse(f"{name}={value!r} is not True or False", "say whether it is wanted")

    def _positive_integer(self, name: str) -> None:
        value = getattr(self, name)
        size = _size(value)
        if size is None:
            self._refuse(f"{name}={value!r} is not an integer >= 1", f"give the number of {name}")
        self._set(name, size)

    def _choice(self, name: str, choices: Iterable[str | None]) -> None:
        value = getattr(self, name)
        if value not in choices:
            self._refuse(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}", "choose one of them")

    def _decay(self, name: str = "decay") -> None:
        """15 decimals, so that torch's ``momentum = 1 - decay`` and Keras' ``momentum = decay`` leave no residue."""
        value: object = getattr(self, name)
        if value is None:
            return
        decay = self._number(name, value)
        if not 0 <= decay <= 1:
            self._refuse(
                f"{name}={decay!r} is outside [0, 1]",
                f"{name} is the weight of the OLD statistic: 1 - momentum in torch, momentum in Keras",
            )
        self._set(name, round(decay, 15))

    def _count(self, name: str) -> None:
        value: Any = getattr(self, name)
        count = integer(value)
        if count is None or count < 0:
            self._refuse(f"{name}={value!r} is not an integer >= 0", f"give the number of {name}")
        self._set(name, count)

    def _sizes(self, name: str = "shape") -> None:
        value: Any = getattr(self, name)
        if isinstance(value, Iterable) and not tuple(value):
            self._refuse(f"{name}=() is empty", "give at least one dimension")
        sizes = tuple(map(_size, value)) if isinstance(value, Iterable) else (_size(value),)
        if None in sizes:
            self._refuse(f"{name}={value!r} holds what is not an integer >= 1", "give the sizes of the dimensions")
        self._set(name, sizes)


def _size(value: Any) -> int | None:
    """``value`` as a Python integer, or None if it is not an integer of at least 1."""
    size = integer(value)
    return size if size is not None and size >= 1 else None


def running_state(channels: int, tracked: bool) -> tuple[ArraySpec, ...]:
    """Mean, variance and the number of batches seen: the state of the methods that keep running statistics."""
    if not tracked:
        return ()
    return (
        ArraySpec("running_mean", (channels,), 0.0),
        ArraySpec("running_variance", (channels,), 1.0),
        ArraySpec("batches_tracked", (), 0),
    )
