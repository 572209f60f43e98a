"""Borrowing signal state, and putting back what was found. Nothing else here calls signal.signal or setitimer.

A process has one SIGALRM handler and one ITIMER_REAL. `Alarm` lets several owners share them, one inside the other:

    code that had its own timer      due in 7.0 s   \\
      outer handler                  due in 2.5 s    >   the one real timer: 0.4 s
        inner handler (on top)       due in 0.4 s   /

The real timer is always set to the earliest of them, and the signal handler on top hands down what is due below it.
"""

from __future__ import annotations

import contextlib
import dis
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from sqstaskmaster.errors import UnsupportedContext

SignalHandler = Callable[[int, "FrameType | None"], Any]

# setitimer(0) disarms, so nothing that is due may be rounded to it.
_SOONEST_SECONDS = 0.001

# What Python 3.10 executes after the last instruction of a `with` body and before its `__exit__(None, None, None)`.
_BETWEEN_BODY_AND_EXIT = {"POP_BLOCK", "ROT_TWO", "LOAD_CONST", "DUP_TOP"}


class _Found:
    """The SIGALRM handler and timer that code outside this module had set."""

    def __init__(self) -> None:
        self.handler: Any = signal.getsignal(signal.SIGALRM)
        remaining, self.interval = signal.getitimer(signal.ITIMER_REAL)
        self.due = time.monotonic() + remaining if remaining else math.inf

    def earliest(self) -> float:
        return self.due

    def fire(self, signum: int, frame: FrameType | None) -> None:
        self.due = time.monotonic() + self.interval if self.interval else math.inf
        if callable(self.handler):
            self.handler(signum, frame)

    def resume(self) -> None:
        # None stands for a handler that was not installed from Python, which Python cannot put back.
        signal.signal(signal.SIGALRM, signal.SIG_DFL if self.handler is None else self.handler)
        if self.due != math.inf:
            left = max(_SOONEST_SECONDS, self.due - time.monotonic())
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
        self._due = math.inf

    def borrow(self, seconds: float) -> None:
        """Install the handler and arm the timer. Where this raises, nothing is armed that was not before."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        try:
            top = Alarm._top
            # Foreign code may have taken SIGALRM inside an outer Alarm's block: then its handler is to be put back.
            self._below = top if top is not None and top._is_installed() else _Found()
            if signal.SIGALRM in blocked:
                # An earlier task left it blocked, perhaps pending too: ignoring a signal discards it.
                signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, self._handler)
            Alarm._top = self
            self.arm(seconds)
        except BaseException:
            self.give_back()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})

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

    def hand_down(self, signum: int, frame: FrameType | None) -> bool:
        """Call what is due below. True where that was all: this alarm itself is not due yet."""
        below = self._below
        now = time.monotonic()
        if below is None or below.earliest() > now:
            return False
        due = self._due <= now
        try:
            below.fire(signum, frame)
        finally:
            self._set_timer()
        return not due

    def give_back(self) -> bool:
        """Disarm; put back the handler and the timer that were found. False where somebody had taken them meanwhile.

        SIGALRM is left unblocked, whatever the task did to it, so that the alarms below go on.
        """
        below = self._below
        if below is None:
            return True
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        try:
            undisturbed = signal.SIGALRM not in blocked and self._is_installed() and self._is_armed()
            if Alarm._top is self:
                signal.setitimer(signal.ITIMER_REAL, 0)
                # signal.signal runs the Python handler of a signal that has arrived already, so this alarm stays whole
                # until it is done.
                below.resume()
                Alarm._top = below if isinstance(below, Alarm) else None
                if isinstance(below, Alarm):
                    self._set_timer()
            else:
                self._step_out(below)
            self._below, self._due = None, math.inf
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        return undisturbed

    def earliest(self) -> float:
        return min(self._due, self._below.earliest() if self._below else math.inf)

    def fire(self, signum: int, frame: FrameType | None) -> None:
        self._handler(signum, frame)

    def resume(self) -> None:
        signal.signal(signal.SIGALRM, self._handler)

    def _step_out(self, below: Alarm | _Found) -> None:
        """Leave the chain from its middle: the block of this alarm ended before one that was entered inside it."""
        above: Any = Alarm._top
        while isinstance(above, Alarm) and above._below is not self:
            above = above._below
        if isinstance(above, Alarm):
            above._below = below

    def _is_installed(self) -> bool:
        return signal.getsignal(signal.SIGALRM) == self._handler

    def _is_armed(self) -> bool:
        return signal.getitimer(signal.ITIMER_REAL)[0] > 0 or self._due <= time.monotonic() + _SOONEST_SECONDS


def require_alarm(who: str) -> None:
    """Raises UnsupportedContext where an Alarm cannot be borrowed: no SIGALRM, or not the main thread."""
    if not hasattr(signal, "SIGALRM"):
        raise UnsupportedContext(
            f"{who} needs SIGALRM, which this platform does not have: run the worker on Linux or macOS, or use "
            "ProcessMessageHandler, which needs no signal in the worker"
        )
    if threading.current_thread() is not threading.main_thread():
        raise UnsupportedContext(
            f"{who} must be entered in the main thread, because Python runs signal handlers only there (this is "
            f"{threading.current_thread().name!r}): consume in the main thread, or use ProcessMessageHandler, which "
            "needs no signal in the worker"
        )


def block_all() -> None:
    """Keep every signal from being delivered to the calling thread."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def is_leaving(frame: FrameType | None, manager: object) -> bool:
    """Whether `frame`, where a signal landed, has already left the `with` block of `manager`.

    An exception raised there would not reach the block: it would escape, and `__exit__` would never run or be cut off.
    """
    if frame is not None and _is_past_body(frame):
        return True
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__exit__" and code.co_argcount and frame.f_locals.get(code.co_varnames[0]) is manager:
            return True
        frame = frame.f_back
    return False


def _is_past_body(frame: FrameType) -> bool:
    """Whether the frame stands between the end of a `with` body and the call of `__exit__`.

    Python 3.10 runs signal handlers between any two instructions, these included; since 3.11 it does so only at calls,
    starts of functions and jumps back, and there are none in between.
    """
    if sys.version_info >= (3, 11):
        return False
    instructions = list(dis.get_instructions(frame.f_code))
    done = next((i for i, found in enumerate(instructions) if found.offset == frame.f_lasti), None)
    if done is None or instructions[done].opname not in _BETWEEN_BODY_AND_EXIT:
        return False
    rest = [found for found in instructions[done + 1 : done + 6] if found.opname not in _BETWEEN_BODY_AND_EXIT]
    return bool(rest) and (rest[0].opname, rest[0].arg) == ("CALL_FUNCTION", 3)


class Terminated(SystemExit):
    """SIGTERM in a task's process: raised in its main thread, so that `finally` blocks run."""


@contextlib.contextmanager
def all_blocked() -> Iterator[None]:
    """No Python signal handler runs in the block; signals that arrive are handled after it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_afresh() -> None:
    """In a new child process: the signal state of a Python process that has just started, nothing inherited.

    SIGTERM raises Terminated. Called with all signals blocked, lest a handler of the parent's runs here.
    """
    Alarm._top = None
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def ignore_stop_requests() -> None:
    """In a new child process that has to outlast them: a terminal's or a service manager's signals to the group."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated(128 + signum)


class Handlers:
    """One handler for some signals, from `install` to `put_back`, which restores what was found. Main thread only."""

    def __init__(self, handler: SignalHandler, *numbers: int) -> None:
        self._handler = handler
        self._numbers = numbers
        self._found: dict[int, Any] = {}
        self._blocked: set[int] = set()

    def install(self) -> None:
        """Install the handler, and unblock its signals; once more where somebody has taken or blocked them."""
        for number in self._numbers:
            found = signal.signal(number, self._handler)
            self._found.setdefault(number, found)
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        if not self._blocked:
            self._blocked = {number for number in self._numbers if number in blocked}

    def are_installed(self) -> bool:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return all(signal.getsignal(number) == self._handler and number not in blocked for number in self._numbers)

    def put_back(self) -> None:
        for number, found in self._found.items():
            signal.signal(number, signal.SIG_DFL if found is None else found)
        signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)
        self._found, self._blocked = {}, set()
