"""How many threads are worth having for requests that are partly computing, partly waiting.

Computing takes turns (Python's global lock): a second thread that computes gains nothing and costs about a quarter more
processor time in switching. Waiting does not: at 15 ms to the region eight threads are eight times as fast. So the
first thread is watched, and others are added while the processor is idle.
"""

from __future__ import annotations

import math

# One thread that computes for half its time leaves too little to gain for what a second one costs.
_BUSY_ALONE = 0.5
# With several there is something to gain up to here.
_BUSY = 0.8
# The first request also makes the connection, and loads what botocore needs; then so many are looked at together.
_REQUESTS_PER_LOOK = 2


class Concurrency:
    """Add up what requests took, and say how many threads that is worth, up to `most`. Times in seconds."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = -1
        self._wall = 0.0
        self._computing = 0.0

    def wanted(self, threads: int, wall: float, computing: float) -> int:
        """How many threads to have where there are `threads`, after one more request that took so long in one."""
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
