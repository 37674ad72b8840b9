"""The speed of our layers next to the native ones, or next to what one would use where there is none.

    python benchmarks/compare.py
    python benchmarks/compare.py --framework torch --repeats 50 --json

Every layer trains on the shape that its users have, in float32: an image of 16x64x56x56 or tokens of 4096x768. "forward" is
one call, "+ backward" a call with the gradients for the input and all parameters. torch runs eagerly, Keras in `tf.function`.

A method without a native layer stands against our batch normalization, against its formulas written down with the framework's
own operations ("transcription", "composition"), or, where it prepares the weight of a layer, against that layer without it
("bare layer"): the ratio is then what the method costs. Those layers are small enough for their weights to matter.

One thread. Theirs, ours, theirs, ours, ... in one process, so that a noisy machine disturbs both alike; the minimum of each.
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
from itertools import groupby
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

WARM_UP = 3
FORWARD, BACKWARD = "forward", "+ backward"
OUR_BATCH_NORM, BARE = "our batch norm", "bare layer"
# Batch renormalization that has left its schedule behind.
AT_ONCE = {"r_max_steps": None, "d_max_steps": None}

Run = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """The input shapes; an image is (batch, channel, height, width). A layer has as many outputs as inputs."""

    image: tuple[int, int, int, int] = (16, 64, 56, 56)
    tokens: tuple[int, int] = (4096, 768)
    dense: tuple[int, int] = (64, 1024)
    convolution: tuple[int, int, int, int] = (8, 128, 14, 14)

    @property
    def channels(self) -> int:
        return self.image[1]

    @property
    def groups(self) -> int:
        # Eight groups of eight channels. With 32 groups of two, Keras and torch (channels_last) take three times as long.
        return self.channels // 8


QUICK = Sizes(image=(2, 16, 6, 6), tokens=(16, 32), dense=(4, 8), convolution=(2, 4, 6, 6))


@dataclass(frozen=True)
class Row:
    """One line of the table: our time and that of what we are compared with, in milliseconds."""

    method: str
    against: str
    layout: str
    computation: str
    theirs: float
    ours: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


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


# Each framework yields (method, against, layout, computation, theirs, ours). The layout of a reparametrization is its kind of
# layer.


def torch_runs(sizes: Sizes) -> Iterator[tuple[str, str, str, str, Run, Run]]:
    import torch
    from switchable_transcription import torch_layer
    from torch import nn

    import crossnorm.torch as ours

    torch.set_num_threads(1)
    image, tokens = torch.tensor(values(*sizes.image)), torch.tensor(values(*sizes.tokens))
    inputs = {
        "contiguous": image,
        "channels_last": image.contiguous(memory_format=torch.channels_last),
        "tokens": tokens,
        "Linear": torch.tensor(values(*sizes.dense)),
        "Conv2d": torch.tensor(values(*sizes.convolution)),
    }
    images = ("contiguous", "channels_last")
    channels, features = sizes.channels, sizes.tokens[-1]
    parametrizations = nn.utils.parametrizations

    class Composition(nn.Module):
        """Filter response normalization as one would write it."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(channels, 1, 1))
            self.bias, self.tau = (nn.Parameter(torch.zeros(channels, 1, 1)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rms = (x.square().mean((2, 3), keepdim=True) + 1e-6).sqrt()
            return torch.maximum(x / rms * self.weight + self.bias, self.tau)

    def linear() -> nn.Module:
        return nn.Linear(sizes.dense[1], sizes.dense[1])

    def convolution() -> nn.Module:
        return nn.Conv2d(sizes.convolution[1], sizes.convolution[1], 3, padding=1)

    pairs = [
        ("batch_norm", "torch.nn", images, nn.BatchNorm2d(channels), ours.BatchNorm2d(channels)),
        (
            "instance_norm",
            "torch.nn",
            images,
            nn.InstanceNorm2d(channels, affine=True),
            ours.InstanceNorm2d(channels, affine=True),
        ),
        ("group_norm", "torch.nn", images, nn.GroupNorm(sizes.groups, channels), ours.GroupNorm(sizes.groups, channels)),
        ("layer_norm", "torch.nn", ("tokens",), nn.LayerNorm(features), ours.LayerNorm(features)),
        ("rms_norm", "torch.nn", ("tokens",), nn.RMSNorm(features), ours.RMSNorm(features)),
        ("batch_renorm", OUR_BATCH_NORM, images, ours.BatchNorm2d(channels), ours.BatchRenorm2d(channels, **AT_ONCE)),
        ("switchable_norm", OUR_BATCH_NORM, images, ours.BatchNorm2d(channels), ours.SwitchableNorm2d(channels)),
        ("switchable_norm", "transcription", images, torch_layer(channels), ours.SwitchableNorm2d(channels)),
        ("filter_response_norm", "composition", images, Composition(), ours.FilterResponseNorm2d(channels)),
    ]
    native = "torch.nn.utils.parametrizations"
    reparametrizations = [
        ("weight_standardization", BARE, lambda layer: layer, ours.weight_standardization),
        ("spectral_norm", native, parametrizations.spectral_norm, ours.spectral_norm),
        ("weight_norm", native, parametrizations.weight_norm, ours.weight_norm),
    ]
    pairs += [
        (method, against, (kind,), their(make()), our(make()))
        for method, against, their, our in reparametrizations
        for kind, make in (("Linear", linear), ("Conv2d", convolution))
    ]

    def forward(layer: nn.Module, x: torch.Tensor) -> Run:
        return torch.no_grad()(lambda: layer(x))

    def backward(layer: nn.Module, x: torch.Tensor) -> Run:
        x = x.detach().requires_grad_()
        dy = x.detach().flip(0)
        wanted = [x, *layer.parameters()]
        return lambda: torch.autograd.grad(layer(x), wanted, dy)

    for method, against, layouts, their, our in pairs:
        for layout in layouts:
            for computation, run in ((FORWARD, forward), (BACKWARD, backward)):
                yield method, against, layout, computation, run(their, inputs[layout]), run(our, inputs[layout])


def tensorflow_runs(sizes: Sizes) -> Iterator[tuple[str, str, str, str, Run, Run]]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    from keras import layers
    from switchable_transcription import tensorflow_layer

    import crossnorm.tensorflow as ours

    def image(batch: int, channels: int, height: int, width: int) -> tf.Tensor:
        return tf.constant(values(batch, height, width, channels))

    inputs = {
        "channels_last": image(*sizes.image),
        "tokens": tf.constant(values(*sizes.tokens)),
        "Dense": tf.constant(values(*sizes.dense)),
        "Conv2D": image(*sizes.convolution),
    }

    class Composition(layers.Layer):
        """Filter response normalization as one would write it."""

        def build(self, shape: tuple[int, ...]) -> None:
            self.gamma = self.add_weight(shape=shape[-1:], initializer="ones")
            self.beta, self.tau = (self.add_weight(shape=shape[-1:], initializer="zeros") for _ in range(2))

        def call(self, x: tf.Tensor) -> tf.Tensor:
            rms = tf.sqrt(tf.reduce_mean(tf.square(x), (1, 2), keepdims=True) + 1e-6)
            return tf.maximum(x / rms * self.gamma + self.beta, self.tau)

    def dense() -> layers.Layer:
        return layers.Dense(sizes.dense[1])

    def convolution() -> layers.Layer:
        return layers.Conv2D(sizes.convolution[1], 3, padding="same")

    pairs = [
        ("batch_norm", "keras.layers", "channels_last", layers.BatchNormalization(), ours.BatchNormalization()),
        # Keras has no instance normalization: one group per channel is it.
        ("instance_norm", "keras.layers", "channels_last", layers.GroupNormalization(-1), ours.InstanceNormalization()),
        (
            "group_norm",
            "keras.layers",
            "channels_last",
            layers.GroupNormalization(sizes.groups),
            ours.GroupNormalization(sizes.groups),
        ),
        ("layer_norm", "keras.layers", "tokens", layers.LayerNormalization(), ours.LayerNormalization()),
        ("rms_norm", "keras.layers", "tokens", layers.RMSNormalization(), ours.RMSNormalization()),
        ("batch_renorm", OUR_BATCH_NORM, "channels_last", ours.BatchNormalization(), ours.BatchRenormalization(**AT_ONCE)),
        ("switchable_norm", OUR_BATCH_NORM, "channels_last", ours.BatchNormalization(), ours.SwitchableNormalization()),
        ("switchable_norm", "transcription", "channels_last", tensorflow_layer(sizes.channels), ours.SwitchableNormalization()),
        ("filter_response_norm", "composition", "channels_last", Composition(), ours.FilterResponseNormalization()),
    ]
    reparametrizations = [
        ("weight_standardization", BARE, lambda layer: layer, ours.WeightStandardization),
        ("spectral_norm", "keras.layers", layers.SpectralNormalization, ours.SpectralNormalization),
        ("weight_norm", BARE, lambda layer: layer, ours.WeightNormalization),
    ]
    pairs += [
        (method, against, kind, their(make()), our(make()))
        for method, against, their, our in reparametrizations
        for kind, make in (("Dense", dense), ("Conv2D", convolution))
    ]

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

    for method, against, layout, their, our in pairs:
        for layer in (their, our):
            layer.build(inputs[layout].shape)
        for computation, run in ((FORWARD, forward), (BACKWARD, backward)):
            yield method, against, layout, computation, run(their, inputs[layout]), run(our, inputs[layout])


class Framework(StrEnum):
    torch = "torch"
    tensorflow = "tensorflow"


RUNS = {Framework.torch: torch_runs, Framework.tensorflow: tensorflow_runs}


def streaming_limit(shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """The milliseconds that memory traffic alone takes."""
    x, dy, out = values(*shape), values(*shape), np.empty(shape, np.float32)
    copy, add = minima([lambda: np.copyto(out, x), lambda: np.add(x, dy, out=out)], repeats)
    return {FORWARD: copy, BACKWARD: copy + add}


def report(framework: Framework, rows: list[Row]) -> Iterator[str]:
    """The lines to print: the rows of a method under what it is compared with."""
    yield f"\n[bold]crossnorm.{framework}[/bold], milliseconds"
    yield f"{'':<16}{'':<12}{'theirs':>9}{'ours':>9}{'ours/theirs':>13}"
    for (method, against), group in groupby(rows, lambda row: (row.method, row.against)):
        yield f"{method}, against {against}"
        for row in group:
            ratio = f"{row.ratio:>13.2f}"
            yield (
                f"  {row.layout:<14}{row.computation:<12}{row.theirs:>9.2f}{row.ours:>9.2f}"
                f"{f'[red]{ratio}[/red]' if row.ratio > 1.05 else ratio}"
            )


def main(
    framework: Annotated[list[Framework], typer.Option(help="Which layers; may be repeated.")] = list(Framework),  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 20,
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes, to see that it runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Time our layers and what they are compared with in turns."""
    sizes = QUICK if quick else Sizes()
    console = Console(quiet=as_json)
    streamed = {"image": sizes.image, "tokens": sizes.tokens}
    limits = {name: streaming_limit(shape, repeats) for name, shape in streamed.items()}
    for name, limit in limits.items():
        milliseconds = ", ".join(f"{computation} {best:.2f} ms" for computation, best in limit.items())
        console.print(f"Streaming limit, {name} {'x'.join(map(str, streamed[name]))}: {milliseconds}", highlight=False)
    results = {}
    for each in framework:
        results[each] = [
            Row(method, against, layout, computation, *minima([theirs, ours], repeats))
            for method, against, layout, computation, theirs, ours in RUNS[each](sizes)
        ]
        console.print(*report(each, results[each]), sep="\n", highlight=False)
    if as_json:
        rows = {each: [{**asdict(row), "ratio": row.ratio} for row in rows] for each, rows in results.items()}
        print(json.dumps({"streaming limit": limits, **rows}, indent=2))


if __name__ == "__main__":
    typer.run(main)
