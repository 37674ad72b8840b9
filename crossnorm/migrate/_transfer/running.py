"""The two models of a transfer: their parts, what they are run on, and one run."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from crossnorm.errors import CrossnormError, MigrationError

from .._frameworks import framework_of, room
from .._inputs import as_tuple, sample, turned
from .._parts import Part, parts
from .._trace import Recording, Units

Array = NDArray[Any]


class Model:
    """A model with its parts and what it is run on."""

    def __init__(self, side: str, model: Any, inputs: Any) -> None:
        self.side = side
        self.model = model
        self.framework = framework_of(model)
        self.room = room(self.framework)
        self.parts = parts(model)
        self.inputs = None if inputs is None else as_tuple(inputs)
        self._before: Recording | None = None

    def run_on(self, inputs: tuple[Array, ...]) -> None:
        """Take other inputs."""
        self.inputs, self._before = inputs, None

    @property
    def before(self) -> Recording:
        """The run on these inputs before anything is written, made once."""
        if self._before is None:
            self._before = self.record()
        return self._before

    def record(self) -> Recording:
        """One run in inference mode."""
        recording: Recording = self._run(self.room.record)
        return recording

    def units(self) -> Units:
        """The rounding units of such a run."""
        units: Units = self._run(self.room.units)
        return units

    def _run(self, run: Callable[..., Any]) -> Any:
        try:
            return run(self.model, self.parts, self.inputs)
        except CrossnormError:
            raise
        except Exception as error:
            shapes = [array.shape for array in self.inputs or ()]
            raise MigrationError(
                f"transfer: the {self.side} cannot be run on inputs of shapes {shapes} ({first_line(error)}); "
                "give each model what it takes by inputs= and target_inputs="
            ) from error

    def executed(self) -> list[Part]:
        """The parts in the order of their first calls, then those that were not called."""
        recording = self.before
        first = {id(part.layer): len(recording.calls) for part in self.parts}
        for number, call in reversed(list(enumerate(recording.calls))):
            first[id(call.part.layer)] = number
        return sorted(self.parts, key=lambda part: first[id(part.layer)])

    def time_first(self) -> bool:
        """Whether the batch lies second in the inputs, since a recurrent or attention layer has it there."""
        if not self.inputs or all(part.batch_axis == 0 for part in self.parts):
            return False
        seconds = [call for call in self.before.calls if call.part.batch_axis == 1 and call.inputs]
        batches = {next(iter(call.inputs.values())).shape[0] for call in seconds}
        first, second = (*self.inputs[0].shape, 0, 0)[:2]
        return batches == {second} and first != second


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def agree_on_inputs(one: Model, other: Model) -> None:
    """Give each model the same inputs, in its own layout."""
    if one.inputs is None and other.inputs is None:
        declared = [(model, signature) for model in (other, one) if (signature := model.room.signature(model.model))]
        if not declared:
            raise MigrationError(
                "transfer: neither model declares the shape of its inputs; give inputs=, an array or a tuple of them"
            )
        declared[0][0].run_on(sample(declared[0][1], declared[0][0].parts))
    for here, there in ((one, other), (other, one)):
        if there.inputs is None:
            there.run_on(turned(here.inputs, here.executed(), there.parts))
            if here.time_first() != there.time_first():
                there.run_on(tuple(x.swapaxes(0, 1) if x.ndim > 1 else x for x in there.inputs))
