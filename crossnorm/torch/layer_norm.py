"""Layer normalization for PyTorch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from crossnorm.spec import LayerNormSpec, Mode

from ._base import Layer, affine, built, check_dtype, check_normalized, pure, reciprocal_root, sound, wide


def normalize(
    x: Tensor, shape: list[int], scale: Tensor | None, offset: Tensor | None, eps: float, subtract_mean: bool
) -> Tensor:
    """Standardise the trailing dimensions ``shape``.

    The native kernel where it is sound. Its gradient is not for short shapes (it evaluates ``a * g + b * x + c``, which
    cancels where the mean is large): there a detached mean, on which the result does not depend, is taken away first; so it
    is for a single value, of which nothing must be left. Nor is it for the parameters beside half input on the CPU, where it
    adds up rows in half precision: it gets float32.
    """
    axes = list(range(x.dim() - len(shape), x.dim()))
    if not subtract_mean:
        numbers = x.to(wide(x))
        centred = numbers - numbers.detach().mean(axes, keepdim=True)
        centred = centred - centred.mean(axes, keepdim=True)
        root = reciprocal_root((centred * centred).mean(axes, keepdim=True), eps)
        return affine(numbers * root, scale, offset).to(x.dtype)
    size = 1
    for extent in shape:
        size *= extent
    dtype = x.dtype
    if x.is_cpu and wide(x) != dtype and torch.is_grad_enabled() and (learned(scale) or learned(offset)):
        x, scale, offset = x.to(wide(x)), widened(scale), widened(offset)
    if size == 1 or (size < 16 and x.requires_grad and wide(x) == x.dtype):
        x = x - x.detach().mean(axes, keepdim=True)
    if scale is None and offset is not None:
        scale = torch.ones_like(offset)  # the kernel's gradient wants both beside half input
    return torch.layer_norm(x, shape, scale, offset, eps, torch.backends.cudnn.enabled).to(dtype)


def learned(parameter: Tensor | None) -> bool:
    return parameter is not None and parameter.requires_grad


def widened(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.float()


@pure
def layer_norm(
    spec: LayerNormSpec, x: Tensor, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], mode: Mode
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and (empty) state of layer normalization, as `crossnorm.spec.LayerNormSpec` defines it; nothing is mutated.

    Args:
        spec: the specification.
        x: (*batch, *normalized), floating point.
        parameters: ``"scale"`` and ``"offset"``, each (*normalized), as far as the specification has them.
        state: returned as it is; there is none.
        mode: has no influence.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        ShapeError: the input does not end in the normalized shape.
        DtypeError: an integer input, or dtypes that do not go together.

    >>> from crossnorm.spec import TRAIN
    >>> spec = LayerNormSpec(shape=2, scale=False, offset=False, eps=0.0)
    >>> layer_norm(spec, torch.tensor([[1.0, 3.0]]), {}, {}, TRAIN)
    (tensor([[-1.,  1.]]), {})
    """
    scale, offset = parameters.get("scale"), parameters.get("offset")
    check("layer_norm", x, list(spec.shape), scale)
    return normalize(x, list(spec.shape), scale, offset, spec.eps, spec.subtract_mean), dict(state)


def check(who: str, x: Tensor, shape: list[int], scale: Tensor | None) -> None:
    check_normalized(who, x, shape)
    check_dtype(who, x, scale)


class LayerNorm(Layer, nn.LayerNorm):
    """Layer normalization: each sample is standardised over its trailing dimensions.

    ``y = weight * (x - mean) / sqrt(variance + eps) + bias``, with the mean and biased variance of the sample. Everything is as
    in `torch.nn.LayerNorm`, whose subclass this is: arguments, parameters, checkpoints. Added, keyword-only:

    - ``subtract_mean``: ``False`` keeps the numerator ``x``, as Keras' ``rms_scaling=True`` does. It is not RMS normalization.

    Shapes: input and output (*batch, *normalized_shape), float16, bfloat16, float32 or float64; parameters of the same
    dtype, or float32 beside half input.

    Soundness costs time where the input asks for its gradient and the shape has less than 16 values (about 1.5 times as long
    forward, 1.3 forward and backward), and where parameters beside half input on the CPU ask for theirs (2.5 and 2.3: the
    native adds up their gradients in half precision: ones in float16 up to 2048, in bfloat16 up to 256).

    Raises:
        ArgumentError: an argument breaks a rule (`SpecError`: so does an attribute set later, at the next call).
        ShapeError, DtypeError: the input has the wrong shape or dtype.

    Source: Ba, Kiros and Hinton 2016, arXiv:1607.06450, equations (3) and (4).

    >>> LayerNorm(8)(torch.randn(4, 8)).shape
    torch.Size([4, 8])
    """

    __constants__: ClassVar[list[str]] = ["normalized_shape", "eps", "elementwise_affine", "subtract_mean"]
    subtract_mean: bool = True  # here for a native that changes its class

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        subtract_mean: bool = True,
    ) -> None:
        built(LayerNormSpec, shape=normalized_shape, eps=eps, subtract_mean=subtract_mean)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.subtract_mean = subtract_mean

    @classmethod
    def from_spec(cls, spec: LayerNormSpec, *, device: Any = None, dtype: Any = None) -> Self:
        """The layer that obeys ``spec``."""
        wanted = spec.scale or spec.offset
        layer = cls(spec.shape, spec.eps, wanted, spec.offset, device, dtype, subtract_mean=spec.subtract_mean)
        return layer._affine(spec)

    @property
    def spec(self) -> LayerNormSpec:
        """The specification that the layer obeys now, from its attributes."""
        return LayerNormSpec(
            shape=self.normalized_shape,
            eps=self.eps,
            scale=self.weight is not None,
            offset=self.bias is not None,
            subtract_mean=self.subtract_mean,
        )

    def extra_repr(self) -> str:
        return self._repr(super().extra_repr(), subtract_mean=(self.subtract_mean, True))

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and not sound(self.eps):
            self.spec  # noqa: B018 (raises, and says why)
        shape = list(self.normalized_shape)
        check("LayerNorm", input, shape, self.weight)
        return normalize(input, shape, self.weight, self.bias, self.eps, self.subtract_mean)
