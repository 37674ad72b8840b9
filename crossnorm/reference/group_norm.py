"""Group normalization, from Wu and He 2018, arXiv:1803.08494, equations (1), (2), (6) and (7)."""

from collections.abc import Mapping

from crossnorm.spec import GroupNormSpec, Mode

from ._base import (
    Array,
    Forward,
    Quantity,
    Standardized,
    affine,
    expect,
    parameter_gradients,
    per_channel,
    standardize,
    standardize_backward,
)


def forward(spec: GroupNormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode) -> Forward:
    """Output for ``x`` of shape (batch, channel, *spatial); there is no state and the mode does not matter."""
    s = _standardized(spec, x)
    xhat = s.xhat.reshape(x.shape)
    y, magnitude = affine(xhat, per_channel(parameters.get("scale"), x.ndim), per_channel(parameters.get("offset"), x.ndim))
    return Forward(Quantity(y, magnitude, s.xhat.shape, s.axes))


def backward(
    spec: GroupNormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """Gradients of ``x`` and of every parameter, given the gradient ``upstream`` of the output."""
    s = _standardized(spec, x)
    scale = per_channel(parameters.get("scale"), x.ndim)
    g = upstream if scale is None else upstream * scale
    dx, magnitude = standardize_backward(s, g.reshape(s.xhat.shape))
    gradients = parameter_gradients(parameters, upstream, s.xhat.reshape(x.shape), (0, *range(2, x.ndim)))
    return {"x": Quantity(dx.reshape(x.shape), magnitude.reshape(x.shape), s.xhat.shape, s.axes), **gradients}


def _standardized(spec: GroupNormSpec, x: Array) -> Standardized:
    """Standardised in the view (batch, group, channel of the group, *spatial)."""
    expect(spec, x, 2)
    grouped = x.reshape((x.shape[0], spec.groups, spec.channels // spec.groups, *x.shape[2:]))
    return standardize(grouped, tuple(range(2, grouped.ndim)), spec.eps)
