"""What one run of the suite consists of: which cases meet which implementations, how executed, on which devices."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from crossnorm.spec import SPECS

from .case import Case
from .cases import cases_of, faults_of, methods
from .implementations import Implementation, SuiteError, absent, accompanies, installed, is_built_in, load

KNOWN_DEVICES = ("cpu", "cuda")
# Executions that compile for seconds, with the most cases of each method that one implementation runs with them.
MOST_COMPILED = {"compile": 3, "export": 6, "xla": 6, "autocast": 12}
_SMALL = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The selection that the command line made. ``shard`` is (i, n): the i-th of n parts, (1, 1) the whole; ``named``:
    implementations were asked for by name, and nothing else is wanted."""

    methods: tuple[str, ...]
    implementations: tuple[str, ...]
    devices: tuple[str, ...]
    seed: int
    full: bool = False
    shard: tuple[int, int] = (1, 1)
    named: bool = False
    absent: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        implementations: Sequence[str],
        devices: Sequence[str],
        seed: int,
        full: bool = False,
        shard: tuple[int, int] = (1, 1),
    ) -> "Plan":
        """Check the names; without any, take every method, the implementations that are installed and the devices present.

        Raises:
            SpecError: an unknown method.
            SuiteError: an unknown implementation or device, or one whose framework is not installed.
        """
        for device in devices:
            if device not in KNOWN_DEVICES:
                raise SuiteError(f"unknown device {device!r}; the devices are {', '.join(KNOWN_DEVICES)}")
        chosen = tuple(dict.fromkeys(installed(implementations, full)))
        if not chosen:
            raise SuiteError('no framework is installed, so there is nothing to check; pip install "crossnorm[all]"')
        present = [device for device in KNOWN_DEVICES if any(device in load(name).devices() for name in chosen)]
        missing = {device: "no device" for device in KNOWN_DEVICES if not devices and device not in present}
        return cls(
            methods=tuple(methods(names)),
            implementations=chosen,
            devices=tuple(dict.fromkeys(devices or present)),
            seed=seed,
            full=full,
            shard=shard,
            named=bool(implementations),
            absent=tuple((absent(implementations, full) | missing).items()),
        )

    def holds(self, id: str) -> bool:
        """Whether a case or a fault is in this shard."""
        number, count = self.shard
        return zlib.crc32(id.encode()) % count == number - 1

    def cases(self) -> list[Case]:
        """The cases of the chosen methods."""
        return [case for method in self.methods for case in cases_of(method) if self.holds(case.id)]

    def runs(self, case: Case) -> Iterator[tuple[Implementation, str, str]]:
        """Every (implementation, execution, device) that the case is run with."""
        for name in self.implementations:
            implementation = load(name)
            if case.spec.method not in implementation.methods() or not _shares_defaults(case, implementation):
                continue
            for execution in self._executions(case, implementation):
                for device in self.devices:
                    yield implementation, execution, device

    def _executions(self, case: Case, implementation: Implementation) -> list[str]:
        able = implementation.executions()
        quick = [execution for execution in able if execution not in MOST_COMPILED]
        # An implementation that cannot trace runs eagerly what others run traced.
        chosen = quick if self.full else [e for e in case.executions if e in quick] or quick[:1]
        if self.full or not quick:
            slow = [execution for execution in able if execution in MOST_COMPILED]
            chosen = chosen + [e for e in slow if case.id in sample(implementation.name, case.spec.method, e)]
        return chosen

    def pairs(self, case: Case) -> Iterator[tuple[Implementation, Implementation, tuple[str, str]]]:
        """Every pair to hold against each other directly: ours across frameworks, the natives likewise, and each
        implementation on the CPU and on a GPU."""
        if case.defaults:
            return
        found = [load(name) for name in self.implementations if case.spec.method in load(name).methods()]
        both = [implementation for implementation in found if accompanies(implementation)]
        for i, first in enumerate(both):
            for second in both[i + 1 :]:
                if first.framework != second.framework and (first.native is None) == (second.native is None):
                    for device in self.devices:
                        yield first, second, (device, device)
        if set(KNOWN_DEVICES) <= set(self.devices):
            for implementation in found:
                yield implementation, implementation, KNOWN_DEVICES

    def faults(self) -> list[tuple[Any, Implementation]]:
        """Every fault with every implementation."""
        return [
            (fault, load(name))
            for method in self.methods
            for fault in faults_of(method)
            if self.holds(fault.id)
            for name in self.implementations
            if method in load(name).methods()
        ]

    def drawn(self) -> list[tuple[str, Implementation, str]]:
        """Every (method, implementation, device) to draw cases for: under ``--full``, where no register is to be minded."""
        if not self.full:
            return []
        return [
            (method, load(name), device)
            for method in self.methods
            for name in self.implementations
            if method in load(name).methods() and (load(name).native is not None or not is_built_in(name))
            for device in self.devices
            if self.holds(f"{method}-{name}")
        ]


def every_id() -> set[str]:
    """The ids of all cases and faults that the suite has."""
    return {row.id for method in SPECS for rows in (cases_of(method), faults_of(method)) for row in rows}


@cache
def sample(implementation: str, method: str, execution: str) -> frozenset[str]:
    """The few cases of a method that an implementation compiles: small ones, the same in every run."""
    found = load(implementation)
    half = ("float16", "bfloat16")
    able = [
        case.id
        for case in cases_of(method)
        if prod(case.shape) <= _SMALL
        and not case.defaults
        # Half inputs of weights are under autocast anyway; a native parametrization iterates whenever its weight is read.
        and (execution != "autocast" or case.dtype in half)
        and (case.layer is None or (found.native is not None and execution in ("compile", "xla")))
        and not found.unsupported(case, "cpu")
    ]
    return frozenset(sorted(able, key=lambda id: zlib.crc32(id.encode()))[: MOST_COMPILED[execution]])


def _shares_defaults(case: Case, implementation: Implementation) -> bool:
    """Whether the case is one that an implementation runs without any argument, or with all of them."""
    if case.defaults == "crossnorm":
        return implementation.native is not None
    return case.defaults in (None, implementation.framework)
