"""ONNX's normalization operators, each in a graph of its own, run by onnxruntime on the CPU. It differentiates nothing."""

import ctypes
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from crossnorm.rounding import accumulation
from crossnorm.spec import TRAIN

from ..case import Arrays, Case
from . import Result
from ._peer import Witness, arguments_of, result

# Name, opset in which it got its present meaning, inputs, and how many outputs a training step has.
_OPERATORS = {
    "batch_norm": ("BatchNormalization", 15, ("x", "scale", "offset", "running_mean", "running_variance"), 3),
    "layer_norm": ("LayerNormalization", 17, ("x", "scale", "offset"), 1),
    "group_norm": ("GroupNormalization", 21, ("x", "scale", "offset"), 1),
    "instance_norm": ("InstanceNormalization", 22, ("x", "scale", "offset"), 1),
    "rms_norm": ("RMSNormalization", 23, ("x", "scale"), 1),
}
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


class OnnxRuntime(Witness):
    name = "onnxruntime"
    framework = "onnx"

    def methods(self) -> tuple[str, ...]:
        return tuple(_OPERATORS)

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}

    def shows(self, case: Case, quantity: str) -> bool:
        return quantity in ("y", "running_mean", "running_variance")

    def lacks(self, case: Case) -> str:
        spec: Any = case.spec
        operator = "-".join(map(str, _OPERATORS[spec.method][:2]))
        if case.layout == "strided":
            return "ONNX tensors have no strides"
        if case.layout == "channels_last":
            return f"{operator} takes axis 1 for the channels"
        if case.layout == "leading":
            return f"{operator} normalises the last axes only"
        if spec.method == "batch_norm" and spec.tracked and case.mode == "train":
            if spec.running_variance != "biased":
                return f"{operator} gives the running mean of biased variances only"
            if spec.decay is None:
                return f"{operator} has no cumulative average"
        if spec.method == "instance_norm" and spec.tracked:
            return f"{operator} has no running statistics"
        if spec.method == "layer_norm" and not spec.subtract_mean:
            return f"{operator} always subtracts the mean"
        return _refusal(spec.method, case.dtype, len(case.shape))

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        spec: Any = case.spec
        _, _, inputs, _ = _OPERATORS[spec.method]
        dtypes = _dtypes(spec.method, case.dtype)
        # What the operator wants and the specification has not is a constant: scale and variance 1, offset and mean 0.
        shape = spec.parameter_shape
        constant = {"scale": np.ones, "offset": np.zeros, "running_mean": np.zeros, "running_variance": np.ones}
        held = {name: arrays.values.get(name, constant[name](shape)) for name in inputs[1:]}
        results: dict[tuple[int, str], Result] = {}
        for step, mode in case.steps:
            trains = spec.method == "batch_norm" and (mode == TRAIN or not spec.tracked)
            session = _session(spec.method, _attributes(case, trains), case.dtype, len(case.shape))
            given = held | {"x": arrays.values[f"x{step}"]}
            feed = {name: _to_onnx(value, dtypes[name]) for name, value in given.items()}
            y, *after = map(_from_onnx, session.run_with_ort_values(None, feed))
            results[step, "y"] = result(y)
            if spec.method == "batch_norm" and spec.tracked:
                held |= dict(zip(("running_mean", "running_variance"), after, strict=True)) if after else {}
                for name in ("running_mean", "running_variance"):
                    results[step, name] = result(held[name])
        return results


def _attributes(case: Case, trains: bool) -> tuple[tuple[str, Any], ...]:
    """The node's attributes; those that are left out have their defaults."""
    spec: Any = case.spec
    needed = {"num_groups": spec.groups} if spec.method == "group_norm" else {}
    if case.spec.method in ("layer_norm", "rms_norm"):
        needed["axis"] = -len(spec.parameter_shape)
    if trains:
        needed["training_mode"] = 1
    if spec.method == "group_norm" and case.dtype == "float64":
        needed["stash_type"] = TensorProto.DOUBLE  # statistics are float32 otherwise; other operators take no heed of it
    given = {} if case.defaults else arguments_of("onnx", spec)
    return tuple((needed | {name: value for name, value in given.items() if value is not None}).items())


def _dtypes(method: str, dtype: str) -> dict[str, str]:
    """The dtypes of the inputs: batch normalization alone lets parameters be wider than its input."""
    return {n: dtype if n == "x" or method != "batch_norm" else accumulation(dtype) for n in _OPERATORS[method][2]}


def _to_onnx(values: Any, dtype: str) -> onnxruntime.OrtValue:
    held = np.asarray(values, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(held, _TYPES[dtype])


def _from_onnx(value: onnxruntime.OrtValue) -> Any:
    """An array. onnxruntime takes bfloat16 arrays and gives none, so that their bits are read where they lie."""
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    bits = ctypes.cast(value.data_ptr(), ctypes.POINTER(ctypes.c_uint16))
    return np.ctypeslib.as_array(bits, tuple(value.shape())).copy().view(ml_dtypes.bfloat16)


@cache
def _session(method: str, attributes: tuple[tuple[str, Any], ...], dtype: str, rank: int) -> onnxruntime.InferenceSession:
    name, opset, inputs, most = _OPERATORS[method]
    dtypes = _dtypes(method, dtype)
    outputs = ("y", "mean", "variance")[: most if ("training_mode", 1) in attributes else 1]
    graph = helper.make_graph(
        [helper.make_node(name, inputs, outputs, **dict(attributes))],
        name,
        [helper.make_tensor_value_info(n, _TYPES[dtypes[n]], [None] * rank if n == "x" else None) for n in inputs],
        [helper.make_tensor_value_info(n, _TYPES[dtype if n == "y" else accumulation(dtype)], None) for n in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@cache
def _refusal(method: str, dtype: str, rank: int) -> str:
    """Why onnxruntime does not run the operator in the dtype, in its own words; empty if it does."""
    try:
        _session(method, (("num_groups", 1),) if method == "group_norm" else (), dtype, rank)
    except Exception as error:  # the types of its exceptions are not public
        return f"onnxruntime, {dtype}: {' '.join(str(error).split(' : ')[-1].split())}"
    return ""


IMPLEMENTATION = OnnxRuntime()
