"""Batch renormalization: the pure function and the Keras layer."""

import math
import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import keras
import tensorflow as tf

from crossnorm.spec import BatchRenormSpec, Mode

from ._arithmetic import Statistics
from ._base import ChannelLayer, Tensor, blended, unbiased_variance
from ._batch import State, normalize_batch


def batch_renorm(
    spec: BatchRenormSpec,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
    *,
    axis: int = -1,
    mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and new state of batch renormalization; nothing is changed in place.

    The formula is that of `crossnorm.spec.BatchRenormSpec`. The bounds of r and d are read from ``batches_tracked`` as the
    graph runs.

    Shapes: ``x`` of any rank with ``spec.channels`` entries along ``axis``; parameters and running quantities
    ``(channels,)``, ``batches_tracked`` ``()``; the output has the shape of ``x``. The batch's statistics are those of the
    positions where ``mask`` is true, if it is given; it lies on all axes of ``x`` but the last.

    Dtypes: any floating point. Half precision is computed in float32; the output has the dtype of ``x``.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's, an integer ``x``, an axis or a
            number of channels that does not fit, one value per channel if the specification says
            ``single_value="raise"``.

    References:
        Ioffe 2017, arXiv:1702.03275, Algorithm 1.

    >>> import crossnorm
    >>> spec = crossnorm.BatchRenormSpec(channels=1, eps=0.0, scale=False, offset=False, r_max_steps=None, d_max_steps=None)
    >>> state = {"running_mean": [1.0], "running_standard_deviation": [0.5], "batches_tracked": 0}
    >>> state = {name: tf.constant(value) for name, value in state.items()}
    >>> y, state = batch_renorm(spec, [[1.0], [3.0]], {}, state, crossnorm.TRAIN)
    >>> y.numpy().ravel().tolist()
    [0.0, 4.0]
    """

    def updated(old: State, batch: Statistics, count: int | Tensor) -> dict[str, Tensor]:
        kept = _kept(spec, batch, count)
        new = blended(old, {f"running_{name}": quantity for name, quantity in kept.items()}, spec.decay)
        if spec.renorm_decay is not None:
            new |= blended(old, {f"renorm_{name}": quantity for name, quantity in kept.items()}, spec.renorm_decay)
        if "running_variance" in old and "running_variance" not in new:
            variance = new["running_standard_deviation"] ** 2 - spec.eps
            new["running_variance"] = tf.cast(tf.maximum(variance, 0), old["running_variance"].dtype)
        return new

    def corrected(old: State, batch: Statistics) -> tuple[Tensor, Tensor]:
        mean, deviation = _reference_point(spec, old, batch.mean)
        r_min, r_max, d_max = (tf.cast(bound, mean.dtype) for bound in _bounds(spec, old["batches_tracked"]))
        r = tf.sqrt(batch.variance + spec.eps) / deviation
        d = (batch.mean - mean) / deviation
        return tf.clip_by_value(r, r_min, r_max), tf.clip_by_value(d, -d_max, d_max)

    return normalize_batch(spec, x, parameters, state, mode, axis, mask, updated, corrected)


def _kept(spec: BatchRenormSpec, batch: Statistics, count: int | Tensor) -> dict[str, Tensor]:
    """The batch's quantities that the running ones average."""
    if spec.running_quantity == "standard_deviation":
        return {"mean": batch.mean, "standard_deviation": tf.sqrt(batch.variance + spec.eps)}
    unbiased = spec.running_quantity == "unbiased_variance"
    return {"mean": batch.mean, "variance": unbiased_variance(batch.variance, count) if unbiased else batch.variance}


def _reference_point(spec: BatchRenormSpec, state: State, like: Tensor) -> tuple[Tensor, Tensor]:
    """The running mean and standard deviation towards which the batch's are corrected, in dtype and shape of ``like``."""
    pair = "running" if spec.renorm_decay is None else "renorm"
    deviation = spec.running_quantity == "standard_deviation"
    names = f"{pair}_mean", f"{pair}_{'standard_deviation' if deviation else 'variance'}"
    mean, spread = (tf.reshape(tf.cast(state[name], like.dtype), tf.shape(like)) for name in names)
    return mean, tf.maximum(spread, math.sqrt(spec.eps)) if deviation else tf.sqrt(tf.maximum(spread, 0) + spec.eps)


def _bounds(spec: BatchRenormSpec, batches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`BatchRenormSpec.bounds` as scalar tensors of float64: r_min, r_max and d_max after so many batches."""

    def ramp(steps: tuple[int, int] | None) -> Tensor:
        if steps is None:
            return tf.ones((), tf.float64)
        first, last = steps
        done = tf.cast(batches - first, tf.float64) / max(last - first, 1)
        return tf.where(batches >= last, tf.ones((), tf.float64), tf.clip_by_value(done, 0, 1))

    infinite = tf.constant(math.inf, tf.float64)
    r_ramp = ramp(spec.r_max_steps)
    r_max = infinite if spec.r_max is None else 1 + (spec.r_max - 1) * r_ramp
    r_min = 1 / r_max if spec.r_min is None else 1 + (spec.r_min - 1) * r_ramp
    return r_min, r_max, infinite if spec.d_max is None else spec.d_max * ramp(spec.d_max_steps)


@keras.saving.register_keras_serializable(package="crossnorm")
class BatchRenormalization(ChannelLayer, keras.layers.Layer):
    """Batch renormalization: a Keras layer that obeys `crossnorm.spec.BatchRenormSpec`, by default as in the paper.

    `keras.layers.BatchNormalization` has it too, as ``renorm=True``, in one variant and without a schedule; our
    `BatchNormalization` is its drop-in replacement.

    Args:
        axis: the channel axis, not 0, which is the batch.
        momentum: the weight of the old moving quantity; None is the plain average of all batches.
        epsilon: added to the variance, inside the root.
        center: whether the offset ``beta`` is learned.
        scale: whether the scale ``gamma`` is learned.
        beta_initializer, gamma_initializer, moving_mean_initializer, moving_variance_initializer: of the weights; a standard
            deviation starts at the root of the variance, the second pair like the first.
        beta_regularizer, gamma_regularizer, beta_constraint, gamma_constraint: of the parameters.
        renorm_decay: a number keeps a second pair of moving quantities, ``renorm_mean`` and ``renorm_stddev`` or
            ``renorm_variance``, with this weight of the old ones; r and d then come from it.
        running_quantity: what is kept beside the mean: ``"standard_deviation"`` in ``moving_stddev``, or
            ``"biased_variance"`` or ``"unbiased_variance"`` in ``moving_variance``.
        r_max, r_min, d_max: the bounds of r and d; None is no bound, for ``r_min`` it is ``1 / r_max``.
        r_max_steps, d_max_steps: the updates between which a bound relaxes; None: it holds from the start. They are counted by
            the weight ``batches_tracked``.
        single_value: what training does with one value per channel: ``"raise"``, or ``"zero"``: xhat = 0. Where the number of
            values is known only to the graph, that is an assertion, an ``InvalidArgumentError`` as it runs. XLA drops
            assertions: compiled by it, y is NaN and the moving quantities stay.

        mask: an argument of the call: the batch's statistics are over the positions where it is true; where it is true
            nowhere, mean and variance are 0, and the moving quantities move towards those of a constant 0.

    With ``r_max=1, d_max=0`` outputs and gradients in training are those of our `BatchNormalization` bit for bit, and with a
    variance as the running quantity also its moving statistics and inference.

    Speed, against our `BatchNormalization` on one processor thread in float32 (16x56x56x64, training, in `tf.function`): the
    same time forward, with the gradient 1.0 times channels last and up to 1.08 times channels first.

    Shapes: rank 2 or more, the batch first, with a known size along ``axis``.

    Dtypes: any floating point; half precision is computed in float32.

    Raises:
        SpecError: an attribute that breaks a rule of the specification, bounds that exclude r = 1 or d = 0 among them, at
            construction or, if it was set later, at the next call; an input of another shape than the layer was built for, or
            of a dtype that is not floating point.

    References:
        Ioffe 2017, arXiv:1702.03275, Algorithm 1 and section 4 (the schedule).

    >>> import crossnorm.tensorflow, numpy as np
    >>> layer = crossnorm.tensorflow.BatchRenormalization(epsilon=0.0, momentum=1.0, r_max=4.0, r_max_steps=(0, 2))
    >>> [layer(np.array([[-8.0], [8.0]]), training=True).numpy().ravel().tolist() for step in range(3)]
    [[-1.0, 1.0], [-2.5, 2.5], [-4.0, 4.0]]
    """

    method: ClassVar[str] = "batch_renorm"

    def __init__(
        self,
        axis: int = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        *,
        renorm_decay: float | None = None,
        running_quantity: Literal["standard_deviation", "biased_variance", "unbiased_variance"] = "standard_deviation",
        r_max: float | None = 3.0,
        r_min: float | None = None,
        d_max: float | None = 5.0,
        r_max_steps: tuple[int, int] | None = (5_000, 40_000),
        d_max_steps: tuple[int, int] | None = (5_000, 25_000),
        single_value: Literal["raise", "zero"] = "raise",
        **kwargs: Any,
    ) -> None:
        self._check_axis(axis)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.axis = operator.index(axis)
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self._take_options(
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
        )
        self.renorm_decay = renorm_decay
        self.running_quantity = running_quantity
        self.r_max = r_max
        self.r_min = r_min
        self.d_max = d_max
        # A file has lists.
        self.r_max_steps, self.d_max_steps = (tuple(s) if isinstance(s, list) else s for s in (r_max_steps, d_max_steps))
        self.single_value = single_value
        self._spec((1,))

    def _spec(self, sizes: tuple[int, ...]) -> BatchRenormSpec:
        return BatchRenormSpec(
            channels=sizes[0],
            eps=self.epsilon,
            scale=bool(self.scale),
            offset=bool(self.center),
            decay=self.momentum,
            **{name: getattr(self, name) for name in _OWN_WORDS},
        )

    @classmethod
    def from_spec(cls, spec: BatchRenormSpec, *, axis: int = -1, **keras_kwargs: Any) -> Self:
        """The layer that obeys ``spec``, with the channels along ``axis``; other arguments go to Keras.

        >>> import crossnorm
        >>> BatchRenormalization.from_spec(crossnorm.BatchRenormSpec(channels=8, renorm_decay=0.9)).renorm_decay
        0.9
        """
        cls._check_method(spec)
        return cls(
            axis=axis,
            momentum=spec.decay,
            epsilon=spec.eps,
            center=spec.offset,
            scale=spec.scale,
            **{name: getattr(spec, name) for name in _OWN_WORDS},
            **keras_kwargs,
        )._promising(spec)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = self._find_channels(input_shape, minimum_rank=2)
        self._add_gamma_and_beta(shape, self.scale, self.center)
        self._add_moving_statistics(shape)

    def _counts_batches(self) -> bool:
        """The schedule counts, and may be set later."""
        return True

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        x, mode = tf.cast(inputs, keras.backend.result_type(inputs.dtype, "float32")), self._mode(training)
        y, state = batch_renorm(self.spec, x, self._parameters(), self._state(), mode, axis=self.axis, mask=mask)
        if mode.update_running:
            self._assign(state)
        return tf.cast(y, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        plain = ("axis", "momentum", "epsilon", "center", "scale", *_OWN_WORDS)
        return {**super().get_config(), **{name: getattr(self, name) for name in plain}, **self._serialized_options()}


# The attributes that are named as in the specification.
_OWN_WORDS = (
    "renorm_decay",
    "running_quantity",
    "r_max",
    "r_min",
    "d_max",
    "r_max_steps",
    "d_max_steps",
    "single_value",
)
