"""Somebody's own layer under the suite, in three lines: a right one passes, a wrong one fails where it is wrong."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import crossnorm
from crossnorm import BatchNormSpec, GroupNormSpec, LayerNormSpec, RMSNormSpec, SpectralNormSpec, WeightNormSpec
from crossnorm_conformance import SuiteError, check, implementation, implementations, rerun
from crossnorm_conformance.cases import cases_of, faults_of
from crossnorm_conformance.certify import fitting
from crossnorm_conformance.compare import UNSUPPORTED

ROOT = Path(__file__).parent.parent.parent
LAYER = LayerNormSpec(shape=(6,), eps=1e-2)
CHANNELS = BatchNormSpec(channels=4, eps=1e-2)
FLOATS = ("float32", "float64")


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """What a test has given is not known to the next one."""
    monkeypatch.setattr(implementations, "_third_parties", {})
    yield
    implementations.load.cache_clear()


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="checks layers of torch")


@pytest.fixture
def keras():
    pytest.importorskip("tensorflow", reason="checks layers of Keras on TensorFlow")
    return pytest.importorskip("keras", reason="checks layers of Keras")


def layer_norm(x, *, scale, offset, root=np.sqrt, eps=1e-2):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / root(variance + x.dtype.type(eps)) * scale + offset


def asked(report, axis):
    """The values of an axis that were compared."""
    return {report.cases[c.case][axis] for c in report.checks if c.verdict != UNSUPPORTED}


# Functions of arrays


def test_a_right_function_passes():
    report = check(layer_norm, LAYER, dtypes=FLOATS)
    assert report.passed
    assert report.failures() == report.where() == []
    assert asked(report, "dtype") == set(FLOATS)
    assert asked(report, "mode") == {"train", "inference", "frozen"}
    assert {"plain", "offset_half", "constant", "outlier"} <= asked(report, "regime")


def test_a_wrong_function_fails_and_the_report_says_where():
    def wrong_in_float64(x, *, scale, offset):
        return layer_norm(x, scale=scale, offset=offset, eps=1e-2 if x.dtype == np.float32 else 1.1e-2)

    report = check(wrong_in_float64, LAYER, dtypes=FLOATS)
    assert not report.passed
    (line,) = report.where()
    assert line.startswith("wrong_in_float64 y: ")
    assert "only with dtype float64" in line
    assert f"WHERE {line}" in report.text(width=400)
    assert asked(report, "dtype") == set(FLOATS)
    simplest = report.failures()[0]
    assert report.cases[simplest.case]["regime"] == "plain"


def batch_norm(correction, moves):
    """A function with state: its running variance, and whether inference leaves the state alone, are as told."""

    def function(x, *, scale, offset, running_mean, running_variance, batches_tracked, training):
        shape, axes = (1, -1) + (1,) * (x.ndim - 2), (0, *range(2, x.ndim))
        used = (x.mean(axes), x.var(axes)) if training else (running_mean, running_variance)
        mean, variance = (value.reshape(shape) for value in used)
        y = (x - mean) / np.sqrt(variance + x.dtype.type(1e-2)) * scale.reshape(shape) + offset.reshape(shape)
        new = {
            "running_mean": running_mean * 0.9 + x.mean(axes) * 0.1,
            "running_variance": running_variance * 0.9 + x.var(axes, ddof=correction) * 0.1,
            "batches_tracked": batches_tracked + 1,
        }
        old = {"running_mean": running_mean, "running_variance": running_variance, "batches_tracked": batches_tracked}
        return y, new if training or moves else old

    return function


def test_each_layer_is_judged_by_its_own_answers():
    """Two of one name, on the same case, one after the other."""
    case = next(case for case in fitting(LAYER, ("contiguous",), ("float64",), ("train",)) if case.regime == "plain")
    for eps, sound in ((1e-2, True), (2e-2, False), (1e-2, True)):
        assert check(partial(layer_norm, eps=eps), LAYER, name="mine", framework="numpy", cases=[case]).passed is sound


@pytest.mark.parametrize(
    ("correction", "moves", "accused"),
    [
        (1, False, set()),
        (0, False, {"running_variance"}),
        (1, True, {"running_mean", "running_variance"}),
    ],
)
def test_a_function_with_state_returns_it(correction, moves, accused):
    cases = fitting(CHANNELS, ("channels_first",), ("float64",), ("train",))
    plain = [case for case in cases if case.regime == "plain"]
    report = check(batch_norm(correction, moves), CHANNELS, cases=plain)
    wrong = {c.quantity for c in report.failures() if c.step == 1 or moves}
    assert wrong - {"batches_tracked"} == accused
    assert report.passed is not bool(accused)


def test_a_factory_of_functions_is_asked_for_one():
    options = {"dtypes": ("float32", "float64"), "modes": ("train",)}
    assert check(lambda: layer_norm, LAYER, framework="numpy", **options).passed
    report = check(lambda: 3, LAYER, **options)
    assert not report.passed
    assert all("raised TypeError" in c.reason for c in report.checks)


# Layers of torch


def test_a_module_of_torch_a_factory_and_a_factory_of_a_specification_pass(torch):
    dtypes = ("float32",)
    module = torch.nn.LayerNorm(6, eps=1e-2)
    for layer in (module, lambda: torch.nn.LayerNorm(6, eps=1e-2), lambda spec: torch.nn.LayerNorm(spec.shape, spec.eps)):
        report = check(layer, LAYER, dtypes=dtypes, modes=("train",), layouts=("contiguous",))
        assert {c.quantity for c in report.checks} == {"y", "dx", "dscale", "doffset"}
        assert {report.cases[c.case]["regime"] for c in report.failures()} <= {"offset_half", "offset_1e4", "constant"}
        assert report.checks


def test_a_wrong_module_of_torch_is_wrong_in_one_layout(torch):
    class WrongWhereStrided(torch.nn.GroupNorm):
        def forward(self, x):
            return super().forward(x if x.is_contiguous() else x.contiguous() * 1.001)

    spec = GroupNormSpec(channels=4, groups=2, eps=1e-2)
    report = check(WrongWhereStrided(2, 4, eps=1e-2), spec, dtypes=("float64",), modes=("train",), rank=2)
    assert not report.passed
    assert asked(report, "layout") == {"channels_first", "channels_last", "strided"}
    lines = [line for line in report.where() if line.startswith("WrongWhereStrided dscale")]
    assert len(lines) == 1
    assert "never with layout channels_first" in lines[0]


def rms_norm(x, *, scale):
    return (x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * scale).to(x.dtype)


def test_a_function_of_tensors_needs_to_say_so(torch):
    spec = RMSNormSpec(shape=(6,), eps=1e-2)
    options = {"dtypes": ("float32",), "modes": ("train",)}
    report = check(rms_norm, spec, framework="torch", **options)
    assert report.passed
    assert {c.quantity for c in report.checks} == {"y", "dx", "dscale"}
    assert not check(rms_norm, spec, **options).passed


def test_names_of_its_own_are_given_by_roles(torch):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.g = torch.nn.Parameter(torch.ones(6))

        def forward(self, x):
            return rms_norm(x, scale=self.g)

    options = {"dtypes": ("float32",), "modes": ("train",)}
    assert check(Own(), RMSNormSpec(shape=(6,), eps=1e-2), roles={"scale": "g"}, **options).passed
    with pytest.raises(SuiteError, match="Own has no attribute 'weight' for 'scale'; pass roles="):
        check(Own(), RMSNormSpec(shape=(6,), eps=1e-2), **options)


def test_ranks_that_a_layer_refuses_are_unsupported(torch):
    options = {"dtypes": ("float32",), "modes": ("train",), "layouts": ("channels_first",)}
    report = check(torch.nn.BatchNorm2d(4, eps=1e-2), CHANNELS, **options)
    refused = {len(report.cases[c.case]["shape"]) for c in report.checks if c.verdict == UNSUPPORTED}
    assert 4 not in refused
    assert refused
    assert {len(shape) for shape in asked(report, "shape")} == {4}
    assert all("refuses" in c.reason for c in report.checks if c.verdict == UNSUPPORTED)


def test_a_layer_that_refuses_everything_is_wrong(torch):
    class Refuses(torch.nn.LayerNorm):
        def forward(self, x):
            raise ValueError("not today")

    report = check(Refuses(6, eps=1e-2), LAYER, dtypes=("float32",), modes=("train",))
    assert not report.passed
    assert all("raised ValueError: not today" in c.reason for c in report.checks)


def test_wrappers_of_a_linear_module(torch):
    options = {"dtypes": ("float32",), "modes": ("inference",)}
    weight = WeightNormSpec(shape=(4, 6), eps=0.0)
    spectral = SpectralNormSpec(shape=(4, 6), iterations=1, eps=1e-12)
    norms = torch.nn.utils.parametrizations
    report = check(lambda module: norms.spectral_norm(module), spectral, **options)
    assert {c.verdict for c in report.checks if report.cases[c.case]["regime"] == "plain"} == {"pass"}
    report = check(lambda module: norms.weight_norm(module), weight, **options)
    assert {c.quantity for c in report.checks} >= {"effective_weight", "dweight", "dscale"}
    assert {report.cases[c.case]["regime"] for c in report.failures()} <= {"zero"}
    wrong = check(lambda module: norms.weight_norm(module, dim=1), weight, **options)
    assert not wrong.passed


# Layers of Keras


def test_layers_of_keras(keras):
    options = {"dtypes": ("float32",), "modes": ("train",), "rank": 2}
    right = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-2)
    spec = CHANNELS.replace(running_variance="biased")
    report = check(right, spec, **options)
    assert asked(report, "layout") == {"channels_last"}
    plain = [c for c in report.checks if report.cases[c.case]["regime"] == "plain"]
    assert {c.verdict for c in plain} == {"pass"}
    wrong = check(keras.layers.BatchNormalization(momentum=0.8, epsilon=1e-2), spec, **options)
    accused = {c.quantity for c in wrong.failures() if wrong.cases[c.case]["regime"] == "plain"}
    assert accused >= {"running_mean", "running_variance"}
    assert "y" not in {c.quantity for c in wrong.failures() if c.step == 1 and wrong.cases[c.case]["regime"] == "plain"}


def test_a_wrapper_of_a_layer_of_keras(keras):
    """Keras' own has no gradient through sigma, as its register says; what it iterates is right."""
    spec = crossnorm.preset("keras", "spectral_norm", shape=(4, 6))
    plain = [case for case in fitting(spec, (), ("float32",), ("train",)) if case.regime == "plain"]
    wrap = keras.layers.SpectralNormalization
    once = check(lambda layer: wrap(layer), spec, cases=plain)
    twice = check(lambda layer: wrap(layer, power_iterations=2), spec, cases=plain)
    assert {c.quantity for c in once.failures() if c.step == 1} == {"dweight"}
    assert {c.quantity for c in twice.failures() if c.step == 1} >= {"y", "u"}


# What cannot be checked


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (int, {}, "is no layer and no function"),
        (3, {}, "3 is no layer and no function"),
        (layer_norm, {"framework": "caffe"}, "framework='caffe' is not one of torch, keras, numpy"),
        (layer_norm, {"dtypes": ()}, r"dtypes=\[\] are not of float32"),
        (layer_norm, {"dtypes": ("float8",)}, r"dtypes=\['float8'\] are not of float32"),
        (layer_norm, {"modes": ("training",)}, r"modes=\['training'\] are not of train"),
        (layer_norm, {"cases": []}, "no case of the suite fits"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(layer, options, message):
    with pytest.raises(SuiteError, match=message) as caught:
        check(layer, LAYER, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["no_norm"], "framework": "numpy"}, "no_norm"),
        ({"methods": [], "framework": "numpy"}, "name those that you have"),
        ({"methods": ["rms_norm"], "framework": "caffe"}, "framework='caffe' is not one of"),
    ],
)
def test_an_implementation_of_what_there_is_not(options, message):
    with pytest.raises(SuiteError, match=message):
        implementation(lambda spec: None, **options)


# Again


def test_the_snippet_shows_the_same_failure(tmp_path):
    """As a reader would do it: the layer by its name, the lines from the report."""
    (tmp_path / "own.py").write_text(THIRD_PARTY)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "conformance", tmp_path)))
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": path}, "text": True, "capture_output": True, "check": False}
    command = [sys.executable, "-c", "from crossnorm.cli import main; main()", "conformance", "-n", "1", "--seed", "5"]
    run = subprocess.run([*command, "--method", "rms_norm", "--implementation", "own:RMS", "--json", "a.json"], **options)
    assert run.returncode == 1, run.stderr
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["implementations"] == ["own-rms"]
    failed = [c for c in document["checks"] if c["verdict"] == "fail"]
    assert failed
    assert "no means for a weightless one" in {c.get("reason") for c in document["checks"] if c["verdict"] == "unsupported"}
    lines = run.stdout.partition("the first of them again:\n")[2].splitlines()
    snippet = "\n".join(lines[: next(i for i, line in enumerate(lines) if line.startswith("print(")) + 1])
    assert "rerun('own:RMS', case" in snippet
    again = subprocess.run([sys.executable, "-c", snippet], **options)
    assert again.returncode == 0, again.stderr
    first = next(line for line in run.stdout.splitlines() if line.startswith("FAIL "))
    assert "units at" in first
    assert " ".join(first.split()) in " ".join(again.stdout.split())


THIRD_PARTY = """
import numpy as np
from crossnorm import Unsupported
from crossnorm_conformance import implementation

def rms(spec):
    if not spec.scale:
        raise Unsupported("no means for a weightless one")
    def rms_norm(x, *, scale):
        eps = 0 if spec.eps is None else spec.eps
        axes = tuple(range(-len(spec.shape), 0))
        return (x / np.sqrt((x * x).mean(axes, keepdims=True) + x.dtype.type(eps * FACTOR)) * scale).astype(x.dtype)
    return rms_norm

FACTOR = 1.5
RMS = implementation(rms, methods=["rms_norm"], framework="numpy", name="own-rms")
"""


def test_the_snippet_of_a_layer_that_was_given():
    report = check(forgets_eps, RMSNormSpec(shape=(6,), eps=1e-2), dtypes=("float64",), seed=5)
    simplest = report.failures()[0]
    snippet = report.snippet(simplest)
    assert "check(LAYER, case.spec" in snippet
    printed = []
    exec(snippet, {"LAYER": forgets_eps, "print": printed.append})
    (again,) = printed
    assert simplest in again.checks
    assert not again.passed


def forgets_eps(x, *, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True)) * scale


def test_rerun_of_a_bad_input_by_its_id():
    given = implementation(lambda spec: forgets_eps, methods=["rms_norm"], framework="numpy", name="own")
    fault = faults_of("rms_norm")[0]
    report = rerun(given, fault.id)
    assert {(c.case, c.verdict) for c in report.checks} == {(fault.id, UNSUPPORTED)}
    with pytest.raises(SuiteError, match="there is no bad input 'no-such-id'"):
        rerun(given, "no-such-id")


def test_rerun_of_a_case_with_layers_of_ones_own():
    case = next(
        case for case in cases_of("layer_norm") if case.regime == "plain" and case.dtype == "float64" and case.spec.offset
    )

    def layers(factor):
        def build(spec):
            axes = tuple(range(-len(spec.shape), 0))

            def function(x, *, scale, offset):
                variance = x.var(axes, keepdims=True) + x.dtype.type(spec.eps * factor)
                return (x - x.mean(axes, keepdims=True)) / np.sqrt(variance) * scale + offset

            return function

        return implementation(build, methods=["layer_norm"], framework="numpy", name="own")

    for factor, verdict in ((1, "pass"), (1.1, "fail")):
        report = rerun(layers(factor), case)
        assert {c.verdict for c in report.checks} == {verdict}
        assert all(not c.reason or "units at" in c.reason for c in report.checks)


def test_rerun_of_a_case(torch):
    case = next(case for case in cases_of("rms_norm") if case.regime == "plain" and case.dtype == "float32")
    report = rerun("crossnorm-torch", case)
    assert report.passed
    assert {c.case for c in report.checks} == {case.id}
    twice = rerun("crossnorm-torch = torch.nn", case)
    assert {c.question for c in twice.checks} == {"agreement"}
    assert crossnorm.__version__ == report.versions["crossnorm"]
