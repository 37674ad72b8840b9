"""Weight normalization: torch's own two, checkpoints, lengths of zero, and the initialisation from data."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import crossnorm.torch as ours
from crossnorm.reference.weight_norm import initialize


def old_hook(module: nn.Module, **arguments: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        hooked: nn.Module = nn.utils.weight_norm(module, **arguments)
    return hooked


NATIVES: dict[str, Callable[..., Any]] = {"torch": parametrizations.weight_norm, "torch_hook": old_hook}
LAYERS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "convolution": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
    "embedding": (lambda: nn.Embedding(6, 4), None),
}
ROWS: dict[str, Any] = {"transposed_row": "input", "embedding_row": "input"}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("peer", NATIVES)
@pytest.mark.parametrize("kind", LAYERS)
def test_equals_the_native_from_its_checkpoint(kind: str, peer: str, whole: bool) -> None:
    """In float64, where no rounding hides another convention; how exact float32 is, the reference says."""
    torch.manual_seed(3)
    make, shape = LAYERS[kind]
    native = NATIVES[peer](make().double(), **({"dim": None} if whole else {}))
    for parameter in native.parameters():
        nn.init.uniform_(parameter, -1, 2)
    mine = ours.weight_norm(make().double(), norm_over="whole" if whole else "row", **ROWS)
    mine.load_state_dict(native.state_dict(), strict=True)
    x = torch.randint(6, (5,)) if shape is None else torch.randn(shape, dtype=torch.float64)
    results = []
    for module in (native, mine):
        y = module(x)
        y.square().sum().backward()
        held = module.parametrizations.weight if hasattr(module, "parametrizations") else None
        g, v = (held.original0, held.original1) if held else (module.weight_g, module.weight_v)
        results.append((y, g.grad, v.grad))
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_starts_as_the_native_does_and_is_loaded_by_it(kind: str) -> None:
    make, _ = LAYERS[kind]
    module = make()
    mine, native = ours.weight_norm(copy.deepcopy(module), **ROWS), parametrizations.weight_norm(copy.deepcopy(module))
    assert list(mine.state_dict()) == list(native.state_dict())
    for name, array in native.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], array)
    native.load_state_dict(mine.state_dict(), strict=True)
    torch.testing.assert_close(mine.weight, module.weight)


def test_a_checkpoint_deep_inside_a_copied_model() -> None:
    native = nn.Sequential(nn.ReLU(), old_hook(nn.Linear(6, 4)))
    mine = copy.deepcopy(ours.weight_norm(nn.Sequential(nn.ReLU(), nn.Linear(6, 4)), "1.weight"))
    mine.load_state_dict(native.state_dict(), strict=True)
    x = torch.randn(5, 6)
    torch.testing.assert_close(mine(x), native(x))


def test_checkpoints_of_other_rows_are_refused_with_the_remedy() -> None:
    # As many inputs as outputs: the shape of the length tells them apart all the same.
    for make, field in (lambda: nn.ConvTranspose1d(4, 4, 3), "transposed_row"), (lambda: nn.Embedding(4, 4), "embedding_row"):
        native, mine = parametrizations.weight_norm(make()), ours.weight_norm(make())
        with pytest.raises(RuntimeError, match=f"{field}='input'"):
            mine.load_state_dict(native.state_dict())
    whole = ours.weight_norm(nn.Linear(3, 4), norm_over="whole")
    with pytest.raises(RuntimeError, match="the fields that it was written with"):
        whole.load_state_dict(parametrizations.weight_norm(nn.Linear(3, 4)).state_dict())


def test_where_the_length_starts() -> None:
    module = nn.Linear(6, 4)
    raw = module.weight.detach().clone()
    norms = torch.linalg.vector_norm(raw, dim=1, keepdim=True)
    for initial, expected in ("norm", raw), ("data", raw), ("ones", raw / norms):
        torch.testing.assert_close(ours.weight_norm(copy.deepcopy(module), initial_scale=initial).weight, expected)
    without = ours.weight_norm(module, scale=False)
    torch.testing.assert_close(without.weight, raw / norms)
    assert torch.equal(without.parametrizations.weight.original, raw)


@pytest.mark.parametrize("initial", ["norm", "ones"])
def test_an_assignment_sets_length_and_direction(initial: Any) -> None:
    module = ours.weight_norm(nn.ConvTranspose1d(4, 6, 3, groups=2), initial_scale=initial)
    assert module.parametrizations.weight.original0.shape == (1, 6, 1)
    value = torch.randn(4, 3, 3)
    module.weight = value.clone()
    torch.testing.assert_close(module.weight, value)


@pytest.mark.parametrize("whole", ["row", "whole"])
def test_zeros_stay_zeros_and_can_learn(whole: Any) -> None:
    module = nn.Linear(6, 4)
    with torch.no_grad():
        module.weight[1 if whole == "row" else slice(None)] = 0
    ours.weight_norm(module, norm_over=whole)
    module(torch.ones(2, 6)).sum().backward()
    held = module.parametrizations.weight
    assert not module.weight[1].any()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    torch.testing.assert_close(held.original1.grad[1], torch.full((6,), 2.0), rtol=0, atol=0)


def test_frozen_weights_stay_frozen() -> None:
    module = nn.Linear(3, 4).requires_grad_(False)
    assert not any(p.requires_grad for p in ours.weight_norm(module).parameters())


# Initialisation from data.


INITIALIZED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (lambda: nn.Linear(6, 4), (7, 6), -1),
    "linear_of_sequences": (lambda: nn.Linear(6, 4), (3, 5, 6), -1),
    "convolution": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5), 1),
    "convolution_unbatched": (lambda: nn.Conv1d(6, 4, 3), (6, 9), 0),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2), (2, 6, 5, 5), 1),
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", INITIALIZED)
def test_outputs_of_the_batch_have_mean_0_and_deviation_1(kind: str, biased: bool) -> None:
    torch.manual_seed(2)
    make, shape, axis = INITIALIZED[kind]
    module = make()
    if not biased:
        module.bias = None
    ours.weight_norm(module, initial_scale="data")
    x = torch.randn(shape) + 3
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.parametrizations.weight.original0.fill_(1)
        if biased:
            twin.bias.zero_()
        t = twin(x).movedim(axis, -1).flatten(0, -2).double().numpy()
    ours.initialize_from_data(module, x)
    scale, bias = initialize(t)
    np.testing.assert_allclose(module.parametrizations.weight.original0.detach().flatten(), scale, rtol=1e-5)
    if biased:
        np.testing.assert_allclose(module.bias.detach(), bias, rtol=1e-4, atol=1e-5)
    outputs = module(x).movedim(axis, -1).flatten(0, -2)
    torch.testing.assert_close(outputs.std(0, correction=0), torch.ones(4), rtol=0, atol=1e-5)
    if biased:
        torch.testing.assert_close(outputs.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    assert module.parametrizations.weight.original0.grad_fn is None


class Shared(nn.Module):
    """Calls its layers out of the order of their registration, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(5, 5)
        self.first = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.dropout = nn.Dropout(0.5)
        self.noise = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.norm(self.first(x).relu())) + self.noise * torch.randn(())
        x = self.second(x).relu()
        result: torch.Tensor = self.second(x)
        return result


def test_a_model_in_call_order_with_nothing_else_changed() -> None:
    torch.manual_seed(0)
    model = Shared()
    model.noise = 1e-30
    model.norm.eval()
    model.register_buffer("vectors", torch.ones(3))
    for name in ("first.weight", "second.weight"):
        ours.weight_norm(model, name)
    ours.spectral_norm(model, "norm.weight")
    x = torch.randn(64, 3)
    arrays = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    random = torch.get_rng_state()
    ours.initialize_from_data(model, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()] == hooks
    changed = {name for name, array in model.state_dict().items() if not torch.equal(array, arrays[name])}
    assert changed == {f"{n}.{p}" for n in ("first", "second") for p in ("bias", "parametrizations.weight.original0")}

    model.eval()
    seen = model.first(x)
    torch.testing.assert_close(seen.mean(0), torch.zeros(5), rtol=0, atol=1e-5)
    seen = model.second(model.norm(seen.relu()))  # the first call decided, on what the initialised first layer made
    torch.testing.assert_close(seen.mean(0), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(5), rtol=0, atol=1e-5)


def test_modules_that_update_buffers_in_evaluation_are_put_back() -> None:
    class Counts(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.last = x
            return super().forward(x)

    module = ours.weight_norm(Counts())
    ours.initialize_from_data(module, torch.randn(8, 3))
    assert module.calls == 0
    assert module.last is None


def test_a_constant_output_counts_as_a_deviation_of_1() -> None:
    torch.manual_seed(0)
    module = ours.weight_norm(nn.Linear(1, 50))
    x = torch.full((1001, 1), 0.3)  # sums of it are rounded, so that its mean is another number
    ours.initialize_from_data(module, x)
    torch.testing.assert_close(module.parametrizations.weight.original0, torch.ones(50, 1), rtol=0, atol=0)
    torch.testing.assert_close(module(x), torch.zeros(1001, 50), rtol=0, atol=1e-6)


def test_outputs_far_from_0_lose_no_digits() -> None:
    torch.manual_seed(0)
    module = ours.weight_norm(nn.Linear(3, 2, bias=False).double())
    x = torch.randn(50, 3, dtype=torch.float64)
    ours.initialize_from_data(module, x + 1e7)
    expected = copy.deepcopy(module)
    ours.initialize_from_data(expected, x)
    length = module.parametrizations.weight.original0
    torch.testing.assert_close(length, expected.parametrizations.weight.original0, rtol=1e-7, atol=0)


def fails() -> nn.Module:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("no such thing")

    return nn.Sequential(ours.weight_norm(nn.Linear(3, 4)), Fails())


@pytest.mark.parametrize(("make", "error", "words"), [
    (lambda: nn.Linear(3, 4), ours.ArgumentError, "called no weight-normalized module"),
    (lambda: ours.weight_norm(nn.Linear(3, 4), scale=False), ours.ArgumentError, "no length"),
    (lambda: ours.weight_norm(nn.Linear(3, 4), norm_over="whole"), ours.ArgumentError, "one length for all"),
    (lambda: nn.Sequential(ours.weight_norm(nn.Linear(3, 3)), ours.weight_norm(nn.ConvTranspose1d(3, 4, 1), **ROWS)),
     ours.ArgumentError, "'1'.*not its outputs"),
    (lambda: ours.weight_norm(nn.LayerNorm(3)), ours.ArgumentError, "not linear"),
    (lambda: ours.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"), ours.ArgumentError, "weight_hh_l0"),
    (lambda: ours.weight_norm(ours.weight_norm(nn.Linear(3, 4)), "bias"), ours.ArgumentError, "weight alone"),
    (fails, KeyError, "no such thing"),
])  # fmt: skip
def test_what_cannot_be_initialised_changes_nothing(make: Any, error: Any, words: str) -> None:
    model = make()
    arrays, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    with pytest.raises(error, match=words) as caught:
        ours.initialize_from_data(model, torch.randn(5, 3))
    assert len(str(caught.value).splitlines()) == 1
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, array in model.state_dict().items():
        assert torch.equal(array, arrays[name])


@pytest.mark.parametrize("fields", [{"norm_over": "column"}, {"initial_scale": "zeros"}, {"eps_place": "nowhere"},
                                    {"initial_scale": "data", "norm_over": "whole"}, {"scale": 1}])  # fmt: skip
def test_bad_fields(fields: dict[str, Any]) -> None:
    module = nn.Linear(6, 4)
    with pytest.raises(ours.ArgumentError):
        ours.weight_norm(module, **fields)
    assert type(module) is nn.Linear
