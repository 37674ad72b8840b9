"""A torch module as the suite executes it: eagerly, compiled, exported, or under autocast."""

from typing import Any

import torch
from torch import nn


def compiled(module: nn.Module) -> Any:
    """The module under inductor, whole and for one shape; what was compiled before is forgotten."""
    torch.compiler.reset()
    return torch.compile(module, fullgraph=True, dynamic=False)


class Executed:
    """A module and the way in which it is called. What it holds is read here, since an exported program holds copies."""

    def __init__(self, module: nn.Module, execution: str, dtype: str, device: str) -> None:
        self._module, self._execution = module, execution
        self._autocast = torch.autocast(device, getattr(torch, dtype), enabled=execution == "autocast")
        self._call: Any = module
        self._exported: Any = None
        if execution == "compile":
            self._call = compiled(module)

    def switch(self, *, training: bool, learning: bool) -> None:
        """Train or evaluate, with or without gradients of the parameters; those of the last step are forgotten."""
        if self._exported is not None and training != self._module.training:
            # A program is exported in one mode; the next one goes on from its state.
            self._module.load_state_dict(self._exported.state_dict())
            self._exported = None
        self._module.train(training)
        self._module.requires_grad_(learning)
        for holder in (self._module, self._exported):
            if holder is not None:
                holder.zero_grad()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._execution == "export" and self._exported is None:
            self._exported = torch.export.export(self._module, (x,)).module()
            self._call = self._exported
        with self._autocast:
            y: torch.Tensor = self._call(x)
        # Autocast may widen the output, as its lists say for the device.
        return y.to(x.dtype) if self._execution == "autocast" else y

    def held(self, name: str) -> torch.Tensor:
        """A parameter or a buffer, where the last call has left it."""
        found: torch.Tensor = getattr(self._exported or self._module, name)
        return found
