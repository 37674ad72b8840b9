"""Root mean square normalization for PyTorch."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from crossnorm.spec import Mode, RMSNormSpec

from ._base import InputError, Layer, affine, built, check_dtype, check_normalized, pure, reciprocal_root, sound, wide


def normalize(x: Tensor, shape: list[int], scale: Tensor | None, eps: float) -> Tensor:
    """Divide by the root mean square of the trailing dimensions ``shape``.

    The native kernel where nobody asks for the gradient of ``x``, which underflows there for large inputs.
    """
    if not x.requires_grad:
        return torch.rms_norm(x, shape, scale, eps)
    numbers = x.to(wide(x))
    square = (numbers * numbers).mean(list(range(x.dim() - len(shape), x.dim())), keepdim=True)
    return affine(numbers * reciprocal_root(square, eps), scale, None).to(x.dtype)


@pure
def rms_norm(
    spec: RMSNormSpec, x: Tensor, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], mode: Mode
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and (empty) state of RMS normalization, as `crossnorm.spec.RMSNormSpec` defines it; nothing is mutated.

    Args:
        spec: the specification.
        x: (*batch, *normalized), floating point.
        parameters: ``"scale"``, (*normalized), as far as the specification has it.
        state: returned as it is; there is none.
        mode: has no influence.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        InputError: the input has fewer dimensions than the normalized shape.
        ShapeError: it does not end in the normalized shape.
        DtypeError: an integer input.

    >>> from crossnorm.spec import TRAIN
    >>> rms_norm(RMSNormSpec(shape=2, scale=False, eps=0.0), torch.tensor([[2.0, 2.0]]), {}, {}, TRAIN)
    (tensor([[1., 1.]]), {})
    """
    check("rms_norm", x, list(spec.shape))
    return normalize(x, list(spec.shape), parameters.get("scale"), spec.eps), dict(state)


def check(who: str, x: Tensor, shape: list[int]) -> None:
    if x.dim() < len(shape):
        raise InputError(f"{who}: input of shape {list(x.shape)} has fewer dimensions than the normalized shape {shape}")
    check_normalized(who, x, shape)
    check_dtype(who, x, None)


def resolved(eps: float | None, dtype: torch.dtype) -> float:
    """torch's ``eps=None``: the machine epsilon of the dtype that it computes in.

    >>> resolved(None, torch.bfloat16) == 2.0 ** -23
    True
    """
    if eps is not None:
        return eps
    return 2.0**-52 if dtype == torch.float64 else 2.0**-23


class RMSNorm(Layer, nn.RMSNorm):
    """Root mean square normalization: each sample is divided by the root mean square of its trailing dimensions.

    ``y = weight * x / sqrt(average of x ** 2 + eps)``. Everything is as in `torch.nn.RMSNorm`, whose subclass this is:
    arguments, parameters, checkpoints. ``eps=None`` is the machine epsilon of the dtype that it computes in.

    Shapes: input and output (*batch, *normalized_shape), float16, bfloat16, float32 or float64; the parameter's
    dtype may be another, the output's is the input's.

    Where the input asks for its gradient the forward takes 1.1 times as long as the native's, whose gradient underflows for
    large input (1e15 in float32); forward and backward together take 0.95.

    Raises:
        ArgumentError: an argument breaks a rule (`SpecError`: so does an attribute set later, at the next call).
        InputError, ShapeError, DtypeError: the input has the wrong rank, shape or dtype.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, equation (4), without its bias.

    >>> RMSNorm(8).spec.eps == 2.0 ** -23
    True
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        built(RMSNormSpec, shape=normalized_shape, eps=resolved(eps, torch.float32))
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)

    @classmethod
    def from_spec(cls, spec: RMSNormSpec, *, device: Any = None, dtype: Any = None) -> Self:
        """The layer that obeys ``spec``."""
        return cls(spec.shape, spec.eps, spec.scale, device, dtype)

    @property
    def spec(self) -> RMSNormSpec:
        """The specification that the layer obeys now, from its attributes."""
        dtype = torch.float32 if self.weight is None else self.weight.dtype
        return RMSNormSpec(shape=self.normalized_shape, eps=resolved(self.eps, dtype), scale=self.weight is not None)

    def extra_repr(self) -> str:
        return self._repr(super().extra_repr())

    def forward(self, x: Tensor) -> Tensor:
        eps = resolved(self.eps, x.dtype)
        if not torch.jit.is_scripting() and not sound(eps):
            self.spec  # noqa: B018 (raises, and says why)
        shape = list(self.normalized_shape)
        check("RMSNorm", x, shape)
        return normalize(x, shape, self.weight, eps)
