"""What every layer of this room shares: validation in Keras' exception types, weights, specification and configuration."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import keras
import tensorflow as tf
from keras import constraints, initializers, regularizers

from crossnorm.errors import SpecError
from crossnorm.spec import INFERENCE, TRAIN, Mode, NormSpec
from crossnorm.spec._axes import integer, normalize_axes

Tensor = tf.Tensor

# The attribute that holds an array of a specification, where Keras has another name for it. Weights are made in this order.
_ATTRIBUTES = {
    "scale": "gamma",
    "offset": "beta",
    "learned_eps": "learned_epsilon",
    "threshold": "tau",
    "running_mean": "moving_mean",
    "running_variance": "moving_variance",
    "running_standard_deviation": "moving_stddev",
    "renorm_mean": "renorm_mean",
    "renorm_variance": "renorm_variance",
    "renorm_standard_deviation": "renorm_stddev",
    "batches_tracked": "batches_tracked",
}

# What reads and writes the option of a weight that ends in this word.
_OPTIONS = {"initializer": initializers, "regularizer": regularizers, "constraint": constraints}

_FLOATS = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


class CallError(SpecError):
    """What this room refuses. Keras and AutoGraph rebuild exceptions to add where they happened; these pass as they are."""

    _keras_call_info_injected = ag_pass_through = True


class ArgumentTypeError(CallError, TypeError):
    """An argument of a type that cannot be used; Keras raises ``TypeError``."""


class AxisError(CallError, IndexError):
    """An axis that the input does not have; Keras raises ``IndexError``."""


class ShapeError(AxisError, tf.errors.InvalidArgumentError):
    """An input whose shape does not fit the layer; Keras raises ``ValueError``, ``IndexError`` or ``InvalidArgumentError``."""

    def __init__(self, message: str) -> None:
        tf.errors.InvalidArgumentError.__init__(self, None, None, message)


# What the pure functions share.


def checked(spec: NormSpec, x: Any, parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Tensor:
    """``x`` as a tensor of floating-point numbers; a ``SpecError`` if it is none, or for arrays of other names or shapes."""
    try:
        spec.check_arrays(parameters, state)
    except SpecError as error:
        raise CallError(str(error)) from None
    x = tf.convert_to_tensor(x)
    check_rank(x.shape, spec.method)
    if x.dtype not in _FLOATS:
        names = ", ".join(dtype.name for dtype in _FLOATS)
        raise CallError(f"{spec.method}: an input of dtype {x.dtype.name} cannot be normalized; cast it to one of {names}")
    return x


def check_rank(shape: Any, who: str, what: str = "input") -> None:
    """Refuse a shape of which not even the rank is known."""
    if isinstance(shape, tf.TensorShape) and shape.rank is None:
        raise ShapeError(f"{who}: the rank of the {what} is unknown; give it a shape, None for each unknown size")


def widened(x: Tensor) -> Tensor:
    """``x`` in the dtype of the arithmetic: float32 for half precision."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def resolve_axes(axes: int | Sequence[int], rank: int, who: str) -> tuple[int, ...]:
    """Axes counted from the front, sorted; an ``AxisError`` where the rank has none such."""
    try:
        return normalize_axes(axes, rank, who)
    except SpecError as error:
        raise AxisError(str(error)) from None


def channel_axis(axis: int, shape: Sequence[int | None], channels: int, minimum_rank: int, who: str) -> int:
    """The channel axis counted from the front, after a look at the rank and at the number of channels."""
    rank = len(shape)
    if rank < minimum_rank:
        raise AxisError(f"{who}: an input of shape {tuple(shape)} has fewer than {minimum_rank} dimensions; add those missing")
    (axis,) = resolve_axes(axis, rank, who)
    if axis == 0 and minimum_rank > 1:
        raise AxisError(f"{who}: axis=0 is the batch; choose one of 1..{rank - 1}")
    if shape[axis] != channels:
        raise ShapeError(
            f"{who}: axis {axis} of an input of shape {tuple(shape)} has not the {channels} channels of the specification; "
            "name the channel axis by axis="
        )
    return axis


def normalized_axes(
    axes: int | Sequence[int] | None, shape: Sequence[int | None], sizes: tuple[int, ...], who: str
) -> tuple[int, ...]:
    """The axes to normalize over, counted from the front, after a look at their sizes; None is the last ones."""
    resolved = resolve_axes(range(-len(sizes), 0) if axes is None else axes, len(shape), who)
    found = tuple(shape[axis] for axis in resolved)
    if found != sizes:
        raise ShapeError(
            f"{who}: the axes {resolved} of an input of shape {tuple(shape)} have not the sizes {sizes} of the specification; "
            "name the normalized axes by axis="
        )
    return resolved


def checked_mask(mask: Any, x: Tensor, who: str) -> Tensor:
    """``mask`` as a tensor; a ``SpecError`` if it cannot be laid on all axes of ``x`` but the last."""
    mask = tf.convert_to_tensor(mask)
    check_rank(mask.shape, who, "mask")
    if len(mask.shape) != len(x.shape) - 1:
        raise CallError(
            f"{who}: a mask of shape {tuple(mask.shape)} has not one dimension less than the input of shape "
            f"{tuple(x.shape)}; leave out the last one"
        )
    if any(None not in (size, wanted) and size not in (1, wanted) for size, wanted in zip(mask.shape, x.shape, strict=False)):
        raise ShapeError(
            f"{who}: a mask of shape {tuple(mask.shape)} does not fit the input of shape {tuple(x.shape)}; "
            "give each dimension but the last the input's size, or 1"
        )
    return mask


def optional(parameters: Mapping[str, Tensor], dtype: tf.DType) -> tuple[Tensor | None, Tensor | None]:
    """Scale and offset in the dtype of the arithmetic; None for one that is not learned."""
    scale, offset = (tf.cast(parameters[name], dtype) if name in parameters else None for name in ("scale", "offset"))
    return scale, offset


def refuse_single_value(x: Tensor, count: int | Tensor, who: str) -> tuple[Tensor, bool | Tensor]:
    """``x`` and False, or an error where a statistic would have one value only.

    XLA drops the assertion that a graph makes; there ``x`` becomes NaN and the second result true.
    """
    message = f"{who}: one value per statistic has no variance; give more values, or say single_value='zero'"
    refused = count == 1 if isinstance(count, int) else tf.reduce_any(tf.equal(count, 1))
    known = tf.get_static_value(refused)
    if known:
        raise CallError(message)
    if known is not None:
        return x, False
    with tf.control_dependencies([tf.debugging.Assert(~refused, [message])]):
        return x + tf.where(refused, tf.constant(float("nan"), x.dtype), 0), refused


def update_running(
    spec: Any,
    state: Mapping[str, Tensor],
    mean: Tensor,
    variance: Tensor,
    count: int | Tensor,
    unbiased: bool,
    unchanged: bool | Tensor,
) -> dict[str, Tensor]:
    """The state after a batch whose statistics rest on ``count`` values each; the old one if ``unchanged`` is true."""
    old = {name: tf.convert_to_tensor(value) for name, value in state.items()}
    batch = {"running_mean": mean, "running_variance": unbiased_variance(variance, count) if unbiased else variance}
    return unless(unchanged, old, blended(old, batch, spec.decay))


def unbiased_variance(variance: Tensor, count: int | Tensor) -> Tensor:
    """``n / (n - 1)`` times the biased variance of ``n`` values; the same where there is one."""
    counted = tf.cast(count, variance.dtype)
    return variance * (counted / tf.maximum(counted - 1, 1))


def blended(old: Mapping[str, Tensor], batch: Mapping[str, Tensor], decay: float | None) -> dict[str, Tensor]:
    """The averages of the batch's quantities and the old ones of the same names, and the number of batches with this one."""
    batches = old["batches_tracked"] + 1
    new = {"batches_tracked": batches}
    for name, quantity in batch.items():
        dtype = quantity.dtype
        keep, take = old_and_new_weight(decay, batches, dtype)
        value = keep * tf.cast(old[name], dtype) + take * tf.reshape(quantity, tf.shape(old[name]))
        new[name] = tf.cast(value, old[name].dtype)
    return new


def old_and_new_weight(decay: float | None, batches: Tensor, dtype: tf.DType) -> tuple[Tensor, Tensor]:
    """The weights of the old quantity and the new one in the running average, when there are so many batches with this one."""
    if decay is None:
        return tf.cast(batches - 1, dtype) / tf.cast(batches, dtype), 1 / tf.cast(batches, dtype)
    # The two are rounded separately: one minus a rounded decay would lose its last digits.
    return tf.constant(decay, dtype), tf.constant(1 - decay, dtype)


def unless(unchanged: bool | Tensor, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The new state, or the old one if ``unchanged`` is true."""
    if isinstance(unchanged, bool):
        return dict(old if unchanged else new)
    return {name: tf.where(unchanged, old[name], new[name]) for name in new}


# The layers.


class SpecLayer:
    """Mixed in before the native Keras layer: the attributes are the truth, and ``spec`` is computed from them."""

    method: ClassVar[str]

    # The sizes that the specification given to from_spec promises, and those that build found.
    _promised: tuple[int, ...] | None = None
    _found: tuple[int, ...] | None = None

    @property
    def spec(self) -> NormSpec:
        """The specification that the layer obeys now; a ``SpecError`` while its sizes are unknown or an attribute is wrong."""
        sizes = self._found or self._promised
        if sizes is None:
            raise CallError(
                f"{type(self).__name__}: the specification is not known before the layer is built; "
                "call build(input_shape), or the layer, first"
            )
        return self._spec(sizes)

    def _spec(self, sizes: tuple[int, ...]) -> NormSpec:
        """The specification from the attributes and the parameters' sizes."""
        raise NotImplementedError

    @classmethod
    def _check_method(cls, spec: NormSpec) -> None:
        if getattr(spec, "method", None) != cls.method:
            raise CallError(
                f"{cls.__name__}: from_spec was given {spec!r}, which is no {cls.method} specification; "
                "use crossnorm.tensorflow.layer(spec), which picks the class"
            )

    def _promising(self, spec: NormSpec) -> Self:
        self._promised = spec.parameter_shape
        return self

    def _find(self, axes: int | Sequence[int], input_shape: Sequence[int | None]) -> tuple[int, ...]:
        """The sizes of ``axes``, which must be known and as promised; checks every attribute on the way."""
        who = type(self).__name__
        sizes = self._sizes(axes, input_shape)
        if None in sizes:
            raise CallError(f"{who}: axis={axes!r} of an input of shape {tuple(input_shape)} is unknown; give it a size")
        if self._promised not in (None, sizes):
            raise ShapeError(
                f"{who}: axis={axes!r} of an input of shape {tuple(input_shape)} has the sizes {sizes}, "
                f"and the specification says {self._promised}; name other axes by axis= or change the specification"
            )
        self._spec(sizes)
        self._found = sizes
        return sizes

    def _sizes(self, axes: int | Sequence[int], input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """What the specification is to know of the input's shape."""
        return tuple(input_shape[axis] for axis in resolve_axes(axes, len(input_shape), type(self).__name__))

    def _add_gamma_and_beta(self, shape: tuple[int, ...], scale: bool, center: bool) -> None:
        self.gamma = self._add_parameter("gamma", shape) if scale else None
        self.beta = self._add_parameter("beta", shape) if center else None

    def _add_parameter(self, name: str, shape: tuple[int, ...]) -> keras.Variable:
        of = {of: getattr(self, f"{name}_{of}") for of in ("initializer", "regularizer", "constraint")}
        return self.add_weight(name=name, shape=shape, autocast=False, **of)

    def _take_options(self, **options: Any) -> None:
        """Keep the initializers, regularizers and constraints of a layer whose native base does not."""
        self._options = tuple(options)
        for name, option in options.items():
            setattr(self, name, _OPTIONS[name.rpartition("_")[2]].get(option))

    def _serialized_options(self) -> dict[str, Any]:
        return {name: _OPTIONS[name.rpartition("_")[2]].serialize(getattr(self, name)) for name in self._options}

    def _parameters(self) -> dict[str, Tensor]:
        """The weights in use: ``center`` and ``scale`` count as they are now."""
        weights = {array.name: self._weight(array.name) for array in self.spec.parameters}
        return {name: weight.value for name, weight in weights.items() if weight is not None}

    def _weight(self, name: str) -> keras.Variable | None:
        """The weight that holds the specification's array of this name."""
        return getattr(self, _ATTRIBUTES.get(name, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except SpecError as error:
            # AutoGraph and Keras rebuild exceptions to add where they happened, and lose their type; these ask them not to.
            error.ag_pass_through = error._keras_call_info_injected = True
            raise

    def _assert_input_compatibility(self, inputs: Any) -> None:
        """Keras' check of the shape, and ours of the dtype and of the live attributes, before anything runs."""
        check_rank(getattr(inputs, "shape", None), type(self).__name__)
        try:
            super()._assert_input_compatibility(inputs)
        except ValueError as error:
            raise ShapeError(f"{type(self).__name__}: {' '.join(str(error).split())}") from None
        if hasattr(inputs, "dtype"):
            self._check_dtype(tf.as_dtype(keras.backend.standardize_dtype(inputs.dtype)))
        if self.built:
            self._spec(self._found)

    def _check_dtype(self, dtype: tf.DType) -> None:
        if dtype not in _FLOATS:
            raise CallError(
                f"{type(self).__name__}: an input of dtype {dtype.name} cannot be normalized; cast it to a floating-point dtype"
            )


class ChannelLayer(SpecLayer):
    """A layer whose parameters have one entry per channel."""

    # The moving statistics and their counter, where a layer keeps them.
    moving_mean = moving_variance = moving_stddev = None
    renorm_mean = renorm_variance = renorm_stddev = None
    batches_tracked = None

    def _check_axis(self, axis: Any) -> None:
        if integer(axis) is None:
            raise ArgumentTypeError(f"{type(self).__name__}: axis={axis!r} is not an integer; name the one channel axis")

    def _check_number(self, name: str, value: Any) -> None:
        """Keras takes what ``float`` takes, and lets ``float`` complain."""
        try:
            float(value)
        except (TypeError, ValueError):
            raise ArgumentTypeError(f"{type(self).__name__}: {name}={value!r} is not a number; give a float") from None

    def _find_channels(self, input_shape: Sequence[int | None], minimum_rank: int) -> tuple[int, ...]:
        """The number of channels; from now on, inputs of this rank and number only."""
        sizes = self._find(self.axis, input_shape)
        channel_axis(self.axis, input_shape, sizes[0], minimum_rank, type(self).__name__)
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes={self.axis: sizes[0]})
        return sizes

    def _add_moving_statistics(self, shape: tuple[int, ...]) -> None:
        """The weights of the state, started by the initializers of the moving mean and variance."""
        mean, variance = self.moving_mean_initializer, self.moving_variance_initializer
        start = {"mean": mean, "variance": variance, "stddev": lambda *args, **kwargs: tf.sqrt(variance(*args, **kwargs))}
        fixed, state = {"trainable": False, "autocast": False}, {array.name for array in self._spec(shape).state}
        for name in (attribute for array, attribute in _ATTRIBUTES.items() if array in state - {"batches_tracked"}):
            weight = self.add_weight(name=name, shape=shape, initializer=start[name.rpartition("_")[2]], **fixed)
            setattr(self, name, weight)
        if self._counts_batches():
            self.batches_tracked = self.add_weight(
                name="batches_tracked", shape=(), initializer="zeros", dtype="int64", **fixed
            )

    def _counts_batches(self) -> bool:
        """Only the cumulative average counts; any other layer keeps the native list of weights."""
        return self.momentum is None

    def _mode(self, training: bool | None) -> Mode:
        return TRAIN if training and self.trainable else INFERENCE

    def _state(self) -> dict[str, Tensor]:
        weights = {array.name: self._weight(array.name) for array in self.spec.state}
        if "batches_tracked" in weights and weights["batches_tracked"] is None and self.momentum is None:
            raise CallError(
                f"{type(self).__name__}: momentum=None needs the weight that counts batches, which build did not make; "
                "give momentum=None at construction"
            )
        uncounted = {"batches_tracked": tf.zeros((), tf.int64)} if "batches_tracked" in weights else {}
        return uncounted | {name: weight.value for name, weight in weights.items() if weight is not None}

    def _assign(self, state: Mapping[str, Tensor]) -> None:
        for name, value in state.items():
            if (weight := self._weight(name)) is not None:
                weight.assign(value)


class RowLayer(SpecLayer):
    """A layer whose parameters have one entry per normalized element."""

    def _check_axis(self, axis: Any) -> None:
        axes = axis if isinstance(axis, (list, tuple)) else [axis]
        if any(integer(a) is None for a in axes):
            raise ArgumentTypeError(
                f"{type(self).__name__}: axis={axis!r} is neither an integer nor a list of them; name the normalized axes"
            )
        if not axes:
            raise CallError(f"{type(self).__name__}: axis={axis!r} is empty; name at least one axis")

    @staticmethod
    def _axis_of(spec: Any, axis: int | Sequence[int] | None) -> int | Sequence[int]:
        """``axis``, or if it is None the last ones."""
        if axis is not None:
            return axis
        return -1 if len(spec.shape) == 1 else list(range(-len(spec.shape), 0))

    def _eps(self) -> float:
        """Keras reads ``epsilon=None`` as its global epsilon."""
        return keras.config.epsilon() if self.epsilon is None else self.epsilon

    def _parameters(self) -> dict[str, Tensor]:
        # Keras stores sorted axes' sizes, [-1, 1] say, and reads the numbers in the order of the input's axes all the same.
        return {name: tf.reshape(value, self._found) for name, value in super()._parameters().items()}

    def _find_rows(self, input_shape: Sequence[int | None]) -> tuple[int, ...]:
        """The sizes of the weights, in Keras' order of the axes; from now on, inputs with these only."""
        self._find(self.axis, input_shape)
        axes = sorted(self.axis) if isinstance(self.axis, (list, tuple)) else [self.axis]
        needed = max(axis + 1 if axis >= 0 else -axis for axis in axes)
        self.input_spec = keras.layers.InputSpec(min_ndim=needed, axes={axis: input_shape[axis] for axis in axes})
        return tuple(input_shape[axis] for axis in axes)
