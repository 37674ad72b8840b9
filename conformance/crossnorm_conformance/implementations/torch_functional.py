"""``torch.nn.functional`` under ``torch.compile``: what the compiler makes of the functions, forward and backward."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F

from ..case import Arrays, Case
from . import Result
from ._peer import Witness
from ._torch import NAMES
from ._torch_tensors import Held, tensor
from .torch_nn import IMPLEMENTATION as TORCH_NN

_RUNNING = ("running_mean", "running_variance")


class TorchCompile(Witness):
    name = "torch.compile"
    framework = "torch"

    def methods(self) -> tuple[str, ...]:
        return ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def devices(self) -> tuple[str, ...]:
        return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

    def executions(self) -> tuple[str, ...]:
        return ("compile",)

    def lacks(self, case: Case) -> str:
        spec: Any = case.spec
        if "compile" not in TORCH_NN.executions():
            return "torch.compile needs a C++ compiler"
        if case.layout == "leading":
            return "torch normalises trailing dimensions only"
        # What training stores does not matter where nothing is trained.
        updates = case.mode == "train" and getattr(spec, "tracked", False)
        stored = {"batch_norm": "unbiased", "instance_norm": "instance_mean_unbiased"}
        if updates and spec.running_variance != stored[spec.method]:
            return f"torch.nn.functional.{spec.method} stores the {stored[spec.method].replace('_', ' ')} variance only"
        if updates and spec.decay is None:
            return f"torch.nn.functional.{spec.method} has no cumulative average"
        if spec.method == "layer_norm" and not spec.subtract_mean:
            return "torch.nn.functional.layer_norm always subtracts the mean"
        if hasattr(spec, "tracked") and any(case.single_valued(mode) for _, mode in case.steps):
            return "torch.nn.functional refuses one value per statistic"
        if spec.method == "group_norm" and case.values_per_group == 1 and case.shape[0] == 1:
            return "torch.nn.functional.group_norm refuses one value per group in a batch of one"
        return ""

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        spec: Any = case.spec
        held = {
            NAMES[a.name]: tensor(arrays.values[a.name], arrays.dtypes[a.name], "contiguous", device, False)
            for a in (*spec.parameters, *spec.state)
            if a.name != "batches_tracked"
        }
        learned = {p.name: held[NAMES[p.name]].requires_grad_(case.mode != "frozen") for p in spec.parameters}
        kept = Held(arrays)
        for step, mode in case.steps:
            x, upstream = (
                tensor(arrays.values[f"{name}{step}"], case.dtype, case.layout, device, hasattr(spec, "channels"))
                for name in ("x", "upstream")
            )
            # What is not differentiated is compiled for inference, unless the training step has been compiled for it already.
            differentiable = case.differentiates(step) or not spec.state
            x.requires_grad_(differentiable)
            batch_statistics = mode.use_batch_statistics or not getattr(spec, "tracked", False)
            # Every shape, dtype and argument is compiled for itself; beyond its usual limit the compiler gives up on that.
            limits = torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000)
            with limits, torch.set_grad_enabled(differentiable):
                y = _compiled(spec.method)(x, held, batch_statistics, **_options(case))
                kept.take(step, "y", y)
                if case.differentiates(step):
                    y.backward(upstream)
                    kept.take(step, "dx", x.grad)
                    for name, value in learned.items():
                        kept.take(step, f"d{name}", value.grad)
                        value.grad = None
            for name in (array.name for array in spec.state if array.name in _RUNNING):
                kept.take(step, name, held[NAMES[name]].clone())
        return kept.results()


def _options(case: Case) -> dict[str, Any]:
    """The arguments that are neither tensors nor needed; those that are left out have their defaults."""
    spec: Any = case.spec
    needed = {"num_groups": spec.groups} if spec.method == "group_norm" else {}
    if spec.method in ("layer_norm", "rms_norm"):
        needed["normalized_shape"] = spec.shape
    if case.defaults:
        return needed
    decay = getattr(spec, "decay", None)
    return needed | {"eps": spec.eps} | ({"momentum": round(1 - decay, 15)} if decay is not None else {})


@cache
def _compiled(method: str) -> Callable[..., torch.Tensor]:
    def batch_norm(x: torch.Tensor, held: dict[str, torch.Tensor], training: bool, **options: Any) -> torch.Tensor:
        running = (held.get("running_mean"), held.get("running_var"))
        return F.batch_norm(x, *running, held.get("weight"), held.get("bias"), training=training, **options)

    def instance_norm(x: torch.Tensor, held: dict[str, torch.Tensor], training: bool, **options: Any) -> torch.Tensor:
        running = (held.get("running_mean"), held.get("running_var"))
        return F.instance_norm(x, *running, held.get("weight"), held.get("bias"), use_input_stats=training, **options)

    def stateless(x: torch.Tensor, held: dict[str, torch.Tensor], training: bool, **options: Any) -> torch.Tensor:
        return getattr(F, method)(x, **held, **options)

    function = {"batch_norm": batch_norm, "instance_norm": instance_norm}.get(method, stateless)
    return torch.compile(function, fullgraph=True, dynamic=False)


IMPLEMENTATION = TorchCompile()
