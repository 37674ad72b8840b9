"""What the specifications of the reparametrizations share: they compute a layer's effective weight from a raw one."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ._base import ArraySpec, NormSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSpec(NormSpec):
    """Base of the reparametrizations. Their input is a raw weight and their output the effective weight, of the same shape.

    The weight is arranged with its rows first: ``shape = (rows, *rest)``, whatever order the framework stores it in. What a
    row is depends on the kind of the layer:

    | kind                              | field              | value           | shape                                      |
    |-----------------------------------|--------------------|-----------------|--------------------------------------------|
    | dense                             |                    |                 | (outputs, inputs)                          |
    | convolution (g groups)            |                    |                 | (outputs, inputs / g, *kernel)             |
    | transposed convolution (g groups) | ``transposed_row`` | ``"output"``    | (outputs, inputs / g, *kernel)             |
    |                                   |                    | ``"input"``     | (inputs, outputs / g, *kernel)             |
    | depthwise convolution             | ``depthwise_row``  | ``"output"``    | (inputs * multiplier, 1, *kernel)          |
    |                                   |                    | ``"multiplier"``| (multiplier, inputs, *kernel)              |
    | embedding                         | ``embedding_row``  | ``"output"``    | (dimensions, entries)                      |
    |                                   |                    | ``"input"``     | (entries, dimensions)                      |

    The outputs of a grouped or depthwise convolution are in the order of their channels. A convolution in as many groups as it
    has inputs is a depthwise one where the framework has a kind of its own for it (Keras); a torch convolution is a convolution
    whatever its groups.
    """

    reduces: ClassVar[frozenset[str]] = frozenset({"input", "kernel"})

    shape: tuple[int, ...]
    transposed_row: Literal["output", "input"] = "output"
    depthwise_row: Literal["output", "multiplier"] = "output"
    embedding_row: Literal["output", "input"] = "output"

    def __post_init__(self) -> None:
        NormSpec.__post_init__(self)
        self._sizes()
        self._choice("transposed_row", ("output", "input"))
        self._choice("depthwise_row", ("output", "multiplier"))
        self._choice("embedding_row", ("output", "input"))

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        """How many numbers each row has: the fan-in, where a row is an output."""
        count = 1
        for size in self.shape[1:]:
            count *= size
        return count

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return (self.rows,)

    @property
    def parameters(self) -> tuple[ArraySpec, ...]:
        """The learned arrays beside the raw weight itself."""
        return self._affine_parameters(1.0)


EpsPlace = Literal["maximum", "maximum_of_square", "added_to_square"]
EPS_PLACES = ("maximum", "maximum_of_square", "added_to_square")
