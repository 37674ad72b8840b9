"""What the layers that are no normalization are, in words that no framework owns, and how their arrays are arranged.

The arrays of a part have one name and one arrangement, whatever the framework:

- dense: ``weight`` (outputs, inputs), ``bias`` (outputs);
- convolution: ``weight`` (outputs, inputs / groups, kernel), ``bias`` (outputs); a depthwise one has as many groups as inputs;
- transposed_convolution: ``weight`` (inputs, outputs / groups, kernel), ``bias`` (outputs);
- embedding: ``weight`` (entries, dimensions);
- prelu: ``weight`` (channels), or one number for all of them;
- lstm: ``input_weight`` (4 units, inputs), ``recurrent_weight`` (4 units, units), ``bias`` and ``recurrent_bias`` (4 units);
  gates i, f, g, o. Keras has one bias: there ``recurrent_bias`` reads as zeros and is added to ``bias`` when written;
- gru: the same with 3 units, gates r, z, n. There is no ``recurrent_bias`` where the reset gate acts before the product;
- attention: ``query_weight``, ``key_weight``, ``value_weight`` (heads * size, inputs), ``output_weight`` (outputs,
  heads * size), and ``query_bias``, ``key_bias``, ``value_bias``, ``output_bias``.
"""

from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

from crossnorm.errors import MigrationError

LinearKind = Literal["dense", "convolution", "transposed_convolution", "embedding"]

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _Checked:
    """Validation of fields, which may come from a file."""

    __slots__ = ()

    def _refuse(self, field: str, rule: str) -> NoReturn:
        raise MigrationError(f"{type(self).__name__}: {field}={getattr(self, field)!r} {rule}; correct it")

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _choice(self, field: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, field)
        if not (isinstance(value, str) and value in choices):
            self._refuse(field, f"is not one of {', '.join(map(repr, choices))}")

    def _flags(self, *names: str) -> None:
        for field in names:
            if not isinstance(getattr(self, field), bool):
                self._refuse(field, "is neither True nor False")

    def _words(self, *names: str) -> None:
        for field in names:
            value = getattr(self, field)
            if not isinstance(value, str) or not value:
                self._refuse(field, "is no name")

    def _sizes(self, *names: str) -> None:
        for field in names:
            if not _integer(getattr(self, field), 1):
                self._refuse(field, "is no integer >= 1")

    def _tuple(self, field: str, lengths: tuple[int, ...], least: int) -> None:
        """A tuple of integers from ``least`` on; a list, as JSON has it, becomes one."""
        value = getattr(self, field)
        if not isinstance(value, tuple | list) or len(value) not in lengths or not all(_integer(size, least) for size in value):
            self._refuse(field, f"is no tuple of {' or '.join(map(str, lengths))} integers >= {least}")
        self._set(field, tuple(value))


def _integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear(_Checked):
    """A dense layer, a convolution, a transposed convolution or an embedding.

    ``shape`` is that of the weight, arranged as the table of this module says. ``stride`` and ``dilation`` are ones unless
    given. ``padding`` is how much a convolution adds before and after, for each spatial dimension. ``"valid"``, ``"causal"``
    and ``"same"`` are accepted too and become numbers, but for ``"same"`` with strides, which depends on the size of the input.
    Of a transposed convolution it is how much is cut off the full output, in numbers only, and ``output_padding`` how much is
    added behind that.

    >>> Linear(kind="convolution", shape=(8, 4, 3), padding="same").padding
    ((1, 1),)
    """

    kind: LinearKind
    shape: tuple[int, ...]
    bias: bool = False
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: str | tuple[tuple[int, int], ...] = ()
    output_padding: tuple[int, ...] | None = None
    dilation: tuple[int, ...] = ()
    padding_mode: str = "zeros"
    activation: str = "linear"

    def __post_init__(self) -> None:
        self._choice("kind", get_args(LinearKind))
        convolution = self.kind.endswith("convolution")
        self._tuple("shape", (3, 4, 5) if convolution else (2,), 1)
        self._flags("bias")
        self._sizes("groups")
        self._choice("padding_mode", _PADDING_MODES)
        self._words("activation")
        if not convolution:
            for field, plain in (("groups", 1), ("stride", ()), ("padding", ()), ("output_padding", None), ("dilation", ())):
                value = getattr(self, field)
                if (tuple(value) if isinstance(value, list) else value) != plain:
                    self._refuse(field, f"has no meaning in kind={self.kind!r}")
                self._set(field, plain)
            return
        if self.shape[0] % self.groups:
            self._refuse("groups", f"does not divide the first size of shape={self.shape}")
        rank = len(self.shape) - 2
        for field in ("stride", "dilation"):
            self._tuple(field, (0, rank), 1)
            self._set(field, getattr(self, field) or (1,) * rank)
        if self.kind == "transposed_convolution":
            self._set("output_padding", (0,) * rank if self.output_padding is None else self.output_padding)
            self._tuple("output_padding", (rank,), 0)
        elif self.output_padding is not None:
            self._refuse("output_padding", "has no meaning in kind='convolution'")
        self._set_padding(rank)

    def _set_padding(self, rank: int) -> None:
        padding = self.padding
        if isinstance(padding, str) and self.kind == "convolution":
            self._choice("padding", ("same", "valid", "causal"))
            # What the kernel reaches beyond its first value.
            reach = [(size - 1) * step for size, step in zip(self.shape[2:], self.dilation, strict=True)]
            if padding == "same" and any(size and step > 1 for size, step in zip(reach, self.stride, strict=True)):
                return
            before, total = {
                "same": ([size // 2 for size in reach], reach),
                "valid": ([0] * rank, [0] * rank),
                "causal": (reach, reach),
            }[padding]
            padding = tuple((b, t - b) for b, t in zip(before, total, strict=True))
        pairs = padding if isinstance(padding, tuple | list) else [None]
        sound = [
            isinstance(pair, tuple | list) and len(pair) == 2 and all(_integer(size, 0) for size in pair) for pair in pairs
        ]
        if len(pairs) not in (0, rank) or not all(sound):
            self._refuse("padding", f"is not {rank} pairs of integers >= 0")
        self._set("padding", tuple((before, after) for before, after in pairs) or ((0, 0),) * rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recurrent(_Checked):
    """One layer and one direction of an LSTM or a GRU. ``reset_after``: a GRU's reset gate acts after the matrix product."""

    kind: Literal["lstm", "gru"]
    inputs: int
    units: int
    bias: bool = True
    reverse: bool = False
    reset_after: bool = True
    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"

    def __post_init__(self) -> None:
        self._choice("kind", ("lstm", "gru"))
        self._sizes("inputs", "units")
        self._flags("bias", "reverse", "reset_after")
        self._words("activation", "recurrent_activation")


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention(_Checked):
    """Multi-head attention: inputs of query, key and value, heads, sizes of a head's keys and values, and outputs."""

    kind: Literal["attention"] = "attention"
    inputs: tuple[int, int, int]
    heads: int
    key_size: int
    value_size: int
    outputs: int
    bias: bool = True

    def __post_init__(self) -> None:
        self._choice("kind", ("attention",))
        self._tuple("inputs", (3,), 1)
        self._sizes("heads", "key_size", "value_size", "outputs")
        self._flags("bias")


@dataclass(frozen=True, kw_only=True, slots=True)
class Slope(_Checked):
    """A PReLU: what it multiplies negative values with, for each channel or, with ``channels=1``, for all of them."""

    kind: Literal["prelu"] = "prelu"
    channels: int

    def __post_init__(self) -> None:
        self._choice("kind", ("prelu",))
        self._sizes("channels")


@dataclass(frozen=True, kw_only=True, slots=True)
class Unknown(_Checked):
    """A layer that holds arrays and that nobody here can take apart: its class, why, and its arrays' names and shapes."""

    kind: Literal["unknown"] = "unknown"
    layer: str
    reason: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        self._choice("kind", ("unknown",))
        self._words("layer", "reason")
