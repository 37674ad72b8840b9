"""How the methods relate, executed: outputs and every gradient, for random shapes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import crossnorm
from crossnorm import TRAIN, reference
from crossnorm.spec import SPECS

SIZES = st.integers(1, 4)
SHAPES = st.tuples(SIZES, SIZES, SIZES, SIZES)  # batch, channel, height, width
SEEDS = st.integers(0, 2**16)


def run(spec, data, x=None, parameters=None, upstream=None):
    """Output and gradients of a training step."""
    x = data.x if x is None else x
    parameters = data.parameters if parameters is None else parameters
    upstream = data.upstream if upstream is None else upstream
    state = {array.name: np.full(array.shape, array.initial, x.dtype) for array in spec.state}
    result = reference.forward(spec, x, parameters, state, TRAIN)
    gradients = reference.backward(spec, x, parameters, state, TRAIN, upstream)
    return {"y": result.y, **gradients}


@given(SHAPES, SEEDS)
def test_instance_norm_is_group_norm_with_a_group_per_channel(draw, exactly, shape, seed):
    instance = crossnorm.InstanceNormSpec(channels=shape[1])
    group = crossnorm.GroupNormSpec(channels=shape[1], groups=shape[1])
    data = draw(instance, shape, seed)
    ours = run(instance, data)
    for name, quantity in run(group, data).items():
        exactly(ours[name].value, quantity.value, quantity.magnitude)


@given(SHAPES, SEEDS)
def test_one_group_is_layer_norm_with_parameters_spread_over_positions(draw, exactly, shape, seed):
    group = crossnorm.GroupNormSpec(channels=shape[1], groups=1)
    layer = crossnorm.LayerNormSpec(shape=shape[1:])
    data = draw(group, shape, seed)
    spread = {name: np.broadcast_to(values[:, None, None], shape[1:]) for name, values in data.parameters.items()}
    ours, theirs = run(group, data), run(layer, data, parameters=spread)
    for name in ("y", "x"):
        exactly(ours[name].value, theirs[name].value, theirs[name].magnitude)
    for name in data.parameters:
        exactly(ours[name].value, theirs[name].value.sum(axis=(1, 2)), theirs[name].magnitude.sum(axis=(1, 2)))


@given(SHAPES, SEEDS)
def test_batch_norm_of_a_batch_of_one_is_instance_norm(draw, exactly, shape, seed):
    shape = (1, *shape[1:])
    batch, instance = crossnorm.BatchNormSpec(channels=shape[1]), crossnorm.InstanceNormSpec(channels=shape[1])
    data = draw(instance, shape, seed)
    ours = run(batch, data)
    for name, quantity in run(instance, data).items():
        exactly(ours[name].value, quantity.value, quantity.magnitude)


@given(SHAPES, SEEDS)
def test_batch_norm_is_layer_norm_of_the_transpose(draw, exactly, shape, seed):
    """A channel over batch and positions is a row over its elements."""
    batch = crossnorm.BatchNormSpec(channels=shape[1], scale=False, offset=False)
    layer = crossnorm.LayerNormSpec(shape=(shape[0] * shape[2] * shape[3],), scale=False, offset=False)
    data = draw(batch, shape, seed)

    def rows(values):
        return np.moveaxis(values, 1, 0).reshape(shape[1], -1)

    theirs = run(layer, data, x=rows(data.x), upstream=rows(data.upstream))
    for name, quantity in run(batch, data).items():
        exactly(rows(quantity.value), theirs[name].value, theirs[name].magnitude)


@given(SHAPES, SEEDS)
def test_rms_norm_is_layer_norm_of_rows_with_mean_zero(draw, exactly, shape, seed):
    layer, rms = (SPECS[method](shape=shape[1:]) for method in ("layer_norm", "rms_norm"))
    layer = layer.replace(offset=False)
    data = draw(layer, shape, seed)
    x = data.x - data.x.mean(axis=(1, 2, 3), keepdims=True)
    ours, theirs = run(rms, data, x), run(layer, data, x)
    exactly(ours["y"].value, theirs["y"].value)
    exactly(ours["scale"].value, theirs["scale"].value, theirs["scale"].magnitude)
    # Layer normalization's gradient has no component along a shift; take it away from the other.
    centred = ours["x"].value - ours["x"].value.mean(axis=(1, 2, 3), keepdims=True)
    exactly(centred, theirs["x"].value, theirs["x"].magnitude)


@given(SHAPES, SEEDS, st.integers(-3, 3))
def test_stretching_the_input_changes_nothing_where_eps_is_zero(draw, shape, seed, power):
    """By a power of two, which rounds nowhere: bit for bit."""
    shape = (*shape[:3], shape[3] + 1)  # no group of one value
    sizes = {"channels": shape[1], "groups": 1, "shape": shape[1:]}
    for cls in SPECS.values():
        spec = cls(eps=0.0, **{name: size for name, size in sizes.items() if name in cls.__dataclass_fields__})
        data = draw(spec, shape, seed)
        np.testing.assert_array_equal(run(spec, data, data.x * 2.0**power)["y"].value, run(spec, data)["y"].value)
