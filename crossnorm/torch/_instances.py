"""Passes over a tensor that treat each instance, one channel of one sample, by itself: few, by native kernels, and sound.

``x`` is (batch, channel, *spatial), dense, contiguous or channels_last, float32 or float64; values per instance are
(batch, channel). Nothing here is differentiable.
"""

from functools import cache

import torch
from torch import Tensor

from ._base import as_channels_last, channels_last, positions, wide

BLOCK = 2**20  # values that a processor's cache holds


def dense(x: Tensor, last: bool) -> Tensor:
    """``x`` as the passes take it; ``last``: channels_last."""
    x = x.to(wide(x))
    return as_channels_last(x) if last else x.contiguous()


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, what its rounding lost, and biased variance; the latter two in float64 where the device has it.

    Such digits are for differences between instances. They come from short runs of positions, whose errors average out.
    """
    if channels_last(x) or x.dtype == torch.float64:
        # Some samples at a time, so that what is read again is still at hand.
        parts = x.split(max(BLOCK // x[0].numel(), 1)) if x.is_cpu else (x,)
        mean, rest, variance = (torch.cat(found) for found in zip(*map(_moments_in_steps, parts), strict=True))
        return mean, rest, variance
    batch, channels, count = x.size(0), x.size(1), positions(x)
    runs = count // _length(count)
    # Group norm's output is thrown away, and still no other kernel that finds both is as fast.
    groups = channels * runs
    found = torch.native_group_norm(x.view(batch, groups, -1), None, None, batch, groups, count // runs, groups, 0.0)
    means, deviations = (_fine(part).reshape(batch, channels, runs) for part in (found[1], found[2].reciprocal()))
    whole = means.mean(2)
    mean = whole.to(x.dtype)
    return mean, whole - mean, (deviations.square() + (means - whole[..., None]).square()).mean(2)


def _moments_in_steps(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(list(range(2, x.dim())))
    centred = x - _spread(mean, x)
    rest = _mean(centred)
    return mean, rest, _mean(centred.square_()) - rest.square()


def scaled(x: Tensor, factor: Tensor, constant: Tensor) -> Tensor:
    """``x * factor + constant``."""
    if channels_last(x):
        return torch.addcmul(_spread(constant, x), x, _spread(factor, x))
    return _inference(x, factor, constant)


def combined(x: Tensor, factor: Tensor, other: Tensor, of_other: Tensor, constant: Tensor) -> Tensor:
    """``x * factor + other * of_other + constant``."""
    y = scaled(x, factor, constant)
    if channels_last(x):
        return y.addcmul_(other, _spread(of_other, x))
    return y.add_(_inference(other, of_other, torch.zeros_like(of_other)))


def sums(gradient: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``gradient`` and of ``gradient * (x - mean)``, over each instance."""
    if channels_last(x):
        axes = list(range(2, x.dim()))
        return gradient.sum(axes), (x - _spread(mean, x)).mul_(gradient).sum(axes)
    _, products, plain = torch.ops.aten.native_batch_norm_backward(
        _channels(gradient), _channels(x), None, mean.flatten(), torch.ones_like(mean).flatten(), None, None, False, 0.0,
        [False, True, True],
    )  # fmt: skip
    return plain.view(mean.shape), products.view(mean.shape)


def _inference(x: Tensor, factor: Tensor, constant: Tensor) -> Tensor:
    """Batch norm's inference is the fastest kernel for it, where broadcasting is slow."""
    zero, one = torch.zeros_like(factor).flatten(), torch.ones_like(factor).flatten()
    y = torch.batch_norm(_channels(x), factor.flatten(), constant.flatten(), zero, one, False, 0.0, 0.0, False)
    return y.view(x.shape)


def _channels(x: Tensor) -> Tensor:
    """All instances as channels of one sample."""
    return x.reshape(1, -1, positions(x))


def _mean(x: Tensor) -> Tensor:
    """Of each instance, with the digits that its runs have."""
    batch, channels, length = x.size(0), x.size(1), _length(positions(x))
    if channels_last(x):
        return _fine(x.movedim(1, -1).reshape(batch, -1, length, channels).mean(2)).mean(1)
    return _fine(x.reshape(batch, channels, -1, length).mean(3)).mean(2)


@cache
def _length(count: int) -> int:
    """Of the runs: the largest divisor of ``count`` that is at most 128, or all if that is tiny.

    >>> _length(784), _length(131)
    (112, 131)
    """
    length = next(length for length in range(128, 0, -1) if count % length == 0)
    return length if length >= 8 else count


def _fine(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()


def _spread(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(*values.shape, *[1] * (x.dim() - 2))
