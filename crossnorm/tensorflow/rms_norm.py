"""Root mean square normalization: the pure function and the Keras layer."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import keras
import tensorflow as tf

from crossnorm.spec import INFERENCE, Mode, RMSNormSpec

from ._arithmetic import standardize_rows
from ._base import RowLayer, Tensor, checked, normalized_axes, optional, widened


def rms_norm(
    spec: RMSNormSpec,
    x: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
    *,
    axis: int | Sequence[int] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output of root mean square normalization and the state, which is empty; the mode does not matter.

    The formula is that of `crossnorm.spec.RMSNormSpec`.

    Shapes: ``x`` of any rank with the sizes ``spec.shape`` along ``axis``, the last axes if None; scale ``spec.shape``; the
    output has the shape of ``x``.

    Dtypes: any floating point. Half precision is computed in float32; the output has the dtype of ``x``.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's, an integer ``x``, or axes whose
            sizes do not fit.

    References:
        Zhang and Sennrich 2019, arXiv:1910.07467, equation (4).

    >>> import crossnorm
    >>> y, _ = rms_norm(crossnorm.RMSNormSpec(shape=2, eps=0.0, scale=False), [[3.0, 3.0]], {}, {}, crossnorm.TRAIN)
    >>> y.numpy().tolist()
    [[1.0, 1.0]]
    """
    x = checked(spec, x, parameters, state)
    axes = normalized_axes(axis, x.shape, spec.shape, "rms_norm")
    wide = widened(x)
    scale, _ = optional(parameters, wide.dtype)
    y = standardize_rows(wide, scale, None, axes, spec.eps, centered=False, subtract_mean=False)
    return tf.cast(y, x.dtype), dict(state)


@keras.saving.register_keras_serializable(package="crossnorm")
class RMSNormalization(RowLayer, keras.layers.RMSNormalization):
    """Root mean square normalization: `keras.layers.RMSNormalization` that obeys `crossnorm.spec.RMSNormSpec`.

    Arguments, defaults, weights and files are those of the native layer. Added, by keyword only:

    Args:
        use_scale: False leaves out the weight ``scale``.

    Differences from the native layer: a mask that comes with the input is passed on (there it is lost with a warning), and
    under a mixed policy the scale is used in its own float32 (there it is rounded to half precision first). An input
    with a normalized axis of size 0 is refused. ``axis`` stays what was given also after ``build``.

    Shapes: any rank with known sizes along ``axis``.

    Raises:
        SpecError: an attribute that breaks a rule of the specification, at construction or, if it was set later, at the
            next call; an input of other sizes than the layer was built for, or of a dtype that is not floating point (the
            native layer rounds its result to an integer).

    References:
        Zhang and Sennrich 2019, arXiv:1910.07467, equation (4).

    >>> import crossnorm.tensorflow, numpy as np
    >>> layer = crossnorm.tensorflow.RMSNormalization(epsilon=0.0)
    >>> layer(np.array([[3.0, 3.0]])).numpy().tolist()
    [[1.0, 1.0]]
    """

    method: ClassVar[str] = "rms_norm"

    def __init__(self, axis: int | Sequence[int] = -1, epsilon: float = 1e-6, *, use_scale: bool = True, **kwargs: Any) -> None:
        self._check_axis(axis)
        super().__init__(axis=axis, epsilon=epsilon, **kwargs)
        self.use_scale = use_scale
        self.supports_masking = True
        self._spec((1,))

    def _spec(self, sizes: tuple[int, ...]) -> RMSNormSpec:
        return RMSNormSpec(shape=sizes, eps=self._eps(), scale=self.use_scale)

    @classmethod
    def from_spec(cls, spec: RMSNormSpec, *, axis: int | Sequence[int] | None = None, **keras_kwargs: Any) -> Self:
        """The layer that obeys ``spec``, over ``axis``, by default the last axes; other arguments go to Keras.

        >>> import crossnorm
        >>> RMSNormalization.from_spec(crossnorm.RMSNormSpec(shape=8, eps=1e-6)).epsilon
        1e-06
        """
        cls._check_method(spec)
        axis = cls._axis_of(spec, axis)
        return cls(axis=axis, epsilon=spec.eps, use_scale=spec.scale, **keras_kwargs)._promising(spec)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = self._find_rows(input_shape)
        self.scale = self.add_weight(name="scale", shape=shape, initializer="ones", autocast=False) if self.use_scale else None

    def _parameters(self) -> dict[str, Tensor]:
        return {"scale": self.scale.value} if self.use_scale and self.scale is not None else {}

    def call(self, x: Tensor) -> Tensor:
        y, _ = rms_norm(self.spec, x, self._parameters(), {}, INFERENCE, axis=self.axis)
        return tf.cast(y, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "use_scale": self.use_scale}
