"""What a task and its worker tell each other, in whole messages: a kind, a length, plain data.

`current` is the channel of the task that runs in this process; None elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
from collections.abc import Callable
from typing import Any

from sqstaskmaster._isolation import plain

#: Precedes each message: its kind, and its length in bytes.
HEADER = struct.Struct("=cI")

STARTED = b"S"  # bytes that were resident when the task began
PROGRESS = b"P"  # a dictionary
DONE = b"D"  # the value that it returned
ERROR = b"E"  # see `carried`
TERMINATED = b"T"  # SIGTERM ended it
EXITED = b"X"  # code, and how
VERDICTS = frozenset((DONE, ERROR, TERMINATED, EXITED))
KINDS = VERDICTS | {STARTED, PROGRESS}


class ChannelMisused(RuntimeError):
    """Progress was reported from a process other than the task's own."""


class Channel:
    """The task's side: whole messages, from any of its threads, but from no other process.

    :param results: the descriptor they are written to.
    :param notice: readable once the worker is stopping.
    :param function: what runs.
    """

    def __init__(self, results: int, notice: int, function: Callable[..., Any]) -> None:
        self.function = function
        self._results = results
        self._notice = select.poll()
        self._notice.register(notice, select.POLLIN)
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._stopping = False

    def is_own(self) -> bool:
        """Whether this is the task's own process, not one that it forked."""
        return os.getpid() == self._owner

    @property
    def stopping(self) -> bool:
        """Whether the worker is stopping, or is stopping the task. Takes a microsecond, and stays true."""
        if not self._stopping:
            self._stopping = any(event & select.POLLIN for _, event in self._notice.poll(0))
        return self._stopping

    def report(self, progress: dict[str, Any]) -> None:
        """Becomes `progress` at the worker. Whatever in it is not plain data arrives as its repr.

        :raises ChannelMisused: in a process other than the task's own.
        """
        if not self.is_own():
            raise ChannelMisused("Progress can be reported by the task's own process only, not by one that it started")
        self.send(PROGRESS, plain.spoken(progress))

    def send(self, kind: bytes, content: bytes) -> None:
        unsent = memoryview(HEADER.pack(kind, len(content)) + content)
        with self._lock:
            while unsent:
                unsent = unsent[os.write(self._results, unsent) :]


current: Channel | None = None


class MessageReader:
    """The worker's side: parses messages from the bytes that come, until some make no sense.

    Those come from a task that writes to a descriptor that is not its own. From then on `spoiled` is true, and bytes
    are still read, lest the task block, but dropped.
    """

    def __init__(self) -> None:
        self.verdict: tuple[bytes, bytes] | None = None
        self.inherited: int | None = None
        self.spoiled = False
        self._bytes = bytearray()
        self._progress: dict[str, Any] = {}
        self._last_progress = self._read_progress = b"{}"

    @property
    def started(self) -> bool:
        return self.inherited is not None

    @property
    def progress(self) -> dict[str, Any]:
        """The last report; parsed only when asked for, since reports may be frequent."""
        content = self._last_progress
        if content is not self._read_progress:
            self._read_progress = content  # any thread may ask while the next report comes in
            with contextlib.suppress(ValueError):
                progress = plain.load(content)
                # A report that was too large arrives as text.
                self._progress = progress if isinstance(progress, dict) else {"progress": progress}
        return self._progress

    def feed(self, content: bytes) -> None:
        if self.spoiled:
            return
        self._bytes += content
        at = 0
        while len(self._bytes) - at >= HEADER.size:
            kind, length = HEADER.unpack_from(self._bytes, at)
            if kind not in KINDS or length > plain.MAX_BYTES:
                self.spoiled = True
                self._bytes.clear()
                return
            end = at + HEADER.size + length
            if len(self._bytes) < end:
                break
            self._take(kind, bytes(self._bytes[at + HEADER.size : end]))
            at = end
        del self._bytes[:at]

    def _take(self, kind: bytes, content: bytes) -> None:
        if kind == STARTED:
            self.inherited = int(content) if content.isdigit() else 0
        elif kind == PROGRESS:
            self._last_progress = content
        elif self.verdict is None:
            self.verdict = (kind, content)
