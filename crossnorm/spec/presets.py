"""What each framework calls, defaults and does differently, as data.

One `Peer` per method and framework, in `_activation_peers` and `_weight_peers`. `preset` turns it into a specification;
``crossnorm explain`` prints it; tests compare it with the installed frameworks, so that it cannot drift.
"""

from dataclasses import MISSING, fields
from typing import Any

from crossnorm.errors import SpecError

from ._activation_peers import ACTIVATION_PEERS
from ._base import NormSpec
from ._peer import Peer
from ._weight import WeightSpec
from ._weight_peers import WEIGHT_PEERS
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

PEERS: dict[str, dict[str, Peer]] = {**ACTIVATION_PEERS, **WEIGHT_PEERS}

FRAMEWORKS = (
    "torch",
    "torch_hook",
    "keras",
    "tf_keras2",
    "tfa",
    "flax",
    "equinox",
    "onnx",
    "timm",
    "timm_scaled",
    "torchrl",
    "authors",
    "authors_tensorflow",
    "deepmind",
    "paper",
)


def spec_class(method: str) -> type[NormSpec]:
    """The specification's class of a method's name; an unknown name is a ``SpecError``."""
    try:
        return SPECS[method]
    except (KeyError, TypeError):
        raise SpecError(f"crossnorm: unknown method {method!r}; the methods are {', '.join(SPECS)}") from None


def preset(framework: str, method: str, **changes: Any) -> NormSpec:
    """The specification that a framework's default layer obeys, with some fields given or changed.

    Args:
        framework: one of ``FRAMEWORKS``. ``"torch_hook"``: torch's old ``utils.spectral_norm`` and ``utils.weight_norm``;
            ``"tfa"``: the archived tensorflow_addons; ``"timm_scaled"``: timm's ``ScaledStdConv2d``; ``"authors"`` and
            ``"authors_tensorflow"``: the code that came with a paper; ``"deepmind"``: the networks without normalizer.
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
    untracked = not defaults.get("tracked", True) and "tracked" not in peer.arguments
    if untracked and name in ("decay", "running_variance"):
        return "no running statistics"
    if name not in defaults or name in peer.from_input:
        return argument.name if argument else f"from the {'layer' if issubclass(cls, WeightSpec) else 'input'}"
    if argument is None:
        return f"{defaults[name]} (fixed)"
    return f"{argument.name} = {argument.written or argument.native(defaults[name])}"
