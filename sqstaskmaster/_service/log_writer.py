"""Writes a worker's own log lines in a thread: a reader of the log that stalls holds up nothing but this thread.

logger.info(...) --- filters of the logger ---> a queue ---> its thread: handlers, one line after the other
                                                  +--------- full: the line is lost, and counted
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType

from sqstaskmaster import _logging
from sqstaskmaster._claim import current, owner
from sqstaskmaster._signals import state
from sqstaskmaster._signals.bounded import BoundedCall

logger = _logging.get_logger("sqstaskmaster.worker")

# At most this many lines wait for a stalled reader. Each may hold a traceback, and what its frames hold.
_MOST_LINES = 1000

# At the end of a run, the remaining lines get this long.
_LAST_LINE_SECONDS = 5.0

# A program that could not write them then has this long to end by itself.
_LAST_SECONDS = 5.0


class LogWriter:
    """For a `with` block: this package's loggers hand their records to it, in this process.

    Before `start`, and if the system has no thread for it, they write directly. Records that the task or other user
    code makes with loggers of its own are the user's.
    """

    def __init__(self) -> None:
        # `queue.Queue` would not do in a signal handler, which logs too: this one is reentrant.
        self._lines: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._process = os.getpid()
        self._lost = 0
        self._found: _logging.Writer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LogWriter:
        self._found = _logging.write_by(None)
        return self

    def start(self) -> None:
        """Start the thread. Call it after the last fork that inherits from this process."""
        thread = threading.Thread(target=self._work, name="sqstaskmaster-log", daemon=True)
        with contextlib.suppress(RuntimeError), state.starting_thread():
            thread.start()
            self._thread = thread
            _logging.write_by(self._put)

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.getpid() != self._process:
            return
        _logging.write_by(self._found)
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(_LAST_LINE_SECONDS)
            if self._thread.is_alive():
                atexit.register(_leave_in_any_case, 0 if exception is None else 1)

    def _put(self, write: Callable[[], object]) -> bool:
        """Returns False in a process forked from this one, which has no such thread."""
        if os.getpid() != self._process:
            return False
        if self._lines.qsize() < _MOST_LINES:
            context = current.as_of_now()
            self._lines.put(lambda: context.run(write))
        else:
            self._lost += 1  # without a lock, which a signal handler could not take: one more or less does not matter
        return True

    def _work(self) -> None:
        while True:
            write = self._lines.get()
            lost, self._lost = self._lost, 0
            if lost:
                text = "%d lines are missing here: nobody read the log"
                logger.warning(text, lost, extra={"action": "lines_lost"})
            if write is None:
                return
            write()
            owner.leave_if_forked(self._process)  # a log handler may have forked
            del write  # it would keep an exception's frames alive


def _leave_in_any_case(code: int) -> None:
    """At exit, Python flushes its streams, and would wait for a reader that has gone away: end after a while."""

    def leave() -> None:
        time.sleep(_LAST_SECONDS)
        os._exit(code)

    BoundedCall(leave)
