"""What one `with` block of a handler has. A handler that is entered again gets another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sqstaskmaster._claim import forwarding, note
from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._claim.report import Report
from sqstaskmaster._claim.requests import Clock, Extensions, delete
from sqstaskmaster._claim.returned import WatchedRun
from sqstaskmaster.endings import Continue, Outcome

# An alarm that finds a block being entered or left may not raise, and asks again this soon; then doubled each time.
_ASK_AGAIN_SECONDS = 0.005


class Block:
    """The claim on one message, its requests, what is said of it, and what was decided about its task so far.

    `stopped_as`: what the task was stopped for, None where it was not. `stop_at_first_alarm`: what is to be raised in
    the task as soon as something can be. `answer`: the Continue with which it answered that it was stopped.
    `lost_is_told`: `claim_lost` was called. `leaving`: from now on no alarm may raise, or arm the timer. `run`: what
    stands in for the handler's `run`, in this process.

    :param name: the task's, where the message's receiver noted none.
    :param notify, logger, queue_url: see Report.
    :param clocks: of the task, and of the claim.
    :param timeouts: `sqs_timeout` and `alarm_timeout`.
    :param receipt: what the message's receiver noted on it, None where nothing is known.
    """

    __slots__ = (
        "message",
        "receipt",
        "claim",
        "clock",
        "report",
        "extensions",
        "stopped_as",
        "stop_at_first_alarm",
        "answer",
        "lost_is_told",
        "leaving",
        "run",
        "_ask_again",
    )

    def __init__(
        self,
        message: Any,
        name: str,
        notify: Callable[..., Any],
        logger: Callable[[], logging.Logger],
        clocks: tuple[Clock, Clock],
        timeouts: tuple[int, float],
        receipt: note.Receipt | None,
        queue_url: str | None,
    ) -> None:
        task_clock, self.clock = clocks
        now = self.clock()
        self.message = message
        self.receipt = receipt or note.Receipt(now, now, None)
        self.claim = Claim(*timeouts, asked_at=self.receipt.asked_at, task=self.receipt.task)
        self.report = Report(message, self.receipt.task or name, notify, logger, task_clock, queue_url)
        self.extensions = Extensions(message, self.claim, self.clock, self.report)
        self.stopped_as: Outcome | None = None
        self.stop_at_first_alarm: Exception | None = None
        self.answer: Continue | None = None
        self.lost_is_told = self.leaving = False
        self.run: WatchedRun | None = None
        self._ask_again = _ASK_AGAIN_SECONDS
        answered_at, seconds = self.receipt.answered_at, self.receipt.seconds
        if seconds is None:
            return
        if now <= answered_at + seconds or self.receipt.terms.stops_on_lost_claim:
            self.claim.received(answered_at, seconds)
        else:
            self.report.log(
                logging.WARNING,
                "claim_lapsed",
                "The claim on %s ended %.1f s before its task began: another worker may be running it too",
                self.message,
                now - answered_at - seconds,
            )

    # -- the task's end ------------------------------------------------------------------------------------------

    @property
    def stops_for_lost_claim(self) -> bool:
        """Whether the claim is lost, and the task's worker wants it stopped then."""
        return self.receipt.terms.stops_on_lost_claim and self.claim.lost is not None

    def raise_what_stops(self) -> None:
        """Raise what is to be raised in the task, once."""
        if self.stop_at_first_alarm is not None:
            error, self.stop_at_first_alarm = self.stop_at_first_alarm, None
            raise error

    def ask_again_in(self, at_most: float) -> float:
        """In how many seconds to look again whether something may be raised."""
        self._ask_again = min(self._ask_again * 2, at_most)
        return self._ask_again

    def body_runs(self) -> None:
        """Something may be raised now."""
        self._ask_again = _ASK_AGAIN_SECONDS

    # -- its requests --------------------------------------------------------------------------------------------

    def collect(self) -> Exception | None:
        """Act on the answers that have come, and on the time that has passed. Why the claim is lost, said once."""
        self.extensions.collect()
        self.claim.lapsed(self.clock())
        if self.claim.lost is None or self.lost_is_told:
            return None
        self.lost_is_told = True
        return self.claim.lost

    def keep_claim(self, seconds: float) -> None:
        """Extend a claim that would not last for so long, without waiting for the answer."""
        if self.claim.left(self.clock()) < seconds:
            self.extensions.send()

    def delete(self, apart: bool) -> None:
        """Delete the message, as `requests.delete` does; where it stays, say when it comes back."""
        if not delete(self.message, self.claim, self.clock, self.report, apart):
            self.report.comes_back_in = self.claim.left(self.clock())

    def finished(self) -> None:
        """Say the one line of a task that has ended."""
        if self.report.is_said(logging.INFO):
            self.report.continuation = forwarding.chain_of(self.message).number or None
            self.report.finished()
