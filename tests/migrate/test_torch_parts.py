"""A torch module is taken apart into named parts; what cannot be taken apart is listed, and never lost."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import crossnorm.torch
from crossnorm.errors import MigrationError
from crossnorm.migrate._parts import parts, put
from crossnorm.migrate._settings import Attention, Recurrent

KINDS = {
    "dense": lambda: nn.Linear(3, 4),
    "dense without bias": lambda: nn.Linear(3, 4, bias=False),
    "convolution": lambda: nn.Conv2d(4, 6, (3, 2), groups=2),
    "transposed_convolution": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
    "embedding": lambda: nn.Embedding(5, 3),
    "prelu": lambda: nn.PReLU(4),
    "lstm": lambda: nn.LSTM(3, 4, 2, bidirectional=True),
    "lstm without bias": lambda: nn.LSTM(3, 4, bias=False),
    "gru": lambda: nn.GRU(3, 4, batch_first=True),
    "attention": lambda: nn.MultiheadAttention(6, 2),
    "attention of three widths": lambda: nn.MultiheadAttention(6, 2, kdim=3, vdim=5, bias=False),
    "batch_norm": lambda: nn.BatchNorm2d(4),
    "group_norm": lambda: crossnorm.torch.GroupNorm(2, 4),
    "layer_norm": lambda: nn.LayerNorm((3, 4)),
    "weight_norm": lambda: parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3, groups=2)),
    "weight_norm, rows of outputs": lambda: crossnorm.torch.weight_norm(nn.ConvTranspose2d(4, 6, 3, groups=2)),
    "weight_norm of the old kind": lambda: nn.utils.weight_norm(nn.Linear(3, 4)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Conv1d(3, 4, 5)),
    "weight_standardization": lambda: crossnorm.torch.weight_standardization(nn.Conv1d(3, 4, 5)),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


def random_arrays(part, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: random.integers(0, 9, array.shape).astype(array.dtype)
        if array.dtype.kind == "i"
        else random.uniform(0.5, 1.5, array.shape).astype(array.dtype)
        for name, array in part.arrays.items()
    }


def same(one, other):
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape, one[name].tobytes()) == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name in one
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_are_read_and_written_bit_for_bit(kind, dtype):
    module = KINDS[kind]().to(dtype)
    tensors = dict(module.named_parameters())
    found = parts(module)
    assert {part.kind for part in found} == {kind.split()[0].rstrip(",")}
    for i, part in enumerate(found):
        part.write(random_arrays(part, i))
    again = parts(module)
    for i, part in enumerate(again):
        assert same(part.arrays, random_arrays(part, i))
        assert part.trainable == {name for name in part.arrays if any(t.requires_grad for t in part.variables[name])}
    assert all(tensor is tensors[name] and tensor.dtype == dtype for name, tensor in module.named_parameters())
    assert {id(t) for part in again for held in part.variables.values() for t in held} >= {id(t) for t in tensors.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_moment_is_arranged_as_its_array_is(kind):
    for part in parts(KINDS[kind]()):
        assert part.arrange.keys() >= part.trainable
        for name, arrange in part.arrange.items():
            (tensor,) = part.variables[name]
            stored = tensor.detach().numpy().copy()
            assert arrange(stored).tobytes() == part.arrays[name].tobytes()
            stored.fill(0)
            put(stored, arrange, part.arrays[name])
            assert arrange(stored).tobytes() == part.arrays[name].tobytes()


def test_an_array_alone_leaves_its_neighbours_in_the_same_tensor():
    module = nn.MultiheadAttention(4, 2)
    before = module.in_proj_weight.detach().clone()
    (part,) = parts(module)
    part.write({"key_weight": np.zeros((4, 4), np.float32)})
    assert torch.equal(module.in_proj_weight[:4], before[:4])
    assert torch.equal(module.in_proj_weight[8:], before[8:])
    assert not module.in_proj_weight[4:8].any()


def test_names_and_order_are_those_of_named_modules():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Sequential(shared, nn.LayerNorm(3)), nn.LSTM(3, 2, 2, bidirectional=True), nn.ReLU())
    names = [part.name for part in parts(model)]
    assert names == ["0", "1.1", "2.l0", "2.l0_reverse", "2.l1", "2.l1_reverse"]
    assert [part.name for part in parts(shared)] == ["Linear"]


def test_settings_and_axes():
    model = nn.Sequential(nn.LSTM(3, 4, bidirectional=True), nn.MultiheadAttention(6, 2, kdim=3, vdim=5, batch_first=True))
    forward, backward, attention = parts(model)
    assert backward.settings == Recurrent(kind="lstm", inputs=3, units=4, reverse=True)
    assert (forward.settings.reverse, forward.batch_axis, forward.axis) == (False, 1, -1)
    assert attention.settings == Attention(inputs=(6, 3, 5), heads=2, key_size=3, value_size=3, outputs=6)
    assert attention.batch_axis == 0
    model = nn.Sequential(
        nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.RMSNorm(4), nn.Linear(4, 4)
    )
    assert [part.axis for part in parts(model)] == [1, 1, 1, -1, -1, -1]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(2))
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("scratch", torch.zeros(4), persistent=False)
        self.inner = nn.Linear(2, 2)


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("module", "arrays"),
    [
        (nn.Bilinear(2, 3, 4), {"weight", "bias"}),
        (nn.RNN(2, 3), {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}),
        (nn.LSTM(2, 4, proj_size=3, bias=False), {"weight_ih_l0", "weight_hh_l0", "weight_hr_l0"}),
        (Scaled(2, 3), {"weight", "bias"}),
        (nn.Embedding(2, 3, max_norm=1.0), {"weight"}),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), {"in_proj_weight", "in_proj_bias", "bias_k", "bias_v"}),
        (nn.MultiheadAttention(4, 2, add_zero_attn=True), {"in_proj_weight", "in_proj_bias"}),
        (Tokens(), {"tokens", "frozen"}),
    ],
)
def test_what_is_not_known_is_listed(module, arrays):
    first, *others = parts(module)
    assert (first.kind, first.settings.layer, first.arrays.keys()) == ("unknown", type(module).__name__, arrays)
    assert dict(first.settings.arrays) == {name: array.shape for name, array in first.arrays.items()}
    held = {id(t) for part in (first, *others) for tensors in part.variables.values() for t in tensors}
    assert held == {id(t) for t in module.parameters()}


def test_a_weight_of_an_lstm_that_is_reparametrized_is_listed():
    module = parametrizations.weight_norm(nn.LSTM(2, 3), "weight_hh_l0")
    found = parts(module)
    assert {part.kind for part in found} == {"unknown"}
    assert {id(t) for part in found for held in part.variables.values() for t in held} == {id(t) for t in module.parameters()}


def test_tied_parameters_are_the_same_object():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    embedding, dense = parts(model)
    assert embedding.variables["weight"][0] is dense.variables["weight"][0]


def test_frozen_arrays_are_not_trainable_and_stay_frozen():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    (part,) = parts(module)
    assert part.trainable == {"weight"}
    part.write(random_arrays(part))
    assert not module.bias.requires_grad


@pytest.mark.parametrize("module", [nn.LazyLinear(3), nn.Linear(2, 3, device="meta"), nn.BatchNorm1d(3, device="meta")])
def test_modules_without_values_are_refused_by_name(module):
    with pytest.raises(MigrationError, match=r"'1' .*(run the model once|load them)"):
        parts(nn.Sequential(nn.ReLU(), module))


def test_half_precision_is_kept():
    (part,) = parts(nn.Linear(2, 3).bfloat16())
    assert part.arrays["weight"].dtype == ml_dtypes.bfloat16


def test_other_objects_are_refused():
    with pytest.raises(MigrationError, match="int"):
        parts(3)
