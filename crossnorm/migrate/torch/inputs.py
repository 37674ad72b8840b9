"""What a module declares of its inputs: nothing."""

from typing import Any


def signature(model: Any) -> None:
    return None
