"""Spectral normalization for PyTorch."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from crossnorm.errors import Unsupported
from crossnorm.spec import Mode, SpectralNormSpec

from ._norms import norm, proportions, with_eps
from ._weight import (
    Reparametrization,
    as_stored,
    other_rows,
    parametrization_of,
    pure_of_weight,
    rename,
    reparametrize,
    rows_first,
)

Module = TypeVar("Module", bound=nn.Module)


def unit(rule: Any, product: Tensor, before: Tensor) -> Tensor:
    """``product`` over its denominator; where its norm is 0, the vector as it was before."""
    small, size = proportions(product, [0])
    length = norm(small, [0], of_zeros=1.0)
    return torch.where(product.any(), small / with_eps(length, size, rule.eps, rule.eps_place), before)


def iterate(rule: Any, matrix: Tensor, u: Tensor, v: Tensor | None, iterations: int) -> tuple[Tensor, Tensor]:
    """u and v after so many iterations; ``v=None`` is found from u. ``rule`` has the specification's fields as attributes."""
    with torch.no_grad(), full_precision(matrix):
        u = u.to(matrix.dtype)
        v = unit(rule, matrix.T @ u, torch.zeros_like(matrix[0])) if v is None else v.to(matrix.dtype)
        for _ in range(iterations):
            if rule.iteration_order == "v_first":
                v = unit(rule, matrix.T @ u, v)
                u = unit(rule, matrix @ v, u)
            else:
                u = unit(rule, matrix @ v, u)
                v = unit(rule, matrix.T @ u, v)
        return u, v


def divide(rows: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``rows / sigma``. Where u and v are very short, sigma itself could vanish: it is found for a weight of size 1."""
    small, size = proportions(rows, list(range(rows.dim())))
    with full_precision(rows):
        sigma = u @ (small.flatten(1) @ v)
    return small / torch.where(sigma == 0, 1 / size, sigma)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast would do the matrix products in half precision."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


@pure_of_weight
def effective_weight(
    spec: SpectralNormSpec,
    weight: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Effective weight and new state of spectral normalization, as `crossnorm.spec.SpectralNormSpec` defines it.

    Args:
        spec: the specification.
        weight: the raw weight, ``spec.shape``, rows first, floating point; half precision is computed in float32.
        parameters: empty.
        state: ``"u"``, (rows,), and ``"v"``, (columns,), as far as the specification stores it.
        mode: whether it iterates, and whether the new state differs from the old one. Nothing is mutated.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        ShapeError, DtypeError: a weight of another shape, or of integers.

    >>> from crossnorm.spec import INFERENCE
    >>> spec = SpectralNormSpec(shape=(1, 2))
    >>> state = {"u": torch.tensor([1.0]), "v": torch.tensor([0.6, 0.8])}
    >>> effective_weight(spec, torch.tensor([[6.0, 8.0]]), {}, state, INFERENCE)[0]
    tensor([[0.6000, 0.8000]])
    """
    rows = rows_first(weight)
    iterations = spec.iterations if mode.use_batch_statistics or spec.iterate == "always" else 0
    u, v = iterate(spec, rows.detach().flatten(1), state["u"].detach(), state.get("v"), iterations)
    effective = as_stored(divide(rows, u, v.detach()), weight)
    if not mode.update_running:
        return effective, dict(state)
    vectors = {"u": u, "v": v}
    return effective, {name: vectors[name].to(old.dtype) for name, old in state.items()}


class SpectralNorm(Reparametrization):
    """The parametrization that `spectral_norm` registers; its attributes are the specification's fields.

    ``_u`` is a buffer, (rows,). So is ``_v``, (columns,); with ``stored="u"`` it is in no checkpoint, and only there while
    training goes on.

    >>> module = spectral_norm(nn.Linear(3, 2), iterations=2)
    >>> module.parametrizations.weight[0]
    SpectralNorm(shape=(2, 3), iterations=2)
    """

    spec_class = SpectralNormSpec
    _u: Tensor
    _v: Tensor | None

    def __init__(self, spec: SpectralNormSpec, weight: Tensor, groups: int | None) -> None:
        super().__init__(spec, weight, groups)
        matrix = rows_first(weight.detach(), groups).flatten(1)
        u = torch.randn(spec.rows, dtype=matrix.dtype, device=matrix.device)
        u, v = iterate(spec, matrix, u / torch.linalg.vector_norm(u), None, spec.warm_up)
        self.register_buffer("_u", u)
        self.register_buffer("_v", v if spec.stored == "uv" else None, persistent=spec.stored == "uv")

    @classmethod
    def from_spec(cls, spec: Any, module: nn.Module, name: str = "weight") -> Self:
        """The parametrization that obeys ``spec``, for a parameter of ``module`` that it has yet to be registered on."""
        if isinstance(module, NonDynamicallyQuantizableLinear):
            raise Unsupported(
                "spectral_norm: MultiheadAttention reads the weight of out_proj without calling it, so that no iteration would "
                "take place; use a projection of your own behind it"
            )
        return super().from_spec(spec, module, name)

    def forward(self, raw: Tensor) -> Tensor:
        """The effective weight. No vector changes because somebody reads it."""
        self._check()
        rows = rows_first(raw, self._groups)
        v = self._v if self.stored == "uv" or self.training else None
        if self.iterate == "always" and not self.training:
            u, v = iterate(self, rows.detach().flatten(1), self._u, v, self.iterations)
        elif v is None:
            u, v = iterate(self, rows.detach().flatten(1), self._u, None, 0)
        else:
            # Copies: the next call changes them in place, maybe before this one's backward pass.
            u, v = self._u.to(rows.dtype, copy=True), v.to(rows.dtype, copy=True)
        return as_stored(divide(rows, u, v), raw, self._groups)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The raw weight that an assignment to the weight gives."""
        return weight

    @torch.no_grad()
    def advance(self, raw: Tensor) -> None:
        """Iterate, and keep the vectors."""
        self._check()
        u, v = iterate(self, rows_first(raw.detach(), self._groups).flatten(1), self._u, self._kept_v(), self.iterations)
        self._u.copy_(u)
        if self.stored == "uv":
            self._v.copy_(v)
        else:
            self._v = v

    def _kept_v(self) -> Tensor | None:
        return self._v if self.stored == "uv" else None

    def _register(self, module: nn.Module, name: str) -> None:
        super()._register(module, name)
        if not any(isinstance(hook, Advance) and hook.name == name for hook in module._forward_pre_hooks.values()):
            module.register_forward_pre_hook(Advance(name))

    def _adopt(self, module: nn.Module, state: dict[str, Any], old: str, new: str, errors: list[str]) -> None:
        """Torch's old hook calls the arrays weight_orig, weight_u and weight_v; with ``stored="u"`` v is not needed."""
        rename(state, {old + "_orig": new + "original", old + "_u": new + "0._u", old + "_v": new + "0._v"})
        if self.stored == "u":
            self._v = None
            state.pop(new + "0._v", None)
        u = state.get(new + "0._u")
        if u is not None and u.shape != self._u.shape:
            errors.append(
                f"spectral_norm: u of shape {tuple(u.shape)} for {old} is not one of {self.shape[0]} rows; "
                f"{other_rows(module, old.rpartition('.')[2], self)}"
            )


class Advance:
    """A hook of a module, before each forward pass: in training u and v advance."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: Any, inputs: Any) -> None:
        parametrization = parametrization_of(module, self.name)
        if module.training and isinstance(parametrization, SpectralNorm):
            parametrization.advance(module.parametrizations[self.name].original)


def spectral_norm(
    module: Module,
    name: str = "weight",
    *,
    eps: float = 1e-12,
    iterations: int = 1,
    iteration_order: Literal["v_first", "u_first"] = "v_first",
    iterate: Literal["training", "always"] = "training",
    stored: Literal["u", "uv"] = "uv",
    warm_up: int = 15,
    eps_place: Literal["maximum", "maximum_of_square", "added_to_square"] = "maximum",
    transposed_row: Literal["output", "input"] = "output",
    depthwise_row: Literal["output", "multiplier"] = "output",
    embedding_row: Literal["output", "input"] = "output",
) -> Module:
    """Divide a weight by its largest singular value, which power iteration finds.

    The formula is that of `crossnorm.spec.SpectralNormSpec`. The raw weight, which is trained, is
    ``module.parametrizations.weight.original``; ``module.weight`` is the effective one, computed at each access. The
    parametrization, with its ``spec`` and the buffers ``_u`` and ``_v``, is ``module.parametrizations.weight[0]``. In training
    they advance before each forward pass of the module that has the parameter, and only then: reading the weight changes
    nothing.

    Args:
        module: a linear or (transposed) convolutional module, an embedding, or any other whose parameter has its rows first.
        name: of the parameter; dotted if it belongs to a module inside.
        eps, eps_place: what keeps the denominators of the iteration from 0, and where.
        iterations: how many a forward pass makes.
        iteration_order: which vector comes first.
        iterate: ``"always"`` iterates in evaluation too, without keeping what it finds.
        stored: whether v is kept, or found from u.
        warm_up: how many iterations are made now.
        transposed_row, depthwise_row, embedding_row: what a row is, see `crossnorm.spec.WeightSpec`.

    Returns:
        ``module`` itself.

    Shapes, dtypes: those of the parameter: float16, bfloat16, float32 or float64. Half precision is computed in float32 and
    rounded once; so are the products under autocast.

    Checkpoints: the module also loads those of torch's parametrization and of its older hook. Fields that continue their
    numbers: ``crossnorm.preset("torch", "spectral_norm")`` and ``"torch_hook"``. Their rows are the outputs of a transposed
    convolution, as here (in several groups theirs share rows, which no field expresses), and the entries of an embedding:
    ``embedding_row="input"``. If it has as many dimensions as entries, the wrong choice cannot be told from the shapes.

    Raises:
        ArgumentError: an argument breaks a rule; no such parameter; one that is reparametrized already, tied, without a shape
            yet, empty, or not real and floating point. The module is then as it was.
        Unsupported: a scripted module; the ``out_proj`` of `torch.nn.MultiheadAttention`, which nobody calls.

    Source: Miyato, Kataoka, Koyama and Yoshida 2018, arXiv:1802.05957, equation (8), Algorithm 1.

    >>> module = spectral_norm(nn.Conv2d(3, 8, 3), warm_up=100)
    >>> round(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2).item(), 2)
    1.0
    """
    values = {
        "eps": eps,
        "iterations": iterations,
        "iteration_order": iteration_order,
        "iterate": iterate,
        "stored": stored,
        "warm_up": warm_up,
        "eps_place": eps_place,
        "transposed_row": transposed_row,
        "depthwise_row": depthwise_row,
        "embedding_row": embedding_row,
    }
    result: Module = reparametrize(SpectralNorm, module, name, values)
    return result
