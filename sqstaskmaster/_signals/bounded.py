"""One call in a thread of its own, so that waiting for it can end before the call does; and loops that always end.

Needed around calls to SQS: a client's own timeouts (60 s to connect, 60 s to read, up to five tries) are far longer
than a claim can wait, they belong to the user, and they do not cover everything (name resolution; a botocore lock that
the main thread holds because an alarm interrupted it inside botocore).
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
    """The idents of the threads whose calls have not ended: `threading` does not know them."""
    return frozenset(_running)


class BoundedCall:
    """`function()` starts at once in another thread; `wait` waits for it, but only for so long.

    After a `wait` that returned True, `error` is what the function raised, if anything. A call that is given up goes on
    in its thread, which never keeps the process from ending.

    It uses `_thread` and a bare lock rather than `threading` and its events, since it runs in signal handlers: there a
    non-reentrant lock that the interrupted code holds is a deadlock, and `threading.Thread.start` takes such locks.
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
            # The system has no more threads: better late than never.
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
        except BaseException as error:  # for the caller that waits
            self.error = error
        finally:
            self.done = True
            self._running.release()


def looks(seconds: float, pause: float) -> Iterator[None]:
    """Yield at once, then every `pause` seconds, for `seconds` in all: the turns of a loop that waits for something.

    Pauses are counted too, as a test may have stopped the clock.
    """
    began, waited = time.monotonic(), 0.0
    while True:
        yield
        if max(waited, time.monotonic() - began) >= seconds:
            return
        time.sleep(pause)
        waited += pause
