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

# Foreign code's alarm that finds a block being left is due again after this long: leaving takes microseconds.
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
        """An alarm has gone off and was discarded: it is due at once."""
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
        # None stands for a handler not installed from Python, which Python cannot put back.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if self.handler is None else self.handler)
        left = 0.0 if self.due == math.inf else max(_SOONEST_SECONDS, self.due - time.monotonic())
        if left:  # it was disarmed already
            signal.setitimer(signal.ITIMER_REAL, left, self.interval)


class Alarm:
    """The process's SIGALRM and real-time timer, borrowed from `borrow` to `give_back`. Main thread only.

    While they are borrowed, the previous owner, an outer Alarm or foreign code, still gets its alarms when they are
    due. `handler` is installed as it is, and must begin by calling `hand_down`.
    """

    _top: Alarm | None = None

    def __init__(self, handler: SignalHandler) -> None:
        self._handler = handler
        self._below: Alarm | _Found | None = None
        self._outer: Alarm | None = None
        self._due = math.inf

    def borrow(self, seconds: float) -> None:
        """Install the handler and arm the timer. If this raises, nothing is armed that was not before."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _ONLY_SIGALRM)
        try:
            self._outer = top = Alarm._top
            # Foreign code may have taken SIGALRM inside an outer Alarm's block: then put its handler back.
            self._below = top if top is not None and top._is_installed() else _Found()
            if signal.SIGALRM in signal.sigpending():
                # Ignoring a pending signal discards it. It was meant for what is below: `arm` makes up for it.
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
            # Use the number as given if it is the earliest: nothing is lost to rounding.
            left = seconds if earliest == self._due else earliest - now
            signal.setitimer(signal.ITIMER_REAL, 0 if left == math.inf else max(_SOONEST_SECONDS, left))
            if Alarm._top.earliest() < earliest:
                Alarm._set_timer()  # another signal's handler ran in between, and armed an alarm of its own

    @staticmethod
    def _set_timer() -> None:
        """Reset the real timer. Unlike `arm`, this changes no alarm's time, which another handler may just have set."""
        while Alarm._top is not None:
            earliest = Alarm._top.earliest()
            left = 0.0 if earliest == math.inf else max(_SOONEST_SECONDS, earliest - time.monotonic())
            signal.setitimer(signal.ITIMER_REAL, left)
            if Alarm._top.earliest() == earliest:
                return

    def hand_down(self, signum: int, frame: FrameType | None, may_raise: bool = True) -> bool:
        """Call what is due below. True if that was all: this alarm itself is not due yet.

        Without `may_raise`, foreign code is postponed instead of called. An outer Alarm is called all the same: its
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
        # If the task has taken SIGALRM for itself, there is no handler of ours to call.
        if main is not None and self._is_installed():
            signal.pthread_kill(main, signal.SIGALRM)

    def give_back(self) -> bool:
        """Disarm; put back the handler and the timer found by `borrow`. False if other code had taken them meanwhile.

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
                # An alarm may have come just before. If Python has seen it, this call runs its handler, so this Alarm
                # stays intact until here; if it is still blocked, this discards it. Delivered later, it could end the
                # process.
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
        """An alarm has gone off and was discarded: nothing to do, as its due time still stands."""

    def fire(self, signum: int, frame: FrameType | None, may_raise: bool) -> None:
        self._handler(signum, frame)

    def resume(self) -> None:
        signal.signal(signal.SIGALRM, self._handler)

    def _step_out(self) -> None:
        """Leave the chain from its middle: this alarm's block ended before one that was entered inside it."""
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
    """The bare timer: stands in for an Alarm in a handler that is called by hand and has borrowed nothing.

    It leaves the timer alone while it is borrowed.
    """

    def arm(self, seconds: float) -> None:
        # `_top` may never have been installed: by a test that patched signal.signal, and never left its block.
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
    """Raise UnsupportedContext if an Alarm cannot be borrowed: no SIGALRM, or not the main thread.

    :param instead: what to do if it has to be another thread.
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
