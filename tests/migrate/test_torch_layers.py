"""Torch's layers and ours: what is described is what is built again, bit for bit, and goes on as the original would."""

import copy
import subprocess
import sys
import warnings
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import crossnorm.torch as ours
from crossnorm import (
    BatchNormSpec,
    BatchRenormSpec,
    GroupNormSpec,
    InstanceNormSpec,
    LayerNormSpec,
    RMSNormSpec,
    SpectralNormSpec,
    WeightNormSpec,
    WeightStandardizationSpec,
)
from crossnorm.errors import MigrationError, SpecError, Unsupported
from crossnorm.migrate import Layout, Linear, build, describe, load, save
from crossnorm.migrate.torch import variables, write
from crossnorm.migrate.torch.linear import module_of, settings_of
from crossnorm.spec import SPECS, WeightSpec
from crossnorm.torch._weight import groups_of, swap


def old_weight_norm(module, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still in many models
        return nn.utils.weight_norm(module, *arguments, **options)


# Each with the shape of an input.
NATIVES = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3, eps=1e-3, momentum=0.25), (4, 3)),
    "BatchNorm2d-average": (lambda: nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 5)),
    "BatchNorm2d-untracked": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 5)),
    "BatchNorm3d-scale": (lambda: nn.BatchNorm3d(3, bias=False), (4, 3, 2, 3, 3)),
    "BatchNorm1d-plain": (lambda: nn.BatchNorm1d(3, affine=False), (4, 3, 7)),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(3), (4, 3, 7)),
    "InstanceNorm2d-tracked": (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (4, 3, 5, 5)),
    "InstanceNorm3d-fixed": (lambda: nn.InstanceNorm3d(3, momentum=None, track_running_stats=True), (4, 3, 2, 3, 3)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6, eps=0.5), (4, 6, 5)),
    "GroupNorm-plain": (lambda: nn.GroupNorm(3, 6, affine=False), (4, 6, 5)),
    "LayerNorm": (lambda: nn.LayerNorm((3, 5)), (4, 3, 5)),
    "LayerNorm-scale": (lambda: nn.LayerNorm(5, bias=False), (4, 3, 5)),
    "RMSNorm": (lambda: nn.RMSNorm(5), (4, 3, 5)),
    "RMSNorm-plain": (lambda: nn.RMSNorm((3, 5), eps=1e-4, elementwise_affine=False), (4, 3, 5)),
    "spectral-Linear": (lambda: parametrizations.spectral_norm(nn.Linear(4, 6), n_power_iterations=2), (3, 4)),
    "spectral-Conv2d": (lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3, 2, 1, groups=2), eps=1e-6), (2, 4, 7, 7)),
    "spectral-ConvTranspose1d": (lambda: parametrizations.spectral_norm(nn.ConvTranspose1d(4, 6, 3)), (2, 4, 7)),
    "spectral-rows-of-inputs": (
        lambda: parametrizations.spectral_norm(nn.ConvTranspose1d(4, 6, 3, 2, groups=2, output_padding=1), dim=0),
        (2, 4, 7),
    ),
    "spectral-Embedding": (lambda: parametrizations.spectral_norm(nn.Embedding(7, 4)), None),
    "spectral-Embedding-dimensions": (lambda: parametrizations.spectral_norm(nn.Embedding(7, 4), dim=1), None),
    "hook-spectral-Linear": (lambda: nn.utils.spectral_norm(nn.Linear(4, 6, bias=False)), (3, 4)),
    "hook-spectral-ConvTranspose2d": (lambda: nn.utils.spectral_norm(nn.ConvTranspose2d(4, 6, 3)), (2, 4, 5, 5)),
    "weight-Linear": (lambda: parametrizations.weight_norm(nn.Linear(4, 6)), (3, 4)),
    "weight-Conv1d-whole": (lambda: parametrizations.weight_norm(nn.Conv1d(4, 6, 3, padding="same"), dim=None), (2, 4, 7)),
    "weight-ConvTranspose2d": (lambda: parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3, groups=2)), (2, 4, 5, 5)),
    "weight-rows-of-outputs": (lambda: parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3), dim=1), (2, 4, 5, 5)),
    "weight-Conv3d-circular": (
        lambda: parametrizations.weight_norm(nn.Conv3d(4, 6, 3, padding=1, padding_mode="circular")),
        (2, 4, 3, 3, 3),
    ),
    "hook-weight-Linear": (lambda: old_weight_norm(nn.Linear(4, 6)), (3, 4)),
    "hook-weight-whole": (lambda: old_weight_norm(nn.Conv1d(4, 6, 3, dilation=2), dim=None), (2, 4, 9)),
}
BOUNDS = {"r_max_steps": (1, 3), "d_max_steps": (0, 4)}
OURS = {
    "BatchNorm2d": (lambda: ours.BatchNorm2d(3, running_variance="biased", single_value="zero"), (4, 3, 5, 5)),
    "BatchNorm1d-offset": (lambda: ours.BatchNorm1d.from_spec(BatchNormSpec(channels=3, scale=False)), (4, 3)),
    "InstanceNorm2d-average": (
        lambda: ours.InstanceNorm2d.from_spec(InstanceNormSpec(channels=3, tracked=True, decay=None)),
        (4, 3, 5, 5),
    ),
    "GroupNorm": (lambda: ours.GroupNorm(2, 6), (4, 6, 5)),
    "LayerNorm-raw": (lambda: ours.LayerNorm.from_spec(LayerNormSpec(shape=5, subtract_mean=False)), (4, 3, 5)),
    "RMSNorm": (lambda: ours.RMSNorm(5), (4, 3, 5)),
    "BatchRenorm2d": (lambda: ours.BatchRenorm2d(3, **BOUNDS), (4, 3, 5, 5)),
    "BatchRenorm1d-pairs": (lambda: ours.BatchRenorm1d(3, renorm_decay=0.7, **BOUNDS), (4, 3, 7)),
    "BatchRenorm3d-variance": (
        lambda: ours.BatchRenorm3d(3, renorm_decay=0.7, running_quantity="unbiased_variance", **BOUNDS),
        (4, 3, 2, 3, 3),
    ),
    "SwitchableNorm2d": (lambda: ours.SwitchableNorm2d(3, last_gamma=True, pooled=True), (4, 3, 5, 5)),
    "SwitchableNorm1d": (lambda: ours.SwitchableNorm1d(3), (4, 3)),
    "FilterResponseNorm2d": (lambda: ours.FilterResponseNorm2d(3, learned_eps="channel"), (4, 3, 5, 5)),
    "FilterResponseNorm1d-elements": (
        lambda: ours.FilterResponseNorm1d(3, learned_eps="scalar", threshold="element", spatial=(7,)),
        (4, 3, 7),
    ),
    "weight_standardization": (lambda: ours.weight_standardization(nn.Conv2d(4, 6, 3), scale=True, gain=1.7), (2, 4, 5, 5)),
    "weight_standardization-plain": (lambda: ours.weight_standardization(nn.ConvTranspose1d(4, 6, 3, groups=2)), (2, 4, 7)),
    "spectral_norm": (lambda: ours.spectral_norm(nn.ConvTranspose2d(4, 6, 3, groups=2), iterations=2), (2, 4, 5, 5)),
    "spectral_norm-u": (lambda: ours.spectral_norm(nn.Linear(4, 6), stored="u", iterate="always", warm_up=0), (3, 4)),
    "spectral_norm-Embedding": (lambda: ours.spectral_norm(nn.Embedding(7, 4)), None),
    "weight_norm": (lambda: ours.weight_norm(nn.ConvTranspose2d(4, 6, 3, groups=2), eps=1e-3), (2, 4, 5, 5)),
    "weight_norm-without-length": (lambda: ours.weight_norm(nn.Linear(4, 6), scale=False), (3, 4)),
    "weight_norm-whole": (lambda: ours.weight_norm(nn.ConvTranspose1d(4, 6, 3), norm_over="whole"), (2, 4, 7)),
    "weight_norm-ones": (lambda: ours.weight_norm(nn.Embedding(7, 4), initial_scale="ones"), None),
}
LAYERS = {**{f"torch-{name}": row for name, row in NATIVES.items()}, **{f"ours-{name}": row for name, row in OURS.items()}}


def assert_same(first, second):
    assert first.spec == second.spec
    assert first.layout == second.layout
    assert list(first.arrays) == list(second.arrays)
    for name, array in first.arrays.items():
        other = second.arrays[name]
        assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes()), name


def inputs(shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    if shape is None:
        return torch.randint(7, (5,), generator=generator)
    return (torch.randn(shape, generator=generator) * 1.5 + 0.25).to(dtype)


def train(layer, shape, steps=3, seed=0):
    """Some steps, and what came out."""
    layer.train()
    optimizer = torch.optim.SGD([*layer.parameters(), torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    outputs = []
    for step in range(steps):
        optimizer.zero_grad()
        y = layer(inputs(shape, 10 * seed + step))
        if y.requires_grad:
            (y * inputs(y.shape, 1000 + step)).sum().backward()
        optimizer.step()
        outputs.append(y.detach())
    return outputs


@pytest.fixture(params=LAYERS)
def row(request):
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    return make(), shape, request.param.startswith("torch")


def test_a_trained_layer_is_built_again_bit_for_bit_and_goes_on(row):
    layer, shape, native = row
    train(layer, shape)
    description = describe(layer)
    again = build(*description, framework="torch", native=native)
    assert again is not layer
    assert_same(describe(again), description)
    for mode in (False, True):
        layer.train(mode)
        again.train(mode)
        assert torch.equal(layer(inputs(shape, 77)), again(inputs(shape, 77)))
    for mine, theirs in zip(train(layer, shape, seed=1), train(again, shape, seed=1), strict=True):
        assert torch.equal(mine, theirs)
    assert_same(describe(again), describe(layer))


@pytest.mark.parametrize("name", NATIVES)
def test_a_native_goes_on_as_ours(name):
    torch.manual_seed(0)
    make, shape = NATIVES[name]
    layer = make()
    train(layer, shape)
    description = describe(layer)
    again = build(*description, framework="torch")
    assert_same(describe(again), description)
    found = {type(again), *(type(held[0]) for held in getattr(again, "parametrizations", {}).values())}
    assert any(cls.__module__.startswith("crossnorm.torch") for cls in found)
    torch.testing.assert_close(train(layer, shape, seed=1), train(again, shape, seed=1))
    layer.eval()
    again.eval()
    torch.testing.assert_close(layer(inputs(shape, 77)), again(inputs(shape, 77)))
    for role, array in describe(layer).arrays.items():
        if role != "batches_tracked":  # torch's instance norm never counts
            np.testing.assert_allclose(describe(again).arrays[role], array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_built_again_bit_for_bit(row, dtype):
    layer, _, native = row
    description = describe(layer.to(dtype))
    name = str(dtype).removeprefix("torch.")
    floating = {array.dtype.name for role, array in description.arrays.items() if role != "batches_tracked"}
    assert floating <= {name}
    assert description.layout.dtype == (name if floating else "float32")
    for choice in {native, False}:
        assert_same(describe(build(*description, framework="torch", native=choice)), description)


def test_a_file_in_between_changes_nothing(row, tmp_path):
    layer, _, native = row
    save(tmp_path / "file", {"layer": describe(layer)})
    description = load(tmp_path / "file")["layer"]
    assert_same(description, describe(layer))
    assert_same(describe(build(*description, framework="torch", native=native)), description)


def test_half_parameters_beside_float32_statistics_survive():
    layer = nn.BatchNorm2d(3)
    layer.weight.data = torch.randn(3).half()
    layer.bias.data = torch.randn(3).bfloat16()
    description = describe(layer)
    assert [array.dtype.name for array in description.arrays.values()] == ["float16", "bfloat16", "float32", "float32", "int64"]
    for native in (False, True):
        assert_same(describe(build(*description, framework="torch", native=native)), description)


def test_every_bit_of_every_number_survives():
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        layer = nn.RMSNorm(2**16).to(dtype)
        layer.weight.data = bits.view(dtype)
        description = describe(layer)
        assert np.array_equal(description.arrays["scale"].view(np.int16), bits.numpy())
        assert torch.equal(build(*description, framework="torch").weight.view(torch.int16), bits)


# Drawn specifications.

_SIZES = {"channels": 6, "groups": 3, "spatial": (2, 3)}


def _values(name, hint):
    """What a field may be, from its annotation."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_args(hint) and get_origin(hint) is not tuple:
        return st.one_of([_values(name, part) for part in get_args(hint)])
    if get_origin(hint) is tuple:
        return st.tuples(*[st.integers(0, 5)] * 2).map(sorted).map(tuple)
    if name in ("r_max", "gain"):
        return st.floats(1, 8)
    choices = {bool: st.booleans(), int: st.integers(0, 3), float: st.floats(0, 1), type(None): st.none()}
    return choices[hint]


def specifications(method):
    cls = SPECS[method]
    hints = {field.name: get_type_hints(cls)[field.name] for field in fields(cls)}
    drawn = {name: _values(name, hint) for name, hint in hints.items() if name not in (*_SIZES, "shape")}

    def made(values):
        fixed = {name: size for name, size in _SIZES.items() if name in hints and name != "spatial"}
        if "spatial" in hints and values["threshold"] == "element":
            fixed["spatial"] = _SIZES["spatial"]
        try:
            return cls(**values, **fixed, **({"shape": (6, 2)} if "shape" in hints else {}))
        except SpecError:
            return assume(False)

    return st.fixed_dictionaries(drawn).map(made)


HOLDERS = (
    nn.Linear(4, 6),
    nn.Conv2d(4, 6, (3, 2), groups=2, bias=False),
    nn.ConvTranspose2d(4, 6, 3, groups=2),
    nn.ConvTranspose1d(4, 6, 3, stride=2, bias=False),
    nn.Embedding(5, 6),
)
DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


@pytest.mark.parametrize("method", SPECS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_specification_is_built_and_described(method, data):
    spec, holder = data.draw(specifications(method)), None
    layout = Layout(rank=data.draw(st.sampled_from((1, 2, 3))) if isinstance(ours._LAYERS.get(method), dict) else None)
    shapes = {}
    if isinstance(spec, WeightSpec):
        holder = data.draw(st.sampled_from(HOLDERS))
        groups = groups_of(holder, "weight", spec.transposed_row, spec.embedding_row)
        spec = spec.replace(shape=tuple(swap(holder.weight, groups).shape))
        layout = Layout(holder=settings_of(holder), name="weight")
    elif "spatial" in type(spec).__dataclass_fields__ and spec.spatial is not None:
        layout = Layout(rank=2)
    shapes = {array.name: array.shape for array in (*spec.parameters, *spec.state)}
    if holder is not None:
        shapes |= {"weight": spec.shape} | ({"bias": tuple(holder.bias.shape)} if layout.holder.bias else {})
    numbers = np.random.default_rng(data.draw(st.integers(0, 99)))
    arrays = {name: numbers.normal(size=shape).astype(data.draw(st.sampled_from(DTYPES))) for name, shape in shapes.items()}
    if "batches_tracked" in arrays:
        arrays["batches_tracked"] = np.array(5)
    again = describe(build(spec, layout, arrays, framework="torch"))
    assert again.spec == spec
    assert (again.layout.holder, again.layout.rank) == (layout.holder, layout.rank)
    assert list(again.arrays) == list(arrays)
    for name, array in arrays.items():
        assert (again.arrays[name].dtype, again.arrays[name].tobytes()) == (array.dtype, array.tobytes())


# What a layer obeys now.


def test_attributes_that_were_changed_are_described():
    layer = nn.BatchNorm2d(3)
    layer.eps, layer.momentum = 0.25, 0.5
    layer.weight = None
    spec = describe(layer).spec
    assert (spec.eps, spec.decay, spec.scale, spec.offset) == (0.25, 0.5, False, True)
    hooked = nn.utils.spectral_norm(nn.Linear(3, 2))
    next(iter(hooked._forward_pre_hooks.values())).n_power_iterations = 4
    assert describe(hooked).spec.iterations == 4


def test_no_momentum_is_an_average_in_batch_norm_and_no_update_in_instance_norm():
    assert describe(nn.BatchNorm1d(3, momentum=None)).spec.decay is None
    assert describe(nn.InstanceNorm1d(3, momentum=None)).spec.decay == 1.0


def test_eps_none_is_the_machine_epsilon():
    assert describe(nn.RMSNorm(3)).spec.eps == 2.0**-23
    assert describe(nn.RMSNorm(3).half()).spec.eps == 2.0**-23
    assert describe(nn.RMSNorm(3).double()).spec.eps == 2.0**-52


def test_sync_batch_norm_is_batch_norm_of_no_rank():
    spec, layout, _ = describe(nn.SyncBatchNorm(3))
    assert (spec, layout.rank) == (BatchNormSpec(channels=3), None)


def test_describing_changes_nothing_and_shares_nothing():
    module = parametrizations.spectral_norm(nn.Linear(3, 2))
    module.train()
    before = describe(module)
    assert_same(describe(module), before)
    for array in before.arrays.values():
        array[...] = 7
    assert not (module.parametrizations.weight.original == 7).any()


@pytest.mark.parametrize(
    "module",
    [nn.Embedding(7, 4, padding_idx=0), nn.Bilinear(2, 3, 4), nn.EmbeddingBag(7, 4), nn.Embedding(7, 4, sparse=True)],
    ids=lambda module: repr(module),
)
def test_a_holder_of_which_there_is_more_to_say_has_to_be_given(module):
    description = describe(ours.weight_norm(module))
    assert description.layout.holder is None
    with pytest.raises(MigrationError, match="holder="):
        build(*description, framework="torch")
    module = copy.deepcopy(module)
    parametrize.remove_parametrizations(module, "weight")
    assert_same(describe(build(*description, framework="torch", holder=module)), description)


def test_a_weight_of_another_name_and_one_of_several():
    lstm = ours.weight_norm(ours.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"), "weight_ih_l0", norm_over="whole")
    with pytest.raises(MigrationError, match="weight_hh_l0, weight_ih_l0; say which"):
        describe(lstm)
    with pytest.raises(MigrationError, match="no reparametrized weight 'weight'"):
        describe(lstm, "weight")
    description = describe(lstm, "weight_ih_l0")
    assert description.spec == WeightNormSpec(shape=(16, 3), norm_over="whole")
    assert (description.layout.holder, description.layout.name) == (None, "weight_ih_l0")
    again = build(*description, framework="torch", holder=nn.LSTM(3, 4))
    assert_same(describe(again, "weight_ih_l0"), description)


# Refusals.


class Changed(nn.LayerNorm):
    def forward(self, input):
        return super().forward(input) + 1


class Checked(nn.BatchNorm1d):
    def _check_input_dim(self, input):
        pass


class ChangedOurs(ours.GroupNorm):
    def forward(self, input):
        return super().forward(input) + 1


class Custom(nn.modules.batchnorm._BatchNorm):
    pass


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def changed(layer, **attributes):
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def doubly(module, *rules):
    for rule in rules:
        parametrize.register_parametrization(module, "weight", rule)
    return module


def lost(module, **attributes):
    changed(module.parametrizations.weight[0], **attributes)
    return module


UNTOLD = {
    "no_norm": (lambda: nn.Linear(3, 2), "no normalization layer"),
    "unknown_norm": (lambda: nn.LocalResponseNorm(3), "no normalization layer"),
    "lazy": (lambda: nn.LazyBatchNorm2d(), "call it once"),
    "lazy_plain": (lambda: nn.LazyInstanceNorm1d(affine=False), "call it once"),
    "lazy_linear": (lambda: nn.LazyLinear(3), "call it once"),
    "subclass": (lambda: Changed(3), "Changed changes what"),
    "subclass_check": (lambda: Checked(3), "Checked changes what"),
    "subclass_of_ours": (lambda: ChangedOurs(1, 3), "ChangedOurs changes what"),
    "base_class": (lambda: Custom(3), "Custom changes what"),
    "instance": (lambda: changed(nn.GroupNorm(1, 3), forward=lambda x: x), "changes what"),
    "untracked_with_statistics": (lambda: changed(nn.BatchNorm1d(3), track_running_stats=False), "beside running statistics"),
    "tracked_without_statistics": (
        lambda: changed(nn.BatchNorm1d(3), running_mean=None, running_var=None, num_batches_tracked=None),
        "without running statistics",
    ),
    "half_of_the_statistics": (lambda: changed(nn.BatchNorm1d(3), running_var=None), "no specification allows"),
    "no_counter": (lambda: changed(nn.BatchNorm1d(3), num_batches_tracked=None), "no specification allows"),
    "eps": (lambda: changed(nn.LayerNorm(3), eps=-1.0), "eps=-1.0"),
    "eps_of_ours": (lambda: changed(ours.LayerNorm(3), eps=float("nan")), "eps=nan"),
    "momentum": (lambda: changed(nn.BatchNorm1d(3), momentum=1.5), "outside"),
    "momentum_word": (lambda: changed(nn.BatchNorm1d(3), momentum="none"), "no specification allows"),
    "other_shape": (lambda: changed(nn.LayerNorm(3), weight=nn.Parameter(torch.ones(4))), "no specification allows"),
    "meta": (lambda: nn.LayerNorm(3, device="meta"), "on meta"),
    "complex": (lambda: nn.LayerNorm(3, dtype=torch.complex64), "complex64"),
    "reparametrized_norm": (lambda: parametrizations.weight_norm(nn.LayerNorm((3, 2))), "itself normalized"),
    "parametrized_norm": (lambda: doubly(nn.LayerNorm(3), Doubled()), "itself normalized"),
    "parametrized_bias": (
        lambda: parametrize.register_parametrization(nn.LayerNorm(3), "bias", Doubled()), "itself normalized"
    ),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(3, 3)), "_Orthogonal"),
    "two_rules": (lambda: doubly(parametrizations.spectral_norm(nn.Linear(3, 3)), Doubled()), "2 parametrizations"),
    "inputs_of_a_dense": (lambda: parametrizations.weight_norm(nn.Linear(3, 2), dim=1), "dim=1"),
    "outputs_in_groups": (lambda: parametrizations.spectral_norm(nn.ConvTranspose1d(4, 6, 3, groups=2)), "dim=1"),
    "kernel_axis": (lambda: old_weight_norm(nn.Conv2d(3, 4, 3), dim=2), "dim=2"),
    "vector": (lambda: parametrizations.spectral_norm(nn.Linear(3, 2), "bias"), "one dimension"),
    "lost_vector": (lambda: lost(ours.spectral_norm(nn.Linear(3, 2)), _v=None), "wants"),
    "lost_length": (lambda: lost(ours.weight_norm(nn.Linear(3, 2)), scale=False), "wants"),
    "other_eps": (lambda: lost(ours.weight_norm(nn.Linear(3, 2)), eps=-1.0), "no specification allows"),
    "no_layer": (lambda: nn.Sequential(nn.LayerNorm(3)), "no normalization layer"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTOLD)
def test_what_no_specification_says_is_refused(name):
    make, words = UNTOLD[name]
    layer = make()
    with pytest.raises(MigrationError, match=words) as caught:
        describe(layer)
    assert str(caught.value).startswith("crossnorm.migrate: ")
    assert "; " in str(caught.value)


def test_what_is_no_layer_at_all_is_refused():
    with pytest.raises(MigrationError, match="neither a torch module"):
        describe(torch.ones(3))


# Natives that have no means.

INEXPRESSIBLE = {
    "running_variance": BatchNormSpec(channels=4, running_variance="biased"),
    "single_value": BatchNormSpec(channels=4, single_value="zero"),
    "offset": LayerNormSpec(shape=4, scale=False),
    "eps": BatchNormSpec(channels=4, eps=0.0),
    "subtract_mean": LayerNormSpec(shape=4, subtract_mean=False),
    "decay": InstanceNormSpec(channels=4, tracked=True, decay=None),
    "iterate": SpectralNormSpec(shape=(4, 3), iterate="always"),
    "stored": SpectralNormSpec(shape=(4, 3), stored="u"),
    "iterations": SpectralNormSpec(shape=(4, 3), iterations=0),
    "eps_place": SpectralNormSpec(shape=(4, 3), eps_place="added_to_square"),
    "scale": WeightNormSpec(shape=(4, 3), scale=False),
}
DENSE = Layout(holder=Linear(kind="dense", shape=(4, 3)), name="weight")


def zeros(spec):
    shapes = {array.name: array.shape for array in (*spec.parameters, *spec.state)}
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    if isinstance(spec, WeightSpec):
        arrays["weight"] = np.zeros(spec.shape, np.float32)
    return arrays | ({"batches_tracked": np.array(0)} if "batches_tracked" in arrays else {})


@pytest.mark.parametrize("field", INEXPRESSIBLE)
def test_a_native_without_means_is_named_and_ours_has_them(field):
    spec = INEXPRESSIBLE[field]
    layout = DENSE if isinstance(spec, WeightSpec) else Layout()
    with pytest.raises(Unsupported, match=rf"{field}={getattr(spec, field)!r}, where torch.*; build crossnorm's"):
        build(spec, layout, zeros(spec), framework="torch", native=True)
    assert describe(build(spec, layout, zeros(spec), framework="torch")).spec == spec


@pytest.mark.parametrize("spec", [BatchRenormSpec(channels=4), WeightStandardizationSpec(shape=(4, 3))])
def test_a_method_that_torch_lacks(spec):
    with pytest.raises(Unsupported, match=f"torch has no {spec.method} of its own"):
        build(spec, DENSE if isinstance(spec, WeightSpec) else Layout(), zeros(spec), framework="torch", native=True)


def test_rows_that_are_shared_by_groups_and_those_of_a_depthwise_kernel():
    module = ours.spectral_norm(nn.ConvTranspose1d(4, 6, 3, groups=2), iteration_order="u_first")
    with pytest.raises(Unsupported, match="transposed_row='output', where torch's groups share"):
        build(*describe(module), framework="torch", native=True)
    spec = WeightNormSpec(shape=(2, 3, 5), depthwise_row="multiplier")
    layout = Layout(holder=Linear(kind="convolution", shape=(6, 1, 5), groups=3), name="kernel")
    with pytest.raises(Unsupported, match="depthwise_row='multiplier'"):
        build(spec, layout, zeros(spec), framework="torch")


def test_a_whole_weight_has_no_rows_that_torch_could_mistake():
    description = describe(ours.weight_norm(nn.ConvTranspose1d(4, 6, 3, groups=2), norm_over="whole"))
    native = build(*description, framework="torch", native=True)
    expected = build(*description, framework="torch")
    assert torch.equal(native.parametrizations.weight.original1, expected.parametrizations.weight.original1)


# Axes.


@pytest.mark.parametrize("axis", [None, -1, 1, 3, (3,)])
def test_a_channel_from_anywhere_is_torchs_axis_1(axis):
    spec = BatchNormSpec(channels=4)
    assert describe(build(spec, Layout(axis=axis, rank=2), zeros(spec), framework="torch")).layout == Layout(rank=2)


@pytest.mark.parametrize("axis", [0, (1, 2)])
def test_a_channel_in_place_of_the_batch_or_two_of_them_are_refused(axis):
    spec = BatchNormSpec(channels=4)
    with pytest.raises(Unsupported, match="axis="):
        build(spec, Layout(axis=axis), zeros(spec), framework="torch")


@pytest.mark.parametrize(
    ("shape", "axis", "rank", "fits"),
    [
        (4, None, None, True), (4, -1, None, True), (4, 3, 2, True), ((3, 4), (-1, -2), 2, True), ((3, 4), (2, 3), 2, True),
        (4, 1, 2, False), (4, 1, None, False), (4, -2, 2, False), ((3, 4), (1, 3), 2, False), ((3, 4), -1, 2, False),
    ],
)  # fmt: skip
def test_normalized_axes_are_the_last_ones(shape, axis, rank, fits):
    for spec in (LayerNormSpec(shape=shape), RMSNormSpec(shape=shape)):
        if fits:
            assert describe(build(spec, Layout(axis=axis, rank=rank), zeros(spec), framework="torch")).spec == spec
        else:
            with pytest.raises(Unsupported, match="permute"):
                build(spec, Layout(axis=axis, rank=rank), zeros(spec), framework="torch")


def test_ranks_that_torch_has_not():
    spec = BatchNormSpec(channels=4)
    assert type(build(spec, Layout(rank=0), zeros(spec), framework="torch")) is ours.BatchNorm1d
    with pytest.raises(Unsupported, match="rank=4, where torch"):
        build(spec, Layout(rank=4), zeros(spec), framework="torch")


# Bad descriptions, holders, writes: nothing changes.


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "arrays of shapes"),
        ({"scale": np.ones(3), "offset": np.ones(4)}, "arrays of shapes"),
        ({"scale": np.ones(3), "offset": np.ones(3), "more": np.ones(3)}, "arrays of shapes"),
        ({"scale": np.ones(3), "offset": np.ones(3, np.int64)}, "int64"),
        ({"scale": np.ones(3), "offset": [1.0, 1.0, 1.0]}, "list"),
        ({"scale": np.ones(3), "offset": np.ones(3, complex)}, "complex128"),
        (None, "NoneType"),
    ],
)
def test_arrays_that_are_not_the_specifications(arrays, words):
    with pytest.raises(MigrationError, match=words):
        build(LayerNormSpec(shape=3), Layout(), arrays, framework="torch")


def test_a_framework_that_is_none():
    with pytest.raises(MigrationError, match="framework='jax'"):
        build(LayerNormSpec(shape=3), Layout(), zeros(LayerNormSpec(shape=3)), framework="jax")


class NoModule:
    pass


BAD_HOLDERS = {
    "shape": lambda: nn.Linear(3, 5),
    "bias": lambda: nn.Linear(3, 4),
    "kind": lambda: nn.Embedding(4, 3),
    "lazy": lambda: nn.LazyLinear(4, bias=False),
    "taken": lambda: parametrizations.spectral_norm(nn.Linear(3, 4, bias=False)),
    "hooked": lambda: old_weight_norm(nn.Linear(3, 4, bias=False)),
    "none": lambda: nn.ReLU(),
    "no_module": NoModule,
}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", BAD_HOLDERS)
def test_a_holder_that_does_not_fit_is_left_alone(name, native):
    spec, holder = WeightNormSpec(shape=(4, 3), embedding_row="input"), BAD_HOLDERS[name]()
    before = copy.copy(vars(holder))
    with pytest.raises(MigrationError):
        build(spec, DENSE, zeros(spec), framework="torch", native=native, holder=holder)
    assert vars(holder) == before


def test_a_holder_that_fits_is_reparametrized():
    spec, holder = WeightNormSpec(shape=(4, 3)), nn.Linear(3, 4, bias=False)
    assert build(spec, DENSE, zeros(spec), framework="torch", holder=holder) is holder
    assert isinstance(holder.parametrizations.weight[0], ours.WeightNorm)


def test_a_layer_of_its_own_has_no_holder():
    with pytest.raises(MigrationError, match="leave out holder="):
        build(LayerNormSpec(shape=3), Layout(), zeros(LayerNormSpec(shape=3)), framework="torch", holder=nn.Linear(3, 3))


def test_writing_is_in_place(row):
    layer, shape, _ = row
    train(layer, shape)
    description, tensors = describe(layer), variables(layer)
    assert tensors.keys() == description.arrays.keys()
    pointers = {name: tensor.data_ptr() for name, (tensor,) in tensors.items()}
    numbers = np.random.default_rng(3)
    new = {name: (numbers.normal(size=array.shape) ** 2).astype(array.dtype) for name, array in description.arrays.items()}
    write(layer, new)
    assert_same(describe(layer), description._replace(arrays=new))
    assert {name: tensor.data_ptr() for name, (tensor,) in variables(layer).items()} == pointers
    expected = build(description.spec, description.layout, new, framework="torch", native=row[2])
    assert torch.equal(layer.eval()(inputs(shape, 5)), expected.eval()(inputs(shape, 5)))
    half = {name: array.astype(np.float16) for name, array in new.items() if array.dtype == np.float32}
    write(layer, half)
    wider = {name: half[name].astype(np.float32) if name in half else array for name, array in new.items()}
    assert_same(describe(layer), description._replace(arrays=wider))


@pytest.mark.parametrize("name", ["torch-hook-spectral-Linear", "torch-hook-weight-Linear", "ours-spectral_norm-u"])
def test_the_effective_weight_is_the_new_one_before_any_call(name):
    make, shape = LAYERS[name]
    layer, other = make(), make()
    train(layer, shape)
    train(other, shape)
    layer.eval()(inputs(shape, 5))
    description = describe(layer)
    again = build(*description, framework="torch", native=name.startswith("torch"))
    assert torch.equal(again.eval().weight, layer.weight)
    write(other, description.arrays)
    assert torch.equal(other.eval().weight, layer.weight)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"offset": np.ones(4, "float32")}, "LayerNorm: layer_norm has arrays of shapes"),
        ({"more": np.ones(3, "float32")}, "LayerNorm: layer_norm has arrays of shapes"),
        ({"offset": np.ones(3, "int64")}, "int64, not one of"),
        ({"offset": np.ones(3)}, "has float32 in 'offset', which would round float64"),
    ],
)
def test_a_bad_write_writes_nothing(bad, words):
    layer = nn.LayerNorm(3)
    before = describe(layer)
    with pytest.raises(MigrationError, match=words):
        write(layer, {"scale": np.full(3, 5, "float32"), **bad})
    assert_same(describe(layer), before)


def test_variables_are_the_live_ones():
    layer = nn.BatchNorm1d(3)
    assert variables(layer)["offset"][0] is layer.bias
    assert variables(layer)["running_variance"][0] is layer.running_var
    module = parametrizations.weight_norm(nn.Linear(3, 2))
    assert variables(module)["scale"][0] is module.parametrizations.weight.original0
    assert variables(module)["bias"][0] is module.bias


# Linear modules.

MODULES = (
    nn.Linear(3, 2),
    nn.Conv1d(4, 8, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(3, 8, (3, 2), padding="same", bias=False),
    nn.Conv3d(1, 2, 3, padding=1, padding_mode="circular", dilation=2),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.Embedding(4, 5),
)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_a_linear_module_is_made_again(module):
    settings_found = settings_of(module)
    assert tuple(module.weight.shape) == settings_found.shape
    assert repr(module_of(settings_found)) == repr(module)
    assert Layout.from_dict(Layout(holder=settings_found).to_dict()).holder == settings_found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"padding": "causal"}, r"padding=\(\(2, 0\),\)"),
        ({"padding": ((1, 2),)}, r"padding=\(\(1, 2\),\)"),
        ({"shape": (6, 4, 4), "padding": ((2, 1),)}, r"padding=\(\(2, 1\),\)"),
        ({"padding": "same", "stride": (2,)}, "padding='same'"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"kind": "transposed_convolution", "padding": ((0, 1),)}, r"padding=\(\(0, 1\),\)"),
    ],
)
def test_settings_that_torch_has_no_means_for(changes, words):
    plain = {"kind": "convolution", "shape": (6, 4, 3), "stride": (1,), "dilation": (1,)}
    with pytest.raises(Unsupported, match=words):
        module_of(Linear(**(plain | changes)))


def test_settings_that_make_no_module_are_one_error():
    spec = WeightNormSpec(shape=(6, 4, 3))
    holder = Linear(kind="transposed_convolution", shape=(4, 6, 3), padding_mode="reflect")
    with pytest.raises(MigrationError, match=r'the Linear makes no module .*Only "zeros" padding mode'):
        build(spec, Layout(holder=holder), zeros(spec), framework="torch")


def test_without_torch_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from crossnorm.migrate import Layout, build\n"
        "from crossnorm import GroupNormSpec\n"
        "build(GroupNormSpec(channels=2, groups=1, scale=False, offset=False), Layout(), {}, framework='torch')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'TorchMissing: crossnorm.torch: torch is not installed; install it with pip install "crossnorm[torch]"' in run.stderr


def test_a_description_of_another_framework_needs_no_counter_of_64_bits():
    spec = GroupNormSpec(channels=4, groups=2)
    assert describe(build(spec, Layout(dtype="mixed_float16", axis=-1), zeros(spec), framework="torch")).layout == Layout()
    spec = BatchNormSpec(channels=4)
    arrays = zeros(spec) | {"batches_tracked": np.int32(3)}
    assert build(spec, Layout(), arrays, framework="torch").num_batches_tracked.dtype == torch.int64
