"""Layer normalization: the pure function and the Keras layer."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import keras
import tensorflow as tf

from crossnorm.spec import INFERENCE, LayerNormSpec, Mode

from ._arithmetic import standardize_rows
from ._base import RowLayer, Tensor, checked, normalized_axes, optional, widened


def layer_norm(
    spec: LayerNormSpec,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
    *,
    axis: int | Sequence[int] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output of layer normalization and the state, which is empty; the mode does not matter.

    The formula is that of `crossnorm.spec.LayerNormSpec`.

    Shapes: ``x`` of any rank with the sizes ``spec.shape`` along ``axis``, the last axes if None; parameters ``spec.shape``;
    the output has the shape of ``x``.

    Dtypes: any floating point. Half precision is computed in float32; the output has the dtype of ``x``.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's, an integer ``x``, or axes whose
            sizes do not fit.

    References:
        Ba, Kiros and Hinton 2016, arXiv:1607.06450, equations (3) and (4).

    >>> import crossnorm
    >>> spec = crossnorm.LayerNormSpec(shape=2, eps=0.0, scale=False, offset=False)
    >>> y, _ = layer_norm(spec, [[1.0, 3.0]], {}, {}, crossnorm.TRAIN)
    >>> y.numpy().tolist()
    [[-1.0, 1.0]]
    """
    x = checked(spec, x, parameters, state)
    axes = normalized_axes(axis, x.shape, spec.shape, "layer_norm")
    wide = widened(x)
    scale, offset = optional(parameters, wide.dtype)
    y = standardize_rows(wide, scale, offset, axes, spec.eps, centered=True, subtract_mean=spec.subtract_mean)
    return tf.cast(y, x.dtype), dict(state)


@keras.saving.register_keras_serializable(package="crossnorm")
class LayerNormalization(RowLayer, keras.layers.LayerNormalization):
    """Layer normalization: `keras.layers.LayerNormalization` that obeys `crossnorm.spec.LayerNormSpec`.

    Arguments, defaults, weights and files are those of the native layer, the deprecated ``rms_scaling=True`` included:
    it is ``LayerNormSpec(subtract_mean=False)`` without beta. ``axis`` stays what was given also after ``build``. Added, by
    keyword only:

    Args:
        subtract_mean: False keeps the mean in the numerator, as ``rms_scaling=True`` does, with any scale and offset.

    Differences from the native layer: an input with a normalized axis of size 0 is refused. A second mean is taken of the
    deviations, so that a constant row stays exact; over axis 1, forward takes 1.14 times the native layer's time for it.

    Shapes: any rank with known sizes along ``axis``.

    Raises:
        SpecError: an attribute that breaks a rule of the specification, at construction or, if it was set later, at the
            next call; an input of other sizes than the layer was built for, or of a dtype that is not floating point (the
            native layer rounds its result to an integer).

    References:
        Ba, Kiros and Hinton 2016, arXiv:1607.06450, equations (3) and (4).

    >>> import crossnorm.tensorflow, numpy as np
    >>> layer = crossnorm.tensorflow.LayerNormalization(epsilon=0.0)
    >>> layer(np.array([[1.0, 3.0]])).numpy().tolist()
    [[-1.0, 1.0]]
    """

    method: ClassVar[str] = "layer_norm"

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        *,
        subtract_mean: bool = True,
        **kwargs: Any,
    ) -> None:
        self._check_axis(axis)
        super().__init__(
            axis=axis,
            epsilon=epsilon,
            center=center,
            scale=scale,
            beta_initializer=beta_initializer,
            gamma_initializer=gamma_initializer,
            beta_regularizer=beta_regularizer,
            gamma_regularizer=gamma_regularizer,
            beta_constraint=beta_constraint,
            gamma_constraint=gamma_constraint,
            **kwargs,
        )
        self.subtract_mean = subtract_mean
        self._spec((1,))

    def _spec(self, sizes: tuple[int, ...]) -> LayerNormSpec:
        return LayerNormSpec(
            shape=sizes,
            eps=self._eps(),
            scale=bool(self.scale or self.rms_scaling),
            offset=bool(self.center and not self.rms_scaling),
            subtract_mean=self.subtract_mean and not self.rms_scaling,
        )

    @classmethod
    def from_spec(cls, spec: LayerNormSpec, *, axis: int | Sequence[int] | None = None, **keras_kwargs: Any) -> Self:
        """The layer that obeys ``spec``, over ``axis``, by default the last axes; other arguments go to Keras.

        >>> import crossnorm
        >>> LayerNormalization.from_spec(crossnorm.LayerNormSpec(shape=(4, 8))).axis
        [-2, -1]
        """
        cls._check_method(spec)
        return cls(
            axis=cls._axis_of(spec, axis),
            epsilon=spec.eps,
            center=spec.offset,
            scale=spec.scale,
            subtract_mean=spec.subtract_mean,
            **keras_kwargs,
        )._promising(spec)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = self._find_rows(input_shape)
        self._add_gamma_and_beta(shape, self.scale or self.rms_scaling, self.center and not self.rms_scaling)

    def call(self, inputs: Tensor) -> Tensor:
        y, _ = layer_norm(self.spec, inputs, self._parameters(), {}, INFERENCE, axis=self.axis)
        return tf.cast(y, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "subtract_mean": self.subtract_mean}
