"""Processes below a process, and what Linux offers to keep hold of them. Elsewhere: the nearest thing, or nothing."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

try:
    import resource
except ImportError:  # Windows, where a producer imports the module that has the tasks, and nothing of this is called
    pass

LINUX = sys.platform == "linux"

# https://man7.org/linux/man-pages/man2/prctl.2.html
_PR_SET_PDEATHSIG = 1
_PR_GET_PDEATHSIG = 2
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37

# https://man7.org/linux/man-pages/man2/getrlimit.2.html: the number of file locks, without effect since Linux 2.4.25.
_RLIMIT_LOCKS = 10

# Far above any number of locks that somebody may have set a limit to.
_MARKS = 1 << 40

# The longest that the end of what was killed is waited for where processes cannot be listed, and so not be found.
_BLIND_SECONDS = 1.0

# Helpers that clean up after processes that were killed: multiprocessing's and loky's. They outlive the processes that
# share the other end of a pipe with them, then unlink shared memory, semaphores and folders that are left, and end.
_TRACKER = b"resource_tracker import main"

# The longest that they may take for it. It takes them milliseconds.
_TRACKER_SECONDS = 2.0

# Between two looks at processes that were killed and are not gone yet: the kernel needs microseconds, or, to tear down
# gigabytes, some tenths of a second.
_LOOK_SECONDS = (0.001, 0.05)


@functools.cache
def _prctl() -> Callable[[int, Any], int]:
    function: Callable[[int, Any], int] = ctypes.CDLL(None).prctl
    return function


def load() -> None:
    """Load what the functions below need, so that a forked child finds it loaded."""
    if LINUX:
        _prctl()


def die_with_parent(number: int | None = None) -> None:
    """Have the kernel send this process a signal, SIGKILL where none is given, when the thread that forked it ends.

    Linux only.
    """
    if LINUX:
        _prctl()(_PR_SET_PDEATHSIG, signal.SIGKILL if number is None else number)


def lacking() -> list[str]:
    """What of all this is refused here, and what comes of it, for people: a sandbox may have no /proc, say."""
    found: list[str] = []
    if not LINUX:
        return found
    if not can_list():
        found.append("there is no /proc: max_memory is not enforced, and daemons that a task made outlive it")
    now = ctypes.c_int()
    for name, get, put in (
        ("PR_SET_CHILD_SUBREAPER", _PR_GET_CHILD_SUBREAPER, _PR_SET_CHILD_SUBREAPER),
        ("PR_SET_PDEATHSIG", _PR_GET_PDEATHSIG, _PR_SET_PDEATHSIG),
    ):
        # As it is: only whether that is allowed is of interest.
        if _prctl()(get, ctypes.byref(now)) or _prctl()(put, now.value):
            found.append(f"prctl({name}) is refused: processes that a task leaves behind may outlive it")
    return found


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, daemonised ones included. Linux only."""
    if LINUX:
        _prctl()(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int, without: Collection[int] = ()) -> list[int]:
    """The processes below `pid`, as of now; `without` some and what is below them. Empty where there is no /proc."""
    children_of = _children if _kernel_lists_children() else _children_by_parent()
    found: list[int] = []
    unseen = [pid]
    while unseen:
        below = [child for child in children_of(unseen.pop()) if child not in without]
        found += below
        unseen += below
    return found


@functools.cache
def _kernel_lists_children() -> bool:
    return os.path.exists("/proc/thread-self/children")


def children_of_self() -> list[int] | None:
    """Of this process, which has one thread; None where the kernel lists only parents."""
    return _children(os.getpid()) if _kernel_lists_children() else None


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


def has_pidfd() -> bool:
    """Whether this system has such descriptors, and lets this process have them."""
    own = pidfd(os.getpid())
    if own is not None:
        os.close(own)
    return own is not None


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


def trackers(pids: Iterable[int]) -> set[int]:
    """Those of the processes that are there to clean up when the others have ended."""
    return {pid for pid in pids if _is_tracker(pid)}


def _is_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as words:
            return _TRACKER in words.read()
    except OSError:
        return False  # it has ended


def sweep() -> float:
    """SIGKILL everything below this process, and reap it. Returns when nothing is left: the CPU seconds it had used.

    Those that clean up after the others get a moment to do so once these are gone.

    With `adopt_orphans` that is every descendant: one that slips through between the look and the kill is orphaned, and
    thereby becomes a child of this process, to be found at the next look. One that is not ours to kill is waited for.
    Where processes cannot be listed (no /proc), what is not found is given up after a moment.
    """
    pause, longest = _LOOK_SECONDS
    # Pauses are counted, since a test may have stopped the clock of the process that this one was forked from.
    waited = spared = seconds = 0.0
    while True:
        others, used = _reap()
        seconds += used
        if not others or not can_list() and waited > _BLIND_SECONDS:
            return seconds
        below = set(descendants(os.getpid()))
        rest = below - trackers(below)
        if not rest and not spared:
            pause = _LOOK_SECONDS[0]
        kill_all(rest if spared < _TRACKER_SECONDS else below)
        time.sleep(pause)
        waited += pause
        spared += 0.0 if rest else pause
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


# The prefixes and suffixes are those of the builds that NumPy and SciPy bring along.
_OPENBLAS_THREADS = tuple(
    f"{prefix}openblas_get_num_threads{suffix}" for prefix in ("", "scipy_") for suffix in ("", "64_")
)


def threads() -> int:
    """Of this process, as the system counts them, those of OpenMP included; as Python does where there is no /proc.

    Not those of OpenBLAS, which puts its pool in order round a fork.
    """
    try:
        number = len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()
    # A look takes as long as a tenth of a fork; what is loaded changes with what has been imported.
    return number if number == 1 else number - _openblas_threads(len(sys.modules))


@functools.lru_cache(maxsize=1)
def _openblas_threads(modules: int) -> int:
    """How many threads the pools of OpenBLAS have, each beside the one that calls it."""
    number = 0
    for path in loaded("openblas"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path)
            number += next((getattr(library, name)() - 1 for name in _OPENBLAS_THREADS if hasattr(library, name)), 0)
    return number


def loaded(library: str) -> list[str]:
    """The files of libraries of such a name that are loaded in this process. None where that cannot be read."""
    try:
        with open("/proc/self/maps") as maps:
            return list(dict.fromkeys(line.split(None, 5)[5].strip() for line in maps if library in line))
    except (OSError, IndexError):
        return []


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


def is_dead(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return _state_of(pid) in (b"Z", b"X")
    except (OSError, IndexError):
        return True


def _state_of(pid: int) -> bytes:
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[0]


def prefer_for_oom_kill() -> None:
    """Have the kernel's out-of-memory killer choose this process before others. Needs no privilege. Linux only."""
    _tell_kernel("oom_score_adj", b"1000")


def _tell_kernel(name: str, text: bytes) -> None:
    """Write to a file of this process's in /proc, where there is one and the kernel allows it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)


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


def resident_of_self() -> int:
    """Bytes that this process has resident now; where that cannot be read, the most it has had."""
    return resident_of(os.getpid()) or peak_of_self()


def forget_peak() -> None:
    """Have `peak_of_self` begin anew with what is resident now, where the kernel allows that. Linux only."""
    _tell_kernel("clear_refs", b"5")


def cpu_seconds_of_self() -> float:
    """Of this process, and of the children that it has reaped."""
    return sum(cpu_seconds(resource.getrusage(who)) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def cpu_seconds_below(keeper: int) -> float:
    """CPU seconds of the processes below a keeper, and of those that they have reaped. Linux only; else 0."""
    return cpu_seconds_of(descendants(keeper))


def cpu_seconds_of(pids: Iterable[int]) -> float:
    """CPU seconds of these, and of those that they have reaped."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):  # it has ended
            with open(f"/proc/{pid}/stat", "rb") as stat:
                ticks += sum(map(int, stat.read().rpartition(b")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def own_memory(
    keeper: int, inherited: int, enough: int = 0, helpers: int = 0, before: int | None = None, image: int | None = None
) -> int:
    """Bytes that the processes below a keeper hold beyond what they were forked with. Linux only.

    In a process that stays, beyond what there was before the task began: `helpers` was resident in processes of the
    initializer's, `before` the proportional size of all, `image` is that process's.

    `inherited` is what was resident when the task began. Where there are several processes, each one's share of what
    was inherited is the keeper's, which has nothing else; those that have exec'ed a program have none of it.

    Resident sizes are cheap to read, but count what processes share once for each. Where they say over `enough`, the
    proportional sizes are asked, which cost a walk through the page tables and count every page once.
    """
    pids = descendants(keeper)
    image = image_of(keeper) if image is None else image
    forked = {pid: image_of(pid) == image for pid in pids}
    resident = sum(max(0, resident_of(pid) - (inherited if forked[pid] else 0)) for pid in pids) - helpers
    if len(pids) <= 1 or resident <= enough:
        return max(0, resident)
    if before is not None:
        return max(0, sum(map(proportional_of, pids)) - before)
    share = proportional_of(keeper)
    return sum(max(0, proportional_of(pid) - (share if forked[pid] else 0)) for pid in pids)


def image_of(pid: int) -> int:
    """The same for processes that have forked from each other, another after exec: where the stack begins."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[25])
    except (OSError, IndexError):
        return 0


def resident_of(pid: int) -> int:
    """Bytes that a process has resident; 0 where it has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0  # it has ended


def proportional_of(pid: int) -> int:
    """The same, of each page its share among the processes that have it. Takes a walk through the page tables."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as rollup:
            for line in rollup:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # it has ended, or this kernel does not tell
    return resident_of(pid)
