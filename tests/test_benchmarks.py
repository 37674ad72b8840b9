"""The benchmark runs and reports every row. How fast anything is, no test says: this machine may be busy."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IMAGES = ("batch_norm", "instance_norm", "group_norm")
TOKENS = ("layer_norm", "rms_norm")
COMPUTATIONS = ("forward", "+ backward")
LAYOUTS = {"torch": ("contiguous", "channels_last"), "tensorflow": ("channels_last",)}


def expected(framework):
    """Method, layout and computation of every row."""
    return [
        *itertools.product(IMAGES, LAYOUTS[framework], COMPUTATIONS),
        *itertools.product(TOKENS, ("tokens",), COMPUTATIONS),
    ]


def compare(*arguments):
    """What the benchmark prints, in a process of its own, because it sets the number of threads."""
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), "--quick", "--repeats", "2", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert result.returncode == 0, result.stderr
    return result.stdout


def environment():
    """The checkout comes first, as in this process; tables 80 characters wide."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "80"}


@pytest.fixture(params=LAYOUTS)
def framework(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def test_json_has_every_row(framework):
    report = json.loads(compare("--framework", framework, "--json"))
    assert set(report) == {"streaming limit", framework}
    assert [(row["method"], row["layout"], row["computation"]) for row in report[framework]] == expected(framework)
    for row in report[framework]:
        assert row["native"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["native"])
    for limit in report["streaming limit"].values():
        assert 0 < limit["forward"] < limit["+ backward"]


def test_the_table_has_every_row(framework):
    printed = compare("--framework", framework)
    assert printed.count("Streaming limit") == 2
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    assert [tuple(row[:3]) for row in rows] == expected(framework)
    for row in rows:
        assert all(float(cell) >= 0 for cell in row[3:])
