"""Specifications, modes and random data for every test of this room."""

import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass

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
    if state:
        state["running_variance"] = np.exp(state["running_variance"])
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


def _combinations() -> list[tuple[NormSpec, tuple[int, ...], Mode]]:
    """Every method, mode and combination of the fields that change the arithmetic, over several shapes."""
    flags = list(itertools.product((True, False), repeat=2))
    cases: list[tuple[NormSpec, tuple[int, ...], Mode]] = []
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
    return cases


def _label(case: tuple[NormSpec, tuple[int, ...], Mode]) -> str:
    spec, shape, mode = case
    fields = [f"{k}={v}" for k, v in spec.to_dict().items() if k in ("groups", "shape", "subtract_mean", "tracked")]
    switches = "".join(str(int(switch)) for switch in (mode.use_batch_statistics, mode.update_running))
    names = "+".join(array.name for array in spec.parameters)
    return "-".join([spec.method, *fields, names or "plain", "x".join(map(str, shape)), switches])


@pytest.fixture(params=_combinations(), ids=_label)
def case(request: pytest.FixtureRequest) -> tuple[NormSpec, tuple[int, ...], Mode]:
    return request.param
