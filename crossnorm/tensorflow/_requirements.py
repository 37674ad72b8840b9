"""Imports TensorFlow and Keras, or says in one sentence why this room cannot be used.

The check is on the import and not on a distribution's name: TensorFlow is installed under several.
"""

import os
import re
import sys

from crossnorm.errors import CrossnormError

TENSORFLOW = (2, 21)
KERAS = (3, 15)
_REMEDY = 'install it with: pip install "crossnorm[tensorflow]"'


class FrameworkError(CrossnormError, ImportError):
    """TensorFlow or Keras is missing, too old, or Keras runs on another backend."""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _refuse(what: str, remedy: str) -> None:
    raise FrameworkError(f"crossnorm.tensorflow: {what}; {remedy}") from None


def require() -> None:
    """Raise a ``FrameworkError`` unless recent enough TensorFlow and Keras are here, the one as the other's backend."""
    if "tensorflow" not in sys.modules:
        # Without this, importing TensorFlow prints what it found out about the processor.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    try:
        import tensorflow
    except ImportError as error:
        _refuse(f"TensorFlow cannot be imported ({error})", _REMEDY)
    if _version(tensorflow.__version__) < TENSORFLOW:
        _refuse(f"TensorFlow {tensorflow.__version__} is older than {TENSORFLOW[0]}.{TENSORFLOW[1]}", _REMEDY)
    try:
        import keras
    except ImportError as error:
        _refuse(f"Keras cannot be imported ({error})", _REMEDY)
    if _version(keras.__version__) < KERAS:
        _refuse(f"Keras {keras.__version__} is older than {KERAS[0]}.{KERAS[1]}", _REMEDY)
    if keras.backend.backend() != "tensorflow":
        _refuse(
            f"Keras runs on the backend {keras.backend.backend()!r}",
            "set the environment variable KERAS_BACKEND=tensorflow before Keras is first imported",
        )


require()
