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
        return normalize(x.unsqueeze(2), scale, offset, learned_eps, threshold, eps).squeeze(2)
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
            to_z = torch.sub(to_z, to_threshold, out=to_threshold)
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
