"""Mutants of the PyTorch layers: what a careless author would write."""

import math
from types import SimpleNamespace

import torch

from tests.conformance.mutants import Table

MUTANTS = mutant = Table("crossnorm-torch")


class Textbook:
    """The forward pass as textbooks have it, in float64, so that nothing is lost where float32 is asked.

    It is mixed into the class of a layer, whose arrays and attributes it uses. A mutant gets one step wrong.
    """

    def forward(self, x):
        numbers = self.numbers(x)
        if self.takes_running():
            mean, variance = (self.shaped(buffer.double(), x) for buffer in (self.running_mean, self.running_var))
        else:
            mean, variance = self.statistics(numbers)
        if self.updates():
            self.update(mean.detach(), variance.detach(), x.numel() // mean.numel())
        return self.finished(self.transformed(self.centred(numbers, mean) * self.rstd(variance), numbers), x)

    @property
    def tracked(self):
        return getattr(self.spec, "tracked", False)

    def takes_running(self):
        return self.tracked and not self.training

    def updates(self):
        return self.tracked and self.training

    def numbers(self, x):
        return x.double()

    def average(self, values):
        """Over each statistics group, shaped to meet the input."""
        if self.spec.method != "group_norm":
            return values.mean(self.axes(values), keepdim=True)
        grouped = values.reshape(len(values), self.num_groups, -1)
        return self.shaped(grouped.mean(2).repeat_interleave(values.size(1) // self.num_groups, 1), values)

    def axes(self, values):
        if self.spec.method in ("layer_norm", "rms_norm"):
            return list(range(-len(self.spec.shape), 0))
        return [*([0] if self.spec.method == "batch_norm" else []), *range(2, values.dim())]

    def statistics(self, numbers):
        if self.spec.method == "rms_norm":
            return torch.zeros(()), self.average(numbers.square())
        mean = self.average(numbers)
        mean = mean + self.average(numbers - mean)
        return mean, self.average((numbers - mean).square())

    def centred(self, numbers, mean):
        return numbers - mean if getattr(self, "subtract_mean", True) else numbers

    def rstd(self, variance):
        return (variance + self.spec.eps).rsqrt()

    def transformed(self, xhat, numbers):
        scale, offset = (self.parameter(name, xhat) for name in ("weight", "bias"))
        if scale is not None:
            xhat = xhat * scale
        return xhat if offset is None else xhat + offset

    def parameter(self, name, x):
        values = getattr(self, name, None)
        return None if values is None else self.shaped(values.double(), x)

    def shaped(self, values, x):
        """One value per channel, or per sample and channel, to meet the input."""
        if self.spec.method in ("layer_norm", "rms_norm"):
            return values
        return values.reshape(-1, x.size(1), *[1] * (x.dim() - 2))

    def finished(self, y, x):
        return y.to(x.dtype)

    def update(self, mean, variance, count):
        self.move(self.running_mean, self.over_batch(mean))
        self.move(self.running_var, self.over_batch(self.stored(variance, count)))
        self.count()

    def over_batch(self, values):
        return values.mean(0).flatten()

    def stored(self, variance, count):
        return variance * (count / (count - 1)) if "unbiased" in self.running_variance and count > 1 else variance

    def move(self, buffer, new):
        decay = self.decay(self.num_batches_tracked.item())
        buffer.copy_(decay * buffer.double() + (1 - decay) * new)

    def decay(self, batches):
        return batches / (batches + 1) if self.spec.decay is None else self.spec.decay

    def count(self):
        self.num_batches_tracked.add_(1)


def gradient_of(values):
    """What has the gradient of ``values`` and is 0."""
    return values - values.detach()


def in_steps(forward, backward):
    """A differentiable function of one tensor, from its value and from its gradient's way back."""

    class Steps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return forward(x)

        @staticmethod
        def backward(ctx, gradient):
            return backward(gradient)

    return Steps.apply


def as_if_contiguous(x):
    """The numbers in the order in which they lie in memory."""
    strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.dim())]
    return x.as_strided(x.shape, strides)


HALF = (torch.float16, torch.bfloat16)
GRADIENTS = "dx dscale doffset"
STATISTICS = "running_mean running_variance"


# The statistics of a group.


@mutant("batch_norm", "y", "dx dscale")
class NormalizedByTheUnbiasedVariance(Textbook):
    def rstd(self, variance):
        count = self.count_of_values
        return super().rstd(variance if self.takes_running() else variance * (count / max(count - 1, 1)))

    def numbers(self, x):
        self.count_of_values = x.numel() // x.size(1)
        return super().numbers(x)


@mutant("batch_norm", "y", f"dx dscale {STATISTICS}")
class LastAxisForgotten(Textbook):
    def axes(self, values):
        return [0, *range(2, values.dim() - 1)]

    def over_batch(self, values):
        return values.movedim(1, -1).flatten(0, -2).mean(0)


@mutant("batch_norm", "y", f"dx dscale {STATISTICS}")
class SquareOfTheMeanFromMeanOfSquares(Textbook):
    def numbers(self, x):
        return x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)

    def statistics(self, numbers):
        mean = self.average(numbers)
        return mean, self.average(numbers.square()) - mean.square()


@mutant("batch_norm", "running_mean", f"y dx dscale {STATISTICS}", where="x56x56-channels_last-bfloat16")
class StatisticsInHalf(Textbook):
    def statistics(self, numbers):
        return super().statistics(numbers.to(self.dtype) if self.dtype in HALF else numbers)

    def numbers(self, x):
        self.dtype = x.dtype
        return super().numbers(x)


@mutant("rms_norm", "y", "dx dscale")
class SquaresInTheDtypeOfTheInput(Textbook):
    def numbers(self, x):
        return x


@mutant("rms_norm", "y", "dx dscale")
class MeanSubtracted(Textbook):
    def statistics(self, numbers):
        mean = self.average(numbers)
        return mean, self.average((numbers - mean).square())


@mutant("rms_norm", "y", "dx dscale")
class RootOfTheSum(Textbook):
    def average(self, values):
        return values.sum(self.axes(values), keepdim=True)


@mutant("layer_norm", "y", "dx dscale")
class OneAxisTooFew(Textbook):
    def axes(self, values):
        return [-1]


@mutant("layer_norm", "y", "dx dscale")
class BatchAxisToo(Textbook):
    def axes(self, values):
        return [0, *super().axes(values)]


@mutant("layer_norm", "y", "dx dscale doffset")
class NumeratorKeepsTheMean(Textbook):
    def centred(self, numbers, mean):
        return numbers


@mutant("group_norm", "y", "dx dscale")
class OneGroup(Textbook):
    def average(self, values):
        return values.mean(list(range(1, values.dim())), keepdim=True)


@mutant("group_norm", "y", "dx dscale")
class GroupsOffByOneChannel(Textbook):
    def average(self, values):
        return super().average(values.roll(1, 1)).roll(-1, 1)


@mutant("group_norm", "y", "dx dscale")
class GroupsInterleaved(Textbook):
    def average(self, values):
        order = torch.arange(values.size(1)).reshape(-1, self.num_groups).T.flatten()
        return super().average(values[:, order])[:, order.argsort()]


@mutant("instance_norm", "y", "dx dscale")
class BatchPooled(Textbook):
    def axes(self, values):
        return [0, *range(2, values.dim())]


@mutant("instance_norm", "y", "dx dscale")
class RunningStatisticsIgnored(Textbook):
    def takes_running(self):
        return False


# The denominator.


@mutant("batch_norm", "y", "dx dscale")
class EpsOutsideTheRoot(Textbook):
    def rstd(self, variance):
        return 1 / (variance.clamp_min(1e-300).sqrt() + self.spec.eps)


@mutant("layer_norm", "y", "dx dscale")
class EpsAddedToTheReciprocal(Textbook):
    def rstd(self, variance):
        return variance.clamp_min(1e-300).rsqrt() + self.spec.eps


@mutant("rms_norm", "y", "dx dscale")
class EpsAsLowerBound(Textbook):
    def rstd(self, variance):
        return variance.clamp_min(self.spec.eps).rsqrt()


@mutant("group_norm", "y", "dx dscale")
class EpsForgotten(Textbook):
    def rstd(self, variance):
        return variance.rsqrt()


@mutant("batch_norm", "y", "dx dscale")
class EpsTenTimes(Textbook):
    def rstd(self, variance):
        return (variance + 10 * self.spec.eps).rsqrt()


@mutant("instance_norm", "y", "dx dscale")
class EpsTwice(Textbook):
    def rstd(self, variance):
        return (variance + 2 * self.spec.eps).rsqrt()


@mutant("layer_norm", "dx")
class GradientOfAConstantSampleIsNaN(Textbook):
    def rstd(self, variance):
        return (variance.sqrt().square() + self.spec.eps).rsqrt()


# Scale and offset.


@mutant("batch_norm", "y", "dx dscale")
class ScaleTwice(Textbook):
    def transformed(self, xhat, numbers):
        scale = self.parameter("weight", xhat)
        return super().transformed(xhat if scale is None else xhat * scale, numbers)


@mutant("batch_norm", "y", "dscale doffset")
class OffsetBeforeScale(Textbook):
    def transformed(self, xhat, numbers):
        scale, offset = (self.parameter(name, xhat) for name in ("weight", "bias"))
        xhat = xhat if offset is None else xhat + offset
        return xhat if scale is None else xhat * scale


@mutant("group_norm", "y", "dx dscale")
class ScaleOfTheNextChannel(Textbook):
    def parameter(self, name, x):
        values = super().parameter(name, x)
        return values.roll(1, 1) if name == "weight" and values is not None else values


@mutant("layer_norm", "y", "doffset")
class OffsetForgotten(Textbook):
    def parameter(self, name, x):
        return super().parameter(name, x) if name == "weight" else None


# The gradients.


@mutant("batch_norm", "dx")
class MeanIsNoConstant(Textbook):
    def statistics(self, numbers):
        mean, variance = super().statistics(numbers)
        return mean.detach(), variance


@mutant("group_norm", "dx")
class VarianceIsNoConstant(Textbook):
    def statistics(self, numbers):
        mean, variance = super().statistics(numbers)
        return mean, variance.detach()


@mutant("rms_norm", "dx")
class RootIsNoConstant(Textbook):
    def rstd(self, variance):
        return super().rstd(variance).detach()


@mutant("layer_norm", "dscale")
class ScaleGradientWithoutXhat(Textbook):
    def transformed(self, xhat, numbers):
        scale = self.parameter("weight", xhat)
        y = super().transformed(xhat, numbers)
        return y if scale is None else y - gradient_of(scale) * (xhat - 1).detach()


@mutant("batch_norm", "dscale")
class ScaleGradientOfTheRawInput(Textbook):
    def transformed(self, xhat, numbers):
        scale = self.parameter("weight", xhat)
        y = super().transformed(xhat, numbers)
        return y if scale is None else y + gradient_of(scale) * (numbers - xhat).detach()


@mutant("batch_norm", "doffset")
class OffsetGradientAveraged(Textbook):
    def transformed(self, xhat, numbers):
        offset = self.parameter("bias", xhat)
        y = super().transformed(xhat, numbers)
        return y if offset is None else y - gradient_of(offset) * (1 - offset.numel() / xhat.numel())


@mutant("instance_norm", "dscale")
class ScaleGradientOfTheFirstSample(Textbook):
    def transformed(self, xhat, numbers):
        scale = self.parameter("weight", xhat)
        y = super().transformed(xhat, numbers)
        if scale is None:
            return y
        others = xhat.detach().clone()
        others[0] = 0
        return y - gradient_of(scale) * others


@mutant("group_norm", "dx", "dscale doffset")
class GradientRoundedEarly(Textbook):
    def finished(self, y, x):
        early = in_steps(lambda y: y.clone(), lambda gradient: gradient.to(torch.float16).double())
        return super().finished(early(y), x)


@mutant("layer_norm", "doffset", "dscale", where="bfloat16")
@mutant("batch_norm", "doffset", "dscale", where="16x4x56x56-channels_last-bfloat16")
class ParameterGradientsSummedInHalf(Textbook):
    """Gradients of parameters beside half input, one term added after the other, as the input's dtype has it."""

    def parameter(self, name, x):
        values = getattr(self, name, None)
        if values is None or self.dtype not in HALF:
            return super().parameter(name, x)

        def summed(gradient):
            total = torch.zeros_like(values, dtype=self.dtype)
            terms = gradient if self.spec.method == "layer_norm" else gradient.movedim(1, -1)
            for row in terms.to(self.dtype).reshape(-1, *values.shape):
                total += row
            return total.to(values.dtype)

        return in_steps(lambda values: self.shaped(values.double(), x).expand(x.shape).clone(), summed)(values)

    def numbers(self, x):
        self.dtype = x.dtype
        return super().numbers(x)


# Memory.


@mutant("group_norm", "y", "dx dscale")
class InputReadAsContiguous(Textbook):
    def numbers(self, x):
        return super().numbers(as_if_contiguous(x))


@mutant("instance_norm", "dx", "dscale doffset")
class UpstreamReadAsContiguous(Textbook):
    def finished(self, y, x):
        return in_steps(lambda y: y.clone(), as_if_contiguous)(super().finished(y, x))


@mutant("batch_norm", "y", f"{GRADIENTS} {STATISTICS} batches_tracked")
class InputChangedInPlace(Textbook):
    def statistics(self, numbers):
        mean, variance = super().statistics(numbers)
        self.input.data.sub_(mean)
        return mean, variance

    def numbers(self, x):
        self.input = x
        return super().numbers(x)


@mutant("layer_norm", "dx", "y dscale doffset")
class UpstreamChangedInPlace(Textbook):
    def finished(self, y, x):
        return in_steps(lambda y: y.clone(), lambda gradient: gradient.mul_(2).div(2))(super().finished(y, x))


@mutant("rms_norm", "y", "dx dscale")
class OutputOnTheInput(Textbook):
    def finished(self, y, x):
        def written(y):
            x.data.copy_(y)
            return x.detach()

        return in_steps(written, lambda gradient: gradient.double())(y)


@mutant("rms_norm", "y", "dx dscale", where="-zero-")
class InputGivenBackWhereNothingChanges(Textbook):
    def finished(self, y, x):
        y = super().finished(y, x)
        return in_steps(lambda y: x.detach() if torch.equal(x, y) else y.clone(), lambda gradient: gradient)(y)


@mutant("group_norm", "y")
class OutputInABufferOfTheLayer(Textbook):
    def finished(self, y, x):
        y = super().finished(y, x)
        if getattr(self, "buffer", None) is None:
            self.buffer = torch.empty(y.shape, dtype=y.dtype)
        return in_steps(lambda y: self.buffer.copy_(y).detach(), lambda gradient: gradient)(y)


@mutant("layer_norm", "dx")
class InputGradientInABufferOfTheLayer(Textbook):
    def numbers(self, x):
        if getattr(self, "buffer", None) is None:
            self.buffer = torch.empty(x.shape, dtype=x.dtype)
        return in_steps(lambda x: x.double(), lambda gradient: self.buffer.copy_(gradient).view(gradient.shape))(x)


# Form.


@mutant("batch_norm", "y", "dx dscale doffset")
class AxisAddedToRankThree(Textbook):
    def finished(self, y, x):
        y = super().finished(y, x)
        return y.unsqueeze(-1) if y.dim() == 3 else y


@mutant("layer_norm", "y")
class OutputInFloat32(Textbook):
    def finished(self, y, x):
        return super().finished(y, x.float() if x.dtype != torch.float64 else x)


# The running statistics.


@mutant("batch_norm", "running_mean", "running_variance y")
class MomentumTheOtherWayRound(Textbook):
    def decay(self, batches):
        return 1 - super().decay(batches)


@mutant("batch_norm", "running_variance", "y")
class BiasedVarianceStored(Textbook):
    def stored(self, variance, count):
        return variance


@mutant("instance_norm", "running_variance", "y")
class VarianceOfThePooledBatchStored(Textbook):
    def update(self, mean, variance, count):
        super().update(mean, variance + (mean - mean.mean(0)).square().mean(0), count)


@mutant("instance_norm", "running_mean", "running_variance y")
class StatisticsOfTheFirstSampleStored(Textbook):
    def over_batch(self, values):
        return values[0].flatten()


@mutant("batch_norm", "running_mean", "running_variance y")
class StatisticsStale(Textbook):
    def move(self, buffer, new):
        pass


@mutant("batch_norm", "running_mean", "running_variance y")
class StatisticsOfTheLastBatchOnly(Textbook):
    def decay(self, batches):
        return 0.0


@mutant("batch_norm", "running_mean", "y")
class MeanStale(Textbook):
    def move(self, buffer, new):
        if buffer is not self.running_mean:
            super().move(buffer, new)


@mutant("batch_norm", "running_mean", "running_variance batches_tracked")
class UpdatedInEvaluation(Textbook):
    def forward(self, x):
        y = super().forward(x)
        if self.takes_running():
            mean, variance = self.statistics(x.detach().double())
            self.update(mean, variance, x.numel() // mean.numel())
        return y


@mutant("batch_norm", "y", "dx dscale")
class EvaluationByTheBatch(Textbook):
    def takes_running(self):
        return False


@mutant("batch_norm", "y", f"dx dscale {STATISTICS}")
class TrainingByTheRunningStatistics(Textbook):
    def takes_running(self):
        return self.tracked


@mutant("batch_norm", "batches_tracked", f"y {STATISTICS}")
class NotCounted(Textbook):
    def count(self):
        pass


@mutant("instance_norm", "batches_tracked", f"y {STATISTICS}")
class CountedInEvaluation(Textbook):
    def forward(self, x):
        if self.tracked and not self.training:
            self.count()
        return super().forward(x)


@mutant("batch_norm", "running_mean", "running_variance y")
class CumulativeAverageOffByOne(Textbook):
    def decay(self, batches):
        return super().decay(batches + 1)


@mutant("batch_norm", "running_mean", "running_variance y")
class StoredInHalf(Textbook):
    def move(self, buffer, new):
        super().move(buffer, new)
        buffer.copy_(buffer.to(torch.bfloat16))


# Batch renormalization.

RENORM = "crossnorm.torch.batch_renorm"
RENORM_STATE = "running_standard_deviation running_variance renorm_mean renorm_standard_deviation renorm_variance"


@mutant("batch_renorm", "dx", replaces=f"{RENORM}:normalize")
def gradient_through_r_and_d(original, x, scale, offset, eps, target, limits, *kernel):
    y, mean, variance, deviation = original(x, scale, offset, eps, target, limits, *kernel)
    axes, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
    centred = x.double() - x.double().mean(axes, keepdim=True)
    own = (centred.square().mean(axes) + eps).sqrt()
    r_min, r_max, d_max = limits
    r = (own / target[1]).clamp(r_min, r_max)
    d = ((x.double().mean(axes) - target[0]) / target[1]).clamp(-d_max, d_max)
    leak = gradient_of(r).reshape(shape) * (centred / own.reshape(shape)).detach() + gradient_of(d).reshape(shape)
    leak = leak if scale is None else leak * scale.detach().reshape(shape)
    return y + leak.to(y.dtype), mean, variance, deviation


@mutant("batch_renorm", "y", "dx dscale", replaces=f"{RENORM}:corrected")
def r_clipped_from_above_only(original, scale, offset, mean, deviation, target, limits):
    return original(scale, offset, mean, deviation, target, (torch.zeros_like(limits[0]), *limits[1:]))


@mutant("batch_renorm", "y", "dx dscale", replaces=f"{RENORM}:corrected")
def d_bounded_by_r_max(original, scale, offset, mean, deviation, target, limits):
    return original(scale, offset, mean, deviation, target, (*limits[:2], limits[1]))


@mutant("batch_renorm", "y", "dx dscale", replaces=f"{RENORM}:corrected")
def r_and_d_forgotten(original, scale, offset, mean, deviation, target, limits):
    return original(scale, offset, mean, deviation, (mean, deviation), limits)


@mutant("batch_renorm", "y", "dx dscale", replaces=f"{RENORM}:_ramp")
def schedule_ignored(original, steps, batches, like):
    return original(None, batches, like)


@mutant("batch_renorm", "y", "dx dscale", replaces=f"{RENORM}:_ramp")
def schedule_one_step_ahead(original, steps, batches, like):
    return original(steps, batches + 1, like)


@mutant("batch_renorm", "y", "dx dscale", replaces=f"{RENORM}:train")
def r_and_d_from_the_updated_statistics(original, who, x, scale, offset, state, rule):
    _, new = original(who, x, scale, offset, state, rule)
    y, _ = original(who, x, scale, offset, {**new, "batches_tracked": state["batches_tracked"]}, rule)
    return y, new


@mutant("batch_renorm", "y", "dx dscale", replaces=f"{RENORM}:train")
def r_and_d_from_the_pair_of_inference(original, who, x, scale, offset, state, rule):
    _, new = original(who, x, scale, offset, state, rule)
    y, _ = original(who, x, scale, offset, state, rule._replace(renorm_decay=None))
    return y, new


@mutant("batch_renorm", "renorm_mean", f"y dx dscale {RENORM_STATE}", replaces=f"{RENORM}:train")
def one_decay_for_two_pairs(original, who, x, scale, offset, state, rule):
    decay = rule.renorm_decay and 1 - rule.momentum
    return original(who, x, scale, offset, state, rule._replace(renorm_decay=decay))


@mutant("batch_renorm", "running_standard_deviation", f"y dx dscale {RENORM_STATE}", replaces=f"{RENORM}:normalize")
def deviation_stored_without_eps(original, x, scale, offset, eps, *rest):
    y, mean, variance, deviation = original(x, scale, offset, eps, *rest)
    return y, mean, variance, (deviation.square() - eps).clamp_min(0).sqrt()


# Switchable normalization.

SWITCHABLE = "crossnorm.torch.switchable_norm"
MIXTURE = "dx dscale dmean_logits dvariance_logits"


@mutant("switchable_norm", "y", MIXTURE, replaces=f"{SWITCHABLE}:mixture")
def one_softmax_for_both(original, statistics, arrays, rule):
    shared = arrays.mean_logits + 0 * arrays.variance_logits
    return original(statistics, arrays._replace(variance_logits=shared), rule)


@mutant("switchable_norm", "y", MIXTURE, replaces=f"{SWITCHABLE}:mixture")
def weights_divided_by_their_sum(original, statistics, arrays, rule):
    # A softmax of logarithms.
    logits = {name: getattr(arrays, name) for name in ("mean_logits", "variance_logits")}
    return original(statistics, arrays._replace(**{name: value.abs().log() for name, value in logits.items()}), rule)


@mutant("switchable_norm", "y", MIXTURE, replaces=f"{SWITCHABLE}:mixture")
def logits_in_another_order(original, statistics, arrays, rule):
    rolled = {name: getattr(arrays, name).roll(1) for name in ("mean_logits", "variance_logits")}
    return original(statistics, arrays._replace(**rolled), rule)


@mutant("switchable_norm", "y", f"{MIXTURE} running_variance", replaces=f"{SWITCHABLE}:_derived")
def variance_between_the_means_forgotten(original, statistics, axis, estimator):
    distance, _ = original(statistics, axis, estimator)
    alike = statistics._replace(mean=torch.zeros_like(statistics.mean), rest=torch.zeros_like(statistics.rest))
    return distance, original(alike, axis, estimator)[1]


@mutant("switchable_norm", "y", f"{MIXTURE} running_variance", replaces=f"{SWITCHABLE}:_derived")
def another_estimator(original, statistics, axis, estimator):
    return original(statistics, axis, "biased" if estimator == "unbiased" else "unbiased")


@mutant("switchable_norm", "running_variance", "y", replaces=f"{SWITCHABLE}:updated")
def variance_never_pooled(original, running_mean, running_variance, batches, statistics, rule):
    return original(running_mean, running_variance, batches, statistics, rule._replace(pooled=False))


@mutant("switchable_norm", "dmean_logits", replaces=f"{SWITCHABLE}:normalize")
def logits_learn_nothing_of_the_mean(original, x, arrays, rule):
    return original(x, arrays._replace(mean_logits=arrays.mean_logits.detach()), rule)


# Filter response normalization.


class Response:
    """Filter response normalization in the textbook's steps."""

    def forward(self, x):
        numbers = x.double()
        positions = list(range(2, x.dim()))
        square = self.square(numbers).mean(positions, keepdim=True) if positions else self.square(numbers)
        z = numbers * (square + self.added(x)).rsqrt()
        scale, offset = (self.parameter(name, x) for name in ("weight", "bias"))
        z = z if scale is None else z * scale
        z = z if offset is None else z + offset
        threshold = self.parameter("tau", x)
        return (z if threshold is None else self.cut(z, threshold)).to(x.dtype)

    def parameter(self, name, x):
        values = getattr(self, name)
        if values is None or values.dim() != 1:
            return values
        return values.double().reshape([1, -1] + [1] * (x.dim() - 2))

    def square(self, numbers):
        return numbers.square()

    def added(self, x):
        learned = self.parameter("learned_eps", x)
        return self.eps if learned is None else self.eps + self.positive(learned)

    def positive(self, learned):
        return learned.abs()

    def cut(self, z, threshold):
        return torch.maximum(z, threshold)


RESPONSE = "dx dscale doffset dthreshold dlearned_eps"


@mutant("filter_response_norm", "y", RESPONSE)
class SignOfTheLearnedEpsKept(Response):
    def positive(self, learned):
        return learned


@mutant("filter_response_norm", "dlearned_eps")
class SignOfTheLearnedEpsLostInItsGradient(Response):
    def positive(self, learned):
        return learned + (learned.abs() - learned).detach()


@mutant("filter_response_norm", "y", RESPONSE)
class EpsReplacedByTheLearnedOne(Response):
    def added(self, x):
        return super().added(x) - (self.eps if self.learned_eps is not None else 0.0)


@mutant("filter_response_norm", "y", "dthreshold")
class ThresholdSubtracted(Response):
    def cut(self, z, threshold):
        return torch.relu(z - threshold)


@mutant("filter_response_norm", "y", RESPONSE)
class ThresholdZero(Response):
    def cut(self, z, threshold):
        return torch.maximum(z, 0 * threshold)


@mutant("filter_response_norm", "dthreshold")
class ThresholdLearnsFromEveryValue(Response):
    def cut(self, z, threshold):
        return super().cut(z, threshold) + gradient_of(threshold) * (z >= threshold)


# Weight standardization.

STANDARDIZATION = "crossnorm.torch.weight_standardization:standardize"
WEIGHT = "y dx dweight dscale"


def changed(rule, **changes):
    """A rule with other fields."""
    names = ("eps", "eps_place", "ddof", "factor", "norm_over", "iterations", "iteration_order")
    return SimpleNamespace(**{name: getattr(rule, name) for name in names if hasattr(rule, name)} | changes)


@mutant("weight_standardization", "effective_weight", WEIGHT, replaces=STANDARDIZATION)
def estimators_swapped(original, rule, rows, scale):
    return original(changed(rule, ddof=1 - rule.ddof), rows, scale)


@mutant("weight_standardization", "effective_weight", WEIGHT, replaces=STANDARDIZATION)
def columns_standardized(original, rule, rows, scale):
    effective = original(rule, rows.transpose(0, 1), None).transpose(0, 1)
    return effective if scale is None else effective * scale.reshape([-1] + [1] * (rows.dim() - 1))


@mutant("weight_standardization", "effective_weight", WEIGHT, replaces=STANDARDIZATION)
def constant_gain_forgotten(original, rule, rows, scale):
    return original(changed(rule, factor=1.0), rows, scale)


@mutant("weight_standardization", "effective_weight", WEIGHT, replaces=STANDARDIZATION)
def eps_beside_another_thing(original, rule, rows, scale):
    places = ("variance", "deviation", "maximum")
    return original(changed(rule, eps_place=places[places.index(rule.eps_place) - 1]), rows, scale)


@mutant("weight_standardization", "dweight", replaces=STANDARDIZATION)
def deviation_is_no_constant(original, rule, rows, scale):
    centred = rows - rows.mean(list(range(1, rows.dim())), keepdim=True)
    return by_a_constant(original, rule, rows, scale, centred)


def by_a_constant(original, rule, rows, scale, numerator):
    """The effective weight, whose denominator has no gradient."""
    factor = original(rule, rows.detach(), None if scale is None else scale.detach()) / numerator.detach()
    return original(rule, rows.detach(), scale) + gradient_of(numerator) * torch.nan_to_num(factor, 0.0, 0.0, 0.0)


# Spectral normalization.

SPECTRAL = "crossnorm.torch.spectral_norm"
SIGMA = "y dx dweight"


@mutant("spectral_norm", "u", f"v effective_weight {SIGMA}", replaces=f"{SPECTRAL}:iterate")
def never_iterated(original, rule, matrix, u, v, iterations):
    return original(rule, matrix, u, v, 0)


@mutant("spectral_norm", "u", f"v effective_weight {SIGMA}", replaces=f"{SPECTRAL}:iterate")
def iterated_once_more(original, rule, matrix, u, v, iterations):
    return original(rule, matrix, u, v, iterations + 1)


@mutant("spectral_norm", "u", f"v effective_weight {SIGMA}", replaces=f"{SPECTRAL}:Advance.__call__")
def iterated_in_evaluation(original, hook, module, inputs):
    training, module.training = module.training, True
    original(hook, module, inputs)
    module.training = training


@mutant("spectral_norm", "u", f"v effective_weight {SIGMA}", replaces=f"{SPECTRAL}:SpectralNorm.advance")
def u_not_stored(original, parametrization, raw):
    before = parametrization._u.clone()
    original(parametrization, raw)
    parametrization._u.copy_(before)


@mutant("spectral_norm", "v", f"u effective_weight {SIGMA}", replaces=f"{SPECTRAL}:iterate")
def vectors_in_the_other_order(original, rule, matrix, u, v, iterations):
    orders = ("v_first", "u_first")
    order = rule.iteration_order if v is None else orders[orders.index(rule.iteration_order) - 1]
    return original(changed(rule, iteration_order=order), matrix, u, v, iterations)


@mutant("spectral_norm", "dweight", replaces=f"{SPECTRAL}:divide")
def sigma_is_no_constant(original, rows, u, v):
    sigma = u @ (rows.detach().flatten(1) @ v)
    return original(rows.detach(), u, v) + gradient_of(rows) / (1 if sigma == 0 else sigma)


@mutant("spectral_norm", "dweight", replaces=f"{SPECTRAL}:divide")
def gradient_through_v(original, rows, u, v):
    product = u @ rows.flatten(1)
    length = product.norm()
    return original(rows, u, v + gradient_of(product / length) if length > 0 else v)


@mutant("spectral_norm", "effective_weight", SIGMA, replaces=f"{SPECTRAL}:divide")
def columns_in_another_order(original, rows, u, v):
    return original(rows.movedim(1, -1), u, v).movedim(-1, 1)


@mutant("spectral_norm", "effective_weight", SIGMA, replaces=f"{SPECTRAL}:divide")
def divided_by_the_frobenius_norm(original, rows, u, v):
    length = rows.norm()
    return rows / length if length > 0 else original(rows, u, v)


# Weight normalization.

WEIGHT_NORM = "crossnorm.torch.weight_norm"


@mutant("weight_norm", "effective_weight", WEIGHT, replaces=f"{WEIGHT_NORM}:scaled")
def norm_over_the_whole(original, rule, rows, scale):
    return original(changed(rule, norm_over="whole"), rows, scale)


@mutant("weight_norm", "effective_weight", WEIGHT, replaces=f"{WEIGHT_NORM}:scaled")
def sign_of_the_length_lost(original, rule, rows, scale):
    return original(rule, rows, None if scale is None else scale.abs())


@mutant("weight_norm", "effective_weight", WEIGHT, replaces=f"{WEIGHT_NORM}:scaled")
def norm_of_the_columns(original, rule, rows, scale):
    if rule.norm_over == "whole":
        return original(rule, rows, scale)
    effective = original(rule, rows.transpose(0, 1), None).transpose(0, 1)
    return effective if scale is None else effective * scale.reshape([-1] + [1] * (rows.dim() - 1))


@mutant("weight_norm", "effective_weight", WEIGHT, replaces=f"{WEIGHT_NORM}:with_eps")
def eps_in_another_place(original, norm, size, eps, place):
    return original(norm, size, eps, "added_to_square" if place == "maximum" else "maximum")


@mutant("weight_norm", "dweight", replaces=f"{WEIGHT_NORM}:scaled")
def length_is_no_constant(original, rule, rows, scale):
    return by_a_constant(original, rule, rows, scale, rows)


@mutant("weight_norm", "dscale", replaces=f"{WEIGHT_NORM}:scaled")
def length_learns_of_the_raw_direction(original, rule, rows, scale):
    effective = original(rule, rows, scale)
    if scale is None:
        return effective
    return effective + gradient_of(scale).reshape([-1] + [1] * (rows.dim() - 1)) * rows.detach()


@mutant("weight_norm", "dweight", "dscale", replaces=f"{WEIGHT_NORM}:scaled")
def zero_given_back_as_it_is(original, rule, rows, scale):
    return rows if not rows.any() else original(rule, rows, scale)


# Bad input.


@mutant("batch_norm", "state")
class StateChangedBeforeTheError:
    def forward(self, x):
        self.num_batches_tracked.add_(1)
        return super().forward(x)


@mutant("batch_norm", "exception", replaces="crossnorm.spec._base:NormSpec.__post_init__")
def any_eps_accepted(original, spec):
    return None


@mutant("group_norm", "exception", replaces="crossnorm.torch.group_norm:check_dtype")
def integers_left_to_torch(original, who, x, parameter):
    return None


@mutant("layer_norm", "exception", replaces="crossnorm.torch.layer_norm:check_normalized")
def wrong_shape_left_to_torch(original, who, x, shape):
    return None


@mutant("filter_response_norm", "exception", replaces="crossnorm.torch.filter_response_norm:check_channels")
def wrong_channels_left_to_torch(original, who, x, channels):
    return None


@mutant("batch_norm", "exception", replaces="crossnorm.torch.batch_norm:check_channels")
def exception_of_another_type(original, who, x, channels):
    if x.size(1) != channels:
        raise TypeError(f"{who}: {x.size(1)} channels")


@mutant("spectral_norm", "exception", replaces="crossnorm.torch._weight:_is_taken")
def tied_weights_accepted(original, weight):
    return False


@mutant("weight_norm", "exception", replaces="crossnorm.torch.weight_norm:reparametrize")
def a_sentence_on_two_lines(original, *arguments):
    try:
        return original(*arguments)
    except ValueError as error:
        raise type(error)(f"{error}\nSee the manual.") from None
