"""The catalogue of divergences: complete, true here, written down, and quick to notice a peer that changes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from crossnorm_conformance.cases import methods
from crossnorm_conformance.compare import FAIL, KNOWN, UNSUPPORTED
from crossnorm_conformance.divergences import __main__ as page
from crossnorm_conformance.divergences import _peers, _sightings, divergences, waiting
from crossnorm_conformance.divergences.verdict import check_divergence

ROWS = {row.number: row for row in divergences()}
PAGE = Path(__file__).parents[2] / "docs" / "divergences.md"


def judged(number):
    (check,) = check_divergence(ROWS[number])
    return check


def test_every_number_is_shown_or_waits():
    assert sorted([*ROWS, *waiting()]) == list(range(1, 79))


def test_most_rows_are_shown():
    assert len(ROWS) >= 55


@pytest.mark.parametrize("number", ROWS)
def test_row_holds(number):
    check = judged(number)
    if check.verdict == UNSUPPORTED:
        pytest.skip(check.reason)
    assert check.verdict == KNOWN, check.reason


@pytest.mark.parametrize("number", ROWS)
def test_row_is_written_for_a_reader(number):
    row = ROWS[number]
    assert row.point.endswith(".")
    assert 12 <= len(row.point.split()) <= 60
    assert row.method in methods(())
    assert set(row.peers) <= set(_peers.PACKAGES)
    assert row.peers
    assert not row.link or row.link.startswith("https://github.com/")


def test_every_waiting_row_says_what_it_waits_for():
    assert all("waits for" in reason and reason.endswith(".") for reason in waiting().values())


def test_reading_the_catalogue_loads_no_peer():
    """A fresh interpreter's ``sys.modules`` is the witness: a run of other questions must not pay for eight frameworks."""
    code = "from crossnorm_conformance.divergences import divergences; divergences(); import sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=with_paths())
    assert not {package for packages in _peers.PACKAGES.values() for package in packages} & set(result.stdout.split())


def with_paths():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_titles_are_unique():
    assert len({row.title for row in ROWS.values()}) == len(ROWS)


def stores_biased_variance(torch):
    forward = torch.nn.BatchNorm1d.forward

    def changed(self, x):
        y = forward(self, x)
        self.running_var.copy_(x.var(0, unbiased=False))
        return y

    return torch.nn.BatchNorm1d, "forward", changed


def normalizes_a_pixel(torch):
    return torch.nn.InstanceNorm2d, "forward", lambda self, x: torch.zeros_like(x)


def keeps_output_channels(torch):
    module = torch.nn.utils.parametrizations
    weight_norm = module.weight_norm
    return module, "weight_norm", lambda layer: weight_norm(layer, dim=1)


def is_exact_on_channels_last(torch):
    forward = torch.nn.GroupNorm.forward
    return torch.nn.GroupNorm, "forward", lambda self, x: forward(self, x.contiguous())


def cannot_be_built(torch):
    def changed(self, *arguments, **options):
        raise TypeError("no\nmore")

    return torch.nn.SyncBatchNorm, "__init__", changed


@pytest.mark.parametrize(
    ("number", "mutant", "reason"),
    [
        (1, stores_biased_variance, "torch 1, not 1.1429"),
        (31, normalizes_a_pixel, "torch, in inference accepted, not ValueError"),
        (37, is_exact_on_channels_last, "less than"),
        (67, keeps_output_channels, "weight norm's gain (1, 8, 1, 1), not (3, 1, 1, 1)"),
        (17, cannot_be_built, "raised TypeError: no more"),
    ],
)
def test_a_peer_that_changed_is_noticed(number, mutant, reason, monkeypatch):
    torch = pytest.importorskip("torch")
    if missing := _peers.lacking(ROWS[number].peers):
        pytest.skip(missing)
    assert judged(number).verdict == KNOWN
    monkeypatch.setattr(*mutant(torch))
    check = judged(number)
    assert check.verdict == FAIL
    assert check.reason.startswith("changed: ")
    assert reason in check.reason


def test_a_keras_that_changed_is_noticed(monkeypatch):
    if missing := _peers.lacking(["torch", "keras"]):
        pytest.skip(missing)
    import keras

    layer = keras.layers.BatchNormalization
    call = layer.call
    monkeypatch.setattr(layer, "call", lambda self, x, training=True, mask=None: call(self, x, training=True, mask=mask))
    assert judged(7).verdict == FAIL


def test_a_missing_package_is_no_failure(monkeypatch):
    find_spec = _peers.find_spec
    monkeypatch.setattr(_peers, "find_spec", lambda name: None if name in ("flax", "jax") else find_spec(name))
    check = judged(25)
    assert (check.verdict, check.reason) == (UNSUPPORTED, "needs flax and jax, which are not installed")
    assert judged(15).reason.endswith("not installed")


def test_keras_on_another_backend_is_no_failure(monkeypatch):
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    check = judged(20)
    assert (check.verdict, "runs on jax" in check.reason) == (UNSUPPORTED, True)


def test_a_row_leaves_the_generator_of_torch_alone():
    torch = pytest.importorskip("torch")
    before = torch.random.get_rng_state()
    judged(64)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("holds", "fails"),
    [
        (_sightings.near("", [1, 1 + 1e-6], 1), _sightings.near("", [1, 1 + 1e-4], 1)),
        (_sightings.near("", np.inf, np.inf), _sightings.near("", np.nan, np.inf)),
        (_sightings.near("", 1e-6, 0), _sightings.near("", 1e-4, 0)),
        (_sightings.between("", 1, 0.5, 2), _sightings.between("", np.nan, 0.5, 2)),
        (_sightings.ruined("", np.nan, 0.5), _sightings.ruined("", 0.4, 0.5)),
        (_sightings.same("", (2, 3), (2, 3)), _sightings.same("", (2, 3), (3, 2))),
        (_sightings.lost("", [np.nan, np.nan]), _sightings.lost("", [np.nan, 0])),
        (_sightings.lost("", [np.nan]), _sightings.lost("", [])),
        (_sightings.raises("", ValueError, lambda: int("x")), _sightings.raises("", TypeError, lambda: int("x"))),
        (_sightings.raises("", ValueError, lambda: int("x")), _sightings.raises("", ValueError, int)),
    ],
)
def test_a_sighting_can_fail(holds, fails):
    assert holds.holds
    assert not fails.holds


def test_the_page_agrees_with_the_catalogue():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith('| <a id="')]
    waits = [line for line in lines if line.startswith("- ")]
    assert [row.rpartition(" | ")[0] + " |" for row in rows] == [page.row_of(row) for row in ROWS.values()]
    assert waits == [page.waiting_line(number) for number in waiting()]
