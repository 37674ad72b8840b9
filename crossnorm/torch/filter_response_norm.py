"""Filter response normalization, with a thresholded linear unit, for PyTorch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from crossnorm.spec import FilterResponseNormSpec, Mode

from ._base import (
    InputError,
    Layer,
    ShapeError,
    affine,
    built,
    check_channels,
    check_dtype,
    per_channel,
    positions,
    pure,
    reciprocal_root,
    sound,
    transformed,
    watched,
    wide,
)

PARAMETERS = {"scale": "weight", "offset": "bias", "learned_eps": "learned_eps", "threshold": "tau"}


def normalize(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    learned_eps: Tensor | None,
    threshold: Tensor | None,
    eps: float,
) -> Tensor:
    """Divide each channel of each sample by its root mean square; scale, shift and cut off below the threshold."""
    if x.dim() == 2:
        return over_positions(x.unsqueeze(2), scale, offset, learned_eps, threshold, eps).squeeze(2)
    return over_positions(x, scale, offset, learned_eps, threshold, eps)


def over_positions(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    learned_eps: Tensor | None,
    threshold: Tensor | None,
    eps: float,
) -> Tensor:
    """The same for an input that has positions, at least one."""
    scale, offset = per_channel(scale, x.dim()), per_channel(offset, x.dim())
    if learned_eps is not None and learned_eps.dim() == 1:
        learned_eps = per_channel(learned_eps, x.dim())
    if threshold is not None:
        threshold = per_channel(threshold, x.dim()) if threshold.dim() == 1 else threshold.unsqueeze(0)
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks at this condition alone)
        if not watched(x) and not transformed():
            return _FewPasses.apply(x, scale, offset, learned_eps, threshold, eps)
    return plain(x, scale, offset, learned_eps, threshold, eps)


def plain(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    learned_eps: Tensor | None,
    threshold: Tensor | None,
    eps: float,
) -> Tensor:
    """The same in plain differentiable steps, for parameters shaped to meet ``x``."""
    numbers = x.to(wide(x))
    square = (numbers * numbers).mean(list(range(2, x.dim())), keepdim=True)
    if learned_eps is not None:
        square = square + learned_eps.abs()
    z = affine(numbers * reciprocal_root(square, eps), scale, offset)
    if threshold is not None:
        z = torch.where(z < threshold, threshold, z)
    return z.to(x.dtype)


class _FewPasses(torch.autograd.Function):
    """Steps of few passes over the memory, and none that branches at every value: a mask takes ten times as long.

    A gradient of the gradient goes through the plain steps.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        offset: Tensor | None,
        learned_eps: Tensor | None,
        threshold: Tensor | None,
        eps: float,
    ) -> Tensor:
        numbers = x.to(wide(x))
        space = numbers.square()
        square = space.mean(list(range(2, x.dim())), keepdim=True)
        rrms = (square + eps if learned_eps is None else square + (learned_eps.abs() + eps)).rsqrt()
        ctx.eps = eps
        ctx.save_for_backward(x, scale, offset, learned_eps, threshold, rrms)
        y = _affine(numbers, rrms if scale is None else rrms * scale, offset, space)
        if threshold is not None:
            torch.maximum(y, threshold.to(y.dtype), out=y)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset, learned_eps, threshold, rrms = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            inputs = (x, scale, offset, learned_eps, threshold)
            y = plain(*inputs, ctx.eps)
            wanted = [tensor for tensor, need in zip(inputs, needed[:5], strict=True) if need]
            found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
            return *(next(found) if need else None for need in needed[:5]), None
        axes = list(range(2, x.dim()))
        numbers, to_z = x.to(wide(x)), gradient.to(wide(x))
        factor = rrms if scale is None else rrms * scale
        space = torch.empty_like(numbers)
        doffset = dscale = dlearned_eps = dthreshold = dx = None
        if threshold is not None:
            below = torch.sub(threshold, _affine(numbers, factor, offset, space), out=space)
            to_threshold = torch.ops.aten.threshold_backward(to_z, below, 0.0)
            if needed[4]:
                dthreshold = to_threshold.sum_to_size(threshold.shape)
            to_z = to_z - to_threshold
        if needed[2]:
            doffset = to_z.sum_to_size(offset.shape)
        projection = torch.mul(to_z, numbers, out=space).sum(axes, keepdim=True) * rrms
        if needed[1]:
            dscale = projection.sum(0, keepdim=True)
        if needed[3]:
            terms = projection * factor * rrms / -2
            dlearned_eps = terms.sum_to_size(learned_eps.shape) * learned_eps.sign()
        if needed[0]:
            of_x = projection * rrms * factor / -max(positions(x), 1)
            dx = torch.mul(numbers, of_x, out=space).addcmul_(to_z, factor).to(x.dtype)
        return dx, dscale, doffset, dlearned_eps, dthreshold, None


def _affine(x: Tensor, factor: Tensor, offset: Tensor | None, out: Tensor) -> Tensor:
    if offset is None:
        return torch.mul(x, factor, out=out)
    return torch.addcmul(offset.to(x.dtype), x, factor, out=out)


@pure
def filter_response_norm(
    spec: FilterResponseNormSpec, x: Tensor, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], mode: Mode
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and (empty) state of filter response normalization, as `crossnorm.spec.FilterResponseNormSpec` defines it.

    Args:
        spec: the specification.
        x: (batch, channel, *spatial), floating point.
        parameters: ``"scale"`` and ``"offset"``, each (channels,), ``"learned_eps"`` and ``"threshold"``, as far as the
            specification has them.
        state: returned as it is; there is none.
        mode: has no influence.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        InputError: fewer than two dimensions.
        ShapeError: a wrong channel count, or other positions than the threshold's.
        DtypeError: an integer input, or dtypes that do not go together.

    >>> from crossnorm.spec import TRAIN
    >>> spec = FilterResponseNormSpec(channels=1, scale=False, offset=False, eps=0.0)
    >>> filter_response_norm(spec, torch.tensor([[[3.0, -3.0]]]), {"threshold": torch.zeros(1)}, {}, TRAIN)
    (tensor([[[1., 0.]]]), {})
    """
    scale, offset, learned_eps, threshold = (parameters.get(name) for name in ("scale", "offset", "learned_eps", "threshold"))
    check("filter_response_norm", x, spec.channels, next(iter(parameters.values()), None), threshold)
    return normalize(x, scale, offset, learned_eps, threshold, spec.eps), dict(state)


def check(who: str, x: Tensor, channels: int, parameter: Tensor | None, threshold: Tensor | None) -> None:
    if x.dim() < 2:
        raise InputError(f"{who}: input of shape {list(x.shape)} has no channel; give (batch, channel, *spatial)")
    check_channels(who, x, channels)
    check_dtype(who, x, parameter)
    if threshold is not None and threshold.dim() > 1 and list(threshold.shape[1:]) != list(x.shape[2:]):
        raise ShapeError(
            f"{who}: input of shape {list(x.shape)} beside a threshold for each element of {list(threshold.shape)}; "
            'give input of that size, or choose threshold="channel"'
        )


class FilterResponseNorm(Layer):
    """What `FilterResponseNorm1d`, `FilterResponseNorm2d` and `FilterResponseNorm3d` share; see `FilterResponseNorm2d`."""

    __constants__: ClassVar[list[str]] = ["num_features", "eps"]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        learned_eps: Literal["scalar", "channel"] | None = None,
        threshold: Literal["channel", "element"] | None = "channel",
        spatial: tuple[int, ...] | None = None,
    ) -> None:
        spec = built(
            FilterResponseNormSpec,
            channels=num_features,
            eps=eps,
            scale=affine,
            offset=affine and bias,
            learned_eps=learned_eps,
            threshold=threshold,
            spatial=spatial,
        )
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        shapes = {PARAMETERS[array.name]: array.shape for array in spec.parameters}
        for name in PARAMETERS.values():
            wanted = name in shapes
            values = nn.Parameter(torch.empty(shapes[name], device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for array in self.spec.parameters:
            nn.init.constant_(getattr(self, PARAMETERS[array.name]), array.initial)

    @classmethod
    def from_spec(cls, spec: FilterResponseNormSpec, *, device: Any = None, dtype: Any = None) -> Self:
        """The layer that obeys ``spec``."""
        return cls(
            spec.channels,
            spec.eps,
            spec.scale or spec.offset,
            device,
            dtype,
            bias=spec.offset,
            learned_eps=spec.learned_eps,
            threshold=spec.threshold,
            spatial=spec.spatial,
        )._affine(spec)

    @property
    def spec(self) -> FilterResponseNormSpec:
        """The specification that the layer obeys now, from its attributes."""
        learned_eps, tau = self.learned_eps, self.tau
        element = tau is not None and tau.dim() > 1
        return FilterResponseNormSpec(
            channels=self.num_features,
            eps=self.eps,
            scale=self.weight is not None,
            offset=self.bias is not None,
            learned_eps=None if learned_eps is None else "channel" if learned_eps.dim() else "scalar",
            threshold=None if tau is None else "element" if element else "channel",
            spatial=tuple(tau.shape[1:]) if element else None,
        )

    def extra_repr(self) -> str:
        spec = self.spec
        return self._repr(
            f"{spec.channels}, eps={self.eps}, affine={spec.scale or spec.offset}, bias={spec.offset}",
            learned_eps=(spec.learned_eps, None),
            threshold=(spec.threshold, "channel"),
            spatial=(spec.spatial, None),
        )

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not torch.jit.is_scripting() and not sound(self.eps):
            self.spec  # noqa: B018 (raises, and says why)
        parameter = self.weight
        for other in (self.bias, self.learned_eps, self.tau):
            if parameter is None:
                parameter = other
        check("FilterResponseNorm", input, self.num_features, parameter, self.tau)
        return normalize(input, self.weight, self.bias, self.learned_eps, self.tau, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError


class FilterResponseNorm1d(FilterResponseNorm):
    """Filter response normalization of (batch, channel) or (batch, channel, length): `FilterResponseNorm2d` has the words.

    Without a length a channel has one position; learn eps there, or little of the input is left but its sign.

    >>> FilterResponseNorm1d(3, learned_eps="channel")(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 2 and input.dim() != 3:
            raise InputError(
                f"FilterResponseNorm1d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 2 or 3"
            )


class FilterResponseNorm2d(FilterResponseNorm):
    """Filter response normalization of (batch, channel, height, width): each channel of each sample is divided by its root
    mean square, then cut off below a learned threshold.

    ``y = max(weight * x / sqrt(average of x ** 2 + eps + abs(learned_eps)) + bias, tau)``, in training and in evaluation.

    - ``num_features``, ``eps``, ``affine``, ``bias``, ``device``, ``dtype``: as in `torch.nn.BatchNorm2d`.
    - ``learned_eps``: None, ``"scalar"``: one for all channels, of shape (), or ``"channel"``: (channels,). It starts at 1e-4.
    - ``threshold``: the parameter ``tau`` starts at 0: ``"channel"``: (channels,), ``"element"``: (channels, height, width),
      or None: there is none, and nothing is cut off.
    - ``spatial``: (height, width), for ``threshold="element"`` and nothing else.

    Shapes: input and output (batch, channel, height, width), float16, bfloat16, float32 or float64; parameters of the same
    dtype, or float32 beside half input, which is squared in float32. A channels_last input gives a channels_last output.

    Where the cut-off meets the threshold exactly the gradient goes to the input.

    Checkpoints of timm's ``FilterResponseNormTlu2d`` load as they are (weight, bias, tau). TensorFlow Addons keeps gamma and
    beta as (1, 1, 1, channels), learned_epsilon as (1,) and TLU's tau as (height, width, channels).

    Raises:
        ArgumentError: an argument breaks a rule (`SpecError`: so does ``eps`` set later, at the next call).
        InputError, ShapeError, DtypeError: the input has the wrong rank, shape or dtype.

    Source: Singh and Krishnan 2019, arXiv:1911.09737, equations (1) to (3), section 3.2.

    >>> layer = FilterResponseNorm2d(3, threshold="element", spatial=(4, 5))
    >>> layer(torch.randn(2, 3, 4, 5)).shape
    torch.Size([2, 3, 4, 5])
    >>> [(name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()]
    [('weight', (3,)), ('bias', (3,)), ('tau', (3, 4, 5))]
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise InputError(f"FilterResponseNorm2d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 4")


class FilterResponseNorm3d(FilterResponseNorm):
    """Filter response normalization of (batch, channel, depth, height, width): `FilterResponseNorm2d` has the words.

    >>> FilterResponseNorm3d(3)(torch.randn(2, 3, 2, 2, 2)).shape
    torch.Size([2, 3, 2, 2, 2])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 5:
            raise InputError(f"FilterResponseNorm3d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 5")
