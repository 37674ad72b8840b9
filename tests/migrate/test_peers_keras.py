"""Legacy tf_keras and flax.nnx: our Keras layer of a description computes what the described layer computes."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from crossnorm.errors import MigrationError
from crossnorm.migrate import build, describe


def sample(shape, seed):
    return np.random.default_rng(seed).normal(0.3, 1, shape).astype("float32")


def run(layer, x, training):
    takes = isinstance(layer, keras.layers.Wrapper) or "training" in layer._call_signature.parameters
    return np.array(layer(x, training=training) if takes else layer(x))


def assert_described(description, native, shape, modes=(False, True, True, False)):
    """``native(x, training)`` gives what our Keras layer gives, through training steps; the arrays that they end in."""
    ours = build(*description, framework="tensorflow")
    for seed, training in enumerate(modes):
        x = sample(shape, seed)
        assert np.allclose(native(x, training), run(ours, x, training), rtol=1e-4, atol=2e-5), (seed, training)
    return describe(ours).arrays


def assert_close(arrays, wanted):
    assert arrays.keys() == wanted.keys()
    for name in arrays.keys() - {"batches_tracked", "weight"}:
        assert np.allclose(arrays[name], wanted[name], rtol=1e-4, atol=1e-5), name


@pytest.fixture
def legacy():
    return pytest.importorskip("tf_keras", reason="legacy tf_keras is not installed")


LEGACY = {
    "batch": (lambda layers: layers.BatchNormalization(momentum=0.7), (6, 4)),
    "batch, fused": (lambda layers: layers.BatchNormalization(momentum=0.7, epsilon=0.1), (2, 3, 3, 4)),
    "batch, five dimensions": (lambda layers: layers.BatchNormalization(momentum=0.7, scale=False), (2, 2, 2, 2, 4)),
    "batch, not fused": (lambda layers: layers.BatchNormalization(momentum=0.7, fused=False, center=False), (2, 3, 3, 4)),
    "batch, channels first": (lambda layers: layers.BatchNormalization(axis=1, momentum=0.7), (3, 4, 5)),
    "batch, synchronized": (lambda layers: layers.BatchNormalization(momentum=0.7, synchronized=True), (2, 3, 3, 4)),
    "renorm": (
        lambda layers: layers.BatchNormalization(
            renorm=True, momentum=0.7, renorm_momentum=0.6, renorm_clipping={"rmax": 1.2, "rmin": 0.9, "dmax": 0.1}
        ),
        (2, 3, 3, 4),
    ),
    "renorm, no bounds": (lambda layers: layers.BatchNormalization(renorm=True, momentum=0.7), (5, 4)),
    "layer": (lambda layers: layers.LayerNormalization(), (3, 5)),
    "layer, one axis": (lambda layers: layers.LayerNormalization(axis=1, epsilon=0.1, center=False), (3, 4, 5)),
    "layer, unsorted": (lambda layers: layers.LayerNormalization(axis=[-1, 1]), (3, 4, 2, 5)),
    "group": (lambda layers: layers.GroupNormalization(groups=2, scale=False), (3, 5, 4)),
    "group, instance": (lambda layers: layers.GroupNormalization(groups=-1, axis=1, epsilon=0.1), (3, 4, 5)),
}


def fill(weights):
    generator = np.random.default_rng(1)
    for weight in weights:
        weight.assign(generator.uniform(0.5, 1.5, weight.shape))


@pytest.mark.parametrize("case", LEGACY)
def test_tf_keras(legacy, case):
    make, shape = LEGACY[case]
    layer = make(legacy.layers)
    layer.build((None, *shape[1:]))
    fill(layer.weights)
    description = describe(layer)
    if description.spec.method == "batch_norm":
        assert description.spec.running_variance == (
            "unbiased" if case in ("batch, fused", "batch, five dimensions") else "biased"
        )
    stored = [array.tobytes() for name, array in description.arrays.items() if name != "batches_tracked"]
    assert sorted(stored) == sorted(weight.numpy().tobytes() for weight in layer.weights)

    def native(x, training):
        return layer(x, training=training) if hasattr(layer, "moving_mean") else layer(x)

    arrays = assert_described(description, native, shape)
    assert_close(arrays, describe(layer).arrays)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda layers: layers.Dense(3, activation="relu"), (4, 5)),
        (lambda layers: layers.Conv2D(3, 2, strides=2, padding="same"), (2, 5, 5, 2)),
        (lambda layers: layers.Conv1D(4, 3, groups=2, use_bias=False), (2, 5, 2)),
    ],
)
def test_tf_keras_spectral_norm(legacy, monkeypatch, make, shape):
    layer = legacy.layers.SpectralNormalization(make(legacy.layers), power_iterations=2)
    with monkeypatch.context() as patch:  # its build asks tf.keras, which is another Keras here, for this class
        patch.setattr(tf.keras.layers, "InputSpec", legacy.layers.InputSpec)
        layer.build(tf.TensorShape((None, *shape[1:])))
    fill(layer.weights)
    layer(sample(shape, 9), training=True)
    description = describe(layer, "kernel")
    assert (description.spec.eps, description.spec.eps_place) == (1e-12, "maximum_of_square")
    arrays = assert_described(description, lambda x, training: layer(x, training=training), shape, (True, True))
    assert_close(arrays, describe(layer).arrays)


def test_tf_keras_half_precision(legacy):
    for policy in ("bfloat16", "mixed_bfloat16"):
        layer = legacy.layers.LayerNormalization(dtype=policy)
        layer.build((None, 4))
        fill(layer.weights)
        spec, layout, arrays = describe(layer)
        assert layout.dtype == policy
        assert arrays["scale"].dtype == (ml_dtypes.bfloat16 if policy == "bfloat16" else np.float32)
        assert (
            describe(build(spec, layout, arrays, framework="tensorflow")).arrays["scale"].tobytes() == arrays["scale"].tobytes()
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda layers: layers.BatchNormalization(), "is not built; call it once"),
        (lambda layers: built(layers.UnitNormalization()), "is a UnitNormalization and none of"),
        (lambda layers: built(layers.Normalization(mean=0.0, variance=1.0)), "is a Normalization and none of"),
        (lambda layers: built(layers.Dense(3)), "is a Dense and none of"),
        (
            lambda layers: built(layers.BatchNormalization(virtual_batch_size=2)),
            "virtual_batch_size=2, which no specification says",
        ),
        (lambda layers: built(layers.BatchNormalization(axis=[1, 2])), r"axis=\[1, 2\] together"),
        (
            lambda layers: built(type("Own", (layers.GroupNormalization,), {"call": lambda _, x: x})(groups=2)),
            "is a Own and none of",
        ),
    ],
)
def test_tf_keras_that_cannot_be_described(legacy, make, message):
    with pytest.raises(MigrationError, match=message):
        describe(make(legacy.layers))


def built(layer, shape=(None, 6, 4)):
    layer.build(shape)
    return layer


@pytest.fixture
def nnx():
    return pytest.importorskip("flax.nnx", reason="flax is not installed")


FLAX = {
    "batch": (lambda nnx, rngs: nnx.BatchNorm(4, momentum=0.7, rngs=rngs), (3, 5, 4)),
    "batch, options": (
        lambda nnx, rngs: nnx.BatchNorm(4, axis=1, momentum=0.7, epsilon=0.1, use_scale=False, rngs=rngs),
        (3, 4, 5),
    ),
    "layer": (lambda nnx, rngs: nnx.LayerNorm(4, rngs=rngs), (3, 5, 4)),
    "layer, options": (
        lambda nnx, rngs: nnx.LayerNorm(4, reduction_axes=1, feature_axes=1, epsilon=0.1, use_bias=False, rngs=rngs),
        (3, 4, 5),
    ),
    "group": (lambda nnx, rngs: nnx.GroupNorm(4, num_groups=2, rngs=rngs), (3, 5, 4)),
    "group, size": (lambda nnx, rngs: nnx.GroupNorm(6, num_groups=None, group_size=2, use_scale=False, rngs=rngs), (3, 5, 6)),
    "instance": (lambda nnx, rngs: nnx.InstanceNorm(4, epsilon=0.1, rngs=rngs), (3, 5, 4)),
    "instance, options": (lambda nnx, rngs: nnx.InstanceNorm(4, feature_axes=1, use_bias=False, rngs=rngs), (3, 4, 5)),
    "rms": (lambda nnx, rngs: nnx.RMSNorm(4, epsilon=0.1, rngs=rngs), (3, 5, 4)),
    "rms, plain": (lambda nnx, rngs: nnx.RMSNorm(4, use_scale=False, rngs=rngs), (3, 4)),
    "spectral": (lambda nnx, rngs: nnx.SpectralNorm(nnx.Linear(5, 3, rngs=rngs), n_steps=2, rngs=rngs), (4, 5)),
    "spectral, convolution": (
        lambda nnx, rngs: nnx.SpectralNorm(nnx.Conv(2, 3, (3, 3), strides=2, use_bias=False, rngs=rngs), rngs=rngs),
        (2, 5, 5, 2),
    ),
    "length": (lambda nnx, rngs: nnx.WeightNorm(nnx.Linear(5, 3, rngs=rngs), rngs=rngs), (4, 5)),
    "length, whole": (lambda nnx, rngs: nnx.WeightNorm(nnx.Conv(2, 4, 3, padding="VALID", feature_group_count=2, rngs=rngs),
                                                       feature_axes=None, rngs=rngs), (2, 5, 2)),
    "direction": (
        lambda nnx, rngs: nnx.WeightNorm(
            nnx.Conv(2, 3, 3, padding=[(2, 2)], kernel_dilation=2, rngs=rngs), use_scale=False, rngs=rngs
        ),
        (2, 7, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FLAX)
def test_flax(nnx, case):
    make, shape = FLAX[case]
    layer = make(nnx, nnx.Rngs(0))
    generator = np.random.default_rng(1)
    for _, variable in nnx.to_flat_state(nnx.state(layer)):
        if isinstance(variable, nnx.Variable) and variable.ndim:
            variable[...] = generator.uniform(0.5, 1.5, variable.shape).astype("float32")
    if getattr(layer, "scales", None):
        layer.scales = nnx.data({path: scale * 1.5 + 0.1 for path, scale in layer.scales.items()})
    description = describe(layer)

    def native(x, training):
        if isinstance(layer, nnx.BatchNorm):
            return np.array(layer(x, use_running_average=not training))
        return np.array(layer(x, update_stats=training) if isinstance(layer, nnx.SpectralNorm) else layer(x))

    modes = (False, True, True, False) if description.spec.state else (False, False)
    arrays = assert_described(description, native, shape, modes)
    if description.spec.method != "weight_norm":  # it wrote its scale into the kernel
        assert_close(arrays, describe(layer).arrays)


def test_flax_arrays_are_copies_bit_for_bit(nnx):
    import jax.numpy as jnp

    layer = nnx.LayerNorm(4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.scale[...] = jnp.asarray([0.1, 0.2, 0.3, 0.4], jnp.bfloat16)
    spec, layout, arrays = describe(layer)
    assert (layout.dtype, arrays["scale"].dtype) == ("bfloat16", ml_dtypes.bfloat16)
    assert arrays["scale"].tobytes() == np.asarray(layer.scale[...]).tobytes()
    arrays["scale"][:] = 7
    assert not (np.asarray(layer.scale[...]) == 7).any()
    assert build(spec, layout, arrays, framework="tensorflow").dtype_policy.name == "bfloat16"
    mixed = describe(nnx.LayerNorm(4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    assert build(*mixed, framework="tensorflow").dtype_policy.name == "mixed_bfloat16"


def test_flax_wrappers_of_several_weights_need_a_name(nnx):
    rngs = nnx.Rngs(0)
    layer = nnx.SpectralNorm(nnx.LSTMCell(3, 4, rngs=rngs), rngs=rngs)
    with pytest.raises(MigrationError, match=r"several weights, hf\.kernel, .*; say which by name="):
        describe(layer)
    with pytest.raises(MigrationError, match="does not normalize 'kernel'"):
        describe(layer, "kernel")
    spec, layout, arrays = describe(layer, "ii.kernel")
    assert (layout.holder, arrays.keys()) == (None, {"u", "weight"})
    assert arrays["u"].shape == (spec.rows,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda nnx, rngs: nnx.Linear(3, 4, rngs=rngs), "the Linear is none of"),
        (lambda nnx, rngs: nnx.LayerNorm(4, reduction_axes=(1, 2), rngs=rngs), "learns along -1 only"),
        (lambda nnx, rngs: nnx.LayerNorm(4, axis_name="batch", rngs=rngs), "axis_name='batch' too"),
        (
            lambda nnx, rngs: nnx.GroupNorm(4, num_groups=2, reduction_axes=(1, 2), rngs=rngs),
            "something else with reduction_axes",
        ),
        (lambda nnx, rngs: nnx.InstanceNorm(4, feature_axes=(1, 2), rngs=rngs), "several feature axes"),
        (lambda nnx, rngs: nnx.SpectralNorm(nnx.Linear(3, 4, rngs=rngs), n_steps=0, rngs=rngs), "normalizes no parameter"),
        (lambda nnx, rngs: nnx.SpectralNorm(nnx.ConvTranspose(3, 4, 3, rngs=rngs), rngs=rngs), "kernel lies mirrored"),
        (lambda nnx, rngs: nnx.WeightNorm(nnx.Linear(3, 4, rngs=rngs), feature_axes=0, rngs=rngs), "which are no rows"),
        (lambda nnx, rngs: nnx.BatchNorm(4, momentum=2.0, rngs=rngs), r"no specification allows \(BatchNormSpec: decay=2.0"),
        (lambda nnx, rngs: type("Own", (nnx.RMSNorm,), {"__call__": lambda _, x: x})(4, rngs=rngs), "the Own is none of"),
    ],
)
def test_flax_that_cannot_be_described(nnx, make, message):
    with pytest.raises(MigrationError, match=message):
        describe(make(nnx, nnx.Rngs(0)))
