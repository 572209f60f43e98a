"""ProcessMessageHandler: a MessageHandler whose `run` has a process of its own.

It says what the task is, here and in the task's process (`run_task`). A block (`_block.process_block`) drives it, or,
in a worker, the loop that holds all claims.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from sqstaskmaster._block.process_block import ProcessBlock
from sqstaskmaster._block.returned import check_has_run
from sqstaskmaster._claim import current, forwarding, note
from sqstaskmaster._claim.attempt import Terms
from sqstaskmaster._claim.current import CurrentTask
from sqstaskmaster._claim.watch import Limits
from sqstaskmaster._isolation import child as isolation
from sqstaskmaster._isolation import plain, process_tree
from sqstaskmaster._isolation.channel import Channel
from sqstaskmaster._isolation.task_side import Function
from sqstaskmaster._sqs.answers import is_deleted
from sqstaskmaster._sqs.limits import check_whole, is_number, is_whole
from sqstaskmaster._sqs.protocols import Message
from sqstaskmaster.endings import Continue
from sqstaskmaster.errors import CannotContinue, UnsupportedContext
from sqstaskmaster.message_handler import MessageHandler, check_timeouts

Self = TypeVar("Self", bound="ProcessMessageHandler")

_MOST_CONTINUATIONS = 1_000_000

# What a Continue takes on its way to the worker, in addition to its kwargs.
_ROOM_BYTES = 1000


class ProcessMessageHandler(MessageHandler):
    """A `MessageHandler` for tasks that cannot be trusted to return to the interpreter: `run` has a process of its own.

    Same constructor, same block, same worker script; inside the block `handler.run()` runs the subclass's `run` in a
    child process and waits for it, and nothing that the task does can stop the heartbeat or the limit. What `run`
    returns is returned, what it raises is raised, with the child's traceback as its cause.

    At the hard timeout, when `running()` is false, over `max_memory`, and when the wait is interrupted (Ctrl-C, a
    worker's shutdown), the task is stopped: its Python stack is taken, even inside C code, for the log and for
    `notify`'s context (under `stack`); SIGTERM raises SystemExit in it, so that `finally` blocks run; after
    `term_grace` everything it has started is SIGKILLed. The claim is held until the last of its processes is gone.

    All times are in seconds; `sqs_timeout`, `alarm_timeout`, `hard_timeout`, `clock` as for `MessageHandler`.

    :param term_grace: from SIGTERM to SIGKILL, 0 or more.
    :param start_method: "fork", "forkserver" or "spawn"; None is fork on Linux and spawn elsewhere. With fork the
        handler need not be picklable. The worker must not have run native code that starts threads (OpenMP) before it
        forks: that is detected and logged. With the others the handler is pickled, and the script's main module is
        imported in the child, so it needs the usual `if __name__ == "__main__":`.
    :param max_memory: bytes that the task and all it starts may hold together, beyond what it was started with: the
        finished line has the peak. Measured ten times a second. None: no limit. Linux only.
    :param dead_letter: as for `MessageHandler`. Tested in the task's process too, before anything is pickled.
    :param max_continuations: how often the task may continue, see Continue: 0 to 1,000,000. It keeps a bug from going
        on for ever.
    :raises ValueError: for an argument out of its range.
    :raises UnsupportedContext: for `max_memory` if memory cannot be read; on entering, if there is no fork.

    Besides the task's own exceptions, `run()` raises `HardTimeout`, `HandlerStuck`, `MemoryLimitExceeded`; `TaskKilled`
    and `TaskExited` for a task that ended without having finished (os._exit(0) and sys.exit() included);
    `TaskNotStarted` if the system has no process for it; `RemoteError` for an exception that cannot be made again here;
    `TaskNotPicklable`.

    What comes from the task is plain data, at most 1 MiB: None, booleans, numbers, strings, bytes, lists, tuples, sets,
    dictionaries, dates and times, Decimal, Fraction, UUID, paths. Of a subclass of these the plain part arrives;
    anything else, in what `run` returns and in a report, arrives as its `repr`. An exception is made again here from
    its class, `args` and attributes, without calling its constructor; if these are not plain, or if its class is not
    loaded here, or defines `__new__`, `__setattr__`, `__slots__` or the like, it is a `RemoteError` with its text.

    `running()` is called in a thread of the worker's. While it does not return it counts as true, with one warning. It
    must not hold the interpreter in C code, which would hold up the heartbeat.

    Limits: only `run()` is watched; everything else in the `with` block runs in the worker, with neither heartbeat nor
    limit. The task has the message's content in `self._message`, but not its claim. What the task sets on `self` stays
    in its process: return it, or `report` it. Functions registered with `atexit` are not called there. A task that
    blocks all signals is stopped too, but its stack is not known. Only Linux helps to find processes that made
    themselves daemons: elsewhere they are lost.
    """

    progress: dict[str, Any]

    def __init__(
        self,
        message: Message,
        sqs_timeout: int,
        alarm_timeout: float,
        hard_timeout: float,
        *,
        term_grace: float = 5.0,
        start_method: str | None = None,
        max_memory: int | None = None,
        dead_letter: tuple[type[BaseException], ...] | type[BaseException] = (),
        max_continuations: int = 1000,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(message, sqs_timeout, alarm_timeout, hard_timeout, dead_letter=dead_letter, clock=clock)
        self.max_continuations = max_continuations
        self.term_grace = term_grace
        self.start_method = start_method
        self.max_memory = max_memory
        self._limits()
        self._send_report: Callable[[dict[str, Any]], None] | None = None

    def report(self, **progress: Any) -> None:
        """Called by the task: becomes `self.progress` in the worker, for `running()` and for people to see.

        Replaces the previous report. Call it a few times a second at most, in the task's own process, in any of its
        threads. Plain data of at most 1 MiB arrives as it is, anything else as its `repr`.
        """
        if self._send_report is None:
            self.progress = progress
        else:
            self._send_report(progress)

    def claim_lost(self, exception: BaseException) -> None:
        """As in `MessageHandler`; `exception` is SQS's error, or `ClaimLapsed`.

        But if a `Worker` stops the task because its message was deleted, which is how to stop a task from elsewhere,
        the default logs one line at WARNING and does not call `notify`.
        """
        attempt = self._attempt
        if attempt.terms.stops_on_lost_claim and is_deleted(exception):
            attempt.report.deleted(attempt.wait_seconds)
        else:
            super().claim_lost(exception)

    def __enter__(self: Self) -> Self:
        """Claim the message. No signal is touched, so this works in any thread.

        :raises UnsupportedContext: on a platform without fork; nothing has been sent then.
        """
        isolation.require_processes()
        self._renew(note.take(self._message)).enter()
        # Shadows the subclass's method in this block only, so that the script's `handler.run()` need not change.
        self.__dict__["run"] = self._run_in_child
        return self

    def __exit__(self, *exception: Any) -> bool:
        self.__dict__.pop("run", None)
        return bool(self._block.leave(exception[1]))

    def _new_block(self, receipt: note.Receipt | None) -> ProcessBlock:
        return ProcessBlock(self, self._terms, self._logger, receipt)

    def _run_in_child(self) -> Any:
        return self._block.run(self._task_function, self._limits())

    def _limits(self) -> Limits:
        """The handler's current limits for its task: a subclass may have set them after its constructor.

        :raises ValueError, UnsupportedContext: like the constructor.
        """
        grace, method, memory = self.term_grace, self.start_method, self.max_memory
        check_timeouts(self.sqs_timeout, self.alarm_timeout, self.hard_timeout)
        if not is_number(grace) or grace < 0:
            raise ValueError(f"term_grace must be a number of seconds, 0 or more, not {grace!r}")
        if method is not None and method not in isolation.START_METHODS:
            raise ValueError(f"start_method must be None or one of {isolation.START_METHODS}, not {method!r}")
        if memory is not None and (not is_whole(memory) or memory <= 0):
            raise ValueError(f"max_memory must be a whole number of bytes over 0, or None, not {memory!r}")
        if memory is not None and not process_tree.LINUX:
            raise UnsupportedContext("max_memory needs Linux, where the memory of other processes can be read")
        return Limits(
            sqs_timeout=int(self.sqs_timeout),
            alarm_timeout=self.alarm_timeout,
            hard_timeout=self.hard_timeout,
            term_grace=grace,
            max_memory=memory,
            start_method=method,
            dead_letter=forwarding.checked_types(self.dead_letter),
            max_continuations=check_whole("max_continuations", self.max_continuations, 0, _MOST_CONTINUATIONS),
            asks_running=type(self).running is not MessageHandler.running or "running" in vars(self),
        )

    # -- what goes to the task, and what comes back --------------------------------------------------------------

    def _task_function(self, seconds: float) -> Function:
        """The function that the task's process calls. `seconds`: until its limit."""
        around, task = self._attempt.terms.around, self._attempt.task
        return functools.partial(run_task, self._task_side(), task=task, seconds=seconds, around=around)

    def _task_side(self: Self) -> Self:
        """This handler for the task's process: without the claim, which is the worker's."""
        task_side = object.__new__(type(self))
        task_side.__dict__.update(self.__dict__)
        # These belong to the claim, which stays here, and cannot be pickled.
        for name in ("run", "_block", "_attempt"):
            task_side.__dict__.pop(name, None)
        task_side._message = MessageContent.of(self._message)
        task_side._terms = Terms()
        task_side._clock = task_side._claim_clock = time.monotonic
        return task_side


class MessageContent:
    """A message as the task has it: its content, but no claim on it."""

    def __init__(self, body: str, attributes: Any, message_attributes: Any, message_id: Any) -> None:
        self.body = body
        self.attributes: Mapping[str, Any] | None = attributes
        self.message_attributes = message_attributes
        self.message_id = message_id

    @classmethod
    def of(cls, message: Any) -> MessageContent:
        """A message's content, read once, so that the task needs neither client nor connection for it."""
        attributes: Mapping[str, Any] | None = message.attributes
        return cls(
            message.body,
            None if attributes is None else dict(attributes),
            getattr(message, "message_attributes", None),
            getattr(message, "message_id", None),
        )

    def change_visibility(self, **_: Any) -> NoReturn:
        """:raises UnsupportedContext: always: the claim is the worker's."""
        raise UnsupportedContext("The worker holds the claim on the message; the task cannot change it")

    def delete(self) -> NoReturn:
        """:raises UnsupportedContext: always: the worker deletes the message when the task has returned."""
        raise UnsupportedContext("The worker holds the message, and deletes it when the task has returned")


def run_task(
    handler: ProcessMessageHandler,
    channel: Channel,
    *,
    task: str,
    seconds: float,
    around: Callable[[CurrentTask], Any] | None = None,
) -> Any:
    """Run the task in its process, where `current_task()` returns it. Returns what `run` returns.

    :param seconds: until its limit.
    :param around: see Worker.
    :raises BaseException: what `run` raises; `DeadLetter` in place of an error for which the handler wants no retry.
    """
    handler._send_report = channel.report
    ends_at = time.monotonic() + seconds
    task_now = CurrentTask(
        task, handler._message, lambda: ends_at - time.monotonic(), channel.report, lambda: channel.stopping
    )
    with current.running(task_now):
        try:
            with contextlib.nullcontext() if around is None else around(task_now):
                return check_has_run(handler.run())
        except BaseException as error:
            ending = forwarding.ungrouped(error)
            if isinstance(ending, Continue):
                raise _checked(ending, task)
            raise forwarding.without_retry(ending, handler.dead_letter) or ending


def _checked(ending: Continue, task: str) -> BaseException:
    """The Continue itself if it can reach the worker whole, else a CannotContinue."""
    try:
        if len(plain.dump(ending.kwargs)) <= plain.MAX_BYTES - _ROOM_BYTES:
            return ending
        problem = "this is more"
    except plain.NotPlain as error:
        problem = str(error)
    return CannotContinue(
        f"Task {task!r} cannot continue: {problem}: plain data of at most 1 MiB goes on, so store the rest elsewhere, "
        "in S3 for example, and continue with its address"
    )
