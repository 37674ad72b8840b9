"""Weight normalization for PyTorch."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from crossnorm.spec import Mode, WeightNormSpec

from ._base import ArgumentError, wide
from ._norms import centred, norm, proportions, with_eps
from ._weight import (
    Reparametrization,
    all_but_rows,
    as_stored,
    other_rows,
    parametrization_of,
    per_row,
    pure_of_weight,
    rename,
    reparametrize,
    rows_first,
)

Module = TypeVar("Module", bound=nn.Module)


def with_norm(rule: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Proportions, their norm for each row or for the whole, and the size; ``rule`` has the fields as attributes."""
    axes = all_but_rows(rows) if rule.norm_over == "row" else list(range(rows.dim()))
    small, size = proportions(rows, axes)
    return small, norm(small, axes, of_zeros=1.0), size


def scaled(rule: Any, rows: Tensor, scale: Tensor | None) -> Tensor:
    """The effective weight."""
    small, length, size = with_norm(rule, rows)
    denominator = with_eps(length, size, rule.eps, rule.eps_place)
    return small / denominator if scale is None else small * (per_row(scale, rows) / denominator)


@pure_of_weight
def effective_weight(
    spec: WeightNormSpec,
    weight: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Effective weight and (empty) state of weight normalization, as `crossnorm.spec.WeightNormSpec` defines it.

    Args:
        spec: the specification.
        weight: the raw weight, ``spec.shape``, rows first, floating point; half precision is computed in float32.
        parameters: ``"scale"``, (rows,), or () for the whole, as far as the specification has it.
        state: returned as it is; there is none.
        mode: has no influence.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        ShapeError, DtypeError: a weight of another shape, or of integers.

    >>> from crossnorm.spec import TRAIN
    >>> effective_weight(WeightNormSpec(shape=(1, 2)), torch.tensor([[3.0, 4.0]]), {"scale": torch.tensor([10.0])}, {}, TRAIN)
    (tensor([[6., 8.]]), {})
    """
    return as_stored(scaled(spec, rows_first(weight), parameters.get("scale")), weight), dict(state)


class WeightNorm(Reparametrization):
    """The parametrization that `weight_norm` registers; its attributes are the specification's fields.

    >>> module = weight_norm(nn.Linear(3, 2), norm_over="whole")
    >>> module.parametrizations.weight[0]
    WeightNorm(shape=(2, 3), norm_over='whole')
    """

    spec_class = WeightNormSpec

    def forward(self, *raw: Tensor) -> Tensor:
        """The effective weight of the length, if it is learned, and the direction."""
        self._check()
        *scale, direction = raw
        rows = rows_first(direction, self._groups)
        return as_stored(scaled(self, rows, scale[0] if scale else None), direction, self._groups)

    def right_inverse(self, weight: Tensor) -> Any:
        """The length and the direction that an assignment to the weight gives; a length of 0 counts as 1."""
        if not self.scale:
            return weight
        _, length, size = with_norm(self, rows_first(weight, self._groups))
        return (size * length).to(weight.dtype).reshape(self._stored_shape()), weight

    def _stored_shape(self) -> list[int]:
        """The shape of the length: one for each row, along the row's dimension of the weight as it is stored."""
        if self.norm_over == "whole":
            return []
        sizes = [1] * len(self.shape)
        sizes[0 if self._groups is None else 1] = self.shape[0]
        return sizes

    def _register(self, module: nn.Module, name: str) -> None:
        super()._register(module, name)
        if self.scale and self.initial_scale == "ones":
            nn.init.ones_(module.parametrizations[name].original0)  # type: ignore[index, union-attr]

    def _adopt(self, module: nn.Module, state: dict[str, Any], old: str, new: str, errors: list[str]) -> None:
        """Torch's old hook calls the length weight_g and the direction weight_v."""
        if not self.scale:
            return
        rename(state, {old + "_g": new + "original0", old + "_v": new + "original1"})
        found, ours = state.get(new + "original0"), self._stored_shape()
        if found is not None and list(found.shape) != ours:
            errors.append(
                f"weight_norm: the length of shape {list(found.shape)} for {old} is not of shape {ours}; "
                f"{other_rows(module, old.rpartition('.')[2], self)}"
            )


def weight_norm(
    module: Module,
    name: str = "weight",
    *,
    eps: float = 0.0,
    scale: bool = True,
    norm_over: Literal["row", "whole"] = "row",
    initial_scale: Literal["norm", "ones", "data"] = "norm",
    eps_place: Literal["maximum", "maximum_of_square", "added_to_square"] = "maximum",
    transposed_row: Literal["output", "input"] = "output",
    depthwise_row: Literal["output", "multiplier"] = "output",
    embedding_row: Literal["output", "input"] = "output",
) -> Module:
    """Learn a weight's length apart from its direction: ``weight = g * v / norm(v)`` for each row.

    The formula is that of `crossnorm.spec.WeightNormSpec`. The parameters are those of torch's own:
    ``module.parametrizations.weight.original0`` is the length g, ``original1`` the direction v, of any length; without
    ``scale`` the direction is ``original``. They are new: an optimizer made before does not know them. ``module.weight`` is
    the effective weight, computed at each access; ``module.parametrizations.weight[0]`` is the parametrization, with its
    ``spec``.

    Args:
        module: a linear or (transposed) convolutional module, an embedding, or any other whose parameter has its rows first.
        name: of the parameter; dotted if it belongs to a module inside.
        eps, eps_place: what keeps the denominator from 0, and where.
        scale: whether the length is learned; without it, it is 1.
        norm_over: ``"row"`` or ``"whole"``: what has a length of its own.
        initial_scale: where the length starts: ``"norm"``, so that nothing changes; ``"ones"``; or ``"data"``: as ``"norm"``
            until `initialize_from_data` is called.
        transposed_row, depthwise_row, embedding_row: what a row is, see `crossnorm.spec.WeightSpec`.

    Returns:
        ``module`` itself.

    Shapes: ``original1`` that of the parameter, ``original0`` () for the whole, else the number of rows along the dimension
    of the rows, and 1 along the others.

    Dtypes: float16, bfloat16, float32 or float64. Half precision is computed in float32 and rounded once.

    Checkpoints: the module also loads those of torch's parametrization and of its older hook, whose rows are the inputs of a
    transposed convolution and the entries of an embedding: ``transposed_row="input"``, ``embedding_row="input"``.

    Raises:
        ArgumentError: an argument breaks a rule; no such parameter; one that is reparametrized already, tied, without a shape
            yet, empty, or not real and floating point. The module is then as it was.
        Unsupported: a scripted module.

    Source: Salimans and Kingma 2016, arXiv:1602.07868, equation (2).

    >>> module = weight_norm(nn.Linear(3, 2))
    >>> nn.init.constant_(module.parametrizations.weight.original0, 2.0).shape
    torch.Size([2, 1])
    >>> torch.allclose(module.weight.norm(dim=1), torch.tensor(2.0))
    True
    """
    values = {
        "eps": eps,
        "scale": scale,
        "norm_over": norm_over,
        "initial_scale": initial_scale,
        "eps_place": eps_place,
        "transposed_row": transposed_row,
        "depthwise_row": depthwise_row,
        "embedding_row": embedding_row,
    }
    result: Module = reparametrize(WeightNorm, module, name, values)
    return result


# Initialisation from data.


def initialize_from_data(model: nn.Module, *inputs: Any) -> None:
    """Set length and bias of every weight-normalized module in a model from a batch, as in the paper's section 3.

    With ``t`` the module's outputs for a length of 1 and without bias, and mean and deviation of each row over batch and
    positions::

        length = 1 / deviation(t)          bias = -mean(t) / deviation(t)

    so that the outputs of this batch have mean 0 and deviation 1; without a bias, the mean stays. The model is called once, in
    evaluation; a module sees what the initialised ones before it make. A module that is called several times is initialised
    at its first call. A deviation of 0 counts as 1. Nothing else changes: modes, buffers and random numbers are as they were.

    Args:
        model: the model, or a single module.
        inputs: what it takes.

    Raises:
        ArgumentError: no such module was called, or one whose rows have no outputs or no length of their own: without
            ``scale``, over the whole, rows that are inputs, a parameter that is not the ``weight`` of a linear,
            convolutional or embedding module. After an error, this one or the model's own, every length and bias is as it was.

    Source: Salimans and Kingma 2016, arXiv:1602.07868, equations (5) and (6).

    >>> module = weight_norm(nn.Linear(1, 2))
    >>> initialize_from_data(module, torch.tensor([[1.0], [5.0]]))
    >>> module(torch.tensor([[1.0], [5.0]])).abs()
    tensor([[1., 1.],
            [1., 1.]], grad_fn=<AbsBackward0>)
    """
    found = [(name, module) for name, module in model.named_modules() if _normalized_names(module)]
    for name, module in found:
        _refuse_without_outputs(name, module)
    changes: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad(), _undisturbed(model), ExitStack() as hooks:
            for _, module in found:
                hooks.enter_context(_initialising(module, changes))
            model(*inputs)
        if not changes:
            raise ArgumentError(
                f"initialize_from_data: {type(model).__name__} called no weight-normalized module; give a model that has some"
            )
    except BaseException:
        with torch.no_grad():
            for parameter, before in changes:
                parameter.copy_(before)
        raise


def _normalized_names(module: nn.Module) -> list[str]:
    names = module.parametrizations if parametrize.is_parametrized(module) else ()
    return [name for name in names if isinstance(parametrization_of(module, name), WeightNorm)]  # type: ignore[union-attr]


def _refuse_without_outputs(name: str, module: nn.Module) -> None:
    names = _normalized_names(module)
    rule = parametrization_of(module, names[0])
    inputs = isinstance(module, nn.Embedding | nn.EmbeddingBag) and rule.embedding_row == "input"
    transposed = isinstance(module, _ConvNd) and module.transposed and rule.transposed_row == "input"
    bias = getattr(module, "bias", None)
    reason = (
        f"normalizes {', '.join(map(repr, names))}, which is not the weight alone" if names != ["weight"]
        else "learns no length" if not rule.scale
        else "has one length for all rows" if rule.norm_over == "whole"
        else "has rows that are not its outputs" if inputs or transposed
        else "is not linear, convolutional or an embedding" if not isinstance(module, _LINEAR)
        else "has a bias that is reparametrized" if bias is not None and not isinstance(bias, nn.Parameter)
        else None
    )  # fmt: skip
    if reason:
        raise ArgumentError(
            f"initialize_from_data: the module {name!r} ({type(module).__name__}) {reason}; "
            "leave it out of the model, or set its length yourself"
        )


_LINEAR = (nn.Linear, nn.Bilinear, _ConvNd, nn.Embedding, nn.EmbeddingBag)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation; afterwards modes, buffers and random numbers are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng([device.index for device in devices]):
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, buffer, before in buffers:
            module._buffers[name] = buffer
            if buffer is not None:
                buffer.copy_(before)


@contextmanager
def _initialising(module: Any, changes: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Hooks that initialise the module at its first call."""
    scale, bias = module.parametrizations.weight.original0, getattr(module, "bias", None)
    done = False

    def start(module: nn.Module, inputs: Any) -> None:
        if not done:
            for parameter, value in ((scale, 1.0), (bias, 0.0)):
                if parameter is not None:
                    changes.append((parameter, parameter.clone()))
                    parameter.fill_(value)

    def finish(module: nn.Module, inputs: Any, outputs: Tensor) -> Tensor | None:
        nonlocal done
        if done:
            return None
        done = True
        axis = -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1
        last = outputs.movedim(axis, -1)
        factor, shift = _standardising(last.to(wide(last)).reshape(-1, last.size(-1)))
        scale.copy_(factor.reshape(scale.shape))
        if bias is None:
            return (last * factor).movedim(-1, axis).to(outputs.dtype)
        bias.copy_(shift)
        return (last * factor + shift).movedim(-1, axis).to(outputs.dtype)

    handles = module.register_forward_pre_hook(start, prepend=True), module.register_forward_hook(finish, prepend=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _standardising(t: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and bias from the outputs (batch and positions, rows): equations (5) and (6)."""
    deviations, mean = centred(t, [0])
    small, size = proportions(deviations, [0])
    deviation = (size * norm(small, [0], of_zeros=math.sqrt(t.size(0))) / math.sqrt(t.size(0)))[0]
    return 1 / deviation, -mean[0] / deviation
