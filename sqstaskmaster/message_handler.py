"""MessageHandler: one message, from the claim to the verdict.

    __enter__   the claim is extended, unless it is known to be fresh; SIGALRM and its timer are borrowed
        |
      body  <-- SIGALRM --  _handle_alarm: _decide --> past the limit   raise HardTimeout, again every alarm_timeout
        |                                         --> stuck            raise HandlerStuck
        |                                         --> neither          _extend_timeout, and arm the next alarm
    __exit__    SIGALRM is given back; then the one verdict:
                done -> delete    failed, timed out, stuck -> report, leave it to SQS    interrupted -> and give it back

`_decide` knows nothing of signals: ProcessMessageHandler asks it from an ordinary loop.
"""

from __future__ import annotations

import abc
import enum
import logging
import math
import random
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, ClassVar, TypeVar

from sqstaskmaster._claim import claims
from sqstaskmaster._signals import alarm
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster._sqs.answers import SQS_ERRORS, is_answer, is_beyond_total, is_claim_lost
from sqstaskmaster._sqs.limits import MAX_VISIBILITY_SECONDS, is_number, is_whole
from sqstaskmaster._sqs.protocols import Message
from sqstaskmaster.errors import HandlerStuck, HardTimeout, NoAnswer

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="MessageHandler")

# The longest that the task is held up by one call of the heartbeat, whatever the user's client allows it: SQS answers
# in milliseconds. A call that takes longer goes on beside the task.
_HEARTBEAT_WAIT_SECONDS = 1.0

# The longest that one delete of finished work is waited for before another is tried.
_DELETE_WAIT_SECONDS = 5.0

# The soonest that a failed extension is tried again.
_SOONEST_RETRY_SECONDS = 0.5

# How far before the end of the claim's 12 hours a task is stopped, so that it is gone when the message comes back.
_END_MARGIN_SECONDS = 2.0

# An alarm that finds a block being entered or left may not raise, and asks again this soon; then doubled each time.
_ASK_AGAIN_SECONDS = 0.005

# Between two tries to delete the message of finished work: doubled each time, from and up to.
_DELETE_RETRY_SECONDS = (0.2, 5.0)


class Outcome(str, enum.Enum):
    """How a `with` block ended. Each is also the plain string of its value: `handler.outcome == "done"`."""

    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    STUCK = "stuck"
    INTERRUPTED = "interrupted"

    def __str__(self) -> str:
        return self.value


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
    :param clock: a monotonic clock, for tests.
    :raises ValueError: for a timeout out of its range.

    What the block does not delete, SQS redelivers when the visibility timeout ends, and moves to the dead-letter queue
    after the queue's `maxReceiveCount`:
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html

    Limits: works in the main thread only, on systems with SIGALRM. Python runs a signal handler between two bytecodes
    of the main thread, so it **does not interrupt C code**: a solver, a training round or a regular expression that
    does not return stops the heartbeat and the limit. Use `ProcessMessageHandler` for such tasks. A task that takes
    SIGALRM for itself ends the heartbeat too; that is logged when the block is left.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_timeouts(sqs_timeout, alarm_timeout, hard_timeout)
        self.sqs_timeout = int(sqs_timeout)
        self.alarm_timeout = alarm_timeout
        self.hard_timeout = hard_timeout
        self.outcome: Outcome | None = None
        self._message = message
        self._clock = clock
        self._start_time = clock()
        self._claim = claims.of(message) or claims.Claim(received=self._start_time)
        self._alarm: alarm.Alarm | None = None
        self._extension: BoundedCall | None = None
        self._retry_in: float | None = None
        self._end_margin = _END_MARGIN_SECONDS
        self._stopped_as: Outcome | None = None
        self._stop_at_first_alarm: Exception | None = None
        self._claim_is_lost = False
        self._ended_at: float | None = None
        self._leaving = False
        self._ask_again = _ASK_AGAIN_SECONDS

    # -- for subclasses ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def run(self) -> Any:
        """The task."""

    def running(self) -> bool:
        """Whether the task still makes progress; asked at every alarm. False stops it as stuck."""
        return True

    def notify(self, exception: BaseException, context: Mapping[str, Any] | None = None) -> Any:
        """Feed an error service. `context` holds the message's body and attributes. Default: nothing.

        May be called from another thread than the task's. What it raises is logged and goes no further.
        """

    def retry_delay(self, exception: BaseException, receive_count: int) -> float | None:
        """When a task that failed is to be tried again: in how many seconds, or None (the default): when its visibility
        timeout ends.

        Asked after the task failed, timed out or was stuck, once the heartbeat is over. `receive_count` is how often
        the message has been received, this time included. What goes past the claim's 12 hours is cut. A policy to put
        here: `ExponentialBackoff`.
        """
        return None

    def claim_lost(self, exception: BaseException) -> None:
        """SQS said that the claim is gone: the message is visible to others, being run by another, or deleted.

        Called once. The default notifies, logs at ERROR and lets the task go on; an exception raised here stops it.
        """
        self._quietly(lambda: self._tell("Claim lost for message: %s", exception, logging.ERROR, "claim_lost"))

    # -- the block -----------------------------------------------------------------------------------------------

    def __enter__(self: Self) -> Self:
        """Claim the message and arm the heartbeat and the limit.

        :raises UnsupportedContext: outside the main thread, or without SIGALRM; nothing has been sent then.
        """
        alarm.require_alarm(type(self).__name__)
        self._begin()
        first = 0.0 if self._stop_at_first_alarm else self._seconds_to_next_alarm()
        self._alarm = alarm.Alarm(self._handle_alarm)
        self._alarm.borrow(first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Give SIGALRM back, then delete the message or report the failure. Swallows any Exception."""
        self._leaving = True  # first of all: from here on no alarm raises, or arms the timer
        if self._alarm is not None:
            undisturbed = self._alarm.give_back()
            self._alarm = None
            if not undisturbed:
                logger.warning(
                    "The task of message %s took SIGALRM or its timer for itself: from then on its claim was not "
                    "extended and its hard timeout not enforced. Use ProcessMessageHandler for such tasks",
                    self._message,
                    extra=self._facts("alarm_taken"),
                )
        return self._conclude(exception)

    def _begin(self) -> None:
        now = self._clock()
        self._start_time = now
        self.outcome = self._stopped_as = self._retry_in = self._ended_at = None
        self._extension = self._stop_at_first_alarm = None
        self._claim_is_lost = self._leaving = False
        self._claim = claims.of(self._message) or claims.Claim(received=now)
        claims.note(self._message, self._claim)
        # "Less a second": right after a receive the claim is as long as was asked there, but for the way here.
        if self._claim.left(now) < self.sqs_timeout - 1:
            try:
                self._extend_timeout(self.sqs_timeout)
            except Exception as error:
                if not self._claim_is_lost:
                    raise
                # claim_lost stops the task, but a `with` block cannot be skipped from here, and an exception out of
                # __enter__ would end the user's loop: so the first alarm raises it, inside the block.
                self._stop_at_first_alarm = error

    def _conclude(self, exception: BaseException | None) -> bool:
        """The one verdict: what becomes of the message. True where the exception is swallowed."""
        self._ended_at = self._clock()
        if exception is None and self._stopped_as is not None:
            # The task swallowed the exception that stopped it. It cannot be taken for finished.
            exception = self._stop_exception(self._stopped_as)
        if exception is None:
            # What claim_lost raised in __enter__ counts also where the block ended before an alarm could raise it.
            exception = self._stop_at_first_alarm
        if exception is None:
            self.outcome = Outcome.DONE
            self._delete()
        elif isinstance(exception, Exception):
            self.outcome = self._stopped_as or Outcome.FAILED
            self._report(exception)
            self._delay_retry(exception)
        else:
            self.outcome = Outcome.INTERRUPTED
            self._give_back()  # first: an error service that answers slowly is not what another worker waits for
            self._report(exception)
        self._tell_end()
        return exception is None or isinstance(exception, Exception)

    def _tell_end(self) -> None:
        """The one line of a task that has ended."""
        if not logger.isEnabledFor(logging.INFO):
            return
        facts = self._facts("finished")
        logger.info(
            "Task %s %s: message %s, receive %s, queued %s s, ran %.3f s",
            facts["task"],
            self.outcome,
            facts["message_id"],
            facts["receive_count"],
            "?" if facts["queued"] is None else f"{facts['queued']:.3f}",
            facts["elapsed"],
            extra=facts,
        )

    # -- the decision and its driver -----------------------------------------------------------------------------

    def _run_time(self) -> float:
        """Seconds since the block was entered."""
        return self._clock() - self._start_time

    def _seconds_to_limit(self) -> float:
        """Until the hard timeout, or until the claim's 12 hours are nearly over, whichever is earlier."""
        return min(
            self.hard_timeout - self._run_time(),
            self._claim.ends - self._end_margin - self._clock(),
        )

    def _decide(self) -> Decision:
        if self._seconds_to_limit() <= 0:
            return Decision.TIMED_OUT
        if not self.running():
            return Decision.STUCK
        return Decision.EXTEND

    def _stop_exception(self, outcome: Outcome) -> Exception:
        if outcome is Outcome.TIMED_OUT:
            return HardTimeout("Hit Hard Timeout for message handler")
        return HandlerStuck(f"Handler is stuck on {self._message} after {self._run_time():.1f} seconds")

    def _handle_alarm(self, signum: int, frame: FrameType | None) -> None:
        """The SIGALRM handler: the one place where this package works inside a signal handler.

        There is no loop to hand the signal to, since the main thread is in the task. So what it does is kept to what
        may interrupt any code: it arms the timer, and whatever can block (a call to SQS, a log handler) runs in a
        thread of its own and is waited for only so long.
        """
        if self._leaving:
            return  # whatever is due outside this block is armed again there
        interrupted = MessageHandler._at_border
        at_border = interrupted or alarm.is_outside_body(frame, MessageHandler)
        MessageHandler._at_border = at_border
        try:
            if self._alarm is not None and self._alarm.hand_down(signum, frame, not at_border):
                return
            if at_border:
                self._ask_again_soon()
            else:
                self._attend()
        finally:
            MessageHandler._at_border = interrupted

    def _ask_again_soon(self) -> None:
        """A block is being entered or left: nothing may be raised there."""
        self._ask_again = min(self._ask_again * 2, self.alarm_timeout)
        self._arm(self._ask_again)
        self._keep_claim_meanwhile()

    def _attend(self) -> None:
        """The task is running: decide about it, and arm the next alarm."""
        self._ask_again = _ASK_AGAIN_SECONDS
        # Armed before running() and the network call, so that neither can leave the task without a limit.
        limit = self._seconds_to_limit()
        self._arm(limit if limit > 0 else self.alarm_timeout)
        try:
            self._ask()
        except BaseException:
            # For the task that swallows it.
            limit = self._seconds_to_limit()
            self._arm(min(self.alarm_timeout, limit) if limit > 0 else self.alarm_timeout)
            raise
        self._arm(self._seconds_to_next_alarm())

    def _ask(self) -> None:
        """Ask `_decide`, and do what it says."""
        if self._stop_at_first_alarm is not None:
            error, self._stop_at_first_alarm = self._stop_at_first_alarm, None
            raise error
        decision = self._decide()
        if decision is Decision.EXTEND:
            self._extend_timeout(self.sqs_timeout)
            return
        self._stopped_as = Outcome.TIMED_OUT if decision is Decision.TIMED_OUT else Outcome.STUCK
        self._settle()
        self._keep_claim_meanwhile()
        raise self._stop_exception(self._stopped_as)

    def _arm(self, seconds: float) -> None:
        if self._alarm is not None:
            self._alarm.arm(seconds)

    def _seconds_to_next_alarm(self) -> float:
        """The next extension or the limit, whichever is earlier."""
        if self._retry_in is not None:
            extension = self._retry_in
        elif self._claim_is_lost or self._claim.is_final():
            extension = self.alarm_timeout  # nothing left to extend, but running() and the limit are still asked
        else:
            # A claim that was taken over from the receive is a little older than one just extended.
            age = self.sqs_timeout - self._claim.left(self._clock())
            extension = self.alarm_timeout - age if age > self._wait_seconds() else self.alarm_timeout
        return max(0.0, min(extension, self._seconds_to_limit()))

    # -- the claim -----------------------------------------------------------------------------------------------

    def _wait_seconds(self) -> float:
        """How long one call of the heartbeat is waited for.

        Well inside what is left of the claim at an alarm, and over before the next alarm, with time for the task.
        """
        return min(_HEARTBEAT_WAIT_SECONDS, self.alarm_timeout / 4, (self.sqs_timeout - self.alarm_timeout) / 3)

    def _extend_timeout(self, seconds: int) -> None:
        """Set the message's visibility timeout to `seconds` from now, or to what is left of the claim's 12 hours.

        A failure (SQS_ERRORS) is notified and logged, and the next alarm comes soon enough to try again; any other
        exception is raised. A call that does not answer in time goes on beside the task.
        """
        self._settle()
        previous = self._extension
        if previous is not None and not self._claim_is_lost:
            error = NoAnswer(f"SQS has not answered the extension of the claim on {self._message}; trying another")
            self._quietly(lambda: self._extension_failed(error))
        if not self._start_extension(seconds):
            self._retry_in = None
            return
        if self._extension is not None and self._wait_for(self._extension):
            self._settle()
        else:
            self._retry_in = self._seconds_to_retry()

    def _settle(self) -> None:
        """Act on the answer to the last extension, where it has come."""
        call = self._extension
        if call is None or not call.done:
            return
        self._extension = None
        if call.error is None:
            self._retry_in = None
        elif not isinstance(call.error, SQS_ERRORS):
            raise call.error
        elif is_claim_lost(call.error):
            self._retry_in = None
            if not self._claim_is_lost:
                self._claim_is_lost = True
                self.claim_lost(call.error)
        else:
            self._retry_in = None if self._claim.is_final() else self._seconds_to_retry()

    def _wait_for(self, call: BoundedCall) -> bool:
        return call.wait(self._wait_seconds())

    def _start_extension(self, seconds: int) -> bool:
        """Send the extension from a thread of its own. False where there is nothing to be had by it."""
        now = self._clock()
        claim, message = self._claim, self._message
        allowed = claim.cut(seconds, now)
        if self._claim_is_lost or (allowed < seconds and allowed <= claim.left(now)):
            return False

        def extend() -> None:
            try:
                message.change_visibility(VisibilityTimeout=allowed)
            except SQS_ERRORS as error:
                if is_beyond_total(error):
                    claim.refused_as_too_long(now)
                if not is_claim_lost(error):  # that one is claim_lost's to tell
                    self._extension_failed(error)
                raise
            claim.extended(now, allowed)
            logger.debug("Claim extended by %d s: %s", allowed, message, extra=self._facts("extended"))

        self._extension = BoundedCall(extend)
        return True

    def _seconds_to_retry(self) -> float:
        """Soon enough that several more tries fit into what is left of the claim."""
        left = self._claim.left(self._clock())
        return min(self.alarm_timeout, max(_SOONEST_RETRY_SECONDS, left / 4)) if left else self.alarm_timeout

    def _keep_claim_meanwhile(self) -> None:
        """Extend a claim that would not last to the next alarm, without waiting for it.

        For a task that was told to stop, which may take long over it or swallow that; it is told on time.
        """
        if self._claim.left(self._clock()) < self.alarm_timeout + self._wait_seconds():
            self._start_extension(self.sqs_timeout)

    def _extension_failed(self, error: Exception) -> None:
        self._tell("Claim not extended, the task goes on, message: %s", error, logging.WARNING, "extension_failed")

    # -- the verdict ---------------------------------------------------------------------------------------------

    def _delete(self) -> None:
        """Delete the message of finished work, trying again while the claim lives. Never raises an Exception."""
        now = self._clock()
        give_up = now + max(self._claim.left(now), _DELETE_WAIT_SECONDS)
        pause, longest_pause = _DELETE_RETRY_SECONDS
        may_have_been_deleted = False
        # Hours of finished work are worth a thread, so that a try that hangs is given up for another in time; a task
        # that did not last to its first alarm is not.
        apart = self._run_time() >= self.alarm_timeout
        while True:
            call = BoundedCall(self._message.delete, apart)
            apart = True
            answered = call.wait(min(_DELETE_WAIT_SECONDS, max(give_up - self._clock(), 1.0)))
            if answered and call.error is None:
                self._claim.expires = None
                return
            error = call.error or NoAnswer(f"SQS has not answered the delete of {self._message}")
            if not isinstance(error, Exception):
                raise error
            if is_claim_lost(error) and may_have_been_deleted:
                return  # by the try whose answer was lost
            may_have_been_deleted = may_have_been_deleted or not is_answer(error)
            hopeless = is_claim_lost(error) or not isinstance(error, (*SQS_ERRORS, NoAnswer))
            if hopeless or self._clock() + pause >= give_up:
                self._tell(
                    "Task finished, but its message could not be deleted and will be redelivered: %s",
                    error,
                    logging.ERROR,
                    "delete_failed",
                )
                return
            logger.warning("Delete failed, trying again: %s", error, extra=self._facts("delete_retried"))
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, longest_pause)

    def _give_back(self) -> None:
        """Make the message visible to others at once, unless the claim was lost: another may be running it."""
        if self._claim_is_lost:
            return
        self._change_visibility(0)

    def _delay_retry(self, exception: Exception) -> None:
        """Have the message come back when `retry_delay` says. What is wrong with that is told and goes no further."""
        attributes = self._message.attributes or {}
        try:
            delay = self.retry_delay(exception, int(attributes.get("ApproximateReceiveCount", 1)))
            if delay is not None and (not is_number(delay) or delay < 0):
                raise ValueError(f"retry_delay must give a number of seconds, 0 or more, or None, not {delay!r}")
        except Exception as error:
            text = "No retry delay, the message comes back when its visibility timeout ends: %s"
            self._tell(text, error, logging.WARNING, "retry_delay_failed")
            return
        if delay is not None and not self._claim_is_lost:
            self._change_visibility(self._claim.cut(math.ceil(delay), self._clock()))

    def _change_visibility(self, seconds: int) -> None:
        """Set the visibility timeout after the task has ended; a failure is told and goes no further."""
        if self._extension is not None:
            # An extension still under way would hide the message again, for another time.
            self._extension.wait(_HEARTBEAT_WAIT_SECONDS)
        call = BoundedCall(lambda: self._message.change_visibility(VisibilityTimeout=seconds))
        answered = call.wait(_DELETE_WAIT_SECONDS)
        error = call.error if answered else NoAnswer(f"SQS has not answered the return of {self._message}")
        if isinstance(error, Exception):
            text = "Message not given back, it comes back when its visibility timeout ends: %s"
            self._tell(text, error, logging.WARNING, "give_back_failed")
        elif error is None:
            self._claim.extended(self._clock(), seconds)

    def _report(self, exception: BaseException) -> None:
        self._notify(exception, self._failure_context())
        # Without exc_info where the exception is the current one, as `with` makes it.
        exc_info = True if sys.exc_info()[1] is exception else exception
        logger.exception("Failed for message: %s", self._message, exc_info=exc_info, extra=self._facts("failed"))

    def _failure_context(self) -> dict[str, Any]:
        return {"body": self._message.body, **(self._message.attributes or {})}

    def _tell(self, text: str, exception: BaseException, level: int, action: str) -> None:
        """Notify and log something that went wrong beside the task."""
        self._notify(exception, self._failure_context())
        logger.log(level, text, self._message, exc_info=exception, extra=self._facts(action))

    def _notify(self, exception: BaseException, context: Mapping[str, Any]) -> None:
        try:
            self.notify(exception, context=context)
        except Exception:
            logger.exception("notify failed for message: %s", self._message, extra=self._facts("notify_failed"))

    def _quietly(self, function: Callable[[], None]) -> None:
        """Run what may block (log handlers and error services take locks) without holding up or failing the task."""
        BoundedCall(function).wait(self._wait_seconds())

    def _facts(self, action: str) -> dict[str, Any]:
        """The fields that every log record about this message carries, for formatters that write them."""
        attributes = self._message.attributes or {}
        now = self._clock()
        queued = _seconds_since(attributes.get("SentTimestamp"), time.time() - (now - self._start_time))
        return {
            "action": action,
            "task": self._claim.task or type(self).__name__,
            "message_id": getattr(self._message, "message_id", None),
            "receive_count": attributes.get("ApproximateReceiveCount"),
            "queued": None if queued is None else max(0.0, queued),  # the clock of SQS is not ours
            "elapsed": (now if self._ended_at is None else self._ended_at) - self._start_time,
            "outcome": self.outcome and self.outcome.value,
        }


def _seconds_since(timestamp: Any, now: float) -> float | None:
    """From a timestamp of SQS (milliseconds, as text) until `now`; None for anything else."""
    return now - int(timestamp) / 1000 if isinstance(timestamp, str) and timestamp.isdecimal() else None


def check_timeouts(sqs_timeout: Any, alarm_timeout: Any, hard_timeout: Any) -> None:
    """The texts are the classic library's: scripts out there compare them."""
    if not is_number(alarm_timeout) or alarm_timeout <= 0:
        raise ValueError("Alarm timeout must be an integer greater than zero")
    if not is_number(sqs_timeout) or sqs_timeout <= 0:
        raise ValueError("SQS timeout must be an integer greater than zero")
    if not is_number(hard_timeout) or hard_timeout <= 0:
        raise ValueError("Hard timeout must be an integer greater than zero")
    if alarm_timeout + 1 >= sqs_timeout:
        raise ValueError(f"Alarm timeout {alarm_timeout} is to long to reset the sqs timeout {sqs_timeout}")
    if not is_whole(sqs_timeout):
        raise ValueError(f"SQS timeout must be a whole number of seconds, as SQS takes no fractions, not {sqs_timeout}")
    for name, value in (("SQS timeout", sqs_timeout), ("Hard timeout", hard_timeout)):
        if value > MAX_VISIBILITY_SECONDS:
            raise ValueError(
                f"{name} {value} is over {MAX_VISIBILITY_SECONDS} seconds (12 hours), the longest SQS lets a message "
                "be claimed: divide the task into shorter ones"
            )
