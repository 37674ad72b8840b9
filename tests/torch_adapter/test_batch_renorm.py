"""Batch renorm: batch norm bit for bit where it should be, its schedule, its state, and what a layer of torch can do."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import crossnorm
import crossnorm.torch as ours
from crossnorm.spec import INFERENCE, TRAIN, UNTRACKED, BatchRenormSpec

X = torch.randn
AT_ONCE: dict[str, Any] = {"r_max_steps": None, "d_max_steps": None}
BATCH_NORM = {"r_max": 1.0, "d_max": 0.0, **AT_ONCE}
NOT_YET = {"r_max_steps": (5, 10), "d_max_steps": (5, 10)}
QUANTITIES = ("standard_deviation", "biased_variance", "unbiased_variance")
FORMS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def filled(layer: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for array in (*layer.parameters(), *layer.buffers()):
            if array.is_floating_point():
                array.copy_(torch.rand(array.shape, generator=generator, dtype=torch.float64) + 0.5)
    return layer


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and new buffers of one call."""
    x = x.detach().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], weights), *layer.buffers()]


def assert_same(got: list[Tensor], expected: list[Tensor], tolerance: float = 0.0) -> None:
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


# Batch norm, bit for bit.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [BATCH_NORM, NOT_YET], ids=["no-correction", "schedule-not-begun"])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_without_correction_it_is_batch_norm_bit_for_bit(quantity: str, options: Any, dtype: torch.dtype, form: str) -> None:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    variants: list[dict[str, Any]] = [{}, {"affine": False}, {"bias": False}, {"momentum": None}, {"eps": 0.1}]
    for shape, offset in (((8, 6, 14, 14), 0.0), ((8, 6, 14, 14), 300.0), ((2, 3, 40, 40), 0.0), ((4, 6, 1, 1), 1.0)):
        for variant in variants:
            arguments = {"momentum": 0.1, "dtype": wide, **variant}
            renorm = filled(ours.BatchRenorm2d(shape[1], running_quantity=quantity, **options, **arguments))
            batch = ours.BatchNorm2d(shape[1], running_variance=quantity.removesuffix("_variance"), **arguments) if (
                quantity != "standard_deviation"
            ) else ours.BatchNorm2d(shape[1], **arguments)  # fmt: skip
            batch.load_state_dict(renorm.state_dict(), strict=quantity != "standard_deviation")
            x = (X(shape) + offset).to(dtype).contiguous(memory_format=FORMS[form])
            for _ in range(3):
                got, expected = results(renorm, x), results(batch, x)
                state = len(list(batch.buffers()))
                assert_same(got[:-state], expected[:-state])
            if quantity != "standard_deviation":
                assert_same(list(renorm.state_dict().values()), list(batch.state_dict().values()))
                assert_same(results(renorm.eval(), x), results(batch.eval(), x))


def test_a_batch_norm_checkpoint_loads_and_is_loaded() -> None:
    batch, renorm = filled(nn.BatchNorm2d(4)), ours.BatchRenorm2d(4, running_quantity="unbiased_variance")
    renorm.load_state_dict(batch.state_dict())
    x = X(2, 4, 3, 3)
    torch.testing.assert_close(renorm.eval()(x), batch.eval()(x), rtol=0, atol=0)
    batch.load_state_dict(renorm.state_dict())


# The correction.


def test_correction_by_hand() -> None:
    layer = ours.BatchRenorm1d(1, eps=0.0, momentum=0.5, r_max=1.5, d_max=1.0, affine=False, **AT_ONCE)
    y = layer(torch.tensor([[6.0], [10.0]]))  # mean 8 and deviation 2, running 0 and 1: r = 1.5, d = 1
    assert y.flatten().tolist() == [-0.5, 2.5]
    assert (layer.running_mean.item(), layer.running_std.item()) == (4.0, 1.5)
    assert layer.eval()(torch.tensor([[7.0]])).item() == 2.0


def test_training_without_bounds_is_evaluation_with_the_old_statistics() -> None:
    layer = filled(ours.BatchRenorm2d(4, r_max=None, d_max=None, **AT_ONCE))
    x = X(8, 4, 9, 9) * 3 + 2
    expected = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_r_and_d_are_constants() -> None:
    layer = filled(ours.BatchRenorm2d(4, r_max=None, d_max=None, **AT_ONCE).double())
    x = (X(8, 4, 5, 5, dtype=torch.float64) * 3 + 2).requires_grad_()
    weights = X(8, 4, 5, 5, dtype=torch.float64)
    mean, variance = (x.detach().mean((0, 2, 3), keepdim=True), x.detach().var((0, 2, 3), correction=0, keepdim=True))
    target_mean, target = (a.reshape(1, -1, 1, 1).clone() for a in (layer.running_mean, layer.running_std))
    r, d = (variance + layer.eps).sqrt() / target, (mean - target_mean) / target
    (got,) = torch.autograd.grad(layer(x), x, weights)
    own = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + layer.eps).sqrt()
    scale, offset = (a.detach().reshape(1, -1, 1, 1) for a in (layer.weight, layer.bias))
    (expected,) = torch.autograd.grad(scale * (own * r + d) + offset, x, weights)
    torch.testing.assert_close(got, expected)
    (through,) = torch.autograd.grad(scale * (x - target_mean) / target, x, weights)
    assert (got - through).abs().max() > 0.01


@pytest.mark.parametrize("steps", [(2, 6), (0, 3), (4, 4), (0, 0), None])
def test_the_schedule_is_the_specifications(steps: Any) -> None:
    from crossnorm.torch.batch_renorm import Rule, bounds

    spec = BatchRenormSpec(channels=1, r_max=2.5, r_min=0.3, d_max=4.0, r_max_steps=steps, d_max_steps=steps)
    for changes in ({}, {"r_min": None}, {"r_max": None, "r_max_steps": None}, {"d_max": None, "d_max_steps": None}):
        changed = spec.replace(**changes)
        rule = Rule(momentum=0.1, **{name: getattr(changed, name) for name in Rule._fields if name != "momentum"})
        for step in range(9):
            found = bounds(rule, torch.tensor(step), torch.ones(1, dtype=torch.float64))
            torch.testing.assert_close([bound.item() for bound in found], list(changed.bounds(step)), rtol=1e-15, atol=0)


def test_the_counter_drives_the_schedule_and_is_saved() -> None:
    options = {"r_max": 2.0, "d_max": 1.0, "r_max_steps": (1, 3), "d_max_steps": (1, 3), "momentum": 0.0}
    layer, x = filled(ours.BatchRenorm2d(4, **options)), X(4, 4, 5, 5) * 5 + 4
    outputs = []
    for step in range(5):
        assert layer.num_batches_tracked == step
        other = ours.BatchRenorm2d(4, **options)
        other.load_state_dict(layer.state_dict())
        outputs.append(layer(x))
        torch.testing.assert_close(other(x), outputs[-1], rtol=0, atol=0)
    batch = filled(ours.BatchNorm2d(4))(x)
    differences = [(y - batch).abs().max() for y in outputs]
    assert differences[0] == differences[1] == 0
    assert 0 < differences[2] < differences[3] == differences[4]


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_two_pairs_are_decayed_apart_and_inference_reads_the_first(quantity: str) -> None:
    layer = ours.BatchRenorm2d(3, eps=1e-3, momentum=0.25, renorm_decay=0.5, running_quantity=quantity, **AT_ONCE)
    x = X(4, 3, 6, 6) * 2 + 1
    layer(x)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=quantity == "unbiased_variance")
    spread, suffix = (variance, "var") if "variance" in quantity else ((variance + 1e-3).sqrt(), "std")
    torch.testing.assert_close(layer.running_mean, mean / 4)
    torch.testing.assert_close(layer.renorm_mean, mean / 2)
    torch.testing.assert_close(getattr(layer, f"running_{suffix}"), 0.75 + spread / 4)
    torch.testing.assert_close(getattr(layer, f"renorm_{suffix}"), 0.5 + spread / 2)
    if suffix == "std":
        torch.testing.assert_close(layer.running_var, layer.running_std.square() - 1e-3)
    expected = (x - layer.running_mean.reshape(1, -1, 1, 1)) / (layer.running_var + 1e-3).sqrt().reshape(1, -1, 1, 1)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_training_reads_the_second_pair() -> None:
    layer = filled(ours.BatchRenorm2d(3, renorm_decay=0.5, r_max=None, d_max=None, **AT_ONCE))
    one_pair = ours.BatchRenorm2d(3, r_max=None, d_max=None, **AT_ONCE)
    arrays = {"running_mean": layer.renorm_mean, "running_std": layer.renorm_std, "num_batches_tracked": torch.tensor(0)}
    one_pair.load_state_dict({**dict(layer.named_parameters()), **arrays})
    x = X(4, 3, 6, 6) * 2 + 1
    torch.testing.assert_close(layer(x), one_pair(x), rtol=0, atol=0)


def test_a_running_deviation_counts_as_the_root_of_eps_at_least() -> None:
    layer = ours.BatchRenorm1d(1, eps=0.25, r_max=None, d_max=None, affine=False, **AT_ONCE)
    layer.running_std.zero_()
    x = torch.tensor([[1.0], [2.0], [4.0]])
    torch.testing.assert_close(layer(x), x / 0.5)


# The layer.


def every_spec() -> Iterator[BatchRenormSpec]:
    for quantity in QUANTITIES:
        for renorm_decay in (None, 0.7):
            for scale, offset in ((True, True), (True, False), (False, True), (False, False)):
                yield BatchRenormSpec(
                    channels=4, eps=1e-4, scale=scale, offset=offset, decay=0.99, renorm_decay=renorm_decay,
                    running_quantity=quantity, r_max=2.0, r_min=0.0, d_max=None, d_max_steps=None, single_value="zero",
                )  # fmt: skip


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_layer_gives_its_specification_back(rank: int) -> None:
    buffers = {"running_mean": "running_mean", "running_standard_deviation": "running_std", "running_variance": "running_var",
               "renorm_mean": "renorm_mean", "renorm_standard_deviation": "renorm_std", "renorm_variance": "renorm_var",
               "batches_tracked": "num_batches_tracked"}  # fmt: skip
    for spec in every_spec():
        layer = ours.layer(spec, rank=rank, dtype=torch.float64)
        assert type(layer).__name__ == f"BatchRenorm{rank}d"
        assert layer.spec == spec
        assert [name for name, _ in layer.named_parameters()] == ["weight"] * spec.scale + ["bias"] * spec.offset
        assert {name: tuple(b.shape) for name, b in layer.named_buffers()} == {buffers[a.name]: a.shape for a in spec.state}
        assert all(a.dtype == torch.float64 for a in layer.state_dict().values() if a.is_floating_point())
        assert ours.layer(spec.replace(decay=None), device="meta").spec.decay is None
    assert ours.BatchRenorm2d(4).spec == BatchRenormSpec(channels=4)
    assert (
        crossnorm.preset("keras", "batch_renorm", channels=4)
        == ours.layer(crossnorm.preset("keras", "batch_renorm", channels=4)).spec
    )


def test_its_text_names_what_is_not_the_default() -> None:
    assert repr(ours.BatchRenorm2d(4)) == "BatchRenorm2d(4, eps=1e-05, momentum=0.01, affine=True, bias=True)"
    text = repr(ours.BatchRenorm2d(4, r_max=2, running_quantity="biased_variance", renorm_decay=0.9))
    assert "running_quantity='biased_variance', renorm_decay=0.9, r_max=2.0" in text


@pytest.mark.parametrize("spec", [BatchRenormSpec(channels=3, **NOT_YET), BatchRenormSpec(channels=3, renorm_decay=0.9)])
def test_the_pure_function_agrees_with_the_layer_and_mutates_nothing(spec: BatchRenormSpec) -> None:
    layer, x = filled(ours.layer(spec)), X(4, 3, 5, 5) * 3
    names = {"weight": "scale", "bias": "offset", "running_var": "running_variance", "num_batches_tracked": "batches_tracked",
             "running_std": "running_standard_deviation", "renorm_std": "renorm_standard_deviation"}  # fmt: skip
    parameters = {names[name]: value for name, value in layer.named_parameters()}
    state = {names.get(name, name): value.clone() for name, value in layer.named_buffers()}
    before = {name: value.clone() for name, value in state.items()}
    expected = copy.deepcopy(layer).eval()(x)
    for mode, result in ((INFERENCE, expected), (UNTRACKED, copy.deepcopy(layer)(x))):
        y, kept = ours.functional.batch_renorm(spec, x, parameters, state, mode)
        torch.testing.assert_close(y, result, rtol=0, atol=0)
        torch.testing.assert_close(kept, before, rtol=0, atol=0)
    y, new = ours.functional.batch_renorm(spec, x, parameters, state, TRAIN)
    torch.testing.assert_close(y, layer(x), rtol=0, atol=0)
    torch.testing.assert_close(new, {names.get(k, k): v for k, v in layer.named_buffers()}, rtol=0, atol=0)
    torch.testing.assert_close(state, before, rtol=0, atol=0)


def test_conversion_to_sync_batch_norm_leaves_it_alone() -> None:
    model = nn.Sequential(ours.BatchRenorm2d(4), nn.BatchNorm2d(4))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(converted[0]) is ours.BatchRenorm2d
    assert type(converted[1]) is nn.SyncBatchNorm


# Bad input.


REFUSED = [
    {"r_max": 0.5}, {"r_max": float("nan")}, {"r_min": 1.5}, {"r_min": -1.0}, {"d_max": -0.1}, {"r_max_steps": (9, 3)},
    {"d_max_steps": (1.5, 3)}, {"r_max": None}, {"momentum": 1.5}, {"renorm_decay": -0.5}, {"eps": -1.0},
    {"running_quantity": "variance"}, {"single_value": "one"},
]  # fmt: skip


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_refused_at_construction_and_set_later(options: dict[str, Any]) -> None:
    with pytest.raises(crossnorm.SpecError) as refused:
        ours.BatchRenorm2d(4, **options)
    assert isinstance(refused.value, ours.ArgumentError)
    assert str(refused.value).count("\n") == 0
    layer, x = ours.BatchRenorm2d(4), X(2, 4, 3, 3)
    layer(x)
    before = {name: array.clone() for name, array in layer.state_dict().items()}
    for name, value in options.items():
        setattr(layer, name, value)
    for _ in range(2):
        with pytest.raises(crossnorm.SpecError):
            layer(x)
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("change", [{"running_quantity": "biased_variance"}, {"renorm_decay": 0.9}, {"running_mean": None}])
def test_attributes_that_need_other_buffers_are_refused(change: dict[str, Any]) -> None:
    layer = ours.BatchRenorm2d(4)
    for name, value in change.items():
        setattr(layer, name, value)
    with pytest.raises(ours.ArgumentError, match="build another layer"):
        layer(X(2, 4, 3, 3))
    assert layer.num_batches_tracked == 0


def test_attributes_set_later_count() -> None:
    layer, x = ours.BatchRenorm2d(4, **NOT_YET), X(4, 4, 5, 5) * 3 + 1
    layer(x)
    layer.r_max, layer.d_max, layer.r_max_steps, layer.d_max_steps, layer.momentum = 9, 7.0, None, [0, 1], 0.5
    assert layer.spec.bounds(1) == (1 / 9, 9.0, 7.0)
    expected = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "x", "error"),
    [
        (2, X(2, 4, 3), ours.InputError), (1, X(4), ours.InputError), (3, X(2, 4, 3, 3), ours.InputError),
        (2, X(2, 5, 3, 3), ours.ShapeError), (2, X(2, 4, 3, 3).double(), ours.DtypeError),
        (2, torch.ones(2, 4, 3, 3, dtype=torch.int32), ours.DtypeError), (2, X(1, 4, 1, 1), ours.InputError),
    ],
)  # fmt: skip
def test_refused_at_the_call_without_a_trace(rank: int, x: Tensor, error: type[Exception]) -> None:
    for options in ({}, {"affine": False}):
        layer = getattr(ours, f"BatchRenorm{rank}d")(4, **options)
        before = {name: array.clone() for name, array in layer.state_dict().items()}
        with pytest.raises(error, match=r"^BatchRenorm") as refused:
            layer(x)
        assert str(refused.value).count("\n") == 0
        torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_empty_batch_changes_nothing(dtype: torch.dtype) -> None:
    layer, x = ours.BatchRenorm2d(4), torch.empty(0, 4, 3, 3, dtype=dtype, requires_grad=True)
    before = {name: array.clone() for name, array in layer.state_dict().items()}
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert layer.weight.grad.tolist() == [0] * 4
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)


# What a layer of torch can do. The layer's own eager call is the expectation, which other tests judge.


def compiled(layer: Any, x: Tensor) -> Any:
    torch._dynamo.reset()
    return torch.compile(layer, fullgraph=True, backend="aot_eager")


def compiled_dynamic(layer: Any, x: Tensor) -> Any:
    torch._dynamo.reset()
    return torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)


def scripted(layer: Any, x: Tensor) -> Any:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    return torch.jit.load(file)


def traced(layer: Any, x: Tensor) -> Any:
    state = copy.deepcopy(layer.state_dict())
    traced = torch.jit.trace(layer, x, check_trace=False)  # a call
    traced.load_state_dict(state)
    return traced


def exported(layer: Any, x: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=2, max=64)
    return torch.export.export(layer, (x,), dynamic_shapes=({0: batch},), strict=False).module(check_guards=False)


def pickled(layer: Any, x: Tensor) -> Any:
    return pickle.loads(pickle.dumps(layer))


def saved(layer: Any, x: Tensor) -> Any:
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = ours.layer(layer.spec)
    other.load_state_dict(torch.load(file))
    return other.train(layer.training)


@pytest.mark.filterwarnings("ignore")  # torch's own, from scripting and tracing
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("capability", [compiled, compiled_dynamic, scripted, traced, exported, pickled, saved])
@pytest.mark.parametrize("options", [{"r_max_steps": (0, 3), "d_max_steps": (1, 4)}, {"renorm_decay": 0.9, **AT_ONCE}])
def test_capability(options: Any, capability: Callable[..., Any], training: bool, form: str) -> None:
    layer, x = filled(ours.BatchRenorm2d(4, **options)).train(training), X(5, 4, 6, 3).contiguous(memory_format=FORMS[form])
    layer.num_batches_tracked.fill_(2)
    expected = results(copy.deepcopy(layer), x)
    assert_same(results(capability(layer, x), x), expected, 1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_calls_in_other_surroundings(training: bool) -> None:
    layer, x = filled(ours.BatchRenorm2d(4, **AT_ONCE)).train(training), X(5, 4, 6, 3)
    expected, dx, *_ = results(after := copy.deepcopy(layer), x)
    arrays = {name: array.clone() for name, array in layer.state_dict().items()}
    torch.testing.assert_close(torch.func.functional_call(layer, arrays, (x,)), expected)
    torch.testing.assert_close(arrays, dict(after.state_dict()))
    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected)
    checkpointed = torch.utils.checkpoint.checkpoint(copy.deepcopy(layer).eval(), x, use_reentrant=False)
    torch.testing.assert_close(checkpointed, copy.deepcopy(layer).eval()(x))
    if not training:
        weights = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
        torch.testing.assert_close(torch.func.grad(lambda x: (layer(x) * weights).sum())(x), dx)
        torch.testing.assert_close(torch.vmap(layer)(torch.stack([x, x]))[1], expected)


def test_a_call_that_torch_refuses_changes_nothing() -> None:
    layer = ours.BatchRenorm2d(4)
    before = copy.deepcopy(layer.state_dict())
    for call in (torch.vmap(layer), torch.func.grad(lambda x: layer(x[0]).sum())):
        with pytest.raises(RuntimeError):
            call(X(2, 5, 4, 6, 3))
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_inductor_compiles_once_for_every_step_of_the_schedule() -> None:
    torch._dynamo.reset()
    layer, x = filled(ours.BatchRenorm2d(4, r_max_steps=(0, 3), d_max_steps=(1, 4))), X(5, 4, 6, 3)
    eager, count = copy.deepcopy(layer), torch._dynamo.testing.CompileCounterWithBackend("inductor")
    fast = torch.compile(layer, fullgraph=True, backend=count)
    for _ in range(5):
        assert_same(results(fast, x), results(eager, x), 1e-5)
    assert count.frame_count == 1


@pytest.mark.parametrize("training", [True, False])
def test_an_ensemble_by_vmap(training: bool) -> None:
    layers, x = [filled(ours.BatchRenorm2d(4, **AT_ONCE), seed).train(training) for seed in range(3)], X(5, 4, 6, 3)
    parameters, buffers = torch.func.stack_module_state(layers)
    counter = buffers.pop("num_batches_tracked")
    y = torch.vmap(lambda *arrays: torch.func.functional_call(layers[0], arrays, (x,)))(parameters, buffers)
    layers[0].num_batches_tracked.copy_(counter[0])
    torch.testing.assert_close(y, torch.stack([layer(x) for layer in layers]), rtol=1e-5, atol=1e-5)
    for name, stacked in buffers.items():
        torch.testing.assert_close(stacked, torch.stack([getattr(layer, name) for layer in layers]), rtol=1e-5, atol=1e-5)


def test_the_pure_function_under_torch_func() -> None:
    spec = BatchRenormSpec(channels=4, **AT_ONCE)
    layer, x = filled(ours.layer(spec)), X(5, 4, 6, 3)
    parameters = {"scale": layer.weight.detach(), "offset": layer.bias.detach()}
    state = {"running_mean": layer.running_mean.clone(), "running_standard_deviation": layer.running_std.clone(),
             "batches_tracked": torch.tensor(0)}  # fmt: skip
    weights = torch.linspace(-1, 1, x.numel()).reshape(x.shape)

    def loss(parameters: Any, x: Tensor) -> Tensor:
        return (ours.functional.batch_renorm(spec, x, parameters, state, TRAIN)[0] * weights).sum()

    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), (None, 0))(parameters, torch.stack([x, 2 * x + 1]))
    for i, each in enumerate((x, 2 * x + 1)):
        _, dx, dscale, doffset, *_ = results(copy.deepcopy(layer), each)
        assert_same([found[1][i], found[0]["scale"][i], found[0]["offset"][i]], [dx, dscale, doffset], 1e-5)


@pytest.mark.parametrize("options", [{}, {"renorm_decay": 0.9}, {"affine": False}], ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, from its first forward mode
def test_derivatives_of_every_kind(form: str, training: bool, options: Any) -> None:
    template = filled(ours.BatchRenorm2d(4, dtype=torch.float64, r_max=None, d_max=None, **AT_ONCE, **options))
    template.train(training)
    x = X(3, 4, 3, 2, dtype=torch.float64).contiguous(memory_format=FORMS[form])
    names, arrays = zip(*template.named_parameters(), strict=True) if len(list(template.parameters())) else ((), ())
    frozen = {k: v.clone() for k, v in template.named_buffers()}
    template.r_max, template.d_max = 1.0, 0.0  # a difference quotient takes r and d for no constants

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        buffers = {k: v.clone() for k, v in frozen.items()}
        return torch.func.functional_call(template, {**dict(zip(names, parameters, strict=True)), **buffers}, (x,))

    assert gradcheck(call, (x.requires_grad_(), *arrays), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(call, (x, *arrays), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_of_the_gradient_knows_the_correction(form: str, dtype: torch.dtype) -> None:
    """The kernels' second derivative against the plain steps', which a subclass of Tensor takes."""

    class Watched(Tensor):
        pass

    x, found = X(4, 4, 5, 5, dtype=torch.float64).to(dtype).contiguous(memory_format=FORMS[form]), []
    for kind in (Tensor, Watched):
        layer = filled(ours.BatchRenorm2d(4, dtype=dtype, **AT_ONCE))
        numbers = x.detach().clone(memory_format=torch.preserve_format).as_subclass(kind).requires_grad_()
        (dx,) = torch.autograd.grad((layer(numbers) ** 3).sum(), numbers, create_graph=True)
        found.append([g.as_subclass(Tensor) for g in torch.autograd.grad((dx**2).sum(), [numbers, *layer.parameters()])])
    assert_same(*found, 1e-9 if dtype == torch.float64 else 2e-3)


def test_autocast_and_half_input() -> None:
    layer, x = filled(ours.BatchRenorm2d(4, **AT_ONCE)), X(5, 4, 6, 3)
    expected = copy.deepcopy(layer)(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(copy.deepcopy(layer)(x), expected, rtol=1e-5, atol=1e-5)
        assert copy.deepcopy(layer)(x.bfloat16()).dtype == torch.bfloat16
    for half in (layer, layer.to(torch.bfloat16)):
        y, *rest = results(copy.deepcopy(half), x.bfloat16())
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)
        assert all(array.isfinite().all() for array in rest)


def test_meta_tensors_pass() -> None:
    assert ours.BatchRenorm2d(4, device="meta")(X(5, 4, 6, 3, device="meta")).shape == (5, 4, 6, 3)


def test_calls_of_one_layer_that_take_different_ways_share_a_backward_pass() -> None:
    layer = filled(ours.BatchRenorm2d(6, running_quantity="unbiased_variance", **AT_ONCE))
    inputs = [X(4, 6, 5, 5), X(2, 6, 2, 1), X(4, 6, 5, 5).to(memory_format=torch.channels_last)]
    apart, expected = copy.deepcopy(layer), torch.zeros(6)
    for x in inputs:
        apart.zero_grad()
        apart(x).pow(3).sum().backward()
        expected += apart.weight.grad
    sum(layer(x).pow(3).sum() for x in inputs).backward()
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-4)
