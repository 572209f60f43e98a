"""Signal masks and handlers: borrowed and put back, held over a fork, and what a new child process begins with."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from sqstaskmaster._signals import forks, frames
from sqstaskmaster._signals.alarm import Alarm, SignalHandler


def _numbers(*names: str) -> frozenset[int]:
    """Those of the signals that this platform has."""
    return frozenset(int(getattr(signal, name)) for name in names if hasattr(signal, name))


# As plain numbers, and once: to make the set of Python's enum takes longer than a call to SQS may cost here.
_ALL = frozenset(map(int, signal.valid_signals()))

# Without those of crashes, whose handlers (faulthandler's) are as right in a child.
_HOLDABLE = _ALL - _numbers("SIGSEGV", "SIGFPE", "SIGABRT", "SIGILL", "SIGBUS")

# What a terminal or a service manager sends to all processes of a group.
_STOP_REQUESTS = _numbers("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")

# What programs install handlers for. To block all there are takes ten times as long.
_HANDLED = _numbers(
    *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGINT", "SIGIO", "SIGPROF", "SIGQUIT", "SIGTERM", "SIGTSTP"),
    *("SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH"),
)


@contextlib.contextmanager
def starting_thread() -> Iterator[None]:
    """A thread that is started in this block takes none of the signals that programs handle, from its first moment.

    One that the kernel handed to it would not wake the main thread from a system call. A thread begins with the mask of
    the one that starts it: blocked from inside, it would be too late for one signal, and where threads are greenlets
    (gevent) it would be the main thread's mask for ever.
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
    """In the block no Python signal handler runs, and no request to stop arrives; they do after it.

    Gives the signals that have a handler.
    """
    caught = _caught()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, caught | _STOP_REQUESTS)
    try:
        yield caught
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_afresh(caught: frozenset[int]) -> None:
    """In a new child process: the signal state of a Python process that has just started, nothing inherited.

    SIGTERM raises Terminated, here and in no process that is forked from this one. `caught` are the signals the parent
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
    """Have SIGTERM raise Terminated, whatever it did, here and in no process that is forked from this one."""
    signal.signal(signal.SIGTERM, _terminate)
    forks.keep_handler(signal.SIGTERM, _terminate, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


def await_orders(caught: frozenset[int]) -> None:
    """The same, while nothing runs yet that SIGTERM would have to be raised in: it ends the process."""
    start_afresh(caught)
    forks.forget_all()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ignore_children() -> None:
    """In a new child process: have the system reap its own children, whose end is of no interest."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def keep_exit_status() -> None:
    """In a new child process: have its own children wait to be reaped, though the parent may ignore SIGCHLD.

    Where it is ignored, the system reaps them, and nobody is told how they ended.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _caught() -> frozenset[int]:
    """The signals that have a handler, be it Python's or not.

    Asked of the kernel where that can be: asking Python for each of 64 signals takes longer than some tasks do.
    """
    mask = mask_of_caught("self")
    if mask is None:
        return frozenset(number for number in _HOLDABLE if callable(signal.getsignal(number)))
    return frozenset(number for number in _HOLDABLE if mask >> (number - 1) & 1)


def mask_of_caught(pid: int | str) -> int | None:
    """The signals that a process has handlers for, bit by bit from signal 1 on; None where that cannot be read."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            return int(status.read().partition(b"SigCgt:")[2].split(None, 1)[0], 16)
    except (OSError, IndexError):
        return None


def _terminate(signum: int, frame: FrameType | None) -> None:
    if frames.is_forking(frame):
        forks.send_again(signum)
        return
    raise Terminated(128 + signum)


class Handlers:
    """One handler for some signals, from `install` to `put_back`, which restores what was found. Main thread only."""

    def __init__(self, handler: SignalHandler | signal.Handlers, *numbers: int) -> None:
        self._handler = handler
        self._numbers = numbers
        self._found: dict[int, Any] = {}
        self._blocked: set[int] = set()

    def install(self) -> None:
        """Install the handler, and unblock its signals; once more where somebody has taken or blocked them."""
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
    """For a run of a worker: an alarm that was sent to a task which has just ended does not end the process."""
    return Handlers(_ignore, signal.SIGALRM)


def _ignore(signum: int, frame: FrameType | None) -> None:
    pass
