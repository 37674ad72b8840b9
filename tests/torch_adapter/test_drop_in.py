"""Our layers take the natives' place: signatures, checkpoints, errors, live attributes, and what is written down to differ."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import crossnorm
import crossnorm.torch as ours
from crossnorm.spec import PEERS, SPECS

LAYERS: dict[str, tuple[Any, ...]] = {
    "BatchNorm1d": (6,), "BatchNorm2d": (6,), "BatchNorm3d": (6,), "InstanceNorm1d": (6,), "InstanceNorm2d": (6,),
    "InstanceNorm3d": (6,), "GroupNorm": (3, 6), "LayerNorm": (6,), "RMSNorm": (6,),
}  # fmt: skip
METHODS = {"batch_norm": "BatchNorm2d", "layer_norm": "LayerNorm", "group_norm": "GroupNorm",
           "instance_norm": "InstanceNorm2d", "rms_norm": "RMSNorm"}  # fmt: skip
ADDED = {"running_variance", "single_value", "subtract_mean", "cumulative"}


def full(name: str) -> dict[str, Any]:
    return {"affine": True, "track_running_stats": True} if name.startswith("Instance") else {}


@pytest.mark.parametrize("name", LAYERS)
def test_is_the_native_with_keyword_only_additions(name: str) -> None:
    mine, native = getattr(ours, name), getattr(nn, name)
    assert issubclass(mine, native)
    got = {k: (p.kind, p.default) for k, p in inspect.signature(mine).parameters.items()}
    for key in ADDED & set(got):
        assert got.pop(key)[0] is inspect.Parameter.KEYWORD_ONLY
    assert list(got.items()) == [(k, (p.kind, p.default)) for k, p in inspect.signature(native).parameters.items()]


@pytest.mark.parametrize("name", LAYERS)
def test_arrays_and_checkpoints_go_both_ways(name: str) -> None:
    arguments = {**full(name), "dtype": torch.float64}
    mine, native = getattr(ours, name)(*LAYERS[name], **arguments), getattr(nn, name)(*LAYERS[name], **arguments)
    for a, b in ((mine, native), (native, mine)):
        assert list(a.state_dict()) == list(b.state_dict())
        for array in a.state_dict().values():
            array.add_(1)
        b.load_state_dict(a.state_dict(), strict=True)
        for key, array in b.state_dict().items():
            torch.testing.assert_close(array, a.state_dict()[key], rtol=0, atol=0)
    assert repr(mine) == repr(native)


@pytest.mark.parametrize("name", LAYERS)
def test_initial_values_and_reset(name: str) -> None:
    mine, native = getattr(ours, name)(*LAYERS[name], **full(name)), getattr(nn, name)(*LAYERS[name], **full(name))
    for _ in range(2):
        for key, array in native.state_dict().items():
            torch.testing.assert_close(mine.state_dict()[key], array, rtol=0, atol=0)
        for array in mine.state_dict().values():
            array.add_(1)
        mine.reset_parameters()


@pytest.mark.parametrize("method", METHODS)
def test_preset_and_peers_agree_with_the_installed_native(method: str) -> None:
    native = inspect.signature(getattr(nn, METHODS[method])).parameters
    required = {"batch_norm": {"channels": 6}, "group_norm": {"channels": 6, "groups": 3}, "instance_norm": {"channels": 6},
                "layer_norm": {"shape": (6,)}, "rms_norm": {"shape": (6,)}}[method]  # fmt: skip
    spec = crossnorm.preset("torch", method, **required)
    for field, argument in PEERS[method]["torch"].arguments.items():
        default = native[argument.name].default
        if field in required:
            assert default is inspect.Parameter.empty
        elif field == "offset":
            assert default is True
        elif default is not None:
            assert argument.native(getattr(spec, field)) == default
    arguments = LAYERS[METHODS[method]]
    assert getattr(ours, METHODS[method])(*arguments).spec == spec


def test_every_specification_has_a_layer_that_gives_it_back() -> None:
    assert set(METHODS) <= set(ours._LAYERS)
    assert {*ours._LAYERS, *ours._REPARAMETRIZATIONS} == set(SPECS)
    both = [(scale, offset) for scale in (True, False) for offset in (True, False)]
    for scale, offset in both:
        affine = {"scale": scale, "offset": offset, "eps": 1e-4}
        for decay in (0.99, None, 1.0, 0.0):
            for tracked in (True, False):
                options = {**affine, "decay": decay, "tracked": tracked, "single_value": "zero"}
                for rank, names in ((1, "1d"), (2, "2d"), (3, "3d"), (None, "2d")):
                    spec = crossnorm.BatchNormSpec(channels=4, running_variance="biased", **options)
                    assert type(ours.layer(spec, rank=rank)).__name__ == "BatchNorm" + names
                    assert ours.layer(spec, rank=rank, layout="channels_first").spec == spec
                    spec = crossnorm.InstanceNormSpec(channels=4, running_variance="instance_mean_biased", **options)
                    assert ours.layer(spec, rank=rank).spec == spec
        spec = crossnorm.GroupNormSpec(channels=4, groups=2, **affine)
        layer = ours.layer(spec, dtype=torch.float64)
        assert layer.spec == spec
        assert [name for name, _ in layer.named_parameters()] == ["weight"] * scale + ["bias"] * offset
        assert all(p.dtype == torch.float64 for p in layer.parameters())
        spec = crossnorm.LayerNormSpec(shape=(2, 3), subtract_mean=False, **affine)
        assert ours.layer(spec).spec == spec
    spec = crossnorm.RMSNormSpec(shape=(2, 3), scale=False)
    assert ours.layer(spec).spec == spec
    assert ours.RMSNorm(3, dtype=torch.float64).spec.eps == 2.0**-52
    assert ours.layer(spec, device="meta").spec == spec


def test_offset_alone_can_be_reset_and_says_so() -> None:
    layer = ours.layer(crossnorm.BatchNormSpec(channels=2, scale=False))
    layer.bias.data.add_(1)
    layer.reset_parameters()
    assert layer.bias.tolist() == [0, 0]
    assert "scale=False" in repr(layer)


# Bad input.

X = torch.randn
REFUSED_AT_CONSTRUCTION = [
    (kind, arguments, options)
    for kind in ("BatchNorm2d", "InstanceNorm2d", "GroupNorm", "LayerNorm", "RMSNorm")
    for arguments, options in ((LAYERS[kind], {"eps": -1.0}), (LAYERS[kind], {"eps": float("nan")}))
] + [
    ("BatchNorm2d", (4,), {"momentum": 1.5}), ("BatchNorm2d", (4,), {"momentum": float("nan")}), ("BatchNorm2d", (-1,), {}),
    ("BatchNorm2d", (2.5,), {}), ("BatchNorm2d", (4,), {"running_variance": "other"}), ("GroupNorm", (3, 4), {}),
    ("GroupNorm", (0, 4), {}), ("LayerNorm", ((),), {}), ("RMSNorm", ((),), {}), ("LayerNorm", (-1,), {}),
]  # fmt: skip


def raised_by(call: Callable[[], Any]) -> type[Exception] | None:
    try:
        call()
    except Exception as error:
        return type(error)
    return None


@pytest.mark.parametrize(("kind", "arguments", "options"), REFUSED_AT_CONSTRUCTION)
def test_refused_at_construction(kind: str, arguments: Any, options: Any) -> None:
    with pytest.raises(crossnorm.SpecError) as mine:
        getattr(ours, kind)(*arguments, **options)
    assert str(mine.value).count("\n") == 0
    assert isinstance(mine.value, raised_by(lambda: getattr(nn, kind)(*arguments, **options)) or ValueError)


REFUSED_AT_CALL = [
    ("BatchNorm2d", {}, X(2, 6, 3)), ("BatchNorm1d", {}, X(6)), ("BatchNorm3d", {}, X(2, 6, 3, 3)),
    ("BatchNorm2d", {}, X(2, 5, 3, 3)),
    ("BatchNorm2d", {}, torch.ones(2, 6, 3, 3, dtype=torch.int32)), ("BatchNorm2d", {}, X(1, 6, 1, 1)),
    ("BatchNorm2d", {}, X(2, 6, 3, 3).double()), ("BatchNorm2d", {"affine": False}, X(2, 5, 3, 3)),
    ("InstanceNorm2d", {}, X(2, 6)), ("InstanceNorm2d", {"affine": True}, X(2, 5, 3, 3)), ("InstanceNorm2d", {}, X(2, 6, 1, 1)),
    ("InstanceNorm2d", {"track_running_stats": True}, X(2, 5, 3, 3)),
    ("InstanceNorm2d", {}, torch.ones(2, 6, 3, 3, dtype=torch.int32)),
    ("GroupNorm", {}, X(6)), ("GroupNorm", {}, X(2, 9, 3)), ("GroupNorm", {"affine": False}, X(2, 7, 3)),
    ("GroupNorm", {}, torch.ones(2, 6, 3, dtype=torch.int64)),
    ("LayerNorm", {}, X(2, 5)), ("LayerNorm", {}, torch.ones(2, 6, dtype=torch.int64)), ("LayerNorm", {}, X(2, 6).double()),
    ("RMSNorm", {}, X(2, 5)), ("RMSNorm", {}, torch.tensor(1.0)), ("LayerNorm", {}, torch.tensor(1.0)),
    ("RMSNorm", {}, torch.ones(2, 6, dtype=torch.int64)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:input's size")
@pytest.mark.parametrize(("kind", "options", "x"), REFUSED_AT_CALL)
def test_refused_at_the_call_with_the_natives_type_and_no_trace(kind: str, options: Any, x: torch.Tensor) -> None:
    native = raised_by(lambda: getattr(nn, kind)(*LAYERS[kind], **options)(x))
    assert native is not None
    layer = getattr(ours, kind)(*LAYERS[kind], **options)
    before = {key: array.clone() for key, array in layer.state_dict().items()}
    with pytest.raises(crossnorm.CrossnormError) as mine:
        layer(x)
    assert isinstance(mine.value, native)
    assert str(mine.value).startswith(kind[:6].rstrip("12d"))
    for key, array in layer.state_dict().items():
        torch.testing.assert_close(array, before[key], rtol=0, atol=0)


def test_one_value_per_group_of_one_sample_raises() -> None:
    with pytest.raises(ours.InputError, match="one value per group"):
        ours.GroupNorm(6, 6)(X(1, 6))


@pytest.mark.parametrize(
    ("attribute", "value"), [("eps", -1.0), ("eps", float("nan")), ("momentum", 2.0), ("momentum", float("nan"))]
)
@pytest.mark.parametrize("kind", ["BatchNorm2d", "InstanceNorm2d"])
def test_garbage_set_later_is_refused_at_the_next_call(kind: str, attribute: str, value: float) -> None:
    layer = getattr(ours, kind)(6, track_running_stats=True)
    setattr(layer, attribute, value)
    with pytest.raises(crossnorm.SpecError, match="decay" if attribute == "momentum" else "eps"):
        layer(X(2, 6, 3, 3))
    assert layer.num_batches_tracked == 0
    assert layer.running_mean.tolist() == [0] * 6


def test_live_attributes_are_the_truth() -> None:
    mine, native, x = ours.BatchNorm2d(3), nn.BatchNorm2d(3), X(4, 3, 5, 5)
    for layer in (mine, native):
        layer.momentum, layer.eps = 0.5, 0.1
        layer.y = layer(x)
    assert (mine.spec.decay, mine.spec.eps) == (0.5, 0.1)
    torch.testing.assert_close(mine.y, native.y)
    torch.testing.assert_close(mine.running_var, native.running_var)


# What is written down to differ.


def test_empty_batch_changes_nothing() -> None:
    for layer in (ours.BatchNorm2d(3), ours.InstanceNorm2d(3, track_running_stats=True)):
        assert layer(X(0, 3, 4, 4)).shape == (0, 3, 4, 4)
        assert layer.num_batches_tracked == 0
        assert layer.running_var.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_empty_batch_of_every_layer(name: str, dtype: torch.dtype) -> None:
    shape = {"1": (0, 6, 3), "2": (0, 6, 3, 3), "3": (0, 6, 3, 3, 3)}.get(name[-2], (0, 6))
    x = torch.empty(shape, dtype=dtype, requires_grad=True)
    layer = getattr(ours, name)(*LAYERS[name], **full(name))
    layer(x).sum().backward()
    assert x.grad.shape == shape
    assert all(p.grad.eq(0).all() for p in layer.parameters())


@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d"])
@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
def test_one_running_statistic_alone_is_refused(name: str, missing: str, training: bool) -> None:
    native, mine = (getattr(module, name)(6, track_running_stats=True).train(training) for module in (nn, ours))
    for layer in (native, mine):
        setattr(layer, missing, None)
    with pytest.raises(crossnorm.CrossnormError, match="set both or neither") as raised:
        mine(X(2, 6, 3, 3))
    assert isinstance(raised.value, raised_by(lambda: native(X(2, 6, 3, 3))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layer_norm_counts_beyond_half_precision(dtype: torch.dtype) -> None:
    layer = ours.LayerNorm(4)
    layer(X(5000, 4).to(dtype)).sum().backward()
    assert layer.bias.grad.tolist() == [5000] * 4


def test_single_value_zero() -> None:
    layer = ours.BatchNorm1d(2, momentum=0.5, single_value="zero")
    layer.bias.data.fill_(3.0)
    assert layer(torch.tensor([[5.0, -7.0]])).tolist() == [[3, 3]]
    assert layer.running_var.tolist() == [0.5, 0.5]
    assert layer.running_mean.tolist() == [2.5, -3.5]


def test_biased_running_variance_is_smaller_by_the_correction() -> None:
    biased, unbiased, x = (
        ours.BatchNorm1d(3, momentum=1.0, running_variance="biased"),
        ours.BatchNorm1d(3, momentum=1.0),
        X(10, 3),
    )
    biased(x), unbiased(x)
    torch.testing.assert_close(biased.running_var * 10 / 9, unbiased.running_var)


def test_cumulative_average_of_instance_norm() -> None:
    spec = crossnorm.InstanceNormSpec(channels=2, tracked=True, decay=None)
    layer, batches = ours.layer(spec), [X(3, 2, 4, 4), X(3, 2, 4, 4) + 1, X(3, 2, 4, 4) + 5]
    for x in batches:
        layer(x)
    torch.testing.assert_close(layer.running_mean, torch.stack(batches).mean((0, 1, 3, 4)))
    assert layer.num_batches_tracked == 3


def test_momentum_none_of_instance_norm_never_updates() -> None:
    layer = ours.InstanceNorm2d(2, momentum=None, track_running_stats=True)
    layer(X(3, 2, 4, 4) + 5)
    assert layer.spec.decay == 1
    assert layer.running_mean.tolist() == [0, 0]


def test_fusing_a_convolution_works_and_needs_no_estimator() -> None:
    convolution, norm = nn.Conv2d(3, 4, 3).eval(), ours.BatchNorm2d(4, running_variance="biased").eval()
    norm.running_mean.add_(0.3)
    norm.running_var.mul_(2)
    x = X(2, 3, 8, 8)
    torch.testing.assert_close(fuse_conv_bn_eval(convolution, norm)(x), norm(convolution(x)), rtol=1e-4, atol=1e-5)
    linear, norm = nn.Linear(3, 4).eval(), ours.BatchNorm1d(4).eval()
    x = X(5, 3)
    torch.testing.assert_close(fuse_linear_bn_eval(linear, norm)(x), norm(linear(x)), rtol=1e-4, atol=1e-5)


def test_conversion_to_sync_batch_norm_keeps_arrays_and_loses_what_is_ours() -> None:
    norm = ours.BatchNorm2d(4, momentum=0.3, running_variance="biased")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm))[0]
    assert type(converted) is nn.SyncBatchNorm
    assert converted.momentum == 0.3
    assert converted.running_var is norm.running_var
    assert not hasattr(converted, "running_variance")


def test_layer_refuses_what_it_cannot_do() -> None:
    spec = crossnorm.BatchNormSpec(channels=3)
    with pytest.raises(crossnorm.Unsupported, match="memory format"):
        ours.layer(spec, layout="channels_last")
    with pytest.raises(crossnorm.SpecError, match="rank=4"):
        ours.layer(spec, rank=4)


@pytest.mark.parametrize(
    ("setup", "message"),
    [("sys.modules['torch'] = None", "is not installed"), ("import torch; torch.__version__ = '2.4.1+cpu'", "2.4.1")],
)
def test_a_missing_or_old_torch_is_one_clear_sentence(setup: str, message: str) -> None:
    program = f"import sys\n{setup}\nimport crossnorm\ntry:\n    import crossnorm.torch\n" + (
        "except ImportError as error:\n    assert isinstance(error, crossnorm.CrossnormError)\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert message in done.stdout
    assert "pip install" in done.stdout
    assert "crossnorm[torch]" in done.stdout


def test_calls_of_one_layer_that_take_different_ways_share_a_backward_pass() -> None:
    """A layer shared by the levels of a pyramid: the large float32 ones take the native kernel, the others ours."""
    native, mine = nn.BatchNorm2d(6), ours.BatchNorm2d(6)
    for first in (X(4, 6, 5, 5), X(2, 6, 2, 1), X(4, 6, 5, 5).to(memory_format=torch.channels_last)):
        second = X(4, 6, 5, 5)
        for inputs in ((first, second), (second, first)):
            for layer in (native, mine):
                layer.zero_grad()
                sum(layer(x).pow(3).sum() for x in inputs).backward()
            torch.testing.assert_close(mine.weight.grad, native.weight.grad, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(mine.state_dict(), native.state_dict())


@pytest.mark.parametrize("name", LAYERS)
def test_a_native_can_change_its_class(name: str) -> None:
    layer = getattr(nn, name)(*LAYERS[name], **full(name))
    shape = {"1": (2, 6, 3), "2": (2, 6, 3, 3), "3": (2, 6, 3, 3, 3)}.get(name[-2], (2, 6))
    expected, text = layer.eval()(X(shape).fill_(0.5)), repr(layer)
    layer.__class__ = getattr(ours, name)
    torch.testing.assert_close(layer(X(shape).fill_(0.5)), expected)
    assert layer.spec == getattr(ours, name)(*LAYERS[name], **full(name)).spec
    assert repr(layer) == text


@pytest.mark.parametrize("parameter", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient", [True, False])
def test_rms_norm_mixes_dtypes_as_the_native_does(dtype: torch.dtype, parameter: torch.dtype, gradient: bool) -> None:
    x = X(4, 6).to(dtype).requires_grad_(gradient)
    native, mine = (module.RMSNorm(6, eps=1e-5, dtype=parameter) for module in (nn, ours))
    torch.testing.assert_close(mine(x), native(x))


def test_evaluation_of_instance_norm_without_the_statistics_it_tracks_is_refused() -> None:
    native, mine = (module.InstanceNorm2d(6, track_running_stats=True).eval() for module in (nn, ours))
    for layer in (native, mine):
        layer.running_mean = layer.running_var = None
    with pytest.raises(crossnorm.CrossnormError, match="track_running_stats=True") as raised:
        mine(X(2, 6, 3, 3))
    assert isinstance(raised.value, raised_by(lambda: native(X(2, 6, 3, 3))))
    mine.track_running_stats = False
    mine(X(2, 6, 3, 3))


def test_instance_norm_that_stops_tracking_keeps_its_statistics() -> None:
    layer = ours.InstanceNorm2d(6, track_running_stats=True)
    layer.track_running_stats = False
    layer(X(2, 6, 3, 3) + 5)
    assert layer.running_mean.tolist() == [0] * 6


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_an_ensemble_by_vmap(name: str, training: bool) -> None:
    x = X({"1": (4, 6, 3), "2": (4, 6, 3, 3), "3": (4, 6, 3, 3, 3)}.get(name[-2], (4, 6)))

    def outputs(module: Any) -> Any:
        layers = [getattr(module, name)(*LAYERS[name], **full(name)).train(training) for _ in range(3)]
        parameters, buffers = torch.func.stack_module_state(layers)
        buffers.pop("num_batches_tracked", None)
        y = torch.vmap(lambda *arrays: torch.func.functional_call(layers[0], arrays, (x,)))(parameters, buffers)
        return y, buffers

    torch.testing.assert_close(outputs(ours), outputs(nn))
