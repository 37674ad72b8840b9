"""The suite's own promises: what the default run covers, and that ours need no register."""

from collections import Counter
from dataclasses import replace
from importlib.resources import files
from math import prod

import pytest

from crossnorm import CrossnormError, WeightSpec
from crossnorm.spec import SPECS
from crossnorm_conformance import compare, plan
from crossnorm_conformance.case import TRAINING_STEPS
from crossnorm_conformance.cases import axes_of, cases_of, faults_of, methods
from crossnorm_conformance.cases._base import WRAPS
from crossnorm_conformance.compare import check_agreement
from crossnorm_conformance.covering import pairs, pairs_of
from crossnorm_conformance.implementations import installed, load
from crossnorm_conformance.oracle import keys_of
from crossnorm_conformance.plan import Plan
from crossnorm_conformance.register import register
from tests.conformance.exact import Exact


@pytest.mark.parametrize("method", SPECS)
def test_the_default_run_covers_every_pair_of_axis_values(method):
    axes = axes_of(method)
    covered = set()
    for row in axes.rows():
        covered |= pairs_of(row)
    assert covered == pairs(axes.values())
    # A row that the regime has changed keeps its labels; only its shape differs.
    assert {"zero", *(row["regime"] for row in axes.rows())} == {case.regime for case in cases_of(method)}


@pytest.mark.parametrize("method", SPECS)
def test_case_ids_are_unique_and_readable(method):
    ids = Counter(case.id for case in cases_of(method))
    assert max(ids.values()) == 1
    assert all(id.startswith(method) and len(id.split("-")) == 7 for id in ids)


@pytest.mark.parametrize("method", SPECS)
def test_every_method_has_a_case_that_omits_every_argument_and_bad_input(method):
    assert any(case.defaults for case in cases_of(method))
    wanted = {"eps_nan", *WRAPS} if issubclass(SPECS[method], WeightSpec) else {"eps_nan", "wrong_rank", "integer_dtype"}
    assert wanted <= {fault.name for fault in faults_of(method)}


def test_training_cases_have_three_steps_and_then_inference_large_ones_one():
    seen = set()
    for case in cases_of("batch_norm"):
        if case.mode == "train":
            *training, last = [mode.update_running for _, mode in case.steps]
            assert all(training) and not last  # noqa: PT018
            assert len(training) == (TRAINING_STEPS if prod(case.shape) < 100_000 else 1)
            seen.add(len(training))
    assert seen == {1, TRAINING_STEPS}


def test_the_default_run_of_the_four_implementations_has_at_least_2000_checks():
    pytest.importorskip("torch", reason="counts the checks of both frameworks")
    pytest.importorskip("tensorflow", reason="counts the checks of both frameworks")
    whole = Plan.of((), (), ("cpu",), 0)
    count = sum(
        len([key for key in keys_of(case) if implementation.shows(case, key[1])])
        for case in whole.cases()
        for implementation, _, device in whole.runs(case)
        if not implementation.unsupported(case, device)
    )
    assert count >= 2000


REGISTERS = [path.name for path in (files("crossnorm_conformance") / "registers").iterdir() if path.name.endswith(".toml")]


def test_the_registers_of_our_own_layers_are_empty():
    assert register("crossnorm-torch") == ()
    assert register("crossnorm-tensorflow") == ()
    assert {"torch.nn.toml", "keras.layers.toml"} <= set(REGISTERS)
    assert not [name for name in REGISTERS if name.startswith("crossnorm")]


def test_every_deviation_has_a_reason_and_a_link():
    for name in (file.removesuffix(".toml") for file in REGISTERS):
        assert register(name)
        for deviation in register(name):
            assert len(deviation.reason) > 20
            assert deviation.link.startswith("https://")


@pytest.mark.parametrize("name", installed())
def test_ours_are_unsupported_only_where_the_framework_has_no_such_layout_or_layer(name):
    implementation = load(name)
    if implementation.native is None:
        pytest.skip(f"{name} is a native implementation: it lacks what it lacks")
    reasons = {implementation.unsupported(case, "cpu") for method in SPECS for case in cases_of(method)}
    assert reasons <= {
        "",
        "torch normalises trailing dimensions only",
        "torch has no depthwise layer apart from the convolution in groups",
        "torch's autocast leaves embeddings in float32",
        "TensorFlow tensors have no strides",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("batch_nrom",), (), ()), "unknown method 'batch_nrom'"),
        (((), ("torch_nn",), ()), "unknown implementation 'torch_nn'"),
        (((), ("no.such.module:thing",), ()), "'no.such.module:thing' cannot be loaded"),
        (((), (), ("tpu",)), "unknown device 'tpu'"),
    ],
)
def test_unknown_names_are_one_clear_sentence(arguments, message):
    with pytest.raises(CrossnormError, match=message):
        Plan.of(*arguments, 0)


def test_methods_without_names_are_all():
    assert methods() == list(SPECS)


def test_with_a_gpu_each_implementation_is_held_against_itself_on_the_cpu(monkeypatch):
    class OnBoth(Exact):
        def devices(self):
            return ("cpu", "cuda")

    for module in (plan, compare):
        monkeypatch.setattr(module, "load", lambda name: OnBoth())
    compare.outcome.cache_clear()
    case = cases_of("rms_norm")[0]
    both = plan.Plan(methods=("rms_norm",), implementations=("exact",), devices=("cpu", "cuda"), seed=0)
    ((first, second, devices),) = both.pairs(case)
    assert devices == ("cpu", "cuda")
    checks = check_agreement((first, second), case, ("eager", "eager"), devices, 0)
    compare.outcome.cache_clear()
    assert {(check.device, check.verdict) for check in checks} == {("cpu/cuda", "pass")}
    assert not list(replace(both, devices=("cpu",)).pairs(case))


@pytest.mark.parametrize("name", installed())
def test_a_device_that_is_absent_is_unsupported_and_said_so(name):
    implementation = load(name)
    if "cuda" in implementation.devices():
        pytest.skip("a GPU is present")
    assert {implementation.unsupported(case, "cuda") for case in cases_of("group_norm")} == {"no device cuda"}
