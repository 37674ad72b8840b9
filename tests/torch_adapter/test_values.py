"""Outputs, gradients and running statistics against the reference, in rounding units: at most 8, parameter gradients 32."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import crossnorm.torch as ours
from crossnorm import SpecError, reference, rounding
from crossnorm.spec import (
    INFERENCE,
    TRAIN,
    BatchNormSpec,
    BatchRenormSpec,
    FilterResponseNormSpec,
    GroupNormSpec,
    InstanceNormSpec,
    LayerNormSpec,
    Mode,
    NormSpec,
    RMSNormSpec,
    SwitchableNormSpec,
)

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
REGIMES = ("plain", "offset", "large_offset", "constant", "outlier", "varied", "large", "small")


def specs() -> Iterator[tuple[NormSpec, tuple[int, ...], Mode]]:
    biased = {"running_variance": "biased", "single_value": "zero", "decay": 0.7}
    yield BatchNormSpec(channels=6, eps=1e-3), (3, 6, 8, 7), TRAIN
    yield BatchNormSpec(channels=6, **biased), (16, 6, 28, 28), TRAIN
    yield BatchNormSpec(channels=6, decay=None, offset=False), (4, 6, 5), TRAIN
    yield BatchNormSpec(channels=3, scale=False), (2, 3), TRAIN
    yield BatchNormSpec(channels=3, **biased), (1, 3, 1), TRAIN
    yield BatchNormSpec(channels=4, tracked=False), (2, 4, 3, 4, 5), TRAIN
    yield BatchNormSpec(channels=6), (3, 6, 8, 7), INFERENCE
    yield GroupNormSpec(channels=6, groups=3), (2, 6, 9, 8), TRAIN
    yield GroupNormSpec(channels=6, groups=3, scale=False), (8, 6), TRAIN
    yield GroupNormSpec(channels=6, groups=2, scale=False), (2, 6, 9, 8), TRAIN
    yield BatchNormSpec(channels=6, scale=False), (4, 6, 5, 5), TRAIN
    yield InstanceNormSpec(channels=6, scale=False), (4, 6, 5, 5), TRAIN
    yield GroupNormSpec(channels=4, groups=1, offset=False), (2, 4, 3, 4, 5), TRAIN
    yield InstanceNormSpec(channels=6), (2, 6, 9, 8), TRAIN
    yield InstanceNormSpec(channels=6, tracked=True), (4, 6, 5), TRAIN
    yield InstanceNormSpec(channels=4, tracked=True, decay=None, running_variance="instance_mean_biased"), (2, 4, 8, 8), TRAIN
    yield InstanceNormSpec(channels=6, tracked=True), (2, 6, 4, 5), INFERENCE
    yield InstanceNormSpec(channels=3, single_value="zero"), (2, 3, 1), TRAIN
    yield LayerNormSpec(shape=(96,)), (16, 96), TRAIN
    yield LayerNormSpec(shape=(5,), scale=False), (4, 6, 5), TRAIN
    yield LayerNormSpec(shape=(5,), offset=False), (4, 6, 5), TRAIN
    yield LayerNormSpec(shape=(6, 5), subtract_mean=False), (4, 6, 5), TRAIN
    yield RMSNormSpec(shape=(96,), eps=1e-6), (16, 96), TRAIN
    yield RMSNormSpec(shape=(6, 5), scale=False), (4, 6, 5), TRAIN
    relaxing = {"r_max_steps": (1, 5), "d_max_steps": (0, 4)}  # the harness sets the counter to 3
    unbounded = {"r_max": None, "r_max_steps": None, "d_max": None, "d_max_steps": None}
    yield BatchRenormSpec(channels=6, eps=1e-3, decay=0.9, **relaxing), (3, 6, 8, 7), TRAIN
    yield BatchRenormSpec(channels=6, decay=0.7, running_quantity="biased_variance", **relaxing), (16, 6, 28, 28), TRAIN
    yield BatchRenormSpec(channels=6, running_quantity="unbiased_variance", renorm_decay=0.6, **unbounded), (4, 6, 5), TRAIN
    yield BatchRenormSpec(channels=6, eps=1e-3, renorm_decay=0.9, **unbounded), (3, 6, 8, 7), TRAIN
    yield BatchRenormSpec(channels=4, decay=None, scale=False, r_min=0.5, **relaxing), (2, 4, 3, 4, 5), TRAIN
    yield BatchRenormSpec(channels=3, offset=False, single_value="zero", **relaxing), (1, 3, 1), TRAIN
    yield BatchRenormSpec(channels=6, running_quantity="unbiased_variance"), (4, 6, 5, 5), TRAIN
    yield BatchRenormSpec(channels=6), (3, 6, 8, 7), INFERENCE
    yield BatchRenormSpec(channels=6, renorm_decay=0.9, scale=False), (3, 6, 8, 7), INFERENCE
    yield FilterResponseNormSpec(channels=6), (3, 6, 8, 7), TRAIN
    yield FilterResponseNormSpec(channels=6, eps=1e-3, learned_eps="scalar"), (4, 6, 28, 28), TRAIN
    yield FilterResponseNormSpec(channels=6, learned_eps="channel", offset=False), (4, 6, 2), TRAIN
    yield FilterResponseNormSpec(channels=6, scale=False, threshold="element", spatial=(9,)), (4, 6, 9), TRAIN
    yield FilterResponseNormSpec(channels=4, threshold=None), (2, 4, 3, 4, 5), TRAIN
    yield SwitchableNormSpec(channels=6, decay=0.7), (3, 6, 8, 7), TRAIN
    yield SwitchableNormSpec(channels=6, eps=1e-3, variance="unbiased_instance"), (16, 6, 28, 28), TRAIN
    yield SwitchableNormSpec(channels=6, decay=None, pooled=True, variance="unbiased"), (4, 6, 31), TRAIN
    yield SwitchableNormSpec(channels=4, variance="unbiased", offset=False), (4, 4, 3, 4, 5), TRAIN
    yield SwitchableNormSpec(channels=3, use_instance=False, variance="unbiased"), (8, 3), TRAIN
    yield SwitchableNormSpec(channels=3, pooled=True), (2, 3, 1), TRAIN
    yield SwitchableNormSpec(channels=4), (1, 4, 1), TRAIN
    yield SwitchableNormSpec(channels=4, variance="unbiased_instance"), (1, 4, 9, 8), TRAIN
    yield SwitchableNormSpec(channels=6, scale=False), (3, 6, 8, 7), INFERENCE
    yield SwitchableNormSpec(channels=6, use_batch=False, eps=1e-3), (3, 6, 9), TRAIN
    yield SwitchableNormSpec(channels=6, use_instance=False, use_batch=False, scale=False, offset=False), (3, 6, 9), TRAIN


def describe(value: Any) -> str:
    if isinstance(value, NormSpec):
        fields = {k: v for k, v in value.to_dict().items() if k not in ("version", "method", "channels", "shape", "eps")}
        return value.method + "".join(f"-{k}={v}" for k, v in fields.items() if v not in (True, None, False, 0.9, "raise"))
    return "x".join(map(str, value)) if isinstance(value, tuple) else "train" if value.update_running else "inference"


def inputs(shape: tuple[int, ...], channel: int, dtype: str, regime: str, random: np.random.Generator) -> np.ndarray:
    x = random.standard_normal(shape)
    extreme = {"float32": 1e15, "bfloat16": 1e15, "float64": 1e100, "float16": 1e3}[dtype]
    per_channel = [1] * len(shape)
    per_channel[channel] = shape[channel]
    if regime == "offset":
        x += 2 ** (rounding.precision(dtype) / 4)
    elif regime == "large_offset":
        x += 2 ** (rounding.precision(dtype) / 2)
    elif regime == "constant":
        x[(slice(None),) * channel + (0,)] = 3.7
    elif regime == "outlier":
        x.flat[x.size // 3] = 1e3
    elif regime == "varied":
        scale = 10 ** random.uniform(-3, 0 if dtype == "float16" else 3, per_channel)
        x = x * scale + scale * 10 ** random.uniform(0, 4, per_channel) * (0.1 if dtype == "float16" else 1)
    elif regime in ("large", "small"):
        x *= extreme if regime == "large" else 1 / extreme
    return x


def arrange(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last" and x.dim() > 3:
        return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    if layout == "strided":
        wider = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
        wider[..., ::2] = x
        return wider[..., ::2]
    return x


def worst_units(spec: NormSpec, shape: tuple[int, ...], mode: Mode, dtype: str, regime: str, layout: str) -> dict[str, float]:
    """The largest error of every quantity after one call of the layer, and the counter's."""
    random = np.random.default_rng(5)
    wide, oracle = rounding.accumulation(dtype), rounding.oracle_dtype(dtype)
    channel = 1 if hasattr(spec, "channels") else len(shape) - 1
    x = rounding.round_to(inputs(shape, channel, dtype, regime, random), dtype)
    others = tuple(axis for axis in range(len(shape)) if axis != 1)
    arrays = {"x": x, "upstream": rounding.round_to(random.standard_normal(shape), dtype)}
    for array in spec.parameters:
        arrays[array.name] = rounding.round_to(random.uniform(0.5, 2, array.shape), wide)
    for array in spec.state:
        wider = x.astype(np.float64)
        statistic = wider.mean(others) if array.name.endswith("_mean") else wider.var(others) + 0.1
        if array.name.endswith("_standard_deviation"):
            statistic = np.sqrt(statistic)
        arrays[array.name] = rounding.round_to(statistic * random.uniform(0.5, 1.5), wide)
    dtypes = {name: dtype if name in ("x", "upstream") else wide for name in arrays if name != "batches_tracked"}
    if spec.state:
        arrays["batches_tracked"] = np.asarray(3)

    def evaluate(values: Any) -> dict[str, Any]:
        parameters = {a.name: values[a.name] for a in spec.parameters}
        state = {a.name: values[a.name] for a in spec.state}
        forward = reference.forward(spec, values["x"], parameters, state, mode)
        backward = reference.backward(spec, values["x"], parameters, state, mode, values["upstream"])
        return {"y": forward.y, **forward.state, **{"d_" + name: q for name, q in backward.items()}}

    in_oracle = {name: v if name == "batches_tracked" else v.astype(oracle) for name, v in arrays.items()}
    stored = dict.fromkeys(("y", "d_x"), dtype)
    names = [f"d_{array.name}" for array in spec.parameters] + [array.name for array in spec.state]
    exact, units = rounding.unit(evaluate, in_oracle, dtypes, stored | dict.fromkeys(names, wide), seed=1)

    layer = ours.layer(spec, rank=max(len(shape) - 2, 1), dtype=DTYPES[wide]).train(mode.use_batch_statistics)
    weights = {"scale": "weight", "offset": "bias", "mean_logits": "mean_weight", "variance_logits": "var_weight",
               "running_mean": "running_mean", "running_variance": "running_var",
               "running_standard_deviation": "running_std", "renorm_mean": "renorm_mean", "renorm_variance": "renorm_var",
               "renorm_standard_deviation": "renorm_std", "batches_tracked": "num_batches_tracked",
               "learned_eps": "learned_eps", "threshold": "tau"}  # fmt: skip
    layer.load_state_dict({weights[name]: torch.tensor(arrays[name]) for name in arrays if name in weights}, strict=True)
    tensor = arrange(torch.tensor(x).to(DTYPES[dtype]), layout).requires_grad_()
    y = layer(tensor)
    y.backward(arrange(torch.tensor(arrays["upstream"]).to(DTYPES[dtype]), layout))
    got = {"y": y, "d_x": tensor.grad}
    for name in exact:
        if name.removeprefix("d_") in weights:
            found = getattr(layer, weights[name.removeprefix("d_")])
            got[name] = found.grad if name.startswith("d_") else found
    assert y.dtype == tensor.dtype
    assert set(got) == set(exact)
    return {
        name: float(rounding.in_units(got[name].detach().double().numpy(), exact[name], units[name],
                                      stored.get(name, wide)).max(initial=0))
        for name in exact
    }  # fmt: skip


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("spec", "shape", "mode"), list(specs()), ids=describe)
def test_against_the_reference(spec: NormSpec, shape: tuple[int, ...], mode: Mode, regime: str) -> None:
    for dtype in DTYPES:
        if dtype != "float32" and np.prod(shape) > 10_000 and regime not in ("plain", "constant"):
            continue
        for layout in ("contiguous", "channels_last", "strided"):
            if layout == "channels_last" and len(shape) < 4:
                continue
            if layout == "strided" and dtype in ("float64",):
                continue
            for name, error in worst_units(spec, shape, mode, dtype, regime, layout).items():
                assert error <= bound(spec, shape, name), f"{name} is {error:.3g} units off in {dtype}, {layout}"


def bound(spec: NormSpec, shape: tuple[int, ...], name: str) -> float:
    """Parameter gradients may lose the root of the number of their terms."""
    sizes = {f"d_{array.name}": np.prod(array.shape) for array in spec.parameters}
    return max(32, float(np.sqrt(np.prod(shape) / sizes[name]))) if name in sizes else 8


@pytest.mark.parametrize(("layout", "units"), [("contiguous", 32), ("channels_last", 8)])
@pytest.mark.parametrize("regime", ["plain", "large_offset"])
def test_the_mixtures_gradients_keep_the_digits_of_differences(regime: str, layout: str, units: int) -> None:
    errors = worst_units(SwitchableNormSpec(channels=4), (4, 4, 112, 112), TRAIN, "float32", regime, layout)
    assert max(errors["d_mean_logits"], errors["d_variance_logits"]) <= units


def test_functional_agrees_with_the_layer_and_mutates_nothing() -> None:
    spec = BatchNormSpec(channels=3, running_variance="biased")
    layer = ours.layer(spec)
    x = torch.randn(4, 3, 5, 5)
    parameters = {"scale": layer.weight, "offset": layer.bias}
    state = {"running_mean": layer.running_mean.clone(), "running_variance": layer.running_var.clone(),
             "batches_tracked": layer.num_batches_tracked.clone()}  # fmt: skip
    y, new_state = ours.functional.batch_norm(spec, x, parameters, state, TRAIN)
    assert state["batches_tracked"] == 0
    torch.testing.assert_close(state["running_variance"], torch.ones(3))
    torch.testing.assert_close(layer(x), y, rtol=0, atol=0)
    torch.testing.assert_close(layer.running_var, new_state["running_variance"], rtol=0, atol=0)
    torch.testing.assert_close(layer.running_mean, new_state["running_mean"], rtol=0, atol=0)
    assert new_state["batches_tracked"] == layer.num_batches_tracked == 1


@pytest.mark.parametrize(
    "spec",
    [
        BatchNormSpec(channels=3), LayerNormSpec(shape=3), GroupNormSpec(channels=3, groups=1), InstanceNormSpec(channels=3),
        RMSNormSpec(shape=3),
    ],
    ids=lambda spec: spec.method,
)  # fmt: skip
def test_functional_refuses_arrays_of_other_names(spec: NormSpec) -> None:
    function, x = getattr(ours.functional, spec.method), torch.randn(2, 3, 3)
    parameters, state = ({array.name: torch.full(array.shape, array.initial) for array in arrays}
                         for arrays in (spec.parameters, spec.state))  # fmt: skip
    function(spec, x, parameters, state, TRAIN)
    with pytest.raises(SpecError, match="gamma"):
        function(spec, x, {"gamma": torch.ones(3)}, state, TRAIN)
    with pytest.raises(SpecError, match="variance"):
        function(spec, x, parameters, {**state, "variance": torch.ones(3)}, TRAIN)
