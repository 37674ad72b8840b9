"""Instance normalization for PyTorch."""

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from crossnorm.spec import InstanceNormSpec, Mode

from ._base import (
    ArgumentError,
    InputError,
    Layer,
    blend,
    built,
    channels_last,
    check_channels,
    check_dtype,
    check_statistics,
    decay_of,
    momentum_of,
    positions,
    pure,
    sound,
    transformed,
    wide,
)
from .batch_norm import normalize_with
from .group_norm import normalize as grouped


def normalize(
    x: Tensor, scale: Tensor | None, offset: Tensor | None, eps: float, mean: Tensor | None, variance: Tensor | None
) -> Tensor:
    """Standardise each channel of each sample; ``mean`` and biased ``variance``, if given, receive the averages over the batch.

    Group normalization with one channel a group: its kernel is several times faster than the native instance norm. Its gradient
    in float32 wants a small mean: a detached one, on which the result does not depend, is taken away first.
    """
    if transformed():
        x = x.contiguous()  # the kernel asks for its memory format, which vmap does not answer
    if (mean is not None and variance is not None) or (x.requires_grad and x.dtype == torch.float32 and not channels_last(x)):
        axes = list(range(2, x.dim()))
        own_mean = x.detach().mean(axes, keepdim=True, dtype=wide(x))
        centred = x - own_mean
        if mean is not None and variance is not None:
            mean.copy_(own_mean.flatten(1).mean(0))
            variance.copy_(centred.detach().square().mean(axes).mean(0))
        if x.dtype == torch.float32:
            x = centred
    return grouped(x, x.size(1), scale, offset, eps)


def stored(variance: Tensor, count: int, estimator: str) -> Tensor:
    """The variance as the running statistics keep it, from the biased one of ``count`` positions."""
    if estimator == "instance_mean_unbiased" and count > 1:
        return variance * (count / (count - 1))
    return variance


def refuse_single_value(who: str, x: Tensor) -> None:
    if positions(x) == 1:
        raise InputError(
            f"{who}: input of shape {list(x.shape)} has one position, which cannot be standardised; "
            'give more, or choose single_value="zero"'
        )


@pure
def instance_norm(
    spec: InstanceNormSpec, x: Tensor, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], mode: Mode
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and new state of instance normalization, as `crossnorm.spec.InstanceNormSpec` defines it; nothing is mutated.

    Args:
        spec: the specification.
        x: (batch, channel, *spatial), floating point.
        parameters: ``"scale"`` and ``"offset"``, each (channels,), as far as the specification has them.
        state: ``"running_mean"``, ``"running_variance"``, each (channels,), and ``"batches_tracked"``; empty if untracked.
        mode: whether the instance's statistics are used, and whether the state is updated.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        InputError: fewer than three dimensions, a wrong channel count, or one position where the specification says so.
        DtypeError: an integer input, or dtypes that do not go together.

    >>> from crossnorm.spec import TRAIN
    >>> spec = InstanceNormSpec(channels=1, scale=False, offset=False, eps=0.0)
    >>> instance_norm(spec, torch.tensor([[[1.0, 3.0]]]), {}, {}, TRAIN)
    (tensor([[[-1.,  1.]]]), {})
    """
    scale, offset = parameters.get("scale"), parameters.get("offset")
    if x.dim() < 3:
        raise InputError(f"instance_norm: input of shape {list(x.shape)} has no position; give (batch, channel, *spatial)")
    check_channels("instance_norm", x, spec.channels)
    check_dtype("instance_norm", x, scale)
    if spec.tracked and not mode.use_batch_statistics:
        y = normalize_with(x, scale, offset, spec.eps, state["running_mean"], state["running_variance"])
        return y, dict(state)
    if spec.single_value == "raise":
        refuse_single_value("instance_norm", x)
    if not (spec.tracked and mode.update_running and x.numel()):
        return normalize(x, scale, offset, spec.eps, None, None), dict(state)
    mean, variance = (torch.zeros_like(state[name]) for name in ("running_mean", "running_variance"))
    y = normalize(x, scale, offset, spec.eps, mean, variance)
    variance = stored(variance, positions(x), spec.running_variance)
    momentum, batches = momentum_of(spec.decay), state["batches_tracked"]
    return y, {
        "running_mean": blend(state["running_mean"], mean, momentum, batches),
        "running_variance": blend(state["running_variance"], variance, momentum, batches),
        "batches_tracked": batches + 1,
    }


class InstanceNorm(Layer, nn.modules.instancenorm._InstanceNorm):
    """What `InstanceNorm1d`, `InstanceNorm2d` and `InstanceNorm3d` share; see `InstanceNorm2d`."""

    __constants__: ClassVar[list[str]] = [
        "track_running_stats", "momentum", "eps", "num_features", "affine", "running_variance", "single_value", "cumulative",
    ]  # fmt: skip
    running_variance: str = "instance_mean_unbiased"  # here for a native that changes its class
    single_value: str = "raise"
    cumulative: bool = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        running_variance: Literal["instance_mean_biased", "instance_mean_unbiased"] = "instance_mean_unbiased",
        single_value: Literal["raise", "zero"] = "raise",
        cumulative: bool = False,
    ) -> None:
        built(
            InstanceNormSpec,
            channels=num_features,
            eps=eps,
            decay=decay_of(momentum),
            running_variance=running_variance,
            single_value=single_value,
        )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.running_variance = running_variance
        self.single_value = single_value
        self.cumulative = cumulative

    @classmethod
    def from_spec(cls, spec: InstanceNormSpec, *, device: Any = None, dtype: Any = None) -> Self:
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
            cumulative=spec.decay is None,
        )._affine(spec)

    @property
    def spec(self) -> InstanceNormSpec:
        """The specification that the layer obeys now, from its attributes."""
        decay = decay_of(0.0 if self.momentum is None else self.momentum)
        return InstanceNormSpec(
            channels=self.num_features,
            eps=self.eps,
            scale=self.weight is not None,
            offset=self.bias is not None,
            tracked=self.running_mean is not None,
            decay=None if self.cumulative else decay,
            running_variance=self.running_variance,
            single_value=self.single_value,
        )

    def extra_repr(self) -> str:
        return self._repr(
            super().extra_repr(),
            running_variance=(self.running_variance, "instance_mean_unbiased"),
            single_value=(self.single_value, "raise"),
            cumulative=(self.cumulative, False),
        )

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not torch.jit.is_scripting() and not sound(self.eps, self.momentum):
            self.spec  # noqa: B018 (raises, and says why)
        check_dtype("InstanceNorm", input, self.weight if self.weight is not None else self.running_mean)
        if input.dim() == self._get_no_batch_dim():
            return self._batched(input.unsqueeze(0)).squeeze(0)
        return self._batched(input)

    def _batched(self, input: Tensor) -> Tensor:
        self._check_channels(input)
        running_mean, running_variance = self.running_mean, self.running_var
        if not torch.jit.is_scripting():
            check_statistics("InstanceNorm", running_mean, running_variance)
        if not self.training and self.track_running_stats:
            if running_mean is None or running_variance is None:
                raise ArgumentError(
                    "InstanceNorm: track_running_stats=True, but there are no running statistics to evaluate with; "
                    "set track_running_stats=False, or both statistics"
                )
            return normalize_with(input, self.weight, self.bias, self.eps, running_mean, running_variance)
        if self.single_value == "raise":
            refuse_single_value("InstanceNorm", input)
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
        if self.cumulative:
            momentum = None
        elif momentum is None:
            momentum = 0.0
        if transformed() and momentum is not None and self.running_variance == "instance_mean_unbiased":
            # Nobody but the native kernel may write to the buffers here; nothing can count.
            return torch.instance_norm(
                input, self.weight, self.bias, running_mean, running_variance, True, momentum, self.eps,
                torch.backends.cudnn.enabled,
            )  # fmt: skip
        mean, variance = torch.zeros_like(running_mean), torch.zeros_like(running_variance)
        y = normalize(input, self.weight, self.bias, self.eps, mean, variance)
        # Only now, when nothing can fail any more.
        variance = stored(variance, positions(input), self.running_variance)
        running_mean.copy_(blend(running_mean, mean, momentum, tracked))
        running_variance.copy_(blend(running_variance, variance, momentum, tracked))
        tracked.add_(1)
        return y

    def _check_channels(self, input: Tensor) -> None:
        if input.size(1) == self.num_features:
            return
        if self.weight is not None or self.bias is not None:
            raise InputError(
                f"InstanceNorm: input of shape {list(input.shape)} has {input.size(1)} channels, not {self.num_features}"
            )
        if self.running_mean is not None:
            check_channels("InstanceNorm", input, self.num_features)
        warnings.warn(
            f"InstanceNorm: input has {input.size(1)} channels, not {self.num_features}; without weight and bias any will do",
            stacklevel=2,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError


class InstanceNorm1d(InstanceNorm, nn.InstanceNorm1d):
    """Instance normalization of (batch, channel, length) or (channel, length): `InstanceNorm2d` has the words.

    >>> InstanceNorm1d(3)(torch.randn(3, 8)).shape
    torch.Size([3, 8])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 2 and input.dim() != 3:
            raise InputError(f"InstanceNorm1d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 2 or 3")


class InstanceNorm2d(InstanceNorm, nn.InstanceNorm2d):
    """Instance normalization of (batch, channel, height, width): each channel of each sample standardised over its positions.

    ``y = weight * (x - mean) / sqrt(variance + eps) + bias``, with the instance's mean and biased variance; with
    ``track_running_stats=True`` evaluation uses running ones instead. Everything is as in `torch.nn.InstanceNorm2d`, whose
    subclass this is: arguments, parameters, buffers, checkpoints, input without a batch. Added, keyword-only:

    - ``running_variance``: the estimator that is stored, ``"instance_mean_unbiased"`` or ``"instance_mean_biased"``.
    - ``single_value``: what one position gives: ``"raise"``, or ``"zero"``: the output is ``bias``, the variance 0.
    - ``cumulative``: average all batches equally. (``momentum=None`` never updates, as in torch's instance norm.)

    Shapes: input and output (batch, channel, height, width) or (channel, height, width), float16, bfloat16, float32 or float64;
    parameters and statistics of the same dtype, or float32 beside half input. A channels_last input gives a channels_last
    output (the native's is contiguous).

    Differs from the native: ``num_batches_tracked`` counts the updates; a step that raises changes no statistics; an empty
    batch changes none either (the native's turn into NaN); ``track_running_stats=False`` set later stops the updates (the
    native goes on, in evaluation too).

    Raises:
        ArgumentError: an argument breaks a rule (`SpecError`: so does an attribute set later, at the next call).
        InputError, ShapeError, DtypeError: the input has the wrong rank, channel count or dtype, or a single position.

    Source: Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022, equation (2).

    >>> InstanceNorm2d(3, affine=True)(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 3 and input.dim() != 4:
            raise InputError(f"InstanceNorm2d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 3 or 4")


class InstanceNorm3d(InstanceNorm, nn.InstanceNorm3d):
    """Instance normalization of (batch, channel, depth, height, width), batch optional: `InstanceNorm2d` has the words.

    >>> InstanceNorm3d(3)(torch.randn(2, 3, 2, 2, 2)).shape
    torch.Size([2, 3, 2, 2, 2])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4 and input.dim() != 5:
            raise InputError(f"InstanceNorm3d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 4 or 5")
