"""``backward`` is the derivative of ``forward``: complex-step differentiation says so, element by element.

For a holomorphic f, Im f(a + ih) / h is f'(a) up to h^2, without any subtraction; with h = 1e-30 that is exact in longdouble.
"""

import numpy as np
import pytest

import crossnorm
from crossnorm import INFERENCE, TRAIN, UNTRACKED, reference

STEP = 1e-30


def complex_step(loss, array):
    """The gradient of ``loss`` at ``array``, one element at a time."""
    gradient = np.zeros(array.shape, np.longdouble)
    for index in np.ndindex(array.shape):
        moved = array.astype(np.clongdouble)
        moved[index] += 1j * STEP
        gradient[index] = loss(moved).imag / STEP
    return gradient


def gradients(spec, data, mode):
    """Every gradient by complex step, with the state's arrays constant."""

    def loss(name, array):
        x = array if name == "x" else data.x
        parameters = {**data.parameters, name: array} if name != "x" else data.parameters
        return np.sum(data.upstream * reference.forward(spec, x, parameters, data.state, mode).y.value)

    arrays = {"x": data.x, **data.parameters}
    return {name: complex_step(lambda a, name=name: loss(name, a), array) for name, array in arrays.items()}


def test_every_gradient_is_the_complex_step_derivative(case, draw, exactly):
    spec, shape, mode = case
    for seed in range(2):
        data = draw(spec, shape, seed)
        got = reference.backward(spec, data.x, data.parameters, data.state, mode, data.upstream)
        want = gradients(spec, data, mode)
        assert list(got) == ["x", *(array.name for array in spec.parameters)]
        for name, gradient in want.items():
            exactly(got[name].value, gradient, got[name].magnitude)


@pytest.mark.parametrize(
    "spec", [crossnorm.BatchNormSpec(channels=4), crossnorm.InstanceNormSpec(channels=4, tracked=True)], ids=lambda s: s.method
)
def test_running_statistics_are_constants(spec, draw):
    """With running statistics equal to the batch's own, the output is the same and the gradient is another one."""
    shape = (1, 4, 5)  # one sample: the batch's statistics are the instance's
    data = draw(spec, shape)
    axes = (0, 2)
    state = {**data.state, "running_mean": data.x.mean(axis=axes), "running_variance": data.x.var(axis=axes)}
    arguments = (spec, data.x, data.parameters, state)
    trained = reference.forward(*arguments, UNTRACKED).y.value
    inferred = reference.forward(*arguments, INFERENCE).y.value
    np.testing.assert_allclose(np.float64(inferred), np.float64(trained), rtol=1e-14)
    varying, constant = (reference.backward(*arguments, mode, data.upstream)["x"].value for mode in (UNTRACKED, INFERENCE))
    assert np.abs(varying - constant).max() > 0.1


def test_updating_the_state_does_not_change_the_gradient(draw):
    spec = crossnorm.BatchNormSpec(channels=4)
    data = draw(spec, (3, 4, 2))
    arguments = (spec, data.x, data.parameters, data.state)
    updating, keeping = (reference.backward(*arguments, mode, data.upstream) for mode in (TRAIN, UNTRACKED))
    for name in updating:
        np.testing.assert_array_equal(updating[name].value, keeping[name].value)


@pytest.mark.parametrize(
    "spec",
    [
        crossnorm.BatchNormSpec(channels=4, eps=0.0),
        crossnorm.InstanceNormSpec(channels=4, eps=0.0),
        crossnorm.GroupNormSpec(channels=4, groups=2, eps=0.0),
        crossnorm.LayerNormSpec(shape=(4, 5), eps=0.0),
        crossnorm.RMSNormSpec(shape=(4, 5), eps=0.0),
    ],
    ids=lambda spec: spec.method,
)
def test_gradient_along_a_shift_and_a_stretch_vanishes(spec, draw, exactly):
    """Where eps is 0, stretching x changes no output; adding a constant changes none that has its mean subtracted."""
    data = draw(spec, (3, 4, 5))
    dx = reference.backward(spec, data.x, data.parameters, data.state, TRAIN, data.upstream)["x"]
    exactly((dx.value * data.x).sum(), 0, (dx.magnitude * np.abs(data.x)).sum())
    if spec.method != "rms_norm":
        exactly(dx.value.sum(), 0, dx.magnitude.sum())


def test_magnitudes_bound_the_values(case, draw):
    """A magnitude is a sum of absolute values: no smaller than the result (a parameter's gradient: up to the root of n)."""
    spec, shape, mode = case
    data = draw(spec, shape)
    arguments = (spec, data.x, data.parameters, data.state, mode)
    result = reference.forward(*arguments)
    quantities = {"y": result.y, "dx": reference.backward(*arguments, data.upstream)["x"], **result.state}
    for name, quantity in quantities.items():
        assert np.shape(quantity.magnitude) == np.shape(quantity.value), name
        if name == "batches_tracked" or (name in data.state and not mode.update_running):
            assert np.all(quantity.magnitude == 0), name  # an integer, or an array that nobody touched
        else:
            assert np.all(quantity.magnitude >= np.abs(quantity.comparable(quantity.value)) * (1 - 1e-15)), name
    for name, gradient in reference.backward(*arguments, data.upstream).items():
        if name != "x":
            terms = data.x.size // (1 if name.endswith("_logits") else gradient.value.size)
            assert np.all(np.abs(gradient.value) <= gradient.magnitude * np.sqrt(np.longdouble(terms)) * (1 + 1e-15)), name


def test_magnitude_by_hand():
    """eps 1, x = 0, 4: mean 2, variance 4, rstd 1/sqrt 5; g = 1, 2: mean 1.5, mean of g xhat = (-2 + 4) / sqrt 5 / 2."""
    spec = crossnorm.LayerNormSpec(shape=2, eps=1.0)
    parameters = {"scale": np.array([3.0, -3.0]), "offset": np.array([-1.0, 1.0])}
    x, root = np.array([[0.0, 4.0]]), np.sqrt(5.0)
    y = reference.forward(spec, x, parameters, {}, TRAIN).y
    np.testing.assert_allclose(y.value, [[-6 / root - 1, -6 / root + 1]], rtol=1e-15)
    np.testing.assert_allclose(y.magnitude, [[6 / root + 1, 6 / root + 1]], rtol=1e-15)
    plain = spec.replace(scale=False, offset=False)
    dx = reference.backward(plain, x, {}, {}, TRAIN, np.array([[1.0, 2.0]]))["x"]
    projection = 2 / root * (1 / root)  # |xhat| times the mean of g xhat
    np.testing.assert_allclose(dx.value, [[(1 - 1.5 + projection) / root, (2 - 1.5 - projection) / root]], rtol=1e-14)
    np.testing.assert_allclose(dx.magnitude, [[(1 + 1.5 + projection) / root, (2 + 1.5 + projection) / root]], rtol=1e-14)
