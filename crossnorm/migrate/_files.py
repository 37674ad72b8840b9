"""Descriptions in files: the arrays as safetensors, specifications and layouts as one JSON document in their metadata."""

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from crossnorm.errors import CrossnormError, MigrationError
from crossnorm.spec import from_dict

from ._description import BFLOAT16, Description, Layout, checked, refuse

FORMAT = "crossnorm.migrate"
VERSION = 1

_KEY = "crossnorm"
_DTYPES: dict[str, Any] = {
    "F16": np.float16,
    "BF16": BFLOAT16,
    "F32": np.float32,
    "F64": np.float64,
    "I32": np.int32,
    "I64": np.int64,
}


def save(path: str | os.PathLike[str], layers: Mapping[str, tuple[Any, Any, Any]]) -> None:
    """Write layers' descriptions to a file that `load` and every reader of safetensors can read.

    The array ``scale`` of the layer ``block.norm`` is the tensor ``block.norm.scale``. A file that is there is replaced at the
    end, in one step: nobody finds half a file.

    Args:
        path: of the file.
        layers: names, each with ``(spec, layout, arrays)``, as `crossnorm.migrate.describe` gives them.

    Raises:
        MigrationError: a description whose parts do not go together; a file that cannot be written. Nothing was written.

    >>> import tempfile, torch
    >>> from crossnorm.migrate import describe
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/norms.safetensors", {"norm": describe(torch.nn.LayerNorm(2))})
    ...     load(f"{folder}/norms.safetensors")["norm"].arrays["scale"]
    array([1., 1.], dtype=float32)
    """
    tensors: dict[str, NDArray[np.generic]] = {}
    documents: dict[str, Any] = {}
    for name, description in layers.items():
        if not (isinstance(name, str) and name and name.isprintable()):
            refuse(f"save: {name!r} is no name of a layer", "give a string that can be printed")
        if not (isinstance(description, tuple) and len(description) == 3):
            refuse(f"save: {name!r} is a {type(description).__name__}, no description", "give what describe returned")
        spec, layout, arrays = checked(*description, f"save: {name!r}")
        documents[name] = {"spec": spec.to_dict(), "layout": layout.to_dict()}
        tensors |= {f"{name}.{array}": np.array(values, order="C") for array, values in arrays.items()}
    document = json.dumps({"format": FORMAT, "version": VERSION, "layers": documents}, allow_nan=False)
    _replace(path, safetensors.numpy.save(tensors, {_KEY: document}))


def load(path: str | os.PathLike[str]) -> dict[str, Description]:
    """The descriptions in a file, by the layers' names; nothing in it is executed, and everything is checked.

    Raises:
        MigrationError: no file, or one that is damaged, of another format or of a later version of it.
    """
    try:
        if not Path(path).is_file():  # a device may have no end
            raise FileNotFoundError("there is no such file")
        data = Path(path).read_bytes()
    except (OSError, ValueError, TypeError) as error:
        refuse(f"load: {path!r} cannot be read ({error})", "name a file that save wrote")
    try:
        return _descriptions(data)
    except CrossnormError as error:
        raise MigrationError(f"crossnorm.migrate.load: {path}: {str(error).removeprefix('crossnorm.migrate.')}") from None
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        refuse(f"load: {path} is damaged ({error})", "get another copy of the file, or save it again")


def _descriptions(data: bytes) -> dict[str, Description]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 + size:
        raise ValueError(f"it has {len(data)} bytes, fewer than its header, which takes 8 + {size}")
    header = _json(data[8 : 8 + size].decode())
    tensors = safetensors.deserialize(data)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or _KEY not in metadata:
        raise MigrationError(f"its metadata have no {_KEY!r}; give a file that crossnorm.migrate.save wrote")
    documents = _documents(_json(metadata[_KEY]))
    arrays: dict[str, dict[str, NDArray[np.generic]]] = {name: {} for name in documents}
    for name, tensor in tensors:
        layer, _, array = name.rpartition(".")
        if layer not in arrays or tensor["dtype"] not in _DTYPES:
            raise MigrationError(f"the tensor {name!r} of {tensor['dtype']} belongs to no layer; save the layers again")
        arrays[layer][array] = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return {
        name: checked(from_dict(document["spec"]), Layout.from_dict(document["layout"]), arrays[name], f"layer {name!r}")
        for name, document in documents.items()
    }


def _documents(document: Any) -> dict[str, dict[str, Any]]:
    """The layers of the JSON document, whose form is as `save` makes it."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise MigrationError(f"its document is not of the format {FORMAT!r}; give a file that crossnorm.migrate.save wrote")
    version = document.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"version={version!r} is no positive integer")
    if version > VERSION:
        raise MigrationError(f"version={version} is later than {VERSION}; it was written by a newer crossnorm: upgrade")
    layers = document.get("layers")
    if document.keys() != {"format", "version", "layers"} or not isinstance(layers, dict):
        raise ValueError(f"its document has the entries {', '.join(document)}, in place of format, version and layers")
    for name, layer in layers.items():
        parts = layer if isinstance(layer, dict) else {}
        if parts.keys() != {"spec", "layout"} or not all(isinstance(part, dict) for part in parts.values()):
            raise ValueError(f"the layer {name!r} is something else than a specification and a layout")
    return layers


def _json(text: Any) -> Any:
    """A JSON value; one with the same key twice is refused."""
    if not isinstance(text, str):
        raise ValueError(f"a {type(text).__name__} is in the place of its JSON document")
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"one of the keys {', '.join(key for key, _ in pairs)} stands there twice")
    return values


def _replace(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a new file under another name, and move it to ``path`` once it is complete."""
    written = None
    try:
        target = Path(path)
        written = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        with written.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, target)
    except (OSError, ValueError, TypeError) as error:
        refuse(f"save: {path!r} cannot be written ({error})", "name a file in a folder that is there and may be written to")
    finally:
        if written is not None:
            with suppress(OSError, ValueError):
                written.unlink()
