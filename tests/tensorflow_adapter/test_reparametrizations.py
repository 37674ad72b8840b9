"""The wrappers: against the reference in rounding units, on every kind of layer, and in all that Keras does with layers."""

import copy
import itertools
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm import reference, rounding
from crossnorm.tensorflow import SpectralNormalization, WeightNormalization, WeightStandardization

# Keras saves a variable by np.array(variable), with which NumPy 2 finds fault.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

ALL = [WeightStandardization, SpectralNormalization, WeightNormalization]
GOAL = 8

SHAPE = (5, 4, 3, 3)
SPECS = {
    "standardized": crossnorm.WeightStandardizationSpec(shape=SHAPE),
    "standardized-bare": crossnorm.WeightStandardizationSpec(shape=SHAPE, eps=0.0, ddof=1, scale=True),
    "standardized-authors": crossnorm.WeightStandardizationSpec(shape=SHAPE, eps_place="deviation", ddof=1),
    "standardized-scaled": crossnorm.WeightStandardizationSpec(
        shape=SHAPE, eps=1e-4, eps_place="maximum", scale=True, gain=1.7, fan_in_scaling=True
    ),
    "spectral": crossnorm.SpectralNormSpec(shape=SHAPE),
    "spectral-u-first": crossnorm.SpectralNormSpec(shape=SHAPE, iteration_order="u_first", iterations=2, eps=1e-7),
    "spectral-u": crossnorm.SpectralNormSpec(shape=SHAPE, stored="u", eps_place="added_to_square", eps=0.1),
    "spectral-always": crossnorm.SpectralNormSpec(shape=SHAPE, iterate="always", eps_place="maximum_of_square"),
    "spectral-none": crossnorm.SpectralNormSpec(shape=SHAPE, iterations=0),
    "normalized": crossnorm.WeightNormSpec(shape=SHAPE),
    "normalized-whole": crossnorm.WeightNormSpec(shape=SHAPE, norm_over="whole", eps=0.1, eps_place="added_to_square"),
    "normalized-bare": crossnorm.WeightNormSpec(shape=SHAPE, scale=False, eps=1e-6),
    "normalized-floor": crossnorm.WeightNormSpec(shape=SHAPE, eps=1e-12, eps_place="maximum_of_square"),
    "one-column": crossnorm.WeightNormSpec(shape=(5,)),
    "one-column-standardized": crossnorm.WeightStandardizationSpec(shape=(5, 1, 1), ddof=1, eps=0.0),
    "one-column-spectral": crossnorm.SpectralNormSpec(shape=(5,)),
}
REGIMES = {
    "plain": lambda w: w,
    "offset": lambda w: w + 1e4,
    "tiny": lambda w: w * 1e-15,
    "huge": lambda w: w * 1e15,
    # The squares of these are no numbers of float32.
    "minute": lambda w: w * 1e-25,
    "giant": lambda w: w * 1e25,
    "constant row": lambda w: np.where(rows(w) == 1, 3.7, w),
    "zero row": lambda w: np.where(rows(w) == 1, 0.0, w),
    "zero": lambda w: w * 0,
    "outlier": lambda w: np.where(np.arange(w.size).reshape(w.shape) == 7, 1e3, w),
    "mixed": lambda w: (w + rows(w)) * 10.0 ** (rows(w) - 2),
}


def rows(w):
    return np.arange(len(w)).reshape(-1, *[1] * (w.ndim - 1))


def drawn(spec, random):
    """Parameters and state; the vectors have norm 1, one iteration away from random ones."""
    arrays = {array.name: random.uniform(0.5, 1.5, array.shape) for array in spec.parameters}
    return arrays | {array.name: random.normal(size=array.shape) for array in spec.state}


def unit(vector):
    return vector / np.linalg.norm(vector)


def check(spec, regime, dtype, mode):
    random = np.random.default_rng(0)
    oracle, accumulation = rounding.oracle_dtype(dtype), rounding.accumulation(dtype)
    weight = rounding.round_to(REGIMES[regime](random.normal(size=spec.shape)), dtype)
    arrays = drawn(spec, random)
    if "u" in arrays:
        matrix = np.asarray(weight, "f8").reshape(spec.rows, -1)
        arrays["v"] = unit(matrix.T @ arrays["u"]) if matrix.any() else unit(np.ones(spec.columns))
        arrays["u"] = unit(matrix @ arrays["v"]) if matrix.any() else unit(arrays["u"])
        arrays = {array.name: arrays[array.name] for array in spec.state}
    arrays = {name: rounding.round_to(value, accumulation) for name, value in arrays.items()}
    upstream = rounding.round_to(random.normal(size=spec.shape), dtype)
    values = {k: np.asarray(v, oracle) for k, v in {**arrays, "weight": weight, "upstream": upstream}.items()}
    parameters, state = ([array.name for array in of] for of in (spec.parameters, spec.state))

    def evaluate(inputs):
        p, s = ({name: inputs[name] for name in names} for names in (parameters, state))
        forward = reference.forward(spec, inputs["weight"], p, s, mode)
        backward = reference.backward(spec, inputs["weight"], p, s, mode, inputs["upstream"])
        return {"effective": forward.y, **{f"d{name}": q for name, q in backward.items()}, **forward.state}

    dtypes = {name: dtype if name in ("weight", "upstream") else accumulation for name in values}
    stored = {name: dtype if name in ("effective", "dx") else accumulation for name in evaluate(values)}
    exact, units = rounding.unit(evaluate, values, dtypes, stored, seed=0)
    function = getattr(crossnorm.tensorflow.functional, spec.method)
    w, dy = (tf.cast(tf.constant(np.asarray(each, "f8")), dtype) for each in (weight, upstream))
    p, s = ({name: tf.constant(arrays[name]) for name in names} for names in (parameters, state))
    with tf.GradientTape() as tape:
        tape.watch([w, p])
        effective, new = function(spec, w, p, s, mode)
    dw, gradients = tape.gradient(effective, (w, p), dy)
    assert effective.dtype == dw.dtype == w.dtype
    got = {"effective": effective, "dx": dw, **{f"d{name}": g for name, g in gradients.items()}, **new}
    assert set(got) == set(exact)
    for name, value in got.items():
        worst = rounding.in_units(tf.cast(value, "float64").numpy(), exact[name], units[name], stored[name]).max()
        assert worst <= GOAL, f"{name}: {worst} rounding units"


# Where eps is far above every length, sigma is a number that float32 does not have.
BEYOND = [("spectral-u-first", "tiny"), ("spectral-u", "tiny"), ("spectral-always", "tiny")]
BEYOND += [(name, "minute") for name in SPECS if "spectral" in name and name != "spectral-none"]


@pytest.mark.parametrize(("name", "regime"), [row for row in itertools.product(SPECS, REGIMES) if row not in BEYOND])
def test_values(name, regime):
    modes = (crossnorm.TRAIN, crossnorm.INFERENCE, crossnorm.UNTRACKED) if SPECS[name].state else (crossnorm.TRAIN,)
    for mode in modes:
        check(SPECS[name], regime, "float32", mode)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", SPECS)
def test_values_in_other_dtypes(name, dtype):
    check(SPECS[name], "plain", dtype, crossnorm.TRAIN)


@pytest.mark.parametrize("name", ["standardized", "spectral", "normalized"])
def test_values_of_a_large_weight(name):
    for regime in ("plain", "offset"):
        check(SPECS[name].replace(shape=(32, 128, 3, 3)), regime, "float32", crossnorm.TRAIN)


def test_values_where_products_would_be_rounded(monkeypatch):
    """As on an accelerator: sums in the place of products of matrices."""
    monkeypatch.setattr(crossnorm.tensorflow.spectral_norm, "products_are_exact", lambda: False)
    monkeypatch.setattr(tf, "matmul", None)
    for regime in ("plain", "offset", "zero"):
        check(SPECS["spectral"], regime, "float32", crossnorm.TRAIN)
    test_kinds(SpectralNormalization, "transposed 1d", {}, KINDS["transposed 1d"][2])
    test_kinds(SpectralNormalization, "convolution 1d", {}, KINDS["convolution 1d"][2])


# Every kind of layer. The last entry says where the rows and then the columns of each kernel are stored.

KINDS = {
    "dense": (lambda: keras.layers.Dense(3), (2, 4), [(1, 0)]),
    "einsum": (lambda: keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (2, 3, 4), [(1, 2, 0)]),
    "einsum of a batch": (lambda: keras.layers.EinsumDense("abc,bcd->abd", (3, 5)), (2, 3, 4), [(0, 2, 1)]),
    "convolution 1d": (lambda: keras.layers.Conv1D(5, 3), (2, 6, 4), [(2, 1, 0)]),
    "grouped": (lambda: keras.layers.Conv2D(6, (3, 2), groups=2), (2, 5, 5, 4), [(3, 2, 0, 1)]),
    "convolution 3d": (lambda: keras.layers.Conv3D(3, (1, 3, 2)), (2, 4, 4, 4, 2), [(4, 3, 0, 1, 2)]),
    "transposed 1d": (lambda: keras.layers.Conv1DTranspose(5, 3), (2, 6, 4), [(1, 2, 0)]),
    "transposed 2d": (lambda: keras.layers.Conv2DTranspose(5, (3, 2)), (2, 4, 4, 3), [(2, 3, 0, 1)]),
    "depthwise 1d": (lambda: keras.layers.DepthwiseConv1D(3, depth_multiplier=2), (2, 6, 4), [(1, 2, 0)]),
    "depthwise 2d": (lambda: keras.layers.DepthwiseConv2D((3, 2), depth_multiplier=2), (2, 5, 5, 3), [(2, 3, 0, 1)]),
    "separable 1d": (lambda: keras.layers.SeparableConv1D(5, 3), (2, 6, 4), [(1, 2, 0), (2, 1, 0)]),
    "separable 2d": (lambda: keras.layers.SeparableConv2D(5, 3), (2, 5, 5, 3), [(2, 3, 0, 1), (3, 2, 0, 1)]),
    "embedding": (lambda: keras.layers.Embedding(7, 3), (2, 4), [(1, 0)]),
    "simple recurrent": (lambda: keras.layers.SimpleRNN(3), (2, 4, 5), [(1, 0), (1, 0)]),
    "LSTM": (lambda: keras.layers.LSTM(3, return_sequences=True), (2, 4, 5), [(1, 0), (1, 0)]),
    "GRU": (lambda: keras.layers.GRU(3), (2, 4, 5), [(1, 0), (1, 0)]),
}
OTHER_ROWS = {
    "transposed 2d": ({"transposed_row": "input"}, [(3, 2, 0, 1)]),
    "depthwise 2d": ({"depthwise_row": "multiplier"}, [(3, 2, 0, 1)]),
    "embedding": ({"embedding_row": "input"}, [(0, 1)]),
}


def inputs(kind, dtype="float32"):
    shape, random = KINDS[kind][1], np.random.default_rng(0)
    return tf.constant(random.integers(0, 7, shape)) if kind == "embedding" else tf.constant(random.normal(size=shape), dtype)


def kernels(wrapper):
    holder = getattr(wrapper.layer, "cell", wrapper.layer)
    return [getattr(holder, name) for name in wrapper._kernel_names]


def each(wrapper, value):
    return list(value.values()) if len(wrapper._kernel_names) > 1 else [value]


def gradients(layer, x, variables, **arguments):
    with tf.GradientTape() as tape:
        y = layer(x, **arguments)
        loss = tf.reduce_sum(tf.sin(y))
    return y, [tf.convert_to_tensor(g) for g in tape.gradient(loss, [v.value for v in variables])]


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize(
    ("kind", "options", "orders"),
    [(kind, {}, orders) for kind, (_, _, orders) in KINDS.items()]
    + [(kind, options, orders) for kind, (options, orders) in OTHER_ROWS.items()],
)
def test_kinds(cls, kind, options, orders):
    """In double precision: the outputs and gradients are those of a plain layer that has the reference's effective weights."""
    x = inputs(kind, "float64")
    keras.utils.set_random_seed(1)
    layer, plain = KINDS[kind][0](), KINDS[kind][0]()
    layer.dtype_policy = plain.dtype_policy = "float64"
    if hasattr(layer, "cell"):
        layer.cell.dtype_policy = plain.cell.dtype_policy = "float64"
    learned = {} if cls is SpectralNormalization else {"scale": True}
    wrapper = cls(layer, **learned, **options)
    wrapper.build(x.shape)
    plain.build(x.shape)
    plain.set_weights(layer.get_weights())
    raw, stand_in = kernels(wrapper), kernels(type("Wrapped", (), {"layer": plain, "_kernel_names": wrapper._kernel_names}))
    random = np.random.default_rng(2)
    gains = [] if cls is SpectralNormalization else each(wrapper, wrapper.gain)
    for gain in gains:
        gain.assign(random.uniform(0.5, 1.5, gain.shape))
    state = [{} for _ in raw]
    if cls is SpectralNormalization:
        state = [
            {"u": u.numpy(), "v": v.numpy()} for u, v in zip(each(wrapper, wrapper.u), each(wrapper, wrapper.v), strict=True)
        ]
    results = []
    for number, (kernel, order, spec) in enumerate(zip(raw, orders, each(wrapper, wrapper.spec), strict=True)):
        w = kernel.numpy().transpose(order)
        parameters = {"scale": gains[number].numpy()} if gains else {}
        forward = reference.forward(spec, w.reshape(spec.shape), parameters, state[number], crossnorm.TRAIN)
        back = forward.y.value.reshape(w.shape).transpose(np.argsort(order))
        stand_in[number].assign(back)
        results.append((spec, w, order, parameters, forward))
    wanted_y, plain_gradients = gradients(plain, x, stand_in)
    y, got = gradients(wrapper, x, [*raw, *gains], training=True)
    assert np.allclose(y, wanted_y, rtol=1e-9, atol=1e-9)
    for number, (spec, w, order, parameters, forward) in enumerate(results):
        upstream = plain_gradients[number].numpy().transpose(order).reshape(spec.shape)
        arguments = spec, w.reshape(spec.shape), parameters, state[number], crossnorm.TRAIN, upstream
        wanted = {name: quantity.value for name, quantity in reference.backward(*arguments).items()}
        dw = got[number].numpy().transpose(order).reshape(spec.shape)
        assert np.allclose(dw, wanted["x"], rtol=1e-8, atol=1e-9)
        if gains:
            assert np.allclose(got[len(raw) + number], wanted["scale"], rtol=1e-8, atol=1e-9)
        for role, vector in forward.state.items():
            assert np.allclose(each(wrapper, getattr(wrapper, role))[number], vector.value, rtol=1e-9)


@pytest.mark.parametrize("cls", ALL)
def test_a_convolution_with_channels_first(cls):
    # The processor has no such convolution; the wrapper does not run one here.
    wrapper = cls(keras.layers.Conv2D(5, 3, data_format="channels_first"))
    wrapper.build((2, 4, 6, 6))
    assert wrapper.spec.shape == (5, 4, 3, 3)
    assert wrapper.compute_output_shape((2, 4, 6, 6)) == (2, 5, 4, 4)


class Custom(keras.layers.Layer):
    """A layer of somebody's own, whose weight has a name and no attribute of that name."""

    def build(self, shape):
        self.matrix = self.add_weight(name="table", shape=(shape[-1], 3))
        self.shift = self.add_weight(name="shift", shape=(3,), initializer="ones")
        self.calls = self.add_weight(name="calls", shape=(), initializer="zeros", trainable=False)
        self.drop = keras.layers.Dropout(0.5, seed=1)

    def call(self, x, training=None, mask=None):
        self.calls.assign_add(1)
        self.add_loss(tf.reduce_sum(self.matrix) * 0 + 2)
        return self.drop(tf.matmul(x, self.matrix) + self.shift, training=training)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("kernel", ["table", "matrix", ["table"]])
def test_a_layer_of_somebodys_own(cls, kernel):
    wrapper, x = cls(Custom(), kernel=kernel), tf.ones((2, 4))
    y = wrapper(x)
    assert np.allclose(y, x @ wrapper.effective_weight() + 1, atol=1e-6)
    assert wrapper.spec.shape == (3, 4)
    # What it assigns is assigned: its own counter, and the state of the seed.
    first, second = wrapper(x, training=True), wrapper(x, training=True)
    assert (wrapper.layer.calls.numpy(), wrapper.layer.drop.seed_generator.state.numpy()[1]) == (3, 2)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("cls", ALL)
def test_losses(cls):
    options = {"kernel_regularizer": "l2", "activity_regularizer": "l1"}
    wrapper, x = cls(keras.layers.Dense(3, use_bias=False, **options)), tf.ones((2, 4))
    wrapper.build(x.shape)
    wrapper.layer.kernel.assign(2 * wrapper.layer.kernel)
    y = wrapper(x)
    activity, weight = 0.01 * np.abs(y).sum() / 2, 0.01 * np.square(wrapper.layer.kernel).sum()
    assert np.allclose(sorted(wrapper.losses), sorted([activity, weight]))
    assert len(wrapper.losses) == 2


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("kind", ["dense", "separable 2d"])
def test_the_effective_weight_is_computed_once_for_each_call(cls, kind, monkeypatch):
    count = []
    original = cls._compute

    def counted(*arguments):
        count.append(arguments)
        return original(*arguments)

    wrapper, x = cls(KINDS[kind][0]()), inputs(kind)
    wrapper.build(x.shape)
    monkeypatch.setattr(cls, "_compute", staticmethod(counted))
    wrapper(x, training=True)
    assert len(count) == len(wrapper._kernel_names)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("execution", ["graph", "unknown batch", "XLA"])
@pytest.mark.parametrize("kind", ["dense", "transposed 2d", "depthwise 2d", "embedding", "LSTM"])
def test_graphs(cls, execution, kind):
    x = inputs(kind)
    keras.utils.set_random_seed(0)
    eager, graph = cls(KINDS[kind][0]()), cls(KINDS[kind][0]())
    for wrapper in (eager, graph):
        wrapper.build(x.shape)
    graph.set_weights(eager.get_weights())
    options = {"jit_compile": True} if execution == "XLA" else {}
    if execution == "unknown batch":
        options["input_signature"] = [tf.TensorSpec([None, *x.shape[1:]], x.dtype)]
    step = tf.function(lambda x: gradients(graph, x, graph.trainable_variables, training=True), **options)
    for _ in range(2):
        (a, of_a), (b, of_b) = gradients(eager, x, eager.trainable_variables, training=True), step(x)
        for one, other in zip([a, *of_a], [b, *of_b], strict=True):
            assert np.allclose(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(eager.get_weights(), graph.get_weights(), strict=True):
        assert np.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("cls", ALL)
def test_built_inside_a_function(cls):
    wrapper, x = cls(keras.layers.Dense(3)), inputs("dense")
    y = tf.function(wrapper)(x)
    assert np.allclose(y, wrapper(x), atol=1e-6)
    if cls is SpectralNormalization:
        assert np.allclose(np.linalg.norm(wrapper.u), 1, atol=1e-6)


@pytest.mark.parametrize("cls", ALL)
def test_second_order(cls):
    wrapper, x = cls(keras.layers.Dense(3)), inputs("dense")
    wrapper.build(x.shape)
    kernel = wrapper.layer.kernel.value
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_sum(wrapper(x) ** 3)
        penalty = tf.reduce_sum(inner.gradient(loss, kernel) ** 2)
    assert np.isfinite(outer.gradient(penalty, kernel)).all()


POLICIES = ["mixed_float16", "mixed_bfloat16", "float16", "float64"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["dense", "convolution 1d", "embedding"])
@pytest.mark.parametrize("cls", ALL)
def test_policies(cls, kind, policy):
    layer = KINDS[kind][0]()
    layer.dtype_policy = policy
    wrapper, x = cls(layer, **({} if cls is SpectralNormalization else {"scale": True})), inputs(kind)
    y = wrapper(x, training=True)
    half = policy.removeprefix("mixed_")
    assert y.dtype.name == half == wrapper.compute_dtype
    stored = "float32" if "mixed" in policy else half
    assert kernels(wrapper)[0].dtype == wrapper.effective_weight().dtype.name == stored
    held = [wrapper.u, wrapper.v] if cls is SpectralNormalization else [wrapper.gain]
    vectors = "float64" if policy == "float64" else "float32"
    assert {variable.dtype for variable in held} == {vectors if cls is SpectralNormalization else stored}
    # As exact as if the layer had been given its effective weight, in the dtype that it is stored in.
    plain = KINDS[kind][0]()
    plain.dtype_policy = policy
    plain.build(x.shape)
    kernels(type("Wrapped", (), {"layer": plain, "_kernel_names": wrapper._kernel_names}))[0].assign(wrapper.effective_weight())
    assert np.array_equal(tf.cast(plain(x), "float64"), tf.cast(wrapper(x), "float64"))


def test_a_wrapper_of_another_policy_does_not_round_the_weight():
    x = inputs("dense")
    wide = WeightNormalization(keras.layers.Dense(3, dtype="float32"), dtype="mixed_float16")
    assert np.allclose(wide(x), x @ wide.layer.kernel, atol=1e-6)
    with_mixed = keras.Sequential([keras.Input((4,)), WeightNormalization(keras.layers.Dense(3, dtype="float32"))])
    with_mixed.dtype_policy = "mixed_float16"
    assert with_mixed(x).dtype == "float32"


def test_indices_given_as_floats_are_not_rounded():
    wrapper = WeightNormalization(keras.layers.Embedding(5000, 2, dtype="mixed_float16"))
    assert np.array_equal(wrapper(tf.constant([4097.0])), wrapper(tf.constant([4097])))


def test_everything_under_a_global_policy():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        wrapper = WeightNormalization(keras.layers.Dense(3))
        model = keras.Sequential([keras.Input((4,)), wrapper, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(inputs("dense"), np.zeros((2, 1)), verbose=0)
        assert (wrapper.gain.dtype, wrapper(inputs("dense")).dtype) == ("float32", tf.float16)
    finally:
        keras.config.set_dtype_policy(before)


def models(cls):
    """A model of each way to make one, all from the same layers."""
    make = [lambda: cls(keras.layers.Conv1D(4, 2)), lambda: cls(keras.layers.SeparableConv1D(3, 2), name="second")]

    def functional():
        x = keras.Input((6, 2))
        return keras.Model(x, keras.layers.GlobalAveragePooling1D()(make[1]()(make[0]()(x))))

    return {
        "sequential": lambda: keras.Sequential(
            [keras.Input((6, 2)), make[0](), make[1](), keras.layers.GlobalAveragePooling1D()]
        ),
        "functional": functional,
        "subclassed": lambda: Subclassed(cls),
    }


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, cls, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = cls(keras.layers.Conv1D(4, 2)), cls(keras.layers.SeparableConv1D(3, 2))

    def call(self, x):
        return tf.reduce_mean(self.second(self.first(x)), 1)


@pytest.mark.parametrize("kind", ["sequential", "functional", "subclassed"])
@pytest.mark.parametrize("cls", ALL)
def test_fit(cls, kind, tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(16, 6, 2)).astype("f4"), random.normal(size=(16, 3)).astype("f4")
    model = models(cls)[kind]()
    model.compile("adam", "mse")
    losses = model.fit(x, y, batch_size=8, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    before = model(x)
    model.save_weights(tmp_path / "weights.weights.h5")
    other = models(cls)[kind]()
    other(x)
    assert not np.allclose(other(x), before)
    other.load_weights(tmp_path / "weights.weights.h5")
    assert np.array_equal(other(x), before)
    third = models(cls)[kind]()
    third(x)
    third.set_weights(model.get_weights())
    assert np.array_equal(third(x), before)


OPTIONS = {
    WeightStandardization: {"scale": True, "ddof": 1, "gain": 1.7, "eps_place": "deviation", "epsilon": 1e-3},
    SpectralNormalization: {"iterations": 2, "stored": "u", "warm_up": 3, "seed": 5, "kernel": ["pointwise_kernel"]},
    WeightNormalization: {"norm_over": "whole", "initial_scale": "ones", "kernel": "depthwise_kernel"},
}


@pytest.mark.parametrize("cls", ALL)
def test_files_and_copies(cls, tmp_path):
    x = np.random.default_rng(0).normal(size=(2, 6, 2)).astype("f4")
    wrapper = cls(keras.layers.SeparableConv1D(3, 2, name="inner"), name="outer", **OPTIONS[cls])
    model = keras.Sequential([keras.Input((6, 2)), wrapper])
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    for other in (
        keras.saving.load_model(tmp_path / "model.keras"),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert np.array_equal(other(x), model(x))
        assert other.layers[0].spec == wrapper.spec
        assert [w.name for w in other.weights] == [w.name for w in model.weights]
    for other in (cls.from_config(wrapper.get_config()), keras.models.clone_model(model).layers[0]):
        assert other.get_config() == wrapper.get_config()
        assert (other.name, other.layer.name) == ("outer", "inner")


@pytest.mark.parametrize("cls", ALL)
def test_export(cls, tmp_path):
    x = inputs("dense")
    model = keras.Sequential([keras.Input((4,)), cls(keras.layers.Dense(3))])
    model.export(tmp_path / "saved", verbose=False)
    assert np.allclose(tf.saved_model.load(tmp_path / "saved").serve(x), model(x), atol=1e-6)


@pytest.mark.parametrize("cls", ALL)
def test_stateless_call(cls):
    wrapper, x = cls(Custom(), kernel="table"), inputs("dense")
    wrapper.build(x.shape)
    before = wrapper.get_weights()
    trainable, fixed = ([v.value + 0 for v in of] for of in (wrapper.trainable_variables, wrapper.non_trainable_variables))
    y, new, losses = wrapper.stateless_call([v * 3 for v in trainable], fixed, x, training=True, return_losses=True)
    assert all(np.array_equal(a, b) for a, b in zip(before, wrapper.get_weights(), strict=True))
    assert [float(loss) for loss in losses] == [2.0]
    wrapper.set_weights(before)
    for variable in wrapper.trainable_variables:
        variable.assign(variable * 3)
    assert np.allclose(wrapper(x, training=True), y, atol=1e-6)
    for variable, value in zip(wrapper.non_trainable_variables, new, strict=True):
        assert np.allclose(variable.numpy(), value, atol=1e-6), variable.path


@pytest.mark.parametrize("cls", ALL)
def test_masks(cls):
    x = tf.constant([[1, 2, 0, 0], [3, 4, 5, 0]])
    mask = x != 0
    embedded = cls(keras.layers.Embedding(7, 3, mask_zero=True))(x)
    assert np.array_equal(embedded._keras_mask, mask)
    assert np.array_equal(cls(keras.layers.Embedding(7, 3, mask_zero=True)).compute_mask(x), mask)
    dense = cls(keras.layers.Dense(3))
    dense.build((None, None, 3))
    assert np.array_equal(dense(embedded)._keras_mask, mask)
    recurrent = cls(keras.layers.LSTM(3))
    wanted = recurrent(embedded[1:, :3])
    assert np.allclose(recurrent(embedded)[1:], wanted, atol=1e-6)
    assert np.allclose(recurrent(tf.identity(embedded), mask=mask)[1:], wanted, atol=1e-6)
    model = keras.Sequential([keras.Input((4,), dtype="int32"), cls(keras.layers.Embedding(7, 3, mask_zero=True)), recurrent])
    assert model(x).shape == (2, 3)
    with pytest.warns(UserWarning, match="does not support masking"):
        cls(keras.layers.Conv1D(2, 1))(embedded)


@pytest.mark.parametrize("cls", ALL)
def test_other_arguments_reach_the_layer(cls):
    wrapper, plain, x = cls(keras.layers.GRU(3, return_state=True)), keras.layers.GRU(3), tf.ones((2, 4, 5))
    state = tf.ones((2, 3))
    with_state, _ = wrapper(x, initial_state=state)
    plain.build(x.shape)
    for name in ("kernel", "recurrent_kernel"):
        getattr(plain.cell, name).assign(wrapper.effective_weight(name))
    assert np.allclose(with_state, plain(x, initial_state=state), atol=1e-6)
    assert [output.shape for output in wrapper(keras.Input((4, 5)))] == [(None, 3), (None, 3)]


@pytest.mark.parametrize("time", [3, None])
@pytest.mark.parametrize("cls", ALL)
def test_within_time_distributed(cls, time):
    wrapper = cls(keras.layers.Dense(2))
    model = keras.Sequential([keras.Input((time, 4)), keras.layers.TimeDistributed(wrapper)])
    x = tf.constant(np.random.default_rng(0).normal(size=(5, 3, 4)), tf.float32)
    assert np.allclose(model(x), x @ wrapper.effective_weight(), atol=1e-5)
    model.compile("sgd", "mse")
    model.fit(x, x[..., :2], verbose=0)


@pytest.mark.parametrize("cls", ALL)
def test_two_threads_do_not_see_each_others_weights(cls):
    """One thread stands still inside the wrapped layer, while another one reads the kernel."""
    seen = []

    class Dense(keras.layers.Dense):
        def call(self, x):
            seen.append(self.kernel.numpy())
            thread = __import__("threading").Thread(target=lambda: seen.append(self.kernel.numpy()))
            thread.start()
            thread.join()
            return super().call(x)

    wrapper = cls(Dense(3))
    wrapper.build((None, 4))
    wrapper.layer.kernel.assign(3 * wrapper.layer.kernel)
    wrapper.effective = wrapper.effective_weight().numpy()
    wrapper(inputs("dense"))
    assert np.array_equal(seen[0], wrapper.effective)
    assert np.array_equal(seen[1], wrapper.layer.kernel.numpy())


def test_a_wrapped_layer_inside_a_wrapped_layer():
    @keras.saving.register_keras_serializable(package="tests")
    class Two(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 3))
            self.inner = SpectralNormalization(keras.layers.Dense(3, use_bias=False), warm_up=1)
            self.inner.build((None, 3))

        def call(self, x):
            return self.inner(tf.matmul(x, self.kernel))

    wrapper, x = WeightStandardization(Two()), inputs("dense")
    y = wrapper(x)
    assert np.allclose(y, x @ wrapper.effective_weight() @ wrapper.layer.inner.effective_weight(), atol=1e-5)
    u = wrapper.layer.inner.u.numpy()
    wrapper(x, training=True)
    assert not np.array_equal(u, wrapper.layer.inner.u.numpy())


# Specifications.


@pytest.mark.parametrize("name", list(SPECS)[:-3])
def test_layer_obeys_the_specification_that_it_is_made_from(name):
    wrapped = keras.layers.Conv2D(5, 3)
    wrapper = crossnorm.tensorflow.layer(SPECS[name], wrapped=wrapped, name="its_name")
    assert (wrapper.spec, wrapper.layer, wrapper.name) == (SPECS[name], wrapped, "its_name")
    wrapper(tf.ones((1, 5, 5, 4)))
    assert wrapper.spec == SPECS[name]
    assert type(wrapper).from_config(wrapper.get_config()).get_config() == wrapper.get_config()


def test_attributes_are_the_truth():
    wrapper, x = WeightNormalization(keras.layers.Dense(3), norm_over="whole"), inputs("dense")
    before = wrapper(x)
    wrapper.epsilon = 1e3
    assert wrapper.spec.eps == 1e3
    assert np.abs(wrapper(x)).max() < np.abs(before).max() / 100
    wrapper.scale = False
    assert wrapper.gain is not None
    assert np.allclose(np.linalg.norm(wrapper.effective_weight()) * 1e3, np.linalg.norm(wrapper.layer.kernel))


# Bad input. Nothing changes, and one sentence says what is wrong.


def weights_of(*layers):
    return [(w.path, w.numpy()) for layer in layers for w in layer.weights]


def refused(sentence, function, *layers, error=crossnorm.SpecError):
    before = weights_of(*layers)
    with pytest.raises(error, match=sentence) as raised:
        function()
    assert isinstance(raised.value, crossnorm.CrossnormError)
    assert "\n" not in str(raised.value)
    after = weights_of(*layers)
    assert [path for path, _ in before] == [path for path, _ in after]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(before, after, strict=True))


def built(layer, shape=(None, 4)):
    layer.build(shape)
    return layer


@pytest.mark.parametrize("cls", ALL)
def test_no_layer(cls):
    for nothing in (None, 3, keras.layers.Dense):
        refused("is no Keras layer", lambda nothing=nothing: cls(nothing))


@pytest.mark.parametrize("cls", ALL)
def test_no_kernel(cls):
    norm = built(keras.layers.BatchNormalization())
    refused("has no kernel; its weights are 'gamma', 'beta', 'moving_mean', 'moving_variance'", lambda: cls(norm), norm)
    late = keras.layers.ReLU()
    refused("has no kernel; its weights are none", lambda: built(cls(late)), late)
    refused("has no kernel", lambda: built(cls(keras.Sequential([keras.layers.Dense(2)]))))


@pytest.mark.parametrize("cls", ALL)
def test_unknown_kernel(cls):
    dense = built(keras.layers.Dense(3))
    refused("no weight 'wieght'; its weights are 'kernel', 'bias'", lambda: cls(dense, kernel="wieght"), dense)
    refused("no weight 'wieght'", lambda: built(cls(keras.layers.Dense(3), kernel=["kernel", "wieght"])))
    for kernel in (3, [], ["kernel", "kernel"], [None]):
        refused("kernel=", lambda kernel=kernel: cls(dense, kernel=kernel), dense, error=TypeError)
    wrapper = built(cls(dense))
    refused("'wieght' is not one of 'kernel'", lambda: wrapper.effective_weight("wieght"), wrapper)


@pytest.mark.parametrize("other", ALL)
@pytest.mark.parametrize("cls", ALL)
def test_wrapped_already(cls, other):
    first = other(built(keras.layers.Dense(3)))
    refused(f"is a {other.__name__} already", lambda: cls(first), first)
    first.build((None, 4))
    refused(f"'kernel' of the layer .* is wrapped already, by a {other.__name__}", lambda: cls(first.layer), first)
    unbuilt = keras.layers.Dense(3)
    first, second = other(unbuilt), cls(unbuilt)
    built(first)
    refused("is wrapped already", lambda: built(second), first)
    assert np.isfinite(first(inputs("dense"))).all()
    refused("is a SpectralNormalization already", lambda: cls(keras.layers.SpectralNormalization(keras.layers.Dense(3))))


@pytest.mark.parametrize("cls", ALL)
def test_tied(cls):
    class Tied(keras.layers.Dense):
        def build(self, shape):
            super().build(shape)
            self._kernel = first.kernel

    first = built(keras.layers.Dense(4))
    second = built(Tied(4))
    wrapper = built(cls(first))
    refused("'kernel' of the layer .* is wrapped already", lambda: cls(second), wrapper, second)


@pytest.mark.parametrize("cls", ALL)
def test_not_built(cls):
    for layer in (keras.layers.Dense(3), built(keras.layers.Dense(3))):
        wrapper = cls(layer)
        for ask in ("spec", "u" if cls is SpectralNormalization else "gain"):
            refused("not known before the layer is built", lambda ask=ask, wrapper=wrapper: getattr(wrapper, ask), wrapper)
        refused("not known before the layer is built", wrapper.effective_weight, wrapper)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("arguments", [{"epsilon": -1.0}, {"epsilon": float("nan")}, {"transposed_row": "both"}])
def test_arguments(cls, arguments):
    dense = built(keras.layers.Dense(3))
    refused("Spec: ", lambda: cls(dense, **arguments), dense)
    wrapper = built(cls(dense))
    for name, value in arguments.items():
        setattr(wrapper, name, value)
    for call in (wrapper, tf.function(wrapper)):
        refused("Spec: ", lambda call=call: call(inputs("dense"), training=True), wrapper)


@pytest.mark.parametrize("cls", ALL)
def test_layers_that_compute_with_another_kernel(cls):
    refused("adapts its kernel by LoRA", lambda: cls(keras.layers.Dense(3, lora_rank=2)), error=crossnorm.Unsupported)
    dense = built(keras.layers.Dense(3))
    wrapper = built(cls(dense))
    dense.enable_lora(2)
    refused("by LoRA", lambda: wrapper(inputs("dense")), wrapper, error=crossnorm.Unsupported)
    quantized = built(keras.layers.Dense(3))
    quantized.quantize("int8")
    refused("is quantized to int8", lambda: cls(quantized), error=crossnorm.Unsupported)
    with keras.RematScope("full"):
        again = keras.layers.Dense(3)
    refused("was made inside a RematScope", lambda: cls(again), error=crossnorm.Unsupported)


@pytest.mark.parametrize("cls", ALL)
def test_an_error_in_the_layer_changes_nothing(cls):
    wrapper, kernel = cls(keras.layers.Dense(3)), None
    built(wrapper)
    kernel = wrapper.layer.kernel.numpy()
    before = weights_of(wrapper)
    with pytest.raises(ValueError, match="incompatible"):
        wrapper(tf.ones((2, 5)), training=True)
    assert np.array_equal(wrapper.layer.kernel.numpy(), kernel)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(before, weights_of(wrapper), strict=True))
    assert np.isfinite(wrapper(tf.ones((2, 4)))).all()


@pytest.mark.parametrize("cls", ALL)
def test_a_layer_that_assigns_its_own_kernel(cls):
    class Clipped(keras.layers.Dense):
        def call(self, x):
            self.kernel.assign(tf.clip_by_value(self.kernel, -0.1, 0.1))
            return super().call(x)

    wrapper = built(cls(Clipped(3)))
    refused("assigns its own 'kernel'", lambda: wrapper(inputs("dense"), training=True), wrapper)


def test_layer_door():
    spec = SPECS["spectral"]
    refused("give that layer by wrapped=", lambda: crossnorm.tensorflow.layer(spec))
    dense = keras.layers.Dense(3)
    refused("for the wrapped layer to say", lambda: crossnorm.tensorflow.layer(spec, wrapped=dense, rank=2))
    refused("wraps no layer", lambda: crossnorm.tensorflow.layer(crossnorm.BatchNormSpec(channels=3), wrapped=dense))
    refused("which picks the class", lambda: WeightNormalization.from_spec(spec, dense))
    refused("the specification says", lambda: built(crossnorm.tensorflow.layer(spec, wrapped=dense)))
    refused("the specification says", lambda: crossnorm.tensorflow.layer(spec, wrapped=built(keras.layers.Dense(3))))


@pytest.mark.parametrize("spec", [SPECS["standardized-bare"], SPECS["spectral"], SPECS["normalized"]])
def test_pure_functions_refuse_other_arrays(spec):
    function, w = getattr(crossnorm.tensorflow.functional, spec.method), np.ones(spec.shape)
    parameters, state = ({array.name: np.ones(array.shape) for array in of} for of in (spec.parameters, spec.state))
    assert function(spec, w, parameters, state, crossnorm.TRAIN)[0].shape == w.shape
    refused("arrange its rows first", lambda: function(spec, w.T, parameters, state, crossnorm.TRAIN))
    refused("parameters of shapes", lambda: function(spec, w, {"gain": np.ones(5)}, state, crossnorm.TRAIN))
    refused("state of shapes", lambda: function(spec, w, parameters, {"w": np.ones(3)}, crossnorm.TRAIN))
    refused("int64", lambda: function(spec, w.astype(int), parameters, state, crossnorm.TRAIN))
