"""The examples in the README and in the guides run, and the commands are those that there are."""

import importlib.util
import re
from pathlib import Path

import pytest
import typer.main

from crossnorm.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = ("docs/conformance.md", "docs/migration.md")
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", *GUIDES)}
BLOCKS = {
    f"{page}, example {number}": block
    for page, text in PAGES.items()
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
}


@pytest.mark.parametrize("page", PAGES)
def test_there_are_examples(page):
    assert sum(name.startswith(page) for name in BLOCKS) >= 3


@pytest.mark.parametrize("name", BLOCKS)
def test_the_example_runs(name):
    for framework, word in (("torch", "torch"), ("tensorflow", "tensorflow"), ("tensorflow", "keras")):
        if word in BLOCKS[name]:
            pytest.importorskip(framework, reason="the example uses this framework")
    exec(compile(BLOCKS[name], name, "exec"), {})


@pytest.mark.parametrize(
    ("page", "name"), [("README.md", "conformance"), ("docs/conformance.md", "conformance"), ("docs/migration.md", "diff")]
)
def test_every_option_is_one(page, name):
    command = typer.main.get_command(app).commands[name]
    found = (command, *getattr(command, "commands", {}).values())
    options = {option for one in found for parameter in one.params for option in parameter.opts}
    commands = re.findall(rf"crossnorm {name}(?:[^`\n\\]|\\\n)*", PAGES[page])
    assert commands
    for line in commands:
        assert set(re.findall(r"(?<!\S)--?[a-z]+", line)) <= options, line


def test_ci_runs_the_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = "python -m pip install tox && tox"
    assert command in README
    assert [line.split(" ")[0] for line in script.splitlines() if line.startswith(("python -m pip install tox", "tox"))] == [
        "python",
        "tox",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\((?!http|#)([^)]+)\)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", GUIDES)
def test_every_link_within_a_guide_leads_to_a_heading(page):
    text = PAGES[page]
    headings = {
        heading.lower().replace(" ", "-").replace(",", "") for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_the_picture_shows_a_sound_and_an_unsound_kernel():
    for module in ("torch", "matplotlib"):
        pytest.importorskip(module, reason="the picture is drawn with it")
    spec = importlib.util.spec_from_file_location("error_against_offset", ROOT / "docs" / "error_against_offset.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    assert picture.units("torch.nn", 1.0) < picture.VERDICT
    assert picture.units("torch.nn", 1e3) > 1000 * picture.VERDICT
    assert max(picture.units("crossnorm-torch", offset) for offset in (1.0, 1e3, 1e5)) < 1
