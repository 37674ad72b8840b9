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
    "spec",
    [
        crossnorm.BatchNormSpec(channels=4),
        crossnorm.InstanceNormSpec(channels=4, tracked=True),
        crossnorm.SwitchableNormSpec(channels=4),
    ],
    ids=lambda s: s.method,
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


@pytest.mark.parametrize("bounds", [{}, {"r_max": 1.0, "d_max": 0.0}], ids=["unbounded", "bounded"])
def test_r_and_d_are_constants(bounds, draw, exactly):
    """Unbounded, the output is (x - m) / s. Were r and d to vary with x, its gradient would be that of this formula."""
    free = {"r_max": None, "d_max": None, "r_max_steps": None, "d_max_steps": None}
    spec = crossnorm.BatchRenormSpec(channels=4, eps=0.1, scale=False, offset=False, **{**free, **bounds})
    data = draw(spec, (3, 4, 5))
    state = {**data.state, "running_standard_deviation": np.full(4, 2.0, np.longdouble)}
    arguments = (spec, data.x, {}, state, TRAIN)
    y, varying = (data.x - state["running_mean"][:, None]) / 2, data.upstream / 2
    dx = reference.backward(*arguments, data.upstream)["x"]
    if bounds:
        exactly(dx.value, gradients(spec, data, TRAIN)["x"], dx.magnitude)
    else:
        exactly(reference.forward(*arguments).y.value, y)
    assert np.abs(dx.value - varying).max() > 0.1


@pytest.mark.parametrize("stored", ["u", "uv"])
def test_u_and_v_are_constants(stored, draw, exactly):
    spec = crossnorm.SpectralNormSpec(shape=(3, 2, 2), stored=stored)
    data = draw(spec, spec.shape)

    def loss(x, constant):
        """One iteration, v first, that follows a complex step or does not."""
        w = x.reshape(3, 4)
        seen = w.real if constant else w
        v = data.state["u"] @ seen
        v = v / np.sqrt(np.sum(v**2))
        u = seen @ v
        u = u / np.sqrt(np.sum(u**2))
        return np.sum(data.upstream.reshape(3, 4) * w / (u @ w @ v))

    dx = reference.backward(spec, data.x, {}, data.state, TRAIN, data.upstream)["x"]
    constant, varying = (complex_step(lambda x, c=c: loss(x, c), data.x) for c in (True, False))
    exactly(dx.value, constant, dx.magnitude)
    assert np.abs(dx.value - varying).max() > 0.01


@pytest.mark.parametrize("threshold", ["channel", "element"])
def test_at_the_threshold_the_gradient_goes_to_what_is_cut_off(threshold):
    """A layer fed with zeros: z = offset = threshold."""
    spatial = (2,) if threshold == "element" else None
    spec = crossnorm.FilterResponseNormSpec(channels=1, eps=0.25, threshold=threshold, spatial=spatial)
    parameters = {"scale": np.array([3.0]), "offset": np.array([5.0]), "threshold": np.full((1, *(spatial or ())), 5.0)}
    got = reference.backward(spec, np.zeros((1, 1, 2)), parameters, {}, TRAIN, np.array([[[7.0, 11.0]]]))
    np.testing.assert_array_equal(got["x"].value, [[[42, 66]]])
    np.testing.assert_array_equal(got["offset"].value, [18])
    np.testing.assert_array_equal(got["threshold"].value, np.zeros_like(parameters["threshold"]))


def test_a_learned_eps_of_zero_has_no_gradient(draw):
    spec = crossnorm.FilterResponseNormSpec(channels=4, learned_eps="channel", threshold=None)
    data = draw(spec, (3, 4, 2))
    for value, moves in ((0.0, False), (1.0, True)):
        parameters = {**data.parameters, "learned_eps": np.full(4, value)}
        gradient = reference.backward(spec, data.x, parameters, {}, TRAIN, data.upstream)["learned_eps"]
        assert np.all((gradient.value != 0) == moves)


@pytest.mark.parametrize("place", ["variance", "deviation", "maximum"])
@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_gradient_of_a_standardized_row_of_equal_numbers(place, eps):
    """The variance counts as constant: g less its mean, over the denominator; a denominator of 0 counts as 1."""
    spec = crossnorm.WeightStandardizationSpec(shape=(1, 3), eps=eps, eps_place=place, ddof=1)
    denominator = {"variance": np.sqrt(eps), "deviation": eps, "maximum": np.sqrt(eps / 3)}[place] or 1
    upstream = np.array([[1.0, 2.0, 6.0]])
    for equal in (0.1, 0.0, 1e5):
        weight = np.full((1, 3), equal)
        want = np.array([[-2, -1, 3]]) / denominator
        got = reference.backward(spec, weight, {}, {}, TRAIN, upstream)["x"]
        np.testing.assert_allclose(got.value, want, rtol=1e-15)
        stepped = complex_step(lambda w: np.sum(upstream * reference.forward(spec, w, {}, {}, TRAIN).y.value), weight)
        np.testing.assert_allclose(np.float64(stepped), want, rtol=1e-15)


def test_gradient_of_a_weight_of_zeros():
    """Finite: the norm, or sigma, counts as 1 and as constant."""
    upstream = np.array([[1.0, 2.0], [3.0, 4.0]])
    for over, eps, denominator in (("row", 0.0, 1.0), ("whole", 0.0, 1.0), ("row", 4.0, 4.0)):
        spec = crossnorm.WeightNormSpec(shape=(2, 2), norm_over=over, eps=eps)
        scale = np.array([5.0, 7.0]) if over == "row" else np.array(5.0)
        got = reference.backward(spec, np.zeros((2, 2)), {"scale": scale}, {}, TRAIN, upstream)
        np.testing.assert_array_equal(got["x"].value, upstream * scale.reshape(-1, 1) / denominator)
        np.testing.assert_array_equal(got["scale"].value, np.zeros_like(scale))
    state = {"u": np.array([3.0, 4.0]), "v": np.array([1.0, 0.0])}
    for weight, mode in ((np.zeros((2, 2)), TRAIN), (np.array([[4.0, 1.0], [-3.0, 1.0]]), INFERENCE)):
        got = reference.backward(crossnorm.SpectralNormSpec(shape=(2, 2)), weight, {}, state, mode, upstream)["x"]
        np.testing.assert_array_equal(got.value, upstream)


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
        crossnorm.BatchRenormSpec(channels=4, eps=0.0, r_max_steps=None, d_max_steps=None),
        crossnorm.SwitchableNormSpec(channels=4, eps=0.0),
        crossnorm.FilterResponseNormSpec(channels=4, eps=0.0),
        crossnorm.WeightStandardizationSpec(shape=(3, 4, 5), eps=0.0),
        crossnorm.SpectralNormSpec(shape=(3, 4, 5)),
        crossnorm.WeightNormSpec(shape=(3, 4, 5)),
    ],
    ids=lambda spec: spec.method,
)
def test_gradient_along_a_shift_and_a_stretch_vanishes(spec, draw, exactly):
    """Where eps is 0, stretching x changes no output; adding a constant changes none that has its mean subtracted."""
    data = draw(spec, (3, 4, 5))
    dx = reference.backward(spec, data.x, data.parameters, data.state, TRAIN, data.upstream)["x"]
    exactly((dx.value * data.x).sum(), 0, (dx.magnitude * np.abs(data.x)).sum())
    if spec.method not in ("rms_norm", "filter_response_norm", "spectral_norm", "weight_norm"):
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
        assert quantity.eps == (spec.eps if name.endswith("_variance") else None), name  # a variance is compared as a root
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


def test_magnitude_of_a_logits_gradient_by_hand():
    """x = 0, 4 in one channel, nothing but layer and running statistics, eps 0: rstd 1/4, weights 1/2 and 1/2.

    Layer: mean 2, variance 4; running: mean 6, variance 28; mixed: mean 4, variance 16, xhat = -1, 0. g = 3, 8.
    """
    spec = crossnorm.SwitchableNormSpec(channels=1, eps=0.0, use_instance=False, scale=False, offset=False)
    parameters = {"mean_logits": np.zeros(2), "variance_logits": np.zeros(2)}
    state = {"running_mean": np.array([6.0]), "running_variance": np.array([28.0]), "batches_tracked": np.array(1)}
    got = reference.backward(spec, np.array([[[0.0, 4.0]]]), parameters, state, INFERENCE, np.array([[[3.0, 8.0]]]))
    # -g rstd = -3/4, -2, times 1/2 (mean_k - 4) = -1 and 1
    np.testing.assert_allclose(got["mean_logits"].value, [11 / 4, -11 / 4], rtol=1e-15)
    np.testing.assert_allclose(got["mean_logits"].magnitude, [np.sqrt(73) / 4] * 2, rtol=1e-15)
    # -g xhat rstd^2 / 2 = 3/32, 0, times 1/2 (variance_k - 16) = -6 and 6
    np.testing.assert_allclose(got["variance_logits"].value, [-9 / 16, 9 / 16], rtol=1e-15)
    np.testing.assert_allclose(got["variance_logits"].magnitude, [9 / 16] * 2, rtol=1e-15)


def test_statistics_groups():
    """A row where rows are independent, else the whole weight; one channel of one sample where samples are."""

    def groups(spec, shape, parameters=(), state=()):
        arguments = (spec, np.arange(1.0, 1 + np.prod(shape)).reshape(shape), dict(parameters), dict(state), TRAIN)
        quantities = (reference.forward(*arguments).y, reference.backward(*arguments, np.ones(shape))["x"])
        numbers = np.arange(np.prod(shape)).reshape(shape)
        return [len(np.unique(quantity.over_groups(numbers))) for quantity in quantities]

    shape = (3, 2, 2)
    logits = {"mean_logits": np.ones(3), "variance_logits": np.ones(3)}
    running = {"running_mean": np.zeros(2), "running_variance": np.ones(2), "batches_tracked": np.array(0)}
    plain = {"channels": 2, "scale": False, "offset": False}
    assert groups(crossnorm.SwitchableNormSpec(**plain), shape, logits, running) == [6, 6]
    assert groups(crossnorm.FilterResponseNormSpec(threshold=None, **plain), shape) == [6, 6]
    running = {"running_mean": np.zeros(2), "running_standard_deviation": np.ones(2), "batches_tracked": np.array(0)}
    assert groups(crossnorm.BatchRenormSpec(**plain), shape, state=running) == [2, 2]
    assert groups(crossnorm.WeightStandardizationSpec(shape=shape), shape) == [3, 3]
    assert groups(crossnorm.WeightNormSpec(shape=shape), shape, {"scale": np.ones(3)}) == [3, 3]
    assert groups(crossnorm.WeightNormSpec(shape=shape, norm_over="whole"), shape, {"scale": np.ones(())}) == [1, 1]
    assert groups(crossnorm.SpectralNormSpec(shape=shape), shape, state={"u": np.ones(3), "v": np.ones(4)}) == [1, 1]
