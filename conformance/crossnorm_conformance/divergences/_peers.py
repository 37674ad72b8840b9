"""The peers, imported when a row first touches them; the suite itself loads none of them."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from ._sightings import Array

# What has to be installed for each peer.
PACKAGES = {
    "torch": ("torch",),
    "keras": ("keras", "tensorflow"),
    "keras on torch": ("keras", "torch"),
    "keras on jax": ("keras", "jax"),
    "tensorflow": ("tensorflow",),
    "flax": ("flax", "jax"),
    "equinox": ("equinox", "jax"),
    "onnx": ("onnx",),
    "onnxruntime": ("onnx", "onnxruntime"),
    "timm": ("timm", "torch"),
}


def lacking(peers: Iterable[str]) -> str:
    """What stands in the way of running these peers here; empty if nothing does."""
    packages = dict.fromkeys(package for peer in peers for package in PACKAGES[peer])
    absent = [package for package in packages if find_spec(package) is None]
    if absent:
        return f"needs {' and '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed"
    if "keras" in peers and (backend := keras.backend.backend()) != "tensorflow":
        return f"needs Keras on TensorFlow; in this process it runs on {backend}"
    return ""


class _Peer:
    """A module that is imported at its first attribute. Torch goes before TensorFlow: the other order crashes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if "torch" not in sys.modules and find_spec("torch"):
            import_module("torch")
        return getattr(import_module(self._name), attribute)


torch, keras, tf = _Peer("torch"), _Peer("keras"), _Peer("tensorflow")
jax, jnp, nnx, linen, eqx = _Peer("jax"), _Peer("jax.numpy"), _Peer("flax.nnx"), _Peer("flax.linen"), _Peer("equinox")
onnx, onnxruntime = _Peer("onnx"), _Peer("onnxruntime")


@contextmanager
def contained(peers: Iterable[str]) -> Iterator[None]:
    """On the CPU, without warnings, and torch's random weights the same every time: its generator belongs to the caller."""
    packages = {package for peer in peers if not peer.startswith("keras on") for package in PACKAGES[peer]}
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        if "torch" in packages:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.default_generator.manual_seed(0)
        if "tensorflow" in packages:
            stack.enter_context(tf.device("/CPU:0"))
        if "jax" in packages:
            stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
        yield


@cache
def timm_layers(file: str) -> ModuleType:
    """One file of ``timm.layers``. Importing timm as a whole needs torchvision, which no layer computes with: so its packages
    are entered without running their doors."""
    doors = ("timm", "timm.layers")
    if "timm" in sys.modules:
        return import_module(f"timm.layers.{file}")
    path = find_spec("timm").submodule_search_locations[0]
    for door, folder in zip(doors, (path, f"{path}/layers"), strict=True):
        sys.modules[door] = ModuleType(door)
        sys.modules[door].__path__ = [folder]
    try:
        return import_module(f"timm.layers.{file}")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
            del sys.modules[name]


def onnx_model(operator: str, feeds: Mapping[str, Array], outputs: int, opset: int, **attributes: Any) -> Any:
    """A model of one operator that takes these arrays."""
    tensor = onnx.helper.make_tensor_value_info
    results = [f"result{i}" for i in range(outputs)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, list(feeds), results, **attributes)],
        operator,
        [tensor(name, onnx.TensorProto.FLOAT, value.shape) for name, value in feeds.items()],
        [tensor(name, onnx.TensorProto.FLOAT, None) for name in results],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


def run_reference(model: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """The model in ONNX's own reference evaluator."""
    evaluator = import_module("onnx.reference").ReferenceEvaluator(model)
    return [np.asarray(result) for result in evaluator.run(None, dict(feeds))]


def run_onnxruntime(model: Any, feeds: Mapping[str, Array]) -> list[Array]:
    """The model in onnxruntime, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, dict(feeds))]
