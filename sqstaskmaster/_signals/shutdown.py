"""The request to stop: its signals are recorded, and wake whatever waits. Nothing is raised here.

The signals are SIGTERM and SIGINT, and also SIGHUP and SIGQUIT if they would otherwise end the process (a closing
terminal; process 1 of a container that is stopped with them): running tasks are then given back too.

first signal     a running task gets `grace` seconds: `stop_at` says when they are over
second signal    they are over now; a poll is abandoned too
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar, cast

from sqstaskmaster._logging import get_logger
from sqstaskmaster._signals import state
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster.errors import ShutdownRequested

logger = get_logger(__name__)

Result = TypeVar("Result")

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_WHERE_FREE = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name))

# After the first signal, a waiting poll looks at the time this often.
_TICK_SECONDS = 1.0


class Shutdown:
    """The signals, borrowed for a `with` block in the main thread. The handlers from before are put back.

    `requested`: whether a signal has come. `stop_at`: when running tasks are to be stopped, inf before the first one.
    `on_signal`: called in the signal handler, with the signal's name and how many have come. `fileno()` is readable
    from a signal until `clear`.

    :param grace: seconds that a running task gets after the first signal.
    """

    def __init__(self, grace: float) -> None:
        self.stop_at = self._requested_at = math.inf
        self.on_signal: Callable[[str, int], Any] = _nothing
        self._grace = grace
        self._names: list[str] = []
        self._unread: list[str] = []
        self._written: list[int] = []
        self._ends = (-1, -1)
        self._found = -1
        free = [number for number in _WHERE_FREE if signal.getsignal(number) is signal.SIG_DFL]
        self._numbers = (*_NUMBERS, *free)
        self._handlers = state.Handlers(self._record, *self._numbers)

    def __enter__(self) -> Shutdown:
        self._ends = os.pipe()
        for end in self._ends:
            os.set_blocking(end, False)
        # The system writes to it at once. Python itself would not run a handler between its last check and a wait.
        self._found = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        self._handlers.install()
        return self

    def __exit__(self, *exception: object) -> None:
        self._handlers.put_back()
        signal.set_wakeup_fd(self._found)
        self._close()

    def _close(self) -> None:
        ends, self._ends = self._ends, (-1, -1)
        for end in ends:
            os.close(end)

    @property
    def requested(self) -> bool:
        return bool(self._names)

    def fileno(self) -> int:
        return self._ends[0]

    def clear(self) -> list[str]:
        """The names of the signals that have come since the last call, in order."""
        with contextlib.suppress(BlockingIOError):
            self._written += [number for number in os.read(self._ends[0], 4096) if number in self._numbers]
        # If two come at once, Python calls the handler only once; the system has written both.
        for number in self._written[len(self._names) :]:
            self._record(number, None)
        names, self._unread = self._unread, []
        return names

    def renew(self) -> None:
        """Take the signals back from a task that ran in this process and took, or blocked, them for itself."""
        signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)  # asyncio.run takes that over, too
        if not self._handlers.are_installed():
            logger.warning(
                "A task took SIGTERM, SIGINT, SIGHUP or SIGQUIT for itself: while it runs, the worker does not "
                "notice a request to stop. Use ProcessMessageHandler for such tasks",
                extra={"action": "signals_taken"},
            )
            self._handlers.install()

    def wait(self, seconds: float) -> None:
        """Wait `seconds`, or less if a signal comes or a call of `poll` gets its answer."""
        if seconds > 0:
            events = select.poll()
            events.register(self._ends[0], select.POLLIN)
            events.poll(None if seconds == math.inf else math.ceil(seconds * 1000))
        self.clear()

    def poll(self, function: Callable[[], Result], last: float = math.inf) -> Result:
        """Call `function` in a thread, and wait for it. The wait ends at the second signal, or `last` seconds after
        the first.

        :raises ShutdownRequested: then; or at once, without calling anything, if a signal has already come.
        """
        if self.requested:
            raise ShutdownRequested("The worker is stopping")
        answers: list[tuple[Result | None, BaseException | None]] = []

        def answer() -> None:
            try:
                answers.append((function(), None))
            except BaseException as error:
                answers.append((None, error))
            self.wake()

        BoundedCall(answer)
        while not answers:
            if len(self._names) > 1 or time.monotonic() >= self._requested_at + last:
                raise ShutdownRequested("The worker is stopping now, and a poll under way is abandoned")
            self.wait(_TICK_SECONDS if self.requested else math.inf)
        result, error = answers[0]
        if error is not None:
            raise error
        return cast(Result, result)

    def wake(self) -> None:
        """End a wait. From any thread."""
        with contextlib.suppress(OSError):  # full, or closed
            os.write(self._ends[1], b"\0")

    def _record(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler: it only records; the code that waits acts."""
        name = signal.Signals(signum).name
        self._names.append(name)
        self._unread.append(name)
        now, grace = time.monotonic(), self._grace if len(self._names) == 1 else 0.0
        self._requested_at, self.stop_at = min(self._requested_at, now), min(self.stop_at, now + grace)
        self.wake()
        self.on_signal(name, len(self._names))


def _nothing(name: str, number: int) -> None:
    pass
