"""Draws `error_against_offset.svg`: what a mean far from zero costs a sound kernel, and an unsound one.

python docs/error_against_offset.py
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot

from crossnorm import GroupNormSpec
from crossnorm.rounding import VERDICT
from crossnorm_conformance import Case
from crossnorm_conformance.compare import check_quantities
from crossnorm_conformance.implementations import load

PICTURE = Path(__file__).with_suffix(".svg")
OFFSETS = np.geomspace(1, 1e5, 21)
DRAWS = range(3)
KERNELS = {"torch.nn": "torch.nn.GroupNorm, channels_last", "crossnorm-torch": "crossnorm.torch.GroupNorm, channels_last"}
COLOURS = {"torch.nn": "#b3261e", "crossnorm-torch": "#1d6f42"}


def case(offset: float, number: int) -> Case:
    """An image of float32 numbers with that mean and a spread of 1."""
    return Case(
        variant=f"number_{number}",
        spec=GroupNormSpec(channels=8, groups=4, eps=1e-5),
        shape=(2, 8, 32, 32),
        layout="channels_last",
        dtype="float32",
        regime="drawn",
        mode="inference",
        data=(offset, 1.0, number),
    )


def units(implementation: str, offset: float) -> float:
    """The worst error of the output, in rounding units, of a few draws of the data."""
    layer = load(implementation)
    found = [check_quantities("outputs", layer, case(offset, number), "eager", "cpu", 0) for number in DRAWS]
    return max(float(check.units) for checks in found for check in checks if check.units is not None)


def errors() -> dict[str, list[float]]:
    """For each kernel, its error at each of the offsets."""
    return {implementation: [units(implementation, offset) for offset in OFFSETS] for implementation in KERNELS}


def draw(found: dict[str, list[float]]) -> None:
    """Write the picture. Text stays text, and nothing in the file depends on the day."""
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "crossnorm", "font.family": "sans-serif", "font.size": 10}
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for implementation, values in found.items():
        axes.loglog(OFFSETS, values, "o-", markersize=3.5, color=COLOURS[implementation])
        # Below the curve that rises, above the one that falls.
        middle, up = len(values) // 2 - 2, 8 if values[-1] < values[0] else -12
        place = (OFFSETS[middle], values[middle])
        axes.annotate(KERNELS[implementation], place, (10, up), textcoords="offset points", color=COLOURS[implementation])
    axes.axhline(VERDICT, color="#444444", linewidth=1, linestyle="--")
    axes.text(OFFSETS[-1], VERDICT / 1.5, f"more than {VERDICT} units is a failure", color="#444444", ha="right", va="top")
    axes.set_xlabel("mean / standard deviation of the input")
    axes.set_ylabel("worst error of the output, in rounding units")
    axes.set_title("Group normalization in float32 on the CPU", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    draw(errors())
