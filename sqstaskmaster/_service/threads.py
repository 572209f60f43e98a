"""Calls in other threads, whose results come back to one loop: nothing that can block runs where claims are held.

loop --- call(function, then) ---> a thread:  result = function()
  ^                                   |
  +-- mailbox: then(result, error) <--+      called in the loop's own thread, at its next turn
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import functools
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from sqstaskmaster._claim import owner
from sqstaskmaster._logging import get_logger
from sqstaskmaster._signals import state

Then = Callable[[Any, "BaseException | None"], None]

logger = get_logger("sqstaskmaster.worker")

# A thread that has been idle for this long ends; one is always kept.
_IDLE_SECONDS = 30.0


class Mailbox:
    """Actions that other threads want done in the loop's thread: `fileno()` is readable while there are any."""

    def __init__(self) -> None:
        self._actions: collections.deque[Callable[[], None]] = collections.deque()
        self._reading, self._writing = os.pipe()
        for end in (self._reading, self._writing):
            os.set_blocking(end, False)

    def fileno(self) -> int:
        return self._reading

    def put(self, action: Callable[[], None]) -> None:
        self._actions.append(action)
        # A full pipe is readable, which is all we want; a closed one belongs to a loop that is over.
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._writing, b"\0")

    def deliver(self) -> None:
        """Do what has been put so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reading, 4096)
        for _ in range(len(self._actions)):
            self._actions.popleft()()

    def close(self) -> None:
        # A thread that answers later must not write to a reused descriptor.
        ends, self._reading, self._writing = (self._reading, self._writing), -1, -1
        for end in ends:
            os.close(end)


class Threads:
    """As many threads as calls under way: a call that hangs holds up no other.

    They are daemons and take no signals; idle ones are reused, since starting a thread costs a fifth of a request.

    :param most: how many calls may be under way at once; further ones wait for one of them to end.

    `wakes`: whether the end of the last call wakes the loop even if that call has no result for it.
    """

    def __init__(self, mailbox: Mailbox, name: str, most: int) -> None:
        self._mailbox = mailbox
        self._name = name
        self._most = most
        self.wakes = False
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Then | None] | None] = queue.SimpleQueue()
        self._lock = _thread.allocate_lock()
        self._threads = 0
        self._process = os.getpid()
        self._unfinished = 0

    def call(self, function: Callable[[], Any], then: Then | None = None) -> None:
        """Have `function()` called in a thread, and then `then(result, error)` in the loop.

        Without `then` the loop is not involved; what the function raises is logged.
        """
        with self._lock:
            self._unfinished += 1
        self._calls.put((function, then))
        self.attend()

    def attend(self) -> bool:
        """Start a thread if one is wanted. Returns False if calls wait and the system has no thread for any of them."""
        with self._lock:
            if self._unfinished <= self._threads or self._threads >= self._most:
                return True
            self._threads += 1
        try:
            with state.starting_thread():
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except RuntimeError:  # the system has no more threads: the existing ones go on
            with self._lock:
                self._threads -= 1
                return self._threads > 0
        return True

    def close(self) -> None:
        """No more calls: each thread ends; a hanging one does when its call returns."""
        with self._lock:
            for _ in range(self._threads):
                self._calls.put(None)

    @property
    def unfinished(self) -> int:
        """How many calls have not returned yet."""
        return self._unfinished

    def _work(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._threads > 1 and self._unfinished < self._threads:
                        self._threads -= 1
                        return
                continue
            if call is None:
                return
            function, then = call
            result, error = None, None
            try:
                result = function()
            except BaseException as raised:  # passed to the caller
                error = raised
            owner.leave_if_forked(self._process, error)
            if then is None and error is not None:
                logger.error("A callback of the worker failed", exc_info=error, extra={"action": "callback_failed"})
            with self._lock:
                self._unfinished -= 1
                last = not self._unfinished
            if then is not None:
                self._mailbox.put(functools.partial(then, result, error))
            elif last and self.wakes:
                self._mailbox.put(_nothing)
            # An idle thread must not keep the last message, or an exception's frames, alive.
            del call, function, then, result, error


def _nothing() -> None:
    pass
