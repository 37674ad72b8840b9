"""Switchable normalization: the pure function and the Keras layer."""

import operator
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import keras
import tensorflow as tf

from crossnorm.spec import Mode, SwitchableNormSpec

from ._arithmetic import Statistics, channel_view, values_per_channel
from ._base import ChannelLayer, Tensor, blended, channel_axis, checked, old_and_new_weight, unless, widened
from ._mixture import instance_moments, mix, scale_and_shift


def switchable_norm(
    spec: SwitchableNormSpec,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
    *,
    axis: int = -1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and new state of switchable normalization; nothing is changed in place.

    The formula is that of `crossnorm.spec.SwitchableNormSpec`.

    Shapes: ``x`` of rank 2 or more, the batch first, with ``spec.channels`` entries along ``axis``; scale, offset and running
    statistics ``(channels,)``, the logits one for each of ``spec.statistics``, ``batches_tracked`` ``()``; the output has the
    shape of ``x``.

    Dtypes: any floating point. Half precision is computed in float32; the output has the dtype of ``x``.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's, an integer ``x``, an axis or a
            number of channels that does not fit.

    References:
        Luo, Ren, Peng, Zhang and Li 2018, arXiv:1806.10779, equations (3) to (5).

    >>> import crossnorm
    >>> spec = crossnorm.SwitchableNormSpec(channels=1, eps=0.0, scale=False, offset=False, use_batch=False)
    >>> logits = {"mean_logits": tf.ones(2), "variance_logits": tf.ones(2)}
    >>> y, _ = switchable_norm(spec, [[[1.0], [3.0]]], logits, {}, crossnorm.TRAIN)
    >>> y.numpy().ravel().tolist()
    [-1.0, 1.0]
    """
    x = checked(spec, x, parameters, state)
    axis = channel_axis(axis, x.shape, spec.channels, 2, "switchable_norm")
    view = channel_view(widened(x), axis, instances=True)
    cast = {name: tf.cast(value, view.dtype) for name, value in parameters.items()}
    old = {name: tf.convert_to_tensor(value) for name, value in state.items()}
    running = None
    if spec.use_batch and not mode.use_batch_statistics:
        running = Statistics(*(tf.cast(old[name], view.dtype) for name in ("running_mean", "running_variance")))
    instances = instance_moments(view)
    factor, term, batch = mix(spec, values_per_channel(view), instances, cast, running)
    y = scale_and_shift(instances.deviation, factor, term)
    new = dict(old)
    if batch is not None and mode.update_running:
        empty = values_per_channel(view) * (x.shape[0] or tf.shape(x)[0]) == 0
        new = unless(empty, old, _updated(spec, old, Statistics(*map(tf.stop_gradient, batch))))
    return tf.cast(tf.reshape(y, tf.shape(x)), x.dtype), new


def _updated(spec: SwitchableNormSpec, old: Mapping[str, Tensor], batch: Statistics) -> dict[str, Tensor]:
    variance = batch.variance
    if spec.pooled:
        keep, _ = old_and_new_weight(spec.decay, old["batches_tracked"] + 1, variance.dtype)
        variance = variance + keep * (batch.mean - tf.cast(old["running_mean"], variance.dtype)) ** 2
    return blended(old, {"running_mean": batch.mean, "running_variance": variance}, spec.decay)


@keras.saving.register_keras_serializable(package="crossnorm")
class SwitchableNormalization(ChannelLayer, keras.layers.Layer):
    """Switchable normalization: a Keras layer, which Keras itself lacks, that obeys `crossnorm.spec.SwitchableNormSpec`.

    The weights ``mean_logits`` and ``variance_logits`` have one entry for each statistic that is mixed, in the order instance,
    layer, batch.

    Args:
        axis: the channel axis, not 0, which is the batch.
        momentum: the weight of the old moving statistic; None is the plain average of all batches, counted by the weight
            ``batches_tracked``.
        epsilon: added to the mixed variance, inside the root.
        center: whether the offset ``beta`` is learned.
        scale: whether the scale ``gamma`` is learned.
        beta_initializer, mean_logits_initializer, variance_logits_initializer, moving_mean_initializer: of the weights.
        gamma_initializer: None is what ``last_gamma`` says.
        moving_variance_initializer: None is the constant ``initial_variance``.
        beta_regularizer, gamma_regularizer, mean_logits_regularizer, variance_logits_regularizer: of the parameters.
        beta_constraint, gamma_constraint, mean_logits_constraint, variance_logits_constraint: of the parameters.
        use_instance: whether the instance's statistics are in the mixture.
        use_batch: whether the batch's are, which inference replaces by the moving statistics; without them there are none.
        variance: the estimator: ``"biased"``, ``"unbiased"`` for every variance, or ``"unbiased_instance"`` as the authors',
            where layer and batch derive theirs from the instances' unbiased ones.
        pooled: whether the moving variance is that of all batches together instead of the average of theirs.
            ``momentum=None, pooled=True`` is the authors' sum-and-average mode.
        initial_variance: where the moving variance starts.
        last_gamma: ``gamma`` starts at 0: the last normalization of a residual branch.

    Shapes: rank 2 or more, the batch first, with a known size along ``axis``.

    Dtypes: any floating point; half precision is computed in float32.

    Raises:
        SpecError: an attribute that breaks a rule of the specification, at construction or, if it was set later, at the
            next call; an input of another shape than the layer was built for, or of a dtype that is not floating point.

    References:
        Luo, Ren, Peng, Zhang and Li 2018, arXiv:1806.10779, equations (3) to (5).

    >>> import crossnorm.tensorflow, numpy as np
    >>> layer = crossnorm.tensorflow.SwitchableNormalization(epsilon=0.0, momentum=0.5)
    >>> layer(np.array([[[1.0], [3.0]]]), training=True).numpy().ravel().tolist()
    [-1.0, 1.0]
    >>> layer.moving_mean.numpy().tolist(), layer.mean_logits.numpy().tolist(), layer.spec.statistics
    ([1.0], [1.0, 1.0, 1.0], ('instance', 'layer', 'batch'))
    """

    method: ClassVar[str] = "switchable_norm"

    def __init__(
        self,
        axis: int = -1,
        momentum: float | None = 0.9,
        epsilon: float = 1e-5,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = None,
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = None,
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        *,
        use_instance: bool = True,
        use_batch: bool = True,
        variance: Literal["biased", "unbiased_instance", "unbiased"] = "biased",
        pooled: bool = False,
        initial_variance: float = 1.0,
        last_gamma: bool = False,
        mean_logits_initializer: Any = "ones",
        mean_logits_regularizer: Any = None,
        mean_logits_constraint: Any = None,
        variance_logits_initializer: Any = "ones",
        variance_logits_regularizer: Any = None,
        variance_logits_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        self._check_axis(axis)
        super().__init__(**kwargs)
        self.supports_masking = True
        self.autocast = False
        self.axis = operator.index(axis)
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.use_instance = use_instance
        self.use_batch = use_batch
        self.variance = variance
        self.pooled = pooled
        self.initial_variance = initial_variance
        self.last_gamma = last_gamma
        self._spec((1,))
        self._take_options(
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer or ("zeros" if last_gamma else "ones"),
            mean_logits_initializer=mean_logits_initializer,
            variance_logits_initializer=variance_logits_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer or keras.initializers.Constant(initial_variance),
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            mean_logits_regularizer=mean_logits_regularizer,
            variance_logits_regularizer=variance_logits_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            mean_logits_constraint=mean_logits_constraint,
            variance_logits_constraint=variance_logits_constraint,
        )

    def _spec(self, sizes: tuple[int, ...]) -> SwitchableNormSpec:
        return SwitchableNormSpec(
            channels=sizes[0],
            eps=self.epsilon,
            scale=bool(self.scale),
            offset=bool(self.center),
            decay=self.momentum,
            **{name: getattr(self, name) for name in _OWN_WORDS},
        )

    @classmethod
    def from_spec(cls, spec: SwitchableNormSpec, *, axis: int = -1, **keras_kwargs: Any) -> Self:
        """The layer that obeys ``spec``, with the channels along ``axis``; other arguments go to Keras.

        >>> import crossnorm
        >>> SwitchableNormalization.from_spec(crossnorm.SwitchableNormSpec(channels=8, use_batch=False)).use_batch
        False
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
        spec = self._spec(self._find_channels(input_shape, minimum_rank=2))
        self._add_gamma_and_beta(spec.parameter_shape, self.scale, self.center)
        logits = (len(spec.statistics),)
        self.mean_logits = self._add_parameter("mean_logits", logits)
        self.variance_logits = self._add_parameter("variance_logits", logits)
        if spec.state:
            self._add_moving_statistics(spec.parameter_shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        mode = self._mode(training)
        y, state = switchable_norm(self.spec, inputs, self._parameters(), self._state(), mode, axis=self.axis)
        if mode.update_running:
            self._assign(state)
        return tf.cast(y, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        plain = ("axis", "momentum", "epsilon", "center", "scale", *_OWN_WORDS)
        return {**super().get_config(), **{name: getattr(self, name) for name in plain}, **self._serialized_options()}


# The attributes that are named as in the specification.
_OWN_WORDS = ("use_instance", "use_batch", "variance", "pooled", "initial_variance", "last_gamma")
