"""Normalization layers swapped inside a torch module: what has to survive survives, and a refusal changes nothing."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

import crossnorm.torch
from crossnorm import GroupNormSpec, MigrationError, Unsupported
from crossnorm.migrate import convert, rules

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def network(*, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8, momentum=0.25),
        nn.Sequential(nn.ReLU(), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)),
        nn.Flatten(),
        nn.LayerNorm(128),
        nn.RMSNorm(128, eps=1e-6),
        nn.Linear(128, 5),
    ).to(dtype)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.copy_(torch.rand_like(tensor) * 0.5 + 0.2)
    return model


def ours(model):
    return [type(module).__name__ for module in model.modules() if type(module).__module__.startswith("crossnorm.torch")]


def test_native_to_ours_computes_the_same_with_the_same_parameters():
    model = network().eval()
    with torch.no_grad():
        before = model(X)
    arrays = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    parameters = list(model.parameters())
    assert convert(model, rules.ours()) is model
    assert ours(model) == ["BatchNorm2d", "GroupNorm", "InstanceNorm2d", "LayerNorm", "RMSNorm"]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(arrays) == list(model.state_dict())
    assert all(torch.equal(value, arrays[name][1]) for name, value in model.state_dict().items())
    assert model[1].momentum == 0.25
    with torch.no_grad():
        torch.testing.assert_close(model(X), before)


def test_ours_stay():
    model = nn.Sequential(crossnorm.torch.LayerNorm(4), nn.LayerNorm(4))
    first = model[0]
    convert(model, rules.ours())
    assert model[0] is first
    with pytest.raises(MigrationError, match="replaced no layer"):
        convert(model, rules.ours())


def test_the_optimizer_goes_on():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    convert(model, rules.ours())
    before = model[1].weight.detach().clone()
    model(X).sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)


def test_flags_hooks_dtype_and_what_is_trainable_survive():
    model = network(dtype=torch.float64)
    model[1].eval()
    model[1].bias.requires_grad_(False)
    calls = []
    model[1].register_forward_hook(lambda module, inputs, output: calls.append(type(module)))
    model[1].register_forward_pre_hook(lambda module, args, kwargs: calls.append("before"), with_kwargs=True)
    model[1].register_full_backward_hook(lambda module, gi, go: calls.append("backward"))
    convert(model, rules.ours())
    assert [module.training for module in model] == [True, False, True, True, True, True, True]
    assert not model[1].bias.requires_grad
    assert model[1].running_mean.dtype == torch.float64
    model(X.double()).sum().backward()
    assert calls == ["before", crossnorm.torch.BatchNorm2d, "backward"]


def test_batch_norm_to_group_norm():
    model = network()
    weight = model[1].weight
    convert(model, rules.group_norm(3))
    assert isinstance(model[1], crossnorm.torch.GroupNorm)
    assert model[1].num_groups == 1
    assert model[1].weight is weight
    assert "1.running_mean" not in model.state_dict()
    assert isinstance(model[2][1], nn.GroupNorm)
    assert type(model[2][1]) is nn.GroupNorm
    with pytest.raises(MigrationError, match="groups=0"):
        rules.group_norm(0)


def test_batch_norm_to_synchronized():
    model = network()
    weight, mean = model[1].weight, model[1].running_mean.clone()
    convert(model, rules.synchronized())
    assert type(model[1]) is nn.SyncBatchNorm
    assert model[1].weight is weight
    assert torch.equal(model[1].running_mean, mean)
    assert model[1].momentum == 0.25
    halves = nn.Sequential(nn.BatchNorm2d(3))
    halves[0].weight.data, halves[0].bias.data = halves[0].weight.data.half(), halves[0].bias.data.half()
    new = convert(halves, rules.synchronized())[0]
    assert (new.weight.dtype, new.running_var.dtype) == (torch.float16, torch.float32)
    biased = nn.Sequential(crossnorm.torch.BatchNorm2d(3, running_variance="biased"))
    first = biased[0]
    with pytest.raises(Unsupported, match="running_variance='biased'"):
        convert(biased, rules.synchronized())
    assert biased[0] is first


def test_it_trains_on_as_keras_would():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.5))
    convert(model, rules.semantics("keras"))
    assert model[0].running_variance == "biased"
    assert model[0].single_value == "zero"
    assert (model[0].eps, model[0].momentum) == (1e-5, 0.5)
    model(X)
    torch.testing.assert_close(model[0].running_var, 0.5 + 0.5 * X.var((0, 2, 3), correction=0))
    with pytest.raises(MigrationError, match="'caffe' is unknown"):
        rules.semantics("caffe")


def test_a_rule_of_ones_own():
    def rule(name, layer, description):
        return GroupNormSpec(channels=8, groups=4) if name == "1" else nn.Identity() if name == "4" else None

    model = convert(network(), rule)
    assert model[1].num_groups == 4
    assert type(model[4]) is nn.Identity


def test_reparametrizations_become_ours():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 3)), spectral_norm(nn.Linear(3, 2))).eval()
    x = torch.randn(5, 4)
    before = model(x).detach()
    raw = model[0].parametrizations.weight.original
    convert(model, rules.ours())
    assert all(isinstance(module.parametrizations.weight[0], crossnorm.torch.SpectralNorm) for module in model)
    assert model[0].parametrizations.weight.original is raw
    torch.testing.assert_close(model(x), before)
    model.train()
    u = model[1].parametrizations.weight[0]._u.clone()
    model(x)
    assert not torch.equal(model[1].parametrizations.weight[0]._u, u)


def test_a_layer_used_twice_is_replaced_everywhere():
    shared = nn.LayerNorm(4)
    model = nn.Sequential(shared, nn.Linear(4, 4), shared)
    convert(model, rules.ours())
    assert model[0] is model[2]
    assert isinstance(model[0], crossnorm.torch.LayerNorm)


def test_the_model_may_be_the_layer():
    new = convert(nn.LayerNorm(4), rules.ours())
    assert isinstance(new, crossnorm.torch.LayerNorm)


def test_a_bad_rule_changes_nothing():
    model = network()
    before = list(model.modules())

    def rule(name, layer, description):
        return rules.ours()(name, layer, description) if name == "1" else object()

    with pytest.raises(MigrationError):
        convert(model, rule)
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))


def test_half_precision():
    model = nn.Sequential(nn.BatchNorm2d(3).half())
    convert(model, rules.ours())
    assert {tensor.dtype for tensor in (*model.parameters(), model[0].running_var)} == {torch.float16}


def test_the_handle_of_a_hook_still_removes_it():
    model, calls = nn.Sequential(nn.LayerNorm(6)), []
    handle = model[0].register_forward_hook(lambda *args: calls.append(args))
    convert(model, rules.ours())
    model(X)
    handle.remove()
    model(X)
    assert len(calls) == 1


def test_a_layer_that_the_rule_made_takes_over_parameters_statistics_and_dtype():
    model = nn.Sequential(nn.BatchNorm2d(3)).half()
    with torch.no_grad():
        model[0].running_mean.fill_(2)
    held = dict(model[0].named_parameters()) | dict(model[0].named_buffers())
    convert(model, lambda name, layer, description: nn.SyncBatchNorm(3))
    assert all(tensor is held[name] for name, tensor in model[0].named_parameters())
    assert all(tensor is held[name] for name, tensor in model[0].named_buffers())
    model = nn.Sequential(nn.BatchNorm2d(3, affine=True)).half()
    convert(model, lambda name, layer, description: nn.PReLU(3))
    assert model[0].weight.dtype == torch.float16
    model = nn.Sequential(nn.BatchNorm2d(3)).half()
    convert(model, lambda name, layer, description: nn.Conv2d(3, 3, 1))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_a_rule_that_wraps_the_layer():
    model, calls = nn.Sequential(nn.LayerNorm(6)), []
    layer = model[0].eval()
    layer.register_forward_hook(lambda *args: calls.append(args))
    convert(model, lambda name, layer, description: nn.Sequential(layer, nn.ReLU()))
    model(X)
    assert model[0][0] is layer
    assert len(calls) == 1
    assert not model[0].training


def test_plain_attributes_do_not_go_on_with_the_old_layer():
    class Listing(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(6)
            self._all = [self.norm, 3]
            self.named, self.several = {"norm": self.norm}, (self.norm,)

        def forward(self, x):
            return self._all[0](x)

    model = Listing()
    convert(model, rules.ours())
    assert type(model.norm) is crossnorm.torch.LayerNorm
    assert model._all == [model.norm, 3]
    assert model.named == {"norm": model.norm}
    assert model.several == (model.norm,)


def test_a_reparametrized_module_of_ones_own_is_not_made_anew_without_what_is_in_it():
    class Own(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.more = nn.Parameter(torch.ones(2))

    model = nn.Sequential(parametrizations.spectral_norm(Own()))
    layer = model[0]
    with pytest.raises(MigrationError, match="ParametrizedOwn is a Own with a reparametrized weight"):
        convert(model, rules.ours())
    assert model[0] is layer


def test_rules_that_are_none():
    with pytest.raises(MigrationError, match="'ours' is no rule"):
        convert(network(), "ours")
    new = nn.Identity()
    with pytest.raises(MigrationError, match="returned a layer that it gave before"):
        convert(network(), lambda name, layer, description: new)
