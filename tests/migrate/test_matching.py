"""Which part is which: by the user's word, by names, by order; and what is refused, with all that is wrong."""

import numpy as np
import pytest

from crossnorm import BatchNormSpec, MigrationError, SpectralNormSpec
from crossnorm.migrate._parts import Part
from crossnorm.migrate._settings import Linear
from crossnorm.migrate._transfer.matching import inference_differences, match, training_differences


def dense(name, outputs=4, inputs=3):
    arrays = {"weight": np.zeros((outputs, inputs)), "bias": np.zeros(outputs)}
    return part(name, Linear(kind="dense", shape=(outputs, inputs), bias=True), arrays)


def norm(name, channels=4, **fields):
    spec = BatchNormSpec(channels=channels, **fields)
    return part(name, spec, {array.name: np.zeros(array.shape) for array in (*spec.parameters, *spec.state)})


def part(name, settings, arrays):
    return Part(name=name, framework="torch", layer=None, settings=settings, arrays=arrays, write=None, variables={})


def names(pairs):
    return {one.name: other.name for one, other in pairs}


def matched(source, target, mapping=None, skip=()):
    return names(match(source, target, mapping or {}, skip))


def test_by_name_whatever_the_separators_and_the_order():
    source = [dense("Block1/a", 4), dense("block1/b", 4)]
    target = [dense("block1_b", 4), dense("block1.a", 4)]
    assert matched(source, target) == {"Block1/a": "block1.a", "block1/b": "block1_b"}


def test_by_order_where_no_name_agrees():
    assert matched([dense("0"), norm("1")], [dense("dense"), norm("bn")]) == {"0": "dense", "1": "bn"}


def test_by_name_where_some_agree_and_the_rest_by_order():
    source = [dense("stem"), dense("x", 5), dense("head", 6)]
    target = [dense("head", 6), dense("stem"), dense("y", 5)]
    assert matched(source, target) == {"stem": "stem", "x": "y", "head": "head"}


def test_by_kind_and_shape_where_these_come_once():
    source, target = (
        [dense("a"), norm("b"), dense("c", 5), dense("d", 5)],
        [norm("e"), dense("f", 5), dense("g"), dense("h", 5)],
    )
    assert matched(source, target) == {"a": "g", "b": "e", "c": "f", "d": "h"}


def test_the_mapping_comes_first():
    source, target = [dense("a"), dense("b")], [dense("a"), dense("b")]
    assert matched(source, target, {"a": "b"}) == {"a": "b", "b": "a"}


def test_skip():
    source, target = [dense("body"), dense("head", 7)], [dense("body"), dense("head", 9)]
    assert matched(source, target, skip=["head"]) == {"body": "body"}
    assert matched(source, target, skip=["h*"]) == {"body": "body"}


@pytest.mark.parametrize(
    ("source", "target", "mapping", "skip", "words"),
    [
        ([dense("a"), dense("b", 5)], [dense("c")], {}, (), ["source b", "no counterpart"]),
        ([dense("a")], [dense("c"), norm("d")], {}, (), ["target d", "batch_norm", "no counterpart"]),
        ([dense("a"), dense("b")], [dense("c")], {}, (), ["source a", "source b", "one of 2 beside 1"]),
        (
            [dense("a"), norm("b"), dense("e"), norm("f")],
            [norm("c"), dense("d"), norm("g"), dense("h")],
            {},
            (),
            ["order is ambiguous", "source a", "target c"],
        ),
        ([dense("a"), dense("b")], [dense("b"), dense("x")], {}, (), ["source b", "by its name", "by the order target x"]),
        ([dense("a", 4), dense("b", 5)], [dense("a", 5), dense("b", 4)], {}, (), ["source a", "does not fit target a"]),
        ([dense("a")], [dense("b")], {"z": "b"}, (), ["mapping names 'z'", "no part of the source", "a"]),
        ([dense("a")], [dense("b")], {"a": "z"}, (), ["mapping names 'z'", "no part of the target"]),
        ([dense("a"), dense("b")], [dense("c"), dense("d")], {"a": "c", "b": "c"}, (), ["target 'c' 2 times"]),
        ([dense("a")], [dense("b")], {}, ("z*",), ["skip names 'z*'"]),
        ([norm("a", eps=1e-3)], [norm("a")], {}, (), ["source a", "target a", "eps 0.001 against 1e-05", "convert"]),
        ([dense("a"), norm("n", 3)], [dense("a"), norm("n", 5)], {}, (), ["source n", "does not fit"]),
    ],
)
def test_what_is_refused_is_listed(source, target, mapping, skip, words):
    with pytest.raises(MigrationError, match="nothing was written") as caught:
        match(source, target, mapping, skip)
    assert [word for word in words if word not in str(caught.value)] == []


def test_what_many_pairs_differ_in_is_told_once():
    source, target = ([norm(name, eps=eps) for name in "abc"] for eps in (1e-3, 1e-5))
    with pytest.raises(MigrationError, match="there is a problem, and nothing was written") as caught:
        match(source, target, {}, ())
    assert "source a and target a, and 2 more pairs, compute different things: eps 0.001 against 1e-05" in str(caught.value)


def test_training_fields_are_no_obstacle():
    one, other = norm("a", decay=0.99, running_variance="biased"), norm("a")
    assert matched([one], [other]) == {"a": "a"}
    assert training_differences(one, other) == ["decay 0.99 against 0.9", "running_variance 'biased' against 'unbiased'"]
    assert inference_differences(one, other) == []


def test_iterations_count_where_inference_iterates():
    """Spectral normalization with ``iterate="always"``."""
    once, twice = (SpectralNormSpec(shape=(2, 3), iterate="always", iterations=n) for n in (1, 2))
    one, other = (part("a", spec, {}) for spec in (once, twice))
    assert inference_differences(one, other) == ["iterations 1 against 2"]
    one, other = (part("a", spec.replace(iterate="training"), {}) for spec in (once, twice))
    assert training_differences(one, other) == ["iterations 1 against 2"]


def test_every_field_is_one_of_training_or_of_inference():
    """A name that no specification has any more would let a difference pass."""
    from dataclasses import fields

    from crossnorm.migrate._transfer.matching import TRAINING_FIELDS
    from crossnorm.spec import SPECS

    assert {field.name for spec in SPECS.values() for field in fields(spec)} >= TRAINING_FIELDS
