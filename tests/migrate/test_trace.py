"""Runs of whole models, layer by layer: what is recorded and replayed, what the units are, and that nothing is disturbed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers
from torch import nn

from crossnorm.migrate import tensorflow as in_tensorflow
from crossnorm.migrate import torch as in_torch
from crossnorm.migrate import transfer
from crossnorm.migrate.tensorflow.trace import _twin
from crossnorm.rounding import VERDICT

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.standard_normal((5, 3, 8, 8)).astype("float32")
LAST = RANDOM.standard_normal((5, 2)).astype("float32")


class Shared(nn.Module):
    """One layer called twice, an activation in place, layers called in another order than they are defined."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.shared = nn.Linear(4, 4)
        self.first = nn.Linear(3, 4)

    def forward(self, x):
        x = torch.relu_(self.first(x))
        return self.last(self.shared(torch.relu_(self.shared(x))))


def image_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(4, 6, 3),
        nn.GroupNorm(2, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    return model.eval()


def keras_model():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)), layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
            layers.ReLU(), layers.Dropout(0.5), layers.Conv2D(6, 3), layers.GroupNormalization(2, epsilon=1e-5),
            layers.GlobalAveragePooling2D(), layers.Dense(2),
        ]
    )  # fmt: skip
    transfer(image_model(), model, inputs=IMAGES)
    return model


def recorded(model, inputs, **options):
    room = in_torch if isinstance(model, nn.Module) else in_tensorflow
    parts = room.parts(model)
    return room.record(model, parts, [inputs], **options), room.units(model, parts, [inputs], **options), room


def test_calls_come_in_the_order_of_execution_and_a_shared_layer_twice():
    torch.manual_seed(0)
    model, x = Shared(), RANDOM.standard_normal((5, 3)).astype("float32")
    found, _, _ = recorded(model, x, cotangent=LAST)
    assert [call.key for call in found.calls] == [("first", 0), ("shared", 0), ("shared", 1), ("last", 0)]
    # By hand: what a layer gave, before the activation that works in place, and the gradient of just that.
    with torch.no_grad():
        h = model.first(torch.tensor(x))
    assert np.array_equal(found.calls[0].output, h.numpy())
    assert (found.calls[0].output < 0).any()
    h.requires_grad_(True)
    one = model.shared(torch.relu(h))
    other = model.shared(torch.relu(one))
    output = model.last(other)
    gradients = torch.autograd.grad(output, [h, one, other, model.shared.weight], torch.tensor(LAST))
    for call, gradient in zip(found.calls, gradients[:3], strict=False):
        np.testing.assert_allclose(call.gradient, gradient.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.gradients["shared", "weight"], gradients[3].numpy(), rtol=1e-5, atol=1e-6)
    assert np.array_equal(found.output, output.detach().numpy())


@pytest.mark.parametrize("training", [False, True])
def test_two_frameworks_record_the_same(training):
    (one, units, _), (other, others, _) = (
        recorded(image_model(), IMAGES, training=training, cotangent=LAST),
        recorded(keras_model(), IMAGES.transpose(0, 2, 3, 1), training=training, cotangent=LAST),
    )
    assert [call.part.kind for call in one.calls] == [call.part.kind for call in other.calls]
    for a, b in zip(one.calls, other.calls, strict=True):
        assert np.max(np.abs(a.output - b.output) / units.outputs[a.key]) <= VERDICT
        assert np.max(np.abs(a.gradient - b.gradient) / units.output_gradients[a.key]) <= VERDICT
        gradients = [call.input_gradients["input"] for call in (a, b)]
        assert np.max(np.abs(gradients[0] - gradients[1]) / units.input_gradients[*a.key, "input"]) <= VERDICT
        # Both frameworks find the same unit: a copy in float64 was made of either.
        ratio = units.outputs[a.key] / others.outputs[b.key]
        assert ratio.min() > 1 / 4
        assert ratio.max() < 4
    arrays = [
        (a.part.name, b.part.name, name) for a, b in zip(one.calls, other.calls, strict=True) for name in a.part.trainable
    ]
    assert len(arrays) == len(one.gradients) == len(other.gradients) == 10
    for a, b, name in arrays:
        error = np.abs(one.gradients[a, name] - other.gradients[b, name]) / units.gradients[a, name]
        assert np.max(error) <= VERDICT, (a, name)
    for name in ("running_mean", "running_variance"):
        state = one.states["1", name]
        assert np.any(state != image_model()[1].get_buffer(name.replace("variance", "var")).numpy()) == training
        if name == "running_mean":
            assert np.max(np.abs(state - other.states[other.calls[1].part.name, name]) / units.states["1", name]) <= VERDICT


@pytest.mark.parametrize("make", [image_model, keras_model])
def test_a_replay_gives_what_the_run_gave(make):
    model = make()
    inputs = IMAGES if make is image_model else IMAGES.transpose(0, 2, 3, 1)
    found, _, room = recorded(model, inputs, training=True, cotangent=LAST)
    for call in found.calls:
        again = room.replay(call, call.inputs, cotangent=call.gradient)
        np.testing.assert_allclose(again.output, call.output, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(again.input_gradients["input"], call.input_gradients["input"], rtol=1e-4, atol=1e-6)
        for name, gradient in again.gradients.items():
            np.testing.assert_allclose(gradient, found.gradients[call.part.name, name], rtol=1e-4, atol=1e-5)
        for name, state in again.states.items():
            np.testing.assert_allclose(state, found.states[call.part.name, name], rtol=1e-6)
    norm = found.calls[1]
    assert not np.allclose(room.replay(norm, training=False).output, norm.output, atol=1e-2)


@pytest.mark.parametrize("make", [image_model, keras_model])
def test_the_unit_is_what_one_rounding_of_the_weights_changes(make):
    model = make()
    inputs = IMAGES if make is image_model else IMAGES.transpose(0, 2, 3, 1)
    found, units, room = recorded(model, inputs)
    for factor, small in ((1 + 2.0**-23, True), (1 + 2.0**-14, False)):
        part = room.parts(model)[0]
        part.write({"weight": part.arrays["weight"] * np.float32(factor)})
        moved, _, _ = recorded(model, inputs)
        part.write(part.arrays)
        off = [
            np.max(np.abs(a.output - b.output) / units.outputs[a.key]) for a, b in zip(found.calls, moved.calls, strict=True)
        ]
        assert (off[0] <= VERDICT) == small
        assert max(off) > 0


def test_the_unit_grows_where_rounding_is_amplified():
    x = RANDOM.standard_normal((5, 64))
    near, far = (recorded(nn.LayerNorm(64), x + offset)[1].outputs["LayerNorm", 0].max() for offset in (0, 1000))
    assert 100 < far / near < 10_000


class Noise(nn.Module):
    def forward(self, x):
        return x + 0 * torch.randn_like(x)


@pytest.mark.parametrize("training", [None, False, True])
def test_a_torch_model_is_as_it_was(training):
    model = nn.Sequential(*image_model(), Noise()).eval()
    model[1].train()
    model[0].weight.requires_grad_(False)
    model[8].weight.grad = torch.ones_like(model[8].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    flags = [module.training for module in model.modules()]
    found, _, _ = recorded(model, IMAGES, training=training, cotangent=LAST)
    assert [call.training for call in found.calls][1] == (training is not False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model[8].weight.grad, torch.ones_like(model[8].weight))
    assert model[0].weight.grad is None
    assert ("0", "weight") not in found.gradients
    assert model[3].p == 0.5
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    in_torch.record(model, in_torch.parts(model), [IMAGES], training=True, restore=False)
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_a_keras_model_is_as_it_was():
    model = keras_model()
    before = [variable.numpy() for variable in model.variables]
    recorded(model, IMAGES.transpose(0, 2, 3, 1), training=True, cotangent=LAST)
    assert all(np.array_equal(variable.numpy(), values) for variable, values in zip(model.variables, before, strict=True))
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    assert next(layer for layer in model.layers if isinstance(layer, layers.Dropout)).rate == 0.5
    assert not tf.config.functions_run_eagerly()
    assert keras.config.dtype_policy().name == "float32"
    in_tensorflow.record(model, in_tensorflow.parts(model), [IMAGES.transpose(0, 2, 3, 1)], training=True, restore=False)
    assert not all(np.array_equal(variable.numpy(), values) for variable, values in zip(model.variables, before, strict=True))


class Block(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense, self.norm = layers.Dense(4), layers.LayerNormalization()

    @tf.function
    def call(self, x):
        return x + self.norm(self.dense(x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.block, self.head = Block(), layers.Dense(2)

    def call(self, x, training=False):
        return self.head(self.block(x))


def nested():
    inner = keras.Sequential([keras.Input((4,)), Block(), layers.Dense(4, name="inside")])
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(inner(inner(inputs))))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 4)))
    return model


@pytest.mark.parametrize(("make", "kinds"), [(subclassed, "block dense"), (nested, "block dense block dense dense")])
def test_keras_models_of_every_make(make, kinds):
    x = RANDOM.standard_normal((5, 4)).astype("float32")
    model = make()
    found, _, _ = recorded(model, x, cotangent=LAST)
    assert [call.part.kind for call in found.calls] == kinds.replace("block", "dense layer_norm").split()
    assert all(call.gradient is not None for call in found.calls)
    assert np.array_equal(found.output, model(x).numpy())
    # Measured in float64, and not with the noise of float32.
    twin = _twin(model, [x])
    assert {variable.dtype for variable in twin.weights} == {"float64"}
    np.testing.assert_allclose(twin(x).numpy(), found.output, rtol=1e-4, atol=1e-5)


def test_arrays_and_outputs_of_a_recurrent_module_are_those_of_its_last_layer():
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 4, 2)
    found, _, _ = recorded(lstm, RANDOM.standard_normal((7, 5, 3)).astype("float32"))
    (call,) = found.calls
    assert call.part.name == "l1"
    assert call.output.shape == (5, 7, 4)
    assert call.inputs["input"].shape == (5, 7, 3)
    assert found.output.shape == (7, 5, 4)


def test_a_run_that_breaks_off_keeps_what_was_before():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2))
    with pytest.raises(RuntimeError) as raised:
        in_torch.record(model, in_torch.parts(model), [RANDOM.standard_normal((5, 3))])
    assert [call.part.name for call in raised.value.calls] == ["0"]
    assert not any(module._forward_hooks for module in model.modules())


def test_half_precision_has_units_of_its_own():
    model, x = nn.Sequential(nn.Linear(3, 4)), RANDOM.standard_normal((5, 3))
    _, full, _ = recorded(model, x)
    found, half, _ = recorded(model.to(torch.bfloat16), x)
    assert found.calls[0].dtype == "bfloat16"
    assert found.calls[0].output.dtype == np.float32
    ratio = half.outputs["0", 0] / full.outputs["0", 0]
    assert np.all((ratio > 2.0**14) & (ratio < 2.0**18))
