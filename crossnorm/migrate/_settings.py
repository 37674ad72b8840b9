"""What the layers that are no normalization are, in words that no framework owns, and how their arrays are arranged.

The arrays of a part have one name and one arrangement, whatever the framework:

- dense: ``weight`` (outputs, inputs), ``bias`` (outputs);
- convolution: ``weight`` (outputs, inputs / groups, kernel), ``bias`` (outputs); a depthwise one has as many groups as inputs;
- transposed_convolution: ``weight`` (inputs, outputs / groups, kernel), ``bias`` (outputs);
- embedding: ``weight`` (entries, dimensions);
- lstm: ``input_weight`` (4 units, inputs), ``recurrent_weight`` (4 units, units), ``bias`` (4 units); gates i, f, g, o;
- gru: the same with 3 units, gates r, z, n, and ``recurrent_bias`` (3 units), which is apart where the reset gate acts after;
- attention: ``query_weight``, ``key_weight``, ``value_weight`` (heads * size, inputs), ``output_weight`` (outputs,
  heads * size), and ``query_bias``, ``key_bias``, ``value_bias``, ``output_bias``.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A dense layer, a convolution, a transposed convolution or an embedding.

    ``shape`` is that of the weight, arranged as the table of this module says. ``padding`` is ``"same"``, ``"valid"``,
    ``"causal"`` or how much is added before and after, for each spatial dimension.
    """

    kind: Literal["dense", "convolution", "transposed_convolution", "embedding"]
    shape: tuple[int, ...]
    bias: bool = False
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: str | tuple[tuple[int, int], ...] = ()
    output_padding: tuple[int, ...] | None = None
    dilation: tuple[int, ...] = ()
    padding_mode: str = "zeros"
    activation: str = "linear"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recurrent:
    """One layer and one direction of an LSTM or a GRU. ``reset_after``: a GRU's reset gate acts after the matrix product."""

    kind: Literal["lstm", "gru"]
    inputs: int
    units: int
    bias: bool = True
    reverse: bool = False
    reset_after: bool = True
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """Multi-head attention: inputs of query, key and value, heads, sizes of a head's keys and values, and outputs."""

    kind: Literal["attention"] = "attention"
    inputs: tuple[int, int, int]
    heads: int
    key_size: int
    value_size: int
    outputs: int
    bias: bool = True
