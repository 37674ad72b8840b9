"""An implementation in a child process: it may hang, crash or print there, and the run goes on.

Calls go through a pipe, as pickled NumPy arrays. A child that dies, or that gives no answer in time, is an answer, too: it is
killed, and the next call starts another one.
"""

import multiprocessing
import os
import signal
from collections.abc import Mapping
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from .case import Arrays, Case
from .cases import Fault
from .implementations import Implementation, Misuse, Result, SuiteError, find
from .running import Unanswered, run, told

# Importing a framework takes long on a busy machine.
_START = 180.0
# Nobody waits for an implementation that has failed to answer so often in a row.
_PATIENCE = 3


class Limits:
    """How long a child may take for one run, in seconds."""

    seconds = 60.0


class Remote:
    """The implementation of a name, in a child process."""

    def __init__(self, place: str, environment: Mapping[str, str]) -> None:
        self.place, self._environment = place, dict(environment)
        self._process: Any = None
        self._silent = 0
        facts = self._start()
        self.name: str = facts["name"]
        self.framework: str = facts["framework"]
        self.native: str | None = facts["native"]
        self._facts = facts

    def methods(self) -> tuple[str, ...]:
        return tuple(self._facts["methods"])

    def versions(self) -> dict[str, str]:
        return dict(self._facts["versions"])

    def devices(self) -> tuple[str, ...]:
        return tuple(self._facts["devices"])

    def executions(self) -> tuple[str, ...]:
        return tuple(self._facts["executions"])

    @cache  # noqa: B019 - one object for each implementation, as long as the run
    def shows(self, case: Case, quantity: str) -> bool:
        return bool(self._ask("shows", case, quantity))

    @cache  # noqa: B019
    def unsupported(self, case: Case, device: str) -> str:
        return str(self._ask("unsupported", case, device) or "")

    def run(self, case: Case, arrays: Arrays, execution: str, device: str) -> dict[tuple[int, str], Result]:
        found: dict[tuple[int, str], Result] = self._ask("run", case, arrays, execution, device)
        return found

    def inexpressible(self, fault: Fault) -> str:
        return str(self._ask("inexpressible", fault) or "")

    def misuse(self, fault: Fault) -> Misuse:
        found: Misuse = self._ask("misuse", fault)
        return found

    def _ask(self, member: str, *arguments: Any) -> Any:
        if self._silent >= _PATIENCE:
            raise Unanswered(f"was not run: {_PATIENCE} runs in a row before this one gave no answer")
        if self._process is None:
            try:
                self._start()
            except SuiteError as error:
                raise Unanswered(f"did not start again: {error}") from None
        try:
            self._pipe.send((member, arguments))
            answered = self._pipe.poll(Limits.seconds)
            answer = self._pipe.recv() if answered else None
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self._end()
            raise Unanswered(f"its process ended ({_end_of(code)})") from None
        except Exception as error:  # a third party may answer with anything
            self._end()
            raise Unanswered(f"gave an answer that cannot be opened ({type(error).__name__}: {error})") from None
        if answer is None:
            self._end()
            raise Unanswered(f"gave no answer within {Limits.seconds:g} s; its process was stopped")
        if member in ("run", "misuse"):  # what it says about itself is no sign that it can be run
            self._silent = 0
        return _opened(answer)

    def _start(self) -> dict[str, Any]:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self.place, self._environment), daemon=True)
        self._process.start()
        other.close()
        try:
            facts = self._pipe.recv() if self._pipe.poll(_START) else None
        except (EOFError, OSError):
            facts = SuiteError(f"implementation {self.place!r} cannot be loaded: its process ended while it was imported")
        if facts is None:
            facts = SuiteError(f"implementation {self.place!r} cannot be loaded: its import took more than {_START:g} s")
        if isinstance(facts, SuiteError):
            self._end()
            raise facts
        return dict(facts)

    def _end(self) -> None:
        self._silent += 1
        self._process.kill()
        self._process.join()
        self._process = None
        self._pipe.close()


def _opened(answer: tuple[str, Any]) -> Any:
    kind, value = answer
    if kind == "raised":
        raise Unanswered(value)
    return value


def _end_of(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by signal {-code}, {signal.strsignal(-code)}"
    return f"with exit status {code}"


# In the child.


def _serve(pipe: Connection, place: str, environment: Mapping[str, str]) -> None:
    """Load the implementation, tell what is fixed about it, and answer calls until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the run, and this process with it
    os.dup2(2, 1)  # standard output is the report's
    os.environ.update(environment)
    try:
        implementation = find(place)
        pipe.send(_facts(implementation))
    except SuiteError as error:
        pipe.send(error)
        return
    except Exception as error:
        pipe.send(SuiteError(f"implementation {place!r} cannot say what it is ({type(error).__name__}: {error})"))
        return
    while True:
        try:
            member, arguments = pipe.recv()
        except EOFError:
            return
        _send(pipe, _answer(implementation, member, arguments))


def _send(pipe: Connection, answer: tuple[str, Any]) -> None:
    try:
        pipe.send(answer)
    except Exception as error:  # a third party may answer with anything
        pipe.send(("raised", f"gave an answer that cannot be sent ({type(error).__name__}: {error})"))


def _facts(implementation: Implementation) -> dict[str, Any]:
    facts = {name: getattr(implementation, name) for name in ("name", "framework", "native")}
    facts |= {name: tuple(getattr(implementation, name)()) for name in ("methods", "devices", "executions")}
    return facts | {"versions": dict(implementation.versions())}


def _answer(implementation: Implementation, member: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        if member == "run":
            return "value", run(implementation, *arguments)
        value = getattr(implementation, member)(*arguments)
    except Unanswered as error:
        return "raised", str(error)
    except (Exception, SystemExit) as error:
        return "raised", f"{member}() raised {told(error)}"
    if member == "misuse" and not isinstance(value, Misuse):
        return "raised", f"misuse() gave {type(value).__name__}, which is no Misuse"
    if isinstance(value, Misuse) and value.raised is not None and not type(value.raised).__module__.startswith("crossnorm"):
        # The parent need not have the class.
        value = Misuse(ValueError(str(value.raised)), value.state_before, value.state_after)
    return "value", value
