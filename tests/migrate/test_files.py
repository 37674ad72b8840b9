"""Files of descriptions: what was written comes back, and no damaged or hostile file does more than raise one error."""

import json
import os
import random
import re
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from crossnorm import (
    BatchNormSpec,
    BatchRenormSpec,
    FilterResponseNormSpec,
    GroupNormSpec,
    InstanceNormSpec,
    LayerNormSpec,
    RMSNormSpec,
    SpectralNormSpec,
    SwitchableNormSpec,
    WeightNormSpec,
    WeightStandardizationSpec,
)
from crossnorm.errors import MigrationError
from crossnorm.migrate import Layout, Linear, load, save
from crossnorm.migrate import _files as crossnorm_files

FUZZED = 10_000

# One layer of each method.
SPECS = (
    BatchNormSpec(channels=3, decay=None),
    LayerNormSpec(shape=(2, 3), subtract_mean=False),
    GroupNormSpec(channels=4, groups=2, scale=False, offset=False),
    InstanceNormSpec(channels=3, tracked=True),
    RMSNormSpec(shape=3, eps=2.0**-23),
    BatchRenormSpec(channels=2, renorm_decay=0.1 + 0.2),
    SwitchableNormSpec(channels=2, pooled=True),
    FilterResponseNormSpec(channels=2, learned_eps="scalar", threshold="element", spatial=(2, 2)),
    WeightStandardizationSpec(shape=(4, 2, 3), scale=True, gain=1.7),
    SpectralNormSpec(shape=(4, 3), stored="u"),
    WeightNormSpec(shape=(4, 6), norm_over="whole", transposed_row="input"),
)
HOLDERS = {
    "weight_standardization": Linear(
        kind="convolution", shape=(4, 2, 3), bias=True, groups=2, stride=(2,), padding=((1, 1),), dilation=(1,)
    ),
    "spectral_norm": Linear(kind="dense", shape=(4, 3)),
}


def arrays_of(spec, holder=None, dtype="float32"):
    random_numbers = np.random.default_rng(0)
    shapes = {array.name: array.shape for array in (*spec.parameters, *spec.state)}
    if hasattr(spec, "rows"):
        shapes["weight"] = spec.shape
        if holder is not None and holder.bias:
            shapes["bias"] = holder.shape[:1]
    arrays = {name: random_numbers.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    return arrays | ({"batches_tracked": np.array(7)} if "batches_tracked" in arrays else {})


@pytest.fixture
def layers():
    found = {}
    for spec in SPECS:
        holder = HOLDERS.get(spec.method)
        layout = Layout(axis=-1, rank=2, holder=holder, name="weight" if holder else None)
        found[f"block.{spec.method}"] = (spec, layout, arrays_of(spec, holder))
    return found


def assert_equal(loaded, layers):
    assert list(loaded) == list(layers)
    for name, (spec, layout, arrays) in layers.items():
        assert loaded[name].spec == spec
        assert loaded[name].layout == layout
        assert list(loaded[name].arrays) == list(arrays)
        for key, array in arrays.items():
            found = loaded[name].arrays[key]
            assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes()), (name, key)


def test_what_was_saved_comes_back(layers, tmp_path):
    save(tmp_path / "norms.safetensors", layers)
    assert_equal(load(tmp_path / "norms.safetensors"), layers)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_dtype_comes_back_bit_for_bit_with_nan_and_infinity(dtype, tmp_path):
    kind = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    bits = np.random.default_rng(1).integers(0, 256, 64 * np.dtype(kind).itemsize, dtype=np.uint8)
    spec = RMSNormSpec(shape=64)
    layers = {"norm": (spec, Layout(dtype=dtype), {"scale": bits.view(kind)})}
    save(tmp_path / "file", layers)
    assert_equal(load(tmp_path / "file"), layers)


def test_big_endian_and_strided_arrays_are_saved_by_value(tmp_path):
    values = np.arange(12, dtype=">f4").reshape(4, 3).T
    save(tmp_path / "file", {"norm": (RMSNormSpec(shape=(3, 4)), Layout(), {"scale": values})})
    found = load(tmp_path / "file")["norm"].arrays["scale"]
    assert found.dtype == np.dtype("float32")
    assert np.array_equal(found, values)


def test_no_layers_are_a_file_too(tmp_path):
    save(tmp_path / "file", {})
    assert load(tmp_path / "file") == {}


# What cannot be written changes nothing.


def test_a_file_that_is_there_survives_a_failed_save(layers, tmp_path, monkeypatch):
    save(tmp_path / "file", layers)
    before = (tmp_path / "file").read_bytes()

    def fails(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crossnorm_files.os, "replace", fails)
    with pytest.raises(MigrationError, match="No space left"):
        save(tmp_path / "file", {})
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == before
    assert os.listdir(tmp_path) == ["file"]


SCALE = {"scale": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"norm": (RMSNormSpec(shape=2), Layout(), SCALE)}, "arrays of shapes"),
        ({"norm": (RMSNormSpec(shape=3), Layout(), {})}, "arrays of shapes"),
        ({"norm": (RMSNormSpec(shape=3), Layout(), SCALE | {"offset": SCALE["scale"]})}, "arrays of shapes"),
        ({"norm": (RMSNormSpec(shape=3), Layout(), {"scale": np.ones(3, int)})}, "is of int64"),
        ({"norm": (RMSNormSpec(shape=3), Layout(), {"scale": [1.0, 1.0, 1.0]})}, "is of list"),
        ({"norm": (RMSNormSpec(shape=3), None, SCALE)}, "no specification, Layout"),
        ({"norm": (RMSNormSpec(shape=3), SCALE)}, "no description"),
        ({"": (RMSNormSpec(shape=3), Layout(), SCALE)}, "no name"),
        ({"\ud800": (RMSNormSpec(shape=3), Layout(), SCALE)}, "no name"),
        ({7: (RMSNormSpec(shape=3), Layout(), SCALE)}, "no name"),
    ],
)
def test_what_is_no_description_is_not_written(layers, words, tmp_path):
    with pytest.raises(MigrationError, match=words):
        save(tmp_path / "file", layers)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("path", ["missing/file", "", "a\0b", "x" * 300, None, 7])
def test_a_path_that_leads_nowhere_is_one_error(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for act in (lambda: save(path, {}), lambda: load(path)):
        with pytest.raises(MigrationError, match=r"cannot be (read|written)"):
            act()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("path", [".", "/dev/zero"])
def test_a_folder_or_a_device_is_no_file(path):
    with pytest.raises(MigrationError, match="no such file"):
        load(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="who may read everything is refused nothing")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path):
    save(tmp_path / "file", {})
    (tmp_path / "file").chmod(0)
    with pytest.raises(MigrationError, match="Permission"):
        load(tmp_path / "file")


# Hostile files.


def parts_of(data):
    """The header of a file, its document and its numbers."""
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["crossnorm"]), data[8 + size :]


def file_of(header, document, numbers, size=None):
    if document is not None and isinstance(header, dict):
        text = document if isinstance(document, str) else json.dumps(document)
        header = {**header, "__metadata__": {"crossnorm": text}}
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + numbers


@pytest.fixture
def parts(layers, tmp_path):
    save(tmp_path / "good", layers)
    return parts_of((tmp_path / "good").read_bytes())


def refused(data, tmp_path):
    """The error's words; they name the file, and are one sentence with a remedy."""
    path = tmp_path / "hostile"
    path.write_bytes(data)
    with pytest.raises(MigrationError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert ";" in message
    return message


def test_a_file_of_others_is_not_ours(parts, tmp_path):
    header, document, numbers = parts
    assert "no 'crossnorm'" in refused(file_of({**header, "__metadata__": {"format": "pt"}}, None, numbers), tmp_path)
    del header["__metadata__"]
    assert "no 'crossnorm'" in refused(file_of(header, None, numbers), tmp_path)
    assert "not of the format" in refused(file_of(header, {**document, "format": "other"}, numbers), tmp_path)


@pytest.mark.parametrize("version", [2, 10**30])
def test_a_later_version_asks_for_an_upgrade(version, parts, tmp_path):
    header, document, numbers = parts
    assert "upgrade" in refused(file_of(header, {**document, "version": version}, numbers), tmp_path)
    document["layers"]["block.rms_norm"]["spec"]["version"] = version
    assert "upgrade" in refused(file_of(header, document, numbers), tmp_path)


@pytest.mark.parametrize("version", [0, -1, True, None, "1", 1.0, [1]])
def test_a_version_is_a_positive_integer(version, parts, tmp_path):
    header, document, numbers = parts
    assert "version" in refused(file_of(header, {**document, "version": version}, numbers), tmp_path)


def test_an_unknown_method_is_named(parts, tmp_path):
    header, document, numbers = parts
    document["layers"]["block.rms_norm"]["spec"]["method"] = "magic_norm"
    assert "magic_norm" in refused(file_of(header, document, numbers), tmp_path)


def test_a_tensor_too_much_or_too_little_is_named(parts, tmp_path):
    header, document, numbers = parts
    renamed = {name.replace("block.rms_norm.scale", "other.scale"): tensor for name, tensor in header.items()}
    assert "'other.scale'" in refused(file_of(renamed, document, numbers), tmp_path)
    renamed = {name.replace("rms_norm.scale", "rms_norm.offset"): tensor for name, tensor in header.items()}
    assert "rms_norm" in refused(file_of(renamed, document, numbers), tmp_path)
    del document["layers"]["block.rms_norm"]
    assert "'block.rms_norm.scale'" in refused(file_of(header, document, numbers), tmp_path)


@pytest.mark.parametrize("dtype", ["I32", "U32", "F8_E4M3", "BOOL", "U8"])
def test_another_dtype_is_refused(dtype, parts, tmp_path):
    header, document, numbers = parts
    header["block.rms_norm.scale"]["dtype"] = dtype
    refused(file_of(header, document, numbers), tmp_path)


def test_a_shape_that_the_specification_does_not_have_is_refused(parts, tmp_path):
    header, document, numbers = parts
    header["block.rms_norm.scale"]["shape"] = [1, 3]
    assert "(1, 3)" in refused(file_of(header, document, numbers), tmp_path)


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 10**8 + 1, 0])
def test_a_header_that_lies_about_its_size_allocates_nothing(size, parts, tmp_path):
    header, document, numbers = parts
    tracemalloc.start()
    try:
        refused(file_of(header, document, numbers, size), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_tensor_of_absurd_size_allocates_nothing(parts, tmp_path):
    header, document, numbers = parts
    header["block.rms_norm.scale"] = {"dtype": "F64", "shape": [2**40, 2**20], "data_offsets": [0, 2**63]}
    refused(file_of(header, document, numbers), tmp_path)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 5000, "[" * 100_000, '{"a":' * 100_000])
def test_values_that_are_no_json_or_no_end_of_it(value, parts, tmp_path):
    header, document, numbers = parts
    text = json.dumps(document).replace("1.1920928955078125e-07", value)
    assert value in text
    refused(file_of(header, text, numbers), tmp_path)
    refused(file_of(json.dumps(header).replace("[3]", value).encode(), None, numbers), tmp_path)


def test_a_key_twice_is_refused(parts, tmp_path):
    header, document, numbers = parts
    text = json.dumps(document).replace('"version"', '"version": 1, "version"', 1)
    assert "twice" in refused(file_of(header, text, numbers), tmp_path)
    twice = json.dumps(header).replace('"dtype"', '"dtype": "F32", "dtype"', 1).encode()
    assert "twice" in refused(file_of(twice, None, numbers), tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("axis", 1.5), ("axis", []), ("axis", True), ("axis", {"a": 1}), ("rank", -1), ("rank", "2"), ("dtype", None),
        ("name", 3), ("holder", 1), ("holder", {}), ("holder", {"kind": "dense"}), ("other", 1),
        ("holder", {"kind": "dense", "shape": [4, 3], "bias": 1}),
        ("holder", {"kind": "dense", "shape": [4, 4]}),
        ("holder", {"kind": "dense", "shape": [4]}),
        ("holder", {"kind": "dense", "shape": [4, 3], "bias": True}),
        ("holder", {"kind": "dense", "shape": [4, 3], "groups": 0}),
        ("holder", {"kind": "dense", "shape": [4, 3], "padding": [1]}),
        ("holder", {"kind": "lstm", "shape": [4, 3]}),
        ("holder", {"kind": ["dense"], "shape": [4, 3]}),
    ],
)  # fmt: skip
def test_a_layout_has_fields_of_its_types_only(field, value, parts, tmp_path):
    header, document, numbers = parts
    document["layers"]["block.spectral_norm"]["layout"][field] = value
    refused(file_of(header, document, numbers), tmp_path)


ODD = [None, True, -1, 0, 10**40, 1.5, -0.0, 1e308, "", "batch_norm", [], [1], [[]], {}, {"a": []}, "\x00", [10**25, 1]]


def mutated_value(value, chance):
    """A JSON value in which one place, some way down, is another one."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key, action = chance.choice(list(value)), chance.random()
        if action < 0.7:
            return {**value, key: mutated_value(value[key], chance)}
        rest = {name: part for name, part in value.items() if name != key}
        return rest if action < 0.85 else {**rest, chance.choice(["x", "version", key + "x"]): value[key]}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], mutated_value(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD)


def damaged(data, parts, chance):
    """A file that something happened to."""
    header, document, numbers = parts
    kind, place, many = chance.randrange(8), chance.randrange(len(data)), chance.randrange(1, 20)
    if kind == 0:
        return data[:place]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(many):
            flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    if kind == 2:
        return data[:place] + chance.randbytes(many) + data[place:]
    if kind == 3:
        return data[:place] + data[place + many :]
    if kind == 4:
        return struct.pack("<Q", chance.choice([chance.getrandbits(64), chance.randrange(len(data)), 10**8])) + data[8:]
    if kind == 5:  # somewhere in the header
        start = chance.randrange(8, len(data) - len(numbers))
        return (
            data[:start] + chance.choice([b'"', b"}", b"[", b"{", b",", b"9", b"\\", b"\xff", b"-", b"e"]) + data[start + 1 :]
        )
    if kind == 6:
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        return file_of(mutated_value(tensors, chance), document, numbers)
    return file_of(header, mutated_value(document, chance), numbers)


def test_ten_thousand_damaged_files_are_loaded_or_refused(parts, tmp_path):
    chance, path = random.Random(5), tmp_path / "damaged"
    data = (tmp_path / "good").read_bytes()
    loaded, messages = 0, set()
    for _ in range(FUZZED):
        path.write_bytes(damaged(data, parts, chance))
        try:
            load(path)
        except MigrationError as error:
            message = str(error)
            assert message.startswith("crossnorm.migrate.load: ")
            assert str(path) in message
            messages.add(re.sub(r"\W.*", "", message.split(str(path))[1].strip(": "))[:20])
        else:
            loaded += 1
    # Flips in the numbers are no damage that a file shows; all else is, in many ways.
    assert 50 < loaded < FUZZED / 2
    assert len(messages) > 5


def test_no_file_makes_python_objects(parts, tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    refused(pickle.dumps(Trap()), tmp_path)
    assert not (tmp_path / "sprung").exists()
