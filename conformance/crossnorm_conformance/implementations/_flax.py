"""How the suite runs a ``flax.nnx`` module: precision and device, one step with its gradients, compiled or not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes, and other frameworks, share one GPU

import jax
import jax.numpy as jnp
from flax import nnx

from . import Result
from ._peer import result


@contextmanager
def on(device: str, double: bool) -> Iterator[None]:
    """Double precision is switched on for this run only: it is the process's, and other runs share the process."""
    with jax.enable_x64(double), jax.default_device(jax.devices("gpu" if device == "cuda" else "cpu")[0]):
        yield


def dtypes(dtype: str) -> dict[str, Any]:
    """The optional arguments that a dtype other than float32 takes; parameters stay float32 beside half inputs."""
    return {"float32": {}, "float64": {"param_dtype": jnp.float64}}.get(dtype, {"dtype": dtype})


def run_step(graph: Any, params: Any, rest: Any, x: jax.Array, upstream: jax.Array) -> Any:
    """Output, its gradients for the input and for every ``Param``, and what the layer then holds."""

    def call(params: Any, *inputs: jax.Array) -> tuple[jax.Array, Any]:
        layer = nnx.merge(graph, params, rest, copy=True)
        y = layer(*inputs or (x,))
        return y, nnx.state(layer)

    differ = (x,) if jnp.issubdtype(x.dtype, jnp.floating) else ()
    y, pull_back, after = jax.vjp(call, params, *differ, has_aux=True)
    return y, pull_back(upstream.astype(y.dtype)), after


compiled = jax.jit(run_step, static_argnums=0)


def take(layer: nnx.Module, run: Any, x: jax.Array, upstream: jax.Array) -> tuple[jax.Array, jax.Array | None, Any]:
    """One step, after which the layer holds what it would hold if it had been called itself."""
    y, (gradients, *dx), after = run(*nnx.split(layer, nnx.Param, ...), x, upstream)
    nnx.update(layer, after)
    return y, dx[0] if dx else None, gradients


def shaped(values: Any, shape: tuple[int, ...]) -> Result:
    """The result of a variable."""
    return result(values[...], lambda v: v.reshape(shape))
