"""The suite is tested: each layer with a bug is caught by the quantity that the bug harms, and no sound layer is accused."""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from math import prod

import pytest

from crossnorm.spec import SPECS
from crossnorm_conformance.case import REGIMES
from crossnorm_conformance.cases import cases_of, faults_of
from crossnorm_conformance.compare import FAIL
from crossnorm_conformance.errors import check_misuse
from crossnorm_conformance.implementations import load
from tests.conformance.exact import Exact
from tests.conformance.mutants import Mutant, checks_of

FRAMEWORKS = {"crossnorm-torch": "torch", "crossnorm-tensorflow": "tensorflow"}
INSTALLED = [framework for framework in FRAMEWORKS.values() if find_spec(framework)]
MUTANTS: list[Mutant] = [
    mutant for framework in INSTALLED for mutant in import_module(f"tests.conformance.{framework}_mutants").MUTANTS
]


def accused(checks):
    """The quantities of the checks that failed."""
    return {check.quantity for check in checks if check.verdict == FAIL}


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_caught_by_what_it_harms_and_accused_of_nothing_else(mutant):
    judge, rows = (check_misuse_of, faults_of(mutant.method)) if mutant.question == "errors" else (checks_of, mutant.cases())
    broken = mutant.broken()
    for row in rows:
        checks = judge(broken, row)
        assert accused(checks) <= {mutant.named, *mutant.also}
        assert not any(check.reason.startswith("raised") for check in checks if check.question != "errors")
        if mutant.named in accused(checks):
            assert {check.question for check in checks if check.quantity == mutant.named} == {mutant.question}
            assert [accused(judge(sound, row)) for sound in mutant.sound()] == [set()] * len(mutant.sound())
            return
    pytest.fail(f"{mutant} survives: {mutant.named} is never accused")


def check_misuse_of(implementation, fault):
    return check_misuse(fault, implementation)


def test_there_are_mutants_of_every_method_in_both_frameworks():
    assert len({str(mutant) for mutant in MUTANTS}) == len(MUTANTS)
    fewest = {"torch": 50, "tensorflow": 15}
    for framework in INSTALLED:
        theirs = [mutant for mutant in MUTANTS if FRAMEWORKS[mutant.implementation] == framework]
        assert len(theirs) >= fewest[framework]
        assert {mutant.method for mutant in theirs} == set(SPECS)


BROKEN_MODULE = """
import torch
from crossnorm_conformance.implementations.crossnorm_torch import CrossnormTorch

class EpsOutsideTheRoot(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.eps, layer.eps = layer, layer.eps, 0.0
    weight = property(lambda self: self.layer.weight)
    def forward(self, x):
        variance = x.pow(2).mean(tuple(range(-len(self.layer.normalized_shape), 0)), keepdim=True)
        return self.layer(x) * variance.sqrt() / (variance.sqrt() + self.eps)

class Broken(CrossnormTorch):
    name = "eps-outside-the-root"
    def build(self, case):
        return EpsOutsideTheRoot(super().build(case)) if BREAK else super().build(case)

IMPLEMENTATION = Broken()
"""


@pytest.mark.parametrize(("broken", "status"), [(True, 1), (False, 0)])
def test_the_command_turns_red_for_a_third_party_with_a_bug_and_only_then(broken, status, tmp_path):
    pytest.importorskip("torch", reason="the third party's layer is a torch module")
    (tmp_path / "thirdparty.py").write_text(BROKEN_MODULE.replace("BREAK", str(broken)))
    command = [sys.executable, "-m", "crossnorm", "conformance", "--method", "rms_norm"]
    path = [str(tmp_path), *(entry for entry in sys.path if entry)]
    done = subprocess.run(
        [*command, "--implementation", "thirdparty:IMPLEMENTATION", "-n", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "eps-outside-the-root" in done.stdout
    assert ("FAIL" in done.stdout) is broken


# No false alarm.

ALL = {method: cases_of(method) for method in SPECS}
SEEDS = range(1, 11)
# Larger ones take seconds, and what they are for does not depend on the draw.
LARGEST = 5000


def cases_for(seed):
    """Every twentieth case of every method, others for each of the ten seeds. 17 has no divisor in common with 20."""
    chosen = (case for method in SPECS for case in ALL[method][17 * seed % 20 :: 20])
    return [case for case in chosen if prod(case.shape) <= LARGEST]


def test_every_regime_and_dtype_meets_the_seeds():
    cases = [case for seed in SEEDS for case in cases_for(seed)]
    for method in SPECS:
        theirs = [case for case in cases if case.spec.method == method]
        assert {case.dtype for case in theirs} == {"float32", "float64", "float16", "bfloat16"}
        assert {case.regime for case in theirs} == {case.regime for case in ALL[method]}
    assert {case.regime for case in cases} >= set(REGIMES)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["exact", *FRAMEWORKS])
def test_a_sound_implementation_is_never_accused(name, seed):
    if name != "exact":
        pytest.importorskip(FRAMEWORKS[name], reason="the sound implementation is this framework's")
    implementation = Exact(seed) if name == "exact" else load(name)
    failed = [
        check
        for case in cases_for(seed)
        if case.defaults in (None, implementation.framework)
        for check in checks_of(implementation, case, seed)
        if check.verdict == FAIL
    ]
    assert failed == []
