"""The exceptions of crossnorm. Every room may import this module; it imports nothing.

A message names who complains, the offending values, the rule and the remedy.
"""


class CrossnormError(Exception):
    """Base class: ``except CrossnormError`` catches whatever crossnorm raises on purpose."""


class SpecError(CrossnormError, ValueError):
    """A specification, or an argument that would lead to one, breaks a rule of its method."""


class Unsupported(CrossnormError, NotImplementedError):
    """The request is well-formed, but this framework or this layer cannot carry it out."""


class MigrationError(CrossnormError, ValueError):
    """A layer, a model or a file cannot be moved as it is; nothing was written."""
