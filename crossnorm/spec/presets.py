"""What each framework calls, defaults and does differently, as data.

One `Peer` per method and framework. `preset` turns it into a specification; ``crossnorm explain`` prints it; tests compare it
with the installed frameworks, so that it cannot drift.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from crossnorm.errors import SpecError

from ._base import NormSpec
from .batch_norm import BatchNormSpec
from .batch_renorm import BatchRenormSpec
from .filter_response_norm import FilterResponseNormSpec
from .group_norm import GroupNormSpec
from .instance_norm import InstanceNormSpec
from .layer_norm import LayerNormSpec
from .rms_norm import RMSNormSpec
from .spectral_norm import SpectralNormSpec
from .switchable_norm import SwitchableNormSpec
from .weight_norm import WeightNormSpec
from .weight_standardization import WeightStandardizationSpec

SPECS: dict[str, type[NormSpec]] = {
    spec.method: spec
    for spec in (
        BatchNormSpec,
        LayerNormSpec,
        GroupNormSpec,
        InstanceNormSpec,
        RMSNormSpec,
        BatchRenormSpec,
        SwitchableNormSpec,
        FilterResponseNormSpec,
        WeightStandardizationSpec,
        SpectralNormSpec,
        WeightNormSpec,
    )
}

FRAMEWORKS = ("torch", "keras", "tf_keras2", "flax", "onnx", "paper")


@dataclass(frozen=True, slots=True)
class Argument:
    """What a framework calls one field.

    ``complement``: its value is one minus the field's. ``written``: its default as the framework writes it, where that is
    not the value of the field.
    """

    name: str
    complement: bool = False
    written: str | None = None

    def native(self, value: Any) -> Any:
        return round(1 - value, 15) if self.complement and value is not None else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One framework's version of one method.

    ``fields``: the specification's fields that its defaults amount to. ``arguments``: the constructor arguments that set
    them; a field without an argument is fixed there. ``notes``: what no field expresses (dtypes, masks, odd input).
    """

    name: str
    fields: Mapping[str, Any]
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _same(**names: str) -> dict[str, Argument]:
    return {ours: Argument(theirs) for ours, theirs in names.items()}


_TORCH_MOMENTUM = {"decay": Argument("momentum", complement=True)}
_KERAS_ARGUMENTS = _same(eps="epsilon", scale="scale", offset="center")
_FLAX_ARGUMENTS = _same(eps="epsilon", scale="use_scale", offset="use_bias")
_TORCH_HALF = "half inputs: statistics and arithmetic in float32, output in the input's dtype"
_KERAS_FLOAT32 = "mixed precision: computes in float32 with float32 parameters, output in the policy's compute dtype"
_FLAX_PROMOTE = "bfloat16 input with float32 parameters gives float32 output; fast variance E[x^2] - E[x]^2 by default"
_ONNX_STASH = "stash_type gives the dtype of the statistics, float32 by default"
_NO_EPS = "the paper has no eps: 0"
_EPS_UNNAMED = "the paper adds an eps without a value: 1e-5 is ours"

PEERS: dict[str, dict[str, Peer]] = {
    "batch_norm": {
        "torch": Peer(
            name="torch.nn.BatchNorm1d/2d/3d",
            arguments={
                **_same(channels="num_features", eps="eps", scale="affine", offset="bias", tracked="track_running_stats"),
                **_TORCH_MOMENTUM,
            },
            fields={"eps": 1e-5, "decay": 0.9, "running_variance": "unbiased", "single_value": "raise"},
            notes=(
                "called without a mode it trains; eval() freezes the statistics, requires_grad=False does not",
                "affine=False drops the bias too, whatever bias= says",
                "an empty batch keeps the statistics and counts as one",
                _TORCH_HALF,
            ),
        ),
        "keras": Peer(
            name="keras.layers.BatchNormalization",
            arguments={**_KERAS_ARGUMENTS, "decay": Argument("momentum")},
            fields={"eps": 1e-3, "decay": 0.99, "running_variance": "biased", "single_value": "zero"},
            notes=(
                "called without training=True it is inference; trainable=False means inference too",
                "an empty batch turns the moving statistics into NaN for good",
                "mixed precision: the input is cast to the compute dtype before the statistics are taken",
                "takes a mask of the input's rank minus one; an all-masked batch moves the statistics towards 0",
            ),
        ),
        "tf_keras2": Peer(
            name="tf.keras 2 BatchNormalization (rank 4, fused)",
            arguments={**_KERAS_ARGUMENTS, "decay": Argument("momentum")},
            fields={"eps": 1e-3, "decay": 0.99, "running_variance": "unbiased", "single_value": "zero"},
            notes=("only rank 4 takes the fused kernel; other ranks store the biased variance",),
        ),
        "flax": Peer(
            name="flax.linen.BatchNorm, flax.nnx.BatchNorm",
            arguments={**_FLAX_ARGUMENTS, "decay": Argument("momentum")},
            fields={"eps": 1e-5, "decay": 0.99, "running_variance": "biased", "single_value": "zero"},
            notes=(_FLAX_PROMOTE, "an empty or all-masked batch turns the statistics into NaN"),
        ),
        "onnx": Peer(
            name="BatchNormalization-15",
            arguments={"eps": Argument("epsilon"), "decay": Argument("momentum")},
            fields={"eps": 1e-5, "decay": 0.9, "running_variance": "biased", "single_value": "zero"},
            notes=("scale and bias are required inputs; training_mode=0 by default",),
        ),
        "paper": Peer(
            name="Ioffe and Szegedy 2015, arXiv:1502.03167",
            fields={"eps": 1e-5, "decay": None, "running_variance": "unbiased", "single_value": "raise"},
            notes=(_EPS_UNNAMED, "inference averages the unbiased variances of many batches: decay None"),
        ),
    },
    "layer_norm": {
        "torch": Peer(
            name="torch.nn.LayerNorm",
            arguments=_same(shape="normalized_shape", eps="eps", scale="elementwise_affine", offset="bias"),
            fields={"eps": 1e-5},
            notes=("trailing dimensions only", "elementwise_affine=False drops the bias too", _TORCH_HALF),
        ),
        "keras": Peer(
            name="keras.layers.LayerNormalization",
            arguments=_KERAS_ARGUMENTS,
            fields={"eps": 1e-3},
            notes=(
                "any axes; gamma and beta have the sizes of the sorted axes",
                "rms_scaling=True (deprecated) is subtract_mean=False without beta",
                _KERAS_FLOAT32,
            ),
        ),
        "tf_keras2": Peer(
            name="tf.keras 2 LayerNormalization", arguments=_KERAS_ARGUMENTS, fields={"eps": 1e-3}, notes=("any axes",)
        ),
        "flax": Peer(
            name="flax.linen.LayerNorm, flax.nnx.LayerNorm",
            arguments=_FLAX_ARGUMENTS,
            fields={"eps": 1e-6},
            notes=(_FLAX_PROMOTE, "parameters on feature_axes only, also where more axes are reduced"),
        ),
        "onnx": Peer(
            name="LayerNormalization-17",
            arguments={"eps": Argument("epsilon")},
            fields={"eps": 1e-5},
            notes=("scale is a required input, bias an optional one; axes from `axis` to the end", _ONNX_STASH),
        ),
        "paper": Peer(name="Ba, Kiros and Hinton 2016, arXiv:1607.06450", fields={"eps": 0.0}, notes=(_NO_EPS,)),
    },
    "group_norm": {
        "torch": Peer(
            name="torch.nn.GroupNorm",
            arguments=_same(channels="num_channels", groups="num_groups", eps="eps", scale="affine", offset="bias"),
            fields={"eps": 1e-5},
            notes=("one value per group raises for a batch of one only", "affine=False drops the bias too", _TORCH_HALF),
        ),
        "keras": Peer(
            name="keras.layers.GroupNormalization",
            arguments={**_KERAS_ARGUMENTS, "groups": Argument("groups")},
            fields={"eps": 1e-3, "groups": 32},
            notes=(
                "any channel axis; groups=-1 is instance normalization",
                "accepts an upstream mask and ignores it",
                _KERAS_FLOAT32,
            ),
        ),
        "tf_keras2": Peer(
            name="tf.keras 2 GroupNormalization",
            arguments={**_KERAS_ARGUMENTS, "groups": Argument("groups")},
            fields={"eps": 1e-3, "groups": 32},
        ),
        "flax": Peer(
            name="flax.linen.GroupNorm, flax.nnx.GroupNorm",
            arguments={**_FLAX_ARGUMENTS, "groups": Argument("num_groups")},
            fields={"eps": 1e-6, "groups": 32},
            notes=(_FLAX_PROMOTE, "nnx with reduction_axes is silently wrong"),
        ),
        "onnx": Peer(
            name="GroupNormalization-21",
            arguments={"eps": Argument("epsilon"), "groups": Argument("num_groups")},
            fields={"eps": 1e-5},
            notes=("opset 18 had one scale per group, opset 21 has one per channel", _ONNX_STASH),
        ),
        "paper": Peer(name="Wu and He 2018, arXiv:1803.08494", fields={"eps": 1e-5, "groups": 32}, notes=(_EPS_UNNAMED,)),
    },
    "instance_norm": {
        "torch": Peer(
            name="torch.nn.InstanceNorm1d/2d/3d",
            arguments={
                **_same(channels="num_features", eps="eps", scale="affine", tracked="track_running_stats"),
                "offset": Argument("bias", written="True (with affine)"),
                **_TORCH_MOMENTUM,
            },
            fields={
                "eps": 1e-5,
                "scale": False,
                "offset": False,
                "decay": 0.9,
                "running_variance": "instance_mean_unbiased",
                "single_value": "raise",
            },
            notes=(
                "momentum=None never updates (decay 1); the counter exists and never counts",
                "rank 2 or 3 without a batch is accepted: (channels, length) is read as one sample",
                _TORCH_HALF,
            ),
        ),
        "keras": Peer(
            name="keras.layers.GroupNormalization(groups=-1)",
            arguments=_KERAS_ARGUMENTS,
            fields={"eps": 1e-3, "single_value": "zero"},
            notes=("no layer of its own, no running statistics", _KERAS_FLOAT32),
        ),
        "tf_keras2": Peer(
            name="tensorflow_addons InstanceNormalization (archived)",
            arguments=_KERAS_ARGUMENTS,
            fields={"eps": 1e-3, "single_value": "zero"},
            notes=("no running statistics",),
        ),
        "flax": Peer(
            name="flax.linen.InstanceNorm, flax.nnx.InstanceNorm",
            arguments=_FLAX_ARGUMENTS,
            fields={"eps": 1e-6, "single_value": "zero"},
            notes=(_FLAX_PROMOTE, "no running statistics"),
        ),
        "onnx": Peer(
            name="InstanceNormalization-22",
            arguments={"eps": Argument("epsilon")},
            fields={"eps": 1e-5, "single_value": "zero"},
            notes=("scale and bias are required inputs; no running statistics",),
        ),
        "paper": Peer(
            name="Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022",
            fields={"eps": 1e-5, "single_value": "zero"},
            notes=(_EPS_UNNAMED, "no running statistics"),
        ),
    },
    "rms_norm": {
        "torch": Peer(
            name="torch.nn.RMSNorm",
            arguments={
                **_same(shape="normalized_shape", scale="elementwise_affine"),
                "eps": Argument("eps", written="None (machine epsilon)"),
            },
            fields={"eps": 2.0**-23},
            notes=(
                "eps=None, the default, is the machine epsilon of the dtype it computes in: 2**-23, in float64 2**-52",
                "trailing dimensions only",
                "half inputs: one rounding, after the weight",
            ),
        ),
        "keras": Peer(
            name="keras.layers.RMSNormalization",
            arguments={"eps": Argument("epsilon")},
            fields={"eps": 1e-6},
            notes=(
                "the scale is always there",
                "mixed precision: scale and input are cast to the compute dtype first",
                "destroys an upstream mask",
            ),
        ),
        "flax": Peer(
            name="flax.linen.RMSNorm, flax.nnx.RMSNorm",
            arguments=_same(eps="epsilon", scale="use_scale"),
            fields={"eps": 1e-6},
            notes=(_FLAX_PROMOTE,),
        ),
        "onnx": Peer(
            name="RMSNormalization-23",
            arguments={"eps": Argument("epsilon")},
            fields={"eps": 1e-5},
            notes=("scale is a required input; axes from `axis` to the end", _ONNX_STASH),
        ),
        "paper": Peer(
            name="Zhang and Sennrich 2019, arXiv:1910.07467",
            fields={"eps": 0.0},
            notes=(_NO_EPS, "the optional bias of equation (4) is left out"),
        ),
    },
}


def spec_class(method: str) -> type[NormSpec]:
    """The specification's class of a method's name; an unknown name is a ``SpecError``."""
    try:
        return SPECS[method]
    except (KeyError, TypeError):
        raise SpecError(f"crossnorm: unknown method {method!r}; the methods are {', '.join(SPECS)}") from None


def preset(framework: str, method: str, **changes: Any) -> NormSpec:
    """The specification that a framework's default layer obeys, with some fields given or changed.

    Args:
        framework: ``"torch"``, ``"keras"``, ``"tf_keras2"``, ``"flax"``, ``"onnx"`` or ``"paper"``.
        method: a method's name, ``"batch_norm"`` for one.
        **changes: fields of the specification; those without a default, such as ``channels``, are required.

    Raises:
        SpecError: unknown framework or method, a method that the framework lacks, or a field that breaks its rule.

    >>> preset("keras", "batch_norm", channels=64).decay
    0.99
    >>> preset("torch", "batch_norm", channels=64).running_variance
    'unbiased'
    """
    cls = spec_class(method)
    if framework not in FRAMEWORKS:
        raise SpecError(f"preset: unknown framework {framework!r}; the frameworks are {', '.join(FRAMEWORKS)}")
    if framework not in PEERS[method]:
        raise SpecError(f"preset: {framework} has no {method}; choose among {', '.join(PEERS[method])}")
    return cls.from_dict({**PEERS[method][framework].fields, **changes})


def comparison(method: str) -> dict[str, dict[str, str]]:
    """The table behind ``crossnorm explain``: field, then framework, then how it is called there and what it defaults to.

    >>> comparison("batch_norm")["decay"]["torch"], comparison("batch_norm")["decay"]["keras"]
    ('momentum = 0.1', 'momentum = 0.99')
    """
    cls = spec_class(method)
    return {f.name: {framework: _cell(peer, cls, f.name) for framework, peer in PEERS[method].items()} for f in fields(cls)}


def _cell(peer: Peer, cls: type[NormSpec], name: str) -> str:
    defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING} | dict(peer.fields)
    argument = peer.arguments.get(name)
    if name in ("decay", "running_variance") and not defaults["tracked"] and "tracked" not in peer.arguments:
        return "no running statistics"
    if name not in defaults:
        return argument.name if argument else "from the input"
    if argument is None:
        return f"{defaults[name]} (fixed)"
    return f"{argument.name} = {argument.written or argument.native(defaults[name])}"
