"""Switchable normalization: what it equals, the authors' checkpoints, its state, and what torch does with a layer."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import crossnorm.torch as ours
from crossnorm import SpecError
from crossnorm.spec import INFERENCE, TRAIN, UNTRACKED, NormSpec, SwitchableNormSpec

RANKS = {1: (5, 4, 9), 2: (3, 4, 5, 2), 3: (2, 4, 3, 2, 3)}
CLASSES = {1: ours.SwitchableNorm1d, 2: ours.SwitchableNorm2d, 3: ours.SwitchableNorm3d}
VARIANTS = [
    {},
    {"use_instance": False},
    {"use_batch": False, "variance": "unbiased_instance"},
    {"use_instance": False, "use_batch": False, "affine": False},
    {"variance": "unbiased", "bias": False},
    {"momentum": None, "pooled": True, "variance": "unbiased_instance"},
]


def data(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * x + torch.arange(shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))).to(dtype)


def make(rank: int = 2, dtype: torch.dtype = torch.float32, training: bool = True, **options: Any) -> Any:
    layer = CLASSES[rank](4, dtype=dtype, **{"use_instance": True, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for array in (*layer.parameters(), *layer.buffers()):
            if array.is_floating_point():
                array.copy_(torch.rand(array.shape, generator=generator, dtype=torch.float64) + 0.5)
    return layer.train(training)


def gradients(layer: Any, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], upstream), *layer.buffers()]


def paper(x: Tensor, mean_weight: Tensor, var_weight: Tensor, eps: float, correction: int) -> Tensor:
    """Equations (3) to (5) as they stand, before the affine step; ``correction`` is taken from the count of an instance."""
    axes = tuple(range(2, x.dim()))
    mean_in, variance_in = x.mean(axes, keepdim=True), x.var(axes, correction=correction, keepdim=True)
    second = variance_in + mean_in**2
    mean_ln, mean_bn = mean_in.mean(1, keepdim=True), mean_in.mean(0, keepdim=True)
    variance_ln, variance_bn = second.mean(1, keepdim=True) - mean_ln**2, second.mean(0, keepdim=True) - mean_bn**2
    w, v = mean_weight.softmax(0), var_weight.softmax(0)
    mean = w[0] * mean_in + w[1] * mean_ln + w[2] * mean_bn
    variance = v[0] * variance_in + v[1] * variance_ln + v[2] * variance_bn
    return (x - mean) / (variance + eps).sqrt()


# What it equals.


@pytest.mark.parametrize("variance", ["biased", "unbiased_instance"])
@pytest.mark.parametrize("rank", RANKS)
def test_the_papers_formulas(rank: int, variance: str) -> None:
    layer, x = make(rank, torch.float64, variance=variance), data(*RANKS[rank], dtype=torch.float64)
    per_channel = (1, -1, *[1] * rank)

    def formulas(x: Tensor) -> Tensor:
        xhat = paper(x, layer.mean_weight, layer.var_weight, layer.eps, int(variance == "unbiased_instance"))
        return xhat * layer.weight.reshape(per_channel) + layer.bias.reshape(per_channel)

    x = x.requires_grad_()
    arrays = [x, *layer.parameters()]
    expected, got = formulas(x), layer(x)
    torch.testing.assert_close(got, expected)
    upstream = data(*x.shape, dtype=torch.float64, seed=3)
    torch.testing.assert_close(torch.autograd.grad(got, arrays, upstream), torch.autograd.grad(expected, arrays, upstream))


@pytest.mark.parametrize(("chosen", "same"), [(0, nn.InstanceNorm2d(4)), (1, nn.GroupNorm(1, 4)), (2, nn.BatchNorm2d(4))])
def test_one_statistic_alone_is_a_method_that_is_known(chosen: int, same: nn.Module) -> None:
    layer, x = ours.SwitchableNorm2d(4), data(3, 4, 5, 6)
    with torch.no_grad():
        for logits in (layer.mean_weight, layer.var_weight):
            logits.fill_(-200.0)[chosen] = 0.0
    torch.testing.assert_close(layer(x), same(x), rtol=1e-5, atol=1e-5)


def test_the_running_statistics_are_batch_norms() -> None:
    layer = ours.SwitchableNorm2d(4, momentum=0.3)
    native = ours.BatchNorm2d(4, momentum=0.3, running_variance="biased")
    for seed in range(3):
        x = data(3, 4, 5, 6, seed=seed)
        layer(x)
        native(x)
    torch.testing.assert_close(layer.running_mean, native.running_mean)
    torch.testing.assert_close(layer.running_var, native.running_var)
    assert layer.num_batches_tracked == 3


def test_pooled_average_is_the_variance_of_everything_seen() -> None:
    layer = ours.SwitchableNorm2d(4, momentum=None, pooled=True, initial_variance=0.0)
    batches = [data(3, 4, 5, 6, seed=seed) + 5 * seed for seed in range(4)]
    for x in batches:
        layer(x)
    everything = torch.cat(batches)
    torch.testing.assert_close(layer.running_mean, everything.mean((0, 2, 3)))
    torch.testing.assert_close(layer.running_var, everything.var((0, 2, 3), correction=0))


def test_pooled_with_momentum_adds_the_distance_of_the_means() -> None:
    layer, x = ours.SwitchableNorm2d(4, momentum=0.25, pooled=True), data(3, 4, 5, 6)
    layer(x)
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    torch.testing.assert_close(layer.running_mean, 0.25 * mean)
    torch.testing.assert_close(layer.running_var, 0.75 + 0.25 * (variance + 0.75 * mean.square()))


# The authors' checkpoints. Their shapes: parameters (1, C, 1, ...), running statistics (1, C, 1), or (1, C) both for rank 1.


def authors_checkpoint(rank: int) -> dict[str, Tensor]:
    random = np.random.default_rng(rank)
    affine = (1, 4, *[1] * rank) if rank > 1 else (1, 4)
    running = (1, 4, 1) if rank > 1 else (1, 4)
    statistics = (3,) if rank > 1 else (2,)
    shapes = {"weight": affine, "bias": affine, "mean_weight": statistics, "var_weight": statistics,
              "running_mean": running, "running_var": running}  # fmt: skip
    return {name: torch.tensor(random.uniform(0.5, 2, shape), dtype=torch.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("rank", RANKS)
def test_the_authors_checkpoint_loads_and_infers_the_same(rank: int) -> None:
    checkpoint = authors_checkpoint(rank)
    kind: Any = {"variance": "unbiased_instance"} if rank > 1 else {"variance": "unbiased"}
    layer = CLASSES[rank](4, momentum=0.1, initial_variance=0.0, **kind).eval()
    model = nn.Sequential(layer)
    given = {f"0.{name}": array for name, array in checkpoint.items()}
    model.load_state_dict(given, strict=True)
    assert given["0.weight"].dim() > 1  # the caller's dictionary is as it was
    assert layer.weight.shape == layer.running_mean.shape == (4,)
    assert layer.num_batches_tracked == 0

    x = data(*RANKS[rank]) if rank > 1 else data(5, 4)
    weights, variance_weights = (checkpoint[name].softmax(0) for name in ("mean_weight", "var_weight"))
    running = (1, 4, *[1] * rank) if rank > 1 else (1, 4)
    means, variances = [checkpoint["running_mean"].reshape(running)], [checkpoint["running_var"].reshape(running)]
    if rank > 1:
        axes = tuple(range(2, x.dim()))
        mean, variance = x.mean(axes, keepdim=True), x.var(axes, keepdim=True)
        layer_mean = mean.mean(1, keepdim=True)
        means = [mean, layer_mean, *means]
        variances = [variance, (variance + mean**2).mean(1, keepdim=True) - layer_mean**2, *variances]
    else:
        means, variances = [x.mean(1, keepdim=True), *means], [x.var(1, keepdim=True), *variances]
    mean = sum(weight * each for weight, each in zip(weights, means, strict=True))
    variance = sum(weight * each for weight, each in zip(variance_weights, variances, strict=True))
    expected = (x - mean) / (variance + 1e-5).sqrt() * checkpoint["weight"] + checkpoint["bias"]
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_our_own_checkpoint_needs_its_counter_and_its_shapes() -> None:
    layer = make()
    state = layer.state_dict()
    twin = ours.SwitchableNorm2d(4)
    layer.num_batches_tracked.fill_(7)
    twin.load_state_dict(state)
    assert twin.num_batches_tracked == 7
    torch.testing.assert_close(twin.state_dict(), state)
    with pytest.raises(RuntimeError, match="size mismatch"):
        twin.load_state_dict({**state, "weight": torch.ones(2, 2)})
    del state["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        twin.load_state_dict(state)


def test_names_order_and_initial_values() -> None:
    layer = ours.SwitchableNorm2d(4)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias", "mean_weight", "var_weight"]
    assert [name for name, _ in layer.named_buffers()] == ["running_mean", "running_var", "num_batches_tracked"]
    arrays = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    names = {**ours.switchable_norm.PARAMETERS, **ours.switchable_norm.STATE}
    assert list(names.values()) == list(arrays)
    for spec in (layer.spec, SwitchableNormSpec(channels=4, last_gamma=True, initial_variance=0.25)):
        arrays = ours.layer(spec).state_dict()
        for array in (*spec.parameters, *spec.state):
            assert torch.equal(arrays[names[array.name]].double(), torch.full(array.shape, array.initial).double())
    changed = make(last_gamma=True, initial_variance=0.25)
    changed.reset_parameters()
    torch.testing.assert_close(changed.state_dict(), arrays)


# The specification.


@pytest.mark.parametrize(
    "spec",
    [
        SwitchableNormSpec(channels=4),
        SwitchableNormSpec(channels=4, eps=1e-3, decay=0.997, use_instance=False, variance="unbiased", scale=False),
        SwitchableNormSpec(channels=4, offset=False, use_batch=False, variance="unbiased_instance", last_gamma=True),
        SwitchableNormSpec(channels=4, scale=False, offset=False, decay=None, pooled=True, initial_variance=0.0),
    ],
    ids=repr,
)
@pytest.mark.parametrize("rank", RANKS)
def test_specification_round_trip(spec: SwitchableNormSpec, rank: int) -> None:
    layer = ours.layer(spec, rank=rank)
    assert type(layer) is CLASSES[rank]
    assert layer.spec == spec
    shapes = {name: tuple(array.shape) for name, array in layer.state_dict().items()}
    assert len(shapes) == len(spec.parameters) + len(spec.state)


def test_attributes_are_the_truth() -> None:
    layer = make(eps=1e-3, momentum=0.5)
    layer.eps, layer.momentum, layer.variance, layer.pooled = 0.1, 1.0, "unbiased", True
    assert layer.spec == SwitchableNormSpec(channels=4, eps=0.1, decay=0.0, variance="unbiased", pooled=True)
    x = data(3, 4, 5, 2)
    twin = ours.layer(layer.spec)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), twin(x))
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)))


def test_representation() -> None:
    assert repr(ours.SwitchableNorm2d(4)) == "SwitchableNorm2d(4, eps=1e-05, momentum=0.1, affine=True)"
    assert repr(ours.SwitchableNorm1d(4, bias=False, pooled=True)) == (
        "SwitchableNorm1d(4, eps=1e-05, momentum=0.1, affine=True, bias=False, use_instance=False, pooled=True)"
    )


# State.


def state_of(layer: nn.Module) -> dict[str, Tensor]:
    return {name: array.clone() for name, array in layer.state_dict().items()}


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (0, 4, 0, 0)])
def test_an_empty_batch_changes_no_state(shape: tuple[int, ...]) -> None:
    layer = make()
    before = state_of(layer)
    x = torch.zeros(shape, requires_grad=True)
    y = layer(x)
    assert y.shape == shape
    for found in torch.autograd.grad(y.sum(), [x, *layer.parameters()]):
        assert not found.any()
    assert not layer.eval()(x).numel()
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("initial_variance", [0.0, 1.0])
def test_evaluation_before_training_is_finite(initial_variance: float) -> None:
    layer = ours.SwitchableNorm2d(4, initial_variance=initial_variance).eval()
    for x in (data(3, 4, 5, 2), torch.zeros(3, 4, 5, 2), data(1, 4, 1, 1)):
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (2, 4, 1, 1), (1, 4, 3, 3)])
@pytest.mark.parametrize("variance", ["biased", "unbiased_instance", "unbiased"])
def test_few_values_are_finite(shape: tuple[int, ...], variance: str) -> None:
    layer = make(variance=variance)
    for array in gradients(layer, data(*shape)):
        assert array.isfinite().all()
    assert not any(buffer.requires_grad for buffer in layer.buffers())


def test_evaluation_changes_no_state() -> None:
    layer = make(training=False)
    before = state_of(layer)
    layer(data(3, 4, 5, 2))
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_without_batch_statistics_training_and_evaluation_are_the_same() -> None:
    layer, x = make(use_batch=False), data(3, 4, 5, 2)
    assert list(layer.buffers()) == []
    assert torch.equal(layer(x), layer.eval()(x))
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))  # samples do not meet


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rank", ours.InputError), ("channels", ours.ShapeError), ("integer", ours.DtypeError), ("dtype", ours.DtypeError),
        ("eps", SpecError), ("momentum", SpecError), ("no_mean", ours.ArgumentError), ("no_statistics", ours.ArgumentError),
        ("more_logits", ours.ArgumentError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_bad_input_raises_and_changes_nothing(name: str, kind: type[Exception], training: bool) -> None:
    layer, x = make(training=training), data(3, 4, 5, 2)
    inputs = {"rank": x[0], "channels": x[:, :3], "integer": x.int(), "dtype": x.double()}
    changes: dict[str, dict[str, Any]] = {
        "eps": {"eps": -1.0}, "momentum": {"momentum": 1.5}, "no_mean": {"running_mean": None},
        "no_statistics": {"running_mean": None, "running_var": None}, "more_logits": {"use_instance": False},
    }  # fmt: skip
    for attribute, value in changes.get(name, {}).items():
        setattr(layer, attribute, value)
    before = state_of(layer)
    with pytest.raises(kind):
        layer(inputs.get(name, x))
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("rank", RANKS)
def test_each_class_takes_its_ranks(rank: int) -> None:
    layer = CLASSES[rank](4)
    ranks = {rank + 2, 2} if rank == 1 else {rank + 2}
    for dimensions in range(1, 6):
        x = torch.randn([4] * dimensions)
        if dimensions in ranks:
            assert layer(x).shape == x.shape
        else:
            with pytest.raises(ours.InputError, match=f"SwitchableNorm{rank}d"):
                layer(x)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_features": 0}, {"eps": -1e-5}, {"eps": float("nan")}, {"momentum": 1.1}, {"variance": "half"},
        {"initial_variance": -2.0}, {"use_batch": 1}, {"pooled": None}, {"affine": "yes"},
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ours.ArgumentError, match=r"SwitchableNormSpec: .*; "):
        ours.SwitchableNorm2d(**{"num_features": 4, **arguments})


# The pure function.


@pytest.mark.parametrize("mode", [TRAIN, INFERENCE, UNTRACKED], ids=["train", "inference", "untracked"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_the_function_agrees_with_the_layer_and_mutates_nothing(options: dict[str, Any], mode: Any) -> None:
    layer, x = make(training=mode.use_batch_statistics, **options), data(3, 4, 5, 2)
    spec, arrays = layer.spec, state_of(layer)
    parameters = {array.name: arrays[ours.switchable_norm.PARAMETERS[array.name]] for array in spec.parameters}
    state = {array.name: arrays[ours.switchable_norm.STATE[array.name]] for array in spec.state}
    before = {name: array.clone() for name, array in {**parameters, **state}.items()}
    y, new = ours.functional.switchable_norm(spec, x, parameters, state, mode)
    torch.testing.assert_close({**parameters, **state}, before, rtol=0, atol=0)
    assert torch.equal(layer(x), y)
    if mode != UNTRACKED:
        assert set(new) == {array.name for array in spec.state}
        for name, array in new.items():
            assert torch.equal(array, getattr(layer, ours.switchable_norm.STATE[name]))
    else:
        torch.testing.assert_close(new, state, rtol=0, atol=0)


def test_the_function_refuses_arrays_of_other_names() -> None:
    spec: NormSpec = SwitchableNormSpec(channels=4, use_batch=False)
    logits = {"mean_logits": torch.ones(2), "variance_logits": torch.ones(2)}
    with pytest.raises(SpecError, match="gamma"):
        ours.functional.switchable_norm(spec, data(3, 4, 5), {**logits, "gamma": torch.ones(4)}, {}, TRAIN)


# Whatever torch does with a layer gives the same as a plain call: (layer, x) -> tensors to compare with `gradients`.


def compiled(backend: str, **options: Any) -> Callable[[Any, Tensor], list[Tensor]]:
    def run(layer: Any, x: Tensor) -> list[Tensor]:
        torch._dynamo.reset()
        return gradients(torch.compile(layer, fullgraph=True, backend=backend, **options), x)

    run.__name__ = f"compiled_{backend}" + "_dynamic" * bool(options)
    return run


def script(layer: Any, x: Tensor) -> list[Tensor]:
    return [*gradients(torch.jit.script(layer), x), *layer.buffers()]


def trace(layer: Any, x: Tensor) -> list[Tensor]:
    traced = torch.jit.trace(copy.deepcopy(layer), x, check_trace=False)  # a call, which moves the running statistics
    traced.load_state_dict(layer.state_dict())
    return gradients(traced, x)


def deep_copy(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(copy.deepcopy(layer), x)


def pickled(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(pickle.loads(pickle.dumps(layer)), x)


def saved(layer: Any, x: Tensor) -> list[Tensor]:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return gradients(torch.load(file, weights_only=False), x)


def channels_last(layer: Any, x: Tensor) -> list[Tensor]:
    form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    x = x.contiguous(memory_format=form)
    assert copy.deepcopy(layer)(x).is_contiguous(memory_format=form)
    return gradients(layer, x)


def strided(layer: Any, x: Tensor) -> list[Tensor]:
    wider = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wider[..., ::2] = x
    return gradients(layer, wider[..., ::2])


def transposed(layer: Any, x: Tensor) -> list[Tensor]:
    return gradients(layer, x.transpose(0, 1).contiguous().transpose(0, 1))


def accumulated(layer: Any, x: Tensor) -> list[Tensor]:
    """The same graph walked twice."""
    x = x.detach().requires_grad_()
    y = layer(x)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    torch.autograd.grad(y, [x, *layer.parameters()], upstream, retain_graph=True)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], upstream), *layer.buffers()]


def differentiable(layer: Any, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], upstream, create_graph=True), *layer.buffers()]


def partly(layer: Any, x: Tensor) -> list[Tensor]:
    """Each gradient alone."""
    x = x.detach().requires_grad_()
    arrays = [x, *layer.parameters()]
    found = []
    for wanted in arrays:
        for array in arrays:
            array.requires_grad_(array is wanted)
        y = torch.func.functional_call(layer, {name: buffer.clone() for name, buffer in layer.named_buffers()}, (x,))
        upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
        found += torch.autograd.grad(y, [wanted], upstream)
    return [layer(x).detach(), *found, *layer.buffers()]


COMPILED = [compiled("eager"), compiled("aot_eager"), compiled("eager", dynamic=True)]
WAYS = [
    script, trace, deep_copy, pickled, saved, channels_last, strided, transposed, accumulated, differentiable, partly,
]  # fmt: skip


def runs() -> Iterator[Any]:
    """(rank, options, training, way)."""
    for training in (True, False):
        mode = "train" if training else "eval"
        for way in (*WAYS, *COMPILED):
            for options in VARIANTS:
                yield pytest.param(2, options, training, way, id=f"{way.__name__}-{mode}-{options}")
        for way in WAYS:
            for rank in (1, 3):
                if (rank, way) != (1, channels_last):
                    yield pytest.param(rank, {}, training, way, id=f"{way.__name__}-{mode}-rank-{rank}")


@pytest.mark.filterwarnings("ignore")  # torch's own, from scripting, tracing and compiling
@pytest.mark.parametrize(("rank", "options", "training", "way"), list(runs()))
def test_every_way_to_run_it_is_the_same(rank: int, options: dict[str, Any], training: bool, way: Any) -> None:
    x = data(*RANKS[rank])
    expected, got = gradients(make(rank, training=training, **options), x), way(make(rank, training=training, **options), x)
    assert len(got) == len(expected)
    for mine, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 40, 80])
def test_some_samples_at_a_time_are_as_all_of_them(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = data(3, 4, 5, 2).contiguous(memory_format=torch.channels_last)
    expected = gradients(make(), x)
    monkeypatch.setattr(ours._instances, "BLOCK", block)
    for mine, plain in zip(gradients(make(), x), expected, strict=True):
        assert torch.equal(mine, plain)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_inductor(training: bool) -> None:
    torch._dynamo.reset()
    x = data(3, 4, 5, 2)
    got = gradients(torch.compile(make(training=training), fullgraph=True), x)
    for mine, plain in zip(got, gradients(make(training=training), x), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_export_with_any_batch_size(training: bool) -> None:
    layer, x = make(training=training), data(3, 4, 5, 2)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), strict=False)
    longer = torch.cat([x, x + 1])
    torch.testing.assert_close(program.module(check_guards=False)(longer), layer(longer))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=str)
def test_half_precision(dtype: torch.dtype, form: torch.memory_format) -> None:
    x = data(3, 4, 5, 6).to(dtype).contiguous(memory_format=form)
    expected = gradients(make(), x.float())
    for layer in (make(), make().to(dtype)):
        got = gradients(layer, x)
        assert got[0].dtype == got[1].dtype == dtype
        assert [array.dtype for array in got[2:]] == [array.dtype for array in (*layer.parameters(), *layer.buffers())]
        for mine, plain in zip(got, expected, strict=True):
            torch.testing.assert_close(mine.to(plain.dtype), plain, rtol=5e-2, atol=5e-2)


def test_autocast() -> None:
    x = data(3, 4, 5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        full, half = make()(x), make()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(full, make()(x), rtol=0, atol=0)
    torch.testing.assert_close(half.float(), full, rtol=5e-2, atol=5e-2)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, from its first forward mode
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_derivatives_of_every_kind(options: dict[str, Any], form: torch.memory_format) -> None:
    layer = make(dtype=torch.float64, **options)
    names = [name for name, _ in layer.named_parameters()]
    x = data(2, 4, 3, 3, dtype=torch.float64).contiguous(memory_format=form).requires_grad_()

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        spec, arrays = layer.spec, dict(zip(names, parameters, strict=True))
        given = {name: arrays[attribute] for name, attribute in ours.switchable_norm.PARAMETERS.items() if attribute in arrays}
        state = {array.name: torch.ones(array.shape, dtype=torch.float64) for array in spec.state}
        return ours.functional.switchable_norm(spec, x, given, state, UNTRACKED)[0]

    arrays = (x, *layer.parameters())
    assert gradcheck(call, arrays, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(call, arrays, fast_mode=True)


def test_transforms_of_a_layer_that_evaluates() -> None:
    layer, x = make(training=False), data(3, 4, 5, 2)
    batches = torch.stack([x, 2 * x + 1])
    torch.testing.assert_close(torch.func.vmap(layer)(batches), torch.stack([layer(batch) for batch in batches]))

    def loss(x: Tensor) -> Tensor:
        return (layer(x) ** 3).sum()

    expected = torch.autograd.functional.jacobian(loss, x)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected, rtol=1e-4, atol=1e-4)
    _, tangent = torch.func.jvp(loss, (x,), (torch.cos(x),))
    torch.testing.assert_close(tangent, (expected * torch.cos(x)).sum(), rtol=1e-4, atol=1e-3)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, torch.cos(x)))).tangent
    torch.testing.assert_close(dual, tangent, rtol=1e-4, atol=1e-3)


def test_a_transform_of_a_tracked_layer_that_trains_raises_and_changes_nothing() -> None:
    layer, x = make(), data(3, 4, 5, 2)
    before = state_of(layer)
    for transformed in (torch.func.grad(lambda x: layer(x).square().sum()), lambda x: torch.func.vmap(layer)(x[None])):
        with pytest.raises(RuntimeError, match=r"in-?place"):
            transformed(x)
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)


def test_per_sample_gradients_of_the_function() -> None:
    layer, x = make(use_batch=False), data(3, 4, 5, 2)
    parameters = {name: array.detach() for name, array in layer.named_parameters()}

    def loss(parameters: Any, x: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, parameters, (x[None],)) ** 3).sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for name, array in found.items():
        for sample, of_sample in zip(x, array, strict=True):
            expected = torch.autograd.grad(loss(dict(layer.named_parameters()), sample), layer.get_parameter(name))[0]
            torch.testing.assert_close(of_sample, expected, rtol=1e-4, atol=1e-3)


def test_devices_without_values() -> None:
    layer = ours.SwitchableNorm2d(4, device="meta")
    assert layer(torch.empty(2, 4, 3, 3, device="meta")).shape == (2, 4, 3, 3)
    layer.load_state_dict(authors_checkpoint(2), assign=True)
    assert layer(data(3, 4, 5, 2)).isfinite().all()
