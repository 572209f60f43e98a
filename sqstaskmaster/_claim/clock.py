"""The clock of claims: it counts the time that this machine was suspended, since SQS counts it too."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any


def now() -> float:
    """Seconds, of CLOCK_BOOTTIME where there is one (Linux), of the monotonic clock elsewhere."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


def of(message: Any, clock: Callable[[], float]) -> Callable[[], float]:
    """The clock for the work on a message: the clock itself, but for a message of a test's queue, whose time a test can
    move: with what it was moved since the message was received."""
    moved = getattr(type(message), "seconds_moved", None)  # on the class: a mock has whatever it is asked for
    if moved is None:
        return clock
    return lambda: clock() + moved(message)


class _RealTime:
    """The time of a queue that nobody can move. `advanced`: seconds that a test has moved it."""

    advanced = 0.0

    def attended(self, attendant: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def begin(self, task: object) -> None:
        pass

    def end(self, task: object) -> None:
        pass


def of_queue(queue: Any) -> Any:
    """What wants to know which tasks of a queue run: the clock of a test's queue, which its polls move otherwise."""
    found = getattr(queue, "clock", None) if hasattr(type(queue), "clock") else None  # on the class, as above
    return found if hasattr(found, "begin") and hasattr(found, "end") else _REAL_TIME


_REAL_TIME = _RealTime()


def of_queues(queues: Iterable[Any]) -> Any:
    """The clock that all of them have, apart from queues that nobody can move.

    :raises ValueError: where there are several.
    """
    clocks = {each for each in map(of_queue, queues) if each is not _REAL_TIME}
    if len(clocks) > 1:
        raise ValueError(
            "The worker's queues have different clocks, and its tasks live on one: give the first clock to "
            "the others, as in SimulatedQueue(clock=first.clock)"
        )
    return clocks.pop() if clocks else _REAL_TIME
