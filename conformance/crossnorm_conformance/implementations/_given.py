"""What implementations made of somebody's own layer share, whatever its framework."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crossnorm import NormSpec, Unsupported

from ..case import Case
from ..cases import Fault
from ..running import told
from . import Misuse, SuiteError


def kind_of(layer: Any) -> str:
    """``"layer"``, which is copied; ``"factory"``, which takes nothing or a ``spec``; ``"wrapper"`` of another layer;
    ``"function"`` of arrays, which takes parameters by name."""
    if not (inspect.isfunction(layer) or inspect.ismethod(layer) or inspect.isbuiltin(layer) or hasattr(layer, "func")):
        return "layer"
    names = list(inspect.signature(layer).parameters)
    if not names or names == ["spec"]:
        return "factory"
    if len(names) == 1 and names[0] in ("module", "layer"):
        return "wrapper"
    return "function"


class Given:
    """The part of an implementation that answers for somebody's own layer; the framework's part is the other base."""

    native: str | None = None

    def __init__(
        self,
        layer: Any,
        *,
        name: str,
        spec: NormSpec | None,
        methods: Sequence[str],
        roles: Mapping[str, str],
        layouts: Sequence[str] | None,
    ) -> None:
        self.layer, self.name, self.spec, self.kind = layer, name, spec, kind_of(layer)
        taken = {role: role for role in self.names} if self.kind == "function" else self.names
        self.names: Mapping[str, Any] = {**taken, **roles}
        self._methods, self._layouts = tuple(methods), layouts
        self._refused: dict[int, str] = {}

    def methods(self) -> tuple[str, ...]:
        return self._methods

    def made(self, spec: NormSpec) -> Any:
        """What a factory makes, for the specification if it wants to know."""
        return self.layer(spec) if inspect.signature(self.layer).parameters else self.layer()

    def layouts(self, spec: NormSpec) -> Sequence[str]:
        raise NotImplementedError

    def try_out(self, case: Case) -> None:
        """Build the layer and call it once; whatever it raises is why it cannot run such a case."""
        raise NotImplementedError

    def look(self, cases: Sequence[Case]) -> None:
        """Learn which ranks the layer refuses: it need not have a use for each. One that refuses all of them is wrong."""
        refused = {}
        ranks = {len(case.shape): case for case in cases}
        for rank, case in ranks.items():
            try:
                self.try_out(case)
            except SuiteError:
                raise
            except Exception as error:
                refused[rank] = f"{self.name} refuses {rank} dimensions: {told(error)}"
        self._refused = refused if len(refused) < len(ranks) else {}

    def unsupported(self, case: Case, device: str) -> str:
        if self.kind == "factory":
            try:
                self.made(case.spec)
            except Unsupported as error:
                return str(error)
            except Exception:
                return ""  # the run will tell
        return self._refused.get(len(case.shape), "") or super().unsupported(case, device)  # type: ignore[misc]

    def inexpressible(self, fault: Fault) -> str:
        return "the arguments of a layer that is given are not the suite's to choose"

    def misuse(self, fault: Fault) -> Misuse:
        return Misuse(None, {}, {})


def find_attribute(who: str, owners: Sequence[Any], role: str, names: Sequence[str]) -> Any:
    """The first attribute by one of the names; a `SuiteError` that says how to name it, if there is none."""
    for owner in owners:
        for name in names:
            if getattr(owner, name, None) is not None:
                return getattr(owner, name)
    raise SuiteError(
        f"check: {who} has no attribute {' or '.join(map(repr, names))} for {role!r}; pass roles={{{role!r}: its name}}, or a "
        "specification without it"
    )


def call(function: Callable[..., Any], x: Any, parameters: Mapping[str, Any], state: Mapping[str, Any], training: bool) -> Any:
    """A plain function's output and its new state: the old one where it has none, or where nothing is trained."""
    if not state:
        return function(x, **parameters), {}
    y, new = function(x, **parameters, **state, training=training)
    if not isinstance(new, Mapping) or set(new) != set(state):
        raise TypeError(f"it must return (y, {{name: new state}}) with the names {', '.join(state)}")
    return y, {name: np.asarray(new[name]) if isinstance(new[name], int | float) else new[name] for name in state}
