"""The optimizers of `torch.optim`, as `transfer_optimizer` sees them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._optimizers import MOMENTS, Rule, State, refuse
from ._held import to_array, to_tensor

_METHODS: dict[type[torch.optim.Optimizer], str] = {
    torch.optim.SGD: "sgd",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adam",
}
# What torch calls the moments and the fields of a rule. A group has both betas in one entry.
_KEPT = {"momentum": "momentum_buffer", "mean": "exp_avg", "mean_of_square": "exp_avg_sq"}
_FIELDS = {
    "sgd": {"learning_rate": "lr", "momentum": "momentum", "nesterov": "nesterov", "weight_decay": "weight_decay"},
    "adam": {"learning_rate": "lr", "eps": "eps", "weight_decay": "weight_decay"},
}


def present(optimizer: torch.optim.Optimizer) -> "Optimizer":
    """The optimizer, if it is of a class that can be moved."""
    if type(optimizer) not in _METHODS:
        refuse(f"{type(optimizer).__name__} is not SGD, Adam or AdamW of torch.optim", "train on with one of these")
    return Optimizer(optimizer)


class Optimizer:
    """See `crossnorm.migrate._optimizers.Optimizer`."""

    framework = "torch"

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer: Any = optimizer
        self.name = f"torch.optim.{type(optimizer).__name__}"
        self.method = _METHODS[type(optimizer)]

    @property
    def decoupled(self) -> bool:
        return bool(self.optimizer.param_groups[0].get("decoupled_weight_decay", False))

    def rule(self) -> Rule:
        """The rule of all groups, which have to agree."""
        first, *others = self.optimizer.param_groups
        for name in ("amsgrad", "maximize", "dampening"):
            if any(group.get(name) for group in (first, *others)):
                refuse(f"{self.name} has {name}={first[name]}, which Keras has not", "train on without it")
        if any("initial_lr" in group for group in (first, *others)):
            refuse(f"{self.name} has a learning rate scheduler, which cannot be moved", "give an optimizer without one")
        for name in ("lr", "betas", "eps", "momentum", "nesterov", "weight_decay", "decoupled_weight_decay"):
            values = [group[name] for group in (first, *others) if name in group]
            if any(value != values[0] for value in values):
                refuse(f"{self.name} has groups of different {name}, {values}", "give them the same, or move nothing")
        values = {field: float(first[name]) for field, name in _FIELDS[self.method].items()}
        if self.method == "sgd":
            values["nesterov"] = bool(first["nesterov"])
        else:
            values |= {"beta_1": float(first["betas"][0]), "beta_2": float(first["betas"][1])}
        return Rule(method=self.method, decoupled=self.decoupled, **values)  # type: ignore[arg-type]

    def trained(self) -> Sequence[Tensor]:
        return [tensor for group in self.optimizer.param_groups for tensor in group["params"] if tensor.requires_grad]

    def state(self, variable: Tensor) -> State:
        # Asked for by .get: the dictionary makes an entry for whatever is looked up.
        kept = self.optimizer.state.get(variable, {})
        moments = {}
        for name in MOMENTS[self.method]:
            tensor = kept.get(_KEPT[name])
            moments[name] = to_array(torch.zeros_like(variable) if tensor is None else tensor.detach())
        return State(moments, None if self.method == "sgd" else int(kept.get("step", 0)))

    def check(self, rule: Rule, states: Sequence[tuple[Tensor, State]]) -> None:
        if rule.method != self.method:
            refuse(f"{self.name} does not step as {rule.method}", "give an optimizer of the source's kind")
        if rule.weight_decay and rule.decoupled != self.decoupled:
            kinds = ("coupled", "decoupled")
            refuse(
                f"the source's weight decay is {kinds[rule.decoupled]}, that of {self.name} {kinds[self.decoupled]}",
                "torch.optim.AdamW decouples it, SGD and Adam do not; train on with the same kind",
            )

    def go_on(self, rule: Rule, states: Sequence[tuple[Tensor, State]]) -> list[str]:
        groups = self.optimizer.param_groups
        wanted: dict[str, Any] = {name: getattr(rule, field) for field, name in _FIELDS[self.method].items()}
        if self.method == "adam":
            wanted["betas"] = (rule.beta_1, rule.beta_2)
        notes = [f"set {name}={new} where {groups[0][name]} was" for name, new in wanted.items() if groups[0][name] != new]
        for group in groups:
            for name, new in wanted.items():
                if isinstance(group[name], Tensor):
                    group[name].fill_(new)
                else:
                    group[name] = new
        owner = {id(tensor): group for group in groups for tensor in group["params"]}
        for variable, state in states:
            entry = self.optimizer.state[variable]
            entry.pop("momentum_buffer", None)
            for name, moment in state.moments.items():
                entry[_KEPT[name]] = torch.zeros_like(variable).copy_(to_tensor(moment))
            if self.method == "adam":
                group = owner[id(variable)]
                device = variable.device if group["capturable"] or group["fused"] else "cpu"
                entry["step"] = torch.tensor(float(state.steps or 0), device=device)
        return notes
