"""The reductions of the reparametrizations: exact for numbers of any size, whose squares would overflow or vanish."""

import math

import torch
from torch import Tensor


def proportions(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """``x`` over its largest absolute value along ``axes``, and that value, a constant; that of zeros counts as 1.

    What follows is of the order of 1, and so are its derivatives: nothing overflows or vanishes but what has to.
    """
    size = torch.linalg.vector_norm(x.detach(), math.inf, axes, keepdim=True)
    size = torch.where(size == 0, 1.0, size)
    return x / size, size


def norm(x: Tensor, axes: list[int], of_zeros: float) -> Tensor:
    """The Euclidean norm of proportions over ``axes``, kept. That of zeros counts as ``of_zeros``, a constant."""
    square = (x * x).sum(axes, keepdim=True)
    zero = square == 0
    # The root of 0 has no finite derivatives, not even where it is thrown away; nor has torch's own norm a second one.
    return torch.where(zero, of_zeros, torch.where(zero, 1.0, square).sqrt())


def with_eps(norm: Tensor, size: Tensor, eps: float, place: str) -> Tensor:
    """A denominator made of the norm of proportions, as the specifications' tables of ``eps_place`` have it, over ``size``."""
    if place == "maximum":
        return torch.clamp_min(norm, eps / size)
    if place == "maximum_of_square":
        return torch.clamp_min(norm, math.sqrt(eps) / size)
    # At 0 hypot has no derivative.
    return torch.hypot(norm, math.sqrt(eps) / size) if eps > 0 else norm


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
