"""What a task in a process of its own needs while it runs: no clock, no thread, no process of its own.

limit reached | over max_memory | running() says no, or raises | its claim is lost  ->  Attempt.stop, told to the driver

A driver asks what is due, does it, and passes back the result. `now` is of the monotonic clock, `claim_now` of the
claim's, which also counts the time that the machine was suspended.
"""

from __future__ import annotations

import enum
import math
from typing import NamedTuple

from sqstaskmaster._claim.attempt import Attempt
from sqstaskmaster.endings import Outcome
from sqstaskmaster.errors import HandlerStuck, HardTimeout, MemoryLimitExceeded

# How often the memory of a task with max_memory is measured: a process fills about a gigabyte in this time. If a
# measurement takes long, as with hundreds of processes, it is made less often, so that it costs a twentieth of a core.
_MEASURE_SECONDS = 0.1
_MEASURE_PAUSES = 20.0


class Limits(NamedTuple):
    """What a handler sets for its task, checked and frozen when the task is started. Seconds and bytes."""

    sqs_timeout: int
    alarm_timeout: float
    hard_timeout: float
    term_grace: float
    max_memory: int | None
    start_method: str | None
    dead_letter: tuple[type[BaseException], ...]
    max_continuations: int
    asks_running: bool


class Need(enum.Enum):
    STOP = "its limit is reached: it has been told to `Attempt`"
    ASK = "ask running()"
    MEASURE = "measure its memory"


class Watch:
    """Watches one running task.

    :param began: when its hard timeout began to count.
    """

    __slots__ = ("limits", "began", "_attempt", "_limit_at", "_ask_at", "_measure_at")

    def __init__(self, attempt: Attempt, limits: Limits, began: float, now: float) -> None:
        self.limits = limits
        self.began = began
        self._attempt = attempt
        self._limit_at = began + limits.hard_timeout
        self._ask_at = now + limits.alarm_timeout if limits.asks_running else math.inf
        self._measure_at = math.inf if limits.max_memory is None else now

    def limit_at(self, now: float, claim_now: float) -> float:
        """When the task is to be stopped: at its hard timeout, or before the end of the claim's 12 hours."""
        return min(self._limit_at, now + self._attempt.seconds_to_claim_limit(claim_now, self.limits.term_grace))

    def decision_at(self, now: float, claim_now: float) -> float:
        """When the task is next asked whether it makes progress, or is stopped; inf once it was stopped."""
        if self._attempt.stop_reason is not None:
            return math.inf
        return min(self.limit_at(now, claim_now), self._ask_at)

    def due(self, now: float, claim_now: float) -> float:
        """When the next thing is due; inf once the task was stopped."""
        if self._attempt.stop_reason is not None:
            return math.inf
        return min(self.decision_at(now, claim_now), self._measure_at)

    def next(self, now: float, claim_now: float) -> Need | None:
        """What is due now. It is not due again until its answer is given."""
        if self._attempt.stop_reason is not None:
            return None
        if now >= self.limit_at(now, claim_now):
            self._attempt.stop(stop_exception(Outcome.TIMED_OUT, self._attempt.report.subject, 0.0), Outcome.TIMED_OUT)
            return Need.STOP
        if now >= self._measure_at:
            self._measure_at = math.inf
            return Need.MEASURE
        if now >= self._ask_at:
            self._ask_at = math.inf
            return Need.ASK
        return None

    def running(self, makes_progress: bool, error: BaseException | None, now: float) -> bool:
        """Take in the answer of running(). Returns whether to stop the task for it."""
        self._ask_at = now + self.limits.alarm_timeout
        if error is not None:
            reason = error if isinstance(error, Exception) else HandlerStuck(f"running() raised {error!r}")
            return self._attempt.stop(reason)
        if not makes_progress:
            stuck = stop_exception(Outcome.STUCK, self._attempt.report.subject, now - self.began)
            return self._attempt.stop(stuck, Outcome.STUCK)
        return False

    def measured(self, size: int, seconds: float, now: float) -> bool:
        """Take in its memory, and how long measuring took. Returns whether to stop the task for it."""
        self._measure_at = now + max(_MEASURE_SECONDS, _MEASURE_PAUSES * seconds)
        most = self.limits.max_memory
        if most is not None and size > most:
            return self._attempt.stop(MemoryLimitExceeded(self._attempt.task, size, most))
        return False


def stop_exception(outcome: Outcome, message: object, seconds: float) -> Exception:
    """The exception that stops a task: the texts are the classic library's."""
    if outcome is Outcome.TIMED_OUT:
        return HardTimeout("Hit Hard Timeout for message handler")
    return HandlerStuck(f"Handler is stuck on {message} after {seconds:.1f} seconds")
