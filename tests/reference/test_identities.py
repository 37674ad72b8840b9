"""How the methods relate, executed: outputs and every gradient, for random shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import crossnorm
from crossnorm import INFERENCE, TRAIN, UNTRACKED, reference
from crossnorm.spec import SPECS, WeightSpec

SIZES = st.integers(1, 4)
SHAPES = st.tuples(SIZES, SIZES, SIZES, SIZES)  # batch, channel, height, width
SEEDS = st.integers(0, 2**16)


def run(spec, data, x=None, parameters=None, upstream=None):
    """Output and gradients of a training step."""
    x = data.x if x is None else x
    parameters = data.parameters if parameters is None else parameters
    upstream = data.upstream if upstream is None else upstream
    state = {
        array.name: data.state[array.name] if array.initial is None else np.full(array.shape, array.initial, x.dtype)
        for array in spec.state
    }
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
    for cls in SPECS.values():
        sizes = {"channels": shape[1], "groups": 1, "shape": shape if issubclass(cls, WeightSpec) else shape[1:]}
        spec = cls(eps=0.0, **{name: size for name, size in sizes.items() if name in cls.__dataclass_fields__})
        data = draw(spec, shape, seed)
        np.testing.assert_array_equal(run(spec, data, data.x * 2.0**power)["y"].value, run(spec, data)["y"].value)


@given(SHAPES, SEEDS, st.sampled_from(["biased", "unbiased"]))
def test_batch_renorm_with_closed_bounds_is_batch_norm(draw, shape, seed, estimator):
    """Bit for bit, in every mode: outputs, gradients and, as a variance is kept, the state."""
    renorm = crossnorm.BatchRenormSpec(
        channels=shape[1], r_max=1.0, d_max=0.0, r_max_steps=None, d_max_steps=None, running_quantity=f"{estimator}_variance"
    )
    batch = crossnorm.BatchNormSpec(channels=shape[1], decay=renorm.decay, running_variance=estimator)
    data = draw(renorm, shape, seed)
    for mode in (TRAIN, UNTRACKED, INFERENCE):
        arguments = (data.x, data.parameters, data.state, mode)
        (y, state), (batch_y, batch_state) = (
            (result.y, result.state) for result in (reference.forward(spec, *arguments) for spec in (renorm, batch))
        )
        gradients, batch_gradients = (reference.backward(spec, *arguments, data.upstream) for spec in (renorm, batch))
        for ours, theirs in (({"y": y}, {"y": batch_y}), (state, batch_state), (gradients, batch_gradients)):
            assert list(ours) == list(theirs)
            for name in ours:
                np.testing.assert_array_equal(ours[name].value, theirs[name].value)
                np.testing.assert_array_equal(ours[name].magnitude, theirs[name].magnitude)


@given(SHAPES, SEEDS)
def test_batch_renorm_keeps_to_batch_norm_until_its_schedule_starts(draw, shape, seed):
    renorm, batch = crossnorm.BatchRenormSpec(channels=shape[1]), crossnorm.BatchNormSpec(channels=shape[1])
    data = draw(renorm, shape, seed)
    theirs = run(batch, data)
    for name, quantity in run(renorm, data).items():
        np.testing.assert_array_equal(quantity.value, theirs[name].value)


@given(SHAPES, SEEDS)
def test_unbounded_batch_renorm_trains_on_what_it_infers(draw, exactly, shape, seed):
    spec = crossnorm.BatchRenormSpec(channels=shape[1], eps=1e-2, r_max=None, d_max=None, r_max_steps=None, d_max_steps=None)
    data = draw(spec, shape, seed)
    state = {**data.state, "running_standard_deviation": data.state["running_standard_deviation"] + 0.1}
    trained, inferred = (reference.forward(spec, data.x, data.parameters, state, mode).y for mode in (UNTRACKED, INFERENCE))
    exactly(trained.value, inferred.value, trained.magnitude)


@given(SHAPES, SEEDS, st.sampled_from([0, 1, 2]))
def test_switchable_norm_with_all_weight_on_one_statistic_is_that_norm(draw, exactly, shape, seed, chosen):
    plain = {"scale": False, "offset": False}
    spec = crossnorm.SwitchableNormSpec(channels=shape[1], **plain)
    other = [
        crossnorm.InstanceNormSpec(channels=shape[1], **plain),
        crossnorm.LayerNormSpec(shape=shape[1:], **plain),
        crossnorm.BatchNormSpec(channels=shape[1], decay=0.9, running_variance="biased", **plain),
    ][chosen]
    data = draw(spec, shape, seed)
    logits = np.where(np.arange(3) == chosen, 0, np.longdouble(-1e5))
    ours = run(spec, data, parameters={"mean_logits": logits, "variance_logits": logits})
    theirs = run(other, data, parameters={})
    for name in ("y", "x"):
        exactly(ours[name].value, theirs[name].value, theirs[name].magnitude)


@given(SHAPES, SEEDS, st.integers(1, 4))
def test_sum_and_average_is_the_variance_of_all_batches_together(draw, exactly, shape, seed, batches):
    spec = crossnorm.SwitchableNormSpec(channels=shape[1], decay=None, pooled=True)
    data = [draw(spec, shape, seed + number) for number in range(batches)]
    state = {**data[0].state, "batches_tracked": np.asarray(0)}
    for batch in data:
        result = reference.forward(spec, batch.x + batch.parameters["offset"][0], batch.parameters, state, TRAIN)
        state = {name: quantity.value for name, quantity in result.state.items()}
    together = np.concatenate([batch.x + batch.parameters["offset"][0] for batch in data])
    exactly(state["running_mean"], together.mean(axis=(0, 2, 3)), np.abs(together).max())
    exactly(state["running_variance"], together.var(axis=(0, 2, 3)), np.abs(together).max() ** 2)


@given(SHAPES, SEEDS)
def test_filter_response_norm_without_eps_and_threshold_is_rms_norm_over_positions(draw, exactly, shape, seed):
    response = crossnorm.FilterResponseNormSpec(channels=shape[1], eps=0.0, threshold=None, scale=False, offset=False)
    rms = crossnorm.RMSNormSpec(shape=shape[2:], eps=0.0, scale=False)
    data = draw(response, shape, seed)
    ours = run(response, data)
    for name, quantity in run(rms, data).items():
        exactly(ours[name].value, quantity.value, quantity.magnitude)


@given(SHAPES, SEEDS)
def test_weight_standardization_is_layer_norm_of_rows(draw, exactly, shape, seed):
    weights = crossnorm.WeightStandardizationSpec(shape=shape, eps=0.1)
    layer = crossnorm.LayerNormSpec(shape=shape[1:], eps=0.1, scale=False, offset=False)
    data = draw(weights, shape, seed)
    ours = run(weights, data)
    for name, quantity in run(layer, data).items():
        exactly(ours[name].value, quantity.value, quantity.magnitude)


@given(SHAPES, SEEDS, st.floats(0.1, 10), st.floats(-10, 10), st.sampled_from(["variance", "deviation", "maximum"]))
def test_standardization_forgets_a_weights_scale_and_offset(draw, exactly, shape, seed, stretch, shift, place):
    spec = crossnorm.WeightStandardizationSpec(shape=(*shape, 3), eps=0.0, eps_place=place, scale=True)
    data = draw(spec, spec.shape, seed)
    moved = stretch * data.x + shift
    want, got = (run(spec, data, x=x) for x in (data.x, moved))
    # What the rounding of the moved weight does to a row grows with its size over the row's spread.
    spread = data.x.std(axis=(1, 2, 3, 4), keepdims=True)
    excuse = (1 + np.abs(moved).max() / stretch / spread) * np.abs(want["y"].value).max()
    exactly(got["y"].value, want["y"].value, excuse)


@given(st.tuples(SIZES, SIZES, SIZES), SEEDS, st.sampled_from(["row", "whole"]))
def test_a_weight_of_its_own_length_is_itself(draw, exactly, shape, seed, over):
    spec = crossnorm.WeightNormSpec(shape=shape, norm_over=over)
    data = draw(spec, shape, seed)
    axes = (1, 2) if over == "row" else None
    scale = np.asarray(np.sqrt(np.sum(data.x**2, axis=axes)))
    exactly(run(spec, data, parameters={"scale": scale})["y"].value, data.x)


@given(st.tuples(SIZES, SIZES, SIZES), SEEDS)
def test_initialization_from_data_standardises_the_outputs(draw, exactly, shape, seed):
    shape = (shape[0] + 1, *shape[1:])
    outputs = draw(crossnorm.BatchNormSpec(channels=shape[1]), shape, seed).x
    scale, bias = reference.weight_norm.initialize(outputs)
    standardized = outputs * scale[:, None] + bias[:, None]
    excuse = 1 + (np.abs(outputs) * scale[:, None]).max()
    exactly(standardized.mean(axis=(0, 2)), np.zeros(shape[1]), excuse)
    exactly(standardized.std(axis=(0, 2)), np.ones(shape[1]), excuse)


@pytest.mark.parametrize("order", ["v_first", "u_first"])
@pytest.mark.parametrize("seed", range(5))
def test_spectral_norm_converges_to_the_largest_singular_value(draw, order, seed):
    """Fifty iterations, one at a time, where the second singular value is only 5 per cent smaller."""
    spec = crossnorm.SpectralNormSpec(shape=(6, 2, 4), iteration_order=order)
    data = draw(spec, spec.shape, seed, dtype=np.float64)
    left, values, right = np.linalg.svd(data.x.reshape(6, 8), full_matrices=False)
    values[0] = values[1] / 0.95
    weight, state = ((left * values) @ right).reshape(spec.shape), data.state
    for _ in range(50):
        result = reference.forward(spec, weight, {}, state, TRAIN)
        state = {name: quantity.value for name, quantity in result.state.items()}
    inferred = reference.forward(spec, weight, {}, state, INFERENCE).y.value
    assert np.linalg.svd(inferred.reshape(6, 8), compute_uv=False)[0] == pytest.approx(1, abs=1e-3)


def test_many_iterations_at_once_are_many_calls(draw):
    once, often = (crossnorm.SpectralNormSpec(shape=(3, 4), iterations=n) for n in (7, 1))
    data = draw(often, often.shape)
    state = data.state
    for _ in range(7):
        result = reference.forward(often, data.x, {}, state, TRAIN)
        state = {name: quantity.value for name, quantity in result.state.items()}
    np.testing.assert_array_equal(reference.forward(once, data.x, {}, data.state, TRAIN).y.value, result.y.value)
