"""One run of an implementation on a case, on arrays of its own. Whatever it does is an answer."""

import re
from collections.abc import Mapping

import numpy as np
import pytest

from .case import Arrays, Case
from .implementations import Implementation, Result


class Unanswered(Exception):
    """No answer that could be judged came back; the text says what came instead."""


Results = dict[tuple[int, str], Result]


def run(implementation: Implementation, case: Case, arrays: Arrays, execution: str, device: str) -> Results:
    """The results of an implementation.

    Raises:
        Unanswered: it raised, changed its input, or gave back what are no results.
    """
    given = {name: value.copy() for name, value in arrays.values.items()}
    try:
        results = implementation.run(case, arrays, execution, device)
    except Unanswered:
        raise
    except (Exception, SystemExit, pytest.skip.Exception) as error:
        raise Unanswered(f"raised {told(error)}") from error
    if any(not np.array_equal(arrays.values[name], value) for name, value in given.items()):
        raise Unanswered("changed its input")
    if not isinstance(results, Mapping) or not all(_is_result(value) for value in results.values()):
        raise Unanswered("gave something else than a dictionary of Results with NumPy arrays")
    # Arrays of a class of theirs would run their code wherever they are looked at, and where a pickle of them is opened.
    return {key: Result(np.array(value.values, subok=False), str(value.dtype)) for key, value in results.items()}


def told(error: BaseException) -> str:
    """An exception on one line, without the colours of a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def _is_result(value: object) -> bool:
    return (
        isinstance(value, Result)
        and isinstance(value.values, np.ndarray)
        and value.values.dtype.kind in "fiub"
        and isinstance(value.dtype, str)
    )
