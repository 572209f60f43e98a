"""The clock of claims: it includes the time that this machine was suspended, since SQS counts it too."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any


def now() -> float:
    """Seconds of CLOCK_BOOTTIME if there is one (Linux), else of the monotonic clock."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


def of(message: Any, clock: Callable[[], float]) -> Callable[[], float]:
    """The clock for the work on a message: the clock itself, but for a message of a test's queue plus the time by which
    the test has moved the queue's clock since the receive."""
    moved = getattr(type(message), "seconds_moved", None)  # on the class: a mock has every attribute
    if moved is None:
        return clock
    return lambda: clock() + moved(message)


class _RealTime:
    """The clock of a queue whose time no test can move. `advanced`: seconds by which a test has moved it."""

    advanced = 0.0

    def attended(self, attendant: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def begin(self, task: object) -> None:
        pass

    def end(self, task: object) -> None:
        pass


def of_queue(queue: Any) -> Any:
    """The object to inform of a queue's running tasks: the clock of a test's queue, which its polls would else move."""
    found = getattr(queue, "clock", None) if hasattr(type(queue), "clock") else None  # on the class, as above
    return found if hasattr(found, "begin") and hasattr(found, "end") else _REAL_TIME


_REAL_TIME = _RealTime()


def of_queues(queues: Iterable[Any]) -> Any:
    """The one clock of all queues whose time a test can move.

    :raises ValueError: if there are several.
    """
    clocks = {each for each in map(of_queue, queues) if each is not _REAL_TIME}
    if len(clocks) > 1:
        raise ValueError(
            "The worker's queues have different clocks, and its tasks live on one: give the first clock to "
            "the others, as in SimulatedQueue(clock=first.clock)"
        )
    return clocks.pop() if clocks else _REAL_TIME
