"""Batch renormalization for PyTorch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from crossnorm.spec import BatchRenormSpec, Mode

from ._base import (
    ArgumentError,
    InputError,
    Layer,
    affine,
    blend,
    built,
    decay_of,
    few,
    momentum_of,
    per_channel,
    pilot,
    positions,
    pure,
    standardized,
    transformed,
    watched,
    wide,
)
from .batch_norm import (
    Accurate,
    accurate_statistics,
    check,
    differentiable_backward,
    native_is_sound,
    normalize_with,
    refuse_single_value,
    stored,
)
from .batch_norm import normalize as batch_normalize

BUFFERS = {
    "running_mean": "running_mean",
    "running_standard_deviation": "running_std",
    "running_variance": "running_var",
    "renorm_mean": "renorm_mean",
    "renorm_standard_deviation": "renorm_std",
    "renorm_variance": "renorm_var",
    "batches_tracked": "num_batches_tracked",
}


class Rule(NamedTuple):
    """How a training step goes: the specification's fields, in a form that TorchScript takes."""

    eps: float
    momentum: float | None
    renorm_decay: float | None
    running_quantity: str
    r_max: float | None
    r_min: float | None
    d_max: float | None
    r_max_steps: tuple[int, int] | None
    d_max_steps: tuple[int, int] | None
    single_value: str


def train(
    who: str, x: Tensor, scale: Tensor | None, offset: Tensor | None, state: dict[str, Tensor], rule: Rule
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and new state of a training step."""
    if rule.single_value == "raise":
        refuse_single_value(who, x)
    if x.numel() == 0:
        return batch_normalize(x, scale, offset, rule.eps, None, None), state
    quantity = "variance" if rule.running_quantity != "standard_deviation" else "standard_deviation"
    renorm_decay = rule.renorm_decay
    pair = "running_" if renorm_decay is None else "renorm_"
    spread = state[pair + quantity].to(wide(x))
    if quantity == "variance":
        spread = (spread + rule.eps).sqrt()
    target = (state[pair + "mean"].to(wide(x)), spread.clamp_min(rule.eps**0.5))
    momentum, batches = rule.momentum, state["batches_tracked"]
    limits = bounds(rule, batches, spread)
    moved: tuple[Tensor, Tensor] | None = None
    if momentum is not None and rule.running_quantity == "unbiased_variance" and kernels_will_do(x) and native_is_sound(x):
        moved = (state["running_mean"].clone().to(wide(x)), state["running_variance"].clone().to(wide(x)))
    rate = 1.0 if momentum is None else momentum
    y, mean, variance, deviation = normalize(x, scale, offset, rule.eps, target, limits, moved, rate)

    own = {"mean": mean, quantity: deviation}
    if quantity == "variance":
        own[quantity] = stored(variance, x.numel() // x.size(1), rule.running_quantity.split("_")[0])
    new: dict[str, Tensor] = {}
    for name, value in own.items():
        new["running_" + name] = blend(state["running_" + name], value, momentum, batches)
        if renorm_decay is not None:
            new["renorm_" + name] = blend(state["renorm_" + name], value, 1 - renorm_decay, batches)
    if moved is not None:
        new["running_mean"], new["running_variance"] = moved
    if quantity == "standard_deviation" and renorm_decay is not None:
        new["running_variance"] = (new["running_standard_deviation"].square() - rule.eps).clamp_min(0.0)
    new["batches_tracked"] = batches + 1
    return y, new


def normalize(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    eps: float,
    target: tuple[Tensor, Tensor],
    limits: tuple[Tensor, Tensor, Tensor],
    moved: tuple[Tensor, Tensor] | None,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, mean, biased variance and standard deviation of batch norm with the scale and offset `corrected`.

    ``target`` is the mean and the standard deviation that r and d lead to, ``limits`` are r_min, r_max and d_max. The native
    kernel, if it is at work, moves the running mean and unbiased variance ``moved``, bit for bit as in batch norm.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks at this condition alone)
        if kernels_will_do(x):
            return _by_kernels(x, scale, offset, eps, target, limits, moved, momentum)
    xhat, mean, variance = standardized(x, [0] + list(range(2, x.dim())), eps)  # noqa: RUF005 (TorchScript has no starred lists)
    mean, variance = mean.flatten(), variance.flatten()
    deviation = (variance + eps).sqrt()
    new_scale, new_offset = corrected(scale, offset, mean, deviation, target, limits)
    y = affine(xhat, per_channel(new_scale, x.dim()), per_channel(new_offset, x.dim()))
    return y.to(x.dtype), mean, variance, deviation


def kernels_will_do(x: Tensor) -> bool:
    """Whether the parts of the native kernels can be put together: for many values, on a device that has the parts, and where
    nobody wants more than a backward pass.
    """
    if not torch.jit.is_scripting():
        return (x.is_cpu or x.is_cuda) and not (few(x.size(0) * positions(x)) or watched(x) or transformed())
    return False


def _by_kernels(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    eps: float,
    target: tuple[Tensor, Tensor],
    limits: tuple[Tensor, Tensor, Tensor],
    moved: tuple[Tensor, Tensor] | None,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same kernels as in batch norm for the same input, so that r = 1 and d = 0 give the same bits."""
    trusted = native_is_sound(x)
    if not trusted and x.dtype == wide(x):
        mean, variance = accurate_statistics(x.detach())
        deviation = (variance + eps).sqrt()
        scale, offset = corrected(scale, offset, mean, deviation, target, limits)
        return Accurate.apply(x, scale, offset, mean, variance, eps), mean, variance, deviation
    taken = None
    if not trusted:
        taken = pilot(x, [0, *range(2, x.dim())], x[:1])
        x = x - taken
    rest, unbiased = moved or (torch.zeros_like(target[0]), torch.zeros_like(target[0]))
    centre, variance = torch.batch_norm_update_stats(x.detach(), rest, unbiased, momentum if moved else 1.0)
    root = (variance.double() + eps).sqrt()
    rstd = root.reciprocal() if eps else root.reciprocal().masked_fill(root == 0, 0)
    mean, deviation = centre if taken is None else centre + taken.flatten(), root.to(centre.dtype)
    scale, offset = corrected(scale, offset, mean, deviation, target, limits)
    y = _Native.apply(x, scale, offset, centre, rstd.to(centre.dtype), eps)
    if not moved:
        count = x.numel() // x.size(1)
        variance = unbiased * ((count - 1) / count)
    return y, mean, variance, deviation


class _Native(torch.autograd.Function):
    """The second half of the native kernel, for statistics that its first half has found, and its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(x, scale, offset, mean, rstd)
        # It begins with ``scale / sqrt(variance + eps)``.
        return normalize_with(x, scale * rstd, offset, 0.0, mean, torch.ones_like(mean))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset, mean, rstd = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            return *differentiable_backward(gradient, x, scale, offset, ctx.eps, needed), None, None, None
        found = torch.ops.aten.native_batch_norm_backward(
            gradient, x, scale, None, None, mean, rstd, True, ctx.eps, list(needed)
        )
        return *found, None, None, None


def corrected(
    scale: Tensor | None,
    offset: Tensor | None,
    mean: Tensor,
    deviation: Tensor,
    target: tuple[Tensor, Tensor],
    limits: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """``scale * r`` and ``offset + scale * d``, in which r and d are constants."""
    r_min, r_max, d_max = limits
    r = (deviation / target[1]).clamp(r_min, r_max)
    d = ((mean - target[0]) / target[1]).clamp(-d_max, d_max)
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks at this condition alone)
        if torch.compiler.is_compiling():
            r, d = _kept(r), _kept(d)
    if scale is None:
        return r, d if offset is None else d + offset
    return r * scale, d * scale if offset is None else torch.addcmul(offset, d, scale)


def _kept(values: Tensor) -> Tensor:
    """``values``, as a reduction, which a compiler keeps for the backward pass.

    Elementwise steps it takes again there, from running quantities that have moved on by then (pytorch/pytorch#197039).
    """
    return values.expand(8, -1).amax(0)


def bounds(rule: Rule, batches: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """r_min, r_max and d_max after ``batches`` updates, by operations on tensors: nobody waits for a device, and a compiler
    sees no number that changes.
    """
    highest, lowest, farthest = rule.r_max, rule.r_min, rule.d_max
    ramp = _ramp(rule.r_max_steps, batches, like)
    r_max = like.new_full([], float("inf")) if highest is None else 1 + (highest - 1) * ramp
    r_min = r_max.reciprocal() if lowest is None else 1 + (lowest - 1) * ramp
    if farthest is None:
        return r_min, r_max, like.new_full([], float("inf"))
    return r_min, r_max, farthest * _ramp(rule.d_max_steps, batches, like)


def _ramp(steps: tuple[int, int] | None, batches: Tensor, like: Tensor) -> Tensor:
    """From 0 at the first of ``steps`` to 1 at the last; 1 without any."""
    if steps is None:
        return like.new_full([], 1.0)
    first, last = steps
    if first == last:
        return (batches >= last).to(like.dtype)
    return (batches - first).clamp(0, last - first).to(like.dtype) / (last - first)


def infer(x: Tensor, scale: Tensor | None, offset: Tensor | None, state: dict[str, Tensor], eps: float) -> Tensor:
    """Standardise ``x`` with the running quantities."""
    if "running_variance" in state:
        return normalize_with(x, scale, offset, eps, state["running_mean"], state["running_variance"])
    factor = state["running_standard_deviation"].to(wide(x)).reciprocal()
    if scale is not None:
        factor = factor * scale
    mean = state["running_mean"].to(wide(x))
    return normalize_with(x, factor, None if offset is None else offset.to(wide(x)), 0.0, mean, torch.ones_like(mean))


@pure
def batch_renorm(
    spec: BatchRenormSpec, x: Tensor, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], mode: Mode
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and new state of batch renormalization, as `crossnorm.spec.BatchRenormSpec` defines it; nothing is mutated.

    Args:
        spec: the specification.
        x: (batch, channel, *spatial), floating point.
        parameters: ``"scale"`` and ``"offset"``, each (channels,), as far as the specification has them.
        state: ``"running_mean"`` and the others that the specification has, each (channels,), and ``"batches_tracked"``.
        mode: whether the batch's statistics are used, and whether the state is updated.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        InputError: fewer than two dimensions, or one value per channel where the specification says so.
        ShapeError: wrong channel count.
        DtypeError: an integer input, or dtypes that do not go together.

    >>> from crossnorm.spec import TRAIN
    >>> spec = BatchRenormSpec(channels=1, scale=False, offset=False, decay=0.5, eps=0.0, r_max_steps=None, d_max_steps=None)
    >>> state = {"running_mean": torch.zeros(1), "running_standard_deviation": torch.ones(1)}
    >>> state["batches_tracked"] = torch.tensor(0)
    >>> y, state = batch_renorm(spec, torch.tensor([[1.0], [3.0]]), {}, state, TRAIN)
    >>> y.flatten(), state["running_mean"]
    (tensor([1., 3.]), tensor([1.]))
    """
    scale, offset = parameters.get("scale"), parameters.get("offset")
    check("batch_renorm", x, spec.channels, scale, state["running_mean"])
    if not mode.use_batch_statistics:
        return infer(x, scale, offset, dict(state), spec.eps), dict(state)
    fields = {name: getattr(spec, name) for name in Rule._fields if name != "momentum"}
    rule = Rule(momentum=momentum_of(spec.decay), **fields)
    y, new = train("batch_renorm", x, scale, offset, dict(state), rule)
    return y, new if mode.update_running else dict(state)


class BatchRenorm(Layer):
    """What `BatchRenorm1d`, `BatchRenorm2d` and `BatchRenorm3d` share; see `BatchRenorm2d`."""

    __constants__: ClassVar[list[str]] = [
        "num_features", "eps", "momentum", "renorm_decay", "running_quantity", "r_max", "r_min", "d_max", "r_max_steps",
        "d_max_steps", "single_value",
    ]  # fmt: skip

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        renorm_decay: float | None = None,
        running_quantity: Literal["standard_deviation", "biased_variance", "unbiased_variance"] = "standard_deviation",
        r_max: float | None = 3.0,
        r_min: float | None = None,
        d_max: float | None = 5.0,
        r_max_steps: tuple[int, int] | None = (5_000, 40_000),
        d_max_steps: tuple[int, int] | None = (5_000, 25_000),
        single_value: Literal["raise", "zero"] = "raise",
    ) -> None:
        spec = built(
            BatchRenormSpec,
            channels=num_features,
            eps=eps,
            decay=decay_of(momentum),
            renorm_decay=renorm_decay,
            running_quantity=running_quantity,
            r_max=r_max,
            r_min=r_min,
            d_max=d_max,
            r_max_steps=r_max_steps,
            d_max_steps=d_max_steps,
            single_value=single_value,
        )
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.renorm_decay = spec.renorm_decay
        self.running_quantity = running_quantity
        self.r_max, self.r_min, self.d_max = spec.r_max, spec.r_min, spec.d_max
        self.r_max_steps, self.d_max_steps = spec.r_max_steps, spec.d_max_steps
        self.single_value = single_value
        for name, wanted in (("weight", affine), ("bias", affine and bias)):
            values = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, values)
        for array in spec.state:
            of_type = torch.long if array.name == "batches_tracked" else dtype
            self.register_buffer(BUFFERS[array.name], torch.empty(array.shape, device=device, dtype=of_type))
        for name in BUFFERS.values():  # behind the others, or torch.export miscounts them
            if name not in self._buffers:
                self.register_buffer(name, None)
        self.reset_parameters()
        self._checked = (self._rule(), list(self._state()))

    def reset_running_stats(self) -> None:
        """Every running quantity as at the start."""
        for array in self.spec.state:
            getattr(self, BUFFERS[array.name]).fill_(array.initial)

    @classmethod
    def from_spec(cls, spec: BatchRenormSpec, *, device: Any = None, dtype: Any = None) -> Self:
        """The layer that obeys ``spec``."""
        return cls(
            spec.channels,
            spec.eps,
            momentum_of(spec.decay),
            spec.scale or spec.offset,
            device,
            dtype,
            bias=spec.offset,
            renorm_decay=spec.renorm_decay,
            running_quantity=spec.running_quantity,
            r_max=spec.r_max,
            r_min=spec.r_min,
            d_max=spec.d_max,
            r_max_steps=spec.r_max_steps,
            d_max_steps=spec.d_max_steps,
            single_value=spec.single_value,
        )._affine(spec)

    @property
    def spec(self) -> BatchRenormSpec:
        """The specification that the layer obeys now, from its attributes."""
        return BatchRenormSpec(
            channels=self.num_features,
            eps=self.eps,
            scale=self.weight is not None,
            offset=self.bias is not None,
            decay=decay_of(self.momentum),
            renorm_decay=self.renorm_decay,
            running_quantity=self.running_quantity,
            r_max=self.r_max,
            r_min=self.r_min,
            d_max=self.d_max,
            r_max_steps=self.r_max_steps,
            d_max_steps=self.d_max_steps,
            single_value=self.single_value,
        )

    def extra_repr(self) -> str:
        default = BatchRenormSpec(channels=1)
        fields = ("running_quantity", "renorm_decay", "r_max", "r_min", "d_max", "r_max_steps", "d_max_steps", "single_value")
        return self._repr(
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}, "
            f"bias={self.bias is not None}",
            **{name: (getattr(self, name), getattr(default, name)) for name in fields},
        )

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        rule, state = self._rule(), self._state()
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks at this condition alone)
            if (rule, list(state)) != self._checked:
                self._check_attributes(rule, state)
        check("BatchRenorm", input, self.num_features, self.weight, self.running_mean)
        if not self.training:
            return infer(input, self.weight, self.bias, state, self.eps)
        y, new = train("BatchRenorm", input, self.weight, self.bias, state, rule)
        # Only now, when nothing can fail any more.
        for name, value in new.items():
            state[name].copy_(value)
        return y

    def _rule(self) -> Rule:
        return Rule(
            self.eps,
            self.momentum,
            self.renorm_decay,
            self.running_quantity,
            self.r_max,
            self.r_min,
            self.d_max,
            self.r_max_steps,
            self.d_max_steps,
            self.single_value,
        )

    def _state(self) -> dict[str, Tensor]:
        """The buffers by the names of the specification."""
        state: dict[str, Tensor] = {}
        _put(state, "running_mean", self.running_mean)
        _put(state, "running_standard_deviation", self.running_std)
        _put(state, "running_variance", self.running_var)
        _put(state, "renorm_mean", self.renorm_mean)
        _put(state, "renorm_standard_deviation", self.renorm_std)
        _put(state, "renorm_variance", self.renorm_var)
        _put(state, "batches_tracked", self.num_batches_tracked)
        return state

    def _check_attributes(self, rule: Rule, state: dict[str, Tensor]) -> None:
        """Refuse what was set on a live layer and breaks a rule, or wants running quantities that it does not have."""
        wanted = {BUFFERS[array.name] for array in self.spec.state}
        found = {BUFFERS[name] for name in state}
        if found != wanted:
            raise ArgumentError(
                f"BatchRenorm: buffers {sorted(found)} do not go with running_quantity={self.running_quantity!r} and "
                f"renorm_decay={self.renorm_decay!r}, which want {sorted(wanted)}; build another layer"
            )
        self._checked = (rule, list(state))

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError


def _put(state: dict[str, Tensor], name: str, values: Tensor | None) -> None:
    if values is not None:
        state[name] = values


class BatchRenorm1d(BatchRenorm):
    """Batch renormalization of (batch, channel) or (batch, channel, length): `BatchRenorm2d` has the words.

    >>> BatchRenorm1d(3)(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 2 and input.dim() != 3:
            raise InputError(f"BatchRenorm1d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 2 or 3")


class BatchRenorm2d(BatchRenorm):
    """Batch renormalization of (batch, channel, height, width): batch norm whose training output is corrected towards the
    running statistics, so that training and evaluation see the same numbers.

    Training: ``y = weight * ((x - mean) / deviation * r + d) + bias``, with the batch's mean, ``deviation = sqrt(var + eps)``
    and two constants within bounds: ``r = deviation / running deviation``, ``d = (mean - running mean) / running deviation``.
    Evaluation: ``y = weight * (x - running mean) / running deviation + bias``.

    ``num_features``, ``eps``, ``momentum``, ``affine``, ``bias``, ``device`` and ``dtype`` are `torch.nn.BatchNorm2d`'s, the
    others the fields of `crossnorm.spec.BatchRenormSpec`, with the paper's schedule as the default:

    - ``r_max``, ``d_max``: the final bounds; None is no bound. ``r_min``: None is ``1 / r_max``, 0 no bound.
    - ``r_max_steps``, ``d_max_steps``: the bounds relax from 1 and 0 at the first of these steps to their final values at the
      last; None for final ones from the beginning. The buffer ``num_batches_tracked`` counts the steps.
    - ``running_quantity``: ``"standard_deviation"`` in the buffer ``running_std``, or ``"biased_variance"`` or
      ``"unbiased_variance"`` in ``running_var``. With a variance the buffers are those of batch norm, whose checkpoints load.
    - ``renorm_decay``: a second pair of running quantities, decayed by it, that r and d are taken from; the first pair serves
      evaluation. Its buffers are ``renorm_mean`` and ``renorm_std`` or ``renorm_var``. With ``running_std`` evaluation reads
      ``running_var``, which each step sets to ``running_std ** 2 - eps``.
    - ``single_value``: one value per channel in training: ``"raise"``, or ``"zero"``: it counts as the mean.

    Attributes may be changed between calls. A layer that needs other buffers for it is refused at its next call.

    Shapes: input and output (batch, channel, height, width), float16, bfloat16, float32 or float64; parameters and statistics
    of the same dtype, or float32 beside half input. A channels_last input gives a channels_last output.

    Where r = 1 and d = 0 (``r_max=1, d_max=0``, or a schedule that has not begun) training gives the outputs and gradients of
    `BatchNorm2d` bit for bit on the CPU, for contiguous and channels_last input beside float32 or float64 parameters; with a
    variance so are the buffers and evaluation. Forward, and forward and backward, take 1.0 to 1.1 times as long
    (16x64x56x56, float32). ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` leaves the layer alone.

    Raises:
        ArgumentError: an argument breaks a rule (`SpecError`: so does an attribute set later, at the next call).
        InputError, ShapeError, DtypeError: the input has the wrong rank, channel count or dtype, or one value per channel.

    Source: Ioffe 2017, arXiv:1702.03275, Algorithm 1 and section 4.

    >>> layer = BatchRenorm2d(3, r_max=2.0, d_max=1.0, r_max_steps=(0, 100), d_max_steps=(0, 100))
    >>> layer(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    >>> layer.spec.bounds(int(layer.num_batches_tracked))[1:]
    (1.01, 0.01)
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise InputError(f"BatchRenorm2d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 4")


class BatchRenorm3d(BatchRenorm):
    """Batch renormalization of (batch, channel, depth, height, width): `BatchRenorm2d` has the words.

    >>> BatchRenorm3d(3)(torch.randn(2, 3, 2, 2, 2)).shape
    torch.Size([2, 3, 2, 2, 2])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 5:
            raise InputError(f"BatchRenorm3d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 5")
