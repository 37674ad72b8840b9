"""Filter response normalization: what it equals, its threshold, its parameters, and what torch does with a layer."""

import copy
import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import crossnorm.torch as ours
from crossnorm import SpecError
from crossnorm.spec import FilterResponseNormSpec

VARIANTS = [
    {},
    {"bias": False},
    {"affine": False, "threshold": None},
    {"learned_eps": "scalar"},
    {"learned_eps": "channel", "threshold": "element", "spatial": (3, 5)},
]


def make(dtype=torch.float32, **options):
    layer = ours.FilterResponseNorm2d(4, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return layer


def data(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def formula(layer, x):
    """The paper's equations as they stand."""
    eps = layer.eps + (0 if layer.learned_eps is None else layer.learned_eps.abs())
    square = (x**2).mean((2, 3), keepdim=True)
    if isinstance(eps, torch.Tensor) and eps.dim():
        eps = eps[:, None, None]
    z = x / (square + eps).sqrt()
    z = z if layer.weight is None else z * layer.weight[:, None, None]
    z = z if layer.bias is None else z + layer.bias[:, None, None]
    if layer.tau is None:
        return z
    return torch.maximum(z, layer.tau if layer.tau.dim() > 1 else layer.tau[:, None, None])


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_and_gradients_are_those_of_the_formula(options, batch):
    layer, x = make(torch.float64, **options), data(batch, 4, 3, 5, dtype=torch.float64).requires_grad_()
    wanted, upstream = [x, *layer.parameters()], data(batch, 4, 3, 5, dtype=torch.float64).flip(0)
    torch.testing.assert_close(layer(x), formula(layer, x), rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(layer(x), wanted, upstream)
    want = torch.autograd.grad(formula(layer, x), wanted, upstream)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("options", VARIANTS)
def test_gradients_of_gradients(options):
    layer, x = make(torch.float64, **options), data(2, 4, 3, 5, dtype=torch.float64).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    arrays = (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert gradcheck(call, arrays)
    assert gradgradcheck(call, arrays)


def test_the_learned_eps_counts_by_its_absolute_value():
    x, found = data(3, 4, 3, 5), []
    for sign in (1, -1, 0):
        layer = make(learned_eps="scalar")
        layer.learned_eps.data.mul_(sign)
        y = layer(x)
        y.pow(2).sum().backward()
        found.append((y, layer.learned_eps.grad))
    (positive, gradient), (negative, opposite), (_, at_zero) = found
    torch.testing.assert_close(positive, negative, rtol=0, atol=0)
    assert gradient == -opposite != 0
    assert at_zero == 0


def test_a_channel_without_positions_has_one():
    layer, x = ours.FilterResponseNorm1d(4, learned_eps="channel"), data(3, 4).requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, (x / (x**2 + 1e-6 + 1e-4).sqrt()).clamp_min(0))
    torch.testing.assert_close(layer(x.unsqueeze(2)).squeeze(2), y, rtol=0, atol=0)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, torch.where(x > 0, 1.01e-4 / (x**2 + 1.01e-4) ** 1.5, 0.0), rtol=1e-3, atol=1e-6)


def test_the_gradient_of_a_tie_goes_to_the_normalised_value():
    layer, x = ours.FilterResponseNorm2d(1), torch.zeros(1, 1, 2, 2, requires_grad=True)
    layer(x).sum().backward()
    assert layer.bias.grad.item() == 4
    assert layer.tau.grad.item() == 0


def test_half_inputs_whose_squares_leave_the_range_are_right():
    """peers: timm squares in the input's dtype, and |x| = 300 becomes 0 in float16."""
    layer = ours.FilterResponseNorm2d(2, threshold=None)
    y = layer(torch.full((1, 2, 2, 2), 300.0, dtype=torch.float16))
    assert y.dtype == torch.float16
    assert torch.equal(y, torch.ones_like(y))


@pytest.mark.parametrize("options", VARIANTS)
def test_a_layer_and_its_specification_are_the_same_thing(options):
    layer = ours.FilterResponseNorm2d(4, **options)
    again = ours.layer(layer.spec, rank=2)
    assert type(again) is type(layer)
    assert again.spec == layer.spec
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in layer.named_parameters()}
    assert repr(again) == repr(layer)


def test_a_scale_or_an_offset_alone():
    for spec in (FilterResponseNormSpec(channels=4, scale=False), FilterResponseNormSpec(channels=4, offset=False)):
        assert ours.layer(spec, rank=1).spec == spec


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_layout_copies_compilers_and_transforms():
    layer, x = make(learned_eps="channel"), data(2, 4, 3, 5)
    y = layer(x)
    assert layer(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.jit.script(layer)):
        torch.testing.assert_close(other(x), y)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), y)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), y)
    torch.testing.assert_close(torch.func.vmap(layer)(x.unsqueeze(1)).squeeze(1), y)
    (want,) = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)
    torch.testing.assert_close(torch.func.grad(lambda x: layer(x).sum())(x.detach()), want)


def test_checkpoints_of_timm_load_by_name():
    layer = ours.FilterResponseNorm2d(4)
    layer.load_state_dict({name: torch.arange(4.0) for name in ("weight", "bias", "tau")})
    assert layer.tau.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(0, 4, 3, 5), (2, 4, 0, 5)])
def test_inputs_without_values(shape):
    x = torch.zeros(shape, requires_grad=True)
    y = make()(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, "eps=-1.0 is not a finite number >= 0"),
        ({"threshold": "element"}, "an element-wise threshold, and nothing else, needs the sizes"),
        ({"spatial": (3, 5)}, "an element-wise threshold, and nothing else, needs the sizes"),
        ({"learned_eps": "many"}, "learned_eps='many' is not one of"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(SpecError) as raised:
        ours.FilterResponseNorm2d(4, **options)
    assert message in str(raised.value)


def test_bad_input_and_a_bad_attribute_are_refused():
    layer = ours.FilterResponseNorm2d(4, threshold="element", spatial=(3, 5))
    with pytest.raises(RuntimeError, match="threshold for each element"):
        layer(data(2, 4, 5, 3))
    with pytest.raises(ValueError, match="has 3 dimensions, not 4"):
        layer(data(4, 3, 5))
    layer.eps = float("nan")
    with pytest.raises(SpecError, match="eps=nan"):
        layer(data(2, 4, 3, 5))
