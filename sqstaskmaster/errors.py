"""The errors of this package: what went wrong as text, and the facts as attributes.

Where the classic library raised a built-in, the error here is one too, so that `except TimeoutError` still works.
"""

from __future__ import annotations

import dataclasses
import itertools
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqstaskmaster.results import SubmitResult


def _made_again(kind: type[BaseException], *arguments: Any) -> BaseException:
    """An exception of that class, made without its constructor, whose arguments `args` does not keep."""
    built_in: Any = kind
    while built_in.__module__ != "builtins":
        built_in = built_in.__base__  # the base whose layout it has: not always the first of several
    error: BaseException = built_in.__new__(kind, *arguments)
    return error


def _reduced(error: BaseException) -> tuple[Any, ...]:
    return _made_again, (type(error), *error.args), error.__dict__


class SQSTaskMasterError(Exception):
    """The base of every error that this package itself raises, bad arguments (ValueError, TypeError) aside.

    All of them can be copied and pickled: text and attributes arrive, the traceback and `__cause__` do not.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _reduced(self)


class MalformedMessage(SQSTaskMasterError, ValueError):
    """A message body that `TaskManager.submit` did not write."""


class InvalidTask(SQSTaskMasterError, ValueError):
    """A task that cannot be sent: its name is not a non-empty string, or its arguments cannot be written as JSON."""


class MessageTooLarge(InvalidTask):
    """A message of `task` over the limit of SQS. `size` and `limit` are in bytes, message attributes included."""

    def __init__(self, task: str, size: int, limit: int) -> None:
        super().__init__(
            f"The message of task {task!r} has {size:,} bytes and SQS takes at most {limit:,} (body and attributes "
            "together): store the data elsewhere, in S3 for example, and send its address"
        )
        self.task = task
        self.size = size
        self.limit = limit


class ConfigurationError(SQSTaskMasterError, ValueError):
    """A setting outside this package's arguments is missing or wrong: the AWS region, for example."""


class UnsupportedContext(SQSTaskMasterError, RuntimeError):
    """This thread, platform or process cannot do this; the text names one that can."""


class HardTimeout(SQSTaskMasterError, TimeoutError):
    """A task reached its hard timeout, or the end of the 12 hours SQS lets a claim live.

    It is a TimeoutError and therefore an OSError: `except Exception` and `except OSError` in a task swallow it.
    """


class HandlerStuck(SQSTaskMasterError, RuntimeError):
    """The handler's `running()` returned False: the task no longer makes progress."""


class NoAnswer(SQSTaskMasterError, TimeoutError):
    """A call to SQS got no answer in time, or an answer that is not SQS's.

    It may have taken effect, or may still do so. The text says what to check.
    """


class ClaimLapsed(SQSTaskMasterError, RuntimeError):
    """The claim on a message ran out, `seconds` ago, before it was extended: others may have received the message.

    This process's own clock decides that: SQS answers a late extension as if nothing had happened.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The claim ended {seconds:.1f} seconds ago without having been extended, as after a process that was "
            "stopped, or cut off from SQS, for longer than the visibility timeout: another worker may be running the "
            "task. A longer sqs_timeout survives longer outages"
        )
        self.seconds = seconds


class TaskDied(SQSTaskMasterError, RuntimeError):
    """A task's process ended without the task having finished. The message is kept.

    `task` (its name), `pid`, `seconds` (how long it ran), `stack` (where its Python code was, "" if not known).
    """

    def __init__(self, what: str, *, task: str, pid: int | None, seconds: float, stack: str) -> None:
        super().__init__(f"Task {task} (pid {pid}) {what} after {seconds:.1f} seconds, without having finished")
        self.task = task
        self.pid = pid
        self.seconds = seconds
        self.stack = stack


class TaskKilled(TaskDied):
    """A signal ended the task: a crash, the kernel's out-of-memory killer, somebody's `kill`. `signal` is its number.

    `signal` is None if the process that watched over the task was killed, and the task with it. `task`, `pid`,
    `seconds`, `stack` as for `TaskDied`.
    """

    def __init__(self, number: int | None, *, task: str, pid: int | None, seconds: float, stack: str) -> None:
        how = (
            "was killed, as was the process that watches over it,"
            if number is None
            else f"was killed by {_named(number)}"
        )
        super().__init__(how, task=task, pid=pid, seconds=seconds, stack=stack)
        self.signal = number


class TaskExited(TaskDied):
    """The task's process exited before the task had finished. Even `exit_code` 0 is not a success.

    `task`, `pid`, `seconds`, `stack` as for `TaskDied`.
    """

    def __init__(self, code: int, how: str, *, task: str, pid: int | None, seconds: float, stack: str) -> None:
        super().__init__(f"exited with code {code} ({how})", task=task, pid=pid, seconds=seconds, stack=stack)
        self.exit_code = code


class TaskNotStarted(SQSTaskMasterError, RuntimeError):
    """The system had no process for a task: its limit of processes or its memory is used up. `task`, `reason`."""

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(f"Task {task} could not be started, because no process could be made for it: {reason}")
        self.task = task
        self.reason = reason


class TasksCannotStart(SQSTaskMasterError, RuntimeError):
    """A worker could not start a task many times in a row, for lack of descriptors, memory or processes.

    Their messages were given back, unstarted. The worker ends, for its supervisor to start another.
    """


class InitializerFailed(SQSTaskMasterError, RuntimeError):
    """The initializer of a worker has failed three times in a row in every slot, and no task ran in between.

    Nothing was received meanwhile. Its cause is the last failure. The worker ends, so that the machine is replaced.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"The worker's initializer has failed {reason}")


class MemoryLimitExceeded(SQSTaskMasterError, MemoryError):
    """A task and what it started held more than `max_memory`. `size` and `limit` are in bytes."""

    def __init__(self, task: str, size: int, limit: int) -> None:
        super().__init__(
            f"Task {task} was stopped: it held {size:,} bytes of memory and may hold {limit:,} (max_memory)"
        )
        self.task = task
        self.size = size
        self.limit = limit


class RemoteError(SQSTaskMasterError, RuntimeError):
    """What `task` raised in its process, as text, because the exception cannot be made again here.

    `summary` is the exception in a line, `traceback` the task's own.
    """

    def __init__(self, task: str, summary: str, traceback: str) -> None:
        super().__init__(f"Task {task} raised {summary}")
        self.task = task
        self.summary = summary
        self.traceback = traceback


class TaskNotPicklable(SQSTaskMasterError, TypeError):
    """The start method needs to pickle the handler, and that cannot be done. Nothing was started."""


def _named(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    words = signal.strsignal(number)
    if number == signal.SIGKILL:
        words = "killed: most likely the system ran out of memory, unless somebody killed it"
    return f"{name} ({words})" if words else name


class TaskQuit(SQSTaskMasterError, RuntimeError):
    """A task in the worker's own process raised SystemExit or the like. The worker goes on; the task has failed."""


class NothingHasRun(SQSTaskMasterError, RuntimeError):
    """`run`, or a task function, returned a coroutine or a generator, which does nothing until it is run."""


class ArgumentsDoNotFit(SQSTaskMasterError, TypeError):
    """A message's kwargs are not what its task takes. `task`, and `expected`: its signature."""

    def __init__(self, task: str, problem: object, expected: str) -> None:
        super().__init__(f"The kwargs of a message do not fit task {task!r}: {problem}. Expected: {expected}")
        self.task = task
        self.expected = expected


class UnknownTask(SQSTaskMasterError, LookupError):
    """A message names a task that the worker does not have. `task`, and `known`: the names it has."""

    def __init__(self, task: str, known: list[str]) -> None:
        super().__init__(
            f"No task {task!r} here, only {', '.join(map(repr, known)) or 'none at all'}: deploy the worker that has "
            "it, or correct the producer"
        )
        self.task = task
        self.known = known


class CannotContinue(SQSTaskMasterError, RuntimeError):
    """A successor, or a dead letter, cannot be sent. The task has failed, and its message stays; the text says why."""


class PollRefused(SQSTaskMasterError):
    """SQS refuses to be polled, and asking again does not help. `code` is its error code, `remedy` what does help."""

    def __init__(self, error: BaseException, code: str, remedy: str, queue: str = "") -> None:
        said = " ".join(str(error).split()).rstrip(".")
        named = f" {queue}" if queue else ""
        super().__init__(f"The queue{named} cannot be polled: {said}: {remedy}")
        self.code = code
        self.remedy = remedy


class ShutdownRequested(BaseException):
    """A worker that stops ends its running task with this. Not an Exception, so that tasks do not catch it as one."""


# How many failures the text lists; the attribute has them all.
_LISTED = 10


@dataclasses.dataclass(frozen=True)
class Failure:
    """A task that `submit_many` did not send: the `index`-th of the iterable, counted from 0.

    `code` is SQS's error code, the name of an exception, or one of `submit_many`'s own; `reason` is its text. Iterating
    gives `(task, kwargs)`, so that failures can be given to `submit_many` as they are.
    """

    index: int
    task: Any
    kwargs: Any
    code: str
    reason: str

    def __iter__(self) -> Iterator[Any]:
        return iter((self.task, self.kwargs))

    def __str__(self) -> str:
        return f"{self.index} {self.task!r:.80}: {self.code}: {self.reason}"


class _Unsent(BaseException):
    """Tasks that were not sent. Iterating yields them as `(task, kwargs)`, in order, with all that were never taken.

    `failures`: one Failure for each task that was taken and not sent, in order. `rest`: what was never taken from the
    iterable; a generator that was interrupted in its own code is at its end. `result`: the SubmitResult. If the error
    is copied or pickled, what was never taken is taken then, and becomes a list.
    """

    def __init__(
        self, why: str, failures: Sequence[Failure], rest: Iterable[tuple[str, Mapping[str, Any]]], result: SubmitResult
    ) -> None:
        listed = "".join(f"\n    {failure}" for failure in failures[:_LISTED])
        more = f"\n    and {len(failures) - _LISTED:,} more, see .failures" if len(failures) > _LISTED else ""
        super().__init__(
            f"{why}{result.sent:,} of the {result.taken:,} tasks that were taken have been sent, {len(failures):,} "
            f"have not; give this error to submit_many to send those{':' if failures else ''}{listed}{more}"
        )
        self.failures = failures
        self.rest: Iterable[tuple[str, Mapping[str, Any]]] = rest
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        self.rest = list(self.rest)
        return _reduced(self)

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        return itertools.chain(((failure.task, failure.kwargs) for failure in self.failures), self.rest)


class TasksNotSent(_Unsent, SQSTaskMasterError):
    """`submit_many` could not send some of the tasks; it has sent all the others."""


class SubmitInterrupted(_Unsent, KeyboardInterrupt):
    """Ctrl-C in `submit_many`: a KeyboardInterrupt that knows what was sent."""
