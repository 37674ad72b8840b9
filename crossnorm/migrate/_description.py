"""From any framework's normalization layer to its specification, layout and arrays, and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, NoReturn, Self, get_args, get_origin, get_type_hints

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from crossnorm.errors import CrossnormError, MigrationError
from crossnorm.spec import NormSpec, WeightSpec

from ._frameworks import framework_of, room
from ._settings import Linear

FLOATING = ("float16", "bfloat16", "float32", "float64")
COUNTERS = ("int32", "int64")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)  # NumPy has none of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a layer knows beside its specification: where the channel lies, how many spatial dimensions there are, its dtype.

    ``axis``: of the channel, or the normalized axes, counted as the layer counts them. None: where the framework has it by
    default, which is 1 in torch (the last axes for layer and RMS normalization) and the last in Keras.
    ``rank``: the number of spatial dimensions, None where the layer does not say.
    ``dtype``: in which it computes: torch's name, or Keras' policy (``"mixed_float16"``).
    ``holder``, ``name``: only of a reparametrization: the layer whose weight is reparametrized, and what that weight is called
    there.

    Raises
        MigrationError: a field of another type.

    >>> Layout.from_dict(Layout(axis=-1, rank=2).to_dict()) == Layout(axis=-1, rank=2)
    True
    """

    axis: int | tuple[int, ...] | None = None
    rank: int | None = None
    dtype: str = "float32"
    holder: Linear | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        if self.rank is not None and self.rank < 0:
            refuse(f"Layout: rank={self.rank} is negative", "give the number of spatial dimensions")
        if self.axis == ():
            refuse("Layout: axis=() is empty", "name at least one axis, or None")
        if self.holder is not None:
            _check_types(self.holder)
            if len(self.holder.shape) < 2 or min(*self.holder.shape, self.holder.groups) < 1:
                refuse(
                    f"Layout: a holder of shape {self.holder.shape} with groups={self.holder.groups} has no weight",
                    "give at least two sizes, and groups, of at least 1",
                )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        plain: dict[str, Any] = _lists(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``; unknown keys and values of another type are a ``MigrationError``."""
        values = _fields_of(cls, data)
        if values.get("holder") is not None:
            values["holder"] = _made(Linear, _fields_of(Linear, values["holder"]))
        return _made(cls, values)


class Description(NamedTuple):
    """All that a normalization layer is: its arrays have the names of the specification's parameters and state.

    A reparametrization has also ``"weight"``, the raw one, rows first in the specification's shape, and ``"bias"``, if its
    holder has one.
    """

    spec: NormSpec
    layout: Layout
    arrays: dict[str, NDArray[np.generic]]


def describe(layer: Any, name: str | None = None) -> Description:
    """The specification, layout and arrays of a normalization layer of any framework.

    The specification says what the layer obeys now: its attributes count, and not what it was built with. The arrays are
    copies, bit for bit; nothing in the layer changes.

    Args:
        layer: a layer of torch, Keras, Flax or ours, or a module whose weight is reparametrized.
        name: of the reparametrized weight, where a module has several.

    Raises:
        MigrationError: no normalization layer; one without arrays yet; one that does what no specification says.

    >>> import torch
    >>> spec, layout, arrays = describe(torch.nn.BatchNorm2d(3, momentum=0.25))
    >>> spec.decay, layout.rank, arrays["running_variance"]
    (0.75, 2, array([1., 1., 1.], dtype=float32))
    """
    description: Description = room(framework_of(layer)).describe(layer, name)
    return description


def build(
    spec: NormSpec,
    layout: Layout,
    arrays: Mapping[str, NDArray[np.generic]],
    *,
    framework: Literal["torch", "tensorflow"],
    native: bool = False,
    holder: Any = None,
) -> Any:
    """The layer of a description: ours, or with ``native`` the framework's own.

    Args:
        spec: what it obeys.
        layout: where its channel lies, and what holds it if it is a reparametrization.
        arrays: as `describe` gives them; the layer gets copies, bit for bit.
        framework: of the new layer; it may be another than the description's.
        native: whether the framework's own layer is wanted.
        holder: for a reparametrization: the live layer to reparametrize. By default a new one is made, as the layout says.

    Raises:
        MigrationError: arrays that are not the specification's; a layout that does not fit; a holder that is missing, or that
            does not fit, or that has no place here.
        Unsupported: a convention for which the framework, or its native layer, has no means.

    >>> import torch
    >>> layer = build(*describe(torch.nn.GroupNorm(2, 4)), framework="torch")
    >>> type(layer).__module__, layer.num_groups
    ('crossnorm.torch.group_norm', 2)
    """
    if framework not in ("torch", "tensorflow"):
        refuse(f"build: framework={framework!r} is not 'torch' or 'tensorflow'", "choose one of them")
    description = checked(spec, layout, arrays, "build")
    if holder is not None and not isinstance(spec, WeightSpec):
        what = f"build: {type(holder).__name__} is given as the holder of {spec.method}, which is a layer of its own"
        refuse(what, "leave out holder=")
    return room(framework).build(description, native, holder)


def checked(spec: Any, layout: Any, arrays: Any, who: str) -> Description:
    """A description whose parts go together, its arrays in the specification's order; in the name of ``who``."""
    if not (isinstance(spec, NormSpec) and isinstance(layout, Layout) and isinstance(arrays, Mapping)):
        kinds = ", ".join(type(part).__name__ for part in (spec, layout, arrays))
        refuse(f"{who}: ({kinds}) is no specification, Layout and dictionary of arrays", "give what describe returned")
    for name, array in arrays.items():
        wanted = COUNTERS if name == "batches_tracked" else FLOATING
        if not isinstance(array, np.ndarray | np.generic) or array.dtype.name not in wanted:
            kind = getattr(array, "dtype", type(array).__name__)
            refuse(f"{who}: the array {name!r} of {spec.method} is of {kind}, not one of {', '.join(wanted)}", "convert it")
    shapes = {array.name: array.shape for array in (*spec.parameters, *spec.state)}
    if isinstance(spec, WeightSpec):
        shapes["weight"] = spec.shape
        if layout.holder is None:
            shapes |= {"bias": arrays["bias"].shape} if "bias" in arrays else {}
        elif layout.holder.bias:
            shapes["bias"] = (_outputs(layout.holder),)
    found = {name: array.shape for name, array in arrays.items()}
    if found != shapes:
        refuse(f"{who}: {spec.method} has arrays of shapes {found}, not {shapes}", "give each array its name and shape")
    if isinstance(spec, WeightSpec) and layout.holder is not None and spec.shape not in _rows_first(spec, layout.holder):
        refuse(
            f"{who}: {spec.method} of shape {spec.shape} does not fit its holder, a {layout.holder.kind} whose weight has the "
            f"shape {layout.holder.shape}",
            "give the layer that holds the weight",
        )
    return Description(spec, layout, {name: np.asarray(arrays[name]) for name in shapes})


def _outputs(holder: Linear) -> int:
    return holder.shape[1] * holder.groups if holder.kind == "transposed_convolution" else holder.shape[0]


def _rows_first(spec: WeightSpec, holder: Linear) -> list[tuple[int, ...]]:
    """The shapes that a holder's weight has with its rows first; a convolution may be a depthwise one of Keras."""
    outer, inner, *kernel = holder.shape
    if holder.kind == "transposed_convolution" and spec.transposed_row == "output" and outer % holder.groups == 0:
        return [(inner * holder.groups, outer // holder.groups, *kernel)]
    if holder.kind == "embedding" and spec.embedding_row == "output":
        return [(inner, outer)]
    depthwise = holder.kind == "convolution" and spec.depthwise_row == "multiplier" and inner == 1
    return [holder.shape, *([(outer // holder.groups, holder.groups, *kernel)] if depthwise else [])]


# From and to plain values.


def refuse(what: str, remedy: str) -> NoReturn:
    raise MigrationError(f"crossnorm.migrate.{what}; {remedy}")


def _fields_of(cls: type[Any], data: Any) -> dict[str, Any]:
    """The values for a dataclass of a dictionary that is to have no others; lists are tuples."""
    if not isinstance(data, Mapping):
        refuse(f"{cls.__name__}: {type(data).__name__} is no dictionary", "give what to_dict returned")
    unknown = sorted(set(data) - {field.name for field in fields(cls)}, key=repr)
    if unknown:
        refuse(
            f"{cls.__name__}: unknown field {', '.join(map(repr, unknown))}",
            f"the fields are {', '.join(field.name for field in fields(cls))}",
        )
    return {name: _tuples(value) for name, value in data.items()}


def _made(cls: type[Any], values: dict[str, Any]) -> Any:
    try:
        return cls(**values)
    except MigrationError:
        raise
    except (CrossnormError, TypeError, ValueError) as error:
        refuse(f"{cls.__name__}: {error}", "give what to_dict returned")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists(part) for name, part in value.items()}
    return list(map(_lists, value)) if isinstance(value, tuple) else value


def _check_types(held: Any) -> None:
    """Refuse a dataclass one of whose values is not what its annotation says."""
    for name, hint in get_type_hints(type(held)).items():
        if not _fits(getattr(held, name), hint):
            refuse(f"{type(held).__name__}: {name}={getattr(held, name)!r} is not {hint}", "give a value of that type")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; True is no integer.

    >>> _fits(((1, 2), (0, 0)), str | tuple[tuple[int, int], ...]), _fits(True, int | None)
    (True, False)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(parts) == len(value) and all(map(_fits, value, parts))
    return type(value) is (NoneType if hint is None else hint)
