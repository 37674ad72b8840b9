"""The benchmark runs and reports every row. How fast anything is, no test says: this machine may be busy."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crossnorm.spec import SPECS

ROOT = Path(__file__).parent.parent
COMPUTATIONS = ("forward", "+ backward")
LAYOUTS = {"torch": ("contiguous", "channels_last"), "tensorflow": ("channels_last",)}
KINDS = {"torch": ("Linear", "Conv2d"), "tensorflow": ("Dense", "Conv2D")}
NATIVE = {"torch": "torch.nn", "tensorflow": "keras.layers"}
IMAGES = {
    ("batch_norm", "native"),
    ("instance_norm", "native"),
    ("group_norm", "native"),
    ("batch_renorm", "our batch norm"),
    ("switchable_norm", "our batch norm"),
    ("switchable_norm", "transcription"),
    ("filter_response_norm", "composition"),
}
TOKENS = {("layer_norm", "native"), ("rms_norm", "native")}
WEIGHTS = {
    "torch": {
        ("weight_standardization", "bare layer"),
        ("spectral_norm", "torch.nn.utils.parametrizations"),
        ("weight_norm", "torch.nn.utils.parametrizations"),
    },
    "tensorflow": {
        ("weight_standardization", "bare layer"),
        ("spectral_norm", "keras.layers"),
        ("weight_norm", "bare layer"),
    },
}


def expected(framework):
    """Method, what it is compared with, layout and computation of every row, in any order."""
    rows = [
        *itertools.product(IMAGES, LAYOUTS[framework], COMPUTATIONS),
        *itertools.product(TOKENS, ("tokens",), COMPUTATIONS),
        *itertools.product(WEIGHTS[framework], KINDS[framework], COMPUTATIONS),
    ]
    return sorted((method, NATIVE[framework] if other == "native" else other, *rest) for (method, other), *rest in rows)


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
    named = ("method", "against", "layout", "computation")
    assert sorted(tuple(row[name] for name in named) for row in report[framework]) == expected(framework)
    assert {row["method"] for row in report[framework]} == set(SPECS)
    for row in report[framework]:
        assert row["theirs"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"])
    for limit in report["streaming limit"].values():
        assert 0 < limit["forward"] < limit["+ backward"]


def test_the_table_has_every_row(framework):
    printed = compare("--framework", framework)
    assert printed.count("Streaming limit") == 2
    assert max(map(len, printed.splitlines())) <= 80
    rows = []
    for line in printed.splitlines():
        if ", against " in line:
            method, _, against = line.partition(", against ")
        elif line.startswith("  ") and line.strip() and "theirs" not in line:
            layout, rest = line.split(maxsplit=1)
            computation, theirs, ours, ratio = rest.rsplit(maxsplit=3)
            rows.append((method, against, layout, computation))
            assert all(float(number) >= 0 for number in (theirs, ours, ratio))
    assert sorted(rows) == expected(framework)
