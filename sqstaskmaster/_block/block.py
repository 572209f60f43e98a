"""What the drivers of a `with` block share: the attempt, its extensions, and how it is settled."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from sqstaskmaster._block.requests import Extensions
from sqstaskmaster._block.settling import Settling
from sqstaskmaster._claim import forwarding, note, owner
from sqstaskmaster._claim.attempt import Attempt, Terms
from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._claim.report import Report
from sqstaskmaster._claim.settlement import settle
from sqstaskmaster._claim.stop_order import StopOrder
from sqstaskmaster._claim.watch import stop_exception
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster.endings import Continue, Outcome
from sqstaskmaster.errors import NoAnswer, ShutdownRequested


class Block:
    """One `with` block. A handler that is entered again gets another.

    `stop_at_first_alarm`: what to raise in the task as soon as something can be raised. `stop_order`: an order to stop
    the task.

    :param handler: the MessageHandler whose block it is.
    :param terms: what the handler's worker wants.
    :param logger: returns the logger, called each time.
    :param receipt: what the message's receiver noted on it; None if nothing is known.
    """

    def __init__(
        self, handler: Any, terms: Terms, logger: Callable[[], logging.Logger], receipt: note.Receipt | None
    ) -> None:
        self.handler = handler
        self.message = handler._message
        self.clock = handler._claim_clock
        now = self.clock()
        self.receipt = receipt or note.Receipt(now, now, None)
        claim = Claim.of(receipt, handler.sqs_timeout, handler.alarm_timeout, now)
        task = self.receipt.task or type(handler).__name__
        report = Report(self.message, task, handler.notify, logger, handler._clock, terms.queue_url)
        self.attempt = Attempt(self.message, self.receipt, claim, report, terms)
        self.attempt.handle_with(handler, handler.dead_letter, getattr(handler, "max_continuations", None))
        self.extensions = Extensions(self.message, self.attempt.change_visibility, claim, self.clock, report)
        self.stop_at_first_alarm: Exception | None = None
        self.stop_order: StopOrder | None = None
        self.owner: int | None = None
        if claim.lapsed(now) and not terms.of_worker:
            report.log(
                logging.WARNING,
                "claim_lapsed",
                "The claim on %s ended %.1f s before its task began, and is not extended: another worker may be "
                "running it too. Enter the handler within task_generator(sqs_timeout=%s) seconds of the receive, or "
                "raise sqs_timeout there",
                self.message,
                now - claim.latest_end,
                self.receipt.seconds,
            )

    @property
    def claim(self) -> Claim:
        return self.attempt.claim

    @property
    def report(self) -> Report:
        return self.attempt.report

    def begin(self) -> None:
        """Have the claim extended, unless it is fresh."""
        self.owner = os.getpid()
        if self.claim.is_fresh(self.clock()):
            return
        try:
            self.handler._extend_timeout(self.handler.sqs_timeout)
        except Exception as error:
            if error is not self.attempt.lost_error:
                raise
            # claim_lost stops the task, but a `with` block cannot be skipped from here, and an exception out of
            # __enter__ would end the user's loop: so the first alarm raises it, inside the block.
            self.stop_at_first_alarm = error

    def leave_if_forked(self, exception: BaseException | None) -> None:
        """End a child process that was forked in the block and now leaves it: the message is its parent's."""
        if self.owner is not None:
            owner.leave_if_forked(self.owner, exception)

    def conclude(self, exception: Any, nothing_has_run: BaseException | None = None) -> bool:
        """The block is left, because of `exception` if any: settle. True if the exception is swallowed."""
        attempt, exception = self.attempt, forwarding.ungrouped(exception)
        attempt.report.ended_at = self.handler._clock()
        if exception is None and attempt.stopped_as is not None:
            # The task swallowed the exception that stopped it. It cannot be taken for finished.
            exception = stop_exception(attempt.stopped_as, self.report.subject, self.handler._run_time())
        if exception is None:
            # What claim_lost raised in __enter__ counts even if the block ended before an alarm could raise it.
            exception = self.stop_at_first_alarm or nothing_has_run
        with owner.only_in_this_process():  # `notify` and the like are the user's code, and may fork too
            self.extensions.collect()
            settling = Settling(attempt, self.clock, self.extensions, self.handler._extend_timeout)
            settling.carry_out(settle(attempt, exception, self.clock()))
        return isinstance(exception, (Exception, Continue)) or not isinstance(exception, BaseException)

    # -- what stops the task -------------------------------------------------------------------------------------

    def raise_what_stops(self) -> None:
        """Raise what must be raised in the task, whatever it is doing."""
        if self.stop_at_first_alarm is not None:
            error, self.stop_at_first_alarm = self.stop_at_first_alarm, None
            raise error
        if self.handler._clock() >= self.attempt.terms.stop_at():
            raise ShutdownRequested("The worker is stopping, and the task's time to finish is over")

    # -- the claim -----------------------------------------------------------------------------------------------

    def extend(self, seconds: int) -> None:
        """Extend the claim, and wait briefly for the answer; see `MessageHandler._extend_timeout`."""
        self.collect()
        if self.extensions.give_up() and self.claim.lost is None:
            error = NoAnswer(
                f"SQS has not answered the extension of the claim on {self.report.subject}; trying another"
            )
            text = "Claim not extended, the task goes on, message: %s"
            self.report.trouble_apart(self.attempt.wait_seconds, text, error, "extension_failed")
        call = self.extensions.send(seconds)
        if call is not None and self.wait_for(call):
            self.collect()

    def wait_for(self, call: BoundedCall) -> bool:
        return call.wait(self.attempt.wait_seconds)

    def collect(self) -> None:
        """Act on the answers that have come, and on the time that has passed."""
        self.extensions.collect()
        lost = self.attempt.lost_now(self.clock())
        if lost is not None:
            try:
                self.handler.claim_lost(lost)
            except Exception as error:
                self.attempt.lost_error = error
                raise

    def keep_claim(self, seconds: float) -> None:
        """Extend the claim if it would not last that long, without waiting for the answer."""
        if self.claim.left(self.clock()) < seconds:
            self.extensions.send()

    def stop_as(self, outcome: Outcome) -> Exception:
        """What to raise in a task that is to be stopped."""
        self.attempt.stopped_as = outcome
        return stop_exception(outcome, self.report.subject, self.handler._run_time())
