"""The suite is tested: layers with a deliberate bug, in either framework, and each is caught."""

import importlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from crossnorm_conformance import compare
from crossnorm_conformance.cases import cases_of
from crossnorm_conformance.compare import FAIL, PASS, check_quantities

FRAMEWORKS = {"torch": "crossnorm_torch", "tensorflow": "crossnorm_tensorflow"}


def swapped(decay):
    return 1 - decay if decay is not None else 0.9


def other(values, value):
    """The next of ``values`` after ``value``."""
    return values[(values.index(value) + 1) % len(values)]


BUGS = {
    "eps_times_10": ("batch_norm", "outputs", lambda spec: spec.replace(eps=spec.eps * 10)),
    "biased_for_unbiased": ("batch_norm", "running_statistics", lambda spec: spec.replace(running_variance="biased")),
    "decay_swapped": ("batch_norm", "running_statistics", lambda spec: spec.replace(decay=swapped(spec.decay))),
    "no_groups": ("group_norm", "outputs", lambda spec: spec.replace(groups=1)),
    "mean_kept": ("layer_norm", "gradients", lambda spec: spec.replace(subtract_mean=False)),
    "eps_forgotten": ("rms_norm", "gradients", lambda spec: spec.replace(eps=0.0)),
    "pooled_for_mean_of_instances": (
        "instance_norm",
        "running_statistics",
        lambda spec: spec.replace(running_variance="instance_mean_biased"),
    ),
    "renorm_unbounded": (
        "batch_renorm",
        "gradients",
        lambda spec: spec.replace(r_max=None, d_max=None, r_min=0.0, r_max_steps=None, d_max_steps=None),
    ),
    "schedule_ignored": ("batch_renorm", "outputs", lambda spec: spec.replace(r_max_steps=None, d_max_steps=None)),
    "one_decay_for_both_pairs": (
        "batch_renorm",
        "running_statistics",
        lambda spec: spec.replace(renorm_decay=spec.renorm_decay and spec.decay),
    ),
    "another_variance": (
        "switchable_norm",
        "outputs",
        lambda spec: spec.replace(variance=other(("biased", "unbiased_instance", "unbiased"), spec.variance)),
    ),
    "not_pooled": ("switchable_norm", "running_statistics", lambda spec: spec.replace(pooled=not spec.pooled)),
    "frn_eps_doubled": ("filter_response_norm", "gradients", lambda spec: spec.replace(eps=2 * spec.eps)),
    "ddof_swapped": ("weight_standardization", "outputs", lambda spec: spec.replace(ddof=1 - spec.ddof)),
    "fan_in_forgotten": (
        "weight_standardization",
        "gradients",
        lambda spec: spec.replace(fan_in_scaling=not spec.fan_in_scaling),
    ),
    "one_iteration_more": (
        "spectral_norm",
        "running_statistics",
        lambda spec: spec.replace(iterations=spec.iterations + 1),
    ),
    "order_swapped": (
        "spectral_norm",
        "outputs",
        lambda spec: spec if spec.stored == "u" else spec.replace(iteration_order="u_first"),
    ),
    "eps_elsewhere": (
        "weight_norm",
        "outputs",
        lambda spec: spec.replace(eps=1e-3, eps_place=other(("maximum", "added_to_square"), "maximum")),
    ),
}


@pytest.fixture(params=FRAMEWORKS)
def room(request):
    pytest.importorskip(request.param, reason="the bugs are built into this framework's layers")
    return importlib.import_module(f"crossnorm_conformance.implementations.{FRAMEWORKS[request.param]}")


@pytest.mark.parametrize("bug", BUGS)
def test_a_deliberate_bug_is_caught(bug, room, monkeypatch):
    method, question, break_spec = BUGS[bug]

    class Broken(type(room.IMPLEMENTATION)):
        name = f"broken-{bug}"

        def run(self, case, arrays, execution, device):
            return super().run(replace(case, spec=break_spec(case.spec)), arrays, execution, device)

    broken = Broken()
    monkeypatch.setattr(compare, "load", lambda name: broken)
    verdicts = set()
    for case in cases_of(method):
        if case.dtype == "float64" and not case.defaults:
            verdicts |= {check.verdict for check in check_quantities(question, broken, case, "eager", "cpu", 0)}
    compare.outcome.cache_clear()
    assert FAIL in verdicts


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


def test_a_right_layer_is_not_caught(room):
    for case in cases_of("rms_norm")[:5]:
        checks = check_quantities("outputs", room.IMPLEMENTATION, case, "eager", "cpu", 0)
        assert {check.verdict for check in checks} <= {PASS, "unsupported"}
