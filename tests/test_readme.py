"""The README's examples run, and its commands are those that CI runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_examples():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_example_runs(number):
    for framework in ("torch", "tensorflow"):
        if f"crossnorm.{framework}" in BLOCKS[number]:
            pytest.importorskip(framework, reason="the example uses this framework")
    exec(compile(BLOCKS[number], f"README.md, example {number}", "exec"), {})


def test_ci_runs_the_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = "python -m pip install tox && tox"
    assert command in README
    assert [line.split(" ")[0] for line in script.splitlines() if line.startswith(("python -m pip install tox", "tox"))] == [
        "python",
        "tox",
    ]


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
