"""What the three reparametrizations share: values in rounding units, rows, bad input, copies, compilers, one computation."""

import copy
import inspect
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import crossnorm.torch as ours
from crossnorm import CrossnormError, SpecError, Unsupported, reference, rounding
from crossnorm.spec import (
    INFERENCE,
    TRAIN,
    UNTRACKED,
    BatchNormSpec,
    Mode,
    SpectralNormSpec,
    WeightNormSpec,
    WeightSpec,
    WeightStandardizationSpec,
)

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
METHODS: dict[str, Callable[..., Any]] = {
    "weight_standardization": ours.weight_standardization,
    "spectral_norm": ours.spectral_norm,
    "weight_norm": ours.weight_norm,
}
SPECS: dict[str, type[WeightSpec]] = {
    spec.method: spec for spec in (WeightStandardizationSpec, SpectralNormSpec, WeightNormSpec)
}
each_method = pytest.mark.parametrize("method", METHODS)


# Values.


def specs() -> Iterator[tuple[WeightSpec, Mode]]:
    shape = (6, 4, 3, 3)
    yield WeightStandardizationSpec(shape=shape), TRAIN
    yield WeightStandardizationSpec(shape=shape, scale=True, gain=1.7, fan_in_scaling=True), TRAIN
    yield WeightStandardizationSpec(shape=(5, 9), ddof=1, eps_place="deviation"), TRAIN
    yield WeightStandardizationSpec(shape=(5, 9), eps_place="maximum", eps=1e-4), INFERENCE
    yield WeightStandardizationSpec(shape=(5, 2), eps=0.0, eps_place="deviation"), TRAIN
    yield WeightStandardizationSpec(shape=(5,)), TRAIN
    for order in ("v_first", "u_first"):
        for mode in (TRAIN, INFERENCE, UNTRACKED):
            yield SpectralNormSpec(shape=shape, iteration_order=order, iterations=2), mode
    for mode in (TRAIN, INFERENCE):
        yield SpectralNormSpec(shape=(5, 9), stored="u", iterate="always", eps_place="added_to_square"), mode
        yield SpectralNormSpec(shape=(5, 9), stored="u", eps=1e-7, eps_place="maximum_of_square"), mode
    yield SpectralNormSpec(shape=(5,), iterations=0), TRAIN
    yield WeightNormSpec(shape=shape), TRAIN
    yield WeightNormSpec(shape=shape, norm_over="whole"), TRAIN
    yield WeightNormSpec(shape=(5, 9), eps=1e-3, eps_place="added_to_square"), TRAIN
    yield WeightNormSpec(shape=(5, 9), eps=1e-12, eps_place="maximum_of_square", scale=False), INFERENCE
    yield WeightNormSpec(shape=(5,)), TRAIN


def describe(value: Any) -> str:
    if isinstance(value, WeightSpec):
        plain = type(value)(shape=value.shape).to_dict()
        changed = [f"{name}={given}" for name, given in value.to_dict().items() if given != plain[name]]
        return "-".join([value.method, "x".join(map(str, value.shape)), *changed])
    return {TRAIN: "train", INFERENCE: "inference", UNTRACKED: "untracked"}[value]


def raw_weight(shape: tuple[int, ...], dtype: str, regime: str, random: np.random.Generator) -> np.ndarray:
    weight = random.standard_normal(shape)
    extreme = {"float32": 1e25, "bfloat16": 1e25, "float64": 1e200, "float16": 1e3}[dtype]  # squares leave the range
    if regime == "offset":
        weight += 1e4
    elif regime == "constant":
        weight[0] = 3.7
    elif regime == "outlier":
        weight.flat[0] = 1e3
    elif regime == "large":
        weight *= extreme
    elif regime == "small":
        weight /= extreme
    elif regime == "zero":
        weight[...] = 0.0
    return weight


def in_regime(spec: WeightSpec, regime: str, random: np.random.Generator, dtype: str) -> tuple[WeightSpec, np.ndarray]:
    """A weight, and the specification. Where eps decides, a weight far below it makes vectors that no dtype can hold."""
    weight = raw_weight(spec.shape, dtype, regime, random)
    if regime == "small" and isinstance(spec, SpectralNormSpec):
        return spec.replace(eps=0.0), weight
    if regime == "below_eps":
        weight *= (spec.eps if getattr(spec, "eps_place", "") == "maximum" else spec.eps**0.5) / 100
    return spec, weight


def worst_units(spec: WeightSpec, mode: Mode, dtype: str, regime: str) -> dict[str, float]:
    """The largest error of the pure function in every quantity."""
    random = np.random.default_rng(5)
    spec, weight = in_regime(spec, regime, random, dtype)
    wide, oracle = rounding.accumulation(dtype), rounding.oracle_dtype(dtype)
    arrays = {"x": rounding.round_to(weight, dtype),
              "upstream": rounding.round_to(random.standard_normal(spec.shape), dtype)}  # fmt: skip
    for array in spec.parameters:
        arrays[array.name] = rounding.round_to(random.uniform(0.5, 2, array.shape), wide)
    for array in spec.state:
        vector = random.standard_normal(array.shape)
        arrays[array.name] = rounding.round_to(vector / np.linalg.norm(vector), wide)
    dtypes = {name: dtype if name in ("x", "upstream") else wide for name in arrays}

    def evaluate(values: Any) -> dict[str, Any]:
        parameters = {a.name: values[a.name] for a in spec.parameters}
        state = {a.name: values[a.name] for a in spec.state}
        forward = reference.forward(spec, values["x"], parameters, state, mode)
        backward = reference.backward(spec, values["x"], parameters, state, mode, values["upstream"])
        return {"y": forward.y, **forward.state, **{"d_" + name: q for name, q in backward.items()}}

    stored = {"y": dtype, "d_x": dtype, "d_scale": wide, "u": wide, "v": wide}
    exact, units = rounding.unit(evaluate, {k: v.astype(oracle) for k, v in arrays.items()}, dtypes, stored, seed=1)

    tensors = {name: torch.tensor(values).to(DTYPES[dtypes[name]]) for name, values in arrays.items()}
    learned = {a.name: tensors[a.name].requires_grad_() for a in spec.parameters}
    state = {a.name: tensors[a.name] for a in spec.state}
    raw = tensors["x"].requires_grad_()
    y, new = getattr(ours.functional, spec.method)(spec, raw, learned, state, mode)
    y.backward(tensors["upstream"])
    got = {"y": y, "d_x": raw.grad, **new, **{"d_" + name: p.grad for name, p in learned.items()}}
    assert y.dtype == raw.dtype
    assert set(got) == set(exact)
    return {
        name: float(rounding.in_units(got[name].detach().double().numpy(), exact[name], units[name], stored[name]).max())
        for name in exact
    }


@pytest.mark.parametrize("regime", ["plain", "offset", "constant", "outlier", "large", "small", "below_eps", "zero"])
@pytest.mark.parametrize(("spec", "mode"), list(specs()), ids=describe)
def test_against_the_reference(spec: WeightSpec, mode: Mode, regime: str) -> None:
    for dtype in DTYPES:
        if dtype == "float64" and rounding.oracle_dtype(dtype) is None:
            continue
        for name, error in worst_units(spec, mode, dtype, regime).items():
            assert error <= 8, f"{name} is {error:.3g} units off in {dtype}"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # forward mode, inside torch
@pytest.mark.parametrize("regime", ["plain", "large", "small", "zero"])
@pytest.mark.parametrize(
    "spec", [WeightStandardizationSpec(shape=(3, 4)), SpectralNormSpec(shape=(3, 4)), WeightNormSpec(shape=(3, 4))],
    ids=describe,
)  # fmt: skip
def test_derivatives_of_any_order_are_finite_and_right(spec: WeightSpec, regime: str) -> None:
    function = getattr(ours.functional, spec.method)
    parameters = {a.name: torch.ones(a.shape, dtype=torch.float64) for a in spec.parameters}
    state = {a.name: torch.full(a.shape, a.shape[0] ** -0.5, dtype=torch.float64) for a in spec.state}
    weight = torch.tensor(raw_weight(spec.shape, "float16", regime, np.random.default_rng(3))).requires_grad_()

    def effective(weight: torch.Tensor) -> torch.Tensor:
        return function(spec, weight, parameters, state, INFERENCE)[0]

    if regime == "plain":
        assert torch.autograd.gradcheck(effective, weight)
        assert torch.autograd.gradgradcheck(effective, weight)
        assert torch.autograd.gradcheck(effective, weight, check_forward_ad=True, check_backward_ad=False)
    (gradient,) = torch.autograd.grad(effective(weight).square().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    assert gradient.isfinite().all()
    assert second.isfinite().all()


def test_functional_refuses_other_arrays_and_mutates_nothing() -> None:
    spec = SpectralNormSpec(shape=(2, 3))
    state = {"u": torch.tensor([1.0, 0.0]), "v": torch.tensor([1.0, 0.0, 0.0])}
    before = copy.deepcopy(state)
    _, new = ours.functional.spectral_norm(spec, torch.randn(2, 3), {}, state, TRAIN)
    assert not torch.equal(new["u"], before["u"])
    assert all(torch.equal(state[name], before[name]) for name in state)
    with pytest.raises(ours.ShapeError, match=r"\(3, 2\)"):
        ours.functional.spectral_norm(spec, torch.randn(3, 2), {}, state, TRAIN)
    with pytest.raises(ours.DtypeError, match="int64"):
        ours.functional.spectral_norm(spec, torch.ones(2, 3, dtype=torch.int64), {}, state, TRAIN)
    with pytest.raises(SpecError, match="sigma"):
        ours.functional.spectral_norm(spec, torch.randn(2, 3), {}, {**state, "sigma": torch.ones(())}, TRAIN)


# The modules.


MODULES: dict[str, tuple[Callable[[], nn.Module], dict[str, str], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 4), {}, (4, 3)),
    "bilinear": (lambda: nn.Bilinear(3, 2, 4), {}, (4, 3, 2)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2), {}, (6, 2, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, (3, 2)), {}, (6, 4, 3, 2)),
    "grouped_transposed": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), {}, (6, 2, 3)),
    "transposed_input": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), {"transposed_row": "input"}, (4, 3, 3)),
    "embedding": (lambda: nn.Embedding(5, 3), {}, (3, 5)),
    "embedding_bag": (lambda: nn.EmbeddingBag(5, 3), {}, (3, 5)),
    "embedding_input": (lambda: nn.Embedding(5, 3), {"embedding_row": "input"}, (5, 3)),
    "vector": (lambda: nn.LayerNorm(4), {}, (4,)),
}


def rows_of(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """The weight, rows first, each row found by hand."""
    if kind.startswith("embedding") and kind != "embedding_input":
        return weight.T
    if kind == "transposed":
        return torch.stack([weight[:, o] for o in range(6)])
    if kind == "grouped_transposed":
        return torch.stack([weight[2 * (o // 3) : 2 * (o // 3) + 2, o % 3] for o in range(6)])
    return weight


def arrays_of(parametrization: Any, held: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters and state as the specification names and shapes them."""
    found = {"u": getattr(parametrization, "_u", None), "v": getattr(parametrization, "_v", None)}
    found["scale"] = getattr(held, "original0", getattr(parametrization, "gain", None))
    spec = parametrization.spec
    return tuple({a.name: found[a.name].detach().reshape(a.shape).clone() for a in arrays}
                 for arrays in (spec.parameters, spec.state))  # type: ignore[return-value]  # fmt: skip


@each_method
@pytest.mark.parametrize("kind", MODULES)
def test_the_rows_of_each_kind_of_module(kind: str, method: str) -> None:
    make, fields, shape = MODULES[kind]
    module = make().eval()
    nn.init.normal_(module.weight)
    raw = module.weight.detach().clone()
    METHODS[method](module, **fields)
    held = module.parametrizations.weight
    spec = held[0].spec
    assert spec.shape == shape
    parameters, state = arrays_of(held[0], held)
    expected, _ = getattr(ours.functional, method)(spec, rows_of(raw, kind).contiguous(), parameters, state, INFERENCE)
    got = module.weight.detach()
    assert got.shape == raw.shape
    torch.testing.assert_close(rows_of(got, kind), expected, rtol=1e-6, atol=1e-6)
    if method == "weight_norm":
        torch.testing.assert_close(got, raw)


@each_method
def test_layer_builds_from_a_specification_and_checks_the_shape(method: str) -> None:
    fields = {"transposed_row": "input", "eps": 1e-3, "depthwise_row": "multiplier"}
    spec = SPECS[method](shape=(4, 6, 3), **fields)
    module = nn.ConvTranspose1d(4, 6, 3)
    assert ours.layer(spec, module=module) is module
    assert module.parametrizations.weight[0].spec == spec
    with pytest.raises(SpecError, match=r"\(5, 3\)"):
        ours.layer(SPECS[method](shape=(3, 5)), module=nn.Linear(3, 5))
    with pytest.raises(SpecError, match="module"):
        ours.layer(spec)
    with pytest.raises(SpecError, match="module"):
        ours.layer(BatchNormSpec(channels=2), module=nn.Linear(2, 2))


@each_method
def test_arguments_and_defaults_are_the_specifications_fields(method: str) -> None:
    parameters = list(inspect.signature(METHODS[method]).parameters.values())[2:]
    plain = SPECS[method](shape=(1,)).to_dict()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    missing = set(plain) - {"method", "version", "shape"} - {p.name for p in parameters}
    assert missing == ({"scale"} if method == "spectral_norm" else set())
    assert {p.name: p.default for p in parameters} == {p.name: plain[p.name] for p in parameters}


@each_method
def test_attributes_are_the_truth(method: str) -> None:
    module = METHODS[method](nn.Linear(3, 4), eps=1e-3)
    ours_ = module.parametrizations.weight[0]
    assert f"eps={0.001!r}" in repr(module)
    ours_.eps = 100.0
    assert ours_.spec.eps == 100.0
    ours_.eps = -1.0
    with pytest.raises(SpecError, match=r"eps=-1\.0"):
        module(torch.ones(2, 3))


@each_method
def test_a_parameter_inside_and_one_of_another_name(method: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    METHODS[method](model, "1.weight")
    assert not parametrize.is_parametrized(model[0])
    assert parametrize.is_parametrized(model[1], "weight")
    cell = METHODS[method](METHODS[method](nn.LSTMCell(3, 4), "weight_ih"), "weight_hh")
    assert cell.parametrizations.weight_hh[0].spec.shape == (16, 4)
    assert cell(torch.ones(2, 3))[0].isfinite().all()


@each_method
def test_recurrent_modules_compute_with_the_effective_weight(method: str) -> None:
    fields = {"scale": False} if method == "weight_norm" else {}
    module = METHODS[method](nn.LSTM(3, 4), "weight_hh_l0", **fields).eval()
    x = torch.randn(5, 2, 3)
    before = module(x)[0]
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original.mul_(4)
    # All three do not care how long the raw weight is (weight standardization up to its eps).
    torch.testing.assert_close(module(x)[0], before, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original[:8].add_(10 * torch.arange(1.0, 5.0))
    assert not torch.allclose(module(x)[0], before, rtol=1e-3, atol=1e-4)
    module(x)[0].sum().backward()
    assert module.parametrizations.weight_hh_l0.original.grad.abs().max() > 0


@each_method
def test_the_effective_weight_is_computed_once_for_each_forward_pass(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kind = {"weight_standardization": ours.WeightStandardization, "spectral_norm": ours.SpectralNorm}.get(
        method, ours.WeightNorm
    )
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *raw: (calls.append(self), forward(self, *raw))[1])
    for module, x in (
        (nn.Linear(3, 4), torch.ones(2, 3)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), torch.ones(2, 3, 5, 5)),
        (nn.ConvTranspose2d(3, 4, 3), torch.ones(2, 3, 5, 5)),
        (nn.Embedding(5, 3), torch.tensor([1, 2])),
    ):
        METHODS[method](module)
        for training in (True, False):
            calls.clear()
            module.train(training)(x)
            assert len(calls) == 1


@each_method
def test_half_weights_are_computed_in_single_precision_and_rounded_once(method: str) -> None:
    torch.manual_seed(0)
    module = METHODS[method](nn.Linear(300, 8).to(torch.bfloat16)).eval()
    wide = copy.deepcopy(module).float()
    assert module.weight.dtype == torch.bfloat16
    assert torch.equal(module.weight, wide.weight.to(torch.bfloat16))


@each_method
def test_autocast_does_not_touch_the_effective_weight(method: str) -> None:
    module = METHODS[method](nn.Linear(30, 8)).eval()
    expected = module.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.weight, expected)
        assert module(torch.ones(2, 30)).dtype == torch.bfloat16


@each_method
def test_two_forward_passes_before_the_backward_pass(method: str) -> None:
    module = METHODS[method](nn.Linear(3, 4))
    loss = module(torch.randn(2, 3)).sum() - module(torch.randn(2, 3)).sum()
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())


@each_method
def test_a_copy_after_a_forward_pass_stands_alone(method: str) -> None:
    module = METHODS[method](nn.Linear(3, 4))
    x = torch.randn(2, 3)
    module(x)
    twin = copy.deepcopy(module)
    torch.testing.assert_close(twin.eval()(x), module.eval()(x), rtol=0, atol=0)
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    twin.train()(x)
    assert all(torch.equal(before[name], array) for name, array in module.state_dict().items())
    if method == "spectral_norm":
        assert not torch.equal(twin.parametrizations.weight[0]._u, module.parametrizations.weight[0]._u)


@each_method
def test_own_checkpoints_go_round_and_survive_pickle(method: str) -> None:
    fields = {"scale": True} if method != "spectral_norm" else {}
    module, other = (METHODS[method](nn.Conv2d(3, 4, 3), **fields) for _ in range(2))
    module(torch.randn(2, 3, 5, 5))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    torch.testing.assert_close(other.eval().weight, module.eval().weight, rtol=0, atol=0)


@each_method
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_break(method: str, training: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(1)
    module = METHODS[method](nn.Linear(3, 4)).train(training)
    twin, x = copy.deepcopy(module), torch.randn(2, 3)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        expected, got = twin(x), compiled(x)
        torch.testing.assert_close(got, expected)
        got.sum().backward()
        expected.sum().backward()
    for a, b in zip(twin.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)
    for name, array in twin.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], array)


@each_method
def test_functional_call_per_sample_gradients_and_removal(method: str) -> None:
    module = METHODS[method](nn.Linear(3, 4)).eval()
    arrays, x = dict(module.named_parameters()), torch.randn(5, 3)

    def loss(arrays: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, arrays, x).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(arrays, x)
    whole = torch.func.grad(loss)(arrays, x)
    for name in arrays:
        torch.testing.assert_close(each[name].sum(0), whole[name])
    expected = module.weight.detach()
    parametrize.remove_parametrizations(module, "weight")
    torch.testing.assert_close(module.train()(x), x @ expected.T + module.bias)
    METHODS[method](module)
    advances = [hook for hook in module._forward_pre_hooks.values() if type(hook).__name__ == "Advance"]
    assert len(advances) == (method == "spectral_norm")
    assert module(x).isfinite().all()


@each_method
def test_meta_modules(method: str) -> None:
    module = METHODS[method](nn.Linear(3, 4, device="meta"))
    assert module(torch.empty(2, 3, device="meta")).shape == (2, 4)


# Bad input.


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    return model


def with_parameter(values: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(values, requires_grad=False)
    return module


def hooked(method: str) -> nn.Module:
    if method == "weight_norm":
        with pytest.warns(FutureWarning):
            return nn.utils.weight_norm(nn.Linear(3, 4))
    return nn.utils.spectral_norm(nn.Linear(3, 4))


WRONG: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "no_parameters": (lambda method: nn.ReLU(), "weight", "none"),
    "unknown_name": (lambda method: nn.Linear(3, 4), "kernel", "'weight', 'bias'"),
    "unknown_path": (lambda method: nn.Sequential(nn.Linear(3, 4)), "1.weight", "'0.weight'"),
    "no_bias": (lambda method: nn.Linear(3, 4, bias=False), "bias", "no parameter 'bias'"),
    "buffer": (lambda method: nn.BatchNorm1d(3), "running_mean", "no parameter 'running_mean'"),
    "name": (lambda method: nn.Linear(3, 4), 3, "name=3"),
    "twice": (lambda method: METHODS[method](nn.Linear(3, 4)), "weight", "reparametrized already"),
    "native_first": (lambda method: parametrizations.weight_norm(nn.Linear(3, 4)), "weight", "reparametrized already"),
    "hook_first": (hooked, "weight", "reparametrized already"),
    "raw": (
        lambda method: parametrizations.spectral_norm(nn.Linear(3, 4)),
        "parametrizations.weight.original",
        "reparametrized already",
    ),
    "lazy": (lambda method: nn.LazyLinear(4), "weight", "no shape yet"),
    "integers": (lambda method: with_parameter(torch.ones(2, 3, dtype=torch.int32)), "weight", "int32"),
    "complex": (lambda method: with_parameter(torch.ones(2, 3, dtype=torch.complex64)), "weight", "complex64"),
    "empty": (lambda method: with_parameter(torch.ones(0, 3)), "weight", r"\(0, 3\)"),
    "scalar": (lambda method: with_parameter(torch.ones(())), "weight", r"\(\)"),
    "tied": (lambda method: tied(), "1.weight", "'0.weight' too"),
}


def anatomy(module: nn.Module) -> Any:
    arrays = {name: (id(array), array._version) for name, array in (*module.named_parameters(), *module.named_buffers())}
    hooks = [(list(m._forward_pre_hooks), list(m._forward_hooks), list(m._load_state_dict_pre_hooks)) for m in module.modules()]
    return arrays, hooks, repr(module), [type(m) for m in module.modules()]


@each_method
@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_is_one_error_and_changes_nothing(wrong: str, method: str) -> None:
    make, name, words = WRONG[wrong]
    module = make(method)
    before = anatomy(module)
    with pytest.raises(ours.ArgumentError, match=words) as caught:
        METHODS[method](module, name)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(method)
    assert anatomy(module) == before


@each_method
@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_bad_fields_and_modules(method: str) -> None:
    module = nn.Linear(3, 4)
    before = anatomy(module)
    for fields in ({"eps": -1.0}, {"eps": float("nan")}, {"transposed_row": "both"}, {"embedding_row": None}):
        with pytest.raises(ours.ArgumentError):
            METHODS[method](module, **fields)
    with pytest.raises(ours.ArgumentError, match="module=str"):
        METHODS[method]("module")
    with pytest.raises(Unsupported, match="script"):
        METHODS[method](torch.jit.trace(nn.Linear(3, 4), torch.ones(1, 3)))
    assert anatomy(module) == before


@each_method
@pytest.mark.parametrize("first", METHODS)
def test_a_weight_shared_with_a_reparametrized_module_is_refused_until_that_ends(first: str, method: str) -> None:
    one, two = nn.Linear(3, 4), nn.Linear(3, 4)
    two.weight = one.weight
    METHODS[first](one)
    before = anatomy(two)
    with pytest.raises(ours.ArgumentError, match="tied"):
        METHODS[method](two)
    assert anatomy(two) == before
    parametrize.remove_parametrizations(one, "weight")
    METHODS[method](two)


def test_errors_are_crossnorms() -> None:
    assert issubclass(ours.ArgumentError, CrossnormError)
    assert issubclass(ours.ArgumentError, ValueError)
