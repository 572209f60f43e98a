"""One attempt at a task: one receive of one message, from the receive until nothing more is done about the message.

It only holds what every driver needs to know. `settlement` decides what becomes of the message, `watch` what a running
task needs, and a driver carries that out.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._claim.note import Receipt
from sqstaskmaster._claim.report import Report
from sqstaskmaster._claim.stop_order import StopOrder, stopped_by
from sqstaskmaster._sqs import messages
from sqstaskmaster.endings import Continue, Outcome

# The longest that a task is held up by one call of the heartbeat, whatever the user's client allows it: SQS answers in
# milliseconds. A call that takes longer goes on beside the task.
_HEARTBEAT_WAIT_SECONDS = 1.0

# How far before the end of the claim's 12 hours a task is stopped, so that it is gone when the message comes back.
_END_MARGIN_SECONDS = 2.0


def _never() -> float:
    return math.inf


def _at_once() -> int:
    return 0


class Wakeup(Protocol):
    """`fileno()` is readable once something has happened, or somebody called `wake()`, until `clear()`."""

    def fileno(self) -> int: ...

    def clear(self) -> object: ...

    def wake(self) -> None: ...


# A worker's callbacks (`notify`, `on_finish`, `retry_delay`, `running`) are given up after so long.
CALLBACK_SECONDS = 30.0

# A worker that stops waits so long for SQS, and for callbacks.
_LAST_SECONDS = 5.0


class Terms(NamedTuple):
    """What a worker wants of the handlers of its tasks. A loop of the user's wants nothing.

    `queue_url`: given where `notify` and the log are to be told more. `fits` raises where kwargs do not fit the task.
    `around`, `on_finish`: see Worker; `on_finish` is called with the attempt. `stop_at`: when the task is to be stopped
    because the worker stops, inf before that is known; `wakeup` tells that it has changed. `soonest`: in how many
    seconds a message that is given back may be visible: not while the worker's own poll is out, which would bring it.
    """

    queue_url: str | None = None
    fits: Callable[[Mapping[str, Any]], object] | None = None
    stops_on_lost_claim: bool = False
    dead_letter_reasons: bool = False
    around: Callable[..., Any] | None = None
    on_finish: Callable[[Attempt], None] | None = None
    stop_at: Callable[[], float] = _never
    soonest: Callable[[], int] = _at_once
    wakeup: Wakeup | None = None

    def time_is_up(self, began: float, now: float) -> bool:
        """Whether what began then is waited for no longer, because the worker stops. Of the monotonic clock."""
        return now >= max(self.stop_at(), began) + _LAST_SECONDS

    @property
    def of_worker(self) -> bool:
        return self.queue_url is not None

    def is_stopping(self) -> bool:
        """Whether the worker has been told to stop."""
        return self.stop_at() < math.inf


class Attempt:
    """What is known of one attempt. Times are seconds.

    `receipt`: what the receiver noted on the message. `handler`: None until there is one, and for messages that no
    handler takes. `dead_letter`, `most`: for which exceptions no retry helps, and how often the task may continue, None
    where it may not. `stop_reason`, `stopped_as`: why the task was told to stop, and what its outcome is for it.
    `retry`: whether the message of a task that was stopped by order is given back.
    `answer`: the Continue with which it answered that. `lost_told`: `claim_lost` was called. `lost_error`: what it
    raised.
    """

    __slots__ = (
        "message",
        "receipt",
        "claim",
        "report",
        "terms",
        "handler",
        "dead_letter",
        "most",
        "stop_reason",
        "stopped_as",
        "retry",
        "answer",
        "lost_told",
        "lost_error",
    )

    def __init__(self, message: Any, receipt: Receipt, claim: Claim, report: Report, terms: Terms) -> None:
        self.message = message
        self.receipt = receipt
        self.claim = claim
        self.report = report
        self.terms = terms
        self.handler: Any = None
        self.dead_letter: tuple[type[BaseException], ...] = ()
        self.most: int | None = None
        self.stop_reason: BaseException | None = None
        self.stopped_as: Outcome | None = None
        self.retry = False
        self.answer: Continue | None = None
        self.lost_told = False
        self.lost_error: BaseException | None = None

    @property
    def task(self) -> str:
        return self.report.task

    def handle_with(self, handler: Any, dead_letter: tuple[type[BaseException], ...], most: int | None) -> None:
        """From now on this handler has the attempt: its timeouts hold, and it is told of what goes wrong."""
        self.handler, self.dead_letter, self.most = handler, dead_letter, most
        handler._attempt = self
        self.report.limit = handler.hard_timeout
        self.report.notify_with(lambda error, context: handler.notify(error, context=context))
        self.claim.retime(handler.sqs_timeout, handler.alarm_timeout)

    def adopt(self, message: Any, receipt: Receipt, claim: Claim) -> None:
        """The message was received again, by this very worker: from now on by this receipt, with 12 new hours."""
        claim.retime(self.claim.sqs_timeout, self.claim.alarm_timeout)
        self.message, self.receipt, self.claim, self.lost_told = message, receipt, claim, False
        self.report.is_about(message)

    def change_visibility(self, seconds: int) -> None:
        """Set the message's visibility timeout, by one request. Blocking."""
        origin = self.receipt.origin
        if origin is None:
            self.message.change_visibility(VisibilityTimeout=seconds)
        else:
            origin.change_visibility(self.message, seconds)

    # -- while the task runs -------------------------------------------------------------------------------------

    @property
    def wait_seconds(self) -> float:
        """How long one call of a blocking heartbeat is waited for.

        Well inside what is left of the claim at an alarm, and over before the next alarm, with time for the task.
        """
        alarm_timeout = self.claim.alarm_timeout
        return min(_HEARTBEAT_WAIT_SECONDS, alarm_timeout / 4, (self.claim.sqs_timeout - alarm_timeout) / 3)

    def seconds_to_claim_limit(self, now: float, grace: float) -> float:
        """Until the task has to be stopped, for all of it to be gone when the claim's 12 hours end."""
        return self.claim.ends - _END_MARGIN_SECONDS - grace - now

    def stop(self, reason: BaseException, outcome: Outcome | None = None) -> bool:
        """The task is to be stopped, because of that. Whether this is the first reason, which alone counts."""
        if self.stop_reason is not None:
            return False
        self.stop_reason, self.stopped_as = reason, outcome
        return True

    def stop_by(self, order: StopOrder) -> bool:
        """The same, because somebody wants it."""
        first = self.stop(stopped_by(order), Outcome.STOPPED)
        if first:
            self.retry = order.retry
        return first

    def lost_now(self, now: float) -> Exception | None:
        """Why the claim is lost, given once: for `claim_lost`."""
        self.claim.lapsed(now)
        if self.claim.lost is None or self.lost_told:
            return None
        self.lost_told = True
        return self.claim.lost

    @property
    def stops_for_lost_claim(self) -> bool:
        """Whether the claim is lost, and the worker wants its tasks stopped then."""
        return self.terms.stops_on_lost_claim and self.claim.lost is not None

    # -- once it has ended ---------------------------------------------------------------------------------------

    def came_to(self, error: BaseException | None) -> BaseException | None:
        """What a task's end comes to: what it raised, or what it was stopped for. None: it is done."""
        reason = self.stop_reason
        if isinstance(error, Continue) and reason is not None:
            self.answer = error
            return reason
        if reason is None or error is None and not isinstance(reason, Exception):
            return error  # it came to its end within its grace: finished work is not repeated
        return reason

    def end_as(self, outcome: Outcome) -> None:
        self.report.outcome = outcome.value
        if self.handler is not None:
            self.handler.outcome = outcome

    def kwargs_with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The message's kwargs, updated. Raises where they would not fit the task, which would then fail for ever."""
        given = messages.decode(self.message.body)[1]
        kwargs = {**given, **changes}
        if self.terms.fits is not None:
            self.terms.fits(kwargs)
            return kwargs
        signature = inspect.signature(type(self.handler))
        try:
            signature.bind_partial(None, **given)
        except TypeError:
            return kwargs  # whoever made this handler goes by other names than the message does
        signature.bind_partial(None, **kwargs)
        return kwargs
