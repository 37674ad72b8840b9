"""What one run of the suite consists of: which cases meet which implementations, on which devices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .case import Case
from .cases import cases_of, faults_of, methods
from .implementations import Implementation, SuiteError, installed, load

KNOWN_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The selection that the command line made."""

    methods: tuple[str, ...]
    implementations: tuple[str, ...]
    devices: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, names: Sequence[str], implementations: Sequence[str], devices: Sequence[str], seed: int) -> "Plan":
        """Check the names; without any, take every method, every implementation that is installed and every device present.

        Raises:
            SpecError: an unknown method.
            SuiteError: an unknown implementation or device, or one whose framework is not installed.
        """
        chosen = tuple(installed(implementations))
        for device in devices:
            if device not in KNOWN_DEVICES:
                raise SuiteError(f"unknown device {device!r}; the devices are {', '.join(KNOWN_DEVICES)}")
        if not chosen:
            raise SuiteError('no framework is installed, so there is nothing to check; pip install "crossnorm[all]"')
        present = [device for device in KNOWN_DEVICES if any(device in load(name).devices() for name in chosen)]
        return cls(
            methods=tuple(methods(names)), implementations=chosen, devices=tuple(dict.fromkeys(devices or present)), seed=seed
        )

    def runs(self, case: Case) -> Iterator[tuple[Implementation, str, str]]:
        """Every (implementation, execution, device) that the case is run with."""
        for name in self.implementations:
            implementation = load(name)
            if case.spec.method not in implementation.methods() or not _shares_defaults(case, implementation):
                continue
            # An implementation without a compiled execution runs eagerly what others run compiled.
            executions = [e for e in case.executions if e in implementation.executions()] or ["eager"]
            for execution in executions:
                for device in self.devices:
                    yield implementation, execution, device

    def pairs(self, case: Case) -> Iterator[tuple[Implementation, Implementation, str]]:
        """Every pair of implementations to hold against each other directly: ours across frameworks, the natives likewise."""
        if case.defaults:
            return
        found = [load(name) for name in self.implementations if case.spec.method in load(name).methods()]
        for i, first in enumerate(found):
            for second in found[i + 1 :]:
                if first.framework != second.framework and (first.native is None) == (second.native is None):
                    for device in self.devices:
                        yield first, second, device

    def cases(self) -> list[Case]:
        """The cases of the chosen methods."""
        return [case for method in self.methods for case in cases_of(method)]

    def faults(self) -> list[tuple[object, Implementation]]:
        """Every fault with every implementation."""
        return [
            (fault, load(name))
            for method in self.methods
            for fault in faults_of(method)
            for name in self.implementations
            if method in load(name).methods()
        ]


def _shares_defaults(case: Case, implementation: Implementation) -> bool:
    """Whether the case is one that an implementation runs without any argument, or with all of them."""
    if case.defaults == "crossnorm":
        return implementation.native is not None
    return case.defaults in (None, implementation.framework)
