"""What the reparametrizations of this room share: the pure functions' frame, and the wrapper of a Keras layer."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Self

import keras
import tensorflow as tf
from keras.src.backend import AutocastScope

from crossnorm.errors import SpecError, Unsupported
from crossnorm.spec import INFERENCE, TRAIN, Mode, WeightSpec, spec_class

from ._arrangement import Arrangement, arrangement, owner
from ._base import ArgumentTypeError, CallError, ShapeError, SpecLayer, Tensor, checked, widened
from ._substitution import Substitution

# From a specification, the view (before, rows, after) of a raw weight, parameters, state and mode to the view of the effective
# weight and the new state. Of the state, "v" is spread over (before, after).
Compute = Callable[[Any, Tensor, Mapping[str, Tensor], Mapping[str, Tensor], Mode], tuple[Tensor, Mapping[str, Tensor]]]

# What keras.layers calls its kernels; a layer with several of them has them all wrapped.
_KERNELS = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings")


def reparametrized(
    compute: Compute,
    spec: WeightSpec,
    weight: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
    arranged: Arrangement | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What ``compute`` makes of a weight, rows first unless ``arranged`` says otherwise, at least in float32."""
    weight = checked(spec, weight, parameters, state)
    arranged = arranged or Arrangement.of_rows(spec.shape)
    if tuple(weight.shape) != arranged.stored:
        raise ShapeError(
            f"{spec.method}: a weight of shape {tuple(weight.shape)} has not the shape {arranged.stored} of the "
            "specification; arrange its rows first"
        )
    wide = widened(weight)
    learned = {name: tf.cast(value, wide.dtype) for name, value in parameters.items()}
    old = {name: tf.convert_to_tensor(value) for name, value in state.items()}
    vectors = {name: tf.cast(value, wide.dtype) for name, value in old.items()}
    if "v" in vectors:
        vectors["v"] = arranged.spread(vectors["v"])
    effective, new = compute(spec, arranged.view(wide), learned, vectors, mode)
    if "v" in new:
        new = {**new, "v": arranged.gather(new["v"])}
    stored = {name: tf.cast(value, old[name].dtype) for name, value in new.items()}
    return tf.cast(arranged.restore(effective), weight.dtype), old | stored


class LayerError(Unsupported):
    """A layer that cannot be wrapped. Keras and AutoGraph pass it as it is."""

    _keras_call_info_injected = ag_pass_through = True


class WeightWrapper(SpecLayer, keras.layers.Wrapper):
    """A wrapper that runs a layer with effective weights; the layer's own variables stay raw, and are what is trained.

    The effective weights are computed once for each call, in at least float32, and take the place of the variables while the
    layer runs, in that thread only. Regularizers and constraints see the raw weights.
    """

    # The function that computes the effective weight.
    _compute: ClassVar[Compute]

    # The fields of the specification that nobody chooses.
    _fixed: ClassVar[frozenset[str]] = frozenset({"shape"})

    _kernel_names: tuple[str, ...] = ()

    def __init__(self, layer: keras.layers.Layer, kernel: Any, values: Mapping[str, Any], keras_kwargs: dict[str, Any]) -> None:
        """``values``: the specification's fields that can be chosen, by their arguments' names."""
        who = type(self).__name__
        if not isinstance(layer, keras.layers.Layer):
            raise ArgumentTypeError(f"{who}: layer={layer!r} is no Keras layer; give the layer whose weight is wanted")
        if isinstance(layer, (WeightWrapper, keras.layers.SpectralNormalization)):
            raise CallError(
                f"{who}: the layer {layer.name!r} is a {type(layer).__name__} already; wrap the layer inside it instead"
            )
        keras_kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **keras_kwargs)
        # The wrapped layer casts its inputs itself, or does not: integers stay integers.
        self.autocast = False
        self.kernel = self._checked_names(kernel)
        for name, value in values.items():
            setattr(self, _attribute(name), value)
        self._spec((1,))
        self._check_layer()
        if layer.built:
            self._find_kernels()

    def _checked_names(self, kernel: Any) -> str | tuple[str, ...] | None:
        if kernel is None or isinstance(kernel, str):
            return kernel
        names = tuple(kernel) if isinstance(kernel, Sequence) else ()
        if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise ArgumentTypeError(
                f"{type(self).__name__}: kernel={kernel!r} is neither the name of a weight nor several different ones; "
                "name each weight once, or give None for all kernels"
            )
        return names

    def _check_layer(self) -> None:
        """Refuse layers that do not compute with their kernel as it is stored, or compute again when nobody is looking."""
        layer, what = self.layer, None
        if getattr(layer, "lora_enabled", False) or getattr(layer, "lora_rank", None):
            what = "adapts its kernel by LoRA", "wrap the layer without lora_rank"
        elif layer.quantization_mode is not None:
            what = f"is quantized to {layer.quantization_mode}", "wrap the layer before it is quantized, and leave it so"
        elif any(getattr(each, "_remat_mode", None) is not None for each in (layer, self)):
            what = "was made inside a RematScope, where it runs again outside its wrapper", "make both outside of it"
        if what:
            raise LayerError(f"{type(self).__name__}: the layer {layer.name!r} {what[0]}; {what[1]}")

    # The specification.

    @classmethod
    def _fields(cls) -> list[str]:
        return [field.name for field in fields(spec_class(cls.method)) if field.name not in cls._fixed]

    def _spec(self, sizes: tuple[int, ...]) -> WeightSpec:
        values = {name: getattr(self, _attribute(name)) for name in self._fields()}
        try:
            return spec_class(self.method)(shape=sizes, **values)
        except SpecError as error:
            raise CallError(str(error)) from None

    @property
    def spec(self) -> WeightSpec | dict[str, WeightSpec]:
        """The specification that the layer obeys now; one for each kernel's name if it has several."""
        if self._promised and not self._kernel_names:
            return self._spec(self._promised)
        return self._of_each(lambda name: self._spec(self._arrangement(name).shape))

    @classmethod
    def from_spec(
        cls,
        spec: WeightSpec,
        layer: keras.layers.Layer,
        *,
        kernel: str | Sequence[str] | None = None,
        **keras_kwargs: Any,
    ) -> Self:
        """The wrapper of ``layer`` that obeys ``spec``; its kernels must have the specification's shape.

        >>> import crossnorm, crossnorm.tensorflow
        >>> spec = crossnorm.WeightNormSpec(shape=(3, 4))
        >>> wrapper = crossnorm.tensorflow.WeightNormalization.from_spec(spec, keras.layers.Dense(3))
        >>> wrapper.build((None, 4))
        >>> wrapper.spec == spec
        True
        """
        cls._check_method(spec)
        values = {_argument(name): getattr(spec, name) for name in cls._fields()}
        wrapper = cls(layer, kernel=kernel, **values, **keras_kwargs)
        wrapper._promised = spec.shape
        if layer.built:
            wrapper._find_kernels()
        return wrapper

    def get_config(self) -> dict[str, Any]:
        kernel = list(self.kernel) if isinstance(self.kernel, tuple) else self.kernel
        values = {_argument(name): getattr(self, _attribute(name)) for name in self._fields()}
        return {**super().get_config(), "kernel": kernel, **values}

    # The kernels and the weights that belong to each.

    def build(self, input_shape: Any = None) -> None:
        if self.built:
            return
        super().build(input_shape)
        self._check_layer()
        kernels = self._find_kernels()
        self._kernel_names = tuple(kernels)
        for name, kernel in kernels.items():
            # Seen by any other wrapper, of this layer or of one that shares the kernel.
            kernel._crossnorm_wrapper = type(self).__name__
            self._add_weights(name, self._raw(name).dtype.name)

    def _find_kernels(self) -> dict[str, keras.Variable]:
        """The variables to wrap by their names; an error if one is missing, wrapped already or not of the shape promised."""
        who, layer, holder = type(self).__name__, self.layer, owner(self.layer)
        names = (self.kernel,) if isinstance(self.kernel, str) else self.kernel
        if names is None:
            names = [name for name in _KERNELS if _variable(holder, name) is not None]
        kernels = {name: _variable(holder, name) for name in names}
        missing = [name for name, variable in kernels.items() if variable is None]
        if missing or not kernels:
            found = ", ".join(repr(v.name) for v in holder.weights) or "none"
            what = f"no weight {missing[0]!r}" if missing else "no kernel"
            raise CallError(
                f"{who}: the layer {layer.name!r} ({type(layer).__name__}) has {what}; its weights are {found}: "
                "name one by kernel=, or wrap another layer"
            )
        for name, variable in kernels.items():
            if wrapper := getattr(variable, "_crossnorm_wrapper", None):
                raise CallError(
                    f"{who}: the weight {name!r} of the layer {layer.name!r} is wrapped already, by a {wrapper}; "
                    "wrap each weight once, and a layer that shares it not at all"
                )
            shape = self._arrangement(name).shape
            if self._promised not in (None, shape):
                raise ShapeError(
                    f"{who}: the weight {name!r} of the layer {layer.name!r} has, rows first, the shape {shape}, "
                    f"and the specification says {self._promised}; name another by kernel= or change the specification"
                )
        return kernels

    def _arrangement(self, name: str) -> Arrangement:
        holder = owner(self.layer)
        shape = _variable(holder, name).shape
        return arrangement(holder, name, shape, self.transposed_row, self.depthwise_row, self.embedding_row)

    def _add_weights(self, name: str, dtype: str) -> None:
        """Add what the method learns or remembers for one kernel, which is stored in ``dtype``."""

    def _add(self, kernel: str, role: str, **options: Any) -> None:
        """Add the weight that has one role for one kernel."""
        name = role if len(self._kernel_names) == 1 else f"{kernel}_{role}"
        setattr(self, f"_{kernel}_{role}", self.add_weight(name=name, autocast=False, **options))

    def _held(self, kernel: str, role: str) -> keras.Variable | None:
        """The weight that has one role for one kernel, if the method has it."""
        return getattr(self, f"_{kernel}_{role}", None)

    def _of_each(self, function: Callable[[str], Any]) -> Any:
        """``function`` of the kernel's name; a dictionary if there are several."""
        if not self._kernel_names:
            raise CallError(
                f"{type(self).__name__}: what belongs to a kernel is not known before the layer is built; "
                "call build(input_shape), or the layer, first"
            )
        results = {name: function(name) for name in self._kernel_names}
        return results if len(results) > 1 else results[self._kernel_names[0]]

    # What it computes.

    def _effective(self, kernel: str, mode: Mode, **given: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The effective weight of one kernel, as it is stored, and the new state; parameters as they are unless ``given``."""
        arranged = self._arrangement(kernel)
        spec = self._spec(arranged.shape)
        parameters = {array.name: given.get(array.name, self._value(kernel, "gain")) for array in spec.parameters}
        state = {array.name: self._value(kernel, array.name) for array in spec.state}
        return reparametrized(type(self)._compute, spec, self._raw(kernel), parameters, state, mode, arranged)

    def _raw(self, kernel: str) -> Tensor:
        """The wrapped layer's variable, in the dtype that it is stored in also under a mixed policy."""
        with AutocastScope(None):
            return _variable(owner(self.layer), kernel).value

    def _value(self, kernel: str, role: str) -> Tensor:
        if (weight := self._held(kernel, role)) is None:
            raise CallError(
                f"{type(self).__name__}: the layer needs the weight {role!r}, which build did not make; "
                "say at construction what is learned and stored"
            )
        return weight.value

    def effective_weight(self, kernel: str | None = None) -> Tensor | dict[str, Tensor]:
        """The effective weight of a kernel as inference would use it, in the order in which the layer stores it.

        Without a name, of every kernel: by their names if there are several.
        """
        results = self._of_each(lambda name: self._effective(name, INFERENCE)[0] if kernel in (None, name) else None)
        if kernel is None:
            return results
        if kernel not in self._kernel_names:
            raise CallError(
                f"{type(self).__name__}: kernel={kernel!r} is not one of {', '.join(map(repr, self._kernel_names))}; "
                "name a kernel that is wrapped"
            )
        return results[kernel] if len(self._kernel_names) > 1 else results

    def call(self, inputs: Any, *args: Any, training: bool | None = None, mask: Any = None, **kwargs: Any) -> Any:
        self._check_layer()
        mode = TRAIN if training and self.trainable and self.layer.trainable else INFERENCE
        computed = {name: self._effective(name, mode) for name in self._kernel_names}
        effective = {name: weight for name, (weight, _) in computed.items()}
        outputs, losses = self._run(effective, inputs, *args, **self._accepted(training, mask), **kwargs)
        self.add_loss(losses)
        if mode.update_running:
            for name, (_, state) in computed.items():
                for role, value in state.items():
                    self._held(name, role).assign(value)
        return outputs

    def _run(self, values: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """The wrapped layer's outputs and losses with ``values`` in the place of the variables of these names."""
        holder = owner(self.layer)
        pairs = [(_variable(holder, name), value) for name, value in values.items()]
        with Substitution(type(self).__name__, pairs) as substitution:
            return self.layer(*args, **kwargs), substitution.losses

    def _accepted(self, training: bool | None, mask: Any) -> dict[str, Any]:
        """Those of the two that are given and that the wrapped layer takes."""
        parameters = inspect.signature(self.layer.call).parameters
        given = {"training": training, "mask": mask}
        return {name: value for name, value in given.items() if value is not None and name in parameters}

    # What the wrapped layer knows better.

    def compute_output_spec(
        self, inputs: Any, *args: Any, training: bool | None = None, mask: Any = None, **kwargs: Any
    ) -> Any:
        return self.layer.compute_output_spec(inputs, *args, **self._accepted(training, mask), **kwargs)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    @property
    def supports_masking(self) -> bool:
        return self.layer.supports_masking

    def _assert_input_compatibility(self, inputs: Any) -> None:
        """The wrapped layer checks its inputs itself."""


def _variable(holder: Any, name: str) -> keras.Variable | None:
    """The variable that is an attribute of this name, or else the layer's own that is called so."""
    own = (*holder._trainable_variables, *holder._non_trainable_variables)
    found = [getattr(holder, name, None), *(variable for variable in own if variable.name == name)]
    return next((each for each in found if isinstance(each, keras.Variable)), None)


def _argument(field: str) -> str:
    """The constructor's name of a field of the specification."""
    return "epsilon" if field == "eps" else field


def _attribute(field: str) -> str:
    """The attribute that holds a field or an argument; ``gain`` itself is the learned one."""
    return "constant_gain" if field == "gain" else _argument(field)
