"""Weight standardization: the pure function and the Keras wrapper."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import keras
import tensorflow as tf

from crossnorm.spec import Mode, WeightStandardizationSpec

from ._base import Tensor
from ._norms import centred, norm, with_eps
from ._weight import WeightWrapper, reparametrized


def _effective(
    spec: WeightStandardizationSpec,
    rows: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    deviations, _ = centred(rows, (0, 2))
    deviation = norm(deviations, (0, 2)) / tf.sqrt(tf.constant(max(spec.columns - spec.ddof, 1), rows.dtype))
    if spec.eps_place == "deviation":
        denominator = deviation + spec.eps
    elif spec.eps_place == "maximum":
        denominator = with_eps(deviation, spec.eps / spec.columns, "maximum_of_square")
    else:
        denominator = with_eps(deviation, spec.eps, "added_to_square")
    # Without an eps, a row of equal numbers would be 0 / 0.
    standardized = deviations / tf.where(tf.equal(denominator, 0), tf.ones_like(denominator), denominator)
    factor = tf.constant(spec.factor, rows.dtype)
    return standardized * (parameters["scale"][None, :, None] * factor if spec.scale else factor), {}


def weight_standardization(
    spec: WeightStandardizationSpec,
    weight: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Effective weight of weight standardization and the state, which is empty; the mode does not matter.

    The formula is that of `crossnorm.spec.WeightStandardizationSpec`.

    Shapes: ``weight`` and the effective weight ``spec.shape``, rows first; scale (rows,).

    Dtypes: any floating point. Half precision is computed in float32; the effective weight has the dtype of ``weight``.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's, a weight of another shape or of
            integers.

    References:
        Qiao, Wang, Liu, Shen and Yuille 2019, arXiv:1903.10520, equations (2) and (3).

    >>> import crossnorm
    >>> spec = crossnorm.WeightStandardizationSpec(shape=(1, 2), eps=0.0)
    >>> weight_standardization(spec, [[1.0, 5.0]], {}, {}, crossnorm.TRAIN)[0].numpy().tolist()
    [[-1.0, 1.0]]
    """
    return reparametrized(_effective, spec, weight, parameters, state, mode)


@keras.saving.register_keras_serializable(package="crossnorm")
class WeightStandardization(WeightWrapper):
    """Weight standardization: a wrapper that runs a layer with a kernel whose rows are standardised.

    The formula is that of `crossnorm.spec.WeightStandardizationSpec`. The wrapped layer's own kernel stays raw; it is what is
    trained, saved, regularised and constrained. `effective_weight` shows what the layer computes with.

    Args:
        layer: dense, convolutional (transposed, depthwise and separable too), an embedding, a recurrent layer, or any other
            whose kernel has the outputs on its last axis.
        kernel: the name of the weight to standardise, or several; None for all kernels that the layer has.
        epsilon, eps_place: what keeps the denominator from 0, and where.
        scale: whether each row has a learned gain.
        ddof: what the divisor of the variance lacks: 0 or 1.
        gain: the activation function's constant. It is kept as the attribute ``constant_gain``.
        fan_in_scaling: whether the effective weight is divided by the root of the fan-in.
        transposed_row, depthwise_row, embedding_row: what a row is, see `crossnorm.spec.WeightSpec`.
        **kwargs: go to Keras: ``name``, ``dtype`` (by default that of the layer).

    Attributes: ``gain``, the learned one of shape (rows,), None without ``scale``; ``spec``. With several kernels both are
    dictionaries by the kernels' names.

    Shapes, dtypes: those of the wrapped layer. The kernel is standardised in at least float32, whatever the policy.

    Raises:
        SpecError: an argument that breaks a rule of the specification; a layer without the kernel, or whose kernel is wrapped
            already; an attribute asked for before the layer is built.
        Unsupported: a layer with LoRA, quantized, or made in a RematScope.

    References:
        Qiao, Wang, Liu, Shen and Yuille 2019, arXiv:1903.10520, equations (2) and (3); Brock, De and Smith 2021,
        arXiv:2101.08692, equation (1) for the scaled variant.

    >>> import crossnorm.tensorflow, keras, numpy as np
    >>> layer = crossnorm.tensorflow.WeightStandardization(keras.layers.Conv2D(4, 3), scale=True)
    >>> layer(np.ones((1, 5, 5, 2))).shape, layer.gain.shape
    (TensorShape([1, 3, 3, 4]), TensorShape([4]))
    >>> bool(abs(layer.effective_weight().numpy().mean()) < 1e-6)
    True
    """

    method: ClassVar[str] = "weight_standardization"
    _compute = staticmethod(_effective)

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        kernel: str | Sequence[str] | None = None,
        epsilon: float = 1e-5,
        scale: bool = False,
        ddof: Literal[0, 1] = 0,
        eps_place: Literal["variance", "deviation", "maximum"] = "variance",
        gain: float = 1.0,
        fan_in_scaling: bool = False,
        transposed_row: Literal["output", "input"] = "output",
        depthwise_row: Literal["output", "multiplier"] = "output",
        embedding_row: Literal["output", "input"] = "output",
        **kwargs: Any,
    ) -> None:
        values = {
            "epsilon": epsilon,
            "scale": scale,
            "ddof": ddof,
            "eps_place": eps_place,
            "gain": gain,
            "fan_in_scaling": fan_in_scaling,
            "transposed_row": transposed_row,
            "depthwise_row": depthwise_row,
            "embedding_row": embedding_row,
        }
        super().__init__(layer, kernel, values, kwargs)

    @property
    def gain(self) -> Any:
        """The learned gain of each row; None without ``scale``."""
        return self._of_each(lambda name: self._held(name, "gain"))

    def _add_weights(self, name: str, dtype: str) -> None:
        if self.scale:
            rows = self._arrangement(name).shape[0]
            self._add(name, "gain", shape=(rows,), initializer="ones", dtype=dtype)
