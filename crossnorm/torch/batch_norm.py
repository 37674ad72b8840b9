"""Batch normalization for PyTorch."""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from crossnorm.spec import BatchNormSpec, Mode

from ._base import (
    InputError,
    Layer,
    blend,
    built,
    channels_last,
    check_channels,
    check_dtype,
    check_statistics,
    decay_of,
    few,
    momentum_of,
    per_channel,
    pilot,
    positions,
    pure,
    sound,
    standardize,
    transformed,
    watched,
)


def normalize(
    x: Tensor, scale: Tensor | None, offset: Tensor | None, eps: float, mean: Tensor | None, variance: Tensor | None
) -> Tensor:
    """Standardise ``x`` with its own statistics; ``mean`` and biased ``variance``, if given, receive them.

    The native kernel where it is sound. For half input that has lost its spread a detached pilot is taken away in front of it,
    on which the result does not depend.
    """
    count = x.size(0) * positions(x)
    trusted = native_is_sound(x)
    half = x.dtype == torch.float16 or x.dtype == torch.bfloat16
    if few(count) or not (trusted or half):
        y, own_mean, own_variance = _accurate(x, scale, offset, eps)
        if mean is not None and variance is not None:
            mean.copy_(own_mean.flatten())
            variance.copy_(own_variance.flatten())
        return y
    taken: Tensor | None = None
    if not trusted:
        taken = pilot(x, [0] + list(range(2, x.dim())), x[:1])  # noqa: RUF005 (TorchScript has no starred lists)
        x = x - taken
    if mean is None or variance is None:
        return torch.batch_norm(x, scale, offset, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
    # With momentum 1 the kernel leaves the batch's own statistics, the variance in its unbiased form.
    rest, unbiased = torch.zeros_like(mean), torch.zeros_like(variance)
    y = torch.batch_norm(x, scale, offset, rest, unbiased, True, 1.0, eps, torch.backends.cudnn.enabled)
    mean.copy_(rest if taken is None else rest + taken.flatten())
    variance.copy_(unbiased * ((count - 1) / count))
    return y


def native_is_sound(x: Tensor) -> bool:
    """It is not on the CPU for channels_last and float64, where it adds up values one by one, nor where few values decide: it
    evaluates ``a * x + b``, which cancels for a pair of close values, and for half input that has lost its spread.
    """
    if few(x.size(0) * positions(x)):
        return False
    return not x.is_cpu or transformed() or (x.dtype == torch.float32 and not channels_last(x))


def _accurate(x: Tensor, scale: Tensor | None, offset: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Output, mean and variance with sums that keep their digits: by parts of the native kernel, or in plain steps."""
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks at this condition alone)
        if not watched(x) and not few(x.size(0) * positions(x)):
            mean, variance = accurate_statistics(x.detach())
            return Accurate.apply(x, scale, offset, mean, variance, eps), mean, variance
    axes = [0] + list(range(2, x.dim()))  # noqa: RUF005
    return standardize(x, per_channel(scale, x.dim()), per_channel(offset, x.dim()), axes, eps)


class _Runs:
    """``x`` as many short runs of equal length, each of one channel: for the native kernels a tensor of more channels.

    Their sums keep their digits, as a run has few terms. Values per channel meet the runs as (outer, channel, inner).
    """

    def __init__(self, x: Tensor, longest: int):
        channels = x.size(1)
        self.shape = x.shape
        self.last = channels_last(x) and x.movedim(1, -1).is_contiguous()
        self.length = _divisor(x.numel() // channels if self.last else positions(x), longest)
        runs = x.numel() // self.length // channels
        self.grid = (runs, channels, 1) if self.last else (x.size(0), channels, runs // x.size(0))

    def view(self, x: Tensor) -> Tensor:
        """(1, run, length), the memory format kept."""
        if self.last:
            return x.movedim(1, -1).reshape(1, self.length, 1, -1).permute(0, 3, 1, 2)
        return x.reshape(1, -1, self.length)

    def back(self, view: Tensor) -> Tensor:
        if self.last:
            return view.permute(0, 2, 3, 1).reshape(self.shape[0], *self.shape[2:], self.shape[1]).movedim(-1, 1)
        return view.reshape(self.shape)

    def spread(self, values: Tensor) -> Tensor:
        """One value per channel to one per run."""
        return values[:, None].expand(self.grid).reshape(-1)

    def parts(self, values: Tensor) -> Tensor:
        """One value per run, as (parts, channel)."""
        return values.view(self.grid).movedim(1, -1).reshape(-1, self.grid[1])


@cache
def _divisor(count: int, most: int) -> int:
    """The largest divisor of ``count`` that is at most ``most``.

    >>> _divisor(784, 128)
    112
    """
    return next(length for length in range(most, 0, -1) if count % length == 0)


def accurate_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, by the native kernel on short runs."""
    runs, centred, taken = _Runs(x, 16), x, None
    if x.dtype == torch.float64:  # even 16 equal values have a sum that is not 16 times one of them
        taken = pilot(x, [0, *range(2, x.dim())], x)
        centred = x - taken
    mean, variance = (runs.parts(part) for part in torch.batch_norm_update_stats(runs.view(centred), None, None, 0.0))
    whole = mean.mean(0)
    variance = (variance + (mean - whole).square()).mean(0)
    return whole if taken is None else whole + taken.flatten(), variance


class Accurate(torch.autograd.Function):
    """Standardise ``x`` with its own statistics, which are at hand; the parameters' gradients by native kernels on long runs.

    A gradient of the gradient goes through the plain steps.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, offset: Tensor | None, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, scale, offset, mean, variance)
        return normalize_with(x, scale, offset, eps, mean, variance)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset, mean, variance = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            return *differentiable_backward(gradient, x, scale, offset, ctx.eps, needed), None, None, None
        runs = _Runs(x, 2048)
        numbers, upstream = runs.view(x), runs.view(gradient)
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            upstream, numbers, None, runs.spread(mean), runs.spread(variance), None, None, False, ctx.eps, [False, True, True]
        )
        dscale, doffset = (runs.parts(part).sum(0) for part in sums)
        dx = None
        if needed[0]:
            rstd = (variance + ctx.eps).rsqrt()
            of_gradient = rstd if scale is None else rstd * scale
            of_x = of_gradient * rstd * dscale / -(x.numel() // x.size(1))
            constant = of_gradient * doffset / -(x.numel() // x.size(1)) - of_x * mean
            of_gradient, of_x, constant = (
                per_channel(runs.spread(factor), numbers.dim()) for factor in (of_gradient, of_x, constant)
            )
            dx = runs.back(torch.addcmul(constant, numbers, of_x).addcmul_(upstream, of_gradient))
        return dx, dscale if needed[1] else None, doffset if needed[2] else None, None, None, None


def differentiable_backward(
    gradient: Tensor, x: Tensor, scale: Tensor | None, offset: Tensor | None, eps: float, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of ``x``, ``scale`` and ``offset`` that are needed, through the plain steps."""
    axes = [0, *range(2, x.dim())]
    y, _, _ = standardize(x, per_channel(scale, x.dim()), per_channel(offset, x.dim()), axes, eps)
    wanted = [tensor for tensor, need in zip((x, scale, offset), needed, strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
    return tuple(next(found) if need else None for need in needed)


def normalize_with(
    x: Tensor, scale: Tensor | None, offset: Tensor | None, eps: float, mean: Tensor, variance: Tensor
) -> Tensor:
    """Standardise ``x`` with given statistics."""
    return torch.batch_norm(x, scale, offset, mean, variance, False, 0.0, eps, torch.backends.cudnn.enabled)


def stored(variance: Tensor, count: int, estimator: str) -> Tensor:
    """The variance as the running statistics keep it, from the biased one of ``count`` values."""
    if estimator == "unbiased" and count > 1:
        return variance * (count / (count - 1))
    return variance


def refuse_single_value(who: str, x: Tensor) -> None:
    if x.size(0) * positions(x) == 1:
        raise InputError(
            f"{who}: input of shape {list(x.shape)} has one value per channel, which training cannot standardise; "
            'give more, or choose single_value="zero"'
        )


@pure
def batch_norm(
    spec: BatchNormSpec, x: Tensor, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], mode: Mode
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and new state of batch normalization, as `crossnorm.spec.BatchNormSpec` defines it; nothing is mutated.

    Args:
        spec: the specification.
        x: (batch, channel, *spatial), floating point.
        parameters: ``"scale"`` and ``"offset"``, each (channels,), as far as the specification has them.
        state: ``"running_mean"``, ``"running_variance"``, each (channels,), and ``"batches_tracked"``; empty if untracked.
        mode: whether the batch's statistics are used, and whether the state is updated.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        InputError: fewer than two dimensions, or one value per channel where the specification says so.
        ShapeError: wrong channel count.
        DtypeError: an integer input, or dtypes that do not go together.

    >>> from crossnorm.spec import TRAIN
    >>> spec = BatchNormSpec(channels=1, scale=False, offset=False, decay=0.0, running_variance="biased", eps=0.0)
    >>> state = {"running_mean": torch.zeros(1), "running_variance": torch.ones(1), "batches_tracked": torch.tensor(0)}
    >>> y, state = batch_norm(spec, torch.tensor([[1.0], [3.0]]), {}, state, TRAIN)
    >>> y.flatten(), state["running_variance"]
    (tensor([-1.,  1.]), tensor([1.]))
    """
    scale, offset = parameters.get("scale"), parameters.get("offset")
    check("batch_norm", x, spec.channels, scale, state.get("running_mean"))
    if spec.tracked and not mode.use_batch_statistics:
        y = normalize_with(x, scale, offset, spec.eps, state["running_mean"], state["running_variance"])
        return y, dict(state)
    if spec.single_value == "raise":
        refuse_single_value("batch_norm", x)
    if not (spec.tracked and mode.update_running and x.numel()):
        return normalize(x, scale, offset, spec.eps, None, None), dict(state)
    mean, variance = (torch.zeros_like(state[name]) for name in ("running_mean", "running_variance"))
    y = normalize(x, scale, offset, spec.eps, mean, variance)
    variance = stored(variance, x.numel() // x.size(1), spec.running_variance)
    momentum, batches = momentum_of(spec.decay), state["batches_tracked"]
    return y, {
        "running_mean": blend(state["running_mean"], mean, momentum, batches),
        "running_variance": blend(state["running_variance"], variance, momentum, batches),
        "batches_tracked": batches + 1,
    }


def check(who: str, x: Tensor, channels: int, scale: Tensor | None, running_mean: Tensor | None) -> None:
    if x.dim() < 2:
        raise InputError(f"{who}: input of shape {list(x.shape)} has no channel; give (batch, channel, *spatial)")
    if scale is not None or running_mean is not None:
        check_channels(who, x, channels)
    check_dtype(who, x, scale if scale is not None else running_mean)


class BatchNorm(Layer, nn.modules.batchnorm._BatchNorm):
    """What `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` share; see `BatchNorm2d`."""

    ranks: ClassVar[tuple[int, ...]] = ()
    __constants__: ClassVar[list[str]] = [
        "track_running_stats", "momentum", "eps", "num_features", "affine", "running_variance", "single_value",
    ]  # fmt: skip
    running_variance: str = "unbiased"  # here for a native that changes its class
    single_value: str = "raise"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        running_variance: Literal["biased", "unbiased"] = "unbiased",
        single_value: Literal["raise", "zero"] = "raise",
    ) -> None:
        built(
            BatchNormSpec,
            channels=num_features,
            eps=eps,
            decay=decay_of(momentum),
            running_variance=running_variance,
            single_value=single_value,
        )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.running_variance = running_variance
        self.single_value = single_value

    @classmethod
    def from_spec(cls, spec: BatchNormSpec, *, device: Any = None, dtype: Any = None) -> Self:
        """The layer that obeys ``spec``."""
        return cls(
            spec.channels,
            spec.eps,
            momentum_of(spec.decay),
            spec.scale or spec.offset,
            spec.tracked,
            device,
            dtype,
            bias=spec.offset,
            running_variance=spec.running_variance,
            single_value=spec.single_value,
        )._affine(spec)

    @property
    def spec(self) -> BatchNormSpec:
        """The specification that the layer obeys now, from its attributes."""
        return BatchNormSpec(
            channels=self.num_features,
            eps=self.eps,
            scale=self.weight is not None,
            offset=self.bias is not None,
            decay=decay_of(self.momentum),
            running_variance=self.running_variance,
            tracked=self.running_mean is not None,
            single_value=self.single_value,
        )

    def extra_repr(self) -> str:
        return self._repr(
            super().extra_repr(),
            running_variance=(self.running_variance, "unbiased"),
            single_value=(self.single_value, "raise"),
        )

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not torch.jit.is_scripting() and not sound(self.eps, self.momentum):
            self.spec  # noqa: B018 (raises, and says why)
        running_mean, running_variance = self.running_mean, self.running_var
        if not torch.jit.is_scripting():
            check_statistics("BatchNorm", running_mean, running_variance)
        check("BatchNorm", input, self.num_features, self.weight, running_mean)
        if not self.training and running_mean is not None and running_variance is not None:
            return normalize_with(input, self.weight, self.bias, self.eps, running_mean, running_variance)
        if self.single_value == "raise":
            refuse_single_value("BatchNorm", input)
        tracked = self.num_batches_tracked
        if (
            running_mean is None
            or running_variance is None
            or tracked is None
            or not self.track_running_stats
            or input.numel() == 0
        ):
            return normalize(input, self.weight, self.bias, self.eps, None, None)
        momentum = self.momentum
        if momentum is not None and self.running_variance == "unbiased" and native_is_sound(input):
            if not torch.compiler.is_compiling() and not transformed():
                # The kernel keeps them for a backward pass that does not look at them. ``data`` counts its changes apart: a
                # later call of this layer may change the statistics before that.
                running_mean, running_variance = running_mean.data, running_variance.data
            y = torch.batch_norm(
                input, self.weight, self.bias, running_mean, running_variance, True, momentum, self.eps,
                torch.backends.cudnn.enabled,
            )  # fmt: skip
            tracked.add_(1)
            return y
        mean, variance = torch.zeros_like(running_mean), torch.zeros_like(running_variance)
        y = normalize(input, self.weight, self.bias, self.eps, mean, variance)
        # Only now, when nothing can fail any more.
        variance = stored(variance, input.numel() // input.size(1), self.running_variance)
        running_mean.copy_(blend(running_mean, mean, momentum, tracked))
        running_variance.copy_(blend(running_variance, variance, momentum, tracked))
        tracked.add_(1)
        return y

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError


class BatchNorm1d(BatchNorm, nn.BatchNorm1d):
    """Batch normalization of (batch, channel) or (batch, channel, length): `BatchNorm2d` has the words.

    >>> BatchNorm1d(3, momentum=None).spec.decay is None
    True
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 2 and input.dim() != 3:
            raise InputError(f"BatchNorm1d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 2 or 3")


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """Batch normalization of (batch, channel, height, width): each channel standardised over the batch and all positions.

    ``y = weight * (x - mean) / sqrt(variance + eps) + bias``, with the batch's mean and biased variance in training and the
    running ones in evaluation. Everything is as in `torch.nn.BatchNorm2d`, whose subclass this is: arguments, parameters,
    buffers, checkpoints. Added, keyword-only:

    - ``running_variance``: the estimator that is stored, ``"unbiased"`` as torch does or ``"biased"`` as Keras does.
    - ``single_value``: one value per channel in training: ``"raise"``, or ``"zero"``: the output is ``bias``, the variance 0.

    Shapes: input and output (batch, channel, height, width), float16, bfloat16, float32 or float64; parameters and statistics
    of the same dtype, or float32 beside half input. A channels_last input gives a channels_last output.

    Differs from the native: a step that raises changes no statistics and no counter; an empty batch changes no counter;
    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` loses ``running_variance`` and ``single_value``; eps=0 is allowed.

    Soundness costs time in training on the CPU, and nowhere else (forward; forward and backward; against the native on
    16x64x56x56): channels_last 2.0; 1.5 to 1.8 (with 4 channels 0.5; 0.5), float16 and bfloat16 2.5 to 3.3; 1.5 to 1.9,
    float64 on channels_last 1.9; 1.9.

    Raises:
        ArgumentError: an argument breaks a rule (`SpecError`: so does an attribute set later, at the next call).
        InputError, ShapeError, DtypeError: the input has the wrong rank, channel count or dtype, or one value per channel.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2.

    >>> layer = BatchNorm2d(3, momentum=0.01, running_variance="biased")
    >>> layer.spec.decay
    0.99
    >>> layer(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise InputError(f"BatchNorm2d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 4")


class BatchNorm3d(BatchNorm, nn.BatchNorm3d):
    """Batch normalization of (batch, channel, depth, height, width): `BatchNorm2d` has the words.

    >>> BatchNorm3d(3)(torch.randn(2, 3, 2, 2, 2)).shape
    torch.Size([2, 3, 2, 2, 2])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 5:
            raise InputError(f"BatchNorm3d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 5")
