"""How many threads are worthwhile for requests that partly compute, partly wait.

Threads compute in turns (Python's global lock): a second one gains nothing, and costs about a quarter more processor
time in switching. They wait in parallel: at 15 ms to the region eight threads are eight times as fast. So the first
thread is watched, and others are added while the processor is idle.
"""

from __future__ import annotations

import math

# If one thread computes for half its time, a second would cost more than it gains.
_BUSY_ALONE = 0.5
# With several threads, more of them gain something up to here.
_BUSY = 0.8
# The first request also makes the connection, and loads what botocore needs. After it, this many per thread are judged
# together.
_REQUESTS_PER_LOOK = 2


class Concurrency:
    """Adds up what requests took, and says how many threads are worthwhile, up to `most`. Times in seconds."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = -1
        self._wall = 0.0
        self._computing = 0.0

    def wanted(self, threads: int, wall: float, computing: float) -> int:
        """How many threads to have, given that there are `threads`, and that one more request took this long."""
        self._seen += 1
        if self._seen == 0:
            return threads
        self._wall += wall
        self._computing += computing
        if self._seen < _REQUESTS_PER_LOOK * threads:
            return threads
        busy = threads * self._computing / max(self._wall, 1e-9)
        self._seen, self._wall, self._computing = 0, 0.0, 0.0
        if busy > (_BUSY_ALONE if threads == 1 else _BUSY):
            return threads
        return min(self._most, max(2 * threads, math.ceil(threads * _BUSY / max(busy, 1e-9))))
