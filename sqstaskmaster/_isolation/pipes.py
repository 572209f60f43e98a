"""The pipes of one task. Each task has its own, so that half a message is never taken for part of the next task's.

worker's end     keeper's end    task's end
results  <-----------------------  results     whole messages: started, progress, verdict (see `channel`)
stack    <-----------------------  stack       what faulthandler writes
news     <-----  news                          lines: started, ended, failed (see `keeper`)
lifeline ----->  lifeline                      orders: numbers of signals for the task, a byte each; its end: kill
notice   ----------------------->  notice      readable: the worker is stopping
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows: a producer may import the module with the tasks, but calls nothing here
    pass

# Tasks that close "all" descriptors usually close those below this one.
_OUT_OF_REACH = 512

# The worker's ends. No keeper may inherit them: that would keep lifelines from ending.
_own_ends: set[int] = set()

# The tasks' standard input. They must not read from the terminal, unless a task is run by hand.
standard_input = os.devnull


class Ends(NamedTuple):
    """Five descriptors: the worker's, or those of the processes below it."""

    results: int
    stack: int
    news: int
    lifeline: int
    notice: int


def reserve_standard() -> None:
    """Make sure descriptors 0, 1 and 2 are open, lest the next file opened be taken for standard output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def open_nothing() -> int:
    """A descriptor for the tasks' standard input; not itself one of the standard three, as it is closed again."""
    reserve_standard()
    return os.open(standard_input, os.O_RDWR | os.O_NOCTTY)


def open_pipes() -> tuple[Ends, Ends]:
    """The worker's ends, which do not block, and the others.

    :raises OSError: if no descriptors are left; none stays open then.
    """
    reserve_standard()
    opened: list[tuple[int, int]] = []
    try:
        for _ in Ends._fields:
            opened.append(os.pipe())
    except OSError:
        close(*(end for pair in opened for end in pair))
        raise
    (results, to_results), (stack, to_stack), (news, to_news), (lifeline, to_lifeline), (notice, to_notice) = opened
    ours = Ends(results, stack, news, to_lifeline, to_notice)
    _own_ends.update(ours)
    for end in ours:
        os.set_blocking(end, False)
    return ours, Ends(to_results, to_stack, to_news, lifeline, notice)


def keep_from_children(*descriptors: int) -> None:
    """Have `close_own_ends` close these too."""
    _own_ends.update(descriptors)


def leave_to_children(*descriptors: int) -> None:
    """Undo `keep_from_children`: these are about to be closed, and their numbers reused."""
    _own_ends.difference_update(descriptors)


def close(*descriptors: int) -> None:
    """Close those that are open."""
    for descriptor in descriptors:
        _own_ends.discard(descriptor)
        with contextlib.suppress(OSError):
            os.close(descriptor)


def hang_up(connection: socket.socket) -> None:
    """Close this end, so that the other sees the end of file even if another process has inherited this one."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    close(connection.detach())


def close_own_ends() -> None:
    """In a process that the worker has forked: close the worker's ends, including those of other tasks."""
    close(*list(_own_ends))


def is_readable(descriptor: int) -> bool:
    """Whether there is something to read. Not by select(), which takes no descriptor above 1023."""
    events = select.poll()
    events.register(descriptor, select.POLLIN)
    return bool(events.poll(0))


def out_of_reach(descriptor: int) -> int:
    """The same open file under a high number, which a task that closes descriptors is unlikely to close."""
    try:
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_REACH)
    except OSError:
        return descriptor  # the number is over this process's limit
    os.close(descriptor)
    return high


def close_all_but(*kept: int) -> None:
    """In a process that is about to exec another program: keep only these and the standard descriptors."""
    # One by one: if the limit is a billion, and the system cannot close ranges, a range takes minutes.
    for descriptor in open_descriptors().difference(kept, range(3)):
        close(descriptor)


def open_descriptors() -> set[int]:
    """This process's open descriptors, and that of the listing itself, which is closed by now."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            found = set(map(int, os.listdir(folder)))
        except OSError:
            continue
        return found
    return set()


def file_with(content: bytes) -> int:
    """A descriptor of a nameless file with this content. Unlike a pipe it takes any length without blocking."""
    try:
        file = os.memfd_create("order", os.MFD_CLOEXEC)
    except (AttributeError, OSError):  # a sandbox may refuse it
        with tempfile.TemporaryFile() as named:
            file = os.dup(named.fileno())
    try:
        unwritten = memoryview(content)
        while unwritten:
            unwritten = unwritten[os.write(file, unwritten) :]
    except BaseException:
        os.close(file)
        raise
    return file


class Open:
    """Descriptors of one owner, written to and closed only while they are open, since their numbers get reused.

    Safe from any thread: a stack may be requested while the owner's loop closes what it has read to the end.
    `before_close` is called with each descriptor before it is closed.
    """

    def __init__(self, descriptors: Iterable[int]) -> None:
        self.before_close: Callable[[int], None] | None = None
        self._descriptors = set(descriptors)
        self._lock = threading.RLock()

    def write(self, descriptor: int, number: int) -> None:
        """Write a byte, if anybody is there to read it."""
        with self._lock:
            if descriptor in self._descriptors:
                with contextlib.suppress(OSError):  # nobody is there, or it is full of unread orders
                    os.write(descriptor, bytes([number]))

    def close(self, descriptor: int) -> None:
        with self._lock:
            if descriptor in self._descriptors:
                self._descriptors.discard(descriptor)
                if self.before_close is not None:
                    self.before_close(descriptor)
                close(descriptor)

    def close_all(self) -> None:
        for descriptor in list(self._descriptors):
            self.close(descriptor)
