"""How long to wait before the next try: the one policy, for failed tasks and failed polls."""

from __future__ import annotations

import random
from collections.abc import Callable

from sqstaskmaster._sqs.limits import MAX_VISIBILITY_SECONDS, is_number


class ExponentialBackoff:
    """A random number of seconds between 0 and `first * factor ** (attempt - 1)`, at most `longest` ("full jitter").

    Because they are random, tasks that failed together (a database was down) do not come back together:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    As a handler's retry policy, where the attempt is the message's receive count::

        class Train(ProcessMessageHandler):
            retry_delay = ExponentialBackoff(first=30, longest=3600)

    >>> [ExponentialBackoff(first=30, longest=3600).bound(attempt) for attempt in (1, 2, 3, 10)]
    [30.0, 60.0, 120.0, 3600]

    :param first: the most that the first wait can be, in seconds, over 0.
    :param longest: the most that any wait can be, in seconds, from `first` to 43200 (12 hours).
    :param factor: multiplies the bound from one attempt to the next, 1 or more.
    :param uniform: `uniform(a, b)`, a random number between the two, for tests.
    :raises ValueError: for a number out of its range.
    """

    def __init__(
        self,
        first: float = 10.0,
        longest: float = 900.0,
        factor: float = 2.0,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        if not is_number(first) or first <= 0:
            raise ValueError(f"first must be a number of seconds over 0, not {first!r}")
        if not is_number(longest) or not first <= longest <= MAX_VISIBILITY_SECONDS:
            raise ValueError(
                f"longest must be a number of seconds from first ({first}) to {MAX_VISIBILITY_SECONDS}, not {longest!r}"
            )
        if not is_number(factor) or factor < 1:
            raise ValueError(f"factor must be a number of 1 or more, not {factor!r}")
        self.first = first
        self.longest = longest
        self.factor = factor
        self._uniform = uniform

    def __call__(self, exception: BaseException | None, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt` (1 for the first) has failed."""
        return self._uniform(0.0, self.bound(attempt))

    def bound(self, attempt: int) -> float:
        """The most that `attempt` can wait, in seconds."""
        try:
            return min(self.longest, self.first * self.factor ** max(0, attempt - 1))
        except OverflowError:
            return self.longest

    def __repr__(self) -> str:
        return f"ExponentialBackoff(first={self.first}, longest={self.longest}, factor={self.factor})"
