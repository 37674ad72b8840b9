"""Spectral normalization: the pure function and the Keras wrapper."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import keras
import tensorflow as tf

from crossnorm.spec import Mode, SpectralNormSpec

from ._arithmetic import products_are_exact
from ._base import ArgumentTypeError, CallError, Tensor
from ._norms import norm, with_eps
from ._weight import WeightWrapper, reparametrized


def _effective(
    spec: SpectralNormSpec,
    rows: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    iterates = mode.use_batch_statistics or spec.iterate == "always"
    u, v = _singular_vectors(spec, tf.stop_gradient(rows), state, spec.iterations if iterates else 0)
    sigma = tf.reduce_sum(u * _times_columns(rows, v))
    effective = rows / tf.where(tf.equal(sigma, 0), tf.ones_like(sigma), sigma)
    return effective, {name: {"u": u, "v": v}[name] for name in state} if mode.update_running else {}


def _singular_vectors(
    spec: SpectralNormSpec, rows: Tensor, state: Mapping[str, Tensor], iterations: int
) -> tuple[Tensor, Tensor]:
    """``u`` and ``v`` after some iterations, constants."""
    u = tf.stop_gradient(state["u"])
    if "v" in state:
        v = tf.stop_gradient(state["v"])
    elif not iterations:
        product = _times_rows(rows, u)
        v = _unit(spec, product, tf.zeros_like(product))
    else:
        v = tf.zeros_like(rows[:, 0, :])
    for _ in range(iterations):
        if spec.iteration_order == "v_first":
            v = _unit(spec, _times_rows(rows, u), v)
            u = _unit(spec, _times_columns(rows, v), u)
        else:
            u = _unit(spec, _times_columns(rows, v), u)
            v = _unit(spec, _times_rows(rows, u), v)
    return u, v


def _unit(spec: SpectralNormSpec, product: Tensor, before: Tensor) -> Tensor:
    """``product`` over its denominator; the vector as it was ``before`` if the norm is 0."""
    size = norm(product, None)
    zero = tf.equal(size, 0)
    return tf.where(zero, before, product / with_eps(tf.where(zero, tf.ones_like(size), size), spec.eps, spec.eps_place))


def _times_columns(rows: Tensor, v: Tensor) -> Tensor:
    """``W v``: from (before, after) to (rows,)."""
    if rows.shape[2] == 1:
        return _down(v[:, 0], rows[:, :, 0])
    return tf.reduce_sum(_across(rows, v), 0)


def _times_rows(rows: Tensor, u: Tensor) -> Tensor:
    """``W' u``: from (rows,) to (before, after)."""
    if rows.shape[2] == 1:
        return _across(rows[:, :, 0], u)[:, None]
    return _down(u, rows)


def _across(matrix: Tensor, vector: Tensor) -> Tensor:
    """The sums over the last axis; not by `tf.linalg.matvec`, which adds up one term after the other, and errors with them."""
    return tf.reduce_sum(matrix * vector[..., None, :], -1)


def _down(vector: Tensor, matrix: Tensor) -> Tensor:
    """The sums over the last axis but one, as sums of sums for the same reason."""
    *several, count, width = matrix.shape
    blocks = max(size for size in range(1, math.isqrt(count) + 1) if count % size == 0)
    of_block = tf.reshape(matrix, [*several, blocks, count // blocks, width])
    if products_are_exact():
        return tf.reduce_sum(tf.matmul(tf.reshape(vector, [blocks, 1, count // blocks]), of_block), (-3, -2))
    return tf.reduce_sum(tf.reduce_sum(tf.reshape(vector, [blocks, count // blocks, 1]) * of_block, -2), -2)


def spectral_norm(
    spec: SpectralNormSpec,
    weight: Tensor,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    mode: Mode,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Effective weight of spectral normalization and the new state.

    The formula is that of `crossnorm.spec.SpectralNormSpec`.

    Shapes: ``weight`` and the effective weight ``spec.shape``, rows first; u (rows,), v (columns,).

    Dtypes: any floating point. Half precision is computed in float32; the effective weight has the dtype of ``weight``.

    Raises:
        SpecError: parameters or state of other names or shapes than the specification's, a weight of another shape or of
            integers.

    References:
        Miyato, Kataoka, Koyama and Yoshida 2018, arXiv:1802.05957, equation (8) and Algorithm 1.

    >>> import crossnorm
    >>> spec = crossnorm.SpectralNormSpec(shape=(2, 2), stored="u")
    >>> state = {"u": tf.constant([1.0, 0.0])}
    >>> spectral_norm(spec, [[4.0, 0.0], [0.0, 2.0]], {}, state, crossnorm.TRAIN)[0].numpy().tolist()
    [[1.0, 0.0], [0.0, 0.5]]
    """
    return reparametrized(_effective, spec, weight, parameters, state, mode)


@keras.saving.register_keras_serializable(package="crossnorm")
class SpectralNormalization(WeightWrapper):
    """Spectral normalization: a wrapper that runs a layer with its kernel divided by the largest singular value.

    The formula is that of `crossnorm.spec.SpectralNormSpec`. The wrapped layer's own kernel stays raw; it is what is trained,
    saved, regularised and constrained. `effective_weight` shows what the layer computes with.

    A call with ``training=True`` iterates and stores the vectors, unless the wrapper or the layer is frozen; any other call
    takes them as stored. Each such call iterates, within `keras.layers.TimeDistributed` at each step.

    Args:
        layer: dense, convolutional (transposed, depthwise and separable too), an embedding, a recurrent layer, or any other
            whose kernel has the outputs on its last axis.
        kernel: the name of the weight to normalise, or several; None for all kernels that the layer has.
        epsilon, eps_place: what keeps the lengths that the iteration divides by from 0, and where.
        iterations, iteration_order, iterate: how many iterations, which vector first, and whether also in inference.
        stored: ``"uv"`` or ``"u"``: which vectors are kept from call to call.
        warm_up: how many iterations are made on the initial kernel when the layer is built.
        transposed_row, depthwise_row, embedding_row: what a row is, see `crossnorm.spec.WeightSpec`.
        seed: of the first ``u``.
        **kwargs: go to Keras: ``name``, ``dtype`` (by default that of the layer).

    Attributes: ``u`` of shape (rows,); ``v`` of shape (columns,), its numbers in the order of the specification, None with
    ``stored="u"``; ``spec``. With several kernels all are dictionaries by the kernels' names.

    Differences from `keras.layers.SpectralNormalization`: the kernel is not overwritten, the gradient flows through sigma,
    inference is normalised, a frozen layer stays as it is, integer indices of an embedding give embeddings, and a row is what
    one output sees.

    Shapes, dtypes: those of the wrapped layer. Sigma is computed in at least float32, whatever the policy, and the vectors
    are stored so.

    Raises:
        SpecError: an argument that breaks a rule of the specification; a layer without the kernel, or whose kernel is wrapped
            already; an attribute asked for before the layer is built.
        Unsupported: a layer with LoRA, quantized, or made in a RematScope.

    References:
        Miyato, Kataoka, Koyama and Yoshida 2018, arXiv:1802.05957, equation (8) and Algorithm 1.

    >>> import crossnorm.tensorflow, keras, numpy as np
    >>> layer = crossnorm.tensorflow.SpectralNormalization(keras.layers.Dense(3), warm_up=100)
    >>> layer(np.ones((1, 4))).shape, layer.u.shape, layer.v.shape
    (TensorShape([1, 3]), TensorShape([3]), TensorShape([4]))
    >>> np.linalg.norm(layer.effective_weight().numpy(), 2).round(3).item()
    1.0
    """

    method: ClassVar[str] = "spectral_norm"
    _compute = staticmethod(_effective)
    _fixed = frozenset({"shape", "scale"})

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        kernel: str | Sequence[str] | None = None,
        epsilon: float = 1e-12,
        iterations: int = 1,
        iteration_order: Literal["v_first", "u_first"] = "v_first",
        iterate: Literal["training", "always"] = "training",
        stored: Literal["u", "uv"] = "uv",
        warm_up: int = 15,
        eps_place: Literal["maximum", "maximum_of_square", "added_to_square"] = "maximum",
        transposed_row: Literal["output", "input"] = "output",
        depthwise_row: Literal["output", "multiplier"] = "output",
        embedding_row: Literal["output", "input"] = "output",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        values = {
            "epsilon": epsilon,
            "iterations": iterations,
            "iteration_order": iteration_order,
            "iterate": iterate,
            "stored": stored,
            "warm_up": warm_up,
            "eps_place": eps_place,
            "transposed_row": transposed_row,
            "depthwise_row": depthwise_row,
            "embedding_row": embedding_row,
        }
        super().__init__(layer, kernel, values, kwargs)
        self.seed = seed
        # One object, so that each vector starts from the same numbers wherever it is drawn.
        self._normal = keras.initializers.RandomNormal(stddev=1.0, seed=seed)

    @property
    def u(self) -> Any:
        """The stored approximation of the first left singular vector."""
        return self._of_each(lambda name: self._held(name, "u"))

    @property
    def v(self) -> Any:
        """The stored approximation of the first right singular vector; None with ``stored="u"``."""
        return self._of_each(lambda name: self._held(name, "v"))

    def _add_weights(self, name: str, dtype: str) -> None:
        dtype = "float64" if dtype == "float64" else "float32"
        for array in self._spec(self._arrangement(name).shape).state:
            # Drawn when the variables are initialised, which may be later, and the kernel's before these.
            self._add(
                name,
                array.name,
                shape=array.shape,
                initializer=lambda shape, dtype, role=array.name: self._warmed_up(name, dtype)[role],
                dtype=dtype,
                trainable=False,
                aggregation="only_first_replica",
            )

    def _warmed_up(self, name: str, dtype: str) -> dict[str, Tensor]:
        """The vectors to start with: a random ``u``, and what the iterations on the kernel at hand make of it."""
        arranged = self._arrangement(name)
        spec = self._spec(arranged.shape)
        rows = arranged.view(tf.cast(self._raw(name), dtype))
        start = self._normal((spec.rows,), dtype=dtype)
        u = start / norm(start, None)
        state = {"u": u, "v": _singular_vectors(spec, rows, {"u": u}, 0)[1]}
        u, v = _singular_vectors(spec, rows, state, spec.warm_up)
        return {"u": u, "v": arranged.gather(v)}

    @classmethod
    def from_native(cls, native: keras.layers.SpectralNormalization, **keras_kwargs: Any) -> Self:
        """The wrapper that goes on where a native one, which stays as it is, stands: a copy of its layer, its kernel and u.

        The first training call has the outputs that the native's has. The native's kernel was divided by its sigma in each
        training call; it is taken as it is, and from now on it is the raw one. ``u`` is scaled to norm 1, which the
        native's is not before its first training call. A row is what it is there: see the preset
        ``crossnorm.preset("keras", "spectral_norm", ...)``. For an embedding ``u`` has an entry for each dimension, as here
        by default; torch's has one for each index.

        Raises:
            SpecError: no native wrapper, or one that is not built.

        >>> import keras, numpy as np
        >>> native = keras.layers.SpectralNormalization(keras.layers.Dense(3))
        >>> native.build((None, 4))
        >>> ours = SpectralNormalization.from_native(native)
        >>> bool(np.allclose(ours(np.ones((1, 4)), training=True), native(np.ones((1, 4)), training=True), atol=1e-6))
        True
        """
        if not isinstance(native, keras.layers.SpectralNormalization):
            raise ArgumentTypeError(f"{cls.__name__}: {native!r} is no keras.layers.SpectralNormalization; give one")
        if not native.built:
            raise CallError(f"{cls.__name__}: the native layer {native.name!r} is not built; build it, so that it has a kernel")
        ours = cls(
            type(native.layer).from_config(native.layer.get_config()),
            epsilon=keras.config.epsilon(),
            iterations=native.power_iterations,
            stored="u",
            warm_up=0,
            transposed_row="input",
            depthwise_row="multiplier",
            **{"name": native.name, **keras_kwargs},
        )
        ours.build_from_config(native.get_build_config())
        ours.layer.set_weights(native.layer.get_weights())
        u = tf.reshape(native.vector_u.value, [-1])
        ours.u.assign(u / norm(u, None, of_zeros=1))
        return ours

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}
