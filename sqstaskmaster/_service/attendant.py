"""How a loop keeps up with clocks that its timers do not follow.

While this machine is suspended, the clock of claims runs on, and timers stand still. `advance` moves the clock of a
test's queues, from event to event:

advance (a thread of the test's) ---> due_in: waits until the loop has done what was due ---> moves that far
                                         ^                                                       |
                                         +------------------ moved: the loop looks again <-------+
"""

from __future__ import annotations

import collections
import math
import queue
import threading
from collections.abc import Callable, Collection, Sequence

from sqstaskmaster._service.running import Running
from sqstaskmaster._service.source import Source
from sqstaskmaster._service.world import World

# A suspension no longer than this is ignored: it makes timers late by no more.
_SUSPENDED_SECONDS = 0.5

# The test's clock waits at most this long for a request or a task that does not end.
_BUSY_SECONDS = 10.0


class Attendant:
    """Has one loop check again what is due, and tells a test's clock when the loop next has something to do.

    :param running: a live view of the running tasks.
    :param between: whether the task of any message is about to start, or has just ended.
    """

    def __init__(
        self, world: World, sources: Sequence[Source], running: Collection[Running], between: Callable[[], bool]
    ) -> None:
        self._world = world
        self._pools = [pool for source in sources for pool in (source.requests, source.heartbeat.pool)]
        self._sources = sources
        self._running = running
        self._between = between
        self._asked: collections.deque[queue.SimpleQueue[float]] = collections.deque()
        self._thread = threading.get_ident()
        self._is_over = False
        self._behind = world.claim_now() - world.task_now()

    def due_in(self) -> float:
        """Wait until nothing is due or under way. Returns the seconds until a claim or a task next needs something.

        From any thread. It returns inf if nothing will be due, if the wait takes too long, and in the loop's own
        thread, which cannot wait for itself.
        """
        if threading.get_ident() == self._thread:
            return math.inf
        answer: queue.SimpleQueue[float] = queue.SimpleQueue()
        self._asked.append(answer)
        self._world.put(lambda: None)
        if self._is_over:
            self.end()
        try:
            return answer.get(timeout=_BUSY_SECONDS)
        except queue.Empty:
            return math.inf

    def moved(self) -> None:
        """The clock was moved. From any thread."""
        self._world.put(self._look)

    # -- in the loop's thread --------------------------------------------------------------------------------------

    def keep_up(self) -> None:
        """Call this after each turn of the loop, which a claim's heartbeat wakes soon after a suspension."""
        behind = self._world.claim_now() - self._world.task_now()
        if behind > self._behind + _SUSPENDED_SECONDS:
            self._behind = behind
            self._look()
        if self._asked:
            due = self._due_in()
            if due > 0.0:
                self._tell(due)

    def end(self) -> None:
        """Nothing is ever due again."""
        self._is_over = True
        self._tell(math.inf)

    def _tell(self, due: float) -> None:
        while self._asked:
            self._asked.popleft().put(due)

    def _due_in(self) -> float:
        """0 while something is due, or under way."""
        stopping = any(running.attempt.stop_reason is not None for running in self._running)
        if self._between() or stopping or self._world.unfinished(*self._pools):
            return 0.0
        parts: list[Running | Source] = [*self._running, *self._sources]
        return min((part.due_in() for part in parts), default=math.inf)

    def _look(self) -> None:
        for source in self._sources:
            source.heartbeat.look()
        for running in list(self._running):
            running.look()
