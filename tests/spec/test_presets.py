"""Presets are data about the frameworks. Where one is installed, its own signatures are the witness."""

import inspect

import numpy as np
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
    "batch_renorm": {"channels": 64},
    "switchable_norm": {"channels": 64},
    "filter_response_norm": {"channels": 64},
    "weight_standardization": {"shape": (64, 3, 3, 3)},
    "spectral_norm": {"shape": (64, 3, 3, 3)},
    "weight_norm": {"shape": (64, 3, 3, 3)},
}
_TFA_SIZES = {"spatial": (5, 4)}  # its threshold has one value for each element of a sample

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
    ("tfa", "instance_norm"): {"eps": 1e-3},
    ("flax", "instance_norm"): {"eps": 1e-6},
    ("onnx", "instance_norm"): {"eps": 1e-5},
    ("paper", "instance_norm"): {},
    ("torch", "rms_norm"): {"eps": 2**-23},
    ("keras", "rms_norm"): {"eps": 1e-6},
    ("flax", "rms_norm"): {"eps": 1e-6},
    ("onnx", "rms_norm"): {"eps": 1e-5},
    ("paper", "rms_norm"): {"eps": 0.0},
    ("equinox", "layer_norm"): {"eps": 1e-5},
    ("timm", "layer_norm"): {"eps": 1e-6},
    ("tfa", "group_norm"): {"eps": 1e-3},
    ("equinox", "group_norm"): {"eps": 1e-5},
    ("timm", "group_norm"): {"eps": 1e-5},
    ("equinox", "rms_norm"): {"eps": 1e-5},
    ("timm", "rms_norm"): {"eps": 1e-6},
    ("keras", "batch_renorm"): {
        "eps": 1e-3,
        "decay": 0.99,
        "renorm_decay": 0.99,
        "running_quantity": "standard_deviation",
        "r_max": None,
        "r_min": 0.0,
        "d_max": None,
        "r_max_steps": None,
        "d_max_steps": None,
        "single_value": "zero",
    },
    ("torchrl", "batch_renorm"): {
        "eps": 1e-5,
        "decay": 0.99,
        "renorm_decay": None,
        "running_quantity": "unbiased_variance",
        "r_max": 3.0,
        "r_min": None,
        "d_max": 5.0,
        "r_max_steps": (10_000, 10_000),
        "d_max_steps": (10_000, 10_000),
    },
    ("paper", "batch_renorm"): {
        "decay": 0.99,
        "renorm_decay": None,
        "running_quantity": "standard_deviation",
        "r_max": 3.0,
        "d_max": 5.0,
        "r_max_steps": (5_000, 40_000),
        "d_max_steps": (5_000, 25_000),
    },
    ("authors", "switchable_norm"): {
        "eps": 1e-5,
        "decay": 0.9,
        "variance": "unbiased_instance",
        "initial_variance": 0.0,
        "pooled": False,
        "use_instance": True,
        "use_batch": True,
        "last_gamma": False,
    },
    ("paper", "switchable_norm"): {"variance": "biased", "decay": None, "pooled": False},
    ("tfa", "filter_response_norm"): {"eps": 1e-6, "learned_eps": None, "threshold": "element"},
    ("timm", "filter_response_norm"): {"eps": 1e-5, "learned_eps": None, "threshold": "channel"},
    ("paper", "filter_response_norm"): {"eps": 1e-6, "learned_eps": None, "threshold": "channel"},
    ("timm", "weight_standardization"): {"eps": 1e-6, "eps_place": "variance", "ddof": 0, "scale": False, "gain": 1.0},
    ("timm_scaled", "weight_standardization"): {
        "eps": 1e-6,
        "eps_place": "variance",
        "ddof": 0,
        "scale": True,
        "gain": 1.0,
        "fan_in_scaling": True,
    },
    ("authors", "weight_standardization"): {"eps": 1e-5, "eps_place": "deviation", "ddof": 1, "scale": False},
    ("authors_tensorflow", "weight_standardization"): {
        "eps": 1e-5,
        "eps_place": "deviation",
        "ddof": 0,
        "scale": False,
        "depthwise_row": "multiplier",
    },
    ("deepmind", "weight_standardization"): {
        "eps": 1e-4,
        "eps_place": "maximum",
        "ddof": 0,
        "scale": True,
        "gain": 1.0,
        "fan_in_scaling": True,
    },
    ("paper", "weight_standardization"): {"ddof": 0, "scale": False, "fan_in_scaling": False},
    ("torch", "spectral_norm"): {
        "eps": 1e-12,
        "iterations": 1,
        "iteration_order": "u_first",
        "iterate": "training",
        "stored": "uv",
        "warm_up": 15,
        "eps_place": "maximum",
        "transposed_row": "output",
        "embedding_row": "input",
    },
    ("torch_hook", "spectral_norm"): {
        "eps": 1e-12,
        "iterations": 1,
        "iteration_order": "v_first",
        "iterate": "training",
        "stored": "uv",
        "warm_up": 0,
        "transposed_row": "output",
        "embedding_row": "input",
    },
    ("keras", "spectral_norm"): {
        "eps": 1e-7,
        "iterations": 1,
        "iteration_order": "v_first",
        "stored": "u",
        "warm_up": 0,
        "eps_place": "maximum",
        "transposed_row": "input",
        "depthwise_row": "multiplier",
        "embedding_row": "output",
    },
    ("tfa", "spectral_norm"): {"eps": 1e-12, "eps_place": "maximum_of_square", "stored": "u", "transposed_row": "input"},
    ("flax", "spectral_norm"): {"eps": 1e-12, "eps_place": "added_to_square", "stored": "u", "iterate": "always"},
    ("equinox", "spectral_norm"): {"eps": 1e-12, "iteration_order": "u_first", "warm_up": 15, "transposed_row": "output"},
    ("paper", "spectral_norm"): {"eps": 0.0, "iteration_order": "v_first", "iterations": 1},
    ("torch", "weight_norm"): {"eps": 0.0, "norm_over": "row", "initial_scale": "norm", "transposed_row": "input"},
    ("torch_hook", "weight_norm"): {"eps": 0.0, "norm_over": "row", "initial_scale": "norm", "transposed_row": "input"},
    ("tfa", "weight_norm"): {"eps": 1e-12, "eps_place": "maximum_of_square", "initial_scale": "data"},
    ("flax", "weight_norm"): {"eps": 1e-12, "eps_place": "added_to_square", "initial_scale": "ones"},
    ("equinox", "weight_norm"): {"eps": 0.0, "initial_scale": "norm", "transposed_row": "output"},
    ("paper", "weight_norm"): {"eps": 0.0, "initial_scale": "data"},
}


@pytest.mark.parametrize("method", SPECS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_preset(framework, method):
    """Each framework's defaults, or one sentence where it lacks the method."""
    if (framework, method) not in _DEFAULTS:
        others = ", ".join(other for other in FRAMEWORKS if (other, method) in _DEFAULTS)
        with pytest.raises(SpecError, match=f"^preset: {framework} has no {method}; choose among {others}$"):
            crossnorm.preset(framework, method, **_REQUIRED[method])
        return
    sizes = _REQUIRED[method] | (_TFA_SIZES if (framework, method) == ("tfa", "filter_response_norm") else {})
    spec = crossnorm.preset(framework, method, **sizes)
    assert type(spec) is SPECS[method]
    scale = method not in ("weight_standardization", "spectral_norm")
    expected = {"scale": scale, **_DEFAULTS[framework, method], **sizes}
    assert {field: getattr(spec, field) for field in expected} == expected


def test_changes_win_over_the_framework():
    assert crossnorm.preset("keras", "batch_norm", channels=2, eps=0.5).eps == 0.5
    assert crossnorm.preset("keras", "group_norm", channels=64).groups == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("jax", "batch_norm"), "unknown framework 'jax'; the frameworks are torch, torch_hook, keras, tf_keras2, tfa, flax,"),
        ((["torch"], "batch_norm"), "unknown framework"),
        (("torch", "batch_renorm", {"channels": 4}), "torch has no batch_renorm; choose among keras, torchrl, paper$"),
        (("tfa", "filter_response_norm", {"channels": 4}), "an element-wise threshold, and nothing else, needs the sizes"),
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
    assert comparison("batch_renorm")["r_max"]["keras"] == "renorm_clipping['rmax'] = None"
    assert comparison("batch_renorm")["decay"]["torchrl"] == "momentum = 0.01"
    assert comparison("switchable_norm")["decay"]["authors"] == "momentum = 0.9"
    assert comparison("filter_response_norm")["spatial"] == {
        "tfa": "from the input",
        "timm": "None (fixed)",
        "paper": "None (fixed)",
    }
    assert comparison("weight_norm")["shape"]["torch"] == "from the layer"


_INSTALLED = [(framework, method) for method in SPECS for framework in ("torch", "torch_hook", "keras")]


def _native(peer):
    """What a peer's name names: a class, a function or, for 1d/2d/3d, one of three classes."""
    package, _, name = peer.name.partition("(")[0].replace("1d/2d/3d", "2d").rpartition(".")
    return getattr(pytest.importorskip(package, reason=f"{package} is not installed"), name)


@pytest.mark.parametrize(("framework", "method"), [pair for pair in _INSTALLED if pair[0] in PEERS[pair[1]]])
def test_comparison_agrees_with_the_installed_framework(framework, method):
    """Every argument that the table names exists, and its default is what the table says."""
    peer = PEERS[method][framework]
    signature = inspect.signature(_native(peer)).parameters
    table = comparison(method)
    for field, argument in peer.arguments.items():
        default = signature[argument.name.partition("[")[0]].default
        shown = table[field][framework]
        if default is inspect.Parameter.empty:
            assert shown == argument.name
        else:
            assert shown.partition(" (")[0] == f"{argument.name} = {default}"


# Facts that no signature tells


def test_spectral_norm_of_torch():
    """Its state after the warm-up and after one access, both in NumPy."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    for kind, arguments, rows in (("Linear", (3, 5), 5), ("ConvTranspose2d", (3, 4, 2), 4), ("Embedding", (7, 3), 7)):
        layer = torch.nn.utils.parametrizations.spectral_norm(getattr(torch.nn, kind)(*arguments))
        spec = crossnorm.preset("torch", "spectral_norm", shape=(rows, layer.parametrizations.weight.original.numel() // rows))
        state = layer.parametrizations.weight[0]
        assert {array.name: array.shape for array in spec.state} == {"u": state._u.shape, "v": state._v.shape}
        matrix = layer.parametrizations.weight.original.detach().double()
        matrix = (matrix.transpose(0, 1) if kind == "ConvTranspose2d" else matrix).flatten(1).numpy()
        u, v = _iterated(matrix, state._v.double().numpy(), spec)
        layer.weight  # noqa: B018 (the access iterates)
        np.testing.assert_allclose(state._u, u, atol=1e-6)
        np.testing.assert_allclose(state._v, v, atol=1e-6)
        if kind == "Linear":
            # After 15 iterations the two vectors are the singular ones; a hook's are random.
            assert abs(u @ matrix @ v) == pytest.approx(np.linalg.svd(matrix, compute_uv=False)[0], rel=1e-3)


def test_spectral_norm_of_torchs_hook():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    layer = torch.nn.utils.spectral_norm(torch.nn.Linear(3, 5))
    spec = crossnorm.preset("torch_hook", "spectral_norm", shape=(5, 3))
    matrix = layer.weight_orig.detach().double().numpy()
    u, v = _iterated(matrix, layer.weight_u.double().numpy(), spec)
    layer(torch.zeros(2, 3))
    np.testing.assert_allclose(layer.weight_u, u, atol=1e-6)
    np.testing.assert_allclose(layer.weight_v, v, atol=1e-6)
    np.testing.assert_allclose(layer.weight.detach(), matrix / (u @ matrix @ v), atol=1e-6)


def test_spectral_norm_of_keras():
    """One training step of its u and its kernel; inference, which does nothing; and its rows."""
    keras = pytest.importorskip("keras", reason="keras is not installed")
    layers, wrapper = keras.layers, keras.layers.SpectralNormalization
    spec = crossnorm.preset("keras", "spectral_norm", shape=(5, 3))
    layer = wrapper(layers.Dense(5))
    layer.build((None, 3))
    matrix = layer.layer.kernel.numpy().astype("f8").T
    u, v = _iterated(matrix, layer.vector_u.numpy()[0].astype("f8"), spec)
    x = np.eye(3, dtype="f4")
    np.testing.assert_allclose(layer(x), matrix.T, atol=1e-6)
    np.testing.assert_allclose(layer(x, training=True), matrix.T / (u @ matrix @ v), atol=1e-5)
    np.testing.assert_allclose(layer.vector_u.numpy()[0], u, atol=1e-5)
    for kind, shape, rows in (
        (layers.Conv2DTranspose(4, 2), (None, 5, 5, 3), 3),
        (layers.Embedding(7, 4), (None, 5), 4),
    ):
        layer = wrapper(kind)
        layer.build(shape)
        assert layer.vector_u.shape == (1, rows)


def _iterated(matrix, start, spec):
    """u and v after one iteration in the order of the specification, from the vector that it starts with."""
    if spec.iteration_order == "u_first":
        u = _unit(matrix @ start, spec)
        return u, _unit(matrix.T @ u, spec)
    v = _unit(matrix.T @ start, spec)
    return _unit(matrix @ v, spec), v


def _unit(vector, spec):
    assert spec.eps_place == "maximum"
    return vector / max(np.linalg.norm(vector), spec.eps)


def test_weight_norm_of_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose2d(3, 4, 2))
    spec = crossnorm.preset("torch", "weight_norm", shape=(3, 4, 2, 2))
    length = layer.parametrizations.weight.original0.detach().numpy()
    assert length.shape == (*spec.parameters[0].shape, 1, 1, 1)
    direction = layer.parametrizations.weight.original1.detach().numpy()
    np.testing.assert_allclose(length, np.linalg.norm(direction.reshape(3, -1), axis=1).reshape(3, 1, 1, 1), rtol=1e-6)


def test_batch_renorm_of_keras():
    """One step of the state, in NumPy."""
    keras = pytest.importorskip("keras", reason="keras is not installed")
    layer = keras.layers.BatchNormalization(renorm=True)
    spec = crossnorm.preset("keras", "batch_renorm", channels=2)
    x = np.array([[1.0, 2.0], [3.0, 7.0]], "f4")
    y = layer(x, training=True)
    deviation = np.sqrt(x.var(axis=0) + spec.eps)
    expected = {
        "running_mean": ("moving_mean", (1 - spec.decay) * x.mean(axis=0)),
        "running_standard_deviation": ("moving_stddev", spec.decay + (1 - spec.decay) * deviation),
        "renorm_mean": ("renorm_mean", (1 - spec.renorm_decay) * x.mean(axis=0)),
        "renorm_standard_deviation": ("renorm_stddev", spec.renorm_decay + (1 - spec.renorm_decay) * deviation),
    }
    expected["running_variance"] = ("moving_variance", expected["running_standard_deviation"][1] ** 2 - spec.eps)
    assert set(expected) == {array.name for array in spec.state} - {"batches_tracked"}
    for name, value in expected.values():
        np.testing.assert_allclose(getattr(layer, name), value, rtol=1e-5)
    # Without bounds r and d undo the normalization by the statistics that the layer starts with.
    np.testing.assert_allclose(y, x, rtol=1e-5)
