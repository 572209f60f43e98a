"""The request to stop: SIGTERM and SIGINT are recorded, and what runs is told at a point where it can be.

    first signal     recorded; whoever waits is woken; a task that runs gets `grace` seconds, then ShutdownRequested
    second signal    the same, now; a long poll is abandoned too

The exception is raised in the main thread by the alarm that is armed for it, and only inside `interruptible`: never
between two steps of the worker, never while a message is deleted.
"""

from __future__ import annotations

import _thread
import logging
import math
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from sqstaskmaster._signals import alarm, state
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster.errors import ShutdownRequested

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
StopsAt = Callable[["FrameType | None"], bool]

# At a point where nothing may be raised, the alarm asks again this soon.
_ASK_AGAIN_SECONDS = 0.01


class Shutdown:
    """SIGTERM and SIGINT, borrowed for a `with` block in the main thread. What was there before is put back.

    :param grace: seconds that a running task gets after the first signal.
    :raises UnsupportedContext: on entering outside the main thread, or without SIGALRM.
    """

    def __init__(self, grace: float) -> None:
        self.requested = False
        self._now = False
        self._grace = grace
        self._due = math.inf
        self._bell = _thread.allocate_lock()
        self._bell.acquire()
        self._stops_at: StopsAt | None = None
        self._raise_again: float | None = None
        self._patient = False
        self._poll_seconds = 0.0
        self._alarm = alarm.Alarm(self._on_alarm)
        self._handlers = state.Handlers(self._record, signal.SIGTERM, signal.SIGINT)

    def __enter__(self) -> Shutdown:
        alarm.require_alarm(
            "A worker",
            "run it there and what else you have in threads, or run it as 'sqstaskmaster worker MODULE:WORKER'",
        )
        self._alarm.borrow(math.inf)
        try:
            self._handlers.install()
        except BaseException:
            self._alarm.give_back()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._handlers.put_back()
        self._alarm.give_back()

    def renew(self) -> None:
        """Take the signals again from a task that ran in this process and took, or blocked, them for itself."""
        if not self._handlers.are_installed():
            logger.warning(
                "A task took SIGTERM or SIGINT for itself: a worker that is told to stop while it runs does not "
                "notice. Use ProcessMessageHandler for such tasks",
                extra={"action": "signals_taken"},
            )
            self._handlers.install()

    def wait(self, seconds: float) -> None:
        """Let `seconds` pass, or less: until a stop is requested."""
        if not self.requested:
            self._bell.acquire(timeout=seconds)

    def poll(self, function: Callable[[], Result], seconds: float = 20) -> Result:
        """Call `function`, which only the second signal interrupts.

        :param seconds: it takes at most about so long; told to whoever asks for a stop meanwhile.
        :raises ShutdownRequested: by the second signal, or, before anything is called, after the first.
        """
        self._patient, self._poll_seconds = True, seconds
        try:
            return self.interruptible(function)
        finally:
            self._patient = False

    def interruptible(
        self, function: Callable[[], Result], stops_at: StopsAt | None = None, raise_again: float | None = None
    ) -> Result:
        """Call `function`, and raise ShutdownRequested in it when its grace is over.

        :param stops_at: whether it can be raised at a frame inside the function; None: at any.
        :param raise_again: after so many seconds it is raised once more where the function goes on; None: only by the
            next signal.
        :raises ShutdownRequested: also where a stop is requested already; the function is not called then.
        """
        try:
            self._stops_at, self._raise_again = stops_at or _anywhere, raise_again
            if self.requested:
                raise ShutdownRequested("The worker is stopping")
            return function()
        finally:
            self._stops_at = None

    # -- in signal handlers --------------------------------------------------------------------------------------

    def _record(self, signum: int, frame: FrameType | None) -> None:
        self._now = self.requested
        self.requested = True
        self._due = time.monotonic() + (0.0 if self._now else self._grace)
        if self._bell.locked():
            self._bell.release()
        self._alarm.arm(self._due - time.monotonic())
        if self._now:
            what = "stopping now"
        elif self._patient:
            what = f"taking no more work; waiting for the poll under way (up to {self._poll_seconds:g} s)"
        else:
            what = f"taking no more work; a running task gets {self._grace:g} seconds"
        if not self._now:
            what += "; a second signal means now"
        # In a thread: the main thread may be inside a log handler, whose lock is taken.
        BoundedCall(lambda: _tell(signum, what))

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        if self._alarm.hand_down(signum, frame):
            return
        if time.monotonic() < self._due:
            self._alarm.arm(self._due - time.monotonic())
            return
        stops_at = self._stops_at
        if stops_at is None or (self._patient and not self._now):
            self._alarm.arm(math.inf)  # nothing that could be stopped: `interruptible` looks before it calls the next
            return
        if frame is None or frame.f_code is Shutdown.interruptible.__code__ or not stops_at(frame):
            # The function has not begun, or has returned, or is at a point where an exception would do harm.
            self._alarm.arm(_ASK_AGAIN_SECONDS)
            return
        self._due = math.inf if self._raise_again is None else time.monotonic() + self._raise_again
        self._alarm.arm(self._due - time.monotonic())
        raise ShutdownRequested("The worker is stopping, and the task's time to finish is over")


def _anywhere(frame: FrameType | None) -> bool:
    return True


def _tell(signum: int, what: str) -> None:
    name = signal.Signals(signum).name
    logger.info("%s: %s", name, what, extra={"action": "stopping", "signal": name})
