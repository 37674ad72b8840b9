"""Passes over a tensor that treat each instance, one channel of one sample, by itself: few, by native kernels, and sound.

``x`` is (batch, channel, *spatial), dense, contiguous or channels_last, float32 or float64; values per instance are
(batch, channel). Nothing here is differentiable.
"""

from functools import cache

import torch
from torch import Tensor

from ._base import as_channels_last, channels_last, positions, wide


def dense(x: Tensor, last: bool) -> Tensor:
    """``x`` as the passes take it; ``last``: channels_last."""
    x = x.to(wide(x))
    return as_channels_last(x) if last else x.contiguous()


def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, what its rounding lost, and biased variance; the latter two in float64 where the device has it.

    Such digits are for differences between instances. They come from short runs of positions, whose errors average out.
    """
    last = channels_last(x)
    if last or x.dtype == torch.float64:
        mean = x.mean(list(range(2, x.dim())))
        centred = x - _spread(mean, x)
        rest = _fine(_runs(centred, last).mean(3)).mean(2)
        variance = _fine(_runs(centred.square_(), last).mean(3)).mean(2)
        return mean, rest, variance - rest.square()
    runs = _runs(x, last)
    batch, channels, count, length = runs.shape
    # Group norm's output is thrown away, and still no other kernel that finds both is as fast.
    found = torch.native_group_norm(runs, None, None, batch, channels * count, length, channels * count, 0.0)
    means, deviations = (_fine(part).reshape(batch, channels, count) for part in (found[1], found[2].reciprocal()))
    whole = means.mean(2)
    mean = whole.to(x.dtype)
    return mean, whole - mean, (deviations.square() + (means - whole[..., None]).square()).mean(2)


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


def _runs(x: Tensor, last: bool) -> Tensor:
    """(batch, channel, run, place in the run)."""
    batch, channels, count = x.size(0), x.size(1), positions(x)
    length = _length(count)
    if last:
        return x.movedim(1, -1).reshape(batch, count // length, length, channels).movedim(-1, 1)
    return x.reshape(batch, channels, count // length, length)


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
