"""The optimizers of Keras, as `transfer_optimizer` sees them."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from .._optimizers import MOMENTS, Rule, State, refuse
from .parts import assign, read

_METHODS: dict[type[keras.optimizers.Optimizer], str] = {
    keras.optimizers.SGD: "sgd",
    keras.optimizers.Adam: "adam",
    keras.optimizers.AdamW: "adam",
}
# What Keras calls the moments, and the fields of a rule that are attributes.
_KEPT = {"momentum": "momentums", "mean": "_momentums", "mean_of_square": "_velocities"}
_FIELDS = {
    "sgd": {"momentum": "momentum", "nesterov": "nesterov"},
    "adam": {"beta_1": "beta_1", "beta_2": "beta_2", "eps": "epsilon"},
}
_REFUSED = ("amsgrad", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "loss_scale_factor")
_REFUSED += ("gradient_accumulation_steps",)


def present(optimizer: keras.optimizers.Optimizer) -> "Optimizer":
    """The optimizer, if it is of a class that can be moved, and built."""
    if type(optimizer) not in _METHODS:
        refuse(
            f"{type(optimizer).__name__} is not SGD, Adam or AdamW of keras.optimizers",
            "train on with one of these, or give the inner_optimizer of a LossScaleOptimizer",
        )
    if not optimizer.built:
        refuse(f"the Keras optimizer {optimizer.name!r} is not built", "call its build(model.trainable_variables)")
    return Optimizer(optimizer)


class Optimizer:
    """See `crossnorm.migrate._optimizers.Optimizer`."""

    framework = "tensorflow"

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self.optimizer: Any = optimizer
        self.name = f"keras.optimizers.{type(optimizer).__name__}"
        self.method = _METHODS[type(optimizer)]

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.learning_rate)

    def rule(self) -> Rule:
        """The rule, of plain numbers only."""
        for name in _REFUSED:
            if value := getattr(self.optimizer, name, None):
                refuse(f"{self.name} has {name}={value!r}, which has no counterpart", "train on without it")
        if not isinstance(self.optimizer._learning_rate, keras.Variable):
            refuse(f"{self.name} has a learning rate schedule, which cannot be moved", "give it a number as learning_rate")
        values = {field: getattr(self.optimizer, name) for field, name in _FIELDS[self.method].items()}
        for field, value in values.items():
            if not isinstance(value, int | float):
                refuse(f"{self.name} has {field}={value!r}, which is no number", "give it a number")
        if values.get("momentum") and not self.optimizer.momentums:
            refuse(f"{self.name} was built without momentum", "make it with momentum at once")
        if values.get("momentum") and not self.learning_rate:
            refuse(f"{self.name} has learning_rate=0, from which no velocity can be taken", "give it the one that it had")
        weight_decay = float(self.optimizer.weight_decay or 0)
        self._check_exclusions(weight_decay)
        return Rule(method=self.method, learning_rate=self.learning_rate, weight_decay=weight_decay, **values)  # type: ignore[arg-type]

    def _check_exclusions(self, weight_decay: float) -> None:
        excluded = getattr(self.optimizer, "_exclude_from_weight_decay", None)
        pattern = getattr(self.optimizer, "_exclude_from_weight_decay_pattern", None)
        if weight_decay and (excluded or pattern):
            refuse(
                f"{self.name} excludes variables from weight decay (exclude_from_weight_decay)", "decay all of them, or none"
            )

    def trained(self) -> Sequence[keras.Variable]:
        return [variable for variable in self.optimizer._trainable_variables if variable.trainable]

    def state(self, variable: keras.Variable) -> State:
        moments = {}
        for name in MOMENTS[self.method]:
            kept = self._kept(name, variable)
            moments[name] = np.zeros(variable.shape, read(variable).dtype) if kept is None else read(kept)
        if "momentum" in moments and self.optimizer.momentum:
            # In float64, so that a velocity comes back bit for bit.
            moments["momentum"] = np.float64(moments["momentum"]) / -self.learning_rate
        return State(moments, int(self.optimizer.iterations))

    def _kept(self, name: str, variable: keras.Variable) -> Any:
        held = getattr(self.optimizer, _KEPT[name])
        return held[self.optimizer._get_variable_index(variable)] if held else None

    def check(self, rule: Rule, states: Sequence[tuple[keras.Variable, State]]) -> None:
        if rule.method != self.method:
            refuse(f"{self.name} does not step as {rule.method}", "give an optimizer of the source's kind")
        if rule.weight_decay and not rule.decoupled:
            refuse(
                f"the source adds its weight_decay={rule.weight_decay} to the gradient, {self.name} decouples it",
                "train on with torch.optim.AdamW, which decouples it too, or put the decay into the loss",
            )
        self._check_exclusions(rule.weight_decay)
        if rule.momentum and not self.optimizer.momentums:
            refuse(f"{self.name} was built without momentum", f"make it with momentum={rule.momentum}")
        if len(steps := {state.steps for _, state in states}) > 1:
            refuse(f"the source made {sorted(steps)} steps for different arrays, {self.name} counts once for all", "move none")

    def go_on(self, rule: Rule, states: Sequence[tuple[keras.Variable, State]]) -> list[str]:
        optimizer = self.optimizer
        wanted = {name: getattr(rule, field) for field, name in _FIELDS[self.method].items()}
        wanted["weight_decay"] = rule.weight_decay or (0.0 if isinstance(optimizer, keras.optimizers.AdamW) else None)
        changed = {name: new for name, new in wanted.items() if getattr(optimizer, name) != new}
        notes = [f"set {name}={new} where {getattr(optimizer, name)} was" for name, new in changed.items()]
        if changed and int(optimizer.iterations):
            notes.append("a train step that Keras compiled before keeps the old numbers: compile the model again")
        for name, new in changed.items():
            setattr(optimizer, name, new)
        if self.learning_rate != rule.learning_rate:
            before = self.learning_rate
            optimizer.learning_rate = rule.learning_rate
            notes.append(f"set learning_rate={self.learning_rate} where {before} was")
            if self.learning_rate != rule.learning_rate:
                notes.append(f"the learning rate {rule.learning_rate} was rounded to {self.learning_rate}, as Keras stores it")
        for variable, state in states:
            for name, moment in state.moments.items():
                scale = -self.learning_rate if name == "momentum" else 1
                kept = self._kept(name, variable)
                assign(kept, (np.float64(moment) * scale).astype(read(kept).dtype))
            if state.steps is not None:
                optimizer.iterations.assign(state.steps)
        return notes
