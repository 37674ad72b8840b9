"""Switchable normalization for PyTorch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from crossnorm.spec import Mode, SwitchableNormSpec

from ._base import (
    ArgumentError,
    InputError,
    Layer,
    affine,
    as_channels_last,
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


class Rule(NamedTuple):
    """The specification's fields that decide how statistics are mixed, in a form that TorchScript takes."""

    use_instance: bool
    variance: str
    eps: float


def normalize(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    mean_logits: Tensor,
    variance_logits: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    rule: Rule,
) -> tuple[Tensor, Tensor, Tensor]:
    """Standardise ``x`` with the mixture; also the mean and biased variance of each instance, (batch, channel), detached.

    ``running_mean`` and ``running_variance``, if given, take the place of the batch's. The native kernels do the passes over
    ``x`` where they are sound and nobody asks for more than a backward pass; elsewhere plain differentiable steps do.
    """
    shaped = x.unsqueeze(2) if x.dim() == 2 else x
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript looks at this condition alone)
        if x.numel() and not (few(positions(x)) or watched(x) or transformed()):
            return _Switchable.apply(x, scale, offset, mean_logits, variance_logits, running_mean, running_variance, rule)
    y, mean, variance = _plain(shaped, scale, offset, mean_logits, variance_logits, running_mean, running_variance, rule)
    return y.reshape(x.shape), mean.detach(), variance.detach()


def _plain(
    x: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    mean_logits: Tensor,
    variance_logits: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    rule: Rule,
) -> tuple[Tensor, Tensor, Tensor]:
    """A detached mean is taken away first: no derivative depends on it, and what is left is small, so that sums are exact."""
    axes, count = list(range(2, x.dim())), positions(x)
    pilot = _average(x.detach().to(wide(x)), axes)
    centred = x - pilot
    rest = _average(centred, axes)
    centred = centred - rest
    mean, variance = (pilot + rest).flatten(1), _average(centred.square(), axes).flatten(1)
    shift, rstd = mixture(mean, variance, mean_logits, variance_logits, running_mean, running_variance, count, rule)
    xhat = (centred - shift.reshape(pilot.shape)) * rstd.reshape(pilot.shape)
    return affine(xhat, per_channel(scale, x.dim()), per_channel(offset, x.dim())).to(x.dtype), mean, variance


def _average(values: Tensor, axes: list[int]) -> Tensor:
    """0 where there is nothing to average."""
    count = 1
    for axis in axes:
        count *= values.size(axis)
    return values.sum(axes, keepdim=True) / max(count, 1)


def mixture(
    mean: Tensor,
    variance: Tensor,
    mean_logits: Tensor,
    variance_logits: Tensor,
    running_mean: Tensor | None,
    running_variance: Tensor | None,
    count: int,
    rule: Rule,
) -> tuple[Tensor, Tensor]:
    """From the mean and biased variance of each instance, ``count`` values: what to add to the mean, and ``1 / deviation``.

    As the weights add up to 1, the mixed mean is the instance's plus weighted distances to the others: no digits are lost,
    neither here nor in the gradients of the logits, where the means are large.
    """
    mean_weights, variance_weights = mean_logits.to(mean.dtype).softmax(0), variance_logits.to(mean.dtype).softmax(0)
    layer = 1 if rule.use_instance else 0
    batch = layer + 1
    layer_mean, layer_variance = derived(mean, variance, 1, count, rule.variance)
    shift = mean_weights[layer] * (layer_mean - mean)
    mixed = variance_weights[layer] * layer_variance
    if rule.use_instance:
        mixed = mixed + variance_weights[0] * (variance if rule.variance == "biased" else unbiased(variance, count))
    if mean_logits.size(0) > batch:
        if running_mean is not None and running_variance is not None:
            batch_mean, batch_variance = running_mean.unsqueeze(0), running_variance.unsqueeze(0)
        else:
            batch_mean, batch_variance = derived(mean, variance, 0, count, rule.variance)
        shift = shift + mean_weights[batch] * (batch_mean - mean)
        mixed = mixed + variance_weights[batch] * batch_variance
    return shift, reciprocal_root(mixed, rule.eps)


def derived(mean: Tensor, variance: Tensor, axis: int, count: int, estimator: str) -> tuple[Tensor, Tensor]:
    """Mean and variance of the whole from those of its instances along ``axis``, ``count`` values each."""
    whole = _average(mean, [axis])
    if estimator == "unbiased_instance":
        variance = unbiased(variance, count)
    variance = _average(variance + (mean - whole).square(), [axis])
    return whole, unbiased(variance, count * mean.size(axis)) if estimator == "unbiased" else variance


def unbiased(variance: Tensor, count: int) -> Tensor:
    return variance * (count / max(count - 1, 1))


class _Switchable(torch.autograd.Function):
    """Native kernels for the passes over the tensor, two forward and four backward; between them (batch, channel) arrays.

    A gradient of the gradient goes through the plain steps.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        offset: Tensor | None,
        mean_logits: Tensor,
        variance_logits: Tensor,
        running_mean: Tensor | None,
        running_variance: Tensor | None,
        rule: Rule,
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = _dense(x, channels_last(x))
        mean, variance = _moments(values)
        logits_and_state = (mean_logits, variance_logits, running_mean, running_variance)
        shift, rstd = mixture(mean, variance, *logits_and_state, positions(x), rule)
        factor = rstd if scale is None else rstd * scale
        constant = -(mean + shift) * factor
        y = _scaled(values, factor, constant if offset is None else constant + offset)
        ctx.rule = rule
        ctx.save_for_backward(x, scale, offset, *logits_and_state, mean, variance)
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return y.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        *arguments, mean, variance = ctx.saved_tensors
        x, scale, offset, *logits_and_state = arguments
        unneeded = None, None, None  # running statistics and the rule
        needed = ctx.needs_input_grad[:5]
        if gradient is None:
            return *(None,) * 5, *unneeded
        if torch.is_grad_enabled():
            y, _, _ = _plain(*arguments, ctx.rule)
            wanted = [tensor for tensor, need in zip(arguments[:5], needed, strict=True) if need]
            found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
            return *(next(found) if need else None for need in needed), *unneeded
        last = channels_last(x)
        values, upstream = _dense(x, last), _dense(gradient, last)
        sums, products = _sums(upstream, values, mean)
        count = positions(x)
        with torch.enable_grad():
            small = [tensor.detach().requires_grad_() for tensor in (mean, variance, *logits_and_state[:2])]
            shift, rstd = mixture(*small, *logits_and_state[2:], count, ctx.rule)
        products = products - sums * shift.detach()  # the sum of gradient * (x - mixed mean)
        of_rstd = products if scale is None else products * scale
        factor = rstd.detach() if scale is None else rstd.detach() * scale
        of_mean = -factor * sums
        of_shift, of_variance, *of_logits = torch.autograd.grad((shift, rstd), small, (of_mean, of_rstd))
        dx = None
        if needed[0]:
            of_x = of_variance * (2 / count)
            constant = (of_mean + of_shift) / count - of_x * mean
            dx = _scaled(values, of_x, constant, upstream, factor).to(x.dtype)
        dscale = (products * rstd.detach()).sum(0).to(scale.dtype) if needed[1] else None
        doffset = sums.sum(0).to(offset.dtype) if needed[2] else None
        return dx, dscale, doffset, *of_logits, *unneeded


# The passes over a tensor, (batch, channel, *spatial), float32 or wider; everything else here is (batch, channel).


def _dense(x: Tensor, last: bool) -> Tensor:
    x = x.to(wide(x))
    return as_channels_last(x) if last else x.contiguous()


def _instances(x: Tensor) -> Tensor:
    """Contiguous ``x`` with all instances as channels of one sample: for the kernels of batch normalization."""
    return x.reshape(1, -1, positions(x))


def _spread(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(*values.shape, *[1] * (x.dim() - 2))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each instance."""
    if channels_last(x) or x.dtype == torch.float64:
        axes = list(range(2, x.dim()))
        mean = x.mean(axes)
        return mean, (x - _spread(mean, x)).square_().mean(axes)
    batch, channels = x.shape[:2]
    # Its output is thrown away, and still no other kernel is as fast.
    _, mean, rstd = torch.native_group_norm(x, None, None, batch, channels, positions(x), channels, 0.0)
    return mean, rstd.reciprocal().square()


def _scaled(x: Tensor, factor: Tensor, constant: Tensor, other: Tensor | None = None, of_other: Tensor | None = None) -> Tensor:
    """``x * factor + constant``, and ``+ other * of_other`` if given."""
    if channels_last(x):
        y = torch.addcmul(_spread(constant, x), x, _spread(factor, x))
        return y if other is None else y.addcmul_(other, _spread(of_other, x))
    one, zero = torch.ones_like(factor).flatten(), torch.zeros_like(factor).flatten()
    y = torch.batch_norm(_instances(x), factor.flatten(), constant.flatten(), zero, one, False, 0.0, 0.0, False)
    if other is not None:
        y += torch.batch_norm(_instances(other), of_other.flatten(), zero, zero, one, False, 0.0, 0.0, False)
    return y.reshape(x.shape)


def _sums(gradient: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Of ``gradient`` and of ``gradient * (x - mean)``, over each instance."""
    if channels_last(x):
        axes = list(range(2, x.dim()))
        return gradient.sum(axes), (x - _spread(mean, x)).mul_(gradient).sum(axes)
    _, products, sums = torch.ops.aten.native_batch_norm_backward(
        _instances(gradient), _instances(x), None, mean.flatten(), torch.ones_like(mean).flatten(), None, None, False, 0.0,
        [False, True, True],
    )  # fmt: skip
    return sums.view(mean.shape), products.view(mean.shape)


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
    given = spec.use_batch and not mode.use_batch_statistics
    y, mean, variance = normalize(
        x,
        parameters.get("scale"),
        parameters.get("offset"),
        parameters["mean_logits"],
        parameters["variance_logits"],
        state["running_mean"] if given else None,
        state["running_variance"] if given else None,
        Rule(spec.use_instance, spec.variance, spec.eps),
    )
    if not (spec.use_batch and mode.update_running and x.numel()):
        return y, dict(state)
    running_mean, running_variance, batches = (state[array.name] for array in spec.state)
    momentum, count = momentum_of(spec.decay), positions(x)
    running_mean, running_variance = updated(
        running_mean, running_variance, batches, mean, variance, count, spec.variance, momentum, spec.pooled
    )
    return y, {"running_mean": running_mean, "running_variance": running_variance, "batches_tracked": batches + 1}


def updated(
    running_mean: Tensor,
    running_variance: Tensor,
    batches: Tensor,
    mean: Tensor,
    variance: Tensor,
    count: int,
    estimator: str,
    momentum: float | None,
    pooled: bool,
) -> tuple[Tensor, Tensor]:
    """The running statistics after a batch whose instances, ``count`` values each, have this mean and biased variance."""
    batch_mean, batch_variance = derived(mean, variance, 0, count, estimator)
    batch_mean, batch_variance = batch_mean.squeeze(0), batch_variance.squeeze(0)
    moved = blend(running_mean, batch_mean, momentum, batches)
    if pooled:
        distance = (batch_mean - running_mean).square()
        old = distance * (1 - momentum) if momentum is not None else distance * (batches / (batches + 1)).to(distance.dtype)
        batch_variance = batch_variance + old
    moved_variance = blend(running_variance, batch_variance, momentum, batches)
    return moved.to(running_mean.dtype), moved_variance.to(running_variance.dtype)


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
        y, mean, variance = normalize(
            input,
            self.weight,
            self.bias,
            self.mean_weight,
            self.var_weight,
            None if self.training else running_mean,
            None if self.training else running_variance,
            Rule(self.use_instance, self.variance, self.eps),
        )
        if not self.training or running_mean is None or running_variance is None or tracked is None or input.numel() == 0:
            return y
        # Only now, when nothing can fail any more.
        new_mean, new_variance = updated(
            running_mean, running_variance, tracked, mean, variance, positions(input), self.variance, self.momentum, self.pooled
        )
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
