"""Samples of what running tasks use. One call takes all that are due; it reads one or more files per process.

The calls run in a thread, one at a time. After a call that took t, the next waits for 20 t: a twentieth of a core.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

from sqstaskmaster._isolation.usage import Meter
from sqstaskmaster._service.world import MEMORY, Timer, World

_PAUSES = 20.0

# Samples may be taken this early to be taken together.
_EARLY_SECONDS = 0.25


class Sampling:
    """The samples of all tasks of a worker."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._due: list[tuple[float, int, Meter]] = []
        self._numbers = itertools.count()
        self._not_before = -math.inf
        self._is_out = False
        self._timer = Timer(None)
        self._timer_at = math.inf

    def begin(self, meter: Meter) -> None:
        """Sample this task until it has ended."""
        heapq.heappush(self._due, (meter.next_look_at, next(self._numbers), meter))
        self._wake()

    def _wake(self) -> None:
        due = max(self._due[0][0], self._not_before) if self._due and not self._is_out else math.inf
        if due != self._timer_at:
            self._timer.cancel()
            self._timer_at = due
            if due < math.inf:
                self._timer = self._world.at(due, self._sample)

    def _sample(self) -> None:
        self._timer_at = math.inf
        until = self._world.now() + _EARLY_SECONDS
        meters = []
        while self._due and self._due[0][0] <= until:
            meter = heapq.heappop(self._due)[2]
            if not meter.is_over:
                meters.append(meter)
        if meters:
            self._is_out = True
            self._world.call(MEMORY, lambda: self._look(meters), lambda *_: self._looked(meters))
        self._wake()

    def _look(self, meters: Sequence[Meter]) -> None:
        began = self._world.now()
        for meter in meters:
            meter.look(self._world.now())
        now = self._world.now()
        self._not_before = now + _PAUSES * (now - began)

    def _looked(self, meters: Sequence[Meter]) -> None:
        self._is_out = False
        for meter in meters:
            if not meter.is_over:
                heapq.heappush(self._due, (meter.next_look_at, next(self._numbers), meter))
        self._wake()
