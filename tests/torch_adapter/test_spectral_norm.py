"""Spectral normalization: when it iterates, what it converges to, and torch's own two as a step-by-step comparison."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import crossnorm
import crossnorm.torch as ours
from crossnorm import SpecError, Unsupported

NATIVES = {"torch": parametrizations.spectral_norm, "torch_hook": nn.utils.spectral_norm}
LAYERS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "convolution": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3), (2, 6, 5, 5)),
    "embedding": (lambda: nn.Embedding(6, 4), None),
}


def vectors(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    held: Any = module.parametrizations
    return held.weight[0]._u, held.weight[0]._v


def like(peer: str, module: nn.Module) -> nn.Module:
    """The module, reparametrized with the fields of torch's own."""
    fields = crossnorm.preset(peer, "spectral_norm", shape=1).to_dict()
    return ours.spectral_norm(module, **{k: v for k, v in fields.items() if k not in ("method", "version", "shape", "scale")})


@pytest.mark.parametrize("peer", NATIVES)
@pytest.mark.parametrize("kind", LAYERS)
def test_equals_the_native_step_by_step_from_its_checkpoint(kind: str, peer: str) -> None:
    """In float64, where no rounding hides another convention; how exact float32 is, the reference says."""
    torch.manual_seed(3)
    make, shape = LAYERS[kind]
    native = NATIVES[peer](make().double())
    mine = like(peer, make().double())
    mine.load_state_dict(native.state_dict(), strict=True)
    for training in (False, True, True, False, True):
        x = torch.randint(6, (5,)) if shape is None else torch.randn(shape, dtype=torch.float64)
        results = []
        for module in (native, mine):
            module.train(training).zero_grad()
            with parametrize.cached():
                y = module(x)
            y.square().sum().backward()
            raw = module.weight_orig if hasattr(module, "weight_orig") else module.parametrizations.weight.original
            results.append((y, raw.grad))
        for got, expected in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        theirs = (native.weight_u, native.weight_v) if peer == "torch_hook" else vectors(native)
        for got, expected in zip(vectors(mine), theirs, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_the_native_loads_our_checkpoint() -> None:
    mine, native = like("torch", nn.Linear(6, 4)), parametrizations.spectral_norm(nn.Linear(6, 4))
    native.load_state_dict(mine.state_dict(), strict=True)
    torch.testing.assert_close(native.eval().weight, mine.eval().weight)


@pytest.mark.parametrize("peer", NATIVES)
def test_checkpoints_without_their_v_in_a_model_and_in_a_copy(peer: str) -> None:
    native = nn.Sequential(nn.ReLU(), NATIVES[peer](nn.Linear(6, 4)))
    native(torch.randn(5, 6))
    mine = copy.deepcopy(ours.spectral_norm(nn.Sequential(nn.ReLU(), nn.Linear(6, 4)), "1.weight", stored="u"))
    mine.load_state_dict(native.state_dict(), strict=True)
    state = native.state_dict()
    raw = state.get("1.weight_orig", state.get("1.parametrizations.weight.original"))
    u = state.get("1.weight_u", state.get("1.parametrizations.weight.0._u"))
    sigma = torch.linalg.vector_norm(raw.T @ u)
    torch.testing.assert_close(mine.eval()[1].weight, raw / sigma)


def test_checkpoints_of_other_rows_are_refused_with_the_remedy() -> None:
    native = parametrizations.spectral_norm(nn.Embedding(6, 4))
    mine = ours.spectral_norm(nn.Embedding(6, 4))
    before = copy.deepcopy(vectors(mine))
    with pytest.raises(RuntimeError, match="embedding_row='input'"):
        mine.load_state_dict(native.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(vectors(mine), before, strict=True))
    ours.spectral_norm(nn.Embedding(6, 4), embedding_row="input").load_state_dict(native.state_dict(), strict=True)
    transposed = ours.spectral_norm(nn.ConvTranspose1d(6, 4, 3), transposed_row="input")
    with pytest.raises(RuntimeError, match="transposed_row='output'"):
        transposed.load_state_dict(parametrizations.spectral_norm(nn.ConvTranspose1d(6, 4, 3)).state_dict())


@pytest.mark.parametrize("always", ["training", "always"])
@pytest.mark.parametrize("stored", ["u", "uv"])
def test_iterates_once_for_each_training_pass_and_never_because_of_reading(stored: Any, always: Any) -> None:
    torch.manual_seed(0)
    module = ours.spectral_norm(nn.Linear(6, 4), stored=stored, warm_up=0, iterate=always)
    start = copy.deepcopy(module.state_dict())
    for training in (True, False):
        module.train(training)
        assert torch.equal(module.weight, module.weight)
    module.eval()(torch.ones(1, 6))
    assert all(torch.equal(array, start[name]) for name, array in module.state_dict().items())

    spec = module.parametrizations.weight[0].spec
    raw = module.parametrizations.weight.original.detach()
    state = {"u": start["parametrizations.weight.0._u"]}
    if stored == "uv":
        state["v"] = start["parametrizations.weight.0._v"]
    for _ in range(3):
        expected, state = ours.functional.spectral_norm(spec, raw, {}, state, crossnorm.TRAIN)
        got = module.train()(torch.eye(6)) - module.bias
        torch.testing.assert_close(got.T, expected)
        torch.testing.assert_close(module.weight, expected)  # as the pass computed it
        assert torch.equal(vectors(module)[0], state["u"])
    evaluated, _ = ours.functional.spectral_norm(spec, raw, {}, state, crossnorm.INFERENCE)
    torch.testing.assert_close(module.eval().weight, evaluated)


def test_always_iterates_in_evaluation_too_and_keeps_nothing() -> None:
    torch.manual_seed(0)
    module = ours.spectral_norm(nn.Linear(6, 4), iterate="always", warm_up=0, iterations=200).eval()
    start = copy.deepcopy(module.state_dict())
    assert torch.linalg.matrix_norm(module.weight, 2).item() == pytest.approx(1, abs=1e-5)
    assert all(torch.equal(array, start[name]) for name, array in module.state_dict().items())


@pytest.mark.parametrize("stored", ["u", "uv"])
def test_no_iterations_no_change(stored: Any) -> None:
    module = ours.spectral_norm(nn.Linear(6, 4), iterations=0, stored=stored)
    start = copy.deepcopy(module.state_dict())
    module(torch.ones(1, 6))
    assert all(torch.equal(array, start[name]) for name, array in module.state_dict().items())


@pytest.mark.parametrize("order", ["u_first", "v_first"])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("make", [make for make, _ in LAYERS.values()], ids=LAYERS)
def test_converges_to_the_largest_singular_value(make: Any, scale: float, order: Any) -> None:
    torch.manual_seed(1)
    module = make()
    with torch.no_grad():
        module.weight.mul_(scale)
    raw = module.weight.detach().double()
    rows = raw.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d | nn.Embedding) else raw
    largest = torch.linalg.svdvals(rows.flatten(1))[0]
    ours.spectral_norm(module, iteration_order=order, warm_up=500, eps=0.0)
    torch.testing.assert_close(module.weight.double() * largest, raw, rtol=1e-6, atol=0)


def test_the_default_warm_up_makes_evaluation_right_before_training() -> None:
    torch.manual_seed(0)
    module = ours.spectral_norm(nn.Linear(64, 32)).eval()
    assert 0.97 < torch.linalg.matrix_norm(module.weight, 2).item() < 1.1


def test_the_gradient_goes_through_sigma_and_not_through_the_vectors() -> None:
    torch.manual_seed(0)
    module = ours.spectral_norm(nn.Linear(6, 4).double()).eval()
    upstream = torch.randn(4, 6, dtype=torch.float64)
    raw, (u, v) = module.parametrizations.weight.original, vectors(module)
    module.weight.backward(upstream)
    w = raw.detach()
    sigma = u @ w @ v
    torch.testing.assert_close(raw.grad, upstream / sigma - (upstream * w).sum() / sigma**2 * torch.outer(u, v))
    assert not u.requires_grad


def test_a_sigma_of_0_counts_as_1_and_a_very_small_one_does_not() -> None:
    spec = crossnorm.SpectralNormSpec(shape=(2, 2))
    weight = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    state = {"u": torch.tensor([0.0, 1.0]), "v": torch.tensor([1.0, 0.0])}
    y, _ = ours.functional.spectral_norm(spec, weight, {}, state, crossnorm.INFERENCE)
    assert torch.equal(y, weight)
    # u' W v is 1e-50, beyond the range of float32, and the effective weight 1e30 is not.
    short = {"u": torch.tensor([1e-15, 0.0]), "v": torch.tensor([1e-15, 0.0])}
    y, _ = ours.functional.spectral_norm(spec, weight * 0.5e-20, {}, short, crossnorm.INFERENCE)
    torch.testing.assert_close(y, weight * 0.5e30)


def test_iterates_in_single_precision_under_autocast() -> None:
    torch.manual_seed(0)
    module = ours.spectral_norm(nn.Linear(64, 32), warm_up=0)
    twin, x = copy.deepcopy(module), torch.ones(2, 64)
    twin(x)
    with torch.autocast("cpu", torch.bfloat16):
        module(x)
    for got, expected in zip(vectors(module), vectors(twin), strict=True):
        assert torch.equal(got, expected)


def test_a_checkpoint_without_v_takes_the_place_of_the_v_of_training() -> None:
    torch.manual_seed(0)
    module, other = (ours.spectral_norm(nn.Linear(6, 4), stored="u", warm_up=0) for _ in range(2))
    module(torch.ones(2, 6))
    module.load_state_dict(other.state_dict())
    torch.testing.assert_close(module.train().weight, other.eval().weight)


@pytest.mark.parametrize("stored", ["u", "uv"])
def test_zeros_stay_zeros_with_a_finite_gradient_and_vectors(stored: Any) -> None:
    module = nn.Linear(6, 4)
    nn.init.zeros_(module.weight)
    ours.spectral_norm(module, stored=stored)
    for training in (True, False):
        module.train(training)(torch.ones(2, 6)).sum().backward()
        assert not module.weight.any()
    assert torch.equal(module.parametrizations.weight.original.grad, torch.full((4, 6), 4.0))
    assert torch.linalg.vector_norm(vectors(module)[0]).item() == pytest.approx(1)


@pytest.mark.parametrize("stored", ["u", "uv"])
def test_dtypes_devices_copies_and_checkpoints_of_the_vectors(stored: Any) -> None:
    module = ours.spectral_norm(nn.Linear(6, 4).to(torch.bfloat16), stored=stored)
    assert vectors(module)[0].dtype == torch.float32
    assert module(torch.ones(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    twin = copy.deepcopy(module).double()
    assert twin(torch.ones(2, 6, dtype=torch.float64)).dtype == torch.float64
    assert twin.to("meta")(torch.ones(2, 6, device="meta", dtype=torch.float64)).shape == (2, 4)
    wanted = {"_u", "_v"} if stored == "uv" else {"_u"}
    assert {name.rpartition(".")[2] for name in module.state_dict() if "._" in name} == wanted


@pytest.mark.parametrize("stored", ["u", "uv"])
def test_two_passes_before_the_backward_pass_each_have_their_vectors(stored: Any) -> None:
    torch.manual_seed(0)
    module = ours.spectral_norm(nn.Linear(6, 4), stored=stored, warm_up=0)
    x, gradients = torch.randn(5, 6), []
    twin = copy.deepcopy(module)
    losses = [module(x).square().sum() for _ in range(2)]
    sum(losses).backward()
    for _ in range(2):
        twin.zero_grad()
        twin(x).square().sum().backward()
        gradients.append(twin.parametrizations.weight.original.grad.clone())
    torch.testing.assert_close(module.parametrizations.weight.original.grad, gradients[0] + gradients[1])


def test_compiles_with_v_found_from_u() -> None:
    torch._dynamo.reset()
    module = ours.spectral_norm(nn.Linear(6, 4), stored="u", warm_up=0)
    twin, x = copy.deepcopy(module), torch.randn(2, 6)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for training in (True, True, False):
        module.train(training)
        twin.train(training)
        torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(vectors(module)[0], vectors(twin)[0])


def test_what_would_never_iterate_is_refused() -> None:
    module = nn.MultiheadAttention(4, 2)
    with pytest.raises(Unsupported, match="out_proj"):
        ours.spectral_norm(module, "out_proj.weight")
    assert not parametrize.is_parametrized(module.out_proj)
    ours.spectral_norm(module, "in_proj_weight", warm_up=0)
    before = module.parametrizations.in_proj_weight[0]._u.clone()
    x = torch.randn(3, 2, 4)
    module(x, x, x)
    assert not torch.equal(before, module.parametrizations.in_proj_weight[0]._u)


@pytest.mark.parametrize("fields", [{"iterations": -1}, {"iterations": 1.5}, {"warm_up": -1}, {"iterate": "sometimes"},
                                    {"stored": "v"}, {"stored": "u", "iteration_order": "u_first"}])  # fmt: skip
def test_bad_fields(fields: dict[str, Any]) -> None:
    module = nn.Linear(6, 4)
    with pytest.raises(SpecError):
        ours.spectral_norm(module, **fields)
    assert type(module) is nn.Linear
    assert not module._forward_pre_hooks
