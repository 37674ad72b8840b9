"""Weight standardization: the formulas of the peers, their checkpoints, and rows without a spread."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import crossnorm
import crossnorm.torch as ours


def timm(w: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """timm.layers.StdConv2d."""
    return F.batch_norm(w.reshape(1, len(w), -1), None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(w)


def timm_scaled(w: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """timm.layers.ScaledStdConv2d, with a gamma of 1: the batch norm's weight is gain / sqrt(fan-in)."""
    scale = (gain * w[0].numel() ** -0.5).view(-1)
    return F.batch_norm(w.reshape(1, len(w), -1), None, None, scale, training=True, momentum=0.0, eps=1e-6).reshape_as(w)


def authors(w: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Conv2d of WeightStandardization."""
    w = w - w.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
    return w / (w.view(w.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5).expand_as(w)


def deepmind(w: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """WSConv2D of nfnets, outputs first."""
    variance, mean = torch.var_mean(w, (1, 2, 3), correction=0, keepdim=True)
    scale = torch.rsqrt((variance * w[0].numel()).clamp_min(1e-4)) * gain
    return w * scale - mean * scale


PEERS: dict[str, Callable[..., torch.Tensor]] = {
    "timm": timm, "timm_scaled": timm_scaled, "authors": authors, "deepmind": deepmind,
}  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("peer", PEERS)
def test_equals_the_peers_by_their_presets_and_checkpoints(peer: str, scale: float) -> None:
    """In float64, where no rounding hides another convention; how exact float32 is, the reference says."""
    torch.manual_seed(1)
    spec = crossnorm.preset(peer, "weight_standardization", shape=(8, 3, 3, 3))
    module = ours.layer(spec, module=nn.Conv2d(3, 8, 3, bias=False).double())
    w, gain = torch.randn(8, 3, 3, 3, dtype=torch.float64) * scale, torch.rand(8, 1, 1, 1, dtype=torch.float64)
    checkpoint = {"weight": w, **({"gain": gain} if spec.scale else {})}
    module.load_state_dict(checkpoint, strict=True)
    torch.testing.assert_close(module.weight, PEERS[peer](w, gain), rtol=1e-10, atol=1e-12)
    assert torch.equal(module.parametrizations.weight.original, w)


def test_checkpoints_deep_inside_a_model_and_our_own() -> None:
    model = ours.weight_standardization(nn.Sequential(nn.ReLU(), nn.Conv1d(3, 4, 2)), "1.weight", scale=True)
    w, gain = torch.randn(4, 3, 2), torch.rand(4, 1, 1)
    model.load_state_dict({"1.weight": w, "1.gain": gain, "1.bias": torch.zeros(4)}, strict=True)
    assert torch.equal(model[1].parametrizations.weight[0].gain, gain.flatten())
    again = ours.weight_standardization(nn.Sequential(nn.ReLU(), nn.Conv1d(3, 4, 2)), "1.weight", scale=True)
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again[1].weight, model[1].weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict({"1.weight": w, "1.gain": torch.ones(3), "1.bias": torch.zeros(4)})


def test_a_gain_of_the_modules_own_is_left_alone() -> None:
    class Gained(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.gain = nn.Parameter(torch.ones(4))

    plain, module = Gained(), ours.weight_standardization(Gained(), scale=True)
    nn.init.constant_(plain.gain, 5.0)
    missing, unexpected = module.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["parametrizations.weight.0.gain"], [])
    assert torch.equal(module.gain, plain.gain)
    assert torch.equal(module.parametrizations.weight[0].gain, torch.ones(4))


def test_rows_have_mean_0_and_variance_1_times_the_gain() -> None:
    module = nn.ConvTranspose2d(6, 8, 3, groups=2)
    nn.init.normal_(module.weight, 1e4)
    ours.weight_standardization(module, gain=2.0, fan_in_scaling=True, scale=True, eps=0.0)
    with torch.no_grad():
        module.parametrizations.weight[0].gain.copy_(torch.arange(1.0, 9.0))
    outputs = module.weight.detach().unflatten(0, (2, 3)).transpose(1, 2).reshape(8, 27).double()
    torch.testing.assert_close(outputs.mean(1), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-5)
    expected = torch.arange(1.0, 9.0, dtype=torch.float64) * 2 / math.sqrt(27)
    torch.testing.assert_close(outputs.std(1, correction=0), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("place", ["variance", "deviation", "maximum"])
@pytest.mark.parametrize("ddof", [0, 1])
def test_a_fan_in_of_one_and_equal_numbers_give_0_with_a_finite_gradient(ddof: Any, place: Any, eps: float) -> None:
    # Sums of such numbers are rounded, so that their mean is not one of them.
    equal = nn.Linear(1001, 50)
    with torch.no_grad():
        equal.weight.copy_(torch.linspace(0.1, 3.3, 50).unsqueeze(1))
    for module, x in (nn.Conv2d(3, 3, 1, groups=3), torch.randn(2, 3, 2, 2)), (equal, torch.randn(2, 1001)):
        ours.weight_standardization(module, ddof=ddof, eps_place=place, eps=eps)
        assert not module.weight.any()
        module(x).sum().backward()
        assert module.parametrizations.weight.original.grad.isfinite().all()


def test_the_constant_and_the_learned_gain_have_names_of_their_own() -> None:
    module = ours.weight_standardization(nn.Linear(4, 2), gain=1.7, fan_in_scaling=True, scale=True)
    held: Any = module.parametrizations.weight[0]
    assert held.factor == held.spec.factor == pytest.approx(0.85)
    assert held.gain.shape == (2,)
    held.constant_gain = 3.4
    assert held.spec.gain == 3.4
    assert "gain=3.4" in repr(held)
    assert ours.weight_standardization(nn.Linear(4, 2)).parametrizations.weight[0].gain is None


@pytest.mark.parametrize("fields", [{"ddof": 2}, {"ddof": True}, {"eps_place": "mean"}, {"gain": 0.0}, {"gain": "relu"},
                                    {"fan_in_scaling": 1}])  # fmt: skip
def test_bad_fields(fields: dict[str, Any]) -> None:
    module = nn.Linear(6, 4)
    with pytest.raises(ours.ArgumentError):
        ours.weight_standardization(module, **fields)
    assert type(module) is nn.Linear
