"""Signals as something a loop can wait for: the handler only records, the reader acts."""

from __future__ import annotations

import os
import signal
from types import FrameType

from sqstaskmaster._signals import state


class SignalWakeup:
    """In its `with` block the given signals only make `fileno()` readable. Main thread only."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers
        self._handlers = state.Handlers(_do_nothing, *numbers)

    def __enter__(self) -> SignalWakeup:
        self._reading, self._writing = os.pipe()
        for end in (self._reading, self._writing):
            os.set_blocking(end, False)
        # A full pipe already holds each kind of signal many times over.
        self._found = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._handlers.install()
        return self

    def __exit__(self, *exception: object) -> None:
        self._handlers.put_back()
        signal.set_wakeup_fd(self._found)
        os.close(self._reading)
        os.close(self._writing)

    def fileno(self) -> int:
        return self._reading

    def read(self) -> list[int]:
        """The signals that have arrived since the last call, in order. Several of one kind may be merged."""
        try:
            return [number for number in os.read(self._reading, 4096) if number in self._numbers]
        except BlockingIOError:
            return []


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    """Does nothing, but without a Python handler the signal would not reach the wakeup descriptor."""
