"""The claim on one message as a state machine: no input, no output, no clock of its own.

        received ---> HELD  <------ extended ------+
                       | due, begin_extension      |
                       v                           |
                    ASKED, once or several times --+-- failed, unanswered: another is due soon
                       |
                       +--- SQS says that it is gone, or `latest_end` is past ---> LOST: nothing is extended any more
                       +--- it reaches to `ends` -------------------------------> FINAL: nothing more to be had

The driver asks what is `due`, does it, and reports the answer. Every `now` is in seconds of one clock, the same for all
calls. Not thread-safe: one thread drives a claim.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

from sqstaskmaster._claim.note import Receipt
from sqstaskmaster._sqs.answers import is_beyond_total, is_claim_lost
from sqstaskmaster._sqs.limits import MAX_VISIBILITY_SECONDS
from sqstaskmaster.errors import ClaimLapsed

# A failed extension is retried no sooner than this.
_SOONEST_RETRY_SECONDS = 0.5

# After each failure, this many tries must still fit into what is left of the claim.
_TRIES_LEFT = 4


class Request(NamedTuple):
    """An extension to send: `change_visibility(VisibilityTimeout=seconds)`."""

    seconds: int
    sent_at: float


class _Grant(NamedTuple):
    sent_at: float
    answered_at: float
    seconds: int
    latest_end: float


class Answer(enum.Enum):
    """What the failure of an extension means."""

    RETRY = "the claim is held, another extension is due soon"
    BEYOND_TOTAL = "the claim is held, and cannot be extended any further"
    LOST = "the claim is gone"


class Claim:
    """One receive of one message, and the extensions since.

    `asked_at`: when ReceiveMessage was sent; SQS counts the 12 hours from no earlier. `earliest_end`, `latest_end`: the
    moments between which the visibility timeout runs out unless extended; -inf and inf while unknown. The first is
    counted from sending a request, the second from its answer. `ends`: when no extension can help any more. `lost`:
    why the claim is gone, None while it is held. `task`: the task's name if known. `lapses`: False for a queue that has
    no visibility timeouts.

    :param sqs_timeout: the visibility timeout that each extension asks for, whole seconds.
    :param alarm_timeout: seconds from one extension to the next.
    """

    __slots__ = (
        "asked_at",
        "earliest_end",
        "latest_end",
        "ends",
        "lost",
        "task",
        "lapses",
        "sqs_timeout",
        "alarm_timeout",
        "_extension_due",
        "_grants",
    )

    def __init__(self, sqs_timeout: int, alarm_timeout: float, *, asked_at: float, task: str | None = None) -> None:
        self.sqs_timeout = sqs_timeout
        self.alarm_timeout = alarm_timeout
        self.asked_at = asked_at
        self.task = task
        self.lapses = True
        self.earliest_end = -math.inf
        self.latest_end = math.inf
        self.ends = asked_at + MAX_VISIBILITY_SECONDS
        self.lost: Exception | None = None
        self._extension_due = asked_at
        # The extensions any of which SQS may have carried out last.
        self._grants: list[_Grant] = []

    def received(self, answered_at: float, seconds: int) -> None:
        """The receive was answered, and granted `seconds`."""
        self.earliest_end = self.asked_at + seconds
        self.latest_end = answered_at + seconds
        self._held_since(self.asked_at, seconds)

    @classmethod
    def of(cls, receipt: Receipt | None, sqs_timeout: int, alarm_timeout: float, now: float) -> Claim:
        """The claim that a receipt describes; without a receipt, that of a message received about now."""
        claim = cls(sqs_timeout, alarm_timeout, asked_at=now if receipt is None else receipt.asked_at)
        if receipt is not None:
            claim.task, claim.lapses = receipt.task, receipt.lapses
            if receipt.seconds is not None:
                claim.received(receipt.answered_at, receipt.seconds)
        return claim

    def retime(self, sqs_timeout: int, alarm_timeout: float) -> None:
        """Set how many seconds the next extensions ask for, and how often."""
        self.sqs_timeout, self.alarm_timeout = sqs_timeout, alarm_timeout
        # Count as if an extension by the new timeout had led to this end.
        self._extension_due = min(
            self._extension_due, max(self.asked_at, self.earliest_end - sqs_timeout + alarm_timeout)
        )

    # -- what is to be done --------------------------------------------------------------------------------------

    def due(self, now: float) -> float:
        """When the next thing is due: an extension, or the lapse of the claim if that comes first.

        `now` if it is overdue, inf if nothing is due.
        """
        if self.lost is not None:
            return math.inf
        return max(now, min(self._extension_due, self.latest_end if self.lapses else math.inf))

    def extension_is_due(self, now: float, slack: float = 0.0) -> bool:
        """Whether an extension is due within `slack` seconds, so that it may as well be sent with others now."""
        return self.lost is None and self._extension_due <= now + slack

    def begin_extension(self, now: float, seconds: int | None = None) -> Request | None:
        """The extension to send now, due or not; None if it would gain nothing.

        For `seconds`, or `sqs_timeout`, cut to what is left of the 12 hours. Several may be unanswered at once.
        """
        wanted = self.sqs_timeout if seconds is None else seconds
        allowed = self.cut(wanted, now)
        if self.lapsed(now) or self.lost is not None:
            return None
        if allowed <= 0 or (allowed < wanted and self.is_final()):
            self._extension_due = math.inf
            return None
        self._extension_due = now + self._pause(now)
        return Request(allowed, now)

    # -- what came back ------------------------------------------------------------------------------------------

    def extended(self, request: Request, now: float) -> None:
        """SQS has granted an extension; its answer came at `now`."""
        if self.lost is not None:
            return
        # SQS carried it out while the claim was held, however late the answer was read.
        latest_end = min(now, self.latest_end) + request.seconds
        grants = [*self._grants, _Grant(request.sent_at, now, request.seconds, latest_end)]
        newest = max(grant.sent_at for grant in grants)
        # An extension answered before another was sent is not the last.
        self._grants = [grant for grant in grants if grant.answered_at > newest or grant.sent_at == newest]
        shortest = min(grant.seconds for grant in self._grants)
        self.earliest_end = newest + shortest
        self.latest_end = max(grant.latest_end for grant in self._grants)
        self._held_since(newest, shortest)

    def failed(self, request: Request, error: BaseException, now: float) -> Answer:
        """An extension has failed. Returns what that means. It is retried unless SQS ruled on the claim itself."""
        if self.lost is None and isinstance(error, Exception) and is_claim_lost(error):
            self.lost = error
        if self.lost is not None:
            return Answer.LOST
        if is_beyond_total(error):
            # What is held now is all there will be.
            self.ends = min(self.ends, max(self.earliest_end, now))
            self._extension_due = math.inf
            return Answer.BEYOND_TOTAL
        # Never later than it was already due: this may be the late failure of an earlier request.
        self._extension_due = min(self._extension_due, now + self._pause(now))
        return Answer.RETRY

    def unanswered(self, request: Request, now: float) -> None:
        """Stop waiting for an extension: another is due soon. A late answer still counts."""
        self._extension_due = min(self._extension_due, now + self._pause(now))

    # -- its state -----------------------------------------------------------------------------------------------

    def lapsed(self, now: float) -> bool:
        """Whether the visibility timeout has run out, however late SQS began to count it. The claim is lost then."""
        if self.lost is None and now > self.latest_end and self.lapses:
            self.lost = ClaimLapsed(now - self.latest_end)
        return isinstance(self.lost, ClaimLapsed)

    def let_go(self, now: float) -> None:
        """Treat the claim as lost, lapsed or not: another may have the message."""
        if self.lost is None:
            self.lost = ClaimLapsed(max(0.0, now - self.earliest_end))

    def left(self, now: float) -> float:
        """Seconds for which the claim is held for certain, 0 or more."""
        return max(0.0, self.earliest_end - now) if self.lost is None else 0.0

    def is_fresh(self, now: float) -> bool:
        """Whether it is as good as just extended, less one second for the transfer."""
        return self.left(now) >= self.sqs_timeout - 1

    def cut(self, seconds: int, now: float) -> int:
        """`seconds`, or the whole seconds left of the 12 hours if fewer.

        SQS refuses an extension past the 12 hours rather than shortening it.
        """
        return max(0, min(seconds, int(self.ends - now)))

    def is_final(self) -> bool:
        """Whether the claim already reaches its end, less the second lost to rounding."""
        return self.earliest_end >= self.ends - 1

    def _held_since(self, start: float, seconds: int) -> None:
        """Set when the next extension is due: sooner if the claim is shorter than an extension."""
        due = start + self.alarm_timeout * min(1.0, seconds / self.sqs_timeout)
        nothing_to_be_had = self.is_final() and due + self.sqs_timeout > self.ends
        self._extension_due = math.inf if nothing_to_be_had else due

    def _pause(self, now: float) -> float:
        """Seconds until the next try: so few that several more tries fit into what is left of the claim."""
        left = self.earliest_end - now
        if left <= 0:
            left = self.latest_end - now
        return min(self.alarm_timeout, max(_SOONEST_RETRY_SECONDS, left / _TRIES_LEFT))
