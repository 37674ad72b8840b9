"""Bad input raises the native's type and one sentence, and a failed step changes no state."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import crossnorm
import crossnorm.tensorflow
from crossnorm.tensorflow import (
    BatchNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    RMSNormalization,
)

ALL = [BatchNormalization, LayerNormalization, GroupNormalization, InstanceNormalization, RMSNormalization]
X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("f4")


def make(cls, **arguments):
    return cls(**({"groups": 2} if cls is GroupNormalization else {}), **arguments)


@pytest.mark.parametrize("epsilon", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("cls", ALL)
def test_epsilon(cls, epsilon):
    with pytest.raises(crossnorm.SpecError, match="eps="):
        make(cls, epsilon=epsilon)


@pytest.mark.parametrize("cls", [BatchNormalization, InstanceNormalization])
def test_momentum(cls):
    with pytest.raises(crossnorm.SpecError, match="outside"):
        cls(momentum=1.5)


@pytest.mark.parametrize("groups", [0, -2, 1.5, 3, 8])
def test_groups(groups):
    with pytest.raises(crossnorm.SpecError, match="groups"):
        GroupNormalization(groups=groups)(X)


@pytest.mark.parametrize("axis", ["x", None, [[1]]])
@pytest.mark.parametrize("cls", ALL)
def test_type_of_axis(cls, axis):
    with pytest.raises(TypeError) as raised:
        make(cls, axis=axis)
    assert isinstance(raised.value, crossnorm.CrossnormError)


@pytest.mark.parametrize("cls", ALL)
def test_axis_out_of_range(cls):
    with pytest.raises(IndexError, match="out of range") as raised:
        make(cls, axis=5)(X)
    assert isinstance(raised.value, crossnorm.CrossnormError)


@pytest.mark.parametrize("axis", [[], [1, 1], [1, -2]])
def test_axes_empty_or_twice(axis):
    with pytest.raises(crossnorm.SpecError, match=r"empty|twice"):
        LayerNormalization(axis=axis)(X)


@pytest.mark.parametrize("where", ["eager", "graph", "model"])
@pytest.mark.parametrize("cls", ALL)
def test_other_channels_than_built_for(cls, where):
    layer = make(cls)
    layer(X)
    call = {"eager": layer, "graph": tf.function(layer), "model": keras.Sequential([layer])}[where]
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 4"):
        call(X[..., :2])


@pytest.mark.parametrize("cls", ALL)
def test_unknown_channels(cls):
    with pytest.raises(crossnorm.SpecError, match="unknown"):
        make(cls)(keras.Input((3, None)))


@pytest.mark.parametrize("cls", ALL)
def test_integers(cls):
    with pytest.raises(crossnorm.SpecError, match="dtype int"):
        make(cls)(np.arange(24).reshape(2, 3, 4))


def test_ranks():
    with pytest.raises(crossnorm.SpecError, match="fewer than 3"):
        InstanceNormalization()(X[0])
    with pytest.raises(crossnorm.SpecError, match="axis=0 is the batch"):
        GroupNormalization(groups=1, axis=0)(X)
    assert BatchNormalization(axis=0)(X, training=True).shape == X.shape


@pytest.mark.parametrize(("shape", "sentence"), [((2, 3, 4), "one dimension less"), ((2, 2), "does not fit")])
def test_mask_of_another_shape(shape, sentence):
    with pytest.raises(crossnorm.SpecError, match=f"^batch_norm: .*{sentence}"):
        BatchNormalization()(X, training=True, mask=np.ones(shape, bool))


@pytest.mark.parametrize("cls", ALL)
def test_unknown_rank(cls):
    layer = make(cls)
    layer.build(X.shape)
    with pytest.raises(crossnorm.SpecError, match="the rank of the input is unknown"):
        tf.function(layer, input_signature=[tf.TensorSpec(None)])(X)


def test_an_error_inside_call_is_our_sentence_alone():
    later = BatchNormalization()
    later.build(X.shape)
    later.momentum = None
    for layer in (later, BatchNormalization(single_value="raise"), InstanceNormalization(single_value="raise")):
        for call in (layer, tf.function(layer)):
            with pytest.raises(crossnorm.SpecError, match=r"^(BatchN|batch_n|instance_n)") as raised:
                call(X[:1, :1], training=True)
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize("cls", ALL[:1] + ALL[2:])
def test_axis_of_numpy(cls):
    layer = make(cls, axis=np.int64(-1))
    assert np.array_equal(layer(X), make(cls)(X))
    assert type(layer).from_config(layer.get_config()).axis == -1


@pytest.mark.parametrize(
    "build",
    [
        lambda: BatchNormalization(epsilon=None),
        lambda: BatchNormalization(momentum="much"),
        lambda: crossnorm.tensorflow.layer(crossnorm.BatchNormSpec(channels=4), rank="2"),
        lambda: crossnorm.tensorflow.layer(crossnorm.LayerNormSpec(shape=4), rank=-1),
    ],
)
def test_arguments_of_a_wrong_type(build):
    with pytest.raises(crossnorm.tensorflow.ArgumentTypeError, match="is not a"):
        build()


def test_groups_of_numpy():
    with pytest.raises(ValueError, match=r"groups=.*is not an int; .*int\(groups\)"):
        GroupNormalization(groups=np.int64(4))


@pytest.mark.parametrize("method", ["batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"])
def test_pure_functions_refuse_other_arrays(method):
    sizes = {"shape": 4} if method in ("layer_norm", "rms_norm") else {"channels": 4}
    spec = crossnorm.preset("keras", method, **sizes, **({"groups": 2} if method == "group_norm" else {}))
    function = getattr(crossnorm.tensorflow.functional, method)
    right = {array.name: np.ones(array.shape) for array in spec.parameters}
    state = {array.name: np.ones(array.shape) for array in spec.state}
    assert function(spec, X, right, state, crossnorm.TRAIN)[0].shape == X.shape
    for wrong in ({"gamma": np.ones(4)}, {}, {**right, "scale": np.ones(3)}):
        with pytest.raises(crossnorm.SpecError, match="parameters of shapes"):
            function(spec, X, wrong, state, crossnorm.TRAIN)
    with pytest.raises(crossnorm.SpecError, match="state of shapes"):
        function(spec, X, right, {} if state else {"mean": np.ones(4)}, crossnorm.TRAIN)


def test_what_is_switched_off_later_is_not_used():
    layer = BatchNormalization(beta_initializer="ones")
    layer(X)
    layer.track_running_stats = layer.center = False
    assert np.allclose(layer(X), BatchNormalization()(X, training=True), atol=1e-6)


@pytest.mark.parametrize(
    ("cls", "shape"), [(BatchNormalization, (1, 4)), (InstanceNormalization, (2, 1, 4))], ids=["batch", "instance"]
)
def test_single_value(cls, shape):
    x = np.ones(shape, "f4")
    zero, strict = cls(), cls(single_value="raise")
    assert (zero(x, training=True).numpy() == 0).all()
    with pytest.raises(crossnorm.SpecError, match="one value"):
        strict(x, training=True)
    unknown = tf.function(lambda x: strict(x, training=True), input_signature=[tf.TensorSpec([None] * (len(shape) - 1) + [4])])
    with pytest.raises(tf.errors.InvalidArgumentError, match="one value"):
        unknown(x)


@pytest.mark.parametrize(
    ("cls", "shape"), [(BatchNormalization, (1, 4)), (InstanceNormalization, (2, 1, 4))], ids=["batch", "instance"]
)
def test_single_value_where_xla_drops_the_assertion(cls, shape):
    layer = cls(single_value="raise", track_running_stats=True, momentum=None)
    layer.build(shape)
    before = [w.numpy() for w in layer.weights]
    signature = tf.TensorSpec([None] * (len(shape) - 1) + [4])
    step = tf.function(lambda x: layer(x, training=True), jit_compile=True, input_signature=[signature])
    assert np.isnan(step(np.ones(shape, "f4"))).all()
    assert all((w.numpy() == b).all() for w, b in zip(layer.weights, before, strict=True))
    assert np.isfinite(step(np.ones((3,) * (len(shape) - 1) + (4,), "f4"))).all()
    assert layer.batches_tracked.numpy() == 1


def test_single_value_behind_a_mask():
    layer, one, two = BatchNormalization(single_value="raise"), np.eye(2, 3, dtype=bool)[:, :1], np.eye(2, 3, dtype=bool)
    layer.build(X.shape)
    before = [w.numpy() for w in layer.weights]
    with pytest.raises(crossnorm.SpecError, match="one value"):
        layer(X[:, :1], training=True, mask=one)
    step = tf.function(lambda x, mask: layer(x, training=True, mask=mask))
    with pytest.raises(tf.errors.InvalidArgumentError, match="one value"):
        step(X[:, :1], one)
    assert all((w.numpy() == b).all() for w, b in zip(layer.weights, before, strict=True))
    assert np.isfinite(step(X, two)).all()


def test_what_from_spec_promised():
    layer = crossnorm.tensorflow.layer(crossnorm.BatchNormSpec(channels=8), rank=1)
    with pytest.raises(crossnorm.SpecError, match="the specification says"):
        layer(X)
    with pytest.raises(crossnorm.SpecError, match="expected ndim=3"):
        crossnorm.tensorflow.layer(crossnorm.BatchNormSpec(channels=4), rank=1)(X[0])
    with pytest.raises(crossnorm.SpecError, match="which picks the class"):
        BatchNormalization.from_spec(crossnorm.RMSNormSpec(shape=4))
    with pytest.raises(crossnorm.SpecError, match="layout"):
        crossnorm.tensorflow.layer(crossnorm.BatchNormSpec(channels=4), layout="NHWC")
    with pytest.raises(crossnorm.SpecError, match="before the layer is built"):
        _ = BatchNormalization().spec


@pytest.mark.parametrize("cls", [BatchNormalization, InstanceNormalization])
@pytest.mark.parametrize(
    ("name", "value"), [("momentum", 1.5), ("epsilon", -1.0), ("running_variance", "none"), ("momentum", None)]
)
def test_garbage_set_later_stops_the_next_step_and_keeps_the_state(cls, name, value):
    layer = cls(track_running_stats=True)
    layer(X, training=True)
    before = [w.numpy() for w in layer.weights]
    setattr(layer, name, value)
    for call in (layer, tf.function(layer)):
        with pytest.raises(crossnorm.SpecError):
            call(X, training=True)
    assert all((w.numpy() == b).all() for w, b in zip(layer.weights, before, strict=True))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("cls", "masked"), [(BatchNormalization, False), (BatchNormalization, True), (InstanceNormalization, False)]
)
def test_an_empty_batch_keeps_the_state(cls, masked, known):
    layer = cls(track_running_stats=True, momentum=None)
    layer(X, training=True)
    before = [w.numpy() for w in layer.weights]
    signature = tf.TensorSpec([0 if known else None, 3, 4])
    masks = {"mask": np.ones((0, 3), bool)} if masked else {}
    step = tf.function(lambda x: layer(x, training=True, **masks), input_signature=[signature])
    assert step(X[:0]).shape == (0, 3, 4)
    assert all((w.numpy() == b).all() for w, b in zip(layer.weights, before, strict=True))


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        ("import sys; sys.modules['tensorflow'] = None", "TensorFlow cannot be imported"),
        ("import tensorflow; tensorflow.__version__ = '2.20.1'", "TensorFlow 2.20.1 is older than 2.21"),
        ("import keras; keras.__version__ = '3.9.0'", "Keras 3.9.0 is older than 3.15"),
        ("import keras; keras.backend.backend = lambda: 'jax'", "KERAS_BACKEND=tensorflow"),
    ],
)
def test_a_framework_that_cannot_be_used(prepare, sentence):
    code = (
        f"{prepare}\ntry:\n    import crossnorm.tensorflow\nexcept ImportError as error:\n    print(type(error).__mro__, error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert sentence in printed
    assert "CrossnormError" in printed
