"""Weight normalization: the pure function, the Keras wrapper and the initialisation from data."""

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, ClassVar, Literal

import keras
import tensorflow as tf

from crossnorm.spec import INFERENCE, Mode, WeightNormSpec

from ._arrangement import owner
from ._base import CallError, Tensor
from ._norms import centred, norm, with_eps
from ._weight import WeightWrapper, reparametrized


def _effective(
    spec: WeightNormSpec,
    rows: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    direction = rows / with_eps(_norm(spec, rows), spec.eps, spec.eps_place)
    if not spec.scale:
        return direction, {}
    return direction * tf.reshape(parameters["scale"], [1, -1, 1]), {}


def _norm(spec: WeightNormSpec, rows: Tensor) -> Tensor:
    return norm(rows, (0, 2) if spec.norm_over == "row" else None, of_zeros=1)


def weight_norm(
    spec: WeightNormSpec,
    weight: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Effective weight of weight normalization and the state, which is empty; the mode does not matter.

    The formula is that of `crossnorm.spec.WeightNormSpec`.

    Shapes: ``weight`` and the effective weight ``spec.shape``, rows first; scale (rows,), or () for the whole.

    Dtypes: any floating point. Half precision is computed in float32; the effective weight has the dtype of ``weight``.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's, a weight of another shape or of
            integers.

    References:
        Salimans and Kingma 2016, arXiv:1602.07868, equation (2).

    >>> import crossnorm
    >>> spec = crossnorm.WeightNormSpec(shape=(1, 2))
    >>> weight_norm(spec, [[3.0, 4.0]], {"scale": tf.constant([10.0])}, {}, crossnorm.TRAIN)[0].numpy().round(5).tolist()
    [[6.0, 8.0]]
    """
    return reparametrized(_effective, spec, weight, parameters, state, mode)


@keras.saving.register_keras_serializable(package="crossnorm")
class WeightNormalization(WeightWrapper):
    """Weight normalization: a wrapper that runs a layer with a kernel whose length is learned apart from its direction.

    The formula is that of `crossnorm.spec.WeightNormSpec`. The wrapped layer's own kernel is the direction, of any length; it
    and the gain are what is trained, saved, regularised and constrained. `effective_weight` shows what the layer computes
    with.

    Args:
        layer: dense, convolutional (transposed, depthwise and separable too), an embedding, a recurrent layer, or any other
            whose kernel has the outputs on its last axis.
        kernel: the name of the weight to normalise, or several; None for all kernels that the layer has.
        epsilon, eps_place: what keeps the denominator from 0, and where.
        scale: whether the length is learned; without it, it is 1.
        norm_over: ``"row"`` or ``"whole"``: what has a length of its own.
        initial_scale: where the gain starts: ``"norm"``, ``"ones"``, or ``"data"``: as ``"norm"`` until
            `initialize_from_data` is called.
        transposed_row, depthwise_row, embedding_row: what a row is, see `crossnorm.spec.WeightSpec`.
        **kwargs: go to Keras: ``name``, ``dtype`` (by default that of the layer).

    Attributes: ``gain`` of shape (rows,), or () for the whole; None without ``scale``; ``spec``. With several kernels both are
    dictionaries by the kernels' names.

    Shapes, dtypes: those of the wrapped layer. Lengths are computed in at least float32, whatever the policy.

    Raises:
        SpecError: an argument that breaks a rule of the specification; a layer without the kernel, or whose kernel is wrapped
            already; an attribute asked for before the layer is built.
        Unsupported: a layer with LoRA, quantized, or made in a RematScope.

    References:
        Salimans and Kingma 2016, arXiv:1602.07868, equation (2); section 3 for the initialisation from data.

    >>> import crossnorm.tensorflow, keras, numpy as np
    >>> layer = crossnorm.tensorflow.WeightNormalization(keras.layers.Dense(3))
    >>> layer(np.ones((1, 4))).shape, layer.gain.shape
    (TensorShape([1, 3]), TensorShape([3]))
    >>> bool(np.allclose(layer.effective_weight(), layer.layer.kernel))
    True
    """

    method: ClassVar[str] = "weight_norm"
    _compute = staticmethod(_effective)

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        kernel: str | Sequence[str] | None = None,
        epsilon: float = 0.0,
        scale: bool = True,
        norm_over: Literal["row", "whole"] = "row",
        initial_scale: Literal["norm", "ones", "data"] = "norm",
        eps_place: Literal["maximum", "maximum_of_square", "added_to_square"] = "maximum",
        transposed_row: Literal["output", "input"] = "output",
        depthwise_row: Literal["output", "multiplier"] = "output",
        embedding_row: Literal["output", "input"] = "output",
        **kwargs: Any,
    ) -> None:
        values = {
            "epsilon": epsilon,
            "scale": scale,
            "norm_over": norm_over,
            "initial_scale": initial_scale,
            "eps_place": eps_place,
            "transposed_row": transposed_row,
            "depthwise_row": depthwise_row,
            "embedding_row": embedding_row,
        }
        super().__init__(layer, kernel, values, kwargs)

    @property
    def gain(self) -> Any:
        """The learned length of each row, or of the whole; None without ``scale``."""
        return self._of_each(lambda name: self._held(name, "gain"))

    def _add_weights(self, name: str, dtype: str) -> None:
        arranged = self._arrangement(name)
        spec = self._spec(arranged.shape)

        def length(shape: Sequence[int], dtype: str) -> Tensor:
            rows = arranged.view(tf.cast(self._raw(name), "float64" if dtype == "float64" else "float32"))
            return tf.cast(tf.reshape(_norm(spec, rows), shape), dtype)

        for array in spec.parameters:
            initializer = length if array.initial is None else "ones"
            self._add(name, "gain", shape=array.shape, initializer=initializer, dtype=dtype)

    def call(self, inputs: Any, *args: Any, training: bool | None = None, mask: Any = None, **kwargs: Any) -> Any:
        if (changes := _CHANGES.get()) is not None and not any(self.gain is variable for variable, _ in changes):
            self._initialize(changes, inputs, *args, **self._accepted(training, mask), **kwargs)
        return super().call(inputs, *args, training=training, mask=mask, **kwargs)

    def _initialize(self, changes: list[tuple[keras.Variable, Tensor]], *args: Any, **kwargs: Any) -> None:
        """Set gain and bias from the layer's outputs with a gain of 1, no bias and no activation function."""
        layer, (name, *others) = self.layer, self._kernel_names
        arranged = self._arrangement(name)
        bias = getattr(layer, "bias", None)
        reason = (
            "learns no gain" if not self.scale
            else "has one length for all rows" if self.norm_over == "whole"
            else "has several kernels" if others
            else "is recurrent" if owner(layer) is not layer
            else "has rows that are not its outputs" if not arranged.rows_are_outputs
            else "has a bias that is not one for each row" if bias is not None and bias.shape != arranged.shape[:1]
            else None
        )  # fmt: skip
        if reason:
            raise CallError(
                f"initialize_from_data: the layer {self.name!r} {reason}; take it out of the model, or set its gain yourself"
            )
        ones = tf.ones_like(self.gain.value)
        values = {name: self._effective(name, INFERENCE, scale=ones)[0]}
        if bias is not None:
            values["bias"] = tf.zeros_like(bias.value)
        activation = getattr(layer, "activation", None)
        try:
            if activation is not None:
                layer.activation = None
            outputs, _ = self._run(values, *args, **kwargs)
        finally:
            if activation is not None:
                layer.activation = activation
        if getattr(layer, "data_format", None) == "channels_first":
            outputs = tf.experimental.numpy.moveaxis(outputs, 1, -1)
        t = tf.reshape(outputs, [-1, arranged.shape[0], 1])
        deviations, mean = centred(t if t.dtype == tf.float64 else tf.cast(t, tf.float32), (0, 2))
        deviation = norm(deviations, (0, 2)) / math.sqrt(t.shape[0])
        deviation = tf.reshape(tf.where(tf.equal(deviation, 0), tf.ones_like(deviation), deviation), [-1])
        for variable, value in ((self.gain, 1 / deviation), (bias, -tf.reshape(mean, [-1]) / deviation)):
            if variable is not None:
                changes.append((variable, tf.identity(variable.value)))
                variable.assign(tf.cast(value, variable.dtype))


# What a pass of initialize_from_data has changed: the variables and what they were.
_CHANGES: ContextVar[list[tuple[keras.Variable, Tensor]] | None] = ContextVar("changes", default=None)


def initialize_from_data(model: keras.layers.Layer, inputs: Any) -> None:
    """Set gain and bias of every weight-normalized layer in a model from a batch, as in the paper's section 3.

    With ``t`` the layer's outputs for a gain of 1, without bias and activation function, and mean and deviation of each row
    of its kernel over batch and positions::

        gain = 1 / deviation(t)          bias = -mean(t) / deviation(t)

    so that the outputs of this batch, before the activation function, have mean 0 and deviation 1; without a bias, the mean
    stays. The model is called once, in inference; a layer sees what the initialised ones before it make. A layer that is
    called several times is initialised at its first call. A deviation of 0 counts as 1.

    Shapes, dtypes: ``inputs`` are what the model takes.

    Raises:
        SpecError: no such layer was called, or one whose rows have no outputs or no gain of their own: without ``scale``,
            over the whole, several kernels, recurrent, or rows that are inputs. After an error, this one or the model's own,
            every gain and bias is as it was.

    References:
        Salimans and Kingma 2016, arXiv:1602.07868, equations (5) and (6).

    >>> import crossnorm.tensorflow, keras, numpy as np
    >>> layer = crossnorm.tensorflow.WeightNormalization(keras.layers.Dense(2, activation="relu"))
    >>> model = keras.Sequential([keras.Input((1,)), layer])
    >>> crossnorm.tensorflow.initialize_from_data(model, np.array([[1.0], [5.0]]))
    >>> np.abs(layer.gain * layer.layer.kernel / abs(layer.layer.kernel)).round(5).tolist()
    [[0.5, 0.5]]
    """
    if not tf.executing_eagerly():
        raise CallError("initialize_from_data: it was called inside a tf.function; call it outside, once, before training")
    changes: list[tuple[keras.Variable, Tensor]] = []
    token = _CHANGES.set(changes)
    try:
        model(inputs)
        if not changes:
            raise CallError(
                f"initialize_from_data: {model.name!r} called no weight-normalized layer; give a model that has some"
            )
    except BaseException:
        for variable, value in changes:
            variable.assign(value)
        raise
    finally:
        _CHANGES.reset(token)
