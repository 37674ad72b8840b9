"""The command ``crossnorm diff``: models and inputs from files, the report on the terminal or as a page."""

import importlib
import inspect
import json as json_module
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from crossnorm.errors import MigrationError

from .._frameworks import framework_of, room
from .comparison import diff


def run(
    source: str,
    target: str,
    inputs: Sequence[str | Path] = (),
    target_inputs: Sequence[str | Path] = (),
    *,
    pairs: Sequence[str] = (),
    training: bool | None = None,
    step: bool = True,
    html: str | Path | None = None,
    json: str | Path | None = None,
) -> int:
    """Compare two models; 0 if they agree, 1 if they part.

    Args:
        source, target: as `load_model` takes them.
        inputs, target_inputs: files of NumPy arrays, ``.npy`` or ``.npz``.
        pairs: ``name in source=name in target``.
        training, step: as in `crossnorm.migrate.diff`.
        html, json: where to write the report, too.
    """
    for path in (each for each in (html, json) if each is not None):
        if not Path(path).parent.is_dir():
            raise MigrationError(f"crossnorm diff: {path} cannot be written, since its folder does not exist; make it first")
    names = _names(pairs)
    given, other = load_inputs(inputs), load_inputs(target_inputs)
    found = diff(
        load_model(source),
        load_model(target),
        given or None,
        inputs_b=other or None,
        pairs=names,
        training=training,
        step=step,
        names=("source", "target"),
    )
    Console(markup=False, highlight=False).print(found)
    if html is not None:
        found.to_html(html)
    if json is not None:
        Path(json).write_text(json_module.dumps(found.to_dict(), indent=1), encoding="utf-8")
    return int(bool(found))


def load_model(text: str) -> Any:
    """The model that a text names.

    - ``model.keras``: a file that Keras saved;
    - ``package.module:object``: a model, or a function that makes one without arguments;
    - ``package.module:object=weights``: the same with the weights of a file, ``.pt``, ``.pth`` or ``.safetensors`` for torch,
      ``.weights.h5`` or ``.keras`` for Keras.
    """
    path, _, weights = text.partition("=")
    if ":" in path and not Path(path).exists():
        model = _made(path)
        if weights:
            room(framework_of(model)).load_weights(model, Path(weights))
        return model
    if path.endswith(".keras"):
        file = _present(path)
        return room("tensorflow").load_model(file)
    if path.endswith((".pt", ".pth", ".safetensors", ".bin", ".h5", ".ckpt")):
        raise MigrationError(
            f"crossnorm diff: {path} holds arrays and no code that computes with them; name the function that makes the model, "
            f"package.module:function={path}"
        )
    raise MigrationError(f"crossnorm diff: {text!r} names no model; give file.keras or package.module:function[=weights]")


def _made(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
        for step in name.split("."):
            found = getattr(found, step)
    except (Exception, SystemExit) as error:  # a module's own code can raise anything
        raise MigrationError(
            f"crossnorm diff: {path} cannot be imported ({_told(error)}); give package.module:function"
        ) from error
    if not (inspect.isfunction(found) or inspect.isclass(found)):
        return found
    try:
        return found()
    except (Exception, SystemExit) as error:  # and so can a function's
        raise MigrationError(
            f"crossnorm diff: {path} cannot be called without arguments ({_told(error)}); name one that can"
        ) from error


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def load_inputs(paths: Sequence[str | Path]) -> tuple[NDArray[Any], ...]:
    """The arrays of some files, in their order; of an archive in the order of its entries."""
    arrays: list[NDArray[Any]] = []
    for path in paths:
        file = _present(path)
        try:
            # Opened here: NumPy leaves a broken archive open.
            with file.open("rb") as opened:
                loaded = np.load(opened, allow_pickle=False)
                arrays += [loaded] if isinstance(loaded, np.ndarray) else [loaded[name] for name in loaded.files]
        except (ValueError, OSError, EOFError, BadZipFile, zlib.error, NotImplementedError) as error:
            raise MigrationError(f"crossnorm diff: {path} is no file of NumPy arrays ({error}); give .npy or .npz") from error
    return tuple(arrays)


def _names(pairs: Sequence[str]) -> dict[str, str]:
    if wrong := [pair for pair in pairs if pair.count("=") != 1]:
        raise MigrationError(f"crossnorm diff: the pair {wrong[0]!r} is not of the form NAME=NAME; name both layers")
    return dict(pair.split("=") for pair in pairs)  # type: ignore[misc]


def _present(path: str | Path) -> Path:
    if not Path(path).exists():
        raise MigrationError(f"crossnorm diff: {path} does not exist; give a file")
    return Path(path)
