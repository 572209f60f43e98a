"""The processes below a process, and what Linux offers to keep hold of them. Elsewhere: the nearest thing, or none."""

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
except ImportError:  # Windows: a producer may import the module with the tasks, but calls nothing here
    pass

LINUX = sys.platform == "linux"

# https://man7.org/linux/man-pages/man2/prctl.2.html
_PR_SET_PDEATHSIG = 1
_PR_GET_PDEATHSIG = 2
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37

# https://man7.org/linux/man-pages/man2/getrlimit.2.html: the number of file locks, ignored since Linux 2.4.25.
_RLIMIT_LOCKS = 10

# Far above any limit on locks that somebody may have set.
_MARKS = 1 << 40

# The longest wait for killed processes to end on systems that cannot list processes, and so cannot find them.
_BLIND_SECONDS = 1.0

# Trackers clean up after processes that were killed: multiprocessing's and loky's. They outlive the processes that hold
# the other end of their pipe, then unlink leftover shared memory, semaphores and folders, and end.
_TRACKER = b"resource_tracker import main"

# The longest that they may take for it. They need milliseconds.
_TRACKER_SECONDS = 2.0

# The shortest and longest pause between looks at killed processes that are not gone yet: the kernel needs microseconds,
# or, to tear down gigabytes, some tenths of a second.
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
    """Have the kernel send this process a signal, SIGKILL by default, when the thread that forked it ends.

    Linux only.
    """
    if LINUX:
        _prctl()(_PR_SET_PDEATHSIG, signal.SIGKILL if number is None else number)


def lacking() -> list[str]:
    """Which of these features are missing here, and what that means, for people: a sandbox may have no /proc, say."""
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
        # Set to its present value: this only finds out whether setting it is allowed.
        if _prctl()(get, ctypes.byref(now)) or _prctl()(put, now.value):
            found.append(f"prctl({name}) is refused: processes that a task leaves behind may outlive it")
    return found


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, daemonised ones included. Linux only."""
    if LINUX:
        _prctl()(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int, without: Collection[int] = ()) -> list[int]:
    """The processes below `pid` now, except `without` and what is below those. Empty if there is no /proc."""
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
    """The children of this process, which has one thread; None if the kernel lists only parents."""
    return _children(os.getpid()) if _kernel_lists_children() else None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as children:
                found += map(int, children.read().split())
    return found


def _children_by_parent() -> Callable[[int], list[int]]:
    """For kernels that list only parents: looks up the parent of every process."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, ValueError):
                    children.setdefault(_parent_of(int(name)), []).append(int(name))
    return lambda pid: children.get(pid, [])


def _parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stat:
        # The second field is the program's name in parentheses, which may itself contain spaces and parentheses.
        return int(stat.read().rpartition(b")")[2].split()[1])


def kill(pid: int, number: int) -> None:
    """Send a signal, unless the process is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def wake(pid: int, pidfd: int | None) -> bool:
    """Let a stopped process go on. False if it is gone."""
    return send(pid, pidfd, signal.SIGCONT)


def send(pid: int, pidfd: int | None, number: int) -> bool:
    """Send a signal. False if the process is gone; with a pidfd, even if another process has its pid now."""
    try:
        if pidfd is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False
    return True


def has_pidfd() -> bool:
    """Whether this system has pidfds, and lets this process have them."""
    own = pidfd(os.getpid())
    if own is not None:
        os.close(own)
    return own is not None


def pidfd(pid: int) -> int | None:
    """A descriptor that is readable once the process has ended; None if the system or the process has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def kill_all(pids: Iterable[int]) -> None:
    """Send SIGKILL, except to processes that we may no longer kill (set-user-ID)."""
    for pid in pids:
        with contextlib.suppress(PermissionError):
            kill(pid, signal.SIGKILL)


def trackers(pids: Iterable[int]) -> set[int]:
    """Those of the processes that clean up after the others have ended."""
    return {pid for pid in pids if _is_tracker(pid)}


def _is_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as words:
            return _TRACKER in words.read()
    except OSError:
        return False  # it has ended


def sweep() -> float:
    """SIGKILL and reap everything below this process. Returns the CPU seconds it had used, once nothing is left.

    Trackers, which clean up after the others, get a moment to do so once those are gone.

    With `adopt_orphans` this covers every descendant: one that slips through between the look and the kill is orphaned,
    and so becomes a child of this process, to be found at the next look. One that we may not kill is waited for.
    If processes cannot be listed (no /proc), those not found are given up after a moment.
    """
    pause, longest = _LOOK_SECONDS
    # Add up pauses instead of reading the clock: this process may be forked from one whose clock a test has stopped.
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
    """Reap the children that have ended. Returns whether others are left, and the CPU seconds of those reaped."""
    seconds = 0.0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _, used = os.wait4(-1, os.WNOHANG)
            if not pid:
                return True, seconds
            seconds += cpu_seconds(used)
    return False, seconds


# The prefixes and suffixes of the builds that NumPy and SciPy ship.
_OPENBLAS_THREADS = tuple(
    f"{prefix}openblas_get_num_threads{suffix}" for prefix in ("", "scipy_") for suffix in ("", "64_")
)


def threads() -> int:
    """How many threads this process has: the system's count, with those of OpenMP; Python's count if there is no /proc.

    Threads of OpenBLAS are left out, as it handles forks itself.
    """
    try:
        number = len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()
    # A look takes a tenth as long as a fork; only imports change which libraries are loaded.
    return number if number == 1 else number - _openblas_threads(len(sys.modules))


@functools.lru_cache(maxsize=1)
def _openblas_threads(modules: int) -> int:
    """How many threads the pools of OpenBLAS have, not counting the thread that calls each."""
    number = 0
    for path in loaded("openblas"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path)
            number += next((getattr(library, name)() - 1 for name in _OPENBLAS_THREADS if hasattr(library, name)), 0)
    return number


def loaded(library: str) -> list[str]:
    """The files of loaded libraries whose path contains this name. Empty if that cannot be read."""
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
# A keeper that is killed leaves its task's daemons behind: they become children of a process that does not know them,
# and have left their session and group. What they cannot lose by accident are their resource limits, which survive
# setsid, fork and exec, and which anybody can read. So a limit that has no effect carries the keeper's pid.


def mark_self() -> None:
    """Mark this process, a keeper, and everything that will be below it. Linux only."""
    if LINUX:
        with contextlib.suppress(OSError, ValueError):  # somebody has set a hard limit
            _, hard = resource.getrlimit(_RLIMIT_LOCKS)
            resource.setrlimit(_RLIMIT_LOCKS, (_MARKS + os.getpid(), hard))


def marked(keeper: int) -> list[int]:
    """The live processes that began below this keeper. Takes some milliseconds."""
    mark = b"%d" % (_MARKS + keeper)
    found: list[int] = []
    seen = {keeper}
    with contextlib.suppress(OSError):
        # Repeat until nothing new is listed: a listed process may have forked another, and ended before it was read.
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
    """Have the kernel's OOM killer choose this process before others. Needs no privilege. Linux only."""
    _tell_kernel("oom_score_adj", b"1000")


def _tell_kernel(name: str, text: bytes) -> None:
    """Write to a file in /proc/self, if it exists and the kernel allows it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)


# -- what processes use ----------------------------------------------------------------------------------------------


def cpu_seconds(used: Any) -> float:
    """User and system time in a rusage structure."""
    return float(used.ru_utime + used.ru_stime)


def peak_bytes(used: Any) -> int:
    """The peak resident size in a rusage structure."""
    return int(used.ru_maxrss) * (1024 if LINUX else 1)


def peak_of_self() -> int:
    """The most bytes that this process has had resident."""
    return peak_bytes(resource.getrusage(resource.RUSAGE_SELF))


def resident_of_self() -> int:
    """Bytes that this process has resident now; if that cannot be read, the most it has had."""
    return resident_of(os.getpid()) or peak_of_self()


def forget_peak() -> None:
    """Restart `peak_of_self` from what is resident now, if the kernel allows it. Linux only."""
    _tell_kernel("clear_refs", b"5")


def cpu_seconds_of_self() -> float:
    """CPU seconds of this process and of the children that it has reaped."""
    return sum(cpu_seconds(resource.getrusage(who)) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def cpu_seconds_below(keeper: int) -> float:
    """CPU seconds of the processes below a keeper and of those that they have reaped. Linux only; elsewhere 0."""
    return cpu_seconds_of(descendants(keeper))


def cpu_seconds_of(pids: Iterable[int]) -> float:
    """CPU seconds of these processes and of those that they have reaped."""
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

    In a process that stays: beyond what there was before the task began. Then `helpers` was resident in the
    initializer's processes, `before` is the proportional size of all, and `image` is the staying process's.

    `inherited` is what was resident when the task began. If there are several processes, each one's share of what was
    inherited equals the size of the keeper, which has nothing else; those that have exec'ed a program have no share.

    Resident sizes are cheap to read, but count shared pages once per process. If they add up to over `enough`, the
    proportional sizes are read, which takes a walk through the page tables and counts every page once.
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
    """Where the stack begins: the same for processes forked from one another, but different after an exec."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[25])
    except (OSError, IndexError):
        return 0


def resident_of(pid: int) -> int:
    """Bytes that a process has resident; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0  # it has ended


def proportional_of(pid: int) -> int:
    """The same, with each shared page divided among its processes. Takes a walk through the page tables."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as rollup:
            for line in rollup:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # it has ended, or this kernel does not provide it
    return resident_of(pid)
