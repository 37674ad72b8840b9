"""docs/migration.md: its tables are those of today, and what they say of `transfer` is what it does."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from crossnorm import MigrationError
from crossnorm.migrate import describe, parts
from crossnorm.migrate._transfer.matching import inference_differences, match, training_differences
from crossnorm.spec import SPECS

DOCS = Path(__file__).parents[2] / "docs"


def _table_script():
    spec = importlib.util.spec_from_file_location("migration_table", DOCS / "migration_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = _table_script()
PAGE = (DOCS / "migration.md").read_text(encoding="utf-8")
FIELDS = [(method, field.name) for method, cls in SPECS.items() for field in fields(cls)]


def row(method, first):
    """The cells of a row of the page."""
    section = PAGE.partition(f"\n### {method}\n")[2].partition("\n### ")[0]
    (line,) = (line for line in section.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_tables_are_those_of_today():
    assert TABLE.written(PAGE) == PAGE


@pytest.mark.parametrize(("method", "field"), FIELDS)
def test_transfer_does_with_a_field_what_the_page_says(method, field):
    says = row(method, f"`{field}`")[3]
    specs = TABLE.pair(method, field)
    if specs is None:
        assert says == "has one value"
        return
    one, other = (parts(torch.nn.Sequential(TABLE.in_torch(spec))) for spec in specs)
    if says == "reported: other training":
        ((source, target),) = match(one, other, {}, ())
        assert [difference.partition(" ")[0] for difference in training_differences(source, target)] == [field]
        assert not inference_differences(source, target)
        return
    with pytest.raises(MigrationError) as error:
        match(one, other, {}, ())
    assert {"refused: other arrays": "does not fit", "refused: other results": f": {field} "}[says] in str(error.value)


@pytest.mark.parametrize("method", SPECS)
def test_the_page_has_every_array_of_both_frameworks(method):
    spec = TABLE.example(method)
    for layer in (TABLE.in_torch(spec), TABLE.in_keras(spec)):
        for role in describe(layer).arrays:
            assert row(method, f"array `{role}`")[3].startswith("copied")


def test_every_divergence_that_is_answered_is_one():
    catalogue = (DOCS / "divergences.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"divergences\.md#(divergence-\d+)\)", PAGE))
    assert len(linked) >= 25
    assert linked <= set(re.findall(r'<a id="(divergence-\d+)">', catalogue))


def test_every_answer_stands_at_a_row_that_there_is():
    for method, what in TABLE.ANSWERS:
        assert row(method, f"array `{what.removeprefix('array ')}`" if what.startswith("array ") else f"`{what}`")[4]


def test_an_answer_is_about_the_same_method():
    rows = re.findall(r'<a id="divergence-(\d+)"></a>\d+ \| (\w+)', (DOCS / "divergences.md").read_text(encoding="utf-8"))
    about = {int(number): method for number, method in rows}
    strangers = {(method, n) for (method, _), numbers in TABLE.ANSWERS.items() for n in numbers if about[n] != method}
    # The catalogue has Keras' LayerNormalization(rms_scaling=True) under the method that it is mistaken for.
    assert strangers == {("layer_norm", 32)}
