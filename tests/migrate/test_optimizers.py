"""An optimizer that took over another one's state goes on as that would: the same losses, step for step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from crossnorm.errors import MigrationError
from crossnorm.migrate._optimizers import transfer_optimizer
from crossnorm.migrate._parts import parts

layers = keras.layers

# Numbers that float32 has, to which Keras rounds these also in float64; and next to no epsilon, which the two frameworks add in
# different places. What is left is rounding.
RATE = 2.0**-5
OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, RATE), lambda: keras.optimizers.SGD(RATE)),
    "momentum": (lambda p: torch.optim.SGD(p, RATE, 0.875), lambda: keras.optimizers.SGD(RATE, 0.875)),
    "nesterov": (
        lambda p: torch.optim.SGD(p, RATE, 0.75, nesterov=True),
        lambda: keras.optimizers.SGD(RATE, 0.75, nesterov=True),
    ),
    "adam": (
        lambda p: torch.optim.Adam(p, RATE, (0.75, 0.96875), eps=1e-30),
        lambda: keras.optimizers.Adam(RATE, 0.75, 0.96875, epsilon=1e-30),
    ),
    "adamw": (
        lambda p: torch.optim.AdamW(p, RATE, (0.75, 0.96875), eps=1e-30, weight_decay=0.125),
        lambda: keras.optimizers.AdamW(RATE, 0.125, 0.75, 0.96875, epsilon=1e-30),
    ),
}
# The same kinds with nothing as it should be.
OTHERS = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.5, 0.5, nesterov=True), lambda: keras.optimizers.SGD(0.5, 0.5, nesterov=True)),
    "adam": (lambda p: torch.optim.Adam(p, 0.5), lambda: keras.optimizers.Adam(0.5)),
    "adamw": (lambda p: torch.optim.AdamW(p, 0.5), lambda: keras.optimizers.AdamW(0.5)),
}


class Torch(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(3, 4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.gru = nn.GRU(4, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.dense = nn.Linear(8, 2)

    def forward(self, x):
        x = torch.tanh(self.norm(self.convolution(x.mT)).mT)
        x, _ = self.gru(x)
        return self.dense(self.attention(x, x, x)[0])


class TorchTraining:
    def __init__(self, dtype, optimizer):
        torch.manual_seed(0)
        self.model = Torch().to(getattr(torch, dtype))
        self.optimizer = optimizer(self.model.parameters())

    def step(self, x, y):
        self.optimizer.zero_grad()
        loss = ((self.model(torch.from_numpy(x)) - torch.from_numpy(y)) ** 2).mean()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class KerasTraining:
    def __init__(self, dtype, optimizer):
        keras.utils.set_random_seed(1)
        x = inputs = keras.Input((4, 3), dtype=dtype)
        x = layers.Conv1D(4, 2, dtype=dtype)(x)
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype)(x)
        x = layers.GRU(8, return_sequences=True, dtype=dtype)(keras.ops.tanh(x))
        x = layers.MultiHeadAttention(2, 4, dtype=dtype)(x, x)
        self.model = keras.Model(inputs, layers.Dense(2, dtype=dtype)(x))
        self.optimizer = optimizer()
        self.optimizer.build(self.model.trainable_variables)

    def step(self, x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.model(x, training=True) - y) ** 2)
        variables = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return float(loss)


def other_kind(rule):
    return rule if rule in OTHERS else "sgd"


def trained(frameworks, rule, dtype="float64", steps=3):
    """A model that was trained, one of the other optimizer that was trained on something else, and the pairs of their parts."""
    sides = {"torch": (TorchTraining, 0), "keras": (KerasTraining, 1)}
    (make, i), (make_other, j) = (sides[framework] for framework in frameworks)
    source, target = make(dtype, OPTIMIZERS[rule][i]), make_other(dtype, OTHERS[other_kind(rule)][j])
    for seed in range(steps):
        source.step(*batch(seed, dtype))
    if steps:
        target.step(*batch(50, dtype))
    pairs = list(zip(parts(source.model), parts(target.model), strict=True))
    for one, other in pairs:
        other.write({name: one.arrays[name] for name in other.arrays})
    return source, target, pairs


def batch(seed, dtype="float64"):
    random = np.random.default_rng(seed)
    return random.standard_normal((4, 4, 3)).astype(dtype), random.standard_normal((4, 3, 2)).astype(dtype)


def losses(training, dtype="float64", steps=4):
    found = [training.step(*batch(seed, dtype)) for seed in range(100, 100 + steps)]
    assert np.isfinite(found).all()
    return found


ACROSS = [("torch", "keras"), ("keras", "torch")]
WITHIN = [("torch", "torch"), ("keras", "keras")]


@pytest.mark.parametrize(
    ("frameworks", "rule"),
    [
        *((way, rule) for way in ACROSS for rule in OPTIMIZERS),
        *((way, rule) for way in WITHIN for rule in ("nesterov", "adamw")),
    ],
)
def test_both_train_on_alike(frameworks, rule):
    source, target, pairs = trained(frameworks, rule)
    report = transfer_optimizer(source.optimizer, target.optimizer, pairs)
    assert "moved the state of" in str(report)
    np.testing.assert_allclose(losses(target), losses(source), rtol=1e-12)


@pytest.mark.parametrize("frameworks", ACROSS)
def test_without_the_transfer_they_do_not(frameworks):
    source, target, _ = trained(frameworks, "momentum")
    assert not np.allclose(losses(target), losses(source), rtol=1e-3)


@pytest.mark.parametrize("frameworks", ACROSS)
@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_both_train_on_alike_in_float32(frameworks, rule):
    source, target, pairs = trained(frameworks, rule, "float32")
    transfer_optimizer(source.optimizer, target.optimizer, pairs)
    np.testing.assert_allclose(losses(target, "float32"), losses(source, "float32"), rtol=32 * 2.0**-24)


def settings(training):
    """All numbers of the optimizer by which it steps."""
    optimizer = training.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        (group,) = optimizer.param_groups
        return {name: value for name, value in group.items() if name != "params"}
    return optimizer.get_config() | {"iterations": int(optimizer.iterations)}


def test_what_is_set_is_said():
    source, target, pairs = trained(("torch", "keras"), "adamw")
    report = str(transfer_optimizer(source.optimizer, target.optimizer, pairs))
    assert f"set learning_rate={RATE} where 0.5 was" in report
    assert "set epsilon=1e-30 where 1e-07 was" in report
    assert "set weight_decay=0.125 where 0.004 was" in report
    assert "compile the model again" in report
    found = settings(target)
    wanted = {
        "learning_rate": RATE,
        "beta_1": 0.75,
        "beta_2": 0.96875,
        "epsilon": 1e-30,
        "weight_decay": 0.125,
        "iterations": 3,
    }
    assert {name: found[name] for name in wanted} == wanted


def test_a_rounded_learning_rate_is_said():
    source, target, pairs = trained(("torch", "keras"), "sgd", steps=0)
    source.optimizer.param_groups[0]["lr"] = 0.1
    assert "rate 0.1 was rounded to 0.100000001490116" in str(transfer_optimizer(source.optimizer, target.optimizer, pairs))


@pytest.mark.parametrize("frameworks", ACROSS)
def test_the_difference_that_epsilon_makes_is_measured(frameworks):
    source, target, pairs = trained(frameworks, "adam")
    if frameworks[0] == "torch":
        source.optimizer.param_groups[0]["eps"] = 1e-3
    else:
        source.optimizer.epsilon = 1e-3
    note = next(note for note in transfer_optimizer(source.optimizer, target.optimizer, pairs).notes if "epsilon=0.001" in note)
    said = float(note.split("step by ")[1].split()[0])

    def learned(training):
        return np.concatenate([part.arrays[key].ravel() for part in parts(training.model) for key in sorted(part.trainable)])

    def step(training):
        before = learned(training)
        training.step(*batch(7))
        return learned(training) - before

    one, other = step(source), step(target)
    measured = np.linalg.norm(one - other) / np.linalg.norm(one)
    assert 0.3 * said < measured < 3 * said


def test_optimizers_that_made_no_step_go_on_from_none():
    for frameworks in ACROSS:
        source, target, pairs = trained(frameworks, "adam", steps=0)
        transfer_optimizer(source.optimizer, target.optimizer, pairs)
        np.testing.assert_allclose(losses(target), losses(source), rtol=1e-12)


def test_learning_rates_in_a_tensor_stay_there():
    source, target, pairs = trained(("keras", "torch"), "sgd", steps=0)
    rate = target.optimizer.param_groups[0]["lr"] = torch.tensor(0.5)
    transfer_optimizer(source.optimizer, target.optimizer, pairs)
    assert target.optimizer.param_groups[0]["lr"] is rate
    assert rate == RATE


def small(*, torch_optimizer=None, keras_optimizer=None, torch_layer=None, keras_layer=None):
    """Two dense layers, two optimizers with momentum, and the pair."""
    module = torch_layer or nn.Linear(3, 2)
    layer = keras_layer or layers.Dense(2)
    layer.build((None, 5, 3))
    one = (torch_optimizer or (lambda p: torch.optim.SGD(p, 0.1, 0.9)))(module.parameters())
    other = keras_optimizer or keras.optimizers.SGD(0.5, 0.5)
    other.build(layer.trainable_variables)
    return one, other, list(zip(parts(module), parts(layer), strict=True))


def scheduled(parameters):
    optimizer = torch.optim.SGD(parameters, 0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 5)
    return optimizer


def uneven(parameters):
    first, second = parameters
    return torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.2}], 0.1)


def excluding(rate=0.1):
    optimizer = keras.optimizers.AdamW(rate)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad"),
        (lambda p: torch.optim.SGD(p, 0.1, 0.9, dampening=0.5), "dampening"),
        (lambda p: torch.optim.Adam(p, maximize=True), "maximize"),
        (lambda p: torch.optim.RMSprop(p), "RMSprop is not SGD"),
        (scheduled, "scheduler"),
        (uneven, "groups of different lr"),
        (lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1), "adds its weight_decay=0.1 to the gradient"),
        (lambda p: torch.optim.Adam(p), "does not step as adam"),
    ],
)
def test_what_torch_has_alone_is_refused(make, what):
    one, other, pairs = small(torch_optimizer=make)
    before = [np.array(variable) for variable in other.variables]
    with pytest.raises(MigrationError, match=f"^transfer_optimizer: .*{what}"):
        transfer_optimizer(one, other, pairs)
    assert all(np.array_equal(old, variable) for old, variable in zip(before, other.variables, strict=True))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: keras.optimizers.Adam(amsgrad=True), "amsgrad"),
        (lambda: keras.optimizers.SGD(clipnorm=1.0), "clipnorm=1.0"),
        (lambda: keras.optimizers.SGD(clipvalue=1.0), "clipvalue"),
        (lambda: keras.optimizers.SGD(global_clipnorm=1.0), "global_clipnorm"),
        (lambda: keras.optimizers.SGD(use_ema=True), "use_ema"),
        (lambda: keras.optimizers.SGD(loss_scale_factor=2.0), "loss_scale_factor"),
        (lambda: keras.optimizers.SGD(gradient_accumulation_steps=2), "gradient_accumulation_steps"),
        (lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)), "schedule"),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "inner_optimizer"),
        (lambda: keras.optimizers.RMSprop(), "RMSprop is not SGD"),
        (excluding, "exclude_from_weight_decay"),
        (lambda: keras.optimizers.SGD(0.0, 0.5), "learning_rate=0"),
        (lambda: keras.optimizers.SGD(0.1, weight_decay=0.1), "decoupled, that of torch.optim.SGD coupled"),
    ],
)
def test_what_keras_has_alone_is_refused(make, what):
    one, other, pairs = small(keras_optimizer=make())
    with pytest.raises(MigrationError, match=f"^transfer_optimizer: .*{what}"):
        transfer_optimizer(other, one, [(b, a) for a, b in pairs])
    assert not one.state


def test_what_the_target_has_alone_is_refused_too():
    one, other, pairs = small(keras_optimizer=keras.optimizers.SGD(0.5, 0.5, clipnorm=1.0))
    with pytest.raises(MigrationError, match="clipnorm"):
        transfer_optimizer(one, other, pairs)


def test_keras_without_room_for_momentum_or_not_built_is_refused():
    one, other, pairs = small(keras_optimizer=keras.optimizers.SGD(0.5))
    with pytest.raises(MigrationError, match=r"built without momentum; make it with momentum=0\.9"):
        transfer_optimizer(one, other, pairs)
    with pytest.raises(MigrationError, match="not built; call its build"):
        transfer_optimizer(one, keras.optimizers.SGD(0.5, 0.5), pairs)
    with pytest.raises(MigrationError, match="int is no optimizer"):
        transfer_optimizer(one, 3, pairs)


def test_different_numbers_of_steps_are_refused():
    one, other, pairs = small(torch_optimizer=torch.optim.Adam, keras_optimizer=keras.optimizers.Adam())
    module = pairs[0][0].layer
    module.weight.grad = torch.ones_like(module.weight)
    one.step()
    with pytest.raises(MigrationError, match=r"\[0, 1\] steps"):
        transfer_optimizer(one, other, pairs)


def test_what_only_one_of_them_trains_is_refused_by_name():
    one, other, pairs = small()
    pairs[0][0].layer.bias.requires_grad_(False)
    with pytest.raises(MigrationError, match="Linear bias is trained in the target only"):
        transfer_optimizer(one, other, pairs)
    with pytest.raises(MigrationError, match="no array of the pairs"):
        transfer_optimizer(one, other, [])


def test_the_second_bias_of_an_lstm_has_to_be_frozen():
    module, layer = nn.LSTM(3, 2), layers.LSTM(2)
    one, other, pairs = small(torch_layer=module, keras_layer=layer)
    with pytest.raises(MigrationError, match="LSTM recurrent_bias is trained in the source only"):
        transfer_optimizer(one, other, pairs)
    module.bias_hh_l0.requires_grad_(False)
    transfer_optimizer(one, other, pairs)


def test_ties_of_one_model_alone_are_refused():
    one, other = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    optimizers = []
    one[1].weight = one[0].weight
    for model in (one, other):
        optimizers.append(torch.optim.SGD(model.parameters(), 0.1, 0.9))
        model(torch.ones(1, 3)).sum().backward()
        optimizers[-1].step()
    with pytest.raises(MigrationError, match="0 weight and 1 weight are tied in the source only"):
        transfer_optimizer(*optimizers, list(zip(parts(one), parts(other), strict=True)))
    with pytest.raises(MigrationError, match="0 weight and 1 weight are tied in the target only"):
        transfer_optimizer(*reversed(optimizers), list(zip(parts(other), parts(one), strict=True)))
    other[1].weight = other[0].weight
    transfer_optimizer(*optimizers, list(zip(parts(one), parts(other), strict=True)))
    moments = [
        optimizer.state[model[0].weight]["momentum_buffer"] for optimizer, model in zip(optimizers, (one, other), strict=True)
    ]
    assert torch.equal(*moments)


def test_arrays_outside_of_the_pairs_are_told():
    source, target, pairs = trained(("torch", "keras"), "momentum", steps=0)
    report = str(transfer_optimizer(source.optimizer, target.optimizer, pairs[:-1]))
    assert "2 variables that the source trains are in no pair: their state was not moved" in report
    assert "2 variables that the target trains are in no pair: their state is what it was" in report


def test_narrower_arrays_are_refused():
    one, other, pairs = small(torch_layer=nn.Linear(3, 2).double())
    with pytest.raises(MigrationError, match="would be rounded"):
        transfer_optimizer(one, other, pairs)
