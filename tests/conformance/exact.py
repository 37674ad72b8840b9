"""An implementation that cannot be wrong: it is the oracle."""

from typing import Any

from crossnorm import rounding
from crossnorm.spec import SPECS
from crossnorm_conformance.case import Arrays, Case
from crossnorm_conformance.implementations import Result
from crossnorm_conformance.oracle import oracle


class Exact:
    """Gives the oracle's own answer for the data of ``seed``, rounded."""

    name, framework, native = "exact", "numpy", None

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def methods(self) -> tuple[str, ...]:
        return tuple(SPECS)

    def versions(self) -> dict[str, str]:
        return {}

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def executions(self) -> tuple[str, ...]:
        return ("eager",)

    def shows(self, case: Case, quantity: str) -> bool:
        return True

    def unsupported(self, case: Case, device: str) -> str:
        return ""

    def inexpressible(self, fault: Any) -> str:
        return "takes no arguments"

    def misuse(self, fault: Any) -> Any:
        raise NotImplementedError

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        answer = oracle(case, self.seed)
        return {
            key: Result(rounding.round_to(quantity.value, answer.stored[key]), answer.stored[key])
            if quantity.value.dtype.kind == "f"
            else Result(quantity.value, quantity.value.dtype.name)
            for key, quantity in answer.exact.items()
        }
