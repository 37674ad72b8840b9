"""The oracle: forward, backward and state update of every method in NumPy, written from the papers.

No adapter imports this room and it imports no adapter: it is the independent witness. It knows one layout only,
``(batch, channel, *spatial)`` or ``(*batch, *normalized)``. For a reparametrization ``x`` is the raw weight, arranged as
``WeightSpec`` says: ``(rows, *rest)``, and ``y`` the effective one.
"""

from collections.abc import Mapping
from types import ModuleType

from crossnorm.spec import Mode, NormSpec

from . import (
    batch_norm,
    batch_renorm,
    filter_response_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
    spectral_norm,
    switchable_norm,
    weight_norm,
    weight_standardization,
)
from ._base import Array as Array
from ._base import Forward as Forward
from ._base import Quantity as Quantity

METHODS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        batch_norm,
        layer_norm,
        group_norm,
        instance_norm,
        rms_norm,
        batch_renorm,
        switchable_norm,
        filter_response_norm,
        weight_standardization,
        spectral_norm,
        weight_norm,
    )
}


def forward(spec: NormSpec, x: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], mode: Mode) -> Forward:
    """Output and new state of the specification's method, in the dtype of the arrays.

    Args:
        spec: any specification.
        x: the input or the raw weight, float64, longdouble or complex.
        parameters: an array for each of ``spec.parameters``.
        state: an array for each of ``spec.state``.
        mode: where the statistics come from and whether the state is updated.

    >>> import numpy as np, crossnorm
    >>> x = np.array([[1.0, 3.0]])
    >>> forward(crossnorm.LayerNormSpec(shape=2, eps=0.0, scale=False, offset=False), x, {}, {}, crossnorm.TRAIN).y.value
    array([[-1.,  1.]])
    """
    spec.check_arrays(parameters, state)
    result: Forward = METHODS[spec.method].forward(spec, x, parameters, state, mode)
    return result


def backward(
    spec: NormSpec,
    x: Array,
    parameters: Mapping[str, Array],
    state: Mapping[str, Array],
    mode: Mode,
    upstream: Array,
) -> dict[str, Quantity]:
    """The gradients ``{"x": ..., "scale": ..., ...}``, given the gradient ``upstream`` of the output.

    >>> import numpy as np, crossnorm
    >>> x = np.array([[1.0, 3.0]])
    >>> backward(crossnorm.RMSNormSpec(shape=2, scale=False), x, {}, {}, crossnorm.TRAIN, x)["x"].value.round(5)
    array([[0., 0.]])
    """
    spec.check_arrays(parameters, state)
    result: dict[str, Quantity] = METHODS[spec.method].backward(spec, x, parameters, state, mode, upstream)
    return result
