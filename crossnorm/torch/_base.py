"""What the layers of this room share: errors, checks and the running average."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar, Self, TypeVar

from crossnorm.errors import CrossnormError, SpecError
from crossnorm.spec import NormSpec

Function = TypeVar("Function", bound=Callable[..., Any])

OLDEST = (2, 13)


class TorchMissing(CrossnormError, ImportError):
    """PyTorch is not installed, or too old."""


class ArgumentError(SpecError, RuntimeError, TypeError, ZeroDivisionError):
    """A constructor's argument breaks a rule. torch.nn raises now this, now that type for it: this is all of them."""


class InputError(CrossnormError, ValueError):
    """The input does not fit the layer, where torch.nn raises ValueError."""


class ShapeError(CrossnormError, RuntimeError, ValueError):
    """The input does not fit the layer's arrays, where torch.nn raises RuntimeError, or has no such layer."""


class DtypeError(CrossnormError, NotImplementedError, ValueError):
    """The input's dtype does not fit. NotImplementedError is a RuntimeError: torch.nn raises either, or has no such layer."""


def require(version: str) -> None:
    """Refuse a version of PyTorch that the layers were never tried on.

    >>> require("2.13.0+cpu")
    """
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise TorchMissing(
            f"crossnorm.torch: torch {version} is older than {OLDEST[0]}.{OLDEST[1]}; "
            'upgrade with pip install --upgrade "crossnorm[torch]"'
        )


try:
    import torch
except ImportError as error:
    raise TorchMissing('crossnorm.torch: torch is not installed; install it with pip install "crossnorm[torch]"') from error
require(torch.__version__)

from torch import Tensor, nn  # noqa: E402 (only after the check)
from torch.autograd import forward_ad  # noqa: E402


class Layer(nn.Module):
    """The specification's side of a layer: built from one, and able to say which one it obeys now.

    The attributes (``eps``, ``momentum``, ...) are the truth. ``spec`` is computed from them, and so is the output.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["spec"]

    @property
    def spec(self) -> NormSpec:
        raise NotImplementedError

    @classmethod
    def from_spec(cls, spec: Any, *, device: Any = None, dtype: Any = None) -> Self:
        raise NotImplementedError

    def _affine(self, spec: Any) -> Self:
        """Drop the parameter that the specification does not want: torch's arguments cannot drop the scale alone."""
        if not spec.scale:
            self.register_parameter("weight", None)
        return self

    def reset_parameters(self) -> None:
        if hasattr(self, "running_mean"):
            self.reset_running_stats()  # type: ignore[operator]
        if self.weight is not None:
            nn.init.ones_(self.weight)  # type: ignore[arg-type]
        if getattr(self, "bias", None) is not None:
            nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def _repr(self, native: str, **ours: tuple[Any, Any]) -> str:
        """The native's words, then ours where they are not the default. A missing scale counts as ours."""
        if self.weight is None and getattr(self, "bias", None) is not None:
            ours["scale"] = (False, True)
        return ", ".join([native, *(f"{name}={value!r}" for name, (value, default) in ours.items() if value != default)])


def pure(function: Function) -> Function:
    """What every pure function does first: refuse parameters and state of other names or shapes than the specification's."""

    @wraps(function)
    def checked(spec: NormSpec, x: Any, parameters: Any, state: Any, mode: Any) -> Any:
        spec.check_arrays(parameters, state)
        return function(spec, x, parameters, state, mode)

    return checked  # type: ignore[return-value]


def built(spec_class: type[NormSpec], **fields: Any) -> NormSpec:
    """The specification of a constructor's arguments; what breaks a rule there is an `ArgumentError` here."""
    try:
        return spec_class(**fields)
    except SpecError as error:
        raise ArgumentError(str(error)) from None


def decay_of(momentum: Any) -> Any:
    """torch's ``momentum`` is the weight of the new statistic, ours of the old one; None averages all batches.

    >>> decay_of(0.1)
    0.9
    """
    if momentum is None or isinstance(momentum, str) or not hasattr(momentum, "__float__"):
        return momentum
    return 1 - momentum


def momentum_of(decay: float | None) -> float | None:
    """The inverse of `decay_of`, without the residue of the subtraction.

    >>> momentum_of(0.9)
    0.1
    """
    return None if decay is None else round(1 - decay, 15)


def sound(eps: float, momentum: float | None = 0.0) -> bool:
    """Whether attributes that may have been changed on a live layer still obey the specification (NaN does not)."""
    if momentum is None:
        return 0.0 <= eps < math.inf
    return 0.0 <= eps < math.inf and 0.0 <= momentum <= 1.0


def check_dtype(who: str, x: Tensor, parameter: Tensor | None) -> None:
    """Floating point input; parameters and statistics of the same dtype, or float32 beside a half input."""
    if not x.is_floating_point():
        raise DtypeError(f"{who}: input of dtype {x.dtype} is not floating point; convert it with input.float()")
    if parameter is not None and parameter.dtype != x.dtype:
        half = x.dtype == torch.float16 or x.dtype == torch.bfloat16
        if not (half and parameter.dtype == torch.float32):
            raise DtypeError(
                f"{who}: input of dtype {x.dtype} beside arrays of {parameter.dtype}; give them one dtype, "
                "or keep float32 arrays beside a half input"
            )


def check_channels(who: str, x: Tensor, channels: int) -> None:
    if x.size(1) != channels:
        raise ShapeError(f"{who}: input of shape {list(x.shape)} has {x.size(1)} channels (dimension 1), not {channels}")


def check_normalized(who: str, x: Tensor, shape: list[int]) -> None:
    if x.dim() < len(shape) or list(x.shape[x.dim() - len(shape) :]) != shape:
        raise ShapeError(f"{who}: input of shape {list(x.shape)} does not end in the normalized shape {shape}")


def check_statistics(who: str, mean: Tensor | None, variance: Tensor | None) -> None:
    """Both or neither, on a layer whose buffers may have been changed."""
    if (mean is None) != (variance is None):
        raise ArgumentError(f"{who}: one of running_mean and running_var is None and the other is not; set both or neither")


def positions(x: Tensor) -> int:
    """The number of positions of ``x``, (batch, channel, *spatial)."""
    count = 1
    for size in x.shape[2:]:
        count *= size
    return count


def channels_last(x: Tensor) -> bool:
    """Whether the channel is the innermost dimension in memory, as far as it can be seen."""
    return not transformed() and x.dim() > 3 and x.size(1) > 1 and x.stride(1) == 1 and not x.is_contiguous()


def as_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def transformed() -> bool:
    """Whether a transform of torch.func is at work: it hides the layout and lets only kernels write to outer buffers."""
    if not torch.jit.is_scripting():
        return torch._C._are_functorch_transforms_active()
    return False


def watched(x: Tensor) -> bool:
    """Whether somebody may ask for more than a backward pass: a compiler, a tracer, forward mode, a subclass of Tensor."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or forward_ad._current_level >= 0
        or type(x) not in (Tensor, nn.Parameter)
    )


def wide(x: Tensor) -> torch.dtype:
    """The dtype of sums and statistics: float32 at least."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def reciprocal_root(square: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(square + eps)``, as a root of a number near 1: its derivative, a third power, cannot underflow."""
    root = (square.detach() + eps).rsqrt()
    return root * ((square + eps) * (root * root)).rsqrt()


def affine(xhat: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    """``scale * xhat + offset``, where the parameters broadcast."""
    if scale is not None:
        xhat = xhat * scale
    if offset is not None:
        xhat = xhat + offset
    return xhat


def few(count: int) -> bool:
    """Whether so few values share their statistics that two close ones may decide them."""
    return count < 8


def pilot(x: Tensor, axes: list[int], sample: Tensor) -> Tensor:
    """A mean to take away from ``x``, in its dtype. ``sample`` is a part of ``x`` that tells the spread.

    For half input 0 where the mean is not large. Where it is, ``x`` is so close to it that the difference is exact.
    """
    mean = x.detach().mean(axes, keepdim=True, dtype=wide(x))
    if x.dtype == torch.float32 or x.dtype == torch.float64:
        return mean
    spread = (sample.detach() - mean).abs().mean(axes, keepdim=True)
    return torch.where(mean.abs() > 8 * spread, mean, torch.zeros_like(mean)).to(x.dtype)


def per_channel(values: Tensor | None, rank: int) -> Tensor | None:
    """One value per channel, shaped to meet (batch, channel, *spatial)."""
    return None if values is None else values.reshape([1, -1] + [1] * (rank - 2))


def standardize(
    x: Tensor, scale: Tensor | None, offset: Tensor | None, axes: list[int], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, mean and biased variance over ``axes``, in plain differentiable steps."""
    xhat, mean, variance = standardized(x, axes, eps)
    return affine(xhat, scale, offset).to(x.dtype), mean, variance


def standardized(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """``(x - mean) / sqrt(variance + eps)``, float32 at least, with the mean and variance, which are detached.

    First a detached mean is taken away: ``x - mean`` does not depend on it, so that every derivative stays exact, and what is
    left is small, so that its own mean is accurate.
    """
    pilot = x.detach().mean(axes, keepdim=True, dtype=wide(x))
    centred = x - pilot
    rest = centred.mean(axes, keepdim=True)
    centred = centred - rest
    variance = (centred * centred).mean(axes, keepdim=True)
    return centred * reciprocal_root(variance, eps), (pilot + rest).detach(), variance.detach()


def blend(old: Tensor, new: Tensor, momentum: float | None, batches: Tensor) -> Tensor:
    """``old`` moved towards ``new``; without ``momentum`` so that all ``batches`` and this one weigh the same."""
    if momentum is None:
        share = 1 / (batches + 1).to(new.dtype)
        return old * (1 - share) + new * share
    return old * (1 - momentum) + new * momentum
