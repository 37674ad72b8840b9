"""Group normalization for PyTorch."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from crossnorm.spec import GroupNormSpec, Mode

from ._base import (
    InputError,
    Layer,
    ShapeError,
    affine,
    as_channels_last,
    built,
    channels_last,
    check_channels,
    check_dtype,
    few,
    per_channel,
    pilot,
    positions,
    pure,
    sound,
    standardize,
    watched,
    wide,
)


def normalize(x: Tensor, groups: int, scale: Tensor | None, offset: Tensor | None, eps: float) -> Tensor:
    """Standardise each group of each sample.

    The native kernel where it is sound. On the CPU it is not for channels_last (``E[x^2] - E[x]^2``), which takes another way
    or is made contiguous first; nor for float64, whose values it adds up one by one, and half input that has lost its spread.
    There a detached mean is taken away first, on which the result does not depend. Nowhere it is for groups of a few values,
    where ``a * x + b``, which it evaluates, cancels.
    """
    size = x.size(1) // groups * positions(x)
    channels_last_input = x.is_cpu and channels_last(x)
    if channels_last_input:
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks at this condition alone)
            if x.dtype == wide(x) and x.numel() and not few(size) and not watched(x):
                return _ChannelsLast.apply(x, groups, scale, offset, eps)
        x = x.contiguous()
    if few(size):
        y, _, _ = standardize(x.to(wide(x)).reshape(x.size(0), groups, size), None, None, [2], eps)
        y = affine(y.reshape(x.shape), per_channel(scale, x.dim()), per_channel(offset, x.dim())).to(x.dtype)
    else:
        if x.is_cpu and (x.dtype != torch.float32 or (channels_last_input and x.requires_grad)):
            grouped = x.reshape(x.size(0), groups, size)
            sample = grouped[:, :, :: 1 + size // 64]
            x = (grouped - pilot(grouped, [2], sample)).reshape(x.shape)
        if scale is None and offset is not None:
            scale = torch.ones_like(offset)  # the kernel's gradient wants both beside half input
        y = torch.group_norm(x, groups, scale, offset, eps, torch.backends.cudnn.enabled)
    if channels_last_input:
        return as_channels_last(y)
    return y


class _ChannelsLast(torch.autograd.Function):
    """Plain steps with few passes over the memory. A gradient of the gradient goes through the native kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, scale: Tensor | None, offset: Tensor | None, eps: float) -> Tensor:
        centred = x - _spread(_average(x, groups), x)
        rest = _average(centred, groups)
        rstd = (_average(centred.square(), groups) - rest.square() + eps).rsqrt()
        factor = _spread(rstd, x) if scale is None else _spread(rstd, x) * per_channel(scale, x.dim())
        ctx.groups, ctx.eps = groups, eps
        ctx.save_for_backward(x, scale, offset, centred, rest, rstd)
        constant = -factor * _spread(rest, x)
        return torch.addcmul(constant if offset is None else constant + per_channel(offset, x.dim()), centred, factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset, centred, rest, rstd = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            mean = _spread(_average(x.detach(), ctx.groups), x)
            y = torch.group_norm((x - mean).contiguous(), ctx.groups, scale, offset, ctx.eps, torch.backends.cudnn.enabled)
            wanted = [tensor for tensor, need in zip((x, scale, offset), (needed[0], *needed[2:4]), strict=True) if need]
            found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
            return *(next(found) if need else None for need in needed[:4]), None
        axes = list(range(2, x.dim()))
        sums = gradient.sum(axes, keepdim=True)
        products = ((gradient * centred).sum(axes, keepdim=True) - sums * _spread(rest, x)) * _spread(rstd, x)
        dx = None
        if needed[0]:
            factor = _spread(rstd, x) if scale is None else _spread(rstd, x) * per_channel(scale, x.dim())
            count = positions(x)
            of_gradient, of_product = (_spread(_average(part * factor, ctx.groups), x) / count for part in (sums, products))
            of_x = -of_product * _spread(rstd, x)
            dx = torch.addcmul(-of_gradient - of_x * _spread(rest, x), centred, of_x).addcmul_(gradient, factor)
        dscale, doffset = (
            part.sum(0).flatten() if need else None for part, need in zip((products, sums), needed[2:4], strict=True)
        )
        return dx, None, dscale, doffset, None


def _average(x: Tensor, groups: int) -> Tensor:
    """Of each group: (batch, group)."""
    return x.mean(list(range(2, x.dim()))).reshape(x.size(0), groups, -1).mean(2)


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """One value per group to one per channel, shaped to meet ``x``."""
    spread = values.repeat_interleave(x.size(1) // values.size(1), 1)
    return spread.reshape(x.size(0), x.size(1), *[1] * (x.dim() - 2))


@pure
def group_norm(
    spec: GroupNormSpec, x: Tensor, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], mode: Mode
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and (empty) state of group normalization, as `crossnorm.spec.GroupNormSpec` defines it; nothing is mutated.

    Args:
        spec: the specification.
        x: (batch, channel, *spatial), floating point.
        parameters: ``"scale"`` and ``"offset"``, each (channels,), as far as the specification has them.
        state: returned as it is; there is none.
        mode: has no influence.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        ShapeError: fewer than two dimensions, or a wrong channel count.
        DtypeError: an integer input, or dtypes that do not go together.

    >>> from crossnorm.spec import TRAIN
    >>> spec = GroupNormSpec(channels=4, groups=2, scale=False, offset=False, eps=0.0)
    >>> group_norm(spec, torch.tensor([[1.0, 3.0, 5.0, 9.0]]), {}, {}, TRAIN)
    (tensor([[-1.,  1., -1.,  1.]]), {})
    """
    check("group_norm", x, spec.channels, spec.groups, parameters.get("scale"))
    return normalize(x, spec.groups, parameters.get("scale"), parameters.get("offset"), spec.eps), dict(state)


def check(who: str, x: Tensor, channels: int, groups: int, scale: Tensor | None) -> None:
    if x.dim() < 2:
        raise ShapeError(f"{who}: input of shape {list(x.shape)} has no channel; give (batch, channel, *spatial)")
    if scale is not None:
        check_channels(who, x, channels)
    elif x.size(1) % groups != 0:
        raise ShapeError(f"{who}: the {x.size(1)} channels of an input of shape {list(x.shape)} do not make {groups} groups")
    check_dtype(who, x, scale)


class GroupNorm(Layer, nn.GroupNorm):
    """Group normalization: the channels of a sample are cut into groups, each standardised over its channels and positions.

    ``y = weight * (x - mean) / sqrt(variance + eps) + bias``, with the mean and biased variance of the group. Everything is as
    in `torch.nn.GroupNorm`, whose subclass this is: arguments, parameters, checkpoints.

    Shapes: input and output (batch, channel, *spatial), float16, bfloat16, float32 or float64; parameters of the same
    dtype, or float32 beside half input. A channels_last input gives a channels_last output.

    Soundness costs time on the CPU for channels_last input, where the native loses all digits once the mean is a thousand times
    the spread (16x64x56x56 in 8 groups: forward 3.8 times as long, forward and backward 2.7; in 32 groups 3.3 and 0.7), for
    float64 and half input, and everywhere for groups of less than 8 values.

    Raises:
        ArgumentError: an argument breaks a rule (`SpecError`: so does an attribute set later, at the next call).
        InputError: a batch of one with one value per group.
        ShapeError, DtypeError: the input has the wrong rank, channel count or dtype.

    Source: Wu and He 2018, arXiv:1803.08494, equations (1), (2), (6) and (7).

    >>> GroupNorm(2, 6)(torch.randn(4, 6, 5, 5)).shape
    torch.Size([4, 6, 5, 5])
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        built(GroupNormSpec, channels=num_channels, groups=num_groups, eps=eps)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, bias=bias)

    @classmethod
    def from_spec(cls, spec: GroupNormSpec, *, device: Any = None, dtype: Any = None) -> Self:
        """The layer that obeys ``spec``."""
        wanted = spec.scale or spec.offset
        return cls(spec.groups, spec.channels, spec.eps, wanted, device, dtype, bias=spec.offset)._affine(spec)

    @property
    def spec(self) -> GroupNormSpec:
        """The specification that the layer obeys now, from its attributes."""
        return GroupNormSpec(
            channels=self.num_channels,
            groups=self.num_groups,
            eps=self.eps,
            scale=self.weight is not None,
            offset=self.bias is not None,
        )

    def extra_repr(self) -> str:
        return self._repr(super().extra_repr())

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and not sound(self.eps):
            self.spec  # noqa: B018 (raises, and says why)
        check("GroupNorm", input, self.num_channels, self.num_groups, self.weight)
        if input.numel() == self.num_groups:
            raise InputError(
                f"GroupNorm: input of shape {list(input.shape)} has one value per group of its only sample; give more"
            )
        return normalize(input, self.num_groups, self.weight, self.bias, self.eps)
