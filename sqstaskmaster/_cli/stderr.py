"""Standard error for processes that must be able to stop: a reader that has stopped reading holds up nobody for long.

write(text) --- there is room ------------------------ written
            --- the reader is slow ------------------- waited for, a second at most
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

# So much is sure to fit into a pipe that is ready to be written to.
_SURE_BYTES = 512


class Stderr:
    """Writes whole lines to a descriptor, and waits for its reader a second at most.

    A full pipe blocks whoever writes into it, a signal handler or not. O_NONBLOCK on the descriptor itself would be
    seen by everybody who shares it: a task's `print` would raise. Asking whether there is room, and then writing,
    blocks where another process fills it in between. So a pipe or a terminal is opened once more, through /proc, for
    this process alone; a socket can be asked not to wait with each call. What is left: systems without /proc, where
    another process may come in between.
    """

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._own: int | None = None
        self._rest = b""
        self._lost = 0

    def write(self, text: str) -> None:
        """Write this text and a line end. Nothing is raised: there is nowhere left to say it."""
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
            self._rest = b""  # whoever read it is gone

    def _send(self, data: bytes, patience: float) -> bytes:
        """What could not be written of it within so many seconds."""
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
        """Write what there is room for. Raises BlockingIOError where there is none."""
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
        """A descriptor of this process's own for the same pipe or terminal; None where there is none to be had."""
        if self._own is not None:
            # A task may have closed it, and something else may have its number by now.
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
