"""The driver of a block whose task is in this process: SIGALRM interrupts it.

::

    enter       the claim is extended, unless it is known to be fresh; SIGALRM and its timer are borrowed
      |
    body  <-- SIGALRM --  on_alarm: past the limit          raise HardTimeout, again every alarm_timeout
      |                             not running()           raise HandlerStuck
      |                             the worker stops        raise ShutdownRequested
      |                             else                    _extend_timeout, and arm the next alarm
    leave       SIGALRM is given back; the settlement is carried out
"""

from __future__ import annotations

import functools
import logging
import math
import os
from types import FrameType
from typing import Any, ClassVar

from sqstaskmaster._block.block import Block
from sqstaskmaster._block.returned import WatchedRun
from sqstaskmaster._claim import current
from sqstaskmaster._claim.current import CurrentTask
from sqstaskmaster._claim.stop_order import StopOrder, stopped_by
from sqstaskmaster._signals import alarm, frames
from sqstaskmaster.endings import Outcome
from sqstaskmaster.errors import ShutdownRequested

# An alarm that finds a block being entered or left may not raise, and retries after this, doubled each time.
_ASK_AGAIN_SECONDS = 0.005

# How often the exception is raised again in a task that goes on although the worker stops.
_STOP_AGAIN_SECONDS = 1.0


class AlarmBlock(Block):
    """One block. `leaving`: from now on no alarm may raise, or arm the timer."""

    # An alarm that lands in the handling of another cannot see where that one landed: so it is noted here.
    _at_border: ClassVar[bool] = False

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.leaving = self._beating = False
        self.alarm: alarm.Alarm | alarm.Unborrowed = alarm.Unborrowed()
        self._ask_again = _ASK_AGAIN_SECONDS
        self._run: WatchedRun | None = None
        self.current: CurrentTask | None = None

    def enter(self) -> None:
        """Claim the message and arm the heartbeat and the limit."""
        self.begin()
        first = 0.0 if self.stop_at_first_alarm else self.seconds_to_next_alarm()
        self.alarm = alarm.Alarm(self.handler._handle_alarm)
        self.alarm.borrow(first)
        report_progress = functools.partial(setattr, self.handler, "progress")
        self.current = CurrentTask(
            self.attempt.task, self.message, self.seconds_to_limit, report_progress, self.attempt.terms.is_stopping
        )
        current.begin(self.current)
        self._run = WatchedRun(self.handler)

    def leave(self, exception: Any) -> bool:
        """Give SIGALRM back, and settle the attempt. True if the exception is swallowed."""
        self.leaving = True  # first of all: from here on no alarm raises, or arms the timer
        self.leave_if_forked(exception)
        undisturbed = self.alarm.give_back()
        self.alarm = alarm.Unborrowed()
        if self.current is not None:
            current.end(self.current)
            self.current = None
        if not undisturbed:
            self.report.log(
                logging.WARNING,
                "alarm_taken",
                "The task of message %s took SIGALRM or its timer for itself: from then on its claim was not "
                "extended and its hard timeout not enforced. Use ProcessMessageHandler for such tasks",
                self.report.subject,
            )
        return self.conclude(exception, None if self._run is None else self._run.end())

    # -- in the signal handler -----------------------------------------------------------------------------------

    def on_alarm(self, signum: int, frame: FrameType | None, kind: type) -> None:
        """The SIGALRM handler: the one place where this package does work inside a signal handler.

        There is no loop to hand the signal to, since the main thread is in the task. So it only does what may interrupt
        any code: it arms the timer, and whatever can block (a call to SQS, a log handler) runs in a thread of its own
        and is waited for only so long.

        :param kind: the class whose blocks must not be interrupted while they are entered or left.
        """
        if self.leaving:
            return  # whatever is due outside this block is armed again there
        if self.owner is not None and self.owner != os.getpid():
            return  # a child's own timer: the claim is its parent's, which may have ended long ago
        interrupted = AlarmBlock._at_border
        at_border = interrupted or frames.is_outside_body(frame, kind)
        AlarmBlock._at_border = at_border
        try:
            if self.alarm.hand_down(signum, frame, not at_border):
                return
            if at_border:
                # A block is being entered or left: nothing may be raised there.
                self._ask_again = min(self._ask_again * 2, self.handler.alarm_timeout)
                self.alarm.arm(self._ask_again)
                self.keep_claim(self.handler.alarm_timeout + self.attempt.wait_seconds)
            else:
                try:
                    self._heartbeat()
                except BaseException as error:
                    if not frames.raise_after_jump(frame, error):
                        raise
        finally:
            AlarmBlock._at_border = interrupted

    def look_soon(self) -> None:
        """From another signal's handler: `stop_at` has changed."""
        if not self.leaving:
            self.alarm.arm(self.seconds_to_next_alarm())

    def order_stop(self, order: StopOrder) -> None:
        """From another thread: stop the task at its next bytecode."""
        self.stop_order = order
        self.alarm.send()

    def _heartbeat(self) -> None:
        """The task is running: decide what to do about it, do it, and arm the next alarm."""
        self._ask_again = _ASK_AGAIN_SECONDS
        # An extension under way when the worker's stop comes must be waited for, or it would hide a message that has
        # been given back: so only the limit may raise into a heartbeat.
        nested, self._beating = self._beating, True
        try:
            self._beat(nested)
        finally:
            self._beating = nested

    def _beat(self, nested: bool) -> None:
        # Armed before running() and the network call, so that neither can leave the task without a limit.
        limit = self.seconds_to_limit()
        self.alarm.arm(limit if limit > 0 else self.handler.alarm_timeout)
        try:
            self._extend_or_stop(nested)
        except BaseException as error:
            # In case the task swallows it.
            limit = self.seconds_to_limit()
            again = self.handler.alarm_timeout
            if isinstance(error, ShutdownRequested) or self.stop_order is not None:
                again = min(again, _STOP_AGAIN_SECONDS)
            self.alarm.arm(min(again, limit) if limit > 0 else again)
            raise
        self.alarm.arm(max(self.seconds_to_next_alarm(), _ASK_AGAIN_SECONDS if nested else 0.0))

    def _extend_or_stop(self, nested: bool) -> None:
        handler = self.handler
        if not nested:
            self.raise_what_stops()
        order = self.stop_order
        if order is not None:
            outcome = Outcome.STOPPED
        elif self.seconds_to_limit() <= 0:
            outcome = Outcome.TIMED_OUT
        elif not handler.running():
            outcome = Outcome.STUCK
        else:
            handler._extend_timeout(handler.sqs_timeout)
            return
        self.attempt.stopped_as = outcome
        self.collect()
        # In case the task takes long to stop, or swallows the exception, which is raised on time.
        self.keep_claim(handler.alarm_timeout + self.attempt.wait_seconds)
        if order is not None:
            self.attempt.retry = order.retry
            raise stopped_by(order)
        raise self.stop_as(outcome)

    # -- when things are due -------------------------------------------------------------------------------------

    def seconds_to_limit(self) -> float:
        """Seconds until the hard timeout, or until the claim's 12 hours are nearly over, whichever is earlier."""
        handler = self.handler
        claim_limit = self.attempt.seconds_to_claim_limit(self.clock(), 0.0)
        return min(float(handler.hard_timeout - handler._run_time()), claim_limit)

    def seconds_to_next_alarm(self) -> float:
        """Seconds until something is due for the claim, the limit or the worker's stop, whichever is earliest.

        Never over `alarm_timeout`: running() and the limit are checked even if nothing is due.
        """
        handler, now = self.handler, self.clock()
        # A claim that was just extended is a little older than its answer; still use alarm_timeout, not an odd number.
        just_extended = handler.sqs_timeout - self.claim.left(now) <= self.attempt.wait_seconds
        seconds = handler.alarm_timeout if just_extended else min(handler.alarm_timeout, self.claim.due(now) - now)
        stop = self.attempt.terms.stop_at() - handler._clock()
        soonest = 0.0 if self.stop_order is not None else math.inf
        return max(0.0, float(min(seconds, stop, soonest, self.seconds_to_limit())))
