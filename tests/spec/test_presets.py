"""Presets are data about the frameworks. Where one is installed, its own signatures are the witness."""

import inspect

import pytest

import crossnorm
from crossnorm import SpecError
from crossnorm.spec import FRAMEWORKS, PEERS, SPECS, comparison

_REQUIRED = {
    "batch_norm": {"channels": 64},
    "layer_norm": {"shape": (64,)},
    "group_norm": {"channels": 64, "groups": 4},
    "instance_norm": {"channels": 64},
    "rms_norm": {"shape": (64,)},
}

# From the frameworks' documentation, not from presets.py.
_DEFAULTS = {
    ("torch", "batch_norm"): {"eps": 1e-5, "decay": 0.9, "running_variance": "unbiased", "single_value": "raise"},
    ("keras", "batch_norm"): {"eps": 1e-3, "decay": 0.99, "running_variance": "biased", "single_value": "zero"},
    ("tf_keras2", "batch_norm"): {"eps": 1e-3, "decay": 0.99, "running_variance": "unbiased", "single_value": "zero"},
    ("flax", "batch_norm"): {"eps": 1e-5, "decay": 0.99, "running_variance": "biased", "single_value": "zero"},
    ("onnx", "batch_norm"): {"eps": 1e-5, "decay": 0.9, "running_variance": "biased", "single_value": "zero"},
    ("paper", "batch_norm"): {"decay": None, "running_variance": "unbiased"},
    ("torch", "layer_norm"): {"eps": 1e-5},
    ("keras", "layer_norm"): {"eps": 1e-3},
    ("tf_keras2", "layer_norm"): {"eps": 1e-3},
    ("flax", "layer_norm"): {"eps": 1e-6},
    ("onnx", "layer_norm"): {"eps": 1e-5},
    ("paper", "layer_norm"): {"eps": 0.0},
    ("torch", "group_norm"): {"eps": 1e-5},
    ("keras", "group_norm"): {"eps": 1e-3},
    ("tf_keras2", "group_norm"): {"eps": 1e-3},
    ("flax", "group_norm"): {"eps": 1e-6},
    ("onnx", "group_norm"): {"eps": 1e-5},
    ("paper", "group_norm"): {},
    ("torch", "instance_norm"): {
        "eps": 1e-5,
        "scale": False,
        "offset": False,
        "decay": 0.9,
        "running_variance": "instance_mean_unbiased",
    },
    ("keras", "instance_norm"): {"eps": 1e-3},
    ("tf_keras2", "instance_norm"): {"eps": 1e-3},
    ("flax", "instance_norm"): {"eps": 1e-6},
    ("onnx", "instance_norm"): {"eps": 1e-5},
    ("paper", "instance_norm"): {},
    ("torch", "rms_norm"): {"eps": 2**-23},
    ("keras", "rms_norm"): {"eps": 1e-6},
    ("flax", "rms_norm"): {"eps": 1e-6},
    ("onnx", "rms_norm"): {"eps": 1e-5},
    ("paper", "rms_norm"): {"eps": 0.0},
}


@pytest.mark.parametrize("method", SPECS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_preset(framework, method):
    """Each framework's defaults, or one sentence where it lacks the method."""
    if (framework, method) not in _DEFAULTS:
        with pytest.raises(SpecError, match=f"^preset: {framework} has no {method}; choose among torch, keras"):
            crossnorm.preset(framework, method, **_REQUIRED[method])
        return
    spec = crossnorm.preset(framework, method, **_REQUIRED[method])
    assert type(spec) is SPECS[method]
    expected = {"scale": True, **_DEFAULTS[framework, method], **_REQUIRED[method]}
    assert {field: getattr(spec, field) for field in expected} == expected


def test_changes_win_over_the_framework():
    assert crossnorm.preset("keras", "batch_norm", channels=2, eps=0.5).eps == 0.5
    assert crossnorm.preset("keras", "group_norm", channels=64).groups == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("jax", "batch_norm"), "unknown framework 'jax'; the frameworks are torch, keras, tf_keras2, flax, onnx, paper"),
        ((["torch"], "batch_norm"), "unknown framework"),
        (("torch", "no_norm"), "unknown method 'no_norm'; the methods are batch_norm"),
        (("torch", None), "unknown method None"),
        (("torch", "batch_norm"), "BatchNormSpec: missing field 'channels'"),
        (("keras", "group_norm", {"channels": 16}), "channels=16 is not divisible by groups=32"),
        (("torch", "batch_norm", {"channels": 1, "momentum": 0.1}), "unknown field 'momentum'"),
    ],
)
def test_bad_presets(arguments, message):
    framework, method, changes = (*arguments, {})[:3]
    with pytest.raises(SpecError, match=message):
        crossnorm.preset(framework, method, **changes)


# The table of `crossnorm explain`


@pytest.mark.parametrize("method", SPECS)
def test_comparison_has_a_cell_for_every_field_and_framework(method):
    table = comparison(method)
    assert set(table) == {name for name in SPECS[method].__dataclass_fields__ if name not in ("method", "version", "reduces")}
    for cells in table.values():
        assert list(cells) == list(PEERS[method])
        assert all(cells.values())


def test_comparison_speaks_each_frameworks_language():
    table = comparison("batch_norm")
    assert table["decay"]["torch"] == "momentum = 0.1"
    assert table["decay"]["keras"] == "momentum = 0.99"
    assert table["channels"]["torch"] == "num_features"
    assert table["channels"]["keras"] == "from the input"
    assert table["running_variance"]["keras"] == "biased (fixed)"
    assert comparison("instance_norm")["decay"]["keras"] == "no running statistics"
    assert comparison("instance_norm")["decay"]["torch"] == "momentum = 0.1"
    assert comparison("group_norm")["groups"]["keras"] == "groups = 32"


@pytest.mark.parametrize("method", SPECS)
@pytest.mark.parametrize(
    ("framework", "package", "layer"),
    [
        ("torch", "torch.nn", lambda name: name.replace("1d/2d/3d", "2d")),
        ("keras", "keras.layers", lambda name: name.partition("(")[0]),
    ],
)
def test_comparison_agrees_with_the_installed_framework(framework, package, layer, method):
    """Every argument that the table names exists, and its default is what the table says."""
    module = pytest.importorskip(package, reason=f"{package} is not installed")
    peer = PEERS[method][framework]
    native = getattr(module, layer(peer.name).rpartition(".")[2])
    signature = inspect.signature(native.__init__).parameters
    table = comparison(method)
    for field, argument in peer.arguments.items():
        default = signature[argument.name].default
        shown = table[field][framework]
        if default is inspect.Parameter.empty:
            assert shown == argument.name
        else:
            assert shown.partition(" (")[0] == f"{argument.name} = {default}"
