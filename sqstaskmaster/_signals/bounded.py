"""One call in a thread of its own, so that waiting for it can end before the call does; and loops that end in any case.

Needed round calls to SQS: a client's own bounds (60 s to connect, 60 s to read, up to five tries) are far longer than a
claim can wait, they belong to the user, and they do not cover everything (name resolution, a lock of botocore's that
the interrupted main thread holds, because an alarm landed inside botocore).
"""

from __future__ import annotations

import _thread
import contextvars
import time
from collections.abc import Callable, Iterator
from typing import Any

from sqstaskmaster._signals import state

_running: set[int] = set()


def running() -> frozenset[int]:
    """The threads of calls that have not ended, by their idents: `threading` does not know them."""
    return frozenset(_running)


class BoundedCall:
    """`function()` starts at once in another thread; `wait` waits for it, for so long and no longer.

    After a `wait` that said True, `error` is what the function raised, if anything. A call that is given up goes on
    in its thread, which never keeps the process from ending.

    `_thread` and a bare lock rather than `threading` and its events: this runs in signal handlers, where a lock that
    is not re-entrant and was held by the interrupted code is a deadlock, and `threading.Thread.start` takes such locks.
    """

    __slots__ = ("done", "error", "_running")

    def __init__(self, function: Callable[[], Any]) -> None:
        self.done = False
        self.error: BaseException | None = None
        self._running = _thread.allocate_lock()
        self._running.acquire()
        try:
            with state.starting_thread():
                _thread.start_new_thread(contextvars.copy_context().run, (self._run_apart, function))
        except RuntimeError:
            # No more threads to be had: late is better than never.
            self._run(function)

    def wait(self, seconds: float) -> bool:
        """Whether the call has ended, after waiting at most `seconds` for it."""
        if not self.done and self._running.acquire(timeout=max(0.0, seconds)):
            self._running.release()
        return self.done

    def _run_apart(self, function: Callable[[], Any]) -> None:
        _running.add(_thread.get_ident())
        try:
            self._run(function)
        finally:
            _running.discard(_thread.get_ident())

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:  # handed to whoever waits
            self.error = error
        finally:
            self.done = True
            self._running.release()


def looks(seconds: float, pause: float) -> Iterator[None]:
    """Yield at once and then every `pause` seconds, for so many seconds: a turn of a loop that waits for something.

    Pauses are counted too: a test may have stopped the clock.
    """
    began, waited = time.monotonic(), 0.0
    while True:
        yield
        if max(waited, time.monotonic() - began) >= seconds:
            return
        time.sleep(pause)
        waited += pause
