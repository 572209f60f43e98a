"""Whether a task has left its process as it found it: cheap comparisons with the state that the initializer left.

Not detected: globals that the task changed, caches, an allocator's state, what a native library keeps.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import gc
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from sqstaskmaster._isolation import pipes, process_tree
from sqstaskmaster._signals.bounded import looks

try:
    import resource
except ImportError:  # Windows: a producer may import the module with the tasks, but calls nothing here
    pass

# Clients open their connections when they are first used.
_MOST_NEW_SOCKETS = 8

# A thread that has ended stays in the count for a moment.
_THREADS_SECONDS = 0.05
_LOOK_SECONDS = 0.002

# How many descriptors are compared by their target, lowest first: a process with thousands open does not pay for all.
_MOST_COMPARED = 64

_SIGNALS = tuple(sorted(int(number) for number in signal.valid_signals()))
_TIMERS = tuple(number for name, number in sorted(vars(signal).items()) if name.startswith("ITIMER_"))


def new_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    """The threads that `threading` knows, except the caller's and those of `before`."""
    mine = threading.current_thread()
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and thread is not mine and not isinstance(thread, threading._DummyThread)
    ]


class Snapshot:
    """A process as it is now, between two tasks.

    :param ours: this package's descriptors, whose target changes with each task.
    :param max_growth: bytes that it may grow by; None for no limit.
    """

    def __init__(self, ours: Collection[int], max_growth: int | None) -> None:
        self.threads = set(threading.enumerate())
        unknown = _unknown_threads()
        if unknown:
            time.sleep(_LOOK_SECONDS)  # one that has just ended is not noted: a task's thread could get its ident
        self._unknown = unknown & _unknown_threads()
        self._descriptors = {number for number in pipes.open_descriptors() if _target(number)[0]}
        compared = sorted(self._descriptors.difference(ours))[:_MOST_COMPARED]
        self._targets = {number: _target(number) for number in compared}
        self._max_growth = max_growth
        self._resident = process_tree.resident_of_self() if max_growth is not None else 0
        self._comparisons: tuple[tuple[str, Callable[[], Any], Any], ...] = tuple(
            (what, look, look())
            for what, look in (
                ("signal handlers", _handlers),
                ("signal mask", lambda: _signal.pthread_sigmask(signal.SIG_BLOCK, ())),
                ("timers", lambda: [any(_signal.getitimer(timer)) for timer in _TIMERS]),
                ("working directory", _folder),
                ("umask", _umask),
                ("resource limits", _limits),
                ("environment", lambda: dict(os.environ._data)),  # type: ignore[attr-defined]
            )
        )

    def spoiled(self) -> str:
        """What is not as it was, for people; "" if nothing has changed."""
        return "; ".join(self._found())

    def _found(self) -> Iterator[str]:
        yield from self._new_threads()
        for what, look, before in self._comparisons:
            if look() != before:
                yield f"it changed its process's {what}"
        yield from self._changed_descriptors()
        if self._max_growth is not None:
            growth = process_tree.resident_of_self() - self._resident
            if growth > self._max_growth:
                yield f"its process has grown by {growth:,} bytes (max_growth={self._max_growth:,})"

    def _new_threads(self) -> Iterator[str]:
        names: list[str] = []
        for _ in looks(_THREADS_SECONDS, _LOOK_SECONDS):
            named = new_threads(self.threads)
            names = [thread.name for thread in named]
            names += [f"{ident:x}" for ident in _unknown_threads() - self._unknown]
            if not names:
                return
        yield f"it left a thread ({', '.join(names)[:200]})"

    def _changed_descriptors(self) -> Iterator[str]:
        now = pipes.open_descriptors()
        if len(now) > len(self._descriptors) + 1:
            gc.collect()  # garbage may hold descriptors open
            now = pipes.open_descriptors()
        closed = len(self._descriptors - now)
        if closed:
            yield f"it closed {closed} descriptors that it had not opened"
        new = [mode for mode in (_target(number)[0] for number in now - self._descriptors) if mode]
        sockets = sum(map(stat.S_ISSOCK, new))
        if len(new) > sockets or sockets > _MOST_NEW_SOCKETS:
            yield f"it left {len(new)} descriptors open, {sockets} of them sockets"
        for number, before in self._targets.items():
            if number in now and (found := _target(number)) != before:
                # A client may have reconnected.
                if not (stat.S_ISSOCK(before[0]) and stat.S_ISSOCK(found[0])):
                    yield f"its descriptor {number} is open on something else"


def _unknown_threads() -> set[int]:
    """The idents of threads that `threading` does not know, as they were started by lower-level code."""
    return set(sys._current_frames()) - {thread.ident or 0 for thread in threading.enumerate()}


def _handlers() -> list[Any]:
    # Bypasses Python's enums: making them for 64 signals takes longer than some tasks do.
    return [_signal.getsignal(number) for number in _SIGNALS]


def _folder() -> tuple[int, int]:
    found = os.stat(".")
    return found.st_dev, found.st_ino


def _umask() -> int:
    now = os.umask(0o077)  # lest another thread make a world-writable file meanwhile
    os.umask(now)
    return now


def _limits() -> list[tuple[int, int]]:
    found = []
    for number in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found.append(resource.getrlimit(number))
    return found


_LIMITS = (
    ()
    if "resource" not in globals()
    else tuple(number for name, number in sorted(vars(resource).items()) if name.startswith("RLIMIT_"))
)


def _target(descriptor: int) -> tuple[int, int, int]:
    """The descriptor's file type and the file it is open on; zeros if it is closed."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return 0, 0, 0
    return found.st_mode, found.st_dev, found.st_ino
