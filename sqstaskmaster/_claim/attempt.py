"""One attempt at a task: one receive of one message, from the receive until nothing more is done about the message.

It only holds what every driver needs. `settlement` decides what becomes of the message, `watch` what a running task
needs, and a driver carries that out.
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

# The longest that one heartbeat call may hold up a task, whatever the user's client allows: SQS answers in
# milliseconds. A call that takes longer continues beside the task.
_HEARTBEAT_WAIT_SECONDS = 1.0

# A task is stopped this long before the end of the claim's 12 hours, so that it is gone when the message comes back.
_END_MARGIN_SECONDS = 2.0


def _never() -> float:
    return math.inf


def _at_once() -> int:
    return 0


class Wakeup(Protocol):
    """`fileno()` becomes readable when something has happened or `wake()` was called, and stays so until `clear()`."""

    def fileno(self) -> int: ...

    def clear(self) -> object: ...

    def wake(self) -> None: ...


# A worker gives up on a callback (`notify`, `on_finish`, `retry_delay`, `running`) after this long.
CALLBACK_SECONDS = 30.0

# How long a stopping worker waits for SQS and for callbacks.
_LAST_SECONDS = 5.0


class Terms(NamedTuple):
    """What a worker wants of its tasks' handlers. A user's own loop wants nothing.

    `queue_url`: set if `notify` and the log are to get more detail. `fits` raises if kwargs do not fit the task.
    `around`, `on_finish`: see Worker; `on_finish` is called with the attempt. `stop_at`: when the task is to be stopped
    because the worker stops, inf until that is known; `wakeup` signals that it has changed. `soonest`: in how many
    seconds a returned message may become visible: not while the worker's own poll is out, which would receive it.
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
        """Whether the worker is stopping and no longer waits for what began then. Times are monotonic."""
        return now >= max(self.stop_at(), began) + _LAST_SECONDS

    @property
    def of_worker(self) -> bool:
        return self.queue_url is not None

    def is_stopping(self) -> bool:
        """Whether the worker has been asked to stop."""
        return self.stop_at() < math.inf


class Attempt:
    """The state of one attempt. Times are seconds.

    `receipt`: what the receiver noted on the message. `handler`: None until there is one, and for messages that no
    handler takes. `dead_letter`: the exceptions for which no retry helps. `most`: how often the task may continue, None
    if it may not. `stop_reason`, `stopped_as`: why the task was asked to stop, and the outcome that this gives it.
    `retry`: whether the message of a task stopped by order is returned to the queue.
    `answer`: the Continue with which the task answered the stop. `lost_told`: `claim_lost` was called. `lost_error`:
    what it raised.
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
        """From now on this handler has the attempt: its timeouts apply, and it is notified of what goes wrong."""
        self.handler, self.dead_letter, self.most = handler, dead_letter, most
        handler._attempt = self
        self.report.limit = handler.hard_timeout
        self.report.notify_with(lambda error, context: handler.notify(error, context=context))
        self.claim.retime(handler.sqs_timeout, handler.alarm_timeout)

    def adopt(self, message: Any, receipt: Receipt, claim: Claim) -> None:
        """This same worker received the message again: continue under the new receipt, with another 12 hours."""
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
        """How long to wait for one call of a blocking heartbeat.

        Well within what is left of the claim at an alarm, and over before the next alarm, with time for the task.
        """
        alarm_timeout = self.claim.alarm_timeout
        return min(_HEARTBEAT_WAIT_SECONDS, alarm_timeout / 4, (self.claim.sqs_timeout - alarm_timeout) / 3)

    def seconds_to_claim_limit(self, now: float, grace: float) -> float:
        """Seconds until the task must be stopped so that all of it is gone when the claim's 12 hours end."""
        return self.claim.ends - _END_MARGIN_SECONDS - grace - now

    def stop(self, reason: BaseException, outcome: Outcome | None = None) -> bool:
        """Note that the task is to be stopped, and why. Returns whether this is the first reason: only that counts."""
        if self.stop_reason is not None:
            return False
        self.stop_reason, self.stopped_as = reason, outcome
        return True

    def stop_by(self, order: StopOrder) -> bool:
        """The same, because of a stop order."""
        first = self.stop(stopped_by(order), Outcome.STOPPED)
        if first:
            self.retry = order.retry
        return first

    def lost_now(self, now: float) -> Exception | None:
        """Why the claim is lost, for `claim_lost`; returned only once."""
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
        """How the task's end counts: what it raised, or the reason it was stopped. None: it is done."""
        reason = self.stop_reason
        if isinstance(error, Continue) and reason is not None:
            self.answer = error
            return reason
        if reason is None or error is None and not isinstance(reason, Exception):
            return error  # it finished within its grace: finished work is not repeated
        return reason

    def end_as(self, outcome: Outcome) -> None:
        self.report.outcome = outcome.value
        if self.handler is not None:
            self.handler.outcome = outcome

    def kwargs_with(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The message's kwargs, updated. Raises if they would not fit the task, which would then fail for ever."""
        given = messages.decode(self.message.body)[1]
        kwargs = {**given, **changes}
        if self.terms.fits is not None:
            self.terms.fits(kwargs)
            return kwargs
        signature = inspect.signature(type(self.handler))
        try:
            signature.bind_partial(None, **given)
        except TypeError:
            return kwargs  # the code that made this handler uses other names than the message does
        signature.bind_partial(None, **kwargs)
        return kwargs
