"""Which queue to poll next, and how long after a failure: decisions only, the caller makes the requests.

Queues are in order of priority: a later one is polled only after an empty poll of each earlier one. With several queues
no poll lasts over a second, so that a message in the first never waits longer behind the others. One poll is under way
at a time; an overdue poll holds back only its own queue, until it has ended.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sqstaskmaster._sqs.answers import code_of, is_failed_poll, remedy_for
from sqstaskmaster.backoff import ExponentialBackoff
from sqstaskmaster.errors import PollRefused

Queue = TypeVar("Queue")
Log = Callable[..., Any]

# Between polls that fail: 1 to 60 seconds.
_BACKOFF = ExponentialBackoff(first=1.0, longest=60.0, uniform=lambda _, longest: random.uniform(1.0, longest))

# With several queues.
_SHARED_WAIT_SECONDS = 1

# A poll unanswered this long after its wait no longer holds back the other queues.
_OVERDUE_SECONDS = 2.0

# A queue that could be polled before, but is refused for this long, is refused for good: changes of rights and keys
# take a while to reach all of AWS.
_REFUSED_SECONDS = 300.0

_WRONG_QUEUE = "correct the object that queue_constructor returns, or the AWS configuration"


class _State(Generic[Queue]):
    """One queue, and the state of its polls."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.failures = 0
        self.told: set[str] = set()
        self.retry_at = -math.inf
        self.polled = False
        self.refused_since = math.inf
        self.refused: PollRefused | None = None
        self.empty = False
        self.holds_until = -math.inf
        self.is_out = False


class Polling(Generic[Queue]):
    """The order of polls over one queue or several.

    `refused`: why no queue can be polled any more: the error of the first queue; None while one can be polled.

    :param queues: in order of priority.
    :param wait_time: seconds that a poll of a single queue waits, 0 to 20.
    :param log: `Logger.log`, or an equivalent that never waits.
    """

    def __init__(self, queues: Sequence[Queue], wait_time: int, log: Log) -> None:
        self._log = log
        self._states = [_State(queue) for queue in queues]
        self._wait_time = wait_time if len(queues) == 1 else min(wait_time, _SHARED_WAIT_SECONDS)
        self._place = 0
        self.refused: PollRefused | None = None

    @property
    def wait_time(self) -> int:
        """Seconds that the next poll waits for a message."""
        return self._wait_time

    @property
    def all_empty(self) -> bool:
        """Whether the last poll of every queue that can be polled brought nothing."""
        return all(state.empty or state.refused is not None for state in self._states)

    @property
    def first_refused(self) -> PollRefused | None:
        """Why the first of the queues that are refused for good cannot be polled."""
        return next((state.refused for state in self._states if state.refused is not None), None)

    @property
    def out(self) -> int:
        """How many polls are under way."""
        return sum(state.is_out for state in self._states)

    def ends_in(self, queue: Queue, now: float) -> float:
        """Seconds until the wait of the queue's poll under way is over; 0 if there is none."""
        state = self._state_of(queue)
        return max(0.0, state.holds_until - _OVERDUE_SECONDS - now) if state.is_out else 0.0

    def busy(self) -> None:
        """Messages may have arrived: the queues are no longer known to be empty."""
        for state in self._states:
            state.empty = False

    def next(self, now: float) -> Queue | None:
        """The queue to poll now; None if there is none."""
        if any(state.is_out and now < state.holds_until for state in self._states):
            return None
        for _ in self._states:
            state = self._states[self._place]
            if state.refused is None and not state.is_out and state.retry_at <= now:
                return state.queue
            self._pass_over()
        return None

    def due(self, now: float) -> float:
        """When `next` may have a queue again after it had none; inf if that depends on the answer to a poll."""
        held = max((state.holds_until for state in self._states if state.is_out), default=-math.inf)
        free = (state.retry_at for state in self._states if state.refused is None and not state.is_out)
        return max(held if held > now else -math.inf, min(free, default=math.inf))

    def sent(self, queue: Queue, now: float) -> None:
        """A poll of the queue is under way."""
        state = self._state_of(queue)
        state.is_out, state.holds_until = True, now + self._wait_time + _OVERDUE_SECONDS

    def ended(self, queue: Queue) -> None:
        """The poll of the queue that was under way is over."""
        self._state_of(queue).is_out = False

    def answered(self, queue: Queue, number: int) -> None:
        """A poll of the queue brought `number` messages."""
        state = self._state_of(queue)
        if state.failures:
            text = "Polling %s again, after %d failures"
            self._log(logging.INFO, text, queue, state.failures, extra={"action": "poll_recovered"})
        state.failures, state.retry_at, state.refused_since = 0, -math.inf, math.inf
        state.told.clear()
        state.polled, state.is_out = True, False
        if number:
            self._place = 0
            self.busy()
        else:
            state.empty = True
            self._pass_over()

    def failed(self, queue: Queue, error: Exception, url: str, now: float) -> None:
        """A poll of the queue failed: it is retried, unless that does not help."""
        state = self._state_of(queue)
        state.is_out = False
        state.failures += 1
        state.retry_at = now + _BACKOFF(error, state.failures)
        code = code_of(error) or type(error).__name__
        remedy = remedy_for(error)
        if remedy is None and not is_failed_poll(error):
            remedy = _WRONG_QUEUE
        if remedy is None:
            state.refused_since = math.inf
        else:
            state.refused_since = min(state.refused_since, now)
            if not state.polled or now >= state.refused_since + _REFUSED_SECONDS:
                state.refused = PollRefused(error, code, remedy, url)
                state.refused.__cause__ = error
                if all(each.refused is not None for each in self._states):
                    self.refused = self._states[0].refused
        # An error that ends the worker is reported at its end.
        if self.refused is None and (code not in state.told or state.refused is not None):
            state.told.add(code)
            self._tell(state, error, code, remedy)
        self._pass_over()

    def _tell(self, state: _State[Queue], error: Exception, code: str, remedy: str | None) -> None:
        facts = {"action": "poll_failed", "code": code}
        # If SQS itself answered, its words are enough.
        trace = None if code_of(error) else error
        if remedy is None:
            text = "Polling fails, trying again: %s: %s"
            self._log(logging.WARNING, text, state.queue, error, extra=facts, exc_info=trace)
        else:
            end = "this queue is no longer polled" if state.refused is not None else "trying again"
            text = "Polling fails, %s: %s: %s: %s"
            self._log(logging.ERROR, text, end, state.queue, error, remedy, extra=facts, exc_info=trace)

    def _pass_over(self) -> None:
        self._place = (self._place + 1) % len(self._states)

    def _state_of(self, queue: Queue) -> _State[Queue]:
        return next(state for state in self._states if state.queue is queue)
