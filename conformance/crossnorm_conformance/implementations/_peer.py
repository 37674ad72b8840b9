"""What the witnesses share: other people's layers behind the same protocol, to be judged and to be compared with."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from crossnorm import NormSpec
from crossnorm.spec import PEERS

from ..case import Arrays, Case
from ..cases import Fault
from . import Misuse, Result


class Witness:
    """An implementation that runs eagerly on the CPU and has no layer to be misused; subclasses say more."""

    name: str
    framework: str
    native: str | None = None

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def executions(self) -> tuple[str, ...]:
        return ("eager",)

    def shows(self, case: Case, quantity: str) -> bool:
        return quantity != "batches_tracked"

    def unsupported(self, case: Case, device: str) -> str:
        return self.lacks(case) if device in self.devices() else f"no device {device}"

    def lacks(self, case: Case) -> str:
        """What the witness has no means for; empty if it has."""
        raise NotImplementedError

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        raise NotImplementedError

    def inexpressible(self, fault: Fault) -> str:
        return f"{self.name} has no layer here, only functions: what they are given wrong is the caller's"

    def misuse(self, fault: Fault) -> Misuse:
        raise NotImplementedError(self.inexpressible(fault))


def arguments_of(framework: str, spec: NormSpec, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A framework's constructor arguments for a specification's fields, by the names that the presets give them."""
    arguments = PEERS[spec.method][framework].arguments
    fields = {name: (changes or {}).get(name, getattr(spec, name)) for name in arguments}
    return {arguments[name].name: arguments[name].native(value) for name, value in fields.items()}


def result(values: Any, arrange: Callable[[Any], Any] = np.asarray) -> Result:
    """An array as NumPy has it; bfloat16, which NumPy lacks, as float32."""
    held = np.asarray(values)
    return Result(np.array(arrange(held.astype(np.float32) if held.dtype.name == "bfloat16" else held)), held.dtype.name)


# Layouts, for frameworks whose arrays have no strides: the axes themselves are moved.


def to_layout(case: Case, values: Any) -> Any:
    """From the reference's order of the axes to the case's."""
    source, target = _moved_axes(case, values.ndim)
    return np.moveaxis(values, source, target)


def from_layout(case: Case, values: Any) -> Any:
    """The inverse of `to_layout`."""
    source, target = _moved_axes(case, values.ndim)
    return np.moveaxis(values, target, source)


def _moved_axes(case: Case, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if case.layout == "channels_last":
        return (1,), (-1,)
    if case.layout == "leading":
        count = len(case.spec.parameter_shape)
        return tuple(range(rank - count, rank)), tuple(range(1, 1 + count))
    return (), ()


def axes_of(case: Case) -> tuple[int, ...]:
    """The axis of the channels, or the normalized axes, in the case's layout."""
    if hasattr(case.spec, "channels"):
        return (-1,) if case.layout == "channels_last" else (1,)
    count = len(case.spec.parameter_shape)
    return tuple(range(1, 1 + count)) if case.layout == "leading" else tuple(range(-count, 0))
