"""Spectral normalization, from Miyato, Kataoka, Koyama and Yoshida 2018, arXiv:1802.05957, equations (8) and (12) and
Algorithm 1."""

from collections.abc import Mapping

import numpy as np

from crossnorm.spec import Mode, SpectralNormSpec

from ._base import Array, Forward, Quantity, as_matrix, floored_square, keep_running, like_weight

_WHOLE = (0, 1)


def forward(
    spec: SpectralNormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode
) -> Forward:
    """The effective weight of the raw weight ``x`` of shape (rows, *rest), and the new state."""
    w = as_matrix(spec, x)
    u, v = _singular_vectors(spec, w, state, mode)
    y = w / _sigma(w, u, v)
    output = like_weight(spec, y, np.abs(y), _WHOLE)
    if not mode.update_running:
        return Forward(output, keep_running(spec, state))
    vectors = {"u": u, "v": v}
    return Forward(output, {name: Quantity(vectors[name], np.abs(vectors[name]), vectors[name].shape, (0,)) for name in state})


def backward(
    spec: SpectralNormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """The gradient of the raw weight ``x``, given the gradient ``upstream`` of the effective weight: equation (12)."""
    w, g = as_matrix(spec, x), as_matrix(spec, upstream)
    u, v = _singular_vectors(spec, w, state, mode)
    sigma = _sigma(w, u, v)
    # A sigma of 0 counts as 1, a constant.
    projection = np.sum(g * w) / sigma**2 * np.outer(u, v) * (u @ w @ v != 0)
    magnitude = np.abs(g / sigma) + np.abs(projection)
    return {"x": like_weight(spec, g / sigma - projection, magnitude, _WHOLE)}


def _sigma(w: Array, u: Array, v: Array) -> Array:
    sigma = u @ w @ v
    return np.asarray(sigma if sigma.real != 0 else sigma.dtype.type(1))


def _singular_vectors(spec: SpectralNormSpec, w: Array, state: Mapping[str, Array], mode: Mode) -> tuple[Array, Array]:
    """u and v after this call's iterations: constants, from the real part, so that a complex step leaves them alone."""
    w = w.real
    u = state["u"]
    iterations = spec.iterations if mode.use_batch_statistics or spec.iterate == "always" else 0
    v = state["v"] if "v" in state else _unit(spec, w.T @ u, np.zeros(spec.columns, w.dtype))
    for _ in range(iterations):
        if spec.iteration_order == "v_first":
            v = _unit(spec, w.T @ u, v)
            u = _unit(spec, w @ v, u)
        else:
            u = _unit(spec, w @ v, u)
            v = _unit(spec, w.T @ u, v)
    return u, v


def _unit(spec: SpectralNormSpec, product: Array, before: Array) -> Array:
    """``product`` over its denominator; where its norm is 0, the vector as it was before."""
    if not product.any():
        return before
    square, _ = floored_square(spec, np.sum(product**2))
    return np.asarray(product / np.sqrt(square))
