"""Descriptors that one loop waits for, and who reads each."""

from __future__ import annotations

import math
import select
from collections.abc import Callable


class Readers:
    """What a loop waits for. Not by select(), which takes no descriptor from 1024 on."""

    def __init__(self) -> None:
        self._events = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}

    def add(self, descriptor: int, reader: Callable[[], None]) -> None:
        """Have `reader()` called when the descriptor is readable."""
        self._readers[descriptor] = reader
        self._events.register(descriptor, select.POLLIN)

    def remove(self, descriptor: int) -> None:
        """No longer; the descriptor may be closed already."""
        if self._readers.pop(descriptor, None) is not None:
            self._events.unregister(descriptor)

    def wait(self, seconds: float) -> None:
        """Wait for at most so long, and have read what is readable."""
        # Rounded up: a little late is on time, a little early is a turn for nothing.
        limit = None if seconds == math.inf else math.ceil(max(0.0, seconds) * 1000)
        for descriptor, _ in self._events.poll(limit):
            reader = self._readers.get(descriptor)
            if reader is not None:  # else one that was read before it has ended this one
                reader()
