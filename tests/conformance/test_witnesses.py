"""Witnesses, other people's layers: each that is installed runs every one of its methods, and leaves the process as it was."""

import sys
from importlib.util import find_spec
from math import prod

import pytest

from crossnorm.spec import PEERS, SPECS
from crossnorm_conformance.case import draw
from crossnorm_conformance.cases import cases_of, faults_of
from crossnorm_conformance.compare import KNOWN, PASS, check_quantities
from crossnorm_conformance.implementations import Implementation, SuiteError, absent, installed, load
from crossnorm_conformance.oracle import QUANTITIES
from crossnorm_conformance.register import judge

# The compiler imports what torch has deprecated, in its own modules.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

METHODS = {
    "flax.nnx": ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm", "spectral_norm", "weight_norm"),
    "onnxruntime": ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"),
    "timm": ("batch_norm", "group_norm", "layer_norm", "rms_norm", "filter_response_norm", "weight_standardization"),
    "tensorflow": ("batch_norm", "instance_norm", "group_norm", "layer_norm"),
    "torch.compile": ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"),
}


def witness(name):
    if name not in installed(full=True):
        pytest.skip(f"the packages that {name} needs are not installed")
    return load(name)


def small_case(implementation, method, **wanted):
    """The smallest case that it can run: on tame data, in float32, with an eps that matters, in training, if there is one."""
    able = [
        case
        for case in cases_of(method)
        if all(getattr(case, name) == value for name, value in {"defaults": None, **wanted}.items())
        and not implementation.unsupported(case, "cpu")
    ]
    tame = ("plain", "outlier", "small", "batch_of_one")
    wishes = lambda c: (c.regime in tame, c.dtype == "float32", c.spec.eps >= 1e-3, c.mode == "train")  # noqa: E731
    return min(able, key=lambda case: ([not wish for wish in wishes(case)], prod(case.shape)))


@pytest.mark.parametrize("name", METHODS)
def test_a_witness_has_what_the_protocol_asks_for(name):
    found = witness(name)
    members = [member for member in Implementation.__annotations__ | vars(Implementation) if not member.startswith("_")]
    assert all(hasattr(found, member) for member in members)
    assert (found.name, found.native) == (name, None)
    assert set(found.methods()) == set(METHODS[name]) <= set(SPECS)
    assert any(found.framework in peers for peers in PEERS.values())
    assert all(found.versions().values())


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in METHODS for method in METHODS[name]])
def test_a_witness_runs_each_of_its_methods(name, method):
    found = witness(name)
    case = small_case(found, method)
    checks = [
        judge(check)
        for question in QUANTITIES
        for execution in found.executions()
        for check in check_quantities(question, found, case, execution, "cpu", 0)
    ]
    assert {check.verdict for check in checks} <= {PASS, KNOWN}, [c.reason for c in checks]
    outputs = [check for check in checks if check.quantity == "y"]
    assert len(outputs) == len(case.steps) * len(found.executions())
    assert all(check.units is not None for check in outputs)  # compared, and near or registered


@pytest.mark.parametrize("name", METHODS)
def test_a_default_case_of_each_framework_is_run_by_its_witness(name):
    found = witness(name)
    methods = [m for m in found.methods() if any(case.defaults == found.framework for case in cases_of(m))]
    assert bool(methods) == (name != "tensorflow")  # kernels, which belong to no layer
    for method in methods:
        assert not found.unsupported(small_case(found, method, defaults=found.framework), "cpu")


@pytest.mark.parametrize("name", METHODS)
def test_what_a_witness_cannot_do_has_a_reason(name):
    found = witness(name)
    for method in found.methods():
        for reason in {found.unsupported(case, "cpu") for case in cases_of(method)} - {""}:
            assert len(reason) > 20
        for fault in faults_of(method):
            reason = found.inexpressible(fault)
            assert len(reason) > 20 if reason else found.misuse(fault)


def test_onnxruntime_differentiates_nothing():
    found = witness("onnxruntime")
    case = small_case(found, "batch_norm")
    assert not any(found.shows(case, quantity) for quantity in QUANTITIES["gradients"])
    assert found.shows(case, "running_variance")


def test_double_precision_in_jax_ends_with_the_run():
    found = witness("flax.nnx")
    import jax.numpy as jnp

    case = small_case(found, "layer_norm", dtype="float64")
    checks = check_quantities("outputs", found, case, "function", "cpu", 0)
    assert all(check.units is not None for check in checks)  # answered in float64
    assert jnp.ones(3).dtype == jnp.float32


def test_no_stand_in_is_left_of_torchvision():
    witness("timm")
    if find_spec("torchvision"):
        pytest.skip("torchvision is installed, so that nothing stands in for it")
    assert not [module for module in sys.modules if module.split(".")[0] == "torchvision"]
    assert "timm" not in sys.modules


def test_the_compiler_compiles():
    found = witness("torch.compile")
    from torch._dynamo.utils import counters

    counters.clear()
    case = small_case(found, "rms_norm", defaults="torch")
    found.run(case, draw(case, 0), "compile", "cpu")
    assert counters["stats"]["unique_graphs"] >= 1 or counters["frames"]["ok"] >= 1


def test_a_witness_whose_package_is_missing_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr("crossnorm_conformance.implementations.find_spec", lambda package: package != "onnx")
    load.cache_clear()
    with pytest.raises(SuiteError, match="'onnxruntime' needs onnx, which is not installed"):
        load("onnxruntime")
    assert "onnxruntime" not in installed(full=True)
    assert absent(full=True)["onnxruntime"] == "onnx is not installed"
