"""Whatever works on the native layer works on ours, and agrees: every capability runs on both."""

import copy
import io
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import crossnorm.torch as ours

BATCH = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
INSTANCE = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")
OURS = tuple(getattr(ours, name) for name in (*BATCH, *INSTANCE, "GroupNorm", "RMSNorm"))
SHAPES = {
    "BatchNorm1d": (5, 4, 7), "BatchNorm2d": (3, 4, 5, 2), "BatchNorm3d": (2, 4, 3, 2, 3),
    "InstanceNorm1d": (3, 4, 9), "InstanceNorm2d": (3, 4, 5, 3), "InstanceNorm3d": (2, 4, 3, 2, 3),
    "GroupNorm": (3, 4, 5, 3), "LayerNorm": (3, 5, 6), "RMSNorm": (3, 5, 6),
}  # fmt: skip
ARGUMENTS: dict[str, tuple[Any, ...]] = {"GroupNorm": (2, 4), "LayerNorm": (6,), "RMSNorm": (6,)}


def variants() -> Iterator[Any]:
    """(class name, keyword arguments, training)."""
    for name in (*BATCH, *INSTANCE):
        for tracked in (True, False):
            for training in (True, False):
                options = {"affine": True, "track_running_stats": tracked}
                state = f"{'tracked' if tracked else 'untracked'}-{'train' if training else 'eval'}"
                yield pytest.param(name, options, training, id=f"{name}-{state}")
    yield pytest.param("BatchNorm2d", {"momentum": None}, True, id="BatchNorm2d-cumulative")
    yield pytest.param("BatchNorm2d", {"affine": False}, True, id="BatchNorm2d-plain")
    yield pytest.param("BatchNorm2d", {"bias": False}, True, id="BatchNorm2d-no-bias")
    for name in ("GroupNorm", "LayerNorm", "RMSNorm"):
        yield pytest.param(name, {}, True, id=name)
    yield pytest.param("GroupNorm", {"bias": False}, True, id="GroupNorm-no-bias")
    yield pytest.param("LayerNorm", {"elementwise_affine": False}, True, id="LayerNorm-plain")


def make(module: Any, name: str, options: dict[str, Any], training: bool, dtype: torch.dtype = torch.float32) -> Any:
    layer = getattr(module, name)(*ARGUMENTS.get(name, (4,)), dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for array in (*layer.parameters(), *layer.buffers()):
            if array.is_floating_point():
                array.copy_(torch.rand(array.shape, generator=generator, dtype=torch.float64) + 0.5)
    return layer.train(training)


def data(name: str, dtype: torch.dtype = torch.float32, seed: int = 2) -> Tensor:
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(layer: Any, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()]), *layer.buffers()]


# Each capability: (layer, x) -> tensors to compare.


def eager(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(layer, x)


def channels_last(layer: Any, x: Tensor) -> list[Tensor]:
    form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if form is None:
        pytest.skip("a memory format of rank 4 and 5")
    x = x.to(memory_format=form)
    if "LayerNorm" not in repr(layer):
        assert not isinstance(layer, OURS) or copy.deepcopy(layer)(x).is_contiguous(memory_format=form)
    return gradients(layer, x)


def strided(layer: Any, x: Tensor) -> list[Tensor]:
    wider = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wider[..., ::2] = x
    return gradients(layer, wider[..., ::2])


def permuted(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(layer, x.transpose(0, 1).contiguous().transpose(0, 1))


def unbatched(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(layer, x[0])


def empty(layer: Any, x: Tensor) -> list[Tensor]:
    return [layer(x[:0])]


def no_grad(layer: Any, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [layer(x), *layer.buffers()]


def inference_mode(layer: Any, x: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return [layer(x).clone()]


def script(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(torch.jit.script(layer), x)


def script_saved(layer: Any, x: Tensor) -> list[Tensor]:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    return gradients(torch.jit.load(file), x)


def trace(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(torch.jit.trace(layer, x, check_trace=False), x)


def compiled(layer: Any, x: Tensor) -> list[Tensor]:
    torch._dynamo.reset()
    return gradients(torch.compile(layer, fullgraph=True, backend="eager"), x)


def compiled_aot(layer: Any, x: Tensor) -> list[Tensor]:
    torch._dynamo.reset()
    return gradients(torch.compile(layer, fullgraph=True, backend="aot_eager"), x)


def compiled_dynamic(layer: Any, x: Tensor) -> list[Tensor]:
    torch._dynamo.reset()
    return gradients(torch.compile(layer, fullgraph=True, backend="eager", dynamic=True), x)


def export(layer: Any, x: Tensor) -> list[Tensor]:
    return [torch.export.export(layer, (x,), strict=False).module(check_guards=False)(x)]


def export_dynamic(layer: Any, x: Tensor) -> list[Tensor]:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=False)
    return [program.module(check_guards=False)(torch.cat([x, x]))]


def vmap(layer: Any, x: Tensor) -> list[Tensor]:
    return [torch.func.vmap(layer)(torch.stack([x, 2 * x + 1]))]


def vmap_channels_last(layer: Any, x: Tensor) -> list[Tensor]:
    if x.dim() != 4:
        pytest.skip("a memory format of rank 4")
    batches = torch.stack([x, 2 * x + 1]).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    return [torch.func.vmap(layer)(batches)]


def per_sample_gradients(layer: Any, x: Tensor) -> list[Tensor]:
    parameters = {k: v.detach() for k, v in layer.named_parameters()}

    def loss(parameters: Any, x: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, parameters, (x,)) ** 3).sum()

    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), (None, 0))(parameters, torch.stack([x, 2 * x + 1]))
    return [*found[0].values(), found[1]]


def func_grad(layer: Any, x: Tensor) -> list[Tensor]:
    return [torch.func.grad(lambda x: (layer(x) ** 3).sum())(x), *layer.buffers()]


def func_grad_grad(layer: Any, x: Tensor) -> list[Tensor]:
    return [torch.func.grad(lambda x: torch.func.grad(lambda x: (layer(x) ** 3).sum())(x).square().sum())(x)]


def jvp(layer: Any, x: Tensor) -> list[Tensor]:
    return list(torch.func.jvp(layer, (x,), (torch.cos(x),)))


def forward_mode(layer: Any, x: Tensor) -> list[Tensor]:
    with forward_ad.dual_level():
        return [t.clone() for t in forward_ad.unpack_dual(layer(forward_ad.make_dual(x, torch.cos(x))))]


def hessian_product(layer: Any, x: Tensor) -> list[Tensor]:
    return [torch.func.jvp(torch.func.grad(lambda x: (layer(x) ** 3).sum()), (x,), (torch.cos(x),))[1]]


def functional_call(layer: Any, x: Tensor) -> list[Tensor]:
    arrays = {k: v.clone() for k, v in (*layer.named_parameters(), *layer.named_buffers())}
    return [torch.func.functional_call(layer, arrays, (x,)), *arrays.values()]


def deep_copy(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(copy.deepcopy(layer), x)


def pickled(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(pickle.loads(pickle.dumps(layer)), x)


def saved(layer: Any, x: Tensor) -> list[Tensor]:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return gradients(torch.load(file, weights_only=False), x)


def autocast(layer: Any, x: Tensor) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return [layer(x), layer(x.bfloat16())]


def half_input(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(layer, x.bfloat16())


def half_layer(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(layer.to(torch.bfloat16), x.bfloat16())


def meta(layer: Any, x: Tensor) -> list[Tensor]:
    y = layer.to("meta")(x.to("meta"))
    return [torch.tensor(y.shape), torch.tensor(y.stride())]


def fake(layer: Any, x: Tensor) -> list[Tensor]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        shape = layer(mode.from_tensor(x)).shape
    return [torch.tensor(shape)]


def checkpointed(layer: Any, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    return [y, *torch.autograd.grad((y**3).sum(), [x, *layer.parameters()])]


def in_sequence(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(nn.Sequential(layer, nn.ReLU(inplace=True)), x)


CAPABILITIES = [
    eager, channels_last, strided, permuted, unbatched, empty, no_grad, inference_mode, script, script_saved, trace,
    compiled, compiled_aot, compiled_dynamic, export, export_dynamic, vmap, vmap_channels_last, per_sample_gradients,
    func_grad, func_grad_grad, jvp, forward_mode, hessian_product, functional_call, deep_copy, pickled, saved, autocast,
    half_input, half_layer, meta, fake, checkpointed, in_sequence,
]  # fmt: skip
SLOW = (compiled, compiled_aot, compiled_dynamic, export, export_dynamic)


@pytest.mark.filterwarnings("ignore")  # the natives' own, from scripting and vmap
@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("name", "options", "training"), list(variants()))
def test_capability(capability: Any, name: str, options: dict[str, Any], training: bool) -> None:
    same_as_training = not training and options.get("track_running_stats") is False
    plain = "bias" in options or not options.get("affine", True)
    if capability in SLOW and (name[-2:] in ("1d", "3d") or plain or same_as_training):
        pytest.skip("compiled for one rank only, to save time")
    with warnings.catch_warnings(record=True) as native_warnings:
        warnings.simplefilter("always")
        try:
            expected = capability(make(nn, name, options, training), data(name))
        except Exception as error:
            pytest.skip(f"the native cannot: {type(error).__name__}")
    with warnings.catch_warnings(record=True) as our_warnings:
        warnings.simplefilter("always")
        got = capability(make(ours, name, options, training), data(name))
    categories = {w.category for w in native_warnings} | {torch.jit.TracerWarning}  # our checks compare sizes
    assert [w for w in our_warnings if w.category not in categories] == []
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        if mine.dtype == torch.int64 and mine.dim() == 0:
            continue  # the counter: an instance norm that counts is a documented difference
        coarse = theirs.dtype in (torch.float16, torch.bfloat16) or capability in (half_input, half_layer, autocast)
        tolerance = 5e-2 if coarse else 2e-4
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, from its first forward mode
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d", "GroupNorm", "LayerNorm", "RMSNorm"])
def test_derivatives_of_every_kind(name: str, form: torch.memory_format) -> None:
    options = {"affine": True, "track_running_stats": False} if "2d" in name else {}
    layer = make(ours, name, options, True, torch.float64)
    shape = (2, 2, 3, 2) if name in ("BatchNorm2d", "InstanceNorm2d", "GroupNorm") else (2, 2, 2, 6)
    if name in ("BatchNorm2d", "InstanceNorm2d"):
        layer = make(ours, name, options, True, torch.float64)
        shape = (2, 4, 3, 2)
    if name == "GroupNorm":
        shape = (2, 4, 3, 2)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(memory_format=form)
    arrays = (x.requires_grad_(), *layer.parameters())
    names = [n for n, _ in layer.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(call, arrays, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(call, arrays, fast_mode=True)


@pytest.mark.filterwarnings("ignore")
def test_inductor() -> None:
    torch._dynamo.reset()
    layer = make(ours, "BatchNorm2d", {}, True)
    expected = gradients(copy.deepcopy(layer), data("BatchNorm2d"))
    got = gradients(torch.compile(layer, fullgraph=True), data("BatchNorm2d"))
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
