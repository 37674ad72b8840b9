"""Certify a layer of your own: `crossnorm_conformance.check` tells a sound layer from one that is almost right.

What you learn:

- a test of a layer takes three lines: say what it should do, as a specification; check it; look at `report.passed`;
- a variance computed as E[x^2] - E[x]^2 looks right on plain data, and loses every digit where the mean is far from zero;
- the report names what is wrong (the quantity), what it hangs on (`report.where()`), and the lines that show it again;
- `implementation` gives the same layer to the command, which has more cases, and other specifications, too.

Run it, some seconds on one core:

    python examples/certify_your_own.py

The command wants a module and an object in it; this one ends with exit status 1, since it checks the wrong layer:

    crossnorm conformance -n 1 --implementation examples.certify_your_own:IMPLEMENTATION --method layer_norm
"""

import torch
from torch import nn

import crossnorm
from crossnorm_conformance import check, implementation


class LayerNorm(nn.Module):
    """A layer norm over the last axis, straight from the formula. Sums of half numbers are formed in float32."""

    def __init__(self, size, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def variance(self, x, mean):
        return (x - mean).square().mean(-1, keepdim=True)

    def forward(self, x):
        numbers = x.to(self.weight.dtype)
        mean = numbers.mean(-1, keepdim=True)
        normalized = (numbers - mean) / (self.variance(numbers, mean) + self.eps).sqrt()
        return (normalized * self.weight + self.bias).to(x.dtype)


class FastLayerNorm(LayerNorm):
    """The same, and one pass over the data less: the square of the mean cancels what it is subtracted from."""

    def variance(self, x, mean):
        return (x.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0)


def certify_the_right_one():
    spec = crossnorm.LayerNormSpec(shape=(12,), eps=1e-5)
    layer = LayerNorm(12, eps=1e-5)
    return check(layer, spec)


def certify_the_fast_one():
    spec = crossnorm.LayerNormSpec(shape=(12,), eps=1e-5)
    layer = FastLayerNorm(12, eps=1e-5)
    return check(layer, spec)


def fast_layer_norm(spec):
    """The layer for any specification that it has the means for; the report tells the reason for the others."""
    if len(spec.shape) > 1 or not (spec.scale and spec.offset and spec.subtract_mean):
        raise crossnorm.Unsupported("FastLayerNorm has a scale and an offset, and normalizes one axis")
    return FastLayerNorm(spec.shape[0], spec.eps)


IMPLEMENTATION = implementation(fast_layer_norm, methods=("layer_norm",), framework="torch")


def main():
    """Print what the reports say; return them."""
    reports = {"LayerNorm": certify_the_right_one(), "FastLayerNorm": certify_the_fast_one()}
    for name, report in reports.items():
        counts = ", ".join(f"{count} {verdict}" for verdict, count in report.counts().items() if count)
        print(f"{name} is {'sound' if report.passed else 'wrong'}: {counts}")
        for line in report.where():
            print(f"  {line}")
        for failure in report.failures()[:1]:
            print(f"\nThe simplest case that shows it: {failure.case}, {failure.quantity}, {failure.reason}.")
            print(f"These lines show it again:\n\n{report.snippet(failure)}")
    return reports


if __name__ == "__main__":
    main()
