"""Ready-made rules for `crossnorm.migrate.convert`: which layer takes the place of which.

A rule is a function of a layer's name, the layer and its `Description`. It returns the specification that the new layer, which
is ours, is to obey, or a layer that it made itself, or None where nothing changes.
"""

import math
from collections.abc import Callable
from typing import Any

from crossnorm.errors import MigrationError
from crossnorm.spec import FRAMEWORKS, PEERS, BatchNormSpec, GroupNormSpec, NormSpec

from ._description import Description
from ._frameworks import framework_of, room

Rule = Callable[[str, Any, Description], Any]


def ours() -> Rule:
    """Every normalization layer becomes ours and computes the same, with the bounds of the conformance suite.

    One does not: Keras' own SpectralNormalization divides its kernel in training only, and ours at inference too.
    """

    def rule(name: str, layer: Any, description: Description) -> NormSpec | None:
        return None if room(framework_of(layer)).is_ours(layer, description) else description.spec

    return rule


def group_norm(groups: int = 32) -> Rule:
    """Batch normalization becomes group normalization, which needs no other samples: for small batches.

    Scale, offset and eps are kept; the running statistics are of no use any more, and Keras' masks are not regarded. A layer
    whose channels ``groups`` does not divide gets as many groups as divide both.

    >>> from crossnorm import BatchNormSpec
    >>> from crossnorm.migrate import Description, Layout
    >>> group_norm(32)("bn", None, Description(BatchNormSpec(channels=48), Layout(), {})).groups
    16
    """
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise MigrationError(f"rules.group_norm: groups={groups!r} is not an integer >= 1; give the number of groups")

    def rule(name: str, layer: Any, description: Description) -> NormSpec | None:
        spec = description.spec
        if not isinstance(spec, BatchNormSpec):
            return None
        shared = math.gcd(spec.channels, groups)
        return GroupNormSpec(channels=spec.channels, groups=shared, eps=spec.eps, scale=spec.scale, offset=spec.offset)

    return rule


def synchronized() -> Rule:
    """Batch normalization becomes the framework's own that synchronizes its statistics between devices.

    These are `torch.nn.SyncBatchNorm`, which works on accelerators only, and Keras' ``synchronized=True``. A layer whose
    conventions they cannot express is refused.
    """

    def rule(name: str, layer: Any, description: Description) -> Any:
        if not isinstance(description.spec, BatchNormSpec):
            return None
        return room(framework_of(layer)).synchronized(layer, description)

    return rule


def semantics(framework: str) -> Rule:
    """Every layer becomes ours with the conventions that are fixed in another framework: it trains on as it would there.

    What can be set there, eps and the decay among it, stays as it is. For batch normalization and ``"keras"`` these conventions
    are the biased running variance, and that one value per channel is no error.

    Args:
        framework: one of `crossnorm.spec.FRAMEWORKS`.

    >>> from crossnorm import BatchNormSpec
    >>> from crossnorm.migrate import Description, Layout
    >>> semantics("keras")("bn", None, Description(BatchNormSpec(channels=4), Layout(), {})).running_variance
    'biased'
    """
    if framework not in FRAMEWORKS:
        raise MigrationError(f"rules.semantics: {framework!r} is unknown; the frameworks are {', '.join(FRAMEWORKS)}")

    def rule(name: str, layer: Any, description: Description) -> NormSpec | None:
        peer = PEERS[description.spec.method].get(framework)
        if peer is None:
            return None
        return description.spec.replace(**{field: value for field, value in peer.fields.items() if field not in peer.arguments})

    return rule
