"""Processes below a process, and what Linux offers to keep hold of them. Elsewhere: the nearest thing, or nothing."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable

LINUX = sys.platform == "linux"

# https://man7.org/linux/man-pages/man2/prctl.2.html
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# Between two looks at processes that were killed and are not gone yet: the kernel needs microseconds, or, to tear down
# gigabytes, some tenths of a second.
_LOOK_SECONDS = (0.001, 0.05)


@functools.cache
def _prctl() -> Callable[[int, int], int]:
    function: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    return function


def load() -> None:
    """Load what the functions below need, so that a forked child finds it loaded."""
    if LINUX:
        _prctl()


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that forked it ends. Linux only."""
    if LINUX:
        _prctl()(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, daemonised ones included. Linux only."""
    if LINUX:
        _prctl()(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, as of now. Empty where there is no /proc."""
    children_of = _children if _kernel_lists_children() else _children_by_parent()
    found: list[int] = []
    unseen = [pid]
    while unseen:
        below = children_of(unseen.pop())
        found += below
        unseen += below
    return found


@functools.cache
def _kernel_lists_children() -> bool:
    return os.path.exists("/proc/thread-self/children")


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as children:
                found += map(int, children.read().split())
    return found


def _children_by_parent() -> Callable[[int], list[int]]:
    """For kernels that list only parents: all processes are asked for theirs."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError):
                    children.setdefault(_parent_of(int(name)), []).append(int(name))
    return lambda pid: children.get(pid, [])


def _parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stat:
        # The second field is the program's name in parentheses, which may hold spaces and parentheses itself.
        return int(stat.read().rpartition(b")")[2].split()[1])


def kill(pid: int, number: int) -> None:
    """Send a signal; nothing where the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def sweep() -> None:
    """SIGKILL everything below this process, and reap it. Returns when nothing is left.

    With `adopt_orphans` that is every descendant: one that slips through between the look and the kill is orphaned, and
    thereby becomes a child of this process, to be found at the next look.
    """
    pause, longest = _LOOK_SECONDS
    while _reap():
        for pid in descendants(os.getpid()):
            # One that is not ours to kill any more (set-user-ID) is waited for.
            with contextlib.suppress(PermissionError):
                kill(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 2, longest)


def _reap() -> bool:
    """Reap the children that have ended. Whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def memory(pids: Iterable[int], enough: int) -> int:
    """Bytes of memory that the processes hold together, exact only where that is over `enough`. Linux only.

    Resident sizes are cheap to read, but count shared pages once for each process. Where they say that it is too much,
    the proportional sizes are asked, which cost a walk through the page tables and count every page once.
    """
    known = list(pids)
    resident = sum(_resident(pid) for pid in known)
    return resident if resident <= enough else sum(_proportional(pid) for pid in known)


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0  # it has ended


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as rollup:
            for line in rollup:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # it has ended, or this kernel does not tell
    return _resident(pid)
