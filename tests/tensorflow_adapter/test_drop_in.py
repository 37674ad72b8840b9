"""Ours in the place of the native layers: signatures, weights, files, configuration, fit, modes, masks."""

import copy
import inspect
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm.spec import PEERS

# Keras saves a variable by np.array(variable), with which NumPy 2 finds fault.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

OURS = {
    "batch_norm": crossnorm.tensorflow.BatchNormalization,
    "layer_norm": crossnorm.tensorflow.LayerNormalization,
    "group_norm": crossnorm.tensorflow.GroupNormalization,
    "rms_norm": crossnorm.tensorflow.RMSNormalization,
}
NATIVE = {method: getattr(keras.layers, ours.__name__) for method, ours in OURS.items()}
ARGUMENTS = {"group_norm": {"groups": 2}}
SPECS = {
    "batch_norm": crossnorm.BatchNormSpec(channels=4, decay=None, offset=False),
    "layer_norm": crossnorm.LayerNormSpec(shape=(3, 4), eps=0.1, scale=False),
    "group_norm": crossnorm.GroupNormSpec(channels=4, groups=2, offset=False),
    "instance_norm": crossnorm.InstanceNormSpec(channels=4, tracked=True, decay=0.7, single_value="raise"),
    "rms_norm": crossnorm.RMSNormSpec(shape=4, scale=False),
}


def data(*shape):
    return np.random.default_rng(0).normal(1, 2, shape).astype("f4")


def model(layer):
    return keras.Sequential([keras.Input((3, 4)), layer, keras.layers.Flatten(), keras.layers.Dense(1)])


@pytest.mark.parametrize("method", OURS)
def test_signature_and_defaults_are_the_natives(method):
    assert issubclass(OURS[method], NATIVE[method])
    ours, native = (
        [(p.name, p.default) for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        for cls in (OURS[method], NATIVE[method])
    )
    assert ours == native


@pytest.mark.parametrize("method", OURS)
def test_preset_is_the_installed_keras(method):
    peer, signature = PEERS[method]["keras"], inspect.signature(NATIVE[method]).parameters
    sizes = {"shape": 64} if method in ("layer_norm", "rms_norm") else {"channels": 64}
    spec = crossnorm.preset("keras", method, **sizes)
    for field, argument in peer.arguments.items():
        assert signature[argument.name].default == argument.native(getattr(spec, field)), field
    layer = OURS[method]()
    layer.build((None, 2, 64))
    assert layer.spec == spec


@pytest.mark.parametrize("method", OURS)
def test_weights_and_files_go_both_ways(method, tmp_path):
    x = data(5, 3, 4)
    ours, native = (model(layers[method](**ARGUMENTS.get(method, {}))) for layers in (OURS, NATIVE))
    weights = [(w.name, w.shape, w.dtype) for w in ours.weights]
    assert weights == [(w.name, w.shape, w.dtype) for w in native.weights]
    for i, (source, target) in enumerate([(ours, native), (native, ours)]):
        for suffix in (".weights.h5", ".keras"):
            source.set_weights([np.random.default_rng(i).uniform(0.5, 1.5, w.shape) for w in source.weights])
            path = tmp_path / f"{i}{suffix}"
            source.save_weights(path) if suffix == ".weights.h5" else source.save(path)
            target.load_weights(path)
            assert all((a == b).all() for a, b in zip(source.get_weights(), target.get_weights(), strict=True))
    assert np.allclose(ours(x), native(x), atol=1e-5)
    loaded = keras.saving.load_model(tmp_path / "0.keras")
    assert type(loaded.layers[0]) is OURS[method]


@pytest.mark.parametrize("method", SPECS)
def test_configuration_keeps_what_was_given(method, tmp_path):
    spec = SPECS[method]
    layer = crossnorm.tensorflow.layer(spec, name="norm", dtype="float64")
    before = layer.get_config()
    twin = type(layer).from_config(before)
    assert layer.spec == spec
    for each in (layer, twin):
        each.build((None, 3, 4))
        assert each.get_config() == before
        assert each.spec == spec
    whole = model(crossnorm.tensorflow.layer(spec))
    whole.save(tmp_path / "model.keras")
    for other in (
        keras.saving.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(whole),
        copy.deepcopy(whole),
        pickle.loads(pickle.dumps(whole)),
    ):
        assert other.layers[0].spec == spec


def test_groups_and_axis_stay_as_given():
    group, layer = crossnorm.tensorflow.GroupNormalization(groups=-1), crossnorm.tensorflow.LayerNormalization()
    for each in (group, layer):
        each.build((None, 3, 4))
    assert (group.groups, group.get_config()["groups"], layer.axis, layer.get_config()["axis"]) == (-1, -1, -1, -1)
    assert group.spec.groups == 4


@pytest.mark.parametrize("method", OURS)
def test_fit_does_what_the_native_does(method):
    x, y = data(32, 3, 4), data(32, 1)
    results = []
    for layers in (OURS, NATIVE):
        keras.utils.set_random_seed(0)
        net = model(layers[method](**ARGUMENTS.get(method, {})))
        net.compile("sgd", "mse")
        net.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        results.append(net.get_weights())
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "float64"])
@pytest.mark.parametrize("method", OURS)
def test_policies(method, policy):
    ours, native = (layers[method](dtype=policy, **ARGUMENTS.get(method, {})) for layers in (OURS, NATIVE))
    x = data(8, 3, 4)
    training = {"training": True} if method == "batch_norm" else {}
    a, b = ours(x, **training), native(x, **training)
    assert a.dtype == b.dtype
    assert [w.dtype for w in ours.weights] == [w.dtype for w in native.weights]
    assert np.allclose(tf.cast(a, "float64"), tf.cast(b, "float64"), atol=0.02)


def test_inference_unless_told_and_when_frozen():
    x, layer = data(8, 4), crossnorm.tensorflow.BatchNormalization()
    layer(x)
    assert (layer.moving_mean.numpy() == 0).all()
    layer.trainable = False
    assert np.allclose(layer(x, training=True), x / np.sqrt(1.001))
    assert (layer.moving_mean.numpy() == 0).all()


@pytest.mark.parametrize("masked", [[[1, 1, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
def test_mask_means_what_it_means_in_keras(masked):
    x, mask = data(2, 3, 4), np.array(masked, bool)
    ours, native = crossnorm.tensorflow.BatchNormalization(), keras.layers.BatchNormalization()
    assert np.allclose(ours(x, training=True, mask=mask), native(x, training=True, mask=mask), atol=1e-5)
    for a, b in zip(ours.weights, native.weights, strict=True):
        assert np.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("masked", [[[1, 1, 0], [1, 0, 1]], [[1], [0]], [[0, 0, 0], [0, 0, 0]]])
def test_gradients_with_a_mask_are_the_natives(masked, axis):
    x, upstream, mask = tf.constant(data(2, 3, 4)), tf.constant(data(2, 3, 4)[::-1]), np.array(masked, "f4")
    gradients = []
    for layer in (crossnorm.tensorflow.BatchNormalization(axis=axis), keras.layers.BatchNormalization(axis=axis)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
        gradients.append(tape.gradient(y, [x, *(w.value for w in layer.trainable_weights)], upstream))
    for ours, native in zip(*gradients, strict=True):
        assert np.allclose(ours, native, rtol=1e-5, atol=1e-4)


def test_masked_nan_stays_where_it_is():
    x, mask = data(2, 3, 4), np.array([[1, 1, 0], [1, 0, 1]], bool)
    x[~mask] = np.nan
    ours, native = crossnorm.tensorflow.BatchNormalization(), keras.layers.BatchNormalization()
    assert np.allclose(ours(x, training=True, mask=mask), native(x, training=True, mask=mask), atol=1e-5, equal_nan=True)
    assert np.allclose(ours.moving_variance, native.moving_variance)


def test_a_mask_that_is_true_everywhere_is_no_mask():
    x, masked, plain = data(2, 4), crossnorm.tensorflow.BatchNormalization(), crossnorm.tensorflow.BatchNormalization()
    assert np.array_equal(masked(x, training=True, mask=np.ones(2, bool)), plain(x, training=True))
    assert all(np.array_equal(a, b) for a, b in zip(masked.weights, plain.weights, strict=True))


def test_rms_norm_passes_a_mask_on():
    masked = keras.layers.Masking()(np.array([[[1.0, 2.0], [0.0, 0.0]]]))
    assert crossnorm.tensorflow.RMSNormalization()(masked)._keras_mask.numpy().tolist() == [[True, False]]


@pytest.mark.parametrize("renorm", [False, True])
def test_synchronized_runs_the_native_code(renorm):
    x, arguments = data(8, 4), {"synchronized": True, "renorm": renorm}
    ours, native = crossnorm.tensorflow.BatchNormalization(**arguments), keras.layers.BatchNormalization(**arguments)
    assert np.allclose(ours(x, training=True), native(x, training=True))
    assert [w.name for w in ours.weights] == [w.name for w in native.weights]
    with pytest.raises(crossnorm.Unsupported, match="runs Keras' own code"):
        crossnorm.tensorflow.BatchNormalization(momentum=None, **arguments)


def test_deprecated_rms_scaling():
    x = data(5, 4)
    with pytest.warns(UserWarning, match="rms_scaling"):
        ours = crossnorm.tensorflow.LayerNormalization(rms_scaling=True)
    with pytest.warns(UserWarning, match="rms_scaling"):
        want = keras.layers.LayerNormalization(rms_scaling=True)(x)
    assert np.allclose(ours(x), want, atol=1e-6)
    assert ours.spec == crossnorm.LayerNormSpec(shape=4, eps=1e-3, offset=False, subtract_mean=False)


def test_live_attributes_count():
    x, layer = np.array([[1.0], [3.0]]), crossnorm.tensorflow.BatchNormalization()
    layer.build((None, 1))
    layer.momentum, layer.epsilon = 0.0, 3.0
    assert layer(x, training=True).numpy().ravel().tolist() == [-0.5, 0.5]
    assert layer.moving_mean.numpy().tolist() == [2.0]
    assert (layer.spec.decay, layer.spec.eps) == (0.0, 3.0)


@pytest.mark.parametrize("axis", [[1, -1], [-1, 2], [-3, 3]])
def test_axes_counted_from_both_ends(axis):
    """Keras stores the sizes in the order of the sorted numbers, and reads them in that of the input's axes."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype("float32")
    native, ours = (module.LayerNormalization(axis=axis) for module in (keras.layers, crossnorm.tensorflow))
    for layer in (native, ours):
        layer.build(x.shape)
    weights = [np.random.default_rng(1).standard_normal(weight.shape) for weight in native.weights]
    native.set_weights(weights)
    ours.set_weights(weights)
    np.testing.assert_allclose(ours(x), native(x), rtol=1e-5, atol=1e-6)
