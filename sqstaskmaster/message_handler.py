"""MessageHandler: one message, from the claim to the verdict.

::

    __enter__   the claim is extended, unless it is known to be fresh; SIGALRM and its timer are borrowed
        |
      body  <-- SIGALRM --  _handle_alarm: _decide --> past the limit   raise HardTimeout, again every alarm_timeout
        |                                         --> stuck            raise HandlerStuck
        |                                         --> neither          _extend_timeout, and arm the next alarm
    __exit__    SIGALRM is given back; then the one verdict:
                done -> delete    failed, timed out, stuck -> report, leave it to SQS    interrupted -> and give it back
                dead-lettered, continued -> sent on first, deleted second    claim lost, and stopped for it -> nothing

What is due when, and what an answer of SQS means, is the claim's to say (`_claim`). `_decide` knows nothing of signals:
ProcessMessageHandler asks it from an ordinary loop.
"""

from __future__ import annotations

import abc
import enum
import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sqstaskmaster._claim import current, note, owner
from sqstaskmaster._claim.block import Block
from sqstaskmaster._claim.clock import now as claim_clock
from sqstaskmaster._claim.current import CurrentTask
from sqstaskmaster._claim.ending import Ending
from sqstaskmaster._claim.report import FactsFilter
from sqstaskmaster._claim.returned import WatchedRun
from sqstaskmaster._signals import alarm
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster._sqs.limits import MAX_VISIBILITY_SECONDS, is_number, is_whole
from sqstaskmaster._sqs.protocols import Message
from sqstaskmaster.endings import Continue
from sqstaskmaster.endings import Outcome as Outcome
from sqstaskmaster.errors import CannotContinue, HandlerStuck, HardTimeout, NoAnswer

logger: logging.Logger = logging.getLogger(__name__)
logger.addFilter(FactsFilter())

Self = TypeVar("Self", bound="MessageHandler")

# The longest that the task is held up by one call of the heartbeat, whatever the user's client allows it: SQS answers
# in milliseconds. A call that takes longer goes on beside the task.
_HEARTBEAT_WAIT_SECONDS = 1.0

# How far before the end of the claim's 12 hours a task is stopped, so that it is gone when the message comes back.
_END_MARGIN_SECONDS = 2.0


class Decision(enum.Enum):
    """What is to be done with a running task."""

    EXTEND = "extend the claim"
    TIMED_OUT = "stop it: its limit is reached"
    STUCK = "stop it: it makes no progress"


class MessageHandler(abc.ABC):
    """Holds the claim on one message while a task runs in this process, and stops the task at its limit.

    ::

        class Train(MessageHandler):
            def __init__(self, message, model):
                super().__init__(message, sqs_timeout=30, alarm_timeout=10, hard_timeout=3600)
                self.model = model

            def run(self):
                train(self.model)

        for task, kwargs, message in TaskManager(url).task_generator():
            with Train(message, **kwargs) as handler:
                handler.run()

    All times are in seconds.

    :param message: a boto3 `SQS.Message`, or anything with its `body`, `attributes`, `change_visibility`, `delete`.
    :param sqs_timeout: the visibility timeout each extension asks for: a whole number, 1 to 43200 (12 hours).
    :param alarm_timeout: how often the claim is extended; may be a fraction; more than one second below `sqs_timeout`.
    :param hard_timeout: the limit of the block, from `__enter__`; may be a fraction; up to 43200. The limit that holds
        is the earlier of this and the end of the claim's 12 hours, which SQS counts from the receive.
    :param dead_letter: types of exceptions for which no retry helps, `(KeyError, HardTimeout)`: see `DeadLetter`.
    :param clock: seconds, for tests: in place of the monotonic clock, and of the claim's.
    :raises ValueError: for a timeout out of its range, and a `dead_letter` that is no types of exceptions.

    The times are attributes of the same names. `outcome` is None until the block has been left, then an Outcome;
    `progress` is what the task last reported, `{}` before.

    What the block does not delete, SQS redelivers when the visibility timeout ends, and moves to the dead-letter queue
    after the queue's `maxReceiveCount`:
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html

    Limits: works in the main thread only, on systems with SIGALRM. Python runs a signal handler between two bytecodes
    of the main thread, so it **does not interrupt C code**: a solver or a training round that does not return stops
    the heartbeat and the limit. Use `ProcessMessageHandler` for such tasks. A task that takes SIGALRM for itself ends
    the heartbeat too; that is logged when the block is left.
    """

    # An alarm that lands in the handling of another says nothing of where that one landed.
    _at_border: ClassVar[bool] = False

    def __init__(
        self,
        message: Message,
        sqs_timeout: int,
        alarm_timeout: float,
        hard_timeout: float,
        *,
        dead_letter: tuple[type[BaseException], ...] | type[BaseException] = (),
        clock: Callable[[], float] | None = None,
    ) -> None:
        check_timeouts(sqs_timeout, alarm_timeout, hard_timeout)
        self.dead_letter: tuple[type[BaseException], ...] = _checked_types(dead_letter)
        self.sqs_timeout: int = int(sqs_timeout)
        self.alarm_timeout = alarm_timeout
        self.hard_timeout = hard_timeout
        self.outcome: Outcome | None = None
        self.progress: dict[str, Any] = {}
        self._current: CurrentTask | None = None
        self._is_stopping: Callable[[], bool] = _never  # a Worker puts its own answer here
        self._queue_url: str | None = None  # and its queue here: `notify` is told more then
        self._message = message
        self._clock = clock or _monotonic
        self._claim_clock = clock or claim_clock
        self._alarm: alarm.Alarm | alarm.Unborrowed = alarm.Unborrowed()
        self._end_margin = _END_MARGIN_SECONDS
        self._owner: int | None = None
        self._start_time = self._clock()

    # -- for subclasses ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def run(self) -> Any:
        """The task."""

    def running(self) -> bool:
        """Whether the task still makes progress; asked at every alarm. False stops it as stuck."""
        return True

    def notify(self, exception: BaseException, context: Mapping[str, Any] | None = None) -> Any:
        """Feed an error service with `exception`. `context` holds the message's body and attributes, and under a
        `Worker` more. Default: nothing.

        May be called from another thread than the task's. What it raises is logged and goes no further.
        """

    if TYPE_CHECKING:  # so that a subclass may have either: a method, or an object that is called
        retry_delay: Callable[[BaseException, int], float | None]
    else:

        def retry_delay(self, exception: BaseException, receive_count: int) -> float | None:
            """When a task that failed is to be tried again: in how many seconds, or None (the default): when its
            visibility timeout ends.

            Asked after the task failed, timed out or was stuck, once the heartbeat is over. `exception` is why;
            `receive_count` is how often the message has been received, this time included. Seconds are 0 or more,
            rounded up to whole ones; what goes past the claim's 12 hours is cut. What it raises is logged, and counts
            as None. A policy to put here: `ExponentialBackoff`.
            """
            return None

    def claim_lost(self, exception: BaseException) -> None:
        """The claim is gone: the message is visible to others, being run by another, or deleted.

        Called once, with what SQS said, or with `ClaimLapsed` where it ran out before it was extended: after this
        process was stopped, or cut off from SQS, for longer than `sqs_timeout`. The default notifies, logs at ERROR and
        lets the task go on; an exception raised here stops it.
        """
        wait = self._wait_seconds()
        self._block.report.trouble_apart(wait, "Claim lost for message: %s", exception, "claim_lost", logging.ERROR)

    # -- the block -----------------------------------------------------------------------------------------------

    def __enter__(self: Self) -> Self:
        """Claim the message and arm the heartbeat and the limit.

        :raises UnsupportedContext: outside the main thread, or without SIGALRM; nothing has been sent then.
        """
        alarm.require_alarm(
            type(self).__name__,
            "consume in the main thread, or use ProcessMessageHandler, which needs no signal in the worker",
        )
        self._begin()
        block = self._block
        first = 0.0 if block.stop_at_first_alarm else self._seconds_to_next_alarm()
        self._alarm = alarm.Alarm(self._handle_alarm)
        self._alarm.borrow(first)
        report_progress = functools.partial(setattr, self, "progress")
        self._current = CurrentTask(
            block.report.task, self._message, self._seconds_to_limit, report_progress, self._is_stopping
        )
        current.begin(self._current)
        block.run = WatchedRun(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Give SIGALRM back, then delete the message or report the failure. Swallows any Exception.

        A child process that was forked in the block ends here: the message is its parent's.
        """
        block = self._block
        block.leaving = True  # first of all: from here on no alarm raises, or arms the timer
        if self._owner is not None:
            owner.leave_if_forked(self._owner, exception)
        undisturbed = self._alarm.give_back()
        self._alarm = alarm.Unborrowed()
        if self._current is not None:
            current.end(self._current)
            self._current = None
        if not undisturbed:
            block.report.log(
                logging.WARNING,
                "alarm_taken",
                "The task of message %s took SIGALRM or its timer for itself: from then on its claim was not "
                "extended and its hard timeout not enforced. Use ProcessMessageHandler for such tasks",
                self._message,
            )
        with owner.only_in_this_process():  # `notify` and its like are the user's code, and may fork too
            return self._conclude(exception)

    @functools.cached_property
    def _block(self) -> Block:
        """What this block has, from `_begin` on; made here for a handler that was never entered."""
        return self._new_block(None)

    def _new_block(self, receipt: note.Receipt | None) -> Block:
        return Block(
            self._message,
            type(self).__name__,
            lambda error, context: self.notify(error, context=context),
            lambda: logger,
            (self._clock, self._claim_clock),
            (self.sqs_timeout, self.alarm_timeout),
            receipt,
            self._queue_url,
        )

    def _begin(self) -> None:
        """Have the claim extended, unless it is fresh."""
        self._owner = os.getpid()
        self._start_time = self._clock()
        self.outcome = None
        block = self._block = self._new_block(note.take(self._message))
        if not block.claim.is_fresh(self._claim_clock()):
            try:
                self._extend_timeout(self.sqs_timeout)
            except Exception as error:
                if not block.lost_is_told:
                    raise
                # claim_lost stops the task, but a `with` block cannot be skipped from here, and an exception out of
                # __enter__ would end the user's loop: so the first alarm raises it, inside the block.
                block.stop_at_first_alarm = error

    def _conclude(self, exception: BaseException | None) -> bool:
        """The one verdict: what becomes of the message. True where the exception is swallowed."""
        block = self._block
        block.report.ended_at = self._clock()
        if exception is None and block.stopped_as is not None:
            # The task swallowed the exception that stopped it. It cannot be taken for finished.
            exception = stop_exception(block.stopped_as, self._message, self._run_time())
        if exception is None:
            # What claim_lost raised in __enter__ counts also where the block ended before an alarm could raise it.
            exception = block.stop_at_first_alarm
        nothing_has_run = None if block.run is None else block.run.end()
        if exception is None:
            exception = nothing_has_run
        try:
            self._collect_answers()
        except Exception as error:  # of claim_lost: the task has ended, there is nothing to stop any more
            block.report.trouble("claim_lost failed for message: %s", error, "claim_lost_failed")
        ends_as = functools.partial(setattr, self, "outcome")
        ending = Ending(block, ends_as, self._extend_timeout, self._successor, self.retry_delay, self.dead_letter)
        swallowed = ending.carry_out(exception)
        block.finished()
        return swallowed

    def _successor(self, ending: Continue) -> Callable[[], Any]:
        """What sends the successor of this message. Raises where it cannot be sent."""
        raise CannotContinue(
            f"Task {self._block.report.task!r} cannot continue in a MessageHandler, which runs it in the worker's "
            "process: make it a ProcessMessageHandler"
        )

    # -- the decision and its driver -----------------------------------------------------------------------------

    def _run_time(self) -> float:
        """Seconds since the block was entered."""
        return self._clock() - self._start_time

    def _seconds_to_limit(self) -> float:
        """Until the hard timeout, or until the claim's 12 hours are nearly over, whichever is earlier."""
        return min(
            self.hard_timeout - self._run_time(),
            self._block.claim.ends - self._end_margin - self._claim_clock(),
        )

    def _decide(self) -> Decision:
        if self._seconds_to_limit() <= 0:
            return Decision.TIMED_OUT
        if not self.running():
            return Decision.STUCK
        return Decision.EXTEND

    def _handle_alarm(self, signum: int, frame: FrameType | None) -> None:
        """The SIGALRM handler: the one place where this package works inside a signal handler.

        There is no loop to hand the signal to, since the main thread is in the task. So what it does is kept to what
        may interrupt any code: it arms the timer, and whatever can block (a call to SQS, a log handler) runs in a
        thread of its own and is waited for only so long.
        """
        if self._block.leaving:
            return  # whatever is due outside this block is armed again there
        if self._owner is not None and self._owner != os.getpid():
            return  # a timer of a child's own: the claim is its parent's, which may have ended long since
        interrupted = MessageHandler._at_border
        at_border = interrupted or alarm.is_outside_body(frame, MessageHandler)
        MessageHandler._at_border = at_border
        try:
            if self._alarm.hand_down(signum, frame, not at_border):
                return
            if at_border:
                # A block is being entered or left: nothing may be raised there.
                self._alarm.arm(self._block.ask_again_in(self.alarm_timeout))
                self._block.keep_claim(self.alarm_timeout + self._wait_seconds())
            else:
                self._heartbeat()
        finally:
            MessageHandler._at_border = interrupted

    def _heartbeat(self) -> None:
        """The task is running: decide about it, do that, and arm the next alarm."""
        self._block.body_runs()
        # Armed before running() and the network call, so that neither can leave the task without a limit.
        limit = self._seconds_to_limit()
        self._alarm.arm(limit if limit > 0 else self.alarm_timeout)
        try:
            self._extend_or_stop()
        except BaseException:
            # For the task that swallows it.
            limit = self._seconds_to_limit()
            self._alarm.arm(min(self.alarm_timeout, limit) if limit > 0 else self.alarm_timeout)
            raise
        self._alarm.arm(self._seconds_to_next_alarm())

    def _extend_or_stop(self) -> None:
        """Ask `_decide`, and do what it says."""
        block = self._block
        block.raise_what_stops()
        decision = self._decide()
        if decision is Decision.EXTEND:
            self._extend_timeout(self.sqs_timeout)
            return
        block.stopped_as = Outcome.TIMED_OUT if decision is Decision.TIMED_OUT else Outcome.STUCK
        self._collect_answers()
        # For a task that may take long over being told, or swallow it; it is told on time.
        block.keep_claim(self.alarm_timeout + self._wait_seconds())
        raise stop_exception(block.stopped_as, self._message, self._run_time())

    def _seconds_to_next_alarm(self) -> float:
        """The next thing that is due for the claim or the limit, whichever is earlier.

        Never over `alarm_timeout`: also where nothing is due, running() and the limit are asked.
        """
        now, claim = self._claim_clock(), self._block.claim
        # A claim that was just extended is a little older than its answer: no reason for an odd number.
        just_extended = self.sqs_timeout - claim.left(now) <= self._wait_seconds()
        seconds = self.alarm_timeout if just_extended else min(self.alarm_timeout, claim.due(now) - now)
        return max(0.0, min(seconds, self._seconds_to_limit()))

    # -- the claim -----------------------------------------------------------------------------------------------

    def _wait_seconds(self) -> float:
        """How long one call of the heartbeat is waited for.

        Well inside what is left of the claim at an alarm, and over before the next alarm, with time for the task.
        """
        return min(_HEARTBEAT_WAIT_SECONDS, self.alarm_timeout / 4, (self.sqs_timeout - self.alarm_timeout) / 3)

    def _extend_timeout(self, seconds: int) -> None:
        """Set the message's visibility timeout to `seconds` from now, or to what is left of the claim's 12 hours.

        A failure (any Exception) is notified and logged, and the next alarm comes soon enough to try again. A call that
        does not answer in time goes on beside the task.
        """
        block = self._block
        self._collect_answers()
        if block.extensions.give_up() and block.claim.lost is None:
            error = NoAnswer(f"SQS has not answered the extension of the claim on {self._message}; trying another")
            text = "Claim not extended, the task goes on, message: %s"
            block.report.trouble_apart(self._wait_seconds(), text, error, "extension_failed")
        call = block.extensions.send(seconds)
        if call is not None and self._wait_for(call):
            self._collect_answers()

    def _collect_answers(self) -> None:
        """Act on the answers that have come, and on the time that has passed."""
        lost = self._block.collect()
        if lost is not None:
            self.claim_lost(lost)

    def _wait_for(self, call: BoundedCall) -> bool:
        return call.wait(self._wait_seconds())


def stop_exception(outcome: Outcome, message: Any, seconds: float) -> Exception:
    """What a task is stopped with: the texts are the classic library's."""
    if outcome is Outcome.TIMED_OUT:
        return HardTimeout("Hit Hard Timeout for message handler")
    return HandlerStuck(f"Handler is stuck on {message} after {seconds:.1f} seconds")


def _checked_types(given: Any) -> tuple[type[BaseException], ...]:
    types = given if isinstance(given, tuple) else (given,)
    for each in types:
        if not isinstance(each, type) or not issubclass(each, BaseException):
            raise ValueError(f"dead_letter must be types of exceptions, like (KeyError, ValueError), not {given!r}")
    return types


def _never() -> bool:
    return False


def _monotonic() -> float:
    return time.monotonic()  # looked up when used


def check_timeouts(sqs_timeout: Any, alarm_timeout: Any, hard_timeout: Any) -> None:
    """The texts are the classic library's: scripts out there compare them."""
    if not is_number(alarm_timeout) or alarm_timeout <= 0:
        raise ValueError("Alarm timeout must be an integer greater than zero")
    if not is_number(sqs_timeout) or sqs_timeout <= 0:
        raise ValueError("SQS timeout must be an integer greater than zero")
    if not is_number(hard_timeout) or hard_timeout <= 0:
        raise ValueError("Hard timeout must be an integer greater than zero")
    if alarm_timeout + 1 >= sqs_timeout:
        raise ValueError(
            f"Alarm timeout {alarm_timeout} is to long to reset the sqs timeout {sqs_timeout}: "
            "alarm_timeout + 1 must be less than sqs_timeout; a third of it leaves room for two failed extensions"
        )
    if not is_whole(sqs_timeout):
        raise ValueError(f"SQS timeout must be a whole number of seconds, as SQS takes no fractions, not {sqs_timeout}")
    for name, value in (("SQS timeout", sqs_timeout), ("Hard timeout", hard_timeout)):
        if value > MAX_VISIBILITY_SECONDS:
            raise ValueError(
                f"{name} {value} is over {MAX_VISIBILITY_SECONDS} seconds (12 hours), the longest SQS lets a message "
                "be claimed: divide the task into shorter ones"
            )
