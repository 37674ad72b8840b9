"""One run of a torch model, layer by layer, and one layer alone."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from crossnorm.errors import MigrationError
from crossnorm.rounding import perturbed

from .._parts import Part
from .._trace import (
    Call,
    Recording,
    Replay,
    Units,
    arranged,
    broken_off,
    by_name,
    canonical,
    main_inputs,
    measure,
    native,
    recorded,
    state_names,
    with_inputs,
)

Array = NDArray[Any]


def record(
    model: nn.Module,
    parts: Sequence[Part],
    inputs: Sequence[Array],
    *,
    training: bool | None = False,
    cotangent: Array | None = None,
    restore: bool = True,
) -> Recording:
    """Run a model once and keep what every part got and gave; the model stays as it was. Dropout does nothing.

    Args:
        model: any module.
        parts: of the model.
        inputs: as the model wants them; floats are cast to its dtype.
        training: the mode of all modules; None: each as it is.
        cotangent: like the model's first output; the gradients of their product are taken.
        restore: whether buffers get back what they had before.
    """
    calls: list[Call] = []
    taps: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    learned = [v for part in parts for v in _learned(part)] if cotangent is not None else []
    with _undisturbed(model, training, restore), torch.set_grad_enabled(cotangent is not None):
        given = _tensors(model, inputs, cotangent is not None)
        with _hooks(parts, calls, taps), broken_off(calls):
            outputs = list(_tensors_in(model(*given)))
            if not outputs:
                raise MigrationError(
                    f"the model {type(model).__name__} gives no tensor, and cannot be compared; return its output"
                )
        tapped = [tensor for output_, inputs_ in taps for tensor in (output_, *inputs_.values())]
        found = _gradients(outputs[0], cotangent, [*tapped, *given, *learned])
        states = by_name(parts, lambda part: _values(part.variables[name] for name in state_names(part)))
    return recorded(parts, calls, taps, given, list(map(_numpy, outputs)), found, states)


def replay(
    call: Call,
    inputs: Mapping[str, Array] | None = None,
    *,
    part: Part | None = None,
    training: bool | None = None,
    cotangent: Array | None = None,
) -> Replay:
    """Run the layer of one call alone.

    Args:
        call: from a recording of a torch model.
        inputs: in place of `Call.inputs`, from any framework's call.
        part: in place of the call's own, with another layer.
        training: the mode of the layer; None: that of the call.
        cotangent: like `Call.output`.
    """
    part = part or call.part
    layer, parameters = part.layer, _parameters(part.layer)
    training = call.training if training is None else training
    with _undisturbed(layer, training, True), torch.set_grad_enabled(cotangent is not None):
        own = main_inputs(call.part, parameters, call.args, call.kwargs)
        if inputs is not None:
            # Another layer may compute in another dtype.
            dtypes = [] if layer is call.part.layer else [tensor.dtype for tensor in _floats(layer)]
            own = {
                name: torch.as_tensor(native(inputs[name], part)).to(
                    like.device, dtypes[0] if dtypes and like.is_floating_point() else like.dtype
                )
                for name, like in own.items()
            }
        own = {name: _leaf(tensor, cotangent is not None) for name, tensor in own.items()}
        args, kwargs = with_inputs(call.part, parameters, call.args, call.kwargs, own)
        output = _first(layer(*args, **kwargs))
        learned = _learned(part) if cotangent is not None else []
        found = _gradients(output, None if cotangent is None else native(cotangent, part), [*own.values(), *learned])
        states = arranged(part, _values(part.variables[name] for name in state_names(part)))
    return Replay(
        output=canonical(_numpy(output), part),
        input_gradients={name: canonical(found[id(t)], part) for name, t in own.items() if id(t) in found},
        gradients=arranged(part, {id(v): found[id(v)] for v in learned if id(v) in found}),
        states=states,
    )


def units(
    model: nn.Module,
    parts: Sequence[Part],
    inputs: Sequence[Array],
    *,
    training: bool | None = False,
    cotangent: Array | None = None,
) -> Units:
    """The units of everything that `record` gives, measured on a copy in float64.

    A model that cannot run in float64, since it names a dtype itself, is measured in its own.
    """
    from .parts import parts as parts_of

    own = record(model, parts, inputs, training=training, cotangent=cotangent)
    dtypes = [str(t.dtype).removeprefix("torch.") for t in _floats(model)]
    names = {part.name for part in parts}
    own_dtype = str(_dtype(model)).removeprefix("torch.")

    def runner(twin: nn.Module) -> Callable[[np.random.Generator | None], Recording]:
        twins = [part for part in parts_of(twin) if part.name in names]
        before = [t.detach().clone() for t in _floats(twin)]

        def run(random: np.random.Generator | None) -> Recording:
            moved = list(inputs)
            if random is not None:
                with torch.no_grad():
                    for tensor, values, dtype in zip(_floats(twin), before, dtypes, strict=True):
                        moves = perturbed(values.double().cpu().numpy(), dtype, random)
                        tensor.copy_(torch.as_tensor(moves))
                moved = [
                    perturbed(np.asarray(x, np.float64), own_dtype, random) if x.dtype.kind not in "iub" else x for x in inputs
                ]
            return record(twin, twins, moved, training=training, cotangent=cotangent)

        return run

    try:
        return measure(runner(_copy(model).double()), own)
    except RuntimeError:
        return measure(runner(_copy(model)), own)


def layers_in(model: nn.Module) -> list[nn.Module]:
    """The modules inside a module, at any depth."""
    return [module for module in model.modules() if module is not model]


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy; what old reparametrizations computed in the last call is no parameter and cannot be copied as it is."""
    computed = [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def _floats(model: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]


def _dtype(model: nn.Module) -> torch.dtype:
    return next((t.dtype for t in _floats(model)), torch.float32)


def _tensors(model: nn.Module, inputs: Sequence[Array], watched: bool) -> list[torch.Tensor]:
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    tensors = [torch.as_tensor(np.ascontiguousarray(x)).to(device) for x in inputs]
    return [_leaf(t.to(_dtype(model)) if t.is_floating_point() else t, watched) for t in tensors]


def _leaf(tensor: torch.Tensor, watched: bool) -> torch.Tensor:
    # A copy: some layer may work in place.
    return tensor.detach().clone().requires_grad_(watched and tensor.is_floating_point())


@contextmanager
def _undisturbed(model: nn.Module, training: bool | None, restore: bool) -> Iterator[None]:
    """The modules in that mode, without dropout, eager; flags, buffers and random numbers come back afterwards."""
    modules = list(model.modules())
    flags = [module.training for module in modules]
    buffers = [(m._buffers, name, b, b.detach().clone()) for m in modules for name, b in m._buffers.items() if b is not None]
    # An embedding with max_norm shrinks its weight when it is called.
    shrunk: Any = [m._parameters for m in modules if getattr(m, "max_norm", None) is not None]
    buffers += [(held, name, p, p.detach().clone()) for held in shrunk for name, p in held.items() if p is not None]
    rates = [(module, name, getattr(module, name)) for module in modules for name in _rates(module)]
    devices = {t.device.index for t in model.parameters() if t.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices)))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        # Encoders skip their layers there, and give nested tensors that nobody can read.
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            if training is not None:
                model.train(training)
            for module, name, _ in rates:
                setattr(module, name, 0.0)
            yield
        finally:
            for module, flag in zip(modules, flags, strict=True):
                module.training = flag
            for module, name, rate in rates:
                setattr(module, name, rate)
            if restore:
                with torch.no_grad():
                    for holder, name, tensor, values in buffers:
                        holder[name] = tensor
                        # Not where nothing changed: a graph that waits for its backward pass may hold the tensor.
                        if not torch.equal(tensor, values):
                            tensor.copy_(values)


def _rates(module: nn.Module) -> list[str]:
    names = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else ["dropout", "drop_prob"]
    return [name for name in names if isinstance(getattr(module, name, None), float)]


@contextmanager
def _hooks(parts: Sequence[Part], calls: list[Call], taps: list[Any]) -> Iterator[None]:
    arguments: dict[int, list[Any]] = {}
    counts: dict[int, int] = {}

    def before(layer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        kept = [_kept(args), {name: _kept(value) for name, value in kwargs.items()}]
        # A branch of the graph for this layer alone: what else uses its inputs is not in their gradient.
        inputs = {
            name: value.clone()
            for name, value in main_inputs(owners[id(layer)], _parameters(layer), args, kwargs).items()
            if isinstance(value, torch.Tensor) and torch.is_grad_enabled()
        }
        arguments.setdefault(id(layer), []).append((*kept, inputs))
        return with_inputs(owners[id(layer)], _parameters(layer), args, kwargs, inputs)

    def after(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        part, tensor = owners[id(layer)], _first(output)
        args, kwargs, own = arguments[id(layer)].pop()
        if tensor is None:
            return output
        inputs = main_inputs(part, _parameters(layer), args, kwargs)
        call = Call(
            part=part,
            number=counts.get(id(layer), 0),
            args=args,
            kwargs=kwargs,
            inputs={name: canonical(_numpy(v), part) for name, v in inputs.items() if isinstance(v, torch.Tensor)},
            output=canonical(_numpy(tensor), part),
            dtype=str(tensor.dtype).removeprefix("torch."),
            training=layer.training,
        )
        calls.append(call)
        taps.append((tensor, own))
        counts[id(layer)] = call.number + 1
        # What follows may work in place, and the gradient is that of what came out here.
        return _replaced(output, tensor.clone())

    owners = {id(part.layer): part for part in parts}
    with ExitStack() as stack:
        for layer in {id(part.layer): part.layer for part in parts}.values():
            handles = (
                layer.register_forward_pre_hook(before, with_kwargs=True),
                layer.register_forward_hook(after, with_kwargs=True),
            )
            for handle in handles:
                stack.callback(handle.remove)
        yield


def _parameters(layer: nn.Module) -> list[str]:
    return list(inspect.signature(layer.forward).parameters)


def _kept(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return type(value)(map(_kept, value)) if type(value) in (tuple, list) else value


def _first(output: Any) -> Any:
    """The first tensor of whatever a module gives; None where there is none."""
    return next(_tensors_in(output), None)


def _tensors_in(output: Any) -> Iterator[torch.Tensor]:
    """The tensors of whatever a module gives: a tuple, a dictionary, a packed sequence."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for key in sorted(output, key=str):
            yield from _tensors_in(output[key])
    elif isinstance(output, tuple | list):
        for each in output:
            yield from _tensors_in(each)


def _replaced(output: Any, tensor: torch.Tensor) -> Any:
    if isinstance(output, torch.Tensor):
        return tensor
    return (tensor, *output[1:]) if type(output) is tuple and isinstance(output[0], torch.Tensor) else output


def _learned(part: Part) -> list[torch.Tensor]:
    return [v for name in part.arrays for v in part.variables.get(name, ()) if v.requires_grad]


def _values(variables: Iterator[tuple[torch.Tensor, ...]]) -> dict[int, Array]:
    return {id(v): _numpy(v) for each in variables for v in each}


def _gradients(output: torch.Tensor, cotangent: Array | None, wanted: Sequence[torch.Tensor]) -> dict[int, Array]:
    """The gradients that exist, by the ids of what they belong to."""
    wanted = [tensor for tensor in wanted if tensor.requires_grad]
    if cotangent is None or not output.requires_grad or not wanted:
        return {}
    upstream = torch.as_tensor(np.ascontiguousarray(cotangent)).to(output.device, output.dtype)
    found = torch.autograd.grad(output, wanted, upstream, allow_unused=True)
    return {id(tensor): _numpy(g) for tensor, g in zip(wanted, found, strict=True) if g is not None}


def _numpy(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu()
    tensor = tensor.to_dense() if tensor.is_sparse else tensor
    return np.array((tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy())
