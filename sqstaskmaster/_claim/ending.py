"""What becomes of the message when a handler's block is left. Blocking, for one message.

done                      deleted
continued, dead-lettered  sent on first, deleted second; what cannot be sent on has failed
failed                    comes back when `retry_delay` says, or the claim ends; then it is reported
interrupted               visible at once; then it is reported
claim lost, for a worker  nothing: another worker may be running it
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from sqstaskmaster._claim import forwarding, owner
from sqstaskmaster._claim.block import Block
from sqstaskmaster._claim.deletion import LONGEST_WAIT_SECONDS
from sqstaskmaster._claim.destinations import LAST_RECEIVE, NOT_DEAD_LETTERED, DeadLetterQueues
from sqstaskmaster._claim.report import Report
from sqstaskmaster._claim.requests import change_visibility
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster._sqs.limits import is_number
from sqstaskmaster.endings import Continue, Outcome
from sqstaskmaster.errors import CannotContinue, NoAnswer

# The longest that sending a message on is waited for; its claim is kept meanwhile.
SEND_SECONDS = 30.0

# An extension under way would hide a message again that is given back meanwhile: so long is it waited for.
_EXTENSION_SECONDS = 1.0

RetryDelay = Callable[[BaseException, int], "float | None"]


class Ending:
    """Carries out the one verdict on a block.

    :param ends_as: told the outcome, before whoever reports it looks for it.
    :param extend: has the claim extended for so many seconds.
    :param successor: gives what sends the successor of the message, or raises where it cannot be sent.
    :param retry_delay: see MessageHandler.retry_delay.
    :param without_retry: types of exceptions for which no retry helps.
    """

    def __init__(
        self,
        block: Block,
        ends_as: Callable[[Outcome], None],
        extend: Callable[[int], None],
        successor: Callable[[Continue], Callable[[], Any]],
        retry_delay: RetryDelay,
        without_retry: tuple[type[BaseException], ...],
    ) -> None:
        self._block = block
        self._ends_as = ends_as
        self._extend = extend
        self._successor = successor
        self._retry_delay = retry_delay
        self._without_retry = without_retry

    def carry_out(self, exception: Any) -> bool:
        """`exception` is what ended the block, None where nothing did. True where it is swallowed."""
        block = self._block
        swallowed = isinstance(exception, (Exception, Continue)) or not isinstance(exception, BaseException)
        continuation = exception if isinstance(exception, Continue) else block.answer
        if block.stops_for_lost_claim:
            self._end_as(Outcome.CLAIM_LOST)  # told already
        elif continuation is not None:
            problem = self._send_successor(continuation)
            if problem is None:
                self._delete(Outcome.CONTINUED)
            else:
                self._give_up(Outcome.FAILED if swallowed else Outcome.INTERRUPTED, problem, at_once=not swallowed)
        elif exception is None:
            self._delete(Outcome.DONE)
        elif swallowed and self._is_dead_lettered(exception):
            self._end_as(Outcome.DEAD_LETTERED)
            block.report.failed(exception)
            self._delete(Outcome.DEAD_LETTERED)
        elif swallowed:
            self._give_up(block.stopped_as or Outcome.FAILED, exception, at_once=False)
        else:
            self._give_up(Outcome.INTERRUPTED, exception, at_once=True)
        return swallowed

    def _end_as(self, outcome: Outcome) -> None:
        self._ends_as(outcome)
        self._block.report.outcome = outcome.value

    def _delete(self, outcome: Outcome) -> None:
        self._end_as(outcome)
        self._block.delete(apart=self._block.report.seconds >= self._block.claim.alarm_timeout)

    def _give_up(self, outcome: Outcome, exception: Any, at_once: bool) -> None:
        self._end_as(outcome)
        # Before it is reported: an error service that answers slowly is not what another worker waits for.
        self._return_message(exception, at_once)
        self._block.report.failed(exception)
        if at_once and self._block.report.comes_back_in == 0:
            warn_of_last_receive(self._block.receipt.dead_letters, self._block.message, self._block.report)

    def _return_message(self, exception: Any, at_once: bool) -> None:
        """Have the message come back at once, or when `retry_delay` says: by default when its claim ends.

        Not where the claim was lost: another worker may be running it.
        """
        block = self._block
        delay = 0 if at_once else retry_delay_of(self._retry_delay, exception, block.report)
        if delay is not None:
            block.extensions.wait(_EXTENSION_SECONDS)
            block.extensions.collect()
        # Asked last: `retry_delay` and the wait take their time, and the claim goes on running out.
        if block.claim.lapsed(block.clock()) or block.claim.lost is not None:
            return
        block.report.comes_back_in = block.claim.left(block.clock()) or None
        if delay is not None:
            seconds = block.claim.cut(delay, block.clock())
            if change_visibility(block.message, seconds, block.report):
                block.report.comes_back_in = seconds

    # -- sending on ----------------------------------------------------------------------------------------------

    def _send_successor(self, continuation: Continue) -> CannotContinue | None:
        """None where it was sent; else why not, and the task has failed."""
        error: BaseException | None
        try:
            error = self._send(self._successor(continuation))
        except Exception as refused:
            error = refused
        if error is None or isinstance(error, CannotContinue):
            return error
        task = self._block.report.task
        problem = CannotContinue(f"Task {task!r} cannot continue, its successor was not sent: {error}")
        problem.__cause__ = error
        return problem

    def _is_dead_lettered(self, exception: Any) -> bool:
        """Send it to the dead-letter queue with the reason, where that is due. Whether it was, and has been sent."""
        block = self._block
        receipt, task = block.receipt, block.report.task
        reason: BaseException | None = forwarding.without_retry(exception, self._without_retry)
        if reason is None and receipt.terms.dead_letter_reasons and isinstance(exception, BaseException):
            reason = exception
        if reason is None:
            return False
        error, queues, due = reason, receipt.dead_letters, []

        def send() -> None:
            if queues is None:
                raise CannotContinue("its message was received by no TaskManager, and does not know its queue")
            due.append(queues.send(block.message, task, error, receipt.has_attributes))

        problem = self._send(send)
        if problem is not None and (queues is None or queues.is_news(receipt.queue_url, problem)):
            block.report.log(logging.WARNING, "dead_letter_failed", NOT_DEAD_LETTERED, task, problem)
        return problem is None and due == [True]

    def _send(self, send: Callable[[], Any]) -> BaseException | None:
        """Have it sent, and keep the claim meanwhile. What it raised."""
        block = self._block
        call = BoundedCall(send)
        until = time.monotonic() + SEND_SECONDS
        while True:
            now = block.clock()
            left = until - time.monotonic()
            if call.wait(max(0.0, min(block.claim.due(now) - now, left))):
                return call.error
            if left <= 0:
                return NoAnswer(f"no answer in {SEND_SECONDS:g} s")
            try:
                self._extend(block.claim.sqs_timeout)
            except Exception as error:  # of claim_lost
                block.report.trouble("claim_lost failed for message: %s", error, "claim_lost_failed")


def warn_of_last_receive(queues: DeadLetterQueues | None, message: Any, report: Report) -> None:
    """Warn of a message that was given back on the last receive that its queue's redrive policy allows."""
    if queues is None:
        return

    def warn() -> None:
        if queues.is_last_receive(message):
            report.log(logging.WARNING, "last_receive", LAST_RECEIVE, report.task, report.receive_count, message)

    BoundedCall(warn).wait(LONGEST_WAIT_SECONDS)


def retry_delay_of(retry_delay: RetryDelay, exception: BaseException, report: Report) -> int | None:
    """What `retry_delay` says, in whole seconds. What is wrong with it is told, and counts as None."""
    try:
        with owner.only_in_this_process():
            delay = retry_delay(exception, report.receive_count or 1)
        if delay is not None and (not is_number(delay) or delay < 0):
            raise ValueError(f"retry_delay must give a number of seconds, 0 or more, or None, not {delay!r}")
    except Exception as error:
        text = "No retry delay, the message comes back when its visibility timeout ends: %s"
        report.trouble(text, error, "retry_delay_failed")
        return None
    return None if delay is None else math.ceil(delay)
