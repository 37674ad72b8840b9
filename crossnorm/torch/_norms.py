"""The reductions of the reparametrizations: exact for numbers of any size, whose squares would overflow or vanish."""

import math

import torch
from torch import Tensor


def largest(x: Tensor, axes: list[int]) -> Tensor:
    """The largest absolute value over ``axes``, as a constant; the axes stay, of size 1."""
    return torch.linalg.vector_norm(x.detach(), math.inf, axes, keepdim=True)


def norm(x: Tensor, axes: list[int], of_zeros: float) -> Tensor:
    """The Euclidean norm over ``axes``, kept. That of zeros counts as ``of_zeros``, a constant."""
    size = largest(x, axes)
    zero = size == 0
    size = torch.where(zero, 1.0, size)
    small = x / size
    # The root of 0 has no finite derivatives, not even where it is thrown away; nor has torch's own norm a second one.
    square = torch.where(zero, 1.0, (small * small).sum(axes, keepdim=True))
    return torch.where(zero, of_zeros, size * square.sqrt())


def with_eps(norm: Tensor, eps: float, place: str) -> Tensor:
    """A denominator made of a norm, as the specifications' tables of ``eps_place`` have it."""
    if place == "maximum":
        return norm.clamp_min(eps)
    if place == "maximum_of_square":
        return norm.clamp_min(math.sqrt(eps))
    # At 0 hypot has no derivative.
    return torch.hypot(norm, torch.full_like(norm, math.sqrt(eps))) if eps > 0 else norm


def centred(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """``x`` less its mean over ``axes``, and the mean; equal numbers leave exactly 0.

    First a constant is taken away, on which nothing depends: the mean as it is rounded, or the first number if that is as close
    to it as rounding alone might be, as it is where all are equal.
    """
    mean, first = x.detach().mean(axes, keepdim=True), x.detach()
    for axis in axes:
        first = first.narrow(axis, 0, 1)
    pilot = torch.where((first - mean).abs() <= 2.0**-20 * mean.abs(), first, mean)
    shifted = x - pilot
    rest = shifted.mean(axes, keepdim=True)
    return shifted - rest, pilot + rest
