"""Standard error for processes that must be able to stop: a stalled reader holds up no writer for long.

write(text) --- there is room ------------------------ written
            --- the reader is slow ------------------- waits, a second at most
            --- it still does not read --------------- lost, and counted; so are the next, without waiting
            --- it reads again ----------------------- first how many lines were lost, then this one
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time

# How long the first line waits for a reader that does not read.
_PATIENCE_SECONDS = 1.0

# A pipe that is ready for writing is sure to have room for this much.
_SURE_BYTES = 512


class Stderr:
    """Writes whole lines to a descriptor, and waits for its reader a second at most.

    A full pipe blocks any writer, even in a signal handler. O_NONBLOCK on the descriptor itself would affect every
    process that shares it: a task's `print` would raise. Checking for room, and then writing, blocks if another
    process fills it in between. So a pipe or a terminal is opened again, through /proc, for this process alone; a
    socket takes a flag with each call not to wait. The gap that remains: systems without /proc, where another process
    may come in between.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._own: int | None = None
        self._rest = b""
        self._lost = 0

    def write(self, text: str) -> None:
        """Write this text and a line end. Never raises: there is nowhere left to report an error."""
        patience = 0.0 if self._lost or self._rest else _PATIENCE_SECONDS
        try:
            self._rest = self._send(self._rest, patience)
            if self._rest:
                self._lost += 1
                return
            line = f"{text}\n".encode(errors="backslashreplace")
            if self._lost:
                line = f"{self._lost} lines are missing here: nobody read them\n".encode() + line
            rest = self._send(line, patience)
            if rest == line:
                self._lost += 1
            else:
                self._lost, self._rest = 0, rest
        except OSError:
            self._rest = b""  # the reader is gone

    def _send(self, data: bytes, patience: float) -> bytes:
        """Write the data; returns what could not be written within `patience` seconds."""
        until = time.monotonic() + patience
        while data:
            try:
                data = data[self._send_now(data) :]
            except BlockingIOError:
                left = until - time.monotonic()
                if left <= 0 or not self._wait(left):
                    break
        return data

    def _wait(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def _send_now(self, data: bytes) -> int:
        """Write what there is room for. Raises BlockingIOError if there is none."""
        found = os.fstat(self._descriptor)
        if stat.S_ISREG(found.st_mode):
            return os.write(self._descriptor, data)
        if stat.S_ISSOCK(found.st_mode):
            shared = socket.socket(fileno=self._descriptor)
            try:
                return shared.send(data, socket.MSG_DONTWAIT)
            finally:
                shared.detach()
        own = self._opened(found)
        if own is not None:
            return os.write(own, data)
        if not select.select([], [self._descriptor], [], 0)[1]:
            raise BlockingIOError(errno.EAGAIN, "no room")
        return os.write(self._descriptor, data[:_SURE_BYTES])

    def _opened(self, found: os.stat_result) -> int | None:
        """This process's own descriptor for the same pipe or terminal; None if it cannot get one."""
        if self._own is not None:
            # A task may have closed it, and its number may be in use for something else.
            try:
                if os.path.samestat(os.fstat(self._own), found):
                    return self._own
            except OSError:
                pass
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            self._own = os.open(f"/proc/self/fd/{self._descriptor}", flags)
        except OSError:
            self._own = None
        return self._own


STDERR = Stderr()
