"""The order in which features come where an image was flattened, or is made of a vector: found by comparing two runs."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossnorm.errors import MigrationError
from crossnorm.spec import WeightSpec

from .._parts import Arrange, Part
from .._trace import Call, Recording
from .matching import Pairs
from .running import Model

Array = NDArray[Any]


def reordered(
    pairs: Pairs, source: Recording, target: Recording, orders: Mapping[str, Array]
) -> tuple[Part, Part, Array] | None:
    """The first pair whose inputs are the same numbers in the order of another layout, and that order."""
    here, there = ({call.part.name: call for call in reversed(recording.calls)} for recording in (source, target))
    for a, b in pairs:
        if a.name not in here or b.name not in there or b.name in orders or a.kind == "embedding":
            continue
        x, y = (calls[name].inputs.get("input") for calls, name in ((here, a.name), (there, b.name)))
        if x is None or y is None or x.ndim != 2 or x.shape != y.shape:
            continue
        flattened = _flattened(source, here[a.name]) or _flattened(target, there[b.name])
        if not flattened and same(x, y):
            continue
        features = x.shape[1]
        divisors = [size for size in range(1, features) if features % size == 0]
        found = [np.arange(features).reshape(-1, size).T.ravel() for size in divisors]
        fitting = [order for order in found if same(x[:, order], y)]
        names = _by_feature(a, np.arange(features))
        if flattened and len({tuple(a.arrays[name][..., order].tobytes() for name in names) for order in fitting}) > 1:
            raise _ambiguous(a)
        if fitting and not same(x, y):
            return a, b, fitting[0]
    return None


def reshaped(
    pairs: Pairs, source: Recording, other: Model, taken: dict[str, Array], given: dict[str, Array]
) -> tuple[Part, Part] | None:
    """Find the order in which the next dense layer whose output becomes an image has to give it, and write that."""
    partners = {a.name: (a, b) for a, b in pairs}
    for image, chain in _images(source):
        through = [partners[call.part.name] for call in (image, *chain) if call.part.name in partners]
        if len(through) <= len(chain) or through[-1][1].name in given:
            continue
        (_, first), *norms, (dense, copy) = through
        x = image.inputs["input"]
        places = np.arange(x[0].size)
        orders = [places, places.reshape(x.shape[-1], -1).T.ravel(), places.reshape(-1, x.shape[-1]).T.ravel()]
        fitting = {}
        for order in orders:
            _write_image(norms, (dense, copy), taken.get(copy.name), order)
            got = {call.part.name: call for call in reversed(other.record().calls)}.get(first.name)
            if got is not None and x.shape == got.inputs["input"].shape and same(x, got.inputs["input"]):
                fitting[rearranged(dense, None, order).arrays["weight"].tobytes()] = order
        if len(fitting) > 1:
            raise _ambiguous(image.part)
        chosen = next(iter(fitting.values()), places)
        _write_image(norms, (dense, copy), taken.get(copy.name), chosen)
        given[copy.name] = chosen
        taken |= {b.name: chosen for _, b in norms}
        return dense, copy
    return None


def _write_image(norms: Pairs, dense: tuple[Part, Part], taken: Array | None, given: Array) -> None:
    """Write a dense layer that gives its features in an order, and the normalizations behind it."""
    for a, b in norms:
        b.write(rearranged(a, given, None).arrays)
    dense[1].write(rearranged(dense[0], taken, given).arrays)


def _images(recording: Recording) -> Iterator[tuple[Call, list[Call]]]:
    """The calls that take as an image what has no positions, with what was called before, back to the dense layer."""
    for place, image in enumerate(recording.calls):
        x = image.inputs.get("input")
        chain = []
        for call in reversed(recording.calls[:place]):
            if x is None or x.ndim < 3 or call.output.shape != (len(x), x[0].size):
                break
            chain.append(call)
            if mixes(call.part):
                yield image, chain
                break


def _flattened(recording: Recording, call: Call) -> bool:
    """Whether the input of a call, which has no positions, can be an image that was flattened."""
    before = recording.calls[: [id(each) for each in recording.calls].index(id(call))]
    handed_on = before and before[-1].output.ndim == 2 and before[-1].output.shape == call.inputs["input"].shape
    return not handed_on and any(each.output.ndim > 2 for each in before)


def in_order(pairs: Pairs, taken: Mapping[str, Array], given: Mapping[str, Array]) -> Pairs:
    """The pairs, each source as its target has it now, so that an optimizer's state follows the weights."""
    return [(rearranged(a, taken.get(b.name), given.get(b.name)), b) for a, b in pairs]


def rearranged(part: Part, taken: Array | None, given: Array | None) -> Part:
    """A part that takes its features in one order, and gives them in another."""
    indices: dict[str, Any] = {}
    if taken is not None:
        indices = dict.fromkeys(_by_feature(part, taken), (..., taken))
    if given is not None:
        rows = [name for name, array in part.arrays.items() if name != "v" and array.shape[:1] == given.shape]
        indices |= {name: (given[:, None], taken) if name in indices else given for name in rows}
    arrays = {name: part.arrays[name][index] for name, index in indices.items()}
    arrange = {name: partial(_picked, part.arrange[name], i) for name, i in indices.items() if name in part.arrange}
    return replace(part, arrays={**part.arrays, **arrays}, arrange={**part.arrange, **arrange})


def _picked(arrange: Arrange, index: Any, stored: Array) -> Array:
    return arrange(stored)[index]


def _by_feature(part: Part, order: Array) -> list[str]:
    """The arrays of a part whose last axis is that of the features that come in."""
    if mixes(part):
        return [name for name in ("weight", "v") if name in part.arrays]
    return [name for name, array in part.arrays.items() if array.shape == order.shape]


def mixes(part: Part) -> bool:
    """Whether what comes out are other features than those that come in."""
    return part.kind == "dense" or isinstance(part.settings, WeightSpec)


def same(x: Array, y: Array) -> bool:
    """Whether two arrays agree but for rounding; the proof in units comes later."""
    return bool(np.max(np.abs(x - y), initial=0) <= 1e-3 * np.max(np.abs(y), initial=0))


def _ambiguous(part: Part) -> MigrationError:
    return MigrationError(
        f"transfer: what reaches source {part.name} is the same in several orders, zeros or one number for all, so that nobody "
        "can tell in which the models flatten an image, or make one; the copy was undone: give other inputs="
    )
