"""Batch normalization: the pure function and the Keras layer."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import keras
import tensorflow as tf

from crossnorm.errors import Unsupported
from crossnorm.spec import BatchNormSpec, BatchRenormSpec, Mode

from ._arithmetic import Statistics
from ._base import CallError, ChannelLayer, Tensor, update_running
from ._batch import State, normalize_batch
from .batch_renorm import batch_renorm


def batch_norm(
    spec: BatchNormSpec,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
    *,
    axis: int = -1,
    mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and new state of batch normalization; nothing is changed in place.

    The formula is that of `crossnorm.spec.BatchNormSpec`.

    Shapes: ``x`` of any rank with ``spec.channels`` entries along ``axis``; parameters and running statistics
    ``(channels,)``, ``batches_tracked`` ``()``; the output has the shape of ``x``. The batch's statistics are those of the
    positions where ``mask`` is true, if it is given; it lies on all axes of ``x`` but the last.

    Dtypes: any floating point. Half precision is computed in float32; the output has the dtype of ``x``.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's, an integer ``x``, an axis or a
            number of channels that does not fit, one value per channel if the specification says
            ``single_value="raise"``.

    References:
        Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2.

    >>> import crossnorm
    >>> spec = crossnorm.BatchNormSpec(channels=1, eps=0.0, scale=False, offset=False, tracked=False)
    >>> y, _ = batch_norm(spec, [[1.0], [3.0]], {}, {}, crossnorm.TRAIN)
    >>> y.numpy().ravel().tolist()
    [-1.0, 1.0]
    """

    def updated(old: State, batch: Statistics, count: int | Tensor) -> dict[str, Tensor]:
        unbiased = spec.running_variance == "unbiased"
        return update_running(spec, old, batch.mean, batch.variance, count, unbiased, unchanged=False)

    return normalize_batch(spec, x, parameters, state, mode, axis, mask, updated)


@keras.saving.register_keras_serializable(package="crossnorm")
class BatchNormalization(ChannelLayer, keras.layers.BatchNormalization):
    """Batch normalization: `keras.layers.BatchNormalization` that obeys `crossnorm.spec.BatchNormSpec`.

    Arguments, defaults, weights and files are those of the native layer. Added, by keyword only:

    Args:
        running_variance: the estimator that is stored: ``"biased"`` as in Keras, or ``"unbiased"`` as in torch.
        single_value: what training does with one value per channel: ``"zero"``: y = beta, variance 0, or ``"raise"``.
        track_running_stats: False keeps no moving statistics: every mode uses the batch's own.
        momentum: may be None as well: the moving statistics are the plain average of all batches, counted by the
            weight ``batches_tracked``, which no other layer has.

        mask: an argument of the call, as in Keras: the batch's statistics are over the positions where it is true; where it is
            true nowhere, mean and variance are 0, and the moving statistics move towards 0.

    Where the number of values is known only to the graph, ``single_value="raise"`` is an assertion, an
    ``InvalidArgumentError`` as it runs. XLA drops assertions: compiled by it, y is NaN and the moving statistics stay.

    Differences from the native layer: an empty batch keeps the moving statistics (there they become NaN for good);
    deviations from the mean are formed first (there, channels of large mean lose up to 3,000 rounding units); the positions
    of a mask are counted as they are, at least 1 (there, Keras' global epsilon is added to their number);
    an input without channels is refused. What is
    computed in half precision there is computed in float32 in both. ``synchronized=True`` runs the native code.

    ``renorm=True`` is batch renormalization with Keras' conventions; `spec` is then a `crossnorm.spec.BatchRenormSpec` with two
    pairs of running quantities and no schedule. Weights and files stay the native ones. A ``renorm_clipping`` that excludes
    r = 1 or d = 0 is refused (Keras takes it). `BatchRenormalization` has the other conventions.

    Speed, against the native layer on one processor thread in float32: training channels last 1.1 times its time forward and
    0.9 with the gradient, channels first 0.6; the second look at the mean buys that 100,000 values at an offset of 10,000 keep
    their statistics within two rounding units, where the native is off by millions. Inference takes the same time; a gradient
    through it 1.1 times, because the gradient of gamma uses deviations from the mean.

    Shapes: any rank with a known size along ``axis``.

    Raises:
        SpecError: an attribute that breaks a rule of the specification, at construction or, if it was set later, at the
            next call; an input of another shape than the layer was built for, or of a dtype that is not floating point
            (the native layer casts integers).

    References:
        Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithms 1 and 2.

    >>> import crossnorm.tensorflow, numpy as np
    >>> layer = crossnorm.tensorflow.BatchNormalization(epsilon=0.0, momentum=0.5)
    >>> layer(np.array([[1.0], [3.0]]), training=True).numpy().ravel().tolist()
    [-1.0, 1.0]
    >>> layer.moving_mean.numpy().tolist(), layer.spec.decay
    ([1.0], 0.5)
    """

    method: ClassVar[str] = "batch_norm"

    def __init__(
        self,
        axis: int = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-3,
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
        renorm: bool = False,
        renorm_clipping: Any = None,
        renorm_momentum: float = 0.99,
        synchronized: bool = False,
        *,
        running_variance: Literal["biased", "unbiased"] = "biased",
        single_value: Literal["raise", "zero"] = "zero",
        track_running_stats: bool = True,
        **kwargs: Any,
    ) -> None:
        self._check_axis(axis)
        self._check_number("epsilon", epsilon)
        self._check_number("momentum", 0.99 if momentum is None else momentum)
        if renorm:
            BatchRenormSpec(channels=1, **self._bounds(renorm_clipping))
        super().__init__(
            axis=axis,
            momentum=0.99 if momentum is None else momentum,
            epsilon=epsilon,
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            moving_mean_initializer=moving_mean_initializer,
            moving_variance_initializer=moving_variance_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            renorm=renorm,
            renorm_clipping=renorm_clipping,
            renorm_momentum=renorm_momentum,
            synchronized=synchronized,
            **kwargs,
        )
        if momentum is None:
            self.momentum = None
        self.running_variance = running_variance
        self.single_value = single_value
        self.track_running_stats = track_running_stats
        self._spec((1,))
        ours = (momentum, running_variance, single_value, track_running_stats)
        if self.synchronized and (None in ours or ours[1:] != ("biased", "zero", True)):
            raise Unsupported(
                "BatchNormalization: synchronized=True runs Keras' own code, which knows no momentum=None, "
                "running_variance=, single_value= or track_running_stats=; leave them at their defaults"
            )
        if self.renorm and (running_variance, track_running_stats) != ("biased", True):
            raise Unsupported(
                f"BatchNormalization: renorm=True keeps standard deviations, so running_variance={running_variance!r} and "
                f"track_running_stats={track_running_stats!r} mean nothing; leave them out, or use BatchRenormalization"
            )

    @classmethod
    def _bounds(cls, clipping: Any) -> dict[str, Any]:
        """Keras' ``renorm_clipping`` as fields of the specification."""
        clipping = clipping or {}
        if not isinstance(clipping, Mapping) or set(clipping) - {"rmax", "rmin", "dmax"}:
            raise CallError(
                f"{cls.__name__}: renorm_clipping={clipping!r} is no dictionary with keys among 'rmax', 'rmin' and 'dmax'; "
                "leave out the bounds that are not wanted"
            )
        r_max, r_min, d_max = map(clipping.get, ("rmax", "rmin", "dmax"))
        free = 0.0 if r_min is None else r_min
        return {"r_max": r_max, "r_min": free, "d_max": d_max, "r_max_steps": None, "d_max_steps": None}

    def _spec(self, sizes: tuple[int, ...]) -> BatchNormSpec | BatchRenormSpec:
        shared = {
            "channels": sizes[0],
            "eps": self.epsilon,
            "scale": bool(self.scale),
            "offset": bool(self.center),
            "decay": self.momentum,
            "single_value": self.single_value,
        }
        if not self.renorm:
            return BatchNormSpec(running_variance=self.running_variance, tracked=self.track_running_stats, **shared)
        return BatchRenormSpec(renorm_decay=self.renorm_momentum, **self._bounds(self.renorm_clipping), **shared)

    @classmethod
    def from_spec(cls, spec: BatchNormSpec, *, axis: int = -1, **keras_kwargs: Any) -> Self:
        """The layer that obeys ``spec``, with the channels along ``axis``; other arguments go to Keras.

        >>> import crossnorm
        >>> BatchNormalization.from_spec(crossnorm.preset("torch", "batch_norm", channels=8)).momentum
        0.9
        """
        cls._check_method(spec)
        return cls(
            axis=axis,
            momentum=spec.decay,
            epsilon=spec.eps,
            center=spec.offset,
            scale=spec.scale,
            running_variance=spec.running_variance,
            single_value=spec.single_value,
            track_running_stats=spec.tracked,
            **keras_kwargs,
        )._promising(spec)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = self._find_channels(input_shape, minimum_rank=1)
        if self.synchronized:
            super().build(input_shape)
            return
        self._add_gamma_and_beta(shape, self.scale, self.center)
        if self.track_running_stats:
            self._add_moving_statistics(shape)

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        if self.synchronized:
            return super().call(inputs, training=training, mask=mask)
        x, mode = tf.cast(inputs, keras.backend.result_type(inputs.dtype, "float32")), self._mode(training)
        normalize = batch_renorm if self.renorm else batch_norm
        y, state = normalize(self.spec, x, self._parameters(), self._state(), mode, axis=self.axis, mask=mask)
        if mode.update_running:
            self._assign(state)
        return tf.cast(y, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        ours = {name: getattr(self, name) for name in ("running_variance", "single_value", "track_running_stats")}
        return {**super().get_config(), **ours}
