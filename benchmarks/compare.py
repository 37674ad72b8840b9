"""The speed of our layers next to the native ones.

    python benchmarks/compare.py
    python benchmarks/compare.py --framework torch --repeats 50 --json

Every layer trains on the shape that its users have, in float32: an image of 16x64x56x56 or tokens of 4096x768. "forward" is
one call, "+ backward" a call with the gradients for the input and all parameters. torch runs eagerly, Keras in `tf.function`.

One thread. Native, ours, native, ours, ... in one process, so that a noisy machine disturbs both alike; the minimum of each.
The streaming limit is what a layer costs at least: reading x and writing y (a copy), and for the gradient reading x and dy and
writing dx (an addition).
"""

import os

# Before a framework is imported: it reads this once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

WARM_UP = 3
FORWARD, BACKWARD = "forward", "+ backward"

Run = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """The input shapes; an image is (batch, channel, height, width)."""

    image: tuple[int, int, int, int] = (16, 64, 56, 56)
    tokens: tuple[int, int] = (4096, 768)

    @property
    def channels(self) -> int:
        return self.image[1]

    @property
    def groups(self) -> int:
        # Eight groups of eight channels. With 32 groups of two, Keras and torch (channels_last) take three times as long.
        return self.channels // 8


QUICK = Sizes(image=(2, 16, 6, 6), tokens=(16, 32))


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds."""

    method: str
    layout: str
    computation: str
    native: float
    ours: float

    @property
    def ratio(self) -> float:
        return self.ours / self.native


def minima(runs: list[Run], repeats: int) -> list[float]:
    """The shortest time of each, in milliseconds, taken in turns."""
    for run in runs * WARM_UP:
        run()
    best = [float("inf")] * len(runs)
    for _ in range(repeats):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], 1000 * (time.perf_counter() - start))
    return best


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


# Each framework yields (method, layout, computation, native, ours).


def torch_runs(sizes: Sizes) -> Iterator[tuple[str, str, str, Run, Run]]:
    import torch
    from torch import nn

    import crossnorm.torch as ours

    torch.set_num_threads(1)
    image, tokens = torch.tensor(values(*sizes.image)), torch.tensor(values(*sizes.tokens))
    inputs = {
        "contiguous": image,
        "channels_last": image.contiguous(memory_format=torch.channels_last),
        "tokens": tokens,
    }
    channels, features = sizes.channels, sizes.tokens[-1]
    pairs = {
        "batch_norm": (nn.BatchNorm2d(channels), ours.BatchNorm2d(channels)),
        "instance_norm": (nn.InstanceNorm2d(channels, affine=True), ours.InstanceNorm2d(channels, affine=True)),
        "group_norm": (nn.GroupNorm(sizes.groups, channels), ours.GroupNorm(sizes.groups, channels)),
        "layer_norm": (nn.LayerNorm(features), ours.LayerNorm(features)),
        "rms_norm": (nn.RMSNorm(features), ours.RMSNorm(features)),
    }

    def forward(layer: nn.Module, x: torch.Tensor) -> Run:
        return torch.no_grad()(lambda: layer(x))

    def backward(layer: nn.Module, x: torch.Tensor) -> Run:
        x = x.detach().requires_grad_()
        dy = x.detach().flip(0)
        wanted = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x), wanted, dy)

    for method, (native, our) in pairs.items():
        for layout in ("tokens",) if method in ("layer_norm", "rms_norm") else ("contiguous", "channels_last"):
            for computation, run in ((FORWARD, forward), (BACKWARD, backward)):
                yield method, layout, computation, run(native, inputs[layout]), run(our, inputs[layout])


def tensorflow_runs(sizes: Sizes) -> Iterator[tuple[str, str, str, Run, Run]]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    from keras import layers

    import crossnorm.tensorflow as ours

    batch, channels, height, width = sizes.image
    inputs = {
        "channels_last": tf.constant(values(batch, height, width, channels)),
        "tokens": tf.constant(values(*sizes.tokens)),
    }
    pairs = {
        "batch_norm": (layers.BatchNormalization(), ours.BatchNormalization()),
        # Keras has no instance normalization: one group per channel is it.
        "instance_norm": (layers.GroupNormalization(-1), ours.InstanceNormalization()),
        "group_norm": (layers.GroupNormalization(sizes.groups), ours.GroupNormalization(sizes.groups)),
        "layer_norm": (layers.LayerNormalization(), ours.LayerNormalization()),
        "rms_norm": (layers.RMSNormalization(), ours.RMSNormalization()),
    }

    def forward(layer: layers.Layer, x: tf.Tensor) -> Run:
        compiled = tf.function(lambda x: layer(x, training=True))
        return lambda: compiled(x)

    def backward(layer: layers.Layer, x: tf.Tensor) -> Run:
        weights = [weight.value for weight in layer.trainable_weights]
        dy = x[::-1]

        @tf.function
        def compiled(x: tf.Tensor, dy: tf.Tensor) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
            # With y, or the graph would leave out what only y needs.
            return y, tape.gradient(y, [x, *weights], dy)

        return lambda: compiled(x, dy)

    for method, (native, our) in pairs.items():
        layout = "tokens" if method in ("layer_norm", "rms_norm") else "channels_last"
        for layer in (native, our):
            layer.build(inputs[layout].shape)
        for computation, run in ((FORWARD, forward), (BACKWARD, backward)):
            yield method, layout, computation, run(native, inputs[layout]), run(our, inputs[layout])


class Framework(StrEnum):
    torch = "torch"
    tensorflow = "tensorflow"


RUNS = {Framework.torch: torch_runs, Framework.tensorflow: tensorflow_runs}


def streaming_limit(shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """The milliseconds that memory traffic alone takes."""
    x, dy, out = values(*shape), values(*shape), np.empty(shape, np.float32)
    copy, add = minima([lambda: np.copyto(out, x), lambda: np.add(x, dy, out=out)], repeats)
    return {FORWARD: copy, BACKWARD: copy + add}


def table(framework: Framework, rows: list[Row]) -> Table:
    result = Table(title=f"crossnorm.{framework} and the native layers, milliseconds", title_justify="left")
    for heading in ("method", "layout", "computation"):
        result.add_column(heading, no_wrap=True)
    for heading in ("native", "ours", "ours/native"):
        result.add_column(heading, justify="right")
    for row in rows:
        ratio = f"{row.ratio:.2f}"
        result.add_row(
            row.method,
            row.layout,
            row.computation,
            f"{row.native:.2f}",
            f"{row.ours:.2f}",
            f"[red]{ratio}[/red]" if row.ratio > 1.05 else ratio,
        )
    return result


def main(
    framework: Annotated[list[Framework], typer.Option(help="Which layers; may be repeated.")] = list(Framework),  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 20,
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes, to see that it runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Time our layers and the native ones in turns."""
    sizes = QUICK if quick else Sizes()
    console = Console(quiet=as_json)
    limits = {name: streaming_limit(shape, repeats) for name, shape in asdict(sizes).items()}
    for name, limit in limits.items():
        milliseconds = ", ".join(f"{computation} {best:.2f} ms" for computation, best in limit.items())
        console.print(f"Streaming limit, {name} {'x'.join(map(str, asdict(sizes)[name]))}: {milliseconds}", highlight=False)
    results = {}
    for each in framework:
        results[each] = [
            Row(method, layout, computation, *minima([native, ours], repeats))
            for method, layout, computation, native, ours in RUNS[each](sizes)
        ]
        console.print(table(each, results[each]))
    if as_json:
        rows = {each: [{**asdict(row), "ratio": row.ratio} for row in rows] for each, rows in results.items()}
        print(json.dumps({"streaming limit": limits, **rows}, indent=2))


if __name__ == "__main__":
    typer.run(main)
