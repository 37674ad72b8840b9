"""Keras on its torch and its JAX backend, each in a process of its own: Keras has one backend for life."""

import functools
import importlib.util
import json
import os
import subprocess
import sys

import pytest

BACKENDS = ("torch", "jax")
METHODS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "batch_renorm", "spectral_norm")

# One case per method: the one without arguments, or else a training in float64.
PROGRAM = """
import importlib, json, sys
from crossnorm_conformance import compare
from crossnorm_conformance.cases import cases_of
from crossnorm_conformance.oracle import QUANTITIES
from crossnorm_conformance.register import judge

implementation = importlib.import_module("crossnorm_conformance.implementations." + sys.argv[1]).IMPLEMENTATION
compare.load = lambda name: implementation
checks = []
for method in implementation.methods():
    able = [c for c in cases_of(method) if c.defaults in (None, "keras") and not implementation.unsupported(c, "cpu")]
    case = max(able, key=lambda c: (bool(c.defaults), c.mode == "train", c.dtype == "float64"))
    for execution in implementation.executions():
        for question in QUANTITIES:
            checks += compare.check_quantities(question, implementation, case, execution, "cpu", 0)
print(json.dumps({"checks": [judge(check).to_dict() for check in checks], "modules": list(sys.modules)}))
"""


def in_process(backend, *arguments):
    if importlib.util.find_spec(backend) is None or importlib.util.find_spec("keras") is None:
        pytest.skip(f"needs keras and {backend}")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@functools.cache
def outcome(backend):
    done = in_process(backend, "-c", PROGRAM, f"keras_on_{backend}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def verdicts(backend, method, quantity):
    """Those of the quantity, by execution and step."""
    checks = [c for c in outcome(backend)["checks"] if c["method"] == method and c["quantity"] == quantity]
    return {(c["execution"], c["step"]): c["verdict"] for c in checks}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_case_of_each_method_passes_or_is_registered(backend, method):
    checks = [check for check in outcome(backend)["checks"] if check["method"] == method]
    executions = {"torch": {"eager"}, "jax": {"function"}}[backend]
    assert {check["execution"] for check in checks} == executions
    assert {check["quantity"] for check in checks} >= {"y", "dx"}
    allowed = {"pass", "known deviation"} if method == "spectral_norm" else {"pass"}
    assert [check for check in checks if check["verdict"] not in allowed] == []


def test_a_gradient_flows_through_sigma_on_jax_only():
    assert set(verdicts("jax", "spectral_norm", "dweight").values()) == {"pass"}
    assert set(verdicts("torch", "spectral_norm", "dweight").values()) == {"known deviation"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensorflow_is_not_loaded(backend):
    assert "tensorflow" not in outcome(backend)["modules"]


@pytest.mark.parametrize(("backend", "module"), [("torch", "keras_on_jax"), ("jax", "keras_on_torch")])
def test_another_backend_is_refused_in_one_sentence(backend, module):
    wanted = module.removeprefix("keras_on_")
    if importlib.util.find_spec(wanted) is None:
        pytest.skip(f"needs {wanted}")
    done = in_process(backend, "-c", f"import crossnorm_conformance.implementations.{module}")
    assert done.stderr.splitlines()[-1] == (
        f"crossnorm.errors.Unsupported: keras-on-{wanted} needs the {wanted} backend of Keras, but this process has the "
        f"{backend} one; set KERAS_BACKEND={wanted} before Keras is imported"
    )
