"""Signal masks and handlers: borrowed and put back, held over a fork, and reset in a new child process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from sqstaskmaster._signals import forks, frames
from sqstaskmaster._signals.alarm import Alarm, SignalHandler


def _numbers(*names: str) -> frozenset[int]:
    """The numbers of those signals that this platform has."""
    return frozenset(int(getattr(signal, name)) for name in names if hasattr(signal, name))


# As plain numbers, and made once: making a set of Python's enum takes longer than a call to SQS may cost here.
_ALL = frozenset(map(int, signal.valid_signals()))

# Without crash signals, whose handlers (faulthandler's) are just as right in a child.
_HOLDABLE = _ALL - _numbers("SIGSEGV", "SIGFPE", "SIGABRT", "SIGILL", "SIGBUS")

# What a terminal or a service manager sends to all processes of a group.
_STOP_REQUESTS = _numbers("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")

# The signals that programs install handlers for. Blocking all signals takes ten times as long.
_HANDLED = _numbers(
    *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGINT", "SIGIO", "SIGPROF", "SIGQUIT", "SIGTERM", "SIGTSTP"),
    *("SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH"),
)


@contextlib.contextmanager
def starting_thread() -> Iterator[None]:
    """A thread that is started in this block takes none of the signals that programs handle, from its first moment.

    A signal that the kernel delivered to it would not wake the main thread from a system call. A thread inherits the
    mask of the one that starts it. Blocking from inside would be too late for an early signal; and if threads are
    greenlets (gevent), it would change the main thread's mask for ever.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Terminated(SystemExit):
    """SIGTERM in a task's process: raised in its main thread, so that `finally` blocks run."""


@contextlib.contextmanager
def held() -> Iterator[frozenset[int]]:
    """In the block no Python signal handler runs, and no request to stop arrives; both are held until it ends.

    Yields the signals that have a handler.
    """
    caught = _caught()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, caught | _STOP_REQUESTS)
    try:
        yield caught
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_afresh(caught: frozenset[int]) -> None:
    """In a new child process: set the signal state of a Python process that has just started, nothing inherited.

    SIGTERM raises Terminated in this process, but in none that is forked from it. `caught` are the signals the parent
    had handlers for, held until here.
    """
    Alarm._top = None
    forks.forget_all()
    for number in caught - {signal.SIGINT, signal.SIGTERM}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    take_stops()
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def take_stops() -> None:
    """Have SIGTERM raise Terminated in this process, whatever it did before, but in none that is forked from it."""
    signal.signal(signal.SIGTERM, _terminate)
    forks.keep_handler(signal.SIGTERM, _terminate, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


def await_orders(caught: frozenset[int]) -> None:
    """Like `start_afresh`, but SIGTERM just ends the process: nothing runs yet that an exception could reach."""
    start_afresh(caught)
    forks.forget_all()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ignore_children() -> None:
    """In a new child process: have the system reap its children, whose end does not matter."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def keep_exit_status() -> None:
    """In a new child process: keep its children until they are reaped, even if the parent ignores SIGCHLD.

    If that is ignored, the system reaps them, and how they ended is lost.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _caught() -> frozenset[int]:
    """The signals that have a handler, in Python or in C.

    The kernel is asked if possible: asking Python about each of 64 signals takes longer than some tasks do.
    """
    mask = mask_of_caught("self")
    if mask is None:
        return frozenset(number for number in _HOLDABLE if callable(signal.getsignal(number)))
    return frozenset(number for number in _HOLDABLE if mask >> (number - 1) & 1)


def mask_of_caught(pid: int | str) -> int | None:
    """The signals that a process has handlers for, one bit each from signal 1 on; None if that cannot be read."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            return int(status.read().partition(b"SigCgt:")[2].split(None, 1)[0], 16)
    except (OSError, IndexError):
        return None


def _terminate(signum: int, frame: FrameType | None) -> None:
    if frames.is_forking(frame):
        forks.send_again(signum)
        return
    terminated = Terminated(128 + signum)
    if not frames.raise_after_jump(frame, terminated):
        raise terminated


class Handlers:
    """One handler for some signals, from `install` to `put_back`, which restores what was found. Main thread only."""

    def __init__(self, handler: SignalHandler | signal.Handlers, *numbers: int) -> None:
        self._handler = handler
        self._numbers = numbers
        self._found: dict[int, Any] = {}
        self._blocked: set[int] = set()

    def install(self) -> None:
        """Install the handler, and unblock its signals; call again if other code has taken or blocked them."""
        for number in self._numbers:
            found = signal.signal(number, self._handler)
            forks.keep_handler(number, self._handler, self._found.setdefault(number, found))
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._numbers)
        if not self._blocked:
            self._blocked = {number for number in self._numbers if number in blocked}

    def are_installed(self) -> bool:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return all(signal.getsignal(number) == self._handler and number not in blocked for number in self._numbers)

    def put_back(self) -> None:
        for number, found in self._found.items():
            forks.forget_handler(number)
            signal.signal(number, signal.SIG_DFL if found is None else found)
        signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)
        self._found, self._blocked = {}, set()


def late_alarms() -> Handlers:
    """For a worker's run: keeps an alarm that was sent to a task which has just ended from ending the process."""
    return Handlers(_ignore, signal.SIGALRM)


def _ignore(signum: int, frame: FrameType | None) -> None:
    pass
