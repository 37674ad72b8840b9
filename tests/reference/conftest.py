"""Specifications, modes and random data for every test of this room."""

import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import crossnorm
from crossnorm import INFERENCE, TRAIN, UNTRACKED, Mode, NormSpec


@dataclass(frozen=True)
class Data:
    """Arguments of ``forward`` and ``backward``: nothing at its initial value, the input off centre."""

    x: np.ndarray
    parameters: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    upstream: np.ndarray


def _draw(spec: NormSpec, shape: tuple[int, ...], seed: int = 0, dtype: type = np.longdouble) -> Data:
    random = np.random.default_rng([seed, zlib.crc32(repr((spec, shape)).encode())])

    def normal(size):
        return random.standard_normal(size).astype(dtype)

    state = {array.name: normal(array.shape) for array in spec.state}
    for name in state:
        if name.endswith(("_variance", "_standard_deviation")):
            state[name] = np.exp(state[name])
    if "batches_tracked" in state:
        state["batches_tracked"] = np.asarray(3)
    return Data(
        x=2 * normal(shape) + 1,
        parameters={array.name: normal(array.shape) for array in spec.parameters},
        state=state,
        upstream=normal(shape),
    )


@pytest.fixture(scope="session")
def draw() -> Callable[..., Data]:
    return _draw


@pytest.fixture(scope="session")
def exactly() -> Callable[..., None]:
    """Asserts that two computations in longdouble agree to float64's rounding, relative to ``magnitude``."""
    if np.finfo(np.longdouble).nmant < 62:
        pytest.skip("this platform's longdouble is no wider than float64")

    def check(got, want, magnitude=None):
        got, want = np.asarray(got), np.asarray(want)
        assert got.shape == want.shape
        scale = np.abs(want).max(initial=0) if magnitude is None else magnitude
        excess = np.abs(got - want) - 2.0**-53 * scale
        assert np.all(excess <= 0), f"worst excess {excess.max()} among {want}"

    return check


_CHANNELS = ((3, 4, 2), (2, 4, 2, 2), (1, 4, 3), (3, 4, 1))
_TRAINING = (TRAIN, INFERENCE, UNTRACKED)


Case = tuple[NormSpec, tuple[int, ...], Mode]


def _combinations() -> list[Case]:
    """Every method, mode and combination of the fields that change the arithmetic, over several shapes."""
    flags = list(itertools.product((True, False), repeat=2))
    cases: list[Case] = []
    for scale, offset in flags:
        affine = {"scale": scale, "offset": offset, "eps": 0.1}
        for tracked in (True, False):
            batch = crossnorm.BatchNormSpec(channels=4, tracked=tracked, **affine)
            cases += [(batch, shape, mode) for shape in ((5, 4), *_CHANNELS) for mode in _TRAINING]
            instance = crossnorm.InstanceNormSpec(channels=4, tracked=tracked, **affine)
            cases += [(instance, shape, mode) for shape in _CHANNELS for mode in _TRAINING]
        for groups in (1, 2, 4):
            group = crossnorm.GroupNormSpec(channels=4, groups=groups, **affine)
            cases += [(group, shape, TRAIN) for shape in ((5, 4), *_CHANNELS)]
        for subtract_mean in (True, False):
            layers = [crossnorm.LayerNormSpec(shape=s, subtract_mean=subtract_mean, **affine) for s in ((4,), (3, 2))]
            cases += [(layer, shape, TRAIN) for layer, shape in zip(layers, ((2, 3, 4), (2, 3, 2)), strict=True)]
            cases.append((layers[1], (3, 2), TRAIN))  # no batch dimension
        if offset:
            for shape in ((4,), (3, 2)):
                cases.append((crossnorm.RMSNormSpec(shape=shape, scale=scale, eps=0.1), (2, *shape), TRAIN))
                cases.append((crossnorm.RMSNormSpec(shape=shape, scale=scale, eps=0.1), shape, TRAIN))
    return [*cases, *_renormed(), *_switched(), *_filtered(), *_reparametrized()]


def _renormed() -> Iterator[Case]:
    """Half of the channels clipped, all of them, none; the ramp under way at step 3; one pair and two."""
    bounds: list[dict[str, Any]] = [
        {"r_max": 1.5, "d_max": 0.5, "r_max_steps": None, "d_max_steps": None},
        {"r_max": 3.0, "d_max": 5.0, "r_max_steps": (1, 5), "d_max_steps": (2, 4)},
        {"r_max": 1.1, "r_min": 0.0, "d_max": None, "r_max_steps": None, "d_max_steps": None},
        {"r_max": None, "d_max": 0.1, "r_max_steps": None, "d_max_steps": None, "scale": False, "offset": False},
    ]
    quantities = ("standard_deviation", "biased_variance", "unbiased_variance")
    for fields, quantity, pair in itertools.product(bounds, quantities, (None, 0.7)):
        spec = crossnorm.BatchRenormSpec(channels=4, eps=0.1, running_quantity=quantity, renorm_decay=pair, **fields)
        yield from ((spec, shape, mode) for shape in ((5, 4), (3, 4, 2), (3, 4, 1)) for mode in _TRAINING)


def _switched() -> Iterator[Case]:
    flags = itertools.product((True, False), repeat=3)
    for (use_instance, use_batch, affine), variance in itertools.product(flags, ("biased", "unbiased_instance", "unbiased")):
        uses = {"use_instance": use_instance, "use_batch": use_batch, "scale": affine, "offset": affine, "pooled": affine}
        spec = crossnorm.SwitchableNormSpec(channels=4, eps=0.1, variance=variance, **uses)
        yield from ((spec, shape, mode) for shape in ((3, 4), *_CHANNELS) for mode in _TRAINING)


def _filtered() -> Iterator[Case]:
    for learned_eps, threshold, affine in itertools.product(
        (None, "scalar", "channel"), (None, "channel", "element"), (True, False)
    ):
        for shape in ((3, 4), *_CHANNELS):
            spatial = shape[2:] if threshold == "element" else None
            if spatial == ():
                continue  # no positions: an element is a channel
            fields = {"learned_eps": learned_eps, "threshold": threshold, "spatial": spatial, "scale": affine, "offset": affine}
            yield crossnorm.FilterResponseNormSpec(channels=4, eps=2.0, **fields), shape, TRAIN


def _reparametrized() -> Iterator[Case]:
    for shape in ((3, 4), (4, 2, 3), (3, 1), (3,)):
        for scale, ddof, place in itertools.product((True, False), (0, 1), ("variance", "deviation", "maximum")):
            for eps in (0.1, 3.0, 20.0):  # beside a maximum: no row at the floor, some, all
                fields = {"scale": scale, "ddof": ddof, "eps_place": place, "gain": 1.7, "fan_in_scaling": scale}
                yield crossnorm.WeightStandardizationSpec(shape=shape, eps=eps, **fields), shape, TRAIN
        places = ("maximum", "maximum_of_square", "added_to_square")
        for place, over, scale, eps in itertools.product(places, ("row", "whole"), (True, False), (0.1, 4.0)):
            fields = {"norm_over": over, "eps_place": place, "scale": scale}
            yield crossnorm.WeightNormSpec(shape=shape, eps=eps, **fields), shape, TRAIN
        for place, order, stored, always in itertools.product(places, ("v_first", "u_first"), ("uv", "u"), (True, False)):
            if (order, stored) == ("u_first", "u"):
                continue
            for iterations, eps in ((1, 0.1), (3, 30.0), (0, 0.1)):
                fields = {"eps_place": place, "iteration_order": order, "stored": stored, "iterations": iterations}
                iterate = "always" if always else "training"
                spec = crossnorm.SpectralNormSpec(shape=shape, eps=eps, iterate=iterate, **fields)
                yield from ((spec, shape, mode) for mode in _TRAINING)


def _label(case: Case) -> str:
    spec, shape, mode = case
    fields = [f"{k}={v}" for k, v in spec.to_dict().items() if k in ("groups", "shape", "subtract_mean", "tracked")]
    switches = "".join(str(int(switch)) for switch in (mode.use_batch_statistics, mode.update_running))
    names = "+".join(array.name for array in spec.parameters)
    return "-".join([spec.method, *fields, names or "plain", "x".join(map(str, shape)), switches])


@pytest.fixture(params=_combinations(), ids=_label)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param
