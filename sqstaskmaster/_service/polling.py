"""Which queue is polled next, and how long after a failure: decisions only, whoever asks makes the requests.

Queues are in order of priority: a later one is polled only after an empty poll of each earlier one. No poll lasts over
a second while several queues are waited for, so that a message in the first never waits longer behind the others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sqstaskmaster._sqs.answers import code_of, remedy_for
from sqstaskmaster.backoff import ExponentialBackoff

Queue = TypeVar("Queue")
Log = Callable[..., Any]

# Between polls that fail.
_BACKOFF = ExponentialBackoff(first=1.0, longest=60.0)

# Where several queues are waited for.
_SHARED_WAIT_SECONDS = 1


class Failing(Generic[Queue]):
    """One queue, and how its polls go."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.failures = 0
        self.last_code = ""
        self.retry_at = -math.inf
        self.empty = False


class Polling(Generic[Queue]):
    """The order of polls over one queue or several.

    :param queues: in order of priority.
    :param wait_time: seconds that a poll of a single queue waits, 0 to 20.
    :param log: `Logger.log`, or what does the same without ever waiting.
    """

    def __init__(self, queues: Sequence[Queue], wait_time: int, log: Log) -> None:
        self._log = log
        self._states = [Failing(queue) for queue in queues]
        self._wait_time = wait_time if len(queues) == 1 else min(wait_time, _SHARED_WAIT_SECONDS)
        self._place = 0

    @property
    def wait_time(self) -> int:
        """Seconds that the next poll waits for a message."""
        return self._wait_time

    @property
    def all_empty(self) -> bool:
        """Whether the last poll of every queue brought nothing."""
        return all(state.empty for state in self._states)

    def busy(self) -> None:
        """Something may have come since: the queues are no longer known to be empty."""
        for state in self._states:
            state.empty = False

    def next(self, now: float) -> Queue | None:
        """The queue to poll now; None while all of them wait for their next try."""
        for _ in self._states:
            state = self._states[self._place]
            if state.retry_at <= now:
                return state.queue
            self._pass_over()
        return None

    def due(self) -> float:
        """When `next` has a queue again, where it had none."""
        return min(state.retry_at for state in self._states)

    def answered(self, queue: Queue, number: int) -> None:
        """A poll of the queue brought so many messages."""
        state = self._state_of(queue)
        if state.failures:
            text = "Polling %s again, after %d failures"
            self._log(logging.INFO, text, queue, state.failures, extra={"action": "poll_recovered"})
        state.failures, state.last_code, state.retry_at = 0, "", -math.inf
        if number:
            self._place = 0
            self.busy()
        else:
            state.empty = True
            self._pass_over()

    def failed(self, queue: Queue, error: Exception, now: float) -> str | None:
        """A poll of the queue failed. Gives what to do about it where trying again does not help."""
        state = self._state_of(queue)
        state.failures += 1
        state.retry_at = now + _BACKOFF(error, state.failures)
        code = code_of(error) or type(error).__name__
        remedy = remedy_for(error)
        # A single queue that cannot be polled ends the worker, which says why.
        if code != state.last_code and (remedy is None or len(self._states) > 1):
            facts = {"action": "poll_failed", "code": code}
            if remedy is None:
                self._log(logging.WARNING, "Polling fails, trying again: %s: %s", queue, error, extra=facts)
            else:
                self._log(logging.ERROR, "Polling fails: %s: %s: %s", queue, error, remedy, extra=facts)
        state.last_code = code
        self._pass_over()
        return remedy

    def _pass_over(self) -> None:
        self._place = (self._place + 1) % len(self._states)

    def _state_of(self, queue: Queue) -> Failing[Queue]:
        return next(state for state in self._states if state.queue is queue)
