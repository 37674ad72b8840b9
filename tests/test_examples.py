"""The examples run, and the numbers that they show are as they say."""

import importlib.util
import sys
from pathlib import Path
from unittest import mock

import pytest

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


@pytest.fixture(scope="module")
def keras_to_torch():
    return example("keras_to_torch_digits", "torch", "tensorflow")


@pytest.fixture(scope="module")
def migration(keras_to_torch):
    return keras_to_torch.main()


def test_the_migrated_network_is_a_trained_one(migration):
    assert migration["accuracy"] > LEARNED


def test_the_migration_covers_predictions_losses_and_statistics(migration):
    statistics = {f"running {statistic} {number}" for statistic in ("mean", "variance") for number in (1, 2, 3)}
    assert set(migration["float64"]) == {"first predictions", "losses", "last predictions", *statistics}


def test_the_frameworks_agree_in_float64(migration):
    assert max(migration["float64"].values()) < 1e-9


@pytest.mark.parametrize("column", ["keras", "torch", "between"])
def test_the_frameworks_agree_in_float32_to_rounding(migration, column):
    assert max(migration[column].values()) <= 32


def test_the_native_torch_layer_drifts_in_its_running_variance(migration):
    for name, units in migration["native"].items():
        drifts = "variance" in name or name == "last predictions"
        assert units > 1000 if drifts else units <= 32, name


def test_a_network_of_native_layers_migrates_to_the_same_one(keras_to_torch):
    import keras

    ours, native = keras_to_torch.network("float32"), keras_to_torch.network("float32", keras.layers.BatchNormalization)
    assert str(keras_to_torch.to_torch(native)) == str(keras_to_torch.to_torch(ours))


def test_a_layer_without_a_rule_is_named(keras_to_torch):
    import keras

    with pytest.raises(NotImplementedError, match="Dropout"):
        keras_to_torch.to_torch(keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5)]))


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
    assert max(result["units"].values()) <= 32
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
