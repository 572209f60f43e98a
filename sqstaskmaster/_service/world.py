"""What a worker's loop needs of the world: clocks, descriptors, timers, and calls in other threads.

    loop --- call(pool, function, then) ---> a thread of that pool:  result = function()
      ^                                         |
      +------ turn: then(result, error) <-------+    in the loop's own thread, as are readers and timers

Nothing that can take for ever runs in the loop's thread: requests and user code are calls, and the log has its own
writer. The loop knows nothing else of the world, so that another world can replace it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import selectors
import time
from collections.abc import Callable
from typing import Any

from sqstaskmaster._claim import clock
from sqstaskmaster._logging import get_logger
from sqstaskmaster._service.threads import Mailbox, Then, Threads
from sqstaskmaster._signals.bounded import looks
from sqstaskmaster.errors import NoAnswer

logger = get_logger("sqstaskmaster.worker")

#: Pools of one thread each, which keep the order; and the pool for user code.
EVENTS, MEMORY, SLOTS, CALLBACKS = "events", "memory", "slots", "callbacks"
_THREADS = {EVENTS: 1, MEMORY: 1, SLOTS: 1, CALLBACKS: 64}

# Threads in each pool of a queue (requests, polls, extensions). A hanging call costs one.
_REQUEST_THREADS = 16

# If the system has no thread left, another attempt is made this soon.
_NO_THREAD_SECONDS = 0.1

# How often to look whether a call has returned.
_LOOK_SECONDS = 0.002


class Timer:
    """An action to be done at a certain time, unless it is cancelled."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], Any] | None) -> None:
        self.action = action

    def cancel(self) -> None:
        self.action = None


class World:
    """The real world. Main thread only, except `put`.

    :param queue_clock: that of the worker's queues. If a test advances it, claims and limits move with it.
    """

    def __init__(self, queue_clock: Any) -> None:
        self._queue_clock = queue_clock
        self._selector = selectors.DefaultSelector()
        self._readers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._pools: dict[str, Threads] = {}
        self._mailbox = Mailbox()
        self.add_reader(self._mailbox.fileno(), self._mailbox.deliver)

    # -- clocks --------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds of the clock for timers."""
        return time.monotonic()

    def task_now(self) -> float:
        """Seconds of the clock for limits."""
        return time.monotonic() + float(self._queue_clock.advanced)

    def claim_now(self) -> float:
        """Seconds of the clock for claims: it also counts the time that this machine was suspended."""
        return clock.now() + float(self._queue_clock.advanced)

    # -- what the loop waits for ---------------------------------------------------------------------------------

    def add_reader(self, descriptor: int, reader: Callable[[], None]) -> None:
        """Have `reader()` called when the descriptor is readable."""
        self._readers[descriptor] = reader
        self._selector.register(descriptor, selectors.EVENT_READ)

    def remove_reader(self, descriptor: int) -> None:
        """Undo `add_reader`, before or after the descriptor is closed."""
        if self._readers.pop(descriptor, None) is not None:
            self._selector.unregister(descriptor)

    def at(self, when: float, action: Callable[[], Any]) -> Timer:
        """Have `action()` called at that time, or soon after; never within this call."""
        timer = Timer(action)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def put(self, action: Callable[[], None]) -> None:
        """Have `action()` called in the loop's thread. From any thread, or from a signal handler."""
        self._mailbox.put(action)

    def turn(self, until: float = math.inf) -> None:
        """Wait for whatever comes first, no longer than `until`, and handle it."""
        self._drop_cancelled()
        due = min(until, self._timers[0][0] if self._timers else math.inf)
        if not all([threads.attend() for threads in self._pools.values()]):
            due = min(due, self.now() + _NO_THREAD_SECONDS)
        timeout = None if due == math.inf else max(0.0, due - self.now())
        for key, _ in self._selector.select(timeout):
            reader = self._readers.get(key.fd)
            if reader is not None:  # else an earlier reader of this turn has removed it
                reader()
        now = self.now()
        last = next(self._numbers)  # what an action adds is for the next turn
        while self._timers and self._timers[0][0] <= now and self._timers[0][1] < last:
            timer = heapq.heappop(self._timers)[2]
            action, timer.action = timer.action, None
            if action is not None:
                action()

    def _drop_cancelled(self) -> None:
        while self._timers and self._timers[0][2].action is None:
            heapq.heappop(self._timers)

    # -- calls in other threads ----------------------------------------------------------------------------------

    def call(
        self, pool: str, function: Callable[[], Any], then: Then | None = None, patience: float | None = None
    ) -> None:
        """Have `function()` called in a thread, and then `then(result, error)` in the loop.

        :param pool: the pool of threads: one of the names above, or a queue's.
        :param patience: seconds after which to give up: `then(None, NoAnswer(...))`; a later result is dropped.
        """
        threads = self._pools.get(pool)
        if threads is None:
            most = _THREADS.get(pool, _REQUEST_THREADS)
            threads = self._pools[pool] = Threads(self._mailbox, f"sqstaskmaster-{pool}", most)
        if then is None or patience is None:
            threads.call(function, then)
            return
        told = then
        timer = self.at(self.now() + patience, lambda: told(None, NoAnswer(f"No answer in {patience:g} s")))

        def answered(result: Any, error: BaseException | None) -> None:
            if timer.action is not None:
                timer.cancel()
                told(result, error)

        threads.call(function, answered)

    def log(self, level: int, text: str, *values: Any, **more: Any) -> None:
        """`Logger.log`. In a worker it never waits: see LogWriter."""
        logger.log(level, text, *values, **more)

    def say(self, function: Callable[[], Any]) -> None:
        """Have a function write to the log."""
        try:
            function()
        except Exception as error:
            logger.error("A line of the log cannot be written", exc_info=error)

    def unfinished(self, *pools: str) -> int:
        """How many calls of these pools have not returned yet. From now on the loop is woken when none is left."""
        found = [self._pools[pool] for pool in pools if pool in self._pools]
        for threads in found:
            threads.wakes = True
        return sum(threads.unfinished for threads in found)

    def wait_for(self, pool: str, seconds: float) -> None:
        """At the end: wait until no call of the pool is under way, at most this long."""
        any(not self.unfinished(pool) for _ in looks(seconds, _LOOK_SECONDS))

    def close(self) -> None:
        """No more calls. Hanging threads end when their calls return."""
        for threads in self._pools.values():
            threads.close()
        self._selector.close()
        self._mailbox.close()
