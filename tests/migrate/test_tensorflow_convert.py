"""Normalization layers swapped inside Keras models of every make: what has to survive survives."""

import keras
import numpy as np
import pytest
from keras import layers

import crossnorm.tensorflow
from crossnorm import MigrationError
from crossnorm.migrate import convert, rules

X = np.random.default_rng(0).standard_normal((4, 6, 6, 3)).astype("float32")


def sequential():
    return keras.Sequential([keras.Input((6, 6, 3)), *stack()])


def functional():
    x = inputs = keras.Input((6, 6, 3))
    for layer in stack():
        x = layer(x)
    return keras.Model(inputs, x)


def nested():
    x = inputs = keras.Input((6, 6, 3))
    return keras.Model(inputs, layers.ReLU()(sequential()(x)))


class Block(layers.Layer):
    """A layer of layers, in an attribute, a list and a dictionary."""

    def __init__(self, **options):
        super().__init__(**options)
        self.first = layers.Conv2D(8, 3)
        self.norm = layers.BatchNormalization(momentum=0.5, name="norm")
        self.more = [layers.GroupNormalization(2, name="group"), layers.ReLU()]
        self.named = {"layer": layers.LayerNormalization(name="layer")}

    def call(self, x, training=None):
        x = self.norm(self.first(x), training=training)
        for layer in self.more:
            x = layer(x)
        return self.named["layer"](x)


def blocks():
    return keras.Sequential([keras.Input((6, 6, 3)), Block(), layers.Conv2D(4, 1), layers.BatchNormalization()])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.last = layers.BatchNormalization()

    def call(self, x, training=None):
        return self.last(self.block(x, training=training), training=training)


def subclassed():
    model = Subclassed()
    model(X)
    return model


def stack():
    return [
        layers.Conv2D(8, 3),
        layers.BatchNormalization(momentum=0.5, name="norm"),
        layers.ReLU(),
        layers.GroupNormalization(2),
        layers.LayerNormalization(),
        layers.Conv2D(4, 1),
    ]


MODELS = {maker.__name__: maker for maker in (sequential, functional, nested, blocks, subclassed)}


def every(model):
    return list(model._flatten_layers(include_self=False))


def ours(model):
    return [type(layer).__name__ for layer in every(model) if type(layer).__module__.startswith("crossnorm.tensorflow")]


@pytest.fixture(params=MODELS)
def model(request):
    keras.utils.set_random_seed(0)
    model = MODELS[request.param]()
    random = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(random.uniform(0.2, 1, weight.shape))
    return model


def test_native_to_ours_computes_the_same(model):
    before, weights, names = model(X, training=False).numpy(), model.get_weights(), [layer.name for layer in every(model)]
    new = convert(model, rules.ours())
    assert sorted(set(ours(new))) == ["BatchNormalization", "GroupNormalization", "LayerNormalization"]
    assert [layer.name for layer in every(new)] == names
    for one, other in zip(weights, new.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(new(X, training=False), before, rtol=1e-5, atol=1e-5)
    norm = next(layer for layer in every(new) if layer.name == "norm")
    assert norm.momentum == 0.5


def test_a_model_made_anew_leaves_the_old_one_alone():
    model = blocks()
    before = every(model)
    new = convert(model, rules.group_norm(2))
    assert all(a is b for a, b in zip(before, every(model), strict=True))
    assert isinstance(model.layers[-1], layers.BatchNormalization)
    assert isinstance(new.layers[-1], crossnorm.tensorflow.GroupNormalization)
    assert isinstance(new.layers[0].norm, crossnorm.tensorflow.GroupNormalization)


def test_it_trains_and_is_saved(model, tmp_path):
    new = convert(model, rules.ours())
    new.compile("sgd", "mse")
    new.fit(X, np.zeros(new(X).shape), verbose=0)
    new.save_weights(tmp_path / "a.weights.h5")


def test_batch_norm_to_group_norm(model):
    gamma = next(layer for layer in every(model) if layer.name == "norm").gamma.numpy()
    new = convert(model, rules.group_norm(32))
    norm = next(layer for layer in every(new) if layer.name == "norm")
    assert type(norm) is crossnorm.tensorflow.GroupNormalization
    assert norm.groups == 8
    np.testing.assert_array_equal(norm.gamma, gamma)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in every(new))


def test_batch_norm_to_synchronized():
    new = convert(sequential(), rules.synchronized())
    norm = new.get_layer("norm")
    assert type(norm) is layers.BatchNormalization
    assert norm.synchronized
    assert norm.momentum == 0.5
    unbiased = keras.Sequential([keras.Input((4,)), crossnorm.tensorflow.BatchNormalization(running_variance="unbiased")])
    with pytest.raises(crossnorm.Unsupported, match="running_variance='unbiased'"):
        convert(unbiased, rules.synchronized())


def test_it_trains_on_as_torch_would():
    new = convert(sequential(), rules.semantics("torch"))
    assert new.get_layer("norm").running_variance == "unbiased"
    assert new.get_layer("norm").epsilon == 1e-3


def test_what_is_trainable_the_dtype_and_the_compilation_survive():
    model = keras.Sequential([keras.Input((4,)), layers.LayerNormalization(dtype="mixed_float16"), layers.Dense(2)])
    model.layers[0].trainable = False
    model.layers[1].trainable = False
    model.compile("adam", "mse")
    new = convert(model, rules.ours())
    assert [layer.trainable for layer in new.layers] == [False, False]
    assert new.layers[0].dtype_policy.name == "mixed_float16"
    assert isinstance(new.optimizer, keras.optimizers.Adam)


def test_wrapped_layers():
    model = keras.Sequential([keras.Input((5, 6, 6, 3)), layers.TimeDistributed(layers.BatchNormalization())])
    new = convert(model, rules.ours())
    assert isinstance(new.layers[0].layer, crossnorm.tensorflow.BatchNormalization)
    x = np.stack([X] * 5, 1)
    np.testing.assert_allclose(new(x), model(x), rtol=1e-5, atol=1e-5)


def test_nothing_to_do():
    with pytest.raises(MigrationError, match="replaced no layer"):
        convert(keras.Sequential([keras.Input((4,)), layers.Dense(2)]), rules.ours())


V = np.random.default_rng(2).standard_normal((8, 4)).astype("float32")


class Small(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm, self.head = layers.BatchNormalization(), layers.Dense(2)

    def call(self, x, training=None):
        return self.head(self.norm(x, training=training))


def test_a_compiled_model_that_is_changed_in_place_does_not_go_on_with_what_was_traced():
    model = Small()
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(V, V[:, :2], verbose=0)
    model.predict(V, verbose=0)
    assert convert(model, rules.group_norm(2)) is model
    np.testing.assert_allclose(model.predict(V, verbose=0), model(V), rtol=1e-5, atol=1e-5)
    gamma = model.norm.gamma.numpy()
    model.fit(V, V[:, :2], verbose=0)
    assert not np.array_equal(gamma, model.norm.gamma)
    assert float(model.optimizer.learning_rate) == 0.5


def test_operations_and_masks_and_lambdas_in_the_graph():
    words = keras.Input((None,), dtype="int32")
    x = layers.LayerNormalization()(layers.Embedding(9, 4, mask_zero=True)(words))
    x = layers.Lambda(lambda x: x * 2, mask=lambda x, mask: mask)(x)
    model = keras.Model(words, layers.LSTM(3)(x + 1))
    ids = np.array([[1, 2, 0], [3, 0, 0]])
    np.testing.assert_allclose(convert(model, rules.ours())(ids), model(ids), rtol=1e-5, atol=1e-6)


def test_a_layer_that_two_models_share_stays_one():
    shared = layers.Dense(4)
    x = keras.Input((4,))
    inner = keras.Model(x, layers.BatchNormalization()(shared(x)))
    y = keras.Input((4,))
    model = keras.Model(y, inner(shared(y)))
    new = convert(model, rules.ours())
    assert len(new.weights) == len(model.weights)
    np.testing.assert_allclose(new(V), model(V), rtol=1e-5, atol=1e-6)


def test_a_sequential_model_in_two_attributes_stays_one():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.one = keras.Sequential([layers.Dense(4), layers.BatchNormalization()])
            self.block = Holder(self.one)

        def call(self, x):
            return self.block(self.one(x))

    class Holder(layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    model = Twice()
    before, count = model(V).numpy(), len(model.weights)
    convert(model, rules.ours())
    assert model.one is model.block.inner
    assert len(model.weights) == count
    np.testing.assert_allclose(model(V), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [rules.ours(), lambda name, layer, description: layers.BatchNormalization(momentum=0.5)])
@pytest.mark.parametrize("made", [Small, lambda: keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="norm")])])
def test_weights_regularizers_and_constraints_are_taken_over(made, rule):
    model = made()
    model(V)
    norm = model.layers[0]
    for index, weight in enumerate(norm.weights):
        weight.assign(np.arange(4) + index)
    norm.gamma_regularizer = norm.gamma.regularizer = keras.regularizers.L2(0.1)
    norm.beta_constraint = norm.beta.constraint = keras.constraints.NonNeg()
    before = [weight.numpy() for weight in norm.weights]
    new = convert(model, rule).layers[0]
    assert new is not norm
    for one, other in zip(before, new.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(new.losses) == 1
    assert isinstance(new.beta.constraint, keras.constraints.NonNeg)
    assert isinstance(new.gamma_regularizer, keras.regularizers.L2)


def test_a_layer_that_cannot_be_built_in_that_place():
    model = Small()
    model(V)
    norm = model.norm
    with pytest.raises(MigrationError, match="cannot be built"):
        convert(model, lambda name, layer, description: layers.GroupNormalization(3))
    assert model.norm is norm


def test_a_class_that_makes_its_own_graph_is_refused():
    class Own(keras.Model):
        def __init__(self, more):
            x = keras.Input((4,))
            super().__init__(x, layers.BatchNormalization()(x))
            self.more = more

    with pytest.raises(MigrationError, match="is a Own, whose constructor makes its layers itself"):
        convert(Own(3), rules.ours())


def test_a_frozen_model_stays_frozen():
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(), layers.Dense(2)])
    model.trainable = False
    new = convert(model, rules.ours())
    assert not new.trainable
    assert not new.trainable_weights
