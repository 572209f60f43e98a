"""The process's one SIGALRM and real-time timer, borrowed, shared and put back.

A process has one SIGALRM handler and one ITIMER_REAL. `Alarm` lets several owners share them, one inside the other:

    code that had its own timer      due in 7.0 s   \\
      outer handler                  due in 2.5 s    >   the one real timer: 0.4 s
        inner handler (on top)       due in 0.4 s   /

The real timer is always set to the earliest of them, and the signal handler on top hands down what is due below it.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from sqstaskmaster.errors import UnsupportedContext

SignalHandler = Callable[[int, "FrameType | None"], Any]

# As a plain number: Python's enum computes the hash of a member by running a function, at each use.
_ONLY_SIGALRM = frozenset({int(signal.SIGALRM)}) if hasattr(signal, "SIGALRM") else frozenset()

# setitimer(0) disarms, so nothing that is due may be rounded to it.
_SOONEST_SECONDS = 0.001

# An alarm of foreign code that found a block being left is due again after this: leaving takes microseconds.
_POSTPONED_SECONDS = 0.005


class _Found:
    """The SIGALRM handler and timer that code outside this module had set."""

    def __init__(self) -> None:
        self.handler: Any = signal.getsignal(signal.SIGALRM)
        remaining, self.interval = signal.getitimer(signal.ITIMER_REAL)
        self.due = time.monotonic() + remaining if remaining else math.inf

    def earliest(self) -> float:
        return self.due

    def missed(self) -> None:
        """An alarm has gone off and was discarded: it is due now."""
        if callable(self.handler):
            self.due = time.monotonic()

    def fire(self, signum: int, frame: FrameType | None, may_raise: bool) -> None:
        if not may_raise:
            self.due = time.monotonic() + _POSTPONED_SECONDS
            return
        self.due = time.monotonic() + self.interval if self.interval else math.inf
        if callable(self.handler):
            self.handler(signum, frame)

    def resume(self) -> None:
        # None stands for a handler that was not installed from Python, which Python cannot put back.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if self.handler is None else self.handler)
        left = 0.0 if self.due == math.inf else max(_SOONEST_SECONDS, self.due - time.monotonic())
        if left:  # it was disarmed already
            signal.setitimer(signal.ITIMER_REAL, left, self.interval)


class Alarm:
    """The process's SIGALRM and real-time timer, borrowed from `borrow` to `give_back`. Main thread only.

    While it is borrowed, whoever had them before still gets the alarms that were due: an outer Alarm or foreign code.
    `handler` is installed as it is, and begins by asking `hand_down`.
    """

    _top: Alarm | None = None

    def __init__(self, handler: SignalHandler) -> None:
        self._handler = handler
        self._below: Alarm | _Found | None = None
        self._outer: Alarm | None = None
        self._due = math.inf

    def borrow(self, seconds: float) -> None:
        """Install the handler and arm the timer. Where this raises, nothing is armed that was not before."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _ONLY_SIGALRM)
        try:
            self._outer = top = Alarm._top
            # Foreign code may have taken SIGALRM inside an outer Alarm's block: then its handler is to be put back.
            self._below = top if top is not None and top._is_installed() else _Found()
            if signal.SIGALRM in signal.sigpending():
                # Ignoring a signal discards it: it was for what is below, which is called for it when `arm` says.
                signal.signal(signal.SIGALRM, signal.SIG_IGN)
                self._below.missed()
            signal.signal(signal.SIGALRM, self._handler)
            Alarm._top = self
            self.arm(seconds)
        except BaseException:
            self.give_back()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ONLY_SIGALRM)

    def arm(self, seconds: float) -> None:
        """Have the handler called in `seconds`, once; math.inf disarms. Replaces what was armed before."""
        now = time.monotonic()
        self._due = now + seconds
        if Alarm._top is not None:
            earliest = Alarm._top.earliest()
            # The plain number wherever it is the earliest: nothing is lost to rounding.
            left = seconds if earliest == self._due else earliest - now
            signal.setitimer(signal.ITIMER_REAL, 0 if left == math.inf else max(_SOONEST_SECONDS, left))
            if Alarm._top.earliest() < earliest:
                Alarm._set_timer()  # the handler of another signal ran in between, and armed an alarm of its own

    @staticmethod
    def _set_timer() -> None:
        """Set the real timer anew. Unlike `arm` it changes no alarm's time, which another handler may just have set."""
        while Alarm._top is not None:
            earliest = Alarm._top.earliest()
            left = 0.0 if earliest == math.inf else max(_SOONEST_SECONDS, earliest - time.monotonic())
            signal.setitimer(signal.ITIMER_REAL, left)
            if Alarm._top.earliest() == earliest:
                return

    def hand_down(self, signum: int, frame: FrameType | None, may_raise: bool = True) -> bool:
        """Call what is due below. True where that was all: this alarm itself is not due yet.

        Without `may_raise`, foreign code is not called but postponed. An outer Alarm is called all the same: its
        handler knows when not to raise.
        """
        below = self._below
        now = time.monotonic()
        if below is None or below.earliest() > now:
            return False
        due = self._due <= now
        try:
            below.fire(signum, frame, may_raise)
        finally:
            self._set_timer()
        return not due

    def send(self) -> None:
        """From another thread: have the handler called now, not when the timer ends."""
        main = threading.main_thread().ident
        # Where the task has taken SIGALRM for itself, there is nothing to be sent to.
        if main is not None and self._is_installed():
            signal.pthread_kill(main, signal.SIGALRM)

    def give_back(self) -> bool:
        """Disarm; put back the handler and the timer that were found. False where somebody had taken them meanwhile.

        SIGALRM is left unblocked, whatever the task did to it, so that the alarms below go on.
        """
        below = self._below
        if below is None:
            return True
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ONLY_SIGALRM)
        try:
            undisturbed = signal.SIGALRM not in blocked and self._is_installed() and self._is_armed()
            if Alarm._top is self:
                signal.setitimer(signal.ITIMER_REAL, 0)
                # An alarm may have come just before: this calls its Python handler where Python has seen it, so this
                # Alarm stays whole until here, and discards it where it is still blocked. Delivered below, it could
                # end the process.
                signal.signal(signal.SIGALRM, signal.SIG_IGN)
                below.resume()
                Alarm._top = self._outer
                if isinstance(below, Alarm):
                    self._set_timer()
            else:
                self._step_out()
            self._below = self._outer = None
            self._due = math.inf
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ONLY_SIGALRM)
        return undisturbed

    def earliest(self) -> float:
        return min(self._due, self._below.earliest() if self._below else math.inf)

    def missed(self) -> None:
        """An alarm has gone off and was discarded: what was due is due by its time."""

    def fire(self, signum: int, frame: FrameType | None, may_raise: bool) -> None:
        self._handler(signum, frame)

    def resume(self) -> None:
        signal.signal(signal.SIGALRM, self._handler)

    def _step_out(self) -> None:
        """Leave the chain from its middle: the block of this alarm ended before one that was entered inside it."""
        inner = Alarm._top
        while inner is not None and inner._outer is not self:
            inner = inner._outer
        if inner is not None:
            inner._outer = self._outer
            if inner._below is self:
                inner._below = self._below

    def _is_installed(self) -> bool:
        return signal.getsignal(signal.SIGALRM) == self._handler

    def _is_armed(self) -> bool:
        return signal.getitimer(signal.ITIMER_REAL)[0] > 0 or self.earliest() <= time.monotonic() + _SOONEST_SECONDS


class Unborrowed:
    """In place of an Alarm, for a handler that is called by hand and has borrowed nothing: the bare timer.

    It leaves the timer alone where somebody has borrowed it.
    """

    def arm(self, seconds: float) -> None:
        # What is remembered may never have been installed: by a test that patched signal.signal, and left no block.
        if Alarm._top is None or not Alarm._top._is_installed():
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def hand_down(self, signum: int, frame: FrameType | None, may_raise: bool = True) -> bool:
        return False

    def send(self) -> None:
        pass

    def give_back(self) -> bool:
        self.arm(0)
        return True


def require_alarm(who: str, instead: str) -> None:
    """Raises UnsupportedContext where an Alarm cannot be borrowed: no SIGALRM, or not the main thread.

    :param instead: what can be done where it has to be another thread.
    """
    if not hasattr(signal, "SIGALRM"):
        raise UnsupportedContext(
            f"{who} needs SIGALRM, which this platform does not have: run the worker on Linux or macOS"
        )
    if threading.current_thread() is not threading.main_thread():
        raise UnsupportedContext(
            f"{who} must be entered in the main thread, because Python runs signal handlers only there (this is "
            f"{threading.current_thread().name!r}): {instead}"
        )
