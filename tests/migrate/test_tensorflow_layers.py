"""Keras layers, native and ours: what they are described as, and that they come back as they were."""

from dataclasses import replace

import keras
import numpy as np
import pytest

import crossnorm
import crossnorm.tensorflow as ours
from crossnorm.errors import MigrationError, Unsupported
from crossnorm.migrate import Description, Layout, build, describe
from crossnorm.migrate.tensorflow import variables, write

L = keras.layers


pytestmark = pytest.mark.filterwarnings("ignore:.*You passed `rms_scaling=True`, which is deprecated:UserWarning")


# A layer, not built, and the shape of its input.
NATIVE = {
    "batch": (lambda **kw: L.BatchNormalization(**kw), (6, 4)),
    "batch, options": (lambda **kw: L.BatchNormalization(axis=1, momentum=0.7, epsilon=0.1, scale=False, **kw), (3, 4, 5)),
    "batch, plain": (lambda **kw: L.BatchNormalization(center=False, scale=False, **kw), (3, 2, 5, 4)),
    "renorm": (lambda **kw: L.BatchNormalization(renorm=True, momentum=0.5, renorm_momentum=0.6, **kw), (3, 5, 4)),
    "renorm, bounds": (
        lambda **kw: L.BatchNormalization(renorm=True, renorm_clipping={"rmax": 1.5, "rmin": 0.5, "dmax": 0.2}, **kw),
        (3, 5, 4),
    ),
    "layer": (lambda **kw: L.LayerNormalization(**kw), (3, 5)),
    "layer, options": (lambda **kw: L.LayerNormalization(axis=[1, 2], epsilon=0.1, center=False, **kw), (3, 4, 5)),
    "layer, plain": (lambda **kw: L.LayerNormalization(axis=1, center=False, scale=False, **kw), (3, 4, 5)),
    "layer, last two": (lambda **kw: L.LayerNormalization(axis=(-1, -2), **kw), (3, 4, 5)),
    "layer, rms_scaling": (lambda **kw: L.LayerNormalization(rms_scaling=True, **kw), (3, 5)),
    "group": (lambda **kw: L.GroupNormalization(groups=2, **kw), (3, 5, 4)),
    "group, options": (lambda **kw: L.GroupNormalization(groups=2, axis=1, epsilon=0.1, scale=False, **kw), (3, 4, 5)),
    "group, plain": (lambda **kw: L.GroupNormalization(groups=1, center=False, scale=False, **kw), (3, 4)),
    "group, instance": (lambda **kw: L.GroupNormalization(groups=-1, **kw), (3, 5, 4)),
    "rms": (lambda **kw: L.RMSNormalization(epsilon=0.1, **kw), (3, 5)),
    "rms, last two": (lambda **kw: L.RMSNormalization(axis=[1, 2], **kw), (3, 4, 5)),
    "spectral, dense": (lambda **kw: L.SpectralNormalization(L.Dense(3, **kw), **kw, power_iterations=2), (4, 5)),
    "spectral, transposed": (
        lambda **kw: L.SpectralNormalization(L.Conv2DTranspose(3, 4, strides=2, **kw), **kw),
        (2, 5, 5, 2),
    ),
    "spectral, depthwise": (
        lambda **kw: L.SpectralNormalization(L.DepthwiseConv1D(3, depth_multiplier=2, **kw), **kw),
        (2, 5, 3),
    ),
}
# The last one's output would be cast to the indices' dtype.
EMBEDDING = {"spectral, embedding": (lambda **kw: L.SpectralNormalization(L.Embedding(7, 4, **kw), **kw), (2, 5))}
OWN = {
    "batch": (lambda **kw: ours.BatchNormalization(running_variance="unbiased", single_value="raise", **kw), (6, 4)),
    "batch, cumulative": (lambda **kw: ours.BatchNormalization(axis=1, momentum=None, **kw), (3, 4, 5)),
    "batch, untracked": (lambda **kw: ours.BatchNormalization(track_running_stats=False, **kw), (3, 4, 5)),
    "batch, renorm": (lambda **kw: ours.BatchNormalization(renorm=True, renorm_clipping={"dmax": 1.0}, **kw), (3, 4, 5)),
    "renorm": (lambda **kw: ours.BatchRenormalization(r_max_steps=(0, 2), d_max_steps=None, **kw), (3, 4)),
    "renorm, two pairs": (lambda **kw: ours.BatchRenormalization(axis=1, renorm_decay=0.5, **kw), (3, 4, 5)),
    "renorm, variance": (
        lambda **kw: ours.BatchRenormalization(running_quantity="unbiased_variance", renorm_decay=0.5, r_min=0.1, **kw),
        (3, 5, 4),
    ),
    "layer": (lambda **kw: ours.LayerNormalization(axis=[1, 2], subtract_mean=False, **kw), (3, 4, 5)),
    "group": (lambda **kw: ours.GroupNormalization(groups=2, center=False, **kw), (3, 5, 4)),
    "instance": (lambda **kw: ours.InstanceNormalization(axis=1, scale=False, **kw), (3, 4, 5)),
    "instance, tracked": (lambda **kw: ours.InstanceNormalization(track_running_stats=True, momentum=None, **kw), (3, 5, 4)),
    "rms": (lambda **kw: ours.RMSNormalization(axis=1, use_scale=False, **kw), (3, 4, 5)),
    "rms, scale": (lambda **kw: ours.RMSNormalization(axis=1, **kw), (3, 4, 5)),
    "switchable": (lambda **kw: ours.SwitchableNormalization(variance="unbiased", last_gamma=True, **kw), (3, 5, 4)),
    "switchable, two": (lambda **kw: ours.SwitchableNormalization(use_batch=False, axis=1, **kw), (3, 4, 5)),
    "response": (lambda **kw: ours.FilterResponseNormalization(learned_eps="scalar", **kw), (3, 5, 4)),
    "response, elements": (
        lambda **kw: ours.FilterResponseNormalization(axis=2, threshold="element", learned_eps="channel", **kw),
        (3, 5, 4, 2),
    ),
    "response, no threshold": (lambda **kw: ours.FilterResponseNormalization(threshold=None, scale=False, **kw), (3, 5, 4)),
    "standardization": (
        lambda **kw: ours.WeightStandardization(L.Conv2D(4, 3, padding="same", strides=2, **kw), scale=True, gain=1.7, ddof=1),
        (2, 5, 5, 2),
    ),
    "standardization, multipliers": (
        lambda **kw: ours.WeightStandardization(L.DepthwiseConv2D(3, depth_multiplier=2, **kw), depthwise_row="multiplier"),
        (2, 5, 5, 3),
    ),
    "standardization, groups": (
        lambda **kw: ours.WeightStandardization(L.Conv1D(6, 3, groups=3, **kw), depthwise_row="multiplier"),
        (2, 5, 3),
    ),
    "spectral": (lambda **kw: ours.SpectralNormalization(L.Dense(3, activation="relu", **kw), epsilon=1e-9, seed=0), (4, 5)),
    "spectral, u": (
        lambda **kw: ours.SpectralNormalization(L.Embedding(7, 4, **kw), stored="u", embedding_row="input"),
        (2, 5),
    ),
    "spectral, transposed": (
        lambda **kw: ours.SpectralNormalization(L.Conv1DTranspose(3, 4, padding="same", **kw), iteration_order="u_first"),
        (2, 5, 2),
    ),
    "length": (lambda **kw: ours.WeightNormalization(L.Conv3D(2, 2, use_bias=False, **kw), norm_over="whole"), (1, 3, 3, 3, 2)),
    "length, depthwise": (lambda **kw: ours.WeightNormalization(L.DepthwiseConv1D(3, depth_multiplier=2, **kw)), (2, 5, 3)),
    "length, causal": (
        lambda **kw: ours.WeightNormalization(L.Conv1D(2, 3, padding="causal", **kw), eps_place="added_to_square"),
        (2, 5, 3),
    ),
    "length, channels first": (lambda **kw: ours.WeightNormalization(L.Conv2D(2, 3, data_format="channels_first", **kw)), None),
    "direction": (lambda **kw: ours.WeightNormalization(L.Dense(3, **kw), scale=False), (4, 5)),
}  # fmt: skip
CASES = {f"native {name}": case for name, case in NATIVE.items() | EMBEDDING.items()} | {f"our {n}": c for n, c in OWN.items()}


def is_a_wrapper(layer):
    return isinstance(layer, L.Wrapper)


def sample(layer, shape, seed=0):
    generator = np.random.default_rng(seed)
    if isinstance(getattr(layer, "layer", None), L.Embedding):
        return generator.integers(0, 7, shape)
    return generator.normal(0.3, 1, shape).astype("float32")


def trained(case, **kwargs):
    """A layer with arrays that no initializer makes, after two training steps, and an input for it."""
    make, shape = case
    layer = make(**kwargs)
    layer.build(shape or (None, 3, 5, 5))
    generator = np.random.default_rng(1)
    for weight in layer.weights:
        if weight.dtype != "int64":
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    if shape is None:  # nothing that a processor computes
        return layer, None
    for seed in range(2):
        run(layer, sample(layer, shape, seed))
    return layer, sample(layer, shape, 2)


def run(layer, x, training=True):
    keywords = {} if not is_a_wrapper(layer) and "training" not in layer._call_signature.parameters else {"training": training}
    return np.array(layer(x, **keywords))


def assert_same(one: Description, other: Description):
    assert (one.spec, one.layout) == (other.spec, other.layout)
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert (array.dtype, array.shape) == (other.arrays[name].dtype, other.arrays[name].shape), name
        assert array.tobytes() == other.arrays[name].tobytes(), name


def again(description, native=False, holder=None):
    return build(*description, framework="tensorflow", native=native, holder=holder)


@pytest.mark.parametrize("case", CASES)
def test_round_trip_of_descriptions(case):
    layer, _ = trained(CASES[case])
    description = describe(layer)
    names = {array.name for array in (*description.spec.parameters, *description.spec.state)}
    assert names <= description.arrays.keys() <= names | {"weight", "bias"}
    assert_same(describe(again(description)), description)


@pytest.mark.parametrize("case", CASES)
def test_the_same_class_computes_the_same_bit_for_bit_and_trains_on(case):
    layer, x = trained(CASES[case])
    twin = again(describe(layer), native=case.startswith("native"))
    if not (renorm := isinstance(layer, ours.BatchNormalization) and layer.renorm):
        assert type(twin) is type(layer)
    if x is None:
        return
    same = np.allclose if renorm else np.array_equal
    for training in (False, True, True):
        assert same(run(layer, x, training), run(twin, x, training))
    for name, array in describe(layer).arrays.items():
        assert name == "batches_tracked" or same(array, describe(twin).arrays[name]), name


@pytest.mark.parametrize("case", NATIVE)
def test_our_layer_of_a_native_one_computes_the_same_in_training_and_inference(case):
    layer, x = trained(NATIVE[case])
    twin = again(describe(layer))
    assert isinstance(twin, ours._base.SpecLayer)
    # Without training the native wrapper does not normalize; with it, it overwrites the kernel.
    modes = (True,) if is_a_wrapper(layer) else (False, True, True)
    for training in modes:
        assert np.allclose(run(layer, x, training), run(twin, x, training), rtol=1e-4, atol=1e-5)
    for name, array in describe(layer).arrays.items():
        if name not in ("batches_tracked", "weight"):
            assert np.allclose(array, describe(twin).arrays[name], rtol=1e-4, atol=1e-6), name


POLICY_CASES = ["native batch", "native layer", "native group", "native rms", "native spectral, dense", "our spectral"]
POLICY_CASES += ["our batch, cumulative", "our standardization", "our length", "our response"]


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "float64", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("case", POLICY_CASES)
def test_policies(case, policy):
    layer, x = trained(CASES[case], dtype=policy)
    description = describe(layer)
    assert description.layout.dtype == policy
    stored = "float32" if policy.startswith("mixed") else policy
    dtypes = {name: str(array.dtype) for name, array in description.arrays.items()}
    assert {dtypes[name] for name in dtypes.keys() - {"batches_tracked", "u", "v"}} == {stored}
    twin = again(description, native=case.startswith("native"))
    assert_same(describe(twin), description)
    assert np.array_equal(run(layer, x), run(twin, x))


def test_arrays_are_copies():
    layer, x = trained(NATIVE["batch"])
    arrays = describe(layer).arrays
    before = {name: array.copy() for name, array in arrays.items()}
    run(layer, x)
    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)
    arrays["scale"][:] = 7
    assert not (layer.gamma.numpy() == 7).any()


def test_the_attributes_as_they_are_now():
    layer, _ = trained(NATIVE["batch"])
    layer.momentum, layer.epsilon, layer.scale = 0.25, 0.5, False
    spec, _, arrays = describe(layer)
    assert (spec.decay, spec.eps, spec.scale) == (0.25, 0.5, False)
    assert "scale" not in arrays
    layer.momentum = 2.0
    with pytest.raises(MigrationError, match=r"no specification allows \(BatchNormSpec: decay=2.0 is outside"):
        describe(layer)


def test_layer_normalization_uses_the_weights_it_has_whatever_its_flags_say():
    layer, x = trained(NATIVE["layer"])
    layer.scale = layer.center = False
    description = describe(layer)
    assert (description.spec.scale, description.spec.offset) == (True, True)
    assert np.allclose(again(description)(x), layer(x), atol=1e-5)


def test_axes_of_mixed_signs_keep_the_order_of_the_input_s_axes():
    layer = L.LayerNormalization(axis=[1, -1])
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("float32")
    layer.build(x.shape)
    layer.gamma.assign(np.random.default_rng(1).normal(size=(5, 3)))
    description = describe(layer)
    assert description.spec.shape == (3, 5)
    centred = x - x.mean((1, 3), keepdims=True)
    xhat = centred / np.sqrt(x.var((1, 3), keepdims=True) + 1e-3)
    assert np.allclose(layer(x), xhat * description.arrays["scale"][:, None, :], atol=1e-5)
    assert np.array_equal(again(description, native=True)(x), layer(x))


def test_epsilon_none_is_the_global_one():
    layer = L.LayerNormalization(epsilon=None)
    layer.build((None, 4))
    assert describe(layer).spec.eps == keras.config.epsilon()


def test_synchronized_is_the_same_specification():
    layer = L.BatchNormalization(synchronized=True)
    layer.build((None, 4))
    plain = L.BatchNormalization()
    plain.build((None, 4))
    assert_same(describe(layer), describe(plain))


def test_a_layer_of_any_rank_takes_any_rank():
    spec = crossnorm.preset("keras", "batch_norm", channels=4)
    arrays = {array.name: np.full(array.shape, array.initial, "float32") for array in (*spec.parameters, *spec.state)}
    description = Description(spec, Layout(), arrays | {"batches_tracked": np.zeros((), np.int64)})
    layer = again(description)
    for shape in ((3, 4), (3, 5, 4), (3, 2, 5, 4)):
        assert layer(np.ones(shape, "float32"), training=True).shape == shape
    assert describe(layer).layout.rank is None
    with pytest.raises(Unsupported, match=r"rank=None, where keras\.layers\.BatchNormalization is built for one"):
        again(description, native=True)


def test_one_spatial_dimension_may_be_none_as_in_torch():
    layer = again(describe(trained(OWN["renorm, variance"])[0]))
    assert layer(np.ones((3, 4), "float32"), training=True).shape == (3, 4)
    assert describe(layer).layout.rank == 1
    with pytest.raises(ValueError, match="max_ndim=3"):
        layer(np.ones((3, 4, 4, 4), "float32"))


def test_a_live_holder_is_wrapped_and_written_into():
    wrapper = ours.WeightNormalization(L.LSTM(3), kernel="recurrent_kernel")
    wrapper.build((None, 4, 2))
    wrapper.gain.assign(np.arange(12.0))
    description = describe(wrapper)
    assert (description.layout.holder, description.layout.name) == (None, "recurrent_kernel")
    assert description.spec.shape == (12, 3)
    with pytest.raises(MigrationError, match="normalizes: holder="):
        again(description)
    holder = L.LSTM(3)
    holder.build((None, 4, 2))
    twin = again(description, holder=holder)
    assert twin.layer is holder
    assert_same(describe(twin), description)


def test_an_embedding_that_masks_is_not_made_anew():
    wrapper = built(ours.SpectralNormalization(L.Embedding(7, 4, mask_zero=True)), (None, 5))
    description = describe(wrapper)
    assert description.layout.holder is None
    twin = again(description, holder=built(L.Embedding(7, 4, mask_zero=True), (None, 5)))
    assert_same(describe(twin), description)


def test_several_kernels_need_a_name():
    wrapper = ours.WeightStandardization(L.SeparableConv2D(4, 3, activation="relu"), scale=True)
    wrapper.build((None, 5, 5, 2))
    with pytest.raises(MigrationError, match="several weights, depthwise_kernel, pointwise_kernel; say which by name="):
        describe(wrapper)
    with pytest.raises(MigrationError, match="does not normalize 'kernel'"):
        describe(wrapper, "kernel")
    depthwise, pointwise = describe(wrapper, "depthwise_kernel"), describe(wrapper, "pointwise_kernel")
    assert (depthwise.spec.shape, pointwise.spec.shape) == ((2, 1, 3, 3), (4, 2, 1, 1))
    assert (depthwise.layout.holder.bias, pointwise.layout.holder.bias) == (False, True)
    for description in (depthwise, pointwise):
        twin = describe(again(description))
        assert (twin.spec, twin.layout.holder) == (description.spec, description.layout.holder)


def test_variables_are_the_live_ones():
    layer, _ = trained(NATIVE["batch"])
    live = variables(layer)
    assert {name: [variable.name for variable in of] for name, of in live.items()} == {
        "scale": ["gamma"], "offset": ["beta"], "running_mean": ["moving_mean"], "running_variance": ["moving_variance"],
    }  # fmt: skip
    assert live["scale"][0] is layer.gamma
    wrapper, _ = trained(OWN["spectral"])
    live = variables(wrapper)
    assert [live[name][0] for name in ("weight", "u", "v", "bias")] == [
        wrapper.layer.kernel, wrapper.u, wrapper.v, wrapper.layer.bias,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "case", ["native batch", "native spectral, transposed", "our response, elements", "our length, depthwise"]
)
def test_write_overwrites_in_place(case):
    source, x = trained(CASES[case])
    target = CASES[case][0]()
    target.build(CASES[case][1])
    live = variables(target)
    write(target, describe(source).arrays)
    assert_same(describe(target), describe(source))
    assert all(variables(target)[name][0] is live[name][0] for name in live)
    assert np.array_equal(run(target, x), run(source, x))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"scale": np.zeros(5, "float32")}, "batch_norm has arrays of shapes"),
        ({"offset": np.zeros(4, "float64")}, "has float32 in 'offset', which would round float64"),
        ({"gamma": np.zeros(4, "float32")}, "batch_norm has arrays of shapes"),
        ({"batches_tracked": np.zeros(4, "int64")}, "batch_norm has arrays of shapes"),
    ],
)
def test_bad_arrays_write_nothing(bad, words):
    layer, _ = trained(NATIVE["batch"])
    before = describe(layer)
    with pytest.raises(MigrationError, match=words):
        write(layer, {"running_mean": np.full(4, 9, "float32"), **bad})
    assert_same(describe(layer), before)


def test_a_narrower_array_is_widened():
    layer, _ = trained(NATIVE["batch"])
    write(layer, {"scale": np.array([1, 2, 3, 4], "float16"), "batches_tracked": np.int32(3)})
    assert layer.gamma.numpy().tolist() == [1, 2, 3, 4]
    assert describe(layer).arrays["scale"].dtype == np.float32


class Thresholded(L.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return keras.ops.relu(super().call(inputs, training=training, mask=mask))


class Renamed(L.BatchNormalization):
    def __init__(self, **kwargs):
        super().__init__(momentum=0.5, **kwargs)


class Centred(ours.GroupNormalization):
    def call(self, inputs):
        return super().call(inputs) - 1


def test_a_subclass_that_computes_the_same_is_described():
    layer = Renamed()
    layer.build((None, 4))
    assert describe(layer).spec.decay == 0.5


def lora():
    layer = ours.WeightNormalization(L.Dense(3))
    layer.build((None, 4))
    layer.layer.enable_lora(2)
    return layer


def quantized():
    layer = L.SpectralNormalization(L.Dense(3))
    layer.build((None, 4))
    layer.layer.quantize("int8")
    return layer


def built(layer, shape=(None, 6, 4)):
    layer.build(shape)
    return layer


def without(layer, name):
    built(layer)
    setattr(layer, name, True)
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L.BatchNormalization(), "is not built; call it once"),
        (lambda: ours.WeightNormalization(L.Dense(3)), "is not built; call it once"),
        (lambda: built(L.UnitNormalization()), "is a UnitNormalization, and no normalization layer that is known"),
        (
            lambda: built(L.Normalization(mean=0.0, variance=1.0)),
            "is a Normalization, and no normalization layer that is known",
        ),
        (lambda: built(L.Dense(3)), "is a Dense, and no normalization layer"),
        (lambda: built(Thresholded()), "changes what BatchNormalization computes"),
        (lambda: built(Centred(groups=2)), "changes what GroupNormalization computes"),
        (lambda: built(L.RMSNormalization(axis=1)), "multiplies its scale along the last axes"),
        (lambda: built(L.SpectralNormalization(L.EinsumDense("abc,cde->abde", (None, 2, 3)))), "not its last axis"),
        (lambda: without(L.BatchNormalization(scale=False), "scale"), "has no weight for 'scale'"),
        (lambda: built(L.SpectralNormalization(L.Dense(3, dtype="float64"))), "computes in float32 around a layer of float64"),
        (lora, "adapts its kernel by LoRA"),
        (quantized, "is quantized to int8"),
    ],
)
def test_what_cannot_be_described(make, message):
    with pytest.raises(MigrationError, match=message):
        describe(make())


def test_a_name_is_for_wrappers():
    with pytest.raises(MigrationError, match="leave out the name"):
        describe(built(L.BatchNormalization()), "gamma")


# What Keras' own layers cannot be told: our layer, the field, and how its value is written.
BEYOND = {
    "estimator": (lambda: ours.BatchNormalization(running_variance="unbiased"), "running_variance='unbiased'"),
    "decay": (lambda: ours.BatchNormalization(momentum=None), "decay=None"),
    "tracked": (lambda: ours.BatchNormalization(track_running_stats=False), "tracked=False"),
    "single value": (lambda: ours.BatchNormalization(single_value="raise"), "single_value='raise'"),
    "kept mean": (lambda: ours.LayerNormalization(subtract_mean=False), "subtract_mean=False"),
    "no scale": (lambda: ours.RMSNormalization(use_scale=False), "scale=False"),
    "rms axis": (lambda: ours.RMSNormalization(axis=1), "axis=1"),
    "instance, tracked": (lambda: ours.InstanceNormalization(track_running_stats=True), "tracked=True"),
    "instance, single value": (lambda: ours.InstanceNormalization(single_value="raise"), "single_value='raise'"),
    "renorm, one pair": (lambda: ours.BatchRenormalization(r_min=0.0), "renorm_decay=None"),
    "renorm, schedule": (
        lambda: ours.BatchRenormalization(r_min=0.0, renorm_decay=0.9, single_value="zero"),
        r"r_max_steps=\(5000, 40000\)",
    ),
    "renorm, quantity": (
        lambda: ours.BatchRenormalization(renorm_decay=0.9, running_quantity="biased_variance"),
        "running_quantity='biased_variance'",
    ),
    "switchable": (lambda: ours.SwitchableNormalization(), "keras has no switchable_norm of its own"),
    "response": (lambda: ours.FilterResponseNormalization(), "keras has no filter_response_norm of its own"),
    "spectral, order": (
        lambda: ours.SpectralNormalization(
            L.Dense(3), epsilon=1e-7, iteration_order="u_first", transposed_row="input", depthwise_row="multiplier"
        ),
        "iteration_order='u_first'",
    ),
    "spectral, eps": (lambda: ours.SpectralNormalization(L.Dense(3)), "eps=1e-12"),
    "spectral, rows": (
        lambda: ours.SpectralNormalization(L.Dense(3), epsilon=1e-7, stored="u", warm_up=0),
        "transposed_row='output'",
    ),
    "length": (lambda: ours.WeightNormalization(L.Dense(3)), "keras has no weight_norm of its own"),
}


@pytest.mark.parametrize("case", BEYOND)
def test_what_no_native_layer_can_be_told(case):
    make, written = BEYOND[case]
    with pytest.raises(Unsupported, match=f"{written}.*build crossnorm's( own layer)?: native=False"):
        again(describe(built(make())), native=True)


def test_instance_normalization_as_a_native_layer():
    layer, x = trained((ours.InstanceNormalization, (3, 5, 4)))
    native = again(describe(layer), native=True)
    assert (type(native), native.groups) == (L.GroupNormalization, 4)
    assert np.allclose(native(x), layer(x), atol=1e-5)


@pytest.mark.parametrize(
    ("stored", "computes", "policy"),
    [
        ("float16", "float16", "float16"),
        ("float32", "float16", "mixed_float16"),
        ("float32", "bfloat16", "mixed_bfloat16"),
        ("float64", "float64", "float64"),
        ("float16", "mixed_float16", "float16"),
        ("float64", "float32", None),
        ("float16", "float32", None),
        ("float64", "float16", None),
        ("bfloat16", "float16", None),
    ],
)
def test_the_policy_stores_the_arrays_as_they_are(stored, computes, policy):
    spec, layout, arrays = describe(trained(NATIVE["layer"], dtype=stored)[0])
    if policy is None:
        with pytest.raises(Unsupported, match=f"dtype {stored} in a layer of dtype {computes}"):
            build(spec, replace(layout, dtype=computes), arrays, framework="tensorflow")
        return
    layer = build(spec, replace(layout, dtype=computes), arrays, framework="tensorflow")
    assert layer.dtype_policy.name == policy
    assert layer.gamma.numpy().tobytes() == arrays["scale"].tobytes()


def test_arrays_of_two_dtypes_are_refused():
    spec, layout, arrays = describe(trained(NATIVE["layer"])[0])
    with pytest.raises(Unsupported, match="float16 and float32 in a layer of dtype float32"):
        build(spec, layout, {**arrays, "offset": arrays["offset"].astype("float16")}, framework="tensorflow")


def test_a_refused_holder_stays_as_it_was():
    description = describe(trained(OWN["spectral"])[0])
    holder = built(L.Dense(3), (None, 5))
    half = {name: array.astype("float16") for name, array in description.arrays.items()}
    with pytest.raises(Unsupported, match="would not keep their dtypes in a layer that stores float32"):
        again(description._replace(arrays=half), holder=holder)
    with pytest.raises(MigrationError, match=r"shape \(4, 5\), rows first, and spectral_norm is of shape \(3, 5\)"):
        again(description, holder=built(L.Dense(4), (None, 5)))
    with pytest.raises(MigrationError, match="has no bias, and the description one"):
        again(description, holder=built(L.Dense(3, use_bias=False), (None, 5)))
    with pytest.raises(MigrationError, match="is not built"):
        again(description, holder=L.Dense(3))
    with pytest.raises(MigrationError, match="which is a layer of its own"):
        again(describe(trained(NATIVE["batch"])[0]), holder=holder)
    assert again(description, holder=holder).layer is holder  # it was not wrapped before


@pytest.mark.parametrize("change", [{"scale": None}, {"scale": np.zeros(5, "float32")}, {"gamma": np.zeros(4, "float32")}])
def test_arrays_that_are_not_the_specification_s_are_refused(change):
    spec, layout, arrays = describe(trained(NATIVE["batch"])[0])
    arrays = {name: array for name, array in (arrays | change).items() if array is not None}
    with pytest.raises(MigrationError, match="batch_norm has arrays of shapes"):
        build(spec, layout, arrays, framework="tensorflow")


@pytest.mark.parametrize("axis", [(1, 2), 7, -5])
def test_an_axis_that_does_not_fit_is_refused(axis):
    spec, layout, arrays = describe(trained(NATIVE["batch"])[0])
    with pytest.raises(MigrationError, match="axis="):
        build(spec, replace(layout, axis=axis), arrays, framework="tensorflow")


def test_a_native_wrapper_without_training_gives_ours_a_unit_vector():
    layer = built(L.SpectralNormalization(L.Dense(3)), (None, 4))
    u = describe(layer).arrays["u"]
    assert np.linalg.norm(u) < 0.5
    assert np.allclose(describe(again(describe(layer))).arrays["u"], u / np.linalg.norm(u))
