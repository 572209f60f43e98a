"""ProcessMessageHandler: MessageHandler, its `run` in a process of its own.

::

    worker: with handler:                                          task's process
              handler.run()  ---- isolation.Child ---------------> run() of the subclass
                loop: wait --- every alarm_timeout: _decide -----> extend | stop, keep the claim until all is gone
              <-------------------- value, or exception ---------- returns, or raises
            __exit__: the verdict, as in MessageHandler
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from sqstaskmaster._claim import current, forwarding, owner
from sqstaskmaster._claim.current import CurrentTask
from sqstaskmaster._claim.destinations import send_successor
from sqstaskmaster._claim.returned import check_has_run
from sqstaskmaster._isolation import child as isolation
from sqstaskmaster._isolation import plain, process_tree
from sqstaskmaster._isolation.channel import Channel
from sqstaskmaster._isolation.usage import Usage
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster._sqs import messages
from sqstaskmaster._sqs.limits import check_whole, is_number, is_whole
from sqstaskmaster._sqs.protocols import Message
from sqstaskmaster.endings import Continue, Outcome
from sqstaskmaster.errors import CannotContinue, MemoryLimitExceeded, ShutdownRequested, UnsupportedContext
from sqstaskmaster.message_handler import Decision, MessageHandler, stop_exception

logger: logging.Logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="ProcessMessageHandler")

# How often the memory of a task with max_memory is looked at: a process fills about a gigabyte in this time.
_MEMORY_LOOK_SECONDS = 0.1

_MOST_CONTINUATIONS = 1_000_000

# What a Continue takes on its way to the worker, beside its kwargs.
_ROOM_BYTES = 1000

# The longest that one answer of `running()` is waited for: it is asked beside the heartbeat, not before it.
_RUNNING_SECONDS = 0.25

# How often an extension under way is asked after: it takes milliseconds.
_CALL_LOOK_SECONDS = 0.005


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
    :param max_memory: bytes that the task and all it starts may hold together (proportional set size, looked at ten
        times a second), None for no limit. Linux only.
    :param dead_letter: as for `MessageHandler`. Tested in the task's process too, before anything is pickled.
    :param max_continuations: how often the task may continue, see Continue: 0 to 1,000,000. So that a bug in it cannot
        go on for ever.
    :raises ValueError: for an argument out of its range.
    :raises UnsupportedContext: for `max_memory` where memory cannot be read; on entering, where there is no fork.

    Raised by `run()` beside the task's own exceptions: `HardTimeout`, `HandlerStuck`, `MemoryLimitExceeded`;
    `TaskKilled` and `TaskExited` for a task that ended without having finished (os._exit(0) and sys.exit() included);
    `TaskNotStarted` where the system has no process for it; `RemoteError` for an exception that cannot be made again
    here; `TaskNotPicklable`.

    What comes from the task is plain data, at most 1 MiB: None, booleans, numbers, strings, bytes, lists, tuples, sets,
    dictionaries, dates and times, Decimal, Fraction, UUID, paths. Of a subclass of these the plain part arrives;
    anything else, in what `run` returns and in a report, arrives as its `repr`. An exception is made again here from
    its class, `args` and attributes, without calling its constructor; where these are not plain, where its class is not
    loaded here, defines `__new__`, `__setattr__`, `__slots__` or the like, it is a `RemoteError` with its text.

    `running()` is called in a thread of the worker's. One that does not answer is taken for true, with one warning; it
    must not hold the interpreter in C code, which would hold up the heartbeat.

    Limits: only `run()` is watched; what else is in the `with` block runs in the worker, with neither heartbeat nor
    limit. The task has the message's content in `self._message`, but not its claim. What the task sets on `self` stays
    in its process: return it, or `report` it. Functions registered with `atexit` are not called there. A task that
    blocks all signals is stopped too, but tells no stack. Without Linux there is no kernel help to find processes that
    made themselves daemons: those are lost sight of.
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
        if not is_number(term_grace) or term_grace < 0:
            raise ValueError(f"term_grace must be a number of seconds, 0 or more, not {term_grace!r}")
        if start_method is not None and start_method not in isolation.START_METHODS:
            raise ValueError(f"start_method must be None or one of {isolation.START_METHODS}, not {start_method!r}")
        if max_memory is not None and (not is_whole(max_memory) or max_memory <= 0):
            raise ValueError(f"max_memory must be a whole number of bytes over 0, or None, not {max_memory!r}")
        if max_memory is not None and not process_tree.LINUX:
            raise UnsupportedContext("max_memory needs Linux, where the memory of other processes can be read")
        self.max_continuations: int = check_whole("max_continuations", max_continuations, 0, _MOST_CONTINUATIONS)
        self.term_grace = term_grace
        self.start_method = start_method
        self.max_memory = max_memory
        self._end_margin += term_grace
        self._child: isolation.Child | None = None  # the one that is being attended to
        self._children: list[isolation.Child] = []
        self._next_alarm_at = 0.0
        self._asked: _Question | None = None
        self._asked_in_vain = False
        self._send_report: Callable[[dict[str, Any]], None] | None = None

    def report(self, **progress: Any) -> None:
        """Called by the task: becomes `self.progress` in the worker, for `running()` and for people to see.

        Replaces the report before. Meant for some reports a second. Plain data of at most 1 MiB arrives as it is,
        anything else as its `repr`. To be called in the task's own process, in any of its threads.
        """
        if self._send_report is None:
            self.progress = progress
        else:
            self._send_report(progress)

    def __enter__(self: Self) -> Self:
        """Claim the message. No signal is touched, so this works in any thread.

        :raises UnsupportedContext: on a platform without fork; nothing has been sent then.
        """
        isolation.require_processes()
        self._begin()
        # Shadows the subclass's method in this block only, so that the script's `handler.run()` need not change.
        self.__dict__["run"] = self._run_in_child
        return self

    def __exit__(self, *exception: Any) -> bool:
        if self._owner is not None:
            owner.leave_if_forked(self._owner, exception[1])
        self.__dict__.pop("run", None)
        try:
            for child in self._children:
                self._stop(child)  # long done, unless interrupts came so fast that it was not
            return super().__exit__(*exception)
        finally:
            for child in self._children:
                child.close()
            self._children.clear()

    # -- the loop ------------------------------------------------------------------------------------------------

    def _run_in_child(self) -> Any:
        block = self._block
        block.raise_what_stops()
        self._stop_where_lost()
        child = isolation.Child(
            functools.partial(run_task, self._task_side(), task=self._task_name(), seconds=self._seconds_to_limit()),
            name=self._task_name(),
            start_method=self.start_method,
            term_grace=self.term_grace,
        )
        self._children.append(child)
        try:
            child.start()
            self._child = child
            self._set_next_alarm()
            while not child.wait(self._seconds_to_attend()):
                self.progress = child.progress
                self._extend_or_stop_child(child)
            self.progress = child.progress
            return child.result()
        except BaseException as error:
            self._stop(child)
            if block.claim.lost is None:
                if isinstance(error, ShutdownRequested) and _is_done(child):
                    return child.result()  # it came to its end in its grace: finished work is not repeated
                block.answer = _continuation_of(child)
            block.report.stack = child.stack
            show_stack(error, child.stack)
            raise
        finally:
            self._child = None
            block.report.used = _total(block.report.used, child.usage)

    def _extend_or_stop_child(self, child: isolation.Child) -> None:
        """What is due now. Raises what the task is to be stopped for."""
        if self.max_memory is not None:
            size = child.memory(self.max_memory)
            if size > self.max_memory:
                raise MemoryLimitExceeded(self._task_name(), size, self.max_memory)
        if self._clock() < self._next_alarm_at:
            return
        decision = self._decide()
        if decision is not Decision.EXTEND:
            stopped_as = Outcome.TIMED_OUT if decision is Decision.TIMED_OUT else Outcome.STUCK
            self._block.stopped_as = stopped_as
            raise stop_exception(stopped_as, self._message, self._run_time())
        self._extend_timeout(self.sqs_timeout)
        self._stop_where_lost()
        self._set_next_alarm()

    def _stop_where_lost(self) -> None:
        if self._block.stops_for_lost_claim and self._block.claim.lost is not None:
            raise self._block.claim.lost

    def _successor(self, ending: Continue) -> Callable[[], Any]:
        task, given = messages.decode(self._message.body)
        kwargs = {**given, **ending.kwargs}
        self._check_fit(given, kwargs)
        request = forwarding.successor(
            self._message,
            task,
            kwargs,
            ending.delay_seconds,
            self.max_continuations,
            self._block.receipt.has_attributes,
        )
        return lambda: send_successor(self._message, request)

    def _check_fit(self, given: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
        """Raises where the successor's kwargs do not fit the task, which would then fail for ever."""
        fits = self._block.receipt.terms.fits
        if fits is not None:
            fits(kwargs)
            return
        signature = inspect.signature(type(self))
        try:
            signature.bind_partial(None, **given)
        except TypeError:
            return  # whoever made this handler goes by other names than the message does
        signature.bind_partial(None, **kwargs)

    def _decide(self) -> Decision:
        if self._seconds_to_limit() <= 0:
            return Decision.TIMED_OUT
        return Decision.EXTEND if self._makes_progress() else Decision.STUCK

    def _makes_progress(self) -> bool:
        """What `running()` says. One that does not answer says nothing against the task, whose limit holds."""
        asked = self._asked = self._asked or _Question(self.running)
        if not asked.call.wait(_RUNNING_SECONDS):
            if not self._asked_in_vain:
                self._asked_in_vain = True
                logger.warning(
                    "running() of task %s does not answer: it is taken for true until it does. It is called in a "
                    "thread of the worker's, and must not wait for anything",
                    self._task_name(),
                )
            return True
        self._asked = None
        if asked.call.error is not None:
            raise asked.call.error
        return asked.answer

    def _stop(self, child: isolation.Child) -> None:
        """Stop the task, and hold the claim until its last process is gone. Nothing that is raised here keeps it alive.

        A second Ctrl-C or shutdown means now.
        """
        step = child.stop
        while True:
            try:
                step()
                while not child.wait(max(0.0, self._next_alarm_at - self._clock())):
                    self._extend_timeout(self.sqs_timeout)
                    self._set_next_alarm(self.alarm_timeout)
                return
            except BaseException as error:
                logger.warning("Stopping task %s at once, because of %r", self._task_name(), error)
                step = child.kill
                self._set_next_alarm(self.alarm_timeout)

    def _set_next_alarm(self, seconds: float | None = None) -> None:
        self._next_alarm_at = self._clock() + (self._seconds_to_next_alarm() if seconds is None else seconds)

    def _seconds_to_attend(self) -> float:
        to_alarm = max(0.0, self._next_alarm_at - self._clock())
        return to_alarm if self.max_memory is None else min(to_alarm, _MEMORY_LOOK_SECONDS)

    def _wait_for(self, call: BoundedCall) -> bool:
        """The child is attended to while SQS is slow to answer, and the limit is not missed for it."""
        child = self._child
        if child is None:
            return super()._wait_for(call)
        until = self._clock() + min(self._wait_seconds(), max(0.0, self._seconds_to_limit()))
        while not call.done and self._clock() < until and not child.wait(_CALL_LOOK_SECONDS):
            pass
        return call.done

    # -- what goes to the task, and what comes back --------------------------------------------------------------

    def _task_name(self) -> str:
        return self._block.report.task

    def _task_side(self: Self) -> Self:
        """This handler as the task has it: without the claim, which is the worker's."""
        task_side = object.__new__(type(self))
        task_side.__dict__.update(self.__dict__)
        del task_side.__dict__["run"]
        task_side._message = MessageContent.of(self._message)
        # What has to do with the claim stays here, and cannot be pickled.
        del task_side._block
        task_side._clock = task_side._claim_clock = time.monotonic
        task_side._child = task_side._asked = None
        task_side._children = []
        return task_side


class _Question:
    """One call of `running()`, in a thread of its own: it is the user's code, and may hang."""

    def __init__(self, running: Callable[[], Any]) -> None:
        self.answer = True
        self.call = BoundedCall(lambda: self._ask(running))

    def _ask(self, running: Callable[[], Any]) -> None:
        self.answer = bool(running())


class MessageContent:
    """A message as the task has it: what it says, but no claim on it."""

    def __init__(self, body: str, attributes: Any, message_attributes: Any, message_id: Any) -> None:
        self.body = body
        self.attributes: Mapping[str, Any] | None = attributes
        self.message_attributes = message_attributes
        self.message_id = message_id

    @classmethod
    def of(cls, message: Any) -> MessageContent:
        """What a message says, read once, so that the task needs neither client nor connection for it."""
        attributes: Mapping[str, Any] | None = message.attributes
        return cls(
            message.body,
            None if attributes is None else dict(attributes),
            getattr(message, "message_attributes", None),
            getattr(message, "message_id", None),
        )

    def change_visibility(self, **_: Any) -> NoReturn:
        """:raises UnsupportedContext: always: the claim is the worker's."""
        raise UnsupportedContext("The claim on the message is the worker's, the task cannot change it")

    def delete(self) -> NoReturn:
        """:raises UnsupportedContext: always: the worker deletes the message when the task has returned."""
        raise UnsupportedContext("The message is the worker's: it deletes it when the task has returned")


def run_task(
    handler: ProcessMessageHandler,
    channel: Channel,
    *,
    task: str,
    seconds: float,
    around: Callable[[CurrentTask], Any] | None = None,
) -> Any:
    """In the task's process: what `run` returns, with `current_task()` there for it.

    :param seconds: until its limit.
    :param around: see Worker.
    :raises BaseException: what it raises; `DeadLetter` in place of what the handler has no retry for.
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
        except Continue as ending:
            raise _checked(ending, task)
        except handler.dead_letter as error:
            raise forwarding.without_retry(error, handler.dead_letter) or error


def _checked(ending: Continue, task: str) -> BaseException:
    """The Continue itself, where it will arrive in the worker whole."""
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


def _total(before: Mapping[str, Any], used: Usage) -> Mapping[str, Any]:
    """What a block has used so far: mostly the one task's, but `run` may be called again."""
    seconds, peak = before.get("cpu_seconds"), before.get("peak_memory")
    return {
        "cpu_seconds": used.cpu_seconds if seconds is None else seconds + (used.cpu_seconds or 0.0),
        "peak_memory": used.peak_memory if peak is None else max(peak, used.peak_memory or 0),
    }


def _is_done(child: isolation.Child) -> bool:
    try:
        child.result()
    except BaseException:
        return False
    return True


def _continuation_of(child: isolation.Child) -> Continue | None:
    """The Continue with which a task answered that it was stopped, if it did."""
    try:
        child.result()
    except Continue as ending:
        return ending
    except BaseException:
        pass
    return None


class _Stack(Exception):
    """Where the task was, shown as the cause of the exception that tells why it was stopped."""

    def __str__(self) -> str:
        return f"the task was here:\n{self.args[0]}"


def show_stack(error: BaseException, stack: str) -> None:
    """Show where the task was as the cause of the exception that tells why it was stopped."""
    if stack and error.__cause__ is None:
        error.__cause__ = _Stack(stack)
