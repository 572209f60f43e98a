"""Guards a run of the tests, or of a benchmark: no test runs for ever, and no process outlives the run.

A second process watches the first one, and takes no part in it. Where a test lasts too long, it has the stacks of all
threads written and ends the run as failed. When the run has ended, however it did, it ends whatever the run started.
Those are known by a file that nothing else has mapped: who was forked from the run has the mapping too, and who was
executed has the file's name in its environment. Both outlast sessions, groups, closed descriptors, and the death of
parents. Linux only: elsewhere a run is not guarded.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import mmap
import multiprocessing
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

#: In the environment of everything that the run starts: the file's path.
MARK = "SQSTASKMASTER_TESTS_MARK"

#: In the environment of a run: seconds that a test may last, and what comes between two of them.
LIMIT = "SQSTASKMASTER_TESTS_LIMIT"
_LIMIT_SECONDS = 120.0

# What has noticed by itself that the run is over needs so long; all of it together has five seconds.
_GRACE_SECONDS = 2.0
_SWEEP_SECONDS = 4.5
_DUMP_SECONDS = 2.0
_LOOK_SECONDS = 0.1

# Nobody else's: tasks use SIGUSR1 and SIGUSR2, and the library another one of these.
_STACKS = signal.SIGRTMAX - 5 if hasattr(signal, "SIGRTMAX") else None

# A count of what began, and the name of it: in shared memory, so that no descriptor is there for a test to close.
_STATE = struct.Struct("=Q512s")
# How often the watcher has looked; comes after the other.
_LOOKS = struct.Struct("=Q")

_shared: mmap.mmap | None = None


def awake_seconds():
    """A clock for bounds: it stands still while the machine does, as virtual ones do for half a minute at times.

    It is the watcher's, and takes steps of a tenth of a second.
    """
    if _shared is None:
        return time.monotonic()
    return _LOOKS.unpack_from(_shared, _STATE.size)[0] * _LOOK_SECONDS


def install():
    """Guard this process, unless it is one that a test started with multiprocessing."""
    global _shared
    if not sys.platform.startswith("linux") or multiprocessing.parent_process() is not None:
        return
    _behave_as_in_the_foreground()
    handle, path = tempfile.mkstemp(prefix="sqstaskmaster-tests-")
    os.ftruncate(handle, _STATE.size + _LOOKS.size)
    state = mmap.mmap(handle, _STATE.size + _LOOKS.size)
    os.close(handle)
    # Ends process 1 too, which nobody in its namespace can kill.
    signal.signal(_STACKS, lambda *_: os._exit(1))
    faulthandler.register(_STACKS, 2, all_threads=True, chain=True)
    _start(path)
    os.environ[MARK] = path
    unittest.TestCase.run = _told(unittest.TestCase.run, state)
    _shared = state


def _behave_as_in_the_foreground():
    """What a script's background job, a CI step or a container starts with must not decide how tests end."""
    # First, so that nothing that is opened later becomes somebody's standard input, output or error.
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    # Ignored in the background of a shell without job control, and then by every process started from here.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def _told(run, state):
    """TestCase.run, telling the watcher what begins. What comes between two tests counts as well."""
    number = 0
    owner = os.getpid()

    def tell(what):
        nonlocal number
        if os.getpid() == owner:
            number += 1
            _STATE.pack_into(state, 0, number, what.encode(errors="replace"))

    @functools.wraps(run)
    def told(self, result=None):
        tell(self.id())
        try:
            return run(self, result)
        finally:
            tell(f"what follows {self.id()}")

    return told


def _start(path):
    # Nobody's child, for tests that look at theirs.
    subprocess.run(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), path, os.environ.get(LIMIT, str(_LIMIT_SECONDS))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if name != MARK},
        check=True,
    )


# -- the watcher -----------------------------------------------------------------------------------------------------


def marked(path):
    """The processes, this one aside, that the run with that file started, but for those that have ended."""
    known = f"{MARK}={path}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _is_marked(name, known, path.encode()):
            found.append(int(name))
    return found


def _is_marked(pid, known, path):
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/environ", "rb") as environ:
            if known in environ.read().split(b"\0"):
                return True
        with open(f"/proc/{pid}/maps", "rb") as maps:
            return path in maps.read()
    return False


def _watch(run, state, limit):
    """Until the run has ended; ends it where what it does lasts longer than the limit, once a first test has begun."""
    ended = select.poll()
    ended.register(run, select.POLLIN)
    seen, since = 0, time.monotonic()
    looks = 0
    while not ended.poll(_LOOK_SECONDS * 1000):
        looks += 1
        os.pwrite(state, _LOOKS.pack(looks), _STATE.size)
        number, name = _STATE.unpack(os.pread(state, _STATE.size, 0))
        if number != seen:
            seen, since = number, time.monotonic()
        elif number and time.monotonic() > since + limit:
            _say(f"\nGiven up after {limit:g} seconds: {name.rstrip(bytes(1)).decode(errors='replace')}")
            signal.pidfd_send_signal(run, _STACKS)
            if not ended.poll(_DUMP_SECONDS * 1000):
                signal.pidfd_send_signal(run, signal.SIGKILL)
            return True
    return False


def _sweep(path, grace):
    """End what the run left behind."""
    began = time.monotonic()
    told = set()
    while (left := marked(path)) and time.monotonic() < began + _SWEEP_SECONDS:
        if time.monotonic() >= began + grace:
            for pid in left:
                with contextlib.suppress(OSError):
                    if pid not in told:
                        with open(f"/proc/{pid}/cmdline", "rb") as line:
                            _say(f"left behind, and ended now: {pid} {line.read()[:200].replace(bytes(1), b' ')!r}")
                        told.add(pid)
                    os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_SECONDS)


def _say(text):
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def main(pid, path, limit):
    # While whoever it is waits for this process. The mapping outlasts the file, and keeps its name.
    run, state = os.pidfd_open(int(pid)), os.open(path, os.O_RDWR)
    os.unlink(path)
    if os.fork():
        os._exit(0)
    os.setsid()  # what is sent to the run's group is not for the watcher, which is there to see the end of it
    given_up = _watch(run, state, float(limit))
    _sweep(path, 0 if given_up else _GRACE_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
