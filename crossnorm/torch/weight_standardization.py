"""Weight standardization for PyTorch."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from crossnorm.spec import Mode, WeightStandardizationSpec

from ._norms import centred, norm, proportions, with_eps
from ._weight import (
    Reparametrization,
    all_but_rows,
    as_stored,
    per_row,
    pure_of_weight,
    rename,
    reparametrize,
    rows_first,
)

Module = TypeVar("Module", bound=nn.Module)


def standardize(rule: Any, rows: Tensor, scale: Tensor | None) -> Tensor:
    """The effective weight; ``rule`` has the specification's fields as attributes."""
    axes = all_but_rows(rows)
    columns = rows.numel() // rows.size(0)
    deviations, _ = centred(rows, axes)
    small, size = proportions(deviations, axes)
    deviation = norm(small, axes, of_zeros=0.0) / math.sqrt(max(columns - rule.ddof, 1))
    if rule.eps_place == "deviation":
        denominator = deviation + rule.eps / size
    elif rule.eps_place == "maximum":
        denominator = with_eps(deviation, size, rule.eps / columns, "maximum_of_square")
    else:
        denominator = with_eps(deviation, size, rule.eps, "added_to_square")
    # Without an eps, a row of equal numbers would be 0 / 0.
    denominator = torch.where(denominator == 0, 1.0, denominator)
    factor = rule.factor if scale is None else rule.factor * per_row(scale, rows)
    return small * (factor / denominator)


@pure_of_weight
def effective_weight(
    spec: WeightStandardizationSpec,
    weight: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Effective weight and (empty) state of weight standardization, as `crossnorm.spec.WeightStandardizationSpec` defines it.

    Args:
        spec: the specification.
        weight: the raw weight, ``spec.shape``, rows first, floating point; half precision is computed in float32.
        parameters: ``"scale"``, (rows,), as far as the specification has it.
        state: returned as it is; there is none.
        mode: has no influence.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        ShapeError, DtypeError: a weight of another shape, or of integers.

    >>> from crossnorm.spec import TRAIN
    >>> spec = WeightStandardizationSpec(shape=(1, 2), eps=0.0)
    >>> effective_weight(spec, torch.tensor([[1.0, 5.0]]), {}, {}, TRAIN)
    (tensor([[-1.,  1.]]), {})
    """
    return as_stored(standardize(spec, rows_first(weight), parameters.get("scale")), weight), dict(state)


class WeightStandardization(Reparametrization):
    """The parametrization that `weight_standardization` registers; its attributes are the specification's fields.

    ``gain`` is the learned one, (rows,), or None; the constant that the specification calls gain is ``constant_gain``.

    >>> module = weight_standardization(nn.Linear(3, 2), scale=True)
    >>> module.parametrizations.weight[0]
    WeightStandardization(shape=(2, 3), scale=True)
    """

    spec_class = WeightStandardizationSpec
    _attributes: ClassVar[Mapping[str, str]] = {"gain": "constant_gain"}

    def __init__(self, spec: WeightStandardizationSpec, weight: Tensor, groups: int | None) -> None:
        super().__init__(spec, weight, groups)
        gain = nn.Parameter(torch.ones(spec.rows, dtype=weight.dtype, device=weight.device)) if spec.scale else None
        self.register_parameter("gain", gain)

    @property
    def factor(self) -> float:
        """The constant that multiplies the standardised weight."""
        return self.constant_gain / math.sqrt(math.prod(self.shape[1:])) if self.fan_in_scaling else self.constant_gain

    def forward(self, raw: Tensor) -> Tensor:
        self._check()
        return as_stored(standardize(self, rows_first(raw, self._groups), self.gain), raw, self._groups)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The raw weight that an assignment to the weight gives."""
        return weight

    def _adopt(self, module: nn.Module, state: dict[str, Any], old: str, new: str, errors: list[str]) -> None:
        """The modules of others keep the raw weight under its own name, and a gain of shape (rows, 1, ...) beside it."""
        rename(state, {old: new + "original"})
        if self.gain is not None and not hasattr(module, "gain"):
            before, point, _ = old.rpartition(".")
            theirs, ours = before + point + "gain", new + "0.gain"
            rename(state, {theirs: ours})
            if ours in state and state[ours].numel() == self.gain.numel():
                state[ours] = state[ours].flatten()


def weight_standardization(
    module: Module,
    name: str = "weight",
    *,
    eps: float = 1e-5,
    scale: bool = False,
    ddof: Literal[0, 1] = 0,
    eps_place: Literal["variance", "deviation", "maximum"] = "variance",
    gain: float = 1.0,
    fan_in_scaling: bool = False,
    transposed_row: Literal["output", "input"] = "output",
    depthwise_row: Literal["output", "multiplier"] = "output",
    embedding_row: Literal["output", "input"] = "output",
) -> Module:
    """Standardise each row of a weight: what one output sees has mean 0 and variance 1 (times ``gain``, if wanted).

    The formula is that of `crossnorm.spec.WeightStandardizationSpec`. The raw weight, which is trained, is
    ``module.parametrizations.weight.original``; ``module.weight`` is the effective one, computed at each access. The
    parametrization, with its ``spec``, is ``module.parametrizations.weight[0]``; its parameter ``gain`` is the learned one.

    Args:
        module: a linear or (transposed) convolutional module, an embedding, or any other whose parameter has its rows first.
        name: of the parameter; dotted if it belongs to a module inside.
        eps, eps_place: what keeps the denominator from 0, and where.
        scale: whether each row has a learned gain; a new parameter, which an optimizer made before does not know.
        ddof: what the divisor of the variance lacks: 0 or 1.
        gain: a constant that multiplies the result.
        fan_in_scaling: whether the result is divided by the root of the fan-in.
        transposed_row, depthwise_row, embedding_row: what a row is, see `crossnorm.spec.WeightSpec`.

    Returns:
        ``module`` itself.

    Shapes, dtypes: those of the parameter: float16, bfloat16, float32 or float64. Half precision is computed in float32 and
    rounded once. A row of one number, or of equal ones, gives 0. ``gain`` is (rows,).

    Checkpoints: the module also loads those of modules that keep the raw weight as ``weight`` (the authors', timm's
    ``StdConv2d``, a plain convolution's) and a ``gain`` of shape (outputs, 1, 1, 1) beside it (timm's ``ScaledStdConv2d``).

    Raises:
        ArgumentError: an argument breaks a rule; no such parameter; one that is reparametrized already, tied, without a shape
            yet, empty, or not real and floating point. The module is then as it was.
        Unsupported: a scripted module.

    Source: Qiao, Wang, Liu, Shen and Yuille 2019, arXiv:1903.10520, equations (2) and (3).

    >>> module = weight_standardization(nn.Conv2d(3, 8, 3))
    >>> variance, mean = torch.var_mean(module.weight.detach().flatten(1), 1, correction=0)
    >>> bool(mean.abs().max() < 1e-6), bool((variance - 1).abs().max() < 1e-2)
    (True, True)
    """
    values = {
        "eps": eps,
        "scale": scale,
        "ddof": ddof,
        "eps_place": eps_place,
        "gain": gain,
        "fan_in_scaling": fan_in_scaling,
        "transposed_row": transposed_row,
        "depthwise_row": depthwise_row,
        "embedding_row": embedding_row,
    }
    result: Module = reparametrize(WeightStandardization, module, name, values)
    return result
