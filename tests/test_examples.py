"""The examples run, and the numbers that they show are as they say."""

import importlib.util
import math
import sys
from pathlib import Path
from unittest import mock

import pytest

from crossnorm.rounding import VERDICT
from crossnorm.spec import SPECS

EXAMPLES = Path(__file__).parent.parent / "examples"
LEARNED = 0.9


def example(name, *needed):
    """The module of an example; the test is skipped where something that it needs is not installed."""
    for module in ("sklearn", *needed):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(EXAMPLES), *sys.path]):  # as it is for a script
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "framework"), [("batch_norm_in_keras", "keras"), ("batch_norm_in_torch", "torch")])
def test_batch_norm_helps_ours_as_much_as_the_native(name, framework, capsys):
    module = example(name, {"keras": "tensorflow"}.get(framework, framework))
    results = module.main()
    assert {normalization for _, normalization in results} == {"none", framework, "crossnorm"}
    for model in ("dense", "convolutional"):
        plain, native, ours = (results[model, normalization] for normalization in ("none", framework, "crossnorm"))
        for plain_accuracy, native_accuracy, our_accuracy in zip(plain, native, ours, strict=True):
            assert our_accuracy > LEARNED
            assert our_accuracy > plain_accuracy + 0.05
            # The same numbers up to rounding, which training amplifies: a few images at most change their class.
            assert our_accuracy == pytest.approx(native_accuracy, abs=0.02)
    printed = capsys.readouterr().out
    for (model, normalization), accuracies in results.items():
        (row,) = (line.split() for line in printed.splitlines() if line.split()[:2] == [model, normalization])
        assert row[2:] == [f"{accuracy:.1%}" for accuracy in accuracies]


# Every method


@pytest.fixture(scope="module")
def every_method():
    return example("every_method_digits", "torch", "tensorflow").main()


def test_every_method_is_compared(every_method):
    assert list(every_method) == list(SPECS)


@pytest.mark.parametrize("method", SPECS)
def test_a_specification_trains_to_the_same_network_in_both_frameworks(every_method, method):
    result = every_method[method]
    assert max(result["float64"].values()) < 1e-9
    assert max(result["units"].values()) <= VERDICT
    # The methods differ from each other far more than the frameworks do.
    others = [other["keras"] for name, other in every_method.items() if name != method]
    assert min(abs(result["keras"] - other) for other in others) > 1e-4


# A layer of one's own


@pytest.fixture(scope="module")
def certified():
    return example("certify_your_own", "torch").main()


def test_the_right_layer_is_sound(certified):
    assert certified["LayerNorm"].passed
    assert certified["LayerNorm"].where() == []


def test_the_fast_layer_is_accused_of_what_it_harms_where_it_does(certified):
    report = certified["FastLayerNorm"]
    assert not report.passed
    lines = {line.partition(":")[0]: line for line in report.where()}
    # What is added at the end does not depend on the variance.
    assert set(lines) == {f"FastLayerNorm {quantity}" for quantity in ("y", "dx", "dscale")}
    for line in lines.values():
        assert "only with regime mixed, offset_1e2, offset_1e4, offset_half, offset_quarter" in line


def test_the_fast_layer_can_be_given_to_the_command():
    fast = example("certify_your_own", "torch").IMPLEMENTATION
    assert (fast.name, fast.methods(), fast.framework) == ("fast_layer_norm", ("layer_norm",), "torch")


# Moving a model


@pytest.fixture(scope="module")
def keras_to_torch():
    return example("keras_to_torch", "torch", "tensorflow").main()


@pytest.fixture(scope="module")
def torch_to_keras():
    return example("torch_to_keras", "torch", "tensorflow").main()


@pytest.fixture(params=["keras_to_torch", "torch_to_keras"])
def moved(request):
    """The numbers of an example that moves a ResNet-18."""
    return request.getfixturevalue(request.param)


def test_resnet_18_has_its_size_in_both_frameworks():
    module = example("_resnet18", "torch", "tensorflow")
    in_torch, in_keras = module.ResNet18(), module.resnet18()
    sizes = [sum(parameter.numel() for parameter in in_torch.parameters())]
    sizes += [sum(math.prod(weight.shape) for weight in in_keras.trainable_weights)]
    assert sizes == [11_172_810, 11_172_810]
    deep = [name for name, each in in_torch.named_modules() if hasattr(each, "weight") and "bn" not in name]
    assert len([name for name in deep if "downsample" not in name]) == 18


def test_the_moved_network_is_a_trained_one(moved):
    assert moved["accuracy"] > 0.8


def test_every_layer_of_the_moved_network_agrees(moved):
    rows = moved["report"].rows
    assert len(rows) == 42  # 20 convolutions, 20 normalizations, the dense layer, the model
    assert max(row.units for row in rows) <= VERDICT


def test_the_moved_network_trains_on_as_the_original(moved):
    assert max(moved["distances"]["float64"].values()) < 1e-9
    assert max(moved["distances"]["float32"].values()) <= VERDICT
    assert set(moved["distances"]["float32"]) == {"first predictions", "losses", "last predictions"}


def test_a_network_with_another_eps_is_refused(keras_to_torch):
    assert "eps 0.001 against 1e-05" in keras_to_torch["refusal"]


def test_what_is_reported_drifts_where_nothing_is_converted(keras_to_torch):
    """torch's own layers in place of ours: another running variance, which no loss of training shows."""
    assert any("running_variance 'biased' against 'unbiased'" in note for note in keras_to_torch["report"].notes)
    native = keras_to_torch["distances"]["torch.nn"]
    assert native["last predictions"] > 1000
    assert max(native["first predictions"], native["losses"]) <= VERDICT


def test_nothing_is_reported_where_the_target_was_converted_first(torch_to_keras):
    assert len(torch_to_keras["report"].notes) == 1
    assert "optimizer" in torch_to_keras["report"].notes[0]


@pytest.fixture(scope="module")
def resumed():
    return example("resume_keras_training_in_torch", "torch", "tensorflow").main()


@pytest.mark.parametrize(("optimizer", "bound"), [("SGD", 1e-12), ("Adam", 1e-4)])
def test_training_goes_on_with_a_moved_optimizer_only(resumed, optimizer, bound):
    """Adam's epsilon has another place in each framework, so that their first steps differ a little."""
    assert max(resumed[optimizer]["moved"].values()) < bound
    fresh = resumed[optimizer]["fresh"]
    assert fresh.pop("first predictions") < 1e-12
    assert min(fresh.values()) > 0.05


@pytest.fixture(scope="module")
def small_batches():
    return example("replace_batchnorm_for_small_batches", "torch").main()


def test_batch_norm_suffers_from_batches_of_two(small_batches):
    before, after = small_batches["batch norm, batches of 32"], small_batches["batch norm, then batches of 2"]
    assert before["accuracy"] > 0.95
    assert after["accuracy"] < before["accuracy"] - 0.1
    assert abs(after["training"] - after["inference"]) > 0.3


def test_group_norm_does_not(small_batches):
    replaced = small_batches["group norm, then batches of 2"]
    assert replaced["accuracy"] > 0.95 > small_batches["at once"]
    assert replaced["training"] == pytest.approx(replaced["inference"], rel=1e-3)


def test_the_planted_mistakes_are_found_in_order():
    parted = example("find_where_two_models_part", "torch", "tensorflow").main()
    found = [(row.name, row.causes[0].words) for row in parted["found"]]
    assert [name for name, _ in found] == ["conv2", "bn2", "bn1"]
    for (_, words), expected in zip(found, ("transposed", "eps 0.001 against 1e-05", "running variance"), strict=True):
        assert expected in words
    assert not parted["at the end"]
