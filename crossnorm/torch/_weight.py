"""What the reparametrizations of this room share: how a weight is arranged, the parametrization, and how it gets there."""

import weakref
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.utils.weak import WeakTensorKeyDictionary

from crossnorm.errors import Unsupported
from crossnorm.spec import Mode, WeightSpec

from ._base import ArgumentError, DtypeError, ShapeError, built, pure, sound, wide

# Parameters that became a raw weight, each with the module and the name that it has there.
_TAKEN: Any = WeakTensorKeyDictionary()


# How a weight is arranged.


def groups_of(module: nn.Module, name: str, transposed_row: str, embedding_row: str) -> int | None:
    """The groups whose rows and columns `swap` has to exchange; None for a weight that is stored with its rows first."""
    if name != "weight":
        return None
    if isinstance(module, _ConvTransposeNd):
        return module.groups if transposed_row == "output" else None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return 1 if embedding_row == "output" else None
    return None


def swap(weight: Tensor, groups: int | None) -> Tensor:
    """From the order in which a weight is stored to rows first, and back: within each group, rows and columns trade places.

    >>> swap(torch.empty(4, 3, 5), groups=2).shape, swap(swap(torch.empty(4, 3, 5), 2), 2).shape
    (torch.Size([6, 2, 5]), torch.Size([4, 3, 5]))
    """
    if groups is None:
        return weight
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def rows_first(weight: Tensor, groups: int | None = None) -> Tensor:
    """A weight as it is computed with: rows first, of two dimensions at least, float32 at least."""
    rows = swap(weight, groups).to(wide(weight))
    return rows.unsqueeze(1) if rows.dim() == 1 else rows


def as_stored(rows: Tensor, weight: Tensor, groups: int | None = None) -> Tensor:
    """The inverse of `rows_first`, for a result like ``weight``."""
    return swap(rows.squeeze(1) if weight.dim() == 1 else rows, groups).to(weight.dtype)


def all_but_rows(rows: Tensor) -> list[int]:
    return list(range(1, rows.dim()))


def per_row(values: Tensor, rows: Tensor) -> Tensor:
    """One value for each row, or a single one, shaped to meet ``rows``."""
    return values.to(rows.dtype).reshape([-1] + [1] * (rows.dim() - 1))


def pure_of_weight(function: Callable[..., Any]) -> Any:
    """What every pure function of a weight does first: refuse arrays that are not the specification's."""
    checked = pure(function)

    @wraps(function)
    def weighed(
        spec: WeightSpec, weight: Tensor, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], mode: Mode
    ) -> Any:
        if not weight.is_floating_point():
            raise DtypeError(f"{spec.method}: a weight of dtype {weight.dtype} is not floating point; convert it by .float()")
        if tuple(weight.shape) != spec.shape:
            raise ShapeError(
                f"{spec.method}: a weight of shape {tuple(weight.shape)} has not the specification's shape {spec.shape}; "
                "arrange its rows first"
            )
        return checked(spec, weight, parameters, state, mode)

    return weighed


# The parametrization.


class Reparametrization(nn.Module):
    """Base of the parametrizations: the specification's side of ``module.parametrizations.<name>[0]``.

    The attributes, called as the specification's fields, are the truth. ``spec`` is computed from them, and so is the weight.
    """

    spec_class: ClassVar[type[WeightSpec]]
    shape: tuple[int, ...]

    # The fields whose attributes have another name.
    _attributes: ClassVar[Mapping[str, str]] = {}

    def __init__(self, spec: Any, weight: Tensor, groups: int | None) -> None:
        super().__init__()
        for name, attribute in self._names():
            setattr(self, attribute, getattr(spec, name))
        self._groups = groups

    @classmethod
    def _names(cls) -> list[tuple[str, str]]:
        """Every field with its attribute."""
        return [(field.name, cls._attributes.get(field.name, field.name)) for field in fields(cls.spec_class)]

    @classmethod
    def from_spec(cls, spec: Any, module: nn.Module, name: str = "weight") -> Self:
        """The parametrization that obeys ``spec``, for a parameter of ``module`` that it has yet to be registered on."""
        groups = groups_of(module, name, spec.transposed_row, spec.embedding_row)
        return cls(spec, getattr(module, name), groups)

    @property
    def spec(self) -> Any:
        """The specification that the weight obeys now, from the attributes."""
        return built(self.spec_class, **{name: getattr(self, attribute) for name, attribute in self._names()})

    def extra_repr(self) -> str:
        spec = self.spec
        plain = self.spec_class(shape=spec.shape)
        values = {field.name: (getattr(spec, field.name), getattr(plain, field.name)) for field in fields(spec)}
        changed = [f"{name}={value!r}" for name, (value, default) in values.items() if value != default]
        return ", ".join([f"shape={spec.shape}", *changed])

    def _check(self) -> None:
        if not sound(self.eps):  # type: ignore[arg-type]
            self.spec  # noqa: B018 (raises, and says why)

    def _register(self, module: nn.Module, name: str) -> None:
        weight = getattr(module, name)
        parametrize.register_parametrization(module, name, self, unsafe=True)
        _TAKEN[weight] = weakref.ref(module), name
        held = (hook.hook for hook in module._load_state_dict_pre_hooks.values())
        if not any(isinstance(hook, Checkpoint) and hook.name == name for hook in held):
            module.register_load_state_dict_pre_hook(Checkpoint(name))

    def _adopt(self, module: nn.Module, state: dict[str, Any], old: str, new: str, errors: list[str]) -> None:
        """Rename what another's checkpoint calls otherwise: its names start with ``old``, ours with ``new``."""


class Checkpoint:
    """A hook of a module, before it loads: checkpoints of others are read as well."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(
        self, module: Any, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any,
        errors: list[str],
    ) -> None:  # fmt: skip
        if parametrization := parametrization_of(module, self.name):
            parametrization._adopt(module, state, prefix + self.name, f"{prefix}parametrizations.{self.name}.", errors)


def parametrization_of(module: Any, name: str) -> Any:
    """Ours, if the parameter still has it."""
    first = module.parametrizations[name][0] if parametrize.is_parametrized(module, name) else None
    return first if isinstance(first, Reparametrization) else None


def rename(state: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give entries of a state dictionary their new names, where they have none yet."""
    for old, new in names.items():
        if old in state and new not in state:
            state[new] = state.pop(old)


def other_rows(module: nn.Module, name: str, parametrization: Any) -> str:
    """The remedy for a checkpoint whose rows are not ours."""
    if name == "weight" and isinstance(module, _ConvTransposeNd):
        field = "transposed_row"
    elif name == "weight" and isinstance(module, nn.Embedding | nn.EmbeddingBag):
        field = "embedding_row"
    else:
        return "reparametrize with the fields that it was written with"
    other = "input" if getattr(parametrization, field) == "output" else "output"
    return f"reparametrize with {field}={other!r}, if it was written with such rows"


# How it gets there.


def reparametrize(
    cls: type[Reparametrization], module: Any, name: Any, values: dict[str, Any], shape: tuple[int, ...] | None = None
) -> Any:
    """Register a parametrization of class ``cls`` on a parameter, whose rows must have the ``shape`` if one is promised."""
    who = cls.spec_class.method
    built(cls.spec_class, shape=(1,), **values)
    owner, leaf = _find(who, module, name)
    weight = _checked(who, module, owner, name, leaf)
    groups = groups_of(owner, leaf, values["transposed_row"], values["embedding_row"])
    spec = built(cls.spec_class, shape=tuple(swap(weight, groups).shape), **values)
    if shape not in (None, spec.shape):
        raise ArgumentError(
            f"{who}: the parameter {name!r} has, rows first, the shape {spec.shape}, and the specification says {shape}; "
            "name another parameter or change the specification"
        )
    cls.from_spec(spec, owner, leaf)._register(owner, leaf)
    return module


def apply_spec(cls: type[Reparametrization], spec: WeightSpec, module: Any, name: str) -> Any:
    """``module``, with its parameter reparametrized as ``spec`` says."""
    values = {field.name: getattr(spec, field.name) for field in fields(spec) if field.name != "shape"}
    return reparametrize(cls, module, name, values, spec.shape)


def _find(who: str, module: Any, name: Any) -> tuple[nn.Module, str]:
    """The module that holds the parameter, which may be inside ``module``, and its name there."""
    if not isinstance(module, nn.Module):
        raise ArgumentError(f"{who}: module={type(module).__name__} is no torch.nn.Module; give the module that has the weight")
    if not isinstance(name, str):
        raise ArgumentError(f"{who}: name={name!r} is no string; give the name of a parameter")
    path, _, leaf = name.rpartition(".")
    try:
        return module.get_submodule(path), leaf
    except AttributeError:
        raise _missing(who, module, name) from None


def _missing(who: str, module: nn.Module, name: str) -> ArgumentError:
    there = [parameter for parameter, _ in module.named_parameters()]
    found = ", ".join(map(repr, there[:8])) + (", ..." if len(there) > 8 else "") if there else "none"
    return ArgumentError(
        f"{who}: {type(module).__name__} has no parameter {name!r}; its parameters are {found}: name one of them"
    )


def _checked(who: str, module: nn.Module, owner: nn.Module, name: str, leaf: str) -> Tensor:
    """The parameter, if it can be reparametrized."""
    if isinstance(owner, torch.jit.ScriptModule):
        raise Unsupported(f"{who}: {type(owner).__name__} is compiled; reparametrize the module before it is scripted")
    held = owner._parameters
    hooked = leaf not in held and any(leaf + suffix in held for suffix in ("_orig", "_g"))
    if parametrize.is_parametrized(owner, leaf) or isinstance(owner, parametrize.ParametrizationList) or hooked:
        raise ArgumentError(
            f"{who}: the parameter {name!r} of {type(module).__name__} is reparametrized already; "
            "reparametrize each one once, and remove the old way first"
        )
    weight = held.get(leaf)
    if weight is None:
        raise _missing(who, module, name)
    what = f"{who}: the parameter {name!r} of {type(module).__name__}"
    if nn.parameter.is_lazy(weight):
        raise ArgumentError(f"{what} has no shape yet; call the module once, so that it learns its inputs, first")
    if not weight.is_floating_point():
        raise ArgumentError(f"{what} of dtype {weight.dtype} is not real and floating point; convert the module by .float()")
    if weight.dim() == 0 or weight.numel() == 0:
        raise ArgumentError(f"{what} of shape {tuple(weight.shape)} has no rows with numbers; take another parameter")
    names = [other for other, found in module.named_parameters(remove_duplicate=False) if found is weight and other != name]
    if names or _is_taken(weight):
        where = f"is {names[0]!r} too" if names else "is the raw weight of another module"
        raise ArgumentError(f"{what} {where}: it is tied; untie them, as only one of them would be reparametrized")
    return weight


def _is_taken(weight: Tensor) -> bool:
    if weight not in _TAKEN:
        return False
    module, name = _TAKEN[weight]
    return module() is not None and parametrize.is_parametrized(module(), name)
