"""A plain function of NumPy arrays. It has outputs and state, but no gradients; NumPy has no bfloat16."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from crossnorm import NormSpec

from ..case import Arrays, Case
from . import Result, _given
from ._peer import Witness


class _Numpy(Witness):
    framework = "numpy"
    names: Mapping[str, str] = MappingProxyType({})

    def versions(self) -> dict[str, str]:
        return {}

    def lacks(self, case: Case) -> str:
        return "NumPy has no bfloat16" if case.dtype == "bfloat16" else ""


class Given(_given.Given, _Numpy):
    """The arrays are in the reference's layout: (batch, channel, *spatial), (*batch, *normalized), a weight's rows first."""

    def layouts(self, spec: NormSpec) -> Sequence[str]:
        return ("channels_first",) if hasattr(spec, "channels") else ("contiguous",)

    def shows(self, case: Case, quantity: str) -> bool:
        return not quantity.startswith("d") and (quantity == "effective_weight" or case.layer is None or quantity != "y")

    def try_out(self, case: Case) -> None:
        pass  # a function of arrays takes any rank, or has to say so

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        parameters = arrays.named(parameter.name for parameter in case.spec.parameters)
        state = arrays.named(array.name for array in case.spec.state)
        output, x = ("y", "x") if case.layer is None else ("effective_weight", "weight")
        function = self.made(case.spec) if self.kind == "factory" else self.layer
        results = {}
        for step, mode in case.steps:
            with np.errstate(all="ignore"):
                y, new = _given.call(function, arrays.values[f"{x}{step}"].copy(), parameters, state, mode.update_running)
            state = new if mode.update_running else state
            results[step, output] = Result(np.asarray(y), str(np.asarray(y).dtype))
            for name, value in (state | new).items():
                results[step, name] = Result(np.asarray(value), str(np.asarray(value).dtype))
        return results
