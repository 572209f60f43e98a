"""Processes below a process, and what Linux offers to keep hold of them. Elsewhere: the nearest thing, or nothing."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

LINUX = sys.platform == "linux"

# https://man7.org/linux/man-pages/man2/prctl.2.html
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# https://man7.org/linux/man-pages/man2/getrlimit.2.html: the number of file locks, without effect since Linux 2.4.25.
_RLIMIT_LOCKS = 10

# Far above any number of locks that somebody may have set a limit to.
_MARKS = 1 << 40

# The longest that the end of what was killed is waited for where processes cannot be listed, and so not be found.
_BLIND_SECONDS = 1.0

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


def wake(pid: int, pidfd: int | None) -> bool:
    """Have a process go on that was stopped. False where it is gone."""
    return send(pid, pidfd, signal.SIGCONT)


def send(pid: int, pidfd: int | None, number: int) -> bool:
    """Send a signal. False where the process is gone; with its pidfd, whoever has its pid now."""
    try:
        if pidfd is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False
    return True


def pidfd(pid: int) -> int | None:
    """A descriptor that is readable once the process has ended; None where there is no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL; nothing to those that are not ours to kill any more (set-user-ID)."""
    for pid in pids:
        with contextlib.suppress(PermissionError):
            kill(pid, signal.SIGKILL)


def sweep() -> float:
    """SIGKILL everything below this process, and reap it. Returns when nothing is left: the CPU seconds it had used.

    With `adopt_orphans` that is every descendant: one that slips through between the look and the kill is orphaned, and
    thereby becomes a child of this process, to be found at the next look. One that is not ours to kill is waited for.
    Where processes cannot be listed (no /proc), what is not found is given up after a moment.
    """
    pause, longest = _LOOK_SECONDS
    until = time.monotonic() + _BLIND_SECONDS
    seconds = 0.0
    while True:
        others, used = _reap()
        seconds += used
        if not others or not can_list() and time.monotonic() > until:
            return seconds
        kill_all(descendants(os.getpid()))
        time.sleep(pause)
        pause = min(pause * 2, longest)


def _reap() -> tuple[bool, float]:
    """Reap the children that have ended. Whether there are others, and the CPU seconds of those that were reaped."""
    seconds = 0.0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _, used = os.wait4(-1, os.WNOHANG)
            if not pid:
                return True, seconds
            seconds += cpu_seconds(used)
    return False, seconds


def threads() -> int:
    """Of this process, as the system counts them, those of OpenMP included; as Python does where there is no /proc."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def has_loaded(library: str) -> bool:
    """Whether a library of that name is loaded in this process. False where that cannot be read."""
    try:
        with open("/proc/self/maps") as maps:
            return library in maps.read()
    except OSError:
        return False


def can_list() -> bool:
    """Whether processes can be listed here at all."""
    return os.path.exists("/proc/self/stat")


# -- a mark that is inherited ----------------------------------------------------------------------------------------
#
# A keeper that is killed leaves its task's daemons behind: they become children of somebody who does not know them,
# and have left their session and group. What they cannot lose unknowingly are their resource limits, which survive
# setsid, fork and exec, and are there for all to read: so one limit that has no effect carries the keeper's pid.


def mark_self() -> None:
    """Mark this process, a keeper, and all that will be below it. Linux only."""
    if LINUX:
        with contextlib.suppress(OSError, ValueError):  # a hard limit that somebody has set
            _, hard = resource.getrlimit(_RLIMIT_LOCKS)
            resource.setrlimit(_RLIMIT_LOCKS, (_MARKS + os.getpid(), hard))


def marked(keeper: int) -> list[int]:
    """The processes, dead ones aside, that began below this keeper. Takes some milliseconds."""
    mark = b"%d" % (_MARKS + keeper)
    found: list[int] = []
    seen = {keeper}
    with contextlib.suppress(OSError):
        # Until a list has no other: a process that was listed may have forked one and ended before it was looked at.
        while new := {int(name) for name in os.listdir("/proc") if name.isdigit()} - seen:
            found += [pid for pid in new if _has_mark(pid, mark)]
            seen |= new
    return found


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/limits", "rb") as limits:
            return mark in limits.read().split() and _state_of(pid) not in (b"Z", b"X")
    except (OSError, IndexError):
        return False  # it has ended


def _state_of(pid: int) -> bytes:
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[0]


def catches(pid: int, number: int) -> bool | None:
    """Whether the process has a handler for the signal; None where that cannot be read."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            mask = int(status.read().partition(b"SigCgt:")[2].split(None, 1)[0], 16)
    except (OSError, IndexError):
        return None
    return bool(mask >> (number - 1) & 1)


def prefer_for_oom_kill() -> None:
    """Have the kernel's out-of-memory killer choose this process before others. Needs no privilege. Linux only."""
    with contextlib.suppress(OSError):
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(score, b"1000")
        finally:
            os.close(score)


# -- what processes use ----------------------------------------------------------------------------------------------


def cpu_seconds(used: Any) -> float:
    """Of a rusage structure: user and system together."""
    return float(used.ru_utime + used.ru_stime)


def peak_bytes(used: Any) -> int:
    """Of a rusage structure: the most that was resident."""
    return int(used.ru_maxrss) * (1024 if LINUX else 1)


def peak_of_self() -> int:
    """The most bytes that this process has had resident."""
    return peak_bytes(resource.getrusage(resource.RUSAGE_SELF))


def memory(pids: Iterable[int], enough: int) -> int:
    """Bytes of memory that the processes hold together, exact only where that is over `enough`. Linux only.

    Resident sizes are cheap to read, but count shared pages once for each process. Where they say that it is too much,
    the proportional sizes are asked, which cost a walk through the page tables and count every page once.
    """
    known = list(pids)
    resident = sum(_resident(pid) for pid in known)
    return resident if resident <= enough else sum(_proportional(pid) for pid in known)


def cpu_seconds_below(keeper: int) -> float:
    """CPU seconds of the processes below a keeper, and of those that they have reaped. Linux only; else 0."""
    ticks = 0
    for pid in descendants(keeper):
        with contextlib.suppress(OSError, IndexError):  # it has ended
            with open(f"/proc/{pid}/stat", "rb") as stat:
                ticks += sum(map(int, stat.read().rpartition(b")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def own_memory(keeper: int, inherited: int) -> int:
    """Bytes that the processes below a keeper hold beyond what they were forked with. Linux only.

    `inherited` is what was resident when the task began. Where there are several processes, each one's share of what
    was inherited is the keeper's, which has nothing else; those that have exec'ed a program have none of it.
    """
    pids = descendants(keeper)
    if len(pids) == 1:
        return max(0, _resident(pids[0]) - inherited)
    share, image = _proportional(keeper), _image(keeper)
    return sum(max(0, _proportional(pid) - (share if _image(pid) == image else 0)) for pid in pids)


def _image(pid: int) -> bytes:
    """The same for processes that have forked from each other, another after exec: where the stack begins."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[25]
    except (OSError, IndexError):
        return b""


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
