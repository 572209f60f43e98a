"""Orders to stop a running task (`sqstaskmaster stop`). Each waits in a thread until the task's message is settled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from sqstaskmaster._claim.attempt import Attempt
from sqstaskmaster._claim.report import printable
from sqstaskmaster._claim.stop_order import StopOrder

# How the task ended, to be waited for; None if the worker ended first.
Ended = SimpleQueue[dict[str, Any] | None]


class Stops:
    """The tasks of a worker that can be stopped, and the waiters for the end of each.

    :param order: has the task of an attempt stopped; called in a thread. Returns False if it is too late for that.
    """

    def __init__(self, order: Callable[[Attempt, StopOrder], bool]) -> None:
        self._order = order
        self._lock = threading.Lock()
        self._waiting: dict[Attempt, list[Ended]] = {}

    def __call__(self, order: StopOrder) -> Ended | None:
        """Have a task stopped. Returns its end, to wait for; None if no such task is running."""
        with self._lock:
            for attempt, waiting in self._waiting.items():
                if attempt.report.message_id == order.message_id and self._order(attempt, order):
                    ended: Ended = SimpleQueue()
                    waiting.append(ended)
                    break
            else:
                return None
        reason = f", because: {printable(order.reason)}" if order.reason else ""
        text = "Task %s is stopped by sqstaskmaster stop%s: message %s"
        attempt.report.log(logging.INFO, "stop_ordered", text, printable(attempt.task), reason, order.message_id)
        return ended

    def begin(self, attempt: Attempt) -> None:
        """The attempt's task is running."""
        with self._lock:
            self._waiting[attempt] = []

    def over(self, attempt: Attempt, settled: Attempt) -> None:
        """Nothing more is done about its message. `settled`: the attempt that knows how it ended."""
        with self._lock:
            waiting = self._waiting.pop(attempt, ())
        for ended in waiting:
            ended.put({"outcome": settled.report.outcome, "line": settled.report.finished_line()})

    def end(self) -> None:
        """The worker is ending."""
        with self._lock:
            left = [ended for waiting in self._waiting.values() for ended in waiting]
            self._waiting.clear()
        for ended in left:
            ended.put(None)
