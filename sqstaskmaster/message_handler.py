"""MessageHandler: one message, from the claim to its settlement.

A handler says what a task is. Its `with` block (`_block.alarm_block`) drives it. The claim decides what is due when,
and the settlement what becomes of the message (both in `_claim`).
"""

from __future__ import annotations

import abc
import functools
import logging
import time
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sqstaskmaster._block.alarm_block import AlarmBlock
from sqstaskmaster._block.block import Block
from sqstaskmaster._claim import forwarding, note
from sqstaskmaster._claim.attempt import Attempt, Terms
from sqstaskmaster._claim.clock import now as claim_clock
from sqstaskmaster._claim.clock import of as clock_of
from sqstaskmaster._claim.report import FactsFilter
from sqstaskmaster._logging import get_logger
from sqstaskmaster._signals import alarm
from sqstaskmaster._sqs.limits import MAX_VISIBILITY_SECONDS, is_number, is_whole
from sqstaskmaster._sqs.protocols import Message
from sqstaskmaster.endings import Outcome as Outcome

logger: logging.Logger = get_logger(__name__)
logger.addFilter(FactsFilter())

Self = TypeVar("Self", bound="MessageHandler")


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
    :param hard_timeout: the limit of the block, from `__enter__`; may be a fraction; up to 43200. The task is stopped
        at the earlier of this limit and the end of the claim's 12 hours, which SQS counts from the receive.
    :param dead_letter: exception types for which no retry helps, such as `(KeyError, HardTimeout)`: see `DeadLetter`.
    :param clock: for tests: returns seconds, in place of the monotonic clock and the claim's clock.
    :raises ValueError: for a timeout out of its range, and a `dead_letter` that is not exception types.

    The times are attributes of the same names. `outcome` is None until the block has been left, then an Outcome;
    `progress` is what the task last reported, at first `{}`.

    SQS redelivers a message that the block does not delete when the visibility timeout ends, and moves it to the
    dead-letter queue after the queue's `maxReceiveCount`:
    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html

    Limits: it works only in the main thread, on systems with SIGALRM. Python runs a signal handler between two
    bytecodes of the main thread, so it **does not interrupt C code**: a solver or a training round that does not return
    stops the heartbeat and the limit. Use `ProcessMessageHandler` for such tasks. A task that takes SIGALRM for itself
    ends the heartbeat too; that is logged when the block is left.
    """

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
        self.dead_letter: tuple[type[BaseException], ...] = forwarding.checked_types(dead_letter)
        self.sqs_timeout: int = int(sqs_timeout)
        self.alarm_timeout = alarm_timeout
        self.hard_timeout = hard_timeout
        self.outcome: Outcome | None = None
        self.progress: dict[str, Any] = {}
        self._message = message
        self._clock = clock or clock_of(message, _monotonic)
        self._claim_clock = clock or clock_of(message, claim_clock)
        self._terms = Terms()
        self._start_time = self._clock()

    # -- for subclasses ------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def run(self) -> Any:
        """The task."""

    def running(self) -> bool:
        """Whether the task still makes progress; called at every alarm. False stops it as stuck."""
        return True

    def notify(self, exception: BaseException, context: Mapping[str, Any] | None = None) -> Any:
        """Report `exception` to an error service. `context` holds the message's body and attributes, and under a
        `Worker` more. Default: nothing.

        It may be called in a thread other than the task's. If it raises, that is logged and goes no further.
        """

    if TYPE_CHECKING:  # so that a subclass may have either: a method, or an object that is called
        retry_delay: Callable[[BaseException, int], float | None]
    else:

        def retry_delay(self, exception: BaseException, receive_count: int) -> float | None:
            """When to retry a failed task: in how many seconds, or None (the default): when its visibility timeout
            ends.

            Called after the task failed, timed out or was stuck, when the heartbeat is over. `exception` is why;
            `receive_count` is how often the message has been received, this time included. Seconds are 0 or more,
            rounded up to whole ones; they end with the claim's 12 hours at the latest. If it raises, that is logged,
            and counts as None. `ExponentialBackoff` is such a policy.
            """
            return None

    def claim_lost(self, exception: BaseException) -> None:
        """The claim is gone: the message is visible to others, being run by another, or deleted.

        Called once, with SQS's error, or with `ClaimLapsed` if it ran out before it was extended: after this process
        was stopped, or cut off from SQS, for longer than `sqs_timeout`. The default notifies, logs at ERROR and lets
        the task go on; an exception raised here stops it.
        """
        attempt = self._attempt
        text = "Claim lost for message: %s"
        attempt.report.trouble_apart(attempt.wait_seconds, text, exception, "claim_lost", logging.ERROR)

    # -- the block -----------------------------------------------------------------------------------------------

    def __enter__(self: Self) -> Self:
        """Claim the message and arm the heartbeat and the limit.

        :raises UnsupportedContext: outside the main thread, or without SIGALRM; nothing has been sent then.
        """
        alarm.require_alarm(
            type(self).__name__,
            "consume in the main thread, or use ProcessMessageHandler, which needs no signal in the worker",
        )
        self._renew(note.take(self._message)).enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Restore SIGALRM, then delete the message or report the failure. Swallows any Exception.

        A child process forked in the block ends here: the message is its parent's.
        """
        return bool(self._block.leave(exception))

    @functools.cached_property
    def _block(self) -> Any:
        """The block, from `__enter__` on; made here for a handler that was never entered."""
        return self._new_block(None)

    @functools.cached_property
    def _attempt(self) -> Attempt:
        """The block's; a worker with slots puts its own here."""
        attempt: Attempt = self._block.attempt
        return attempt

    def _new_block(self, receipt: note.Receipt | None) -> Block:
        return AlarmBlock(self, self._terms, self._logger, receipt)

    def _renew(self, receipt: note.Receipt | None) -> Any:
        """Start over: a handler may be entered more than once."""
        self._start_time = self._clock()
        self.outcome = None
        self._block = self._new_block(receipt)
        return self._block

    def _logger(self) -> logging.Logger:
        return logger

    def _accept(self, terms: Terms) -> None:
        """Have the next block do what the worker wants."""
        self._terms = terms

    # -- what users' scripts override, patch and call --------------------------------------------------------------

    def _run_time(self) -> float:
        """Seconds since the block was entered."""
        return self._clock() - self._start_time

    def _handle_alarm(self, signum: int, frame: FrameType | None) -> None:
        """The SIGALRM handler: decides about the task, and arms the next alarm."""
        self._block.on_alarm(signum, frame, MessageHandler)

    def _extend_timeout(self, seconds: int) -> None:
        """Set the message's visibility timeout to `seconds` from now, or to what is left of the claim's 12 hours.

        A failure (any Exception) is notified and logged, and the next alarm comes soon enough to retry. A call that
        does not return in time continues beside the task. `Worker` extends the claims of its slots itself.
        """
        self._block.extend(seconds)


def _monotonic() -> float:
    return time.monotonic()  # looked up when used


_SECONDS = ": a number of seconds, fractions allowed, not "


def _that_fits(sqs_timeout: float) -> str:
    """Suggests an alarm timeout that fits: a third of `sqs_timeout` leaves room for two failed extensions."""
    if sqs_timeout <= 2:
        return "give an sqs_timeout of 3 or more"
    return f"give alarm_timeout={min(max(sqs_timeout // 3, 1), sqs_timeout - 1.5):g}, which leaves time to try again"


def check_timeouts(sqs_timeout: Any, alarm_timeout: Any, hard_timeout: Any) -> None:
    """Raise ValueError for invalid timeouts. The texts are the classic library's: users' scripts compare them."""
    if not is_number(alarm_timeout) or alarm_timeout <= 0:
        raise ValueError(f"Alarm timeout must be an integer greater than zero{_SECONDS}{alarm_timeout!r}")
    if not is_number(sqs_timeout) or sqs_timeout <= 0:
        raise ValueError(
            f"SQS timeout must be an integer greater than zero: a whole number of seconds, not {sqs_timeout!r}"
        )
    if not is_number(hard_timeout) or hard_timeout <= 0:
        raise ValueError(f"Hard timeout must be an integer greater than zero{_SECONDS}{hard_timeout!r}")
    if alarm_timeout + 1 >= sqs_timeout:
        raise ValueError(
            f"Alarm timeout {alarm_timeout} is to long to reset the sqs timeout {sqs_timeout}: "
            f"{_that_fits(sqs_timeout)}. A Worker's defaults are sqs_timeout=120, alarm_timeout=30: give both together"
        )
    if not is_whole(sqs_timeout):
        raise ValueError(f"SQS timeout must be a whole number of seconds, as SQS takes no fractions, not {sqs_timeout}")
    for name, value in (("SQS timeout", sqs_timeout), ("Hard timeout", hard_timeout)):
        if value > MAX_VISIBILITY_SECONDS:
            raise ValueError(
                f"{name} {value} is over {MAX_VISIBILITY_SECONDS} seconds (12 hours), the longest SQS lets a message "
                "be claimed: divide the task into shorter ones, or have it go on later with raise Continue(...)"
            )
