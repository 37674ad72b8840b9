"""Switchable normalization for PyTorch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from crossnorm.spec import Mode, SwitchableNormSpec

from . import _instances as instances
from ._base import (
    ArgumentError,
    InputError,
    Layer,
    affine,
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
    positions,
    pure,
    reciprocal_root,
    sound,
    transformed,
    watched,
    wide,
)

# The specification's names and the layers', which are those of the authors.
PARAMETERS = {"scale": "weight", "offset": "bias", "mean_logits": "mean_weight", "variance_logits": "var_weight"}
STATE = {"running_mean": "running_mean", "running_variance": "running_var", "batches_tracked": "num_batches_tracked"}


class Arrays(NamedTuple):
    """What comes with the input. The running statistics, if given, take the place of the batch's."""

    scale: Tensor | None
    offset: Tensor | None
    mean_logits: Tensor
    variance_logits: Tensor
    running_mean: Tensor | None
    running_variance: Tensor | None


class Rule(NamedTuple):
    """The specification's fields that the arithmetic asks for."""

    use_instance: bool
    variance: str
    eps: float
    momentum: float | None
    pooled: bool


class Statistics(NamedTuple):
    """Of each instance, one channel of one sample with ``count`` values: arrays (batch, channel).

    ``mean`` is a constant close to the mean, ``rest`` is what it lacks: differences of means keep their digits.
    """

    mean: Tensor
    rest: Tensor
    variance: Tensor
    count: int


def normalize(x: Tensor, arrays: Arrays, rule: Rule) -> tuple[Tensor, Statistics]:
    """Standardise ``x`` with the mixture; also the detached statistics of its instances.

    The native kernels do the passes over ``x`` unless somebody asks for more than a backward pass, or few values decide;
    plain differentiable steps do then.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks at this condition alone)
        if x.numel() and not (few(positions(x)) or watched(x) or transformed()):
            y, *found = _Switchable.apply(x, *arrays, rule)
            return y, Statistics(*found, positions(x))
    y, (mean, rest, variance, count) = _plain(x.unsqueeze(2) if x.dim() == 2 else x, arrays, rule)
    return y.reshape(x.shape), Statistics(mean, rest.detach(), variance.detach(), count)


def _plain(x: Tensor, arrays: Arrays, rule: Rule) -> tuple[Tensor, Statistics]:
    """A detached mean is taken away first: no derivative depends on it, and what is left is small, so that sums are exact."""
    axes = list(range(2, x.dim()))
    pilot = _average(x.detach().to(wide(x)), axes)
    centred = x - pilot
    rest = _average(centred, axes)
    variance = _average((centred - rest).square(), axes)
    statistics = Statistics(pilot.flatten(1), rest.flatten(1), variance.flatten(1), positions(x))
    shift, rstd = mixture(statistics, arrays, rule)
    xhat = (centred - shift.reshape(pilot.shape)) * rstd.reshape(pilot.shape)
    y = affine(xhat, per_channel(arrays.scale, x.dim()), per_channel(arrays.offset, x.dim()))
    return y.to(x.dtype), statistics


def _weighted(logits: Tensor, statistics: list[Tensor]) -> Tensor:
    """The sum of the statistics, weighted by the softmax of the logits."""
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks at this condition alone)
        if not (watched(logits) or transformed()):
            return _Weighted.apply(logits, *statistics)
    return _sum(logits.to(statistics[0].dtype).softmax(0), statistics)


def _sum(weights: Tensor, statistics: list[Tensor]) -> Tensor:
    total = weights[0] * statistics[0]
    for number in range(1, len(statistics)):
        total = total + weights[number] * statistics[number]
    return total


class _Weighted(torch.autograd.Function):
    """The same. Logit k moves it by ``weight_k * sum_j weight_j (statistic_k - statistic_j)``; an automatic gradient forms
    that difference after the sum over all instances and channels, where little is left of it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *statistics: Tensor) -> Tensor:
        ctx.save_for_backward(logits, *statistics)
        return _sum(logits.to(statistics[0].dtype).softmax(0), list(statistics))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
        logits, *statistics = ctx.saved_tensors
        weights = logits.to(upstream.dtype).softmax(0)
        differences = [_sum(weights, [one - other for other in statistics]) for one in statistics]
        of_logits = weights * torch.stack([(upstream * difference).sum() for difference in differences])
        return of_logits.to(logits.dtype), *(weight * upstream for weight in weights)


def mixture(statistics: Statistics, arrays: Arrays, rule: Rule) -> tuple[Tensor, Tensor]:
    """The mixed mean's distance from ``statistics.mean``, and ``1 / sqrt(mixed variance + eps)``, each (batch, channel).

    As the weights add up to 1, the mixed mean is the instance's plus weighted distances to the others.
    """
    mean, rest, variance, count = statistics
    mean_weights = arrays.mean_logits.to(rest.dtype).softmax(0)
    layer = 1 if rule.use_instance else 0
    distance, layer_variance = _derived(statistics, 1, rule.variance)
    shift = rest + mean_weights[layer] * distance
    variances = [layer_variance.expand_as(rest)]
    if rule.use_instance:
        variances.insert(0, variance if rule.variance == "biased" else _unbiased(variance, count))
    if arrays.mean_logits.size(0) > layer + 1:
        running_mean, running_variance = arrays.running_mean, arrays.running_variance
        if running_mean is not None and running_variance is not None:
            distance, batch_variance = running_mean - mean - rest, running_variance
        else:
            distance, batch_variance = _derived(statistics, 0, rule.variance)
        shift = shift + mean_weights[layer + 1] * distance
        variances.append(batch_variance.to(rest.dtype).expand_as(rest))
    return shift, reciprocal_root(_weighted(arrays.variance_logits, variances), rule.eps)


def _derived(statistics: Statistics, axis: int, estimator: str) -> tuple[Tensor, Tensor]:
    """Of all instances along ``axis`` together: the mean as its distance from each instance's, and the variance."""
    mean, rest, variance, count = statistics
    # Relative to the first one, or the average of large means would lose digits.
    relative = mean - mean.narrow(axis, 0, min(mean.size(axis), 1)) + rest
    distance = _average(relative, [axis]) - relative
    if estimator == "unbiased_instance":
        variance = _unbiased(variance, count)
    variance = _average(variance + distance.square(), [axis])
    return distance, _unbiased(variance, count * mean.size(axis)) if estimator == "unbiased" else variance


def _average(values: Tensor, axes: list[int]) -> Tensor:
    """0 where there is nothing to average."""
    count = 1
    for axis in axes:
        count *= values.size(axis)
    return values.sum(axes, keepdim=True) / max(count, 1)


def _unbiased(variance: Tensor, count: int) -> Tensor:
    return variance * (count / max(count - 1, 1))


def updated(
    running_mean: Tensor, running_variance: Tensor, batches: Tensor, statistics: Statistics, rule: Rule
) -> tuple[Tensor, Tensor]:
    """The running statistics after one more batch."""
    distance, variance = _derived(statistics, 0, rule.variance)
    mean = statistics.mean[0] + (statistics.rest[0] + distance[0])
    variance = variance[0]
    if rule.pooled:
        momentum = rule.momentum
        # A quotient of integers would be float32, also beside float64.
        wide_batches = batches.to(mean.dtype)
        old = wide_batches / (wide_batches + 1) if momentum is None else torch.full_like(wide_batches, 1 - momentum)
        variance = variance + old * (mean - running_mean).square()
    new_mean = blend(running_mean, mean, rule.momentum, batches)
    new_variance = blend(running_variance, variance, rule.momentum, batches)
    return new_mean.to(running_mean.dtype), new_variance.to(running_variance.dtype)


class _Switchable(torch.autograd.Function):
    """Few passes over the tensors; between them `mixture`, forward and backward, on (batch, channel) arrays.

    A gradient of the gradient goes through the plain steps.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        *tensors, rule = arguments
        arrays, values = Arrays(*tensors), instances.dense(x, channels_last(x))
        mean, rest, variance = instances.moments(values)
        shift, rstd = mixture(Statistics(mean, rest, variance, positions(x)), arrays, rule)
        factor = rstd if arrays.scale is None else rstd * arrays.scale
        constant = -(mean + shift) * factor
        if arrays.offset is not None:
            constant = constant + arrays.offset
        ctx.rule = rule
        ctx.save_for_backward(x, *arrays, mean, rest, variance)
        ctx.mark_non_differentiable(mean, rest, variance)
        ctx.set_materialize_grads(False)
        y = instances.scaled(values, factor.to(values.dtype), constant.to(values.dtype))
        return y.to(x.dtype), mean, rest, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        x, *tensors, mean, rest, variance = ctx.saved_tensors
        arrays, needed = Arrays(*tensors), ctx.needs_input_grad
        if gradient is None:
            return (None,) * len(needed)
        if torch.is_grad_enabled():
            y, _ = _plain(x, arrays, ctx.rule)
            wanted = [tensor for tensor, need in zip((x, *arrays, None), needed, strict=True) if need]
            found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
            return tuple(next(found) if need else None for need in needed)
        last, count = channels_last(x), positions(x)
        values, upstream = instances.dense(x, last), instances.dense(gradient, last)
        sums, products = instances.sums(upstream, values, mean)
        leaves = [tensor.detach().requires_grad_() for tensor in (rest, variance, arrays.mean_logits, arrays.variance_logits)]
        with torch.enable_grad():
            copy = arrays._replace(mean_logits=leaves[2], variance_logits=leaves[3])
            shift, rstd = mixture(Statistics(mean, *leaves[:2], count), copy, ctx.rule)
        scale = 1.0 if arrays.scale is None else arrays.scale
        factor = rstd.detach() * scale
        products = products - sums * shift.detach()  # sums of gradient * (x - mixed mean)
        of_mean, of_variance, *of_logits = torch.autograd.grad((shift, rstd), leaves, (-factor * sums, products * scale))
        dx = None
        if needed[0]:
            of_x = of_variance * (2 / count)
            constant = of_mean / count - of_x * (mean + rest)
            of_x, factor, constant = (array.to(values.dtype) for array in (of_x, factor, constant))
            dx = instances.combined(values, of_x, upstream, factor, constant).to(x.dtype)
        dscale = (products * rstd.detach()).sum(0).to(arrays.scale.dtype) if needed[1] else None
        doffset = sums.sum(0).to(arrays.offset.dtype) if needed[2] else None
        return dx, dscale, doffset, *of_logits, None, None, None


@pure
def switchable_norm(
    spec: SwitchableNormSpec, x: Tensor, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor], mode: Mode
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and new state of switchable normalization, as `crossnorm.spec.SwitchableNormSpec` defines it; nothing is mutated.

    Args:
        spec: the specification.
        x: (batch, channel, *spatial), floating point.
        parameters: ``"scale"`` and ``"offset"``, each (channels,), as far as the specification has them; ``"mean_logits"`` and
            ``"variance_logits"``, each (number of statistics,).
        state: ``"running_mean"``, ``"running_variance"``, each (channels,), and ``"batches_tracked"``; empty without batch
            statistics.
        mode: whether the batch's statistics are used, and whether the state is updated.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's.
        InputError: fewer than two dimensions.
        ShapeError: wrong channel count.
        DtypeError: an integer input, or dtypes that do not go together.

    >>> from crossnorm.spec import TRAIN
    >>> spec = SwitchableNormSpec(channels=1, scale=False, offset=False, use_batch=False, eps=0.0)
    >>> switchable_norm(spec, torch.tensor([[[1.0, 3.0]]]), {"mean_logits": torch.ones(2), "variance_logits": torch.ones(2)},
    ...                 {}, TRAIN)
    (tensor([[[-1.,  1.]]]), {})
    """
    check("switchable_norm", x, spec.channels, parameters["mean_logits"])
    given = state if spec.use_batch and not mode.use_batch_statistics else {}
    arrays = Arrays(*(parameters.get(name) for name in PARAMETERS), given.get("running_mean"), given.get("running_variance"))
    rule = Rule(spec.use_instance, spec.variance, spec.eps, momentum_of(spec.decay), spec.pooled)
    y, statistics = normalize(x, arrays, rule)
    if not (spec.use_batch and mode.update_running and x.numel()):
        return y, dict(state)
    running_mean, running_variance, batches = (state[name] for name in STATE)
    running_mean, running_variance = updated(running_mean, running_variance, batches, statistics, rule)
    return y, {"running_mean": running_mean, "running_variance": running_variance, "batches_tracked": batches + 1}


def check(who: str, x: Tensor, channels: int, logits: Tensor) -> None:
    if x.dim() < 2:
        raise InputError(f"{who}: input of shape {list(x.shape)} has no channel; give (batch, channel, *spatial)")
    check_channels(who, x, channels)
    check_dtype(who, x, logits)


class SwitchableNorm(Layer):
    """What `SwitchableNorm1d`, `SwitchableNorm2d` and `SwitchableNorm3d` share; see `SwitchableNorm2d`."""

    _version = 2  # as in torch.nn.BatchNorm2d: a checkpoint of an older version has no counter
    __constants__: ClassVar[list[str]] = [
        "num_features", "eps", "momentum", "use_instance", "use_batch", "variance", "pooled",
    ]  # fmt: skip
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
        use_instance: bool = True,
        use_batch: bool = True,
        variance: Literal["biased", "unbiased_instance", "unbiased"] = "biased",
        pooled: bool = False,
        initial_variance: float = 1.0,
        last_gamma: bool = False,
    ) -> None:
        spec = built(
            SwitchableNormSpec,
            channels=num_features,
            eps=eps,
            scale=affine,
            offset=affine and bias,
            decay=decay_of(momentum),
            use_instance=use_instance,
            use_batch=use_batch,
            variance=variance,
            pooled=pooled,
            initial_variance=initial_variance,
            last_gamma=last_gamma,
        )
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.use_instance = use_instance
        self.use_batch = use_batch
        self.variance = variance
        self.pooled = pooled
        self.initial_variance = initial_variance
        self.last_gamma = last_gamma
        shapes = {array.name: array.shape for array in (*spec.parameters, *spec.state)}
        for name, attribute in PARAMETERS.items():
            array = torch.empty(shapes[name], device=device, dtype=dtype) if name in shapes else None
            self.register_parameter(attribute, None if array is None else nn.Parameter(array))
        for name, attribute in STATE.items():
            kind = torch.long if name == "batches_tracked" else dtype
            self.register_buffer(attribute, torch.empty(shapes[name], device=device, dtype=kind) if name in shapes else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(self.initial_variance)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.last_gamma and self.weight is not None:
            nn.init.zeros_(self.weight)
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)

    @classmethod
    def from_spec(cls, spec: SwitchableNormSpec, *, device: Any = None, dtype: Any = None) -> Self:
        """The layer that obeys ``spec``."""
        return cls(
            spec.channels,
            spec.eps,
            momentum_of(spec.decay),
            spec.scale or spec.offset,
            device,
            dtype,
            bias=spec.offset,
            use_instance=spec.use_instance,
            use_batch=spec.use_batch,
            variance=spec.variance,
            pooled=spec.pooled,
            initial_variance=spec.initial_variance,
            last_gamma=spec.last_gamma,
        )._affine(spec)

    @property
    def spec(self) -> SwitchableNormSpec:
        """The specification that the layer obeys now, from its attributes."""
        return SwitchableNormSpec(
            channels=self.num_features,
            eps=self.eps,
            scale=self.weight is not None,
            offset=self.bias is not None,
            decay=decay_of(self.momentum),
            use_instance=self.use_instance,
            use_batch=self.use_batch,
            variance=self.variance,
            pooled=self.pooled,
            initial_variance=self.initial_variance,
            last_gamma=self.last_gamma,
        )

    def extra_repr(self) -> str:
        affine = self.weight is not None or self.bias is not None
        return self._repr(
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={affine}",
            bias=(self.bias is not None or not affine, True),
            use_instance=(self.use_instance, True),
            use_batch=(self.use_batch, True),
            variance=(self.variance, "biased"),
            pooled=(self.pooled, False),
            initial_variance=(self.initial_variance, 1.0),
            last_gamma=(self.last_gamma, False),
        )

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not torch.jit.is_scripting():
            if not sound(self.eps, self.momentum):
                self.spec  # noqa: B018 (raises, and says why)
            self._check_arrays()
        check("SwitchableNorm", input, self.num_features, self.mean_weight)
        running_mean, running_variance, tracked = self.running_mean, self.running_var, self.num_batches_tracked
        arrays = Arrays(
            self.weight,
            self.bias,
            self.mean_weight,
            self.var_weight,
            None if self.training else running_mean,
            None if self.training else running_variance,
        )
        rule = Rule(self.use_instance, self.variance, self.eps, self.momentum, self.pooled)
        y, statistics = normalize(input, arrays, rule)
        if not self.training or running_mean is None or running_variance is None or tracked is None or input.numel() == 0:
            return y
        # Only now, when nothing can fail any more.
        new_mean, new_variance = updated(running_mean, running_variance, tracked, statistics, rule)
        running_mean.copy_(new_mean)
        running_variance.copy_(new_variance)
        tracked.add_(1)
        return y

    def _check_arrays(self) -> None:
        """The logits and the running statistics of a layer whose attributes may have been changed."""
        check_statistics("SwitchableNorm", self.running_mean, self.running_var)
        if self.use_batch != (self.running_mean is not None):
            raise ArgumentError(
                f"SwitchableNorm: use_batch={self.use_batch}, but the running statistics are "
                f"{'missing' if self.use_batch else 'there'}; build another layer to change what is mixed"
            )
        mixed = 1 + self.use_instance + self.use_batch
        if self.mean_weight.numel() != mixed or self.var_weight.numel() != mixed:
            raise ArgumentError(
                f"SwitchableNorm: use_instance={self.use_instance} and use_batch={self.use_batch} mix {mixed} statistics, but "
                f"there are {self.mean_weight.numel()} and {self.var_weight.numel()} logits; build another layer to change "
                "what is mixed"
            )

    def _check_input_dim(self, input: Tensor) -> None:
        raise NotImplementedError

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *others: Any
    ) -> None:
        """The authors' checkpoints have dimensions of size one around the channel, and no counter."""
        for name in ("weight", "bias", "running_mean", "running_var"):
            array = state_dict.get(prefix + name)
            if array is not None and array.dim() > 1 and array.numel() == max(array.shape) == self.num_features:
                state_dict[prefix + name] = array.reshape(-1)
        counter = self.num_batches_tracked
        if counter is not None and (local_metadata.get("version") or 1) < 2:
            zero = torch.tensor(0) if counter.is_meta else torch.zeros_like(counter)
            state_dict.setdefault(prefix + "num_batches_tracked", zero)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


class SwitchableNorm1d(SwitchableNorm):
    """Switchable normalization of (batch, channel) or (batch, channel, length): `SwitchableNorm2d` has the words.

    As the authors' layer of this rank, which takes (batch, channel), it mixes no instance statistics unless told to:
    ``use_instance`` is False.

    >>> SwitchableNorm1d(3).spec.statistics
    ('layer', 'batch')
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        use_instance: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, device, dtype, use_instance=use_instance, **options)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 2 and input.dim() != 3:
            raise InputError(f"SwitchableNorm1d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 2 or 3")


class SwitchableNorm2d(SwitchableNorm):
    """Switchable normalization of (batch, channel, height, width): learned mixtures of instance, layer and batch statistics.

    ::

        mean     = sum over k of softmax(mean_weight)[k] * mean_k             k = instance, layer, batch
        variance = sum over k of softmax(var_weight)[k] * variance_k
        y        = weight * (x - mean) / sqrt(variance + eps) + bias

    In evaluation the running statistics take the place of the batch's. One pass finds mean and variance of every instance;
    those of layer and batch are derived from them by adding up ``variance + (mean - their mean) ** 2``, without cancellation.

    Arguments as in `torch.nn.BatchNorm2d`: ``momentum`` is the weight of the NEW statistic (0.1 here is what the authors call
    0.9; they have 0.997 for ranks 1 and 3) or None, which averages all batches. Keyword-only:

    - ``bias``: False leaves out the offset.
    - ``use_instance``, ``use_batch``: False leaves out that statistic, its logits and, for the batch, all state.
    - ``variance``: the estimator of the instances' and the derived variances: ``"biased"``, ``"unbiased_instance"`` (the
      authors' for ranks 2 and 3) or ``"unbiased"`` (theirs for rank 1).
    - ``pooled``: the running variance is that of all batches together, not the average of theirs. With ``momentum=None`` this
      is the authors' sum and average (``using_moving_average=False``).
    - ``initial_variance``: where ``running_var`` starts. The authors start at 0.
    - ``last_gamma``: ``weight`` starts at 0.

    Parameters ``weight``, ``bias`` (channels,), ``mean_weight``, ``var_weight`` (statistics,); buffers ``running_mean``,
    ``running_var`` (channels,), ``num_batches_tracked``. The names are the authors', whose checkpoints load: their arrays
    have dimensions of size one around the channel, which are dropped, and no counter, which starts at 0. What they sum with
    ``using_moving_average=False`` has to be divided first, as their own evaluation needs it too.

    Shapes: input and output (batch, channel, height, width), float16, bfloat16, float32 or float64; parameters and statistics
    of the same dtype, or float32 beside half input. A channels_last input gives a channels_last output. An empty batch changes
    no state.

    On the CPU, one thread, 16x64x56x56 float32, a training step's forward takes 0.6 to 0.8 of the time of our `BatchNorm2d`
    (channels_last 1.0 to 1.2), and forward and backward are each at least 5 times as fast as the formulas in plain tensor
    operations. Fewer than 8 positions, compilers and transforms take plain steps, which are not.

    Under a transform of torch.func a tracked layer cannot train, as its buffers cannot be written to; use
    `crossnorm.torch.functional.switchable_norm`.

    Raises:
        ArgumentError: an argument breaks a rule (`SpecError`: so does an attribute set later, at the next call).
        InputError, ShapeError, DtypeError: the input has the wrong rank, channel count or dtype.

    Source: Luo, Ren, Peng, Zhang and Li 2018, arXiv:1806.10779, equations (3), (4) and (5).

    >>> layer = SwitchableNorm2d(3, variance="unbiased_instance", initial_variance=0.0)
    >>> layer(torch.randn(2, 3, 4, 4)).shape
    torch.Size([2, 3, 4, 4])
    >>> [name for name, _ in layer.named_parameters()]
    ['weight', 'bias', 'mean_weight', 'var_weight']
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise InputError(f"SwitchableNorm2d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 4")


class SwitchableNorm3d(SwitchableNorm):
    """Switchable normalization of (batch, channel, depth, height, width): `SwitchableNorm2d` has the words.

    >>> SwitchableNorm3d(3)(torch.randn(2, 3, 2, 2, 2)).shape
    torch.Size([2, 3, 2, 2, 2])
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 5:
            raise InputError(f"SwitchableNorm3d: input of shape {list(input.shape)} has {input.dim()} dimensions, not 5")
