"""The supervisor: keeps N worker processes alive, and never runs a task itself.

    supervisor (no boto3, no user code)
       |  starts a fresh interpreter for each, in its own session; restarts those that die, with backoff
       |  passes on SIGTERM and SIGINT, once per signal
       |  reaps everything, orphans too (as PID 1 it inherits every process whose parent has ended)
       +-- worker process 0   <-- one byte per event over a socket: loaded, polled, busy, idle, drained
       +-- worker process 1       the supervisor's end of the socket closes when it dies, however it dies
       +-- ...

Fresh interpreters rather than forks: a process that forks must not have run native code (user modules do on import),
and a restart reads the module anew. That costs each process its own 25 MB of boto3, and 0.3 s.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqstaskmaster._logging import get_logger
from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster._signals.wakeup import SignalWakeup

logger = get_logger(__name__)

# What a worker process sends over its socket. DRAINED: its burst has found the queue empty. FATAL, the last words of a
# process that knows that the next would end the same way, is longer, so that no stray byte of a task is taken for it.
LOADED, POLLED, BUSY, IDLE, DRAINED, READY = b"l", b"p", b"b", b"i", b"d", b"r"
FATAL = b"#FATAL#"

# The exit codes that FATAL can accompany: they are about the process's orders. The code alone proves nothing, since a
# task can end its process with any code.
FATAL_CODES = frozenset({Exit.USAGE, Exit.MODULE, Exit.QUEUE, Exit.NOT_READY})

# If another process has had a ready slot, a process in which none gets ready is restarted after this long.
_NOT_READY_SECONDS = 60.0

# A process that was last heard from longer ago is not alive, unless it is busy: the longest poll (20 s), its longest
# answer (10 s more) and a pause after an error (up to a minute).
POLL_PATIENCE_SECONDS = 90.0

_TOUCH_SECONDS = 1.0

_SHELLS = {"sh", "bash", "dash", "ash", "busybox", "zsh", "ksh"}

# After the second signal a worker process ends its task and returns its message; if it takes longer, it is killed.
_LAST_GRACE_SECONDS = 15.0

# After this many deaths in a row before a first poll, with no live process that has polled, restarting does not help.
_START_DEATHS = 8

# More than a worker process ever sends at once; a task that writes to the socket for ever is not read for ever.
_MOST_READ_BYTES = 256 * 1024


class Backoff:
    """How long to wait before a restart, in seconds: doubled from `first` up to `longest`.

    After a process that lived at least `healthy` seconds it starts over.
    """

    def __init__(self, first: float = 0.5, longest: float = 30.0, healthy: float = 60.0) -> None:
        self._first, self._longest, self._healthy = first, longest, healthy
        self._next = first

    def after(self, lived: float) -> float:
        if lived >= self._healthy:
            self._next = self._first
        seconds, self._next = self._next, min(self._next * 2, self._longest)
        return seconds


class _Process:
    """A worker process: our end of its socket, and what it has sent."""

    def __init__(self, popen: subprocess.Popen[bytes], ours: socket.socket, now: float) -> None:
        self.popen = popen
        self.socket: socket.socket | None = ours
        self.started = now
        self.heard = -math.inf
        self.loaded = self.polled = self.busy = self.drained = self.killed = self.ready = False
        self._last_words = b""

    @property
    def is_fatal(self) -> bool:
        return self._last_words == FATAL

    def take_in(self, said: bytes, now: float) -> None:
        self.heard = now
        self.loaded = self.loaded or LOADED in said
        self.polled = self.polled or POLLED in said
        self.drained = self.drained or DRAINED in said
        self.ready = self.ready or READY in said
        self._last_words = (self._last_words + said)[-len(FATAL) :]
        last = max(said.rfind(BUSY), said.rfind(IDLE))
        if last >= 0:
            self.busy = said[last : last + 1] == BUSY

    def is_alive(self, now: float) -> bool:
        """Whether the process does its work, judging by what it has sent."""
        return self.busy or now - self.heard <= POLL_PATIENCE_SECONDS


class _Slot:
    """One of the N places for a worker process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.backoff = Backoff()
        self.due = 0.0
        self.finished = self.has_been_ready = False
        self.process: _Process | None = None


class Supervisor:
    """Runs `command` in `processes` processes until it is asked to stop.

    :param command: the arguments of a fresh Python interpreter; the process gets two more: the number of the descriptor
        to report on, and this process's id.
    :param burst: do not restart a process that has found the queue empty, and ended.
    :param alive_file: touched once a second while every process has begun to poll, and has polled in the last 90
        seconds or is busy with a task; during a stop, every process that has not ended yet. So it goes stale when one
        of them hangs, or cannot reach the queue; a container's health check looks at it.
    :param shared: descriptors that every process inherits.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        burst: bool = False,
        alive_file: Path | None = None,
        shared: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = [sys.executable, *command]
        self._burst = burst
        self._alive_file = alive_file
        self._shared = shared
        self._touched = -math.inf
        self._clock = clock
        self._slots = [_Slot(number) for number in range(processes)]
        self._proven = False
        self._stop_signals = 0
        self._gave_up = False
        self._kill_at: float | None = None
        self._start_deaths = 0
        self._code = Exit.OK
        self._selector = selectors.DefaultSelector()

    def run(self) -> Exit:
        """Supervise until every process has ended for good."""
        if os.getppid() == 1 and (shell := _shell_of_process_1()):
            logger.warning(
                "Process 1 of this container is a shell (%s), which passes no signal on: SIGTERM never arrives here. "
                "Use the exec form of CMD and ENTRYPOINT, or 'exec sqstaskmaster worker' in the script",
                shell,
                extra={"action": "shell_above"},
            )
        stops = (signal.SIGTERM, signal.SIGINT)
        with SignalWakeup(*stops, signal.SIGCHLD) as inbox, self._selector:
            self._selector.register(inbox, selectors.EVENT_READ, None)
            while True:
                self._start_due()
                if all(slot.process is None for slot in self._slots) and self._is_over():
                    return self._code
                for key, _ in self._selector.select(self._seconds_to_next()):
                    if key.data is not None:
                        self._listen(key.data)
                for number in inbox.read():
                    if number in stops:
                        self._stop(number)
                self._reap()
                self._kill_when_due()
                self._touch()

    # -- starting ------------------------------------------------------------------------------------------------

    def _is_ending(self) -> bool:
        """Whether no more processes are started."""
        return self._gave_up or bool(self._stop_signals)

    def _is_over(self) -> bool:
        return self._is_ending() or all(slot.finished for slot in self._slots)

    def _start_due(self) -> None:
        if self._is_ending():
            return
        now = self._clock()
        for slot in self._vacant():
            if slot.due <= now and not self._is_ending():  # a failed start may have ended it
                self._start(slot)

    def _vacant(self) -> list[_Slot]:
        """The slots to start a process in, now or later."""
        # One process first: a faulty module is then reported once, not N times.
        slots = self._slots if self._proven else self._slots[:1]
        return [slot for slot in slots if slot.process is None and not slot.finished]

    def _start(self, slot: _Slot) -> None:
        try:
            slot.process = self._spawn()
        except OSError as error:  # no more descriptors, processes or memory: for now, perhaps
            self._restart_later(slot, f"cannot be started: {error}", lived=0.0, proved=False)
            return
        pid = slot.process.popen.pid
        logger.info(
            "Worker process %d started as pid %d",
            slot.number,
            pid,
            extra={"action": "process_started", "slot": slot.number, "pid": pid},
        )

    def _spawn(self) -> _Process:
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                ours.setblocking(False)
                # Before the process exists: after a failure here there is nothing to end.
                self._selector.register(ours, selectors.EVENT_READ, None)
                undo.callback(self._selector.unregister, ours)
                popen = subprocess.Popen(
                    [*self._command, str(theirs.fileno()), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *self._shared],
                    # Ctrl-C in a terminal goes to the whole session: with the one passed on, a worker would count two.
                    start_new_session=True,
                )
            process = _Process(popen, ours, self._clock())
            self._selector.modify(ours, selectors.EVENT_READ, process)
            undo.pop_all()
            return process

    # -- listening -----------------------------------------------------------------------------------------------

    def _listen(self, process: _Process) -> None:
        """Take in what a worker process has sent."""
        read = 0
        while process.socket is not None and read < _MOST_READ_BYTES:
            try:
                said = process.socket.recv(_MOST_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            if not said:
                self._hang_up(process)
                return
            read += len(said)
            process.take_in(said, self._clock())
            slot = next((slot for slot in self._slots if slot.process is process), None)
            if slot is not None and process.ready:
                slot.has_been_ready = True
            self._proven = self._proven or process.loaded
            if process.polled:
                self._start_deaths = 0

    def _hang_up(self, process: _Process) -> None:
        if process.socket is not None:
            self._selector.unregister(process.socket)
            process.socket.close()
            process.socket = None

    def _touch(self) -> None:
        now = self._clock()
        if self._alive_file is None or now - self._touched < _TOUCH_SECONDS:
            return
        processes = [slot.process for slot in self._slots if not slot.finished]
        if self._is_ending():
            # A process that has stopped while others still run their tasks is not missing.
            processes = [process for process in processes if process is not None] or [None]
        if all(process is not None and process.is_alive(now) for process in processes):
            self._touched = now
            try:
                self._alive_file.touch()
            except OSError as error:
                logger.warning("Cannot touch the alive file: %s", error, extra={"action": "alive_file_failed"})

    # -- ending --------------------------------------------------------------------------------------------------

    def _stop(self, number: int) -> None:
        """Pass on a stop signal. To the workers the first means drain, the second now."""
        self._stop_signals += 1
        name = signal.Signals(number).name
        if self._stop_signals == 1:
            what = (
                "no more tasks are taken; running ones may finish, and idle processes wait for their long poll (up "
                "to 20 s); a second signal stops them at once"
            )
        else:
            what = "running tasks are stopped now"
        logger.info("%s: %s", name, what, extra={"action": "stopping", "signal": name})
        if self._stop_signals == 2:
            self._kill_at = self._clock() + _LAST_GRACE_SECONDS
        self._send(number)

    def _send(self, number: int) -> None:
        for slot in self._slots:
            if slot.process is not None:
                # Before a worker handles SIGINT, Python would answer it with a traceback.
                early = number == signal.SIGINT and not slot.process.loaded
                # Not reaped yet, so the id is still this process's.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.process.popen.pid, signal.SIGTERM if early else number)

    def _kill_when_due(self) -> None:
        if self._kill_at is not None and self._clock() >= self._kill_at:
            self._kill_at = None
            for slot in self._slots:
                if slot.process is not None:
                    logger.error(
                        "Worker process %d does not end and is killed; its message comes back after its visibility "
                        "timeout",
                        slot.number,
                        extra={"action": "process_killed", "slot": slot.number},
                    )
                    slot.process.killed = True
                    self._code = Exit.KILLED
            self._send(signal.SIGKILL)

    def _reap(self) -> None:
        """Reap every child that has ended: worker processes, and orphans that came to this process."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except OSError as error:
                if error.errno != errno.ECHILD:
                    raise
                break
            if pid == 0:
                break
            code = os.waitstatus_to_exitcode(status)
            for slot in self._slots:
                if slot.process is not None and slot.process.popen.pid == pid:
                    self._ended(slot, slot.process, code)

    def _ended(self, slot: _Slot, process: _Process, code: int) -> None:
        self._listen(process)
        # A leftover of the process may hold the other end open for ever.
        self._hang_up(process)
        process.popen.returncode = code
        slot.process = None
        lived = self._clock() - process.started
        how = _exit_text(code, lived, process.killed)
        if self._is_ending():
            logger.info("Worker process %d %s", slot.number, how, extra={"action": "process_stopped"})
        elif process.drained and code == Exit.OK and self._burst:
            slot.finished = True
        elif process.is_fatal and code in FATAL_CODES and not (code == Exit.NOT_READY and self._others_ready(slot)):
            self._give_up(Exit(code))
        else:
            how = f"(pid {process.popen.pid}) {how}"
            least = _NOT_READY_SECONDS if process.is_fatal and code == Exit.NOT_READY else 0.0
            self._restart_later(slot, how, lived, process.polled, least, exit_code=code)

    def _others_ready(self, slot: _Slot) -> bool:
        return any(other.has_been_ready for other in self._slots if other is not slot)

    def _restart_later(
        self, slot: _Slot, how: str, lived: float, proved: bool, least: float = 0.0, **facts: object
    ) -> None:
        # If a process that has polled is still alive, busy for hours perhaps, giving up would end it for nothing.
        proved = proved or any(slot.process is not None and slot.process.polled for slot in self._slots)
        self._start_deaths = 0 if proved else self._start_deaths + 1
        if self._start_deaths >= _START_DEATHS:
            logger.error(
                "Worker processes ended %d times in a row before their first poll, the last %s: giving up",
                self._start_deaths,
                how,
                extra={"action": "crashing"},
            )
            self._give_up(Exit.CRASHING)
            self._send(signal.SIGTERM)  # none of them has polled, so none of them runs a task
            return
        pause = max(least, slot.backoff.after(lived))
        slot.due = self._clock() + pause
        logger.warning(
            "Worker process %d %s; another starts in %.1f s",
            slot.number,
            how,
            pause,
            extra={"action": "process_died", "slot": slot.number, "elapsed": lived, **facts},
        )

    def _give_up(self, code: Exit) -> None:
        """Start no more processes, and end with this code once the others have ended by themselves."""
        self._code = code
        self._gave_up = True

    def _seconds_to_next(self) -> float | None:
        """Seconds until a restart, a kill or a touch is due; None if only an event can change anything."""
        now = self._clock()
        due = [] if self._is_ending() else [slot.due - now for slot in self._vacant()]
        if self._kill_at is not None:
            due.append(self._kill_at - now)
        if self._alive_file is not None:
            due.append(_TOUCH_SECONDS)
        return max(0.0, min(due)) if due else None


def _shell_of_process_1() -> str:
    """The name of the shell that is process 1, or "" if it is no shell."""
    try:
        with open("/proc/1/comm") as comm:
            name = comm.read().strip()
    except OSError:
        return ""
    return name if name in _SHELLS else ""


def _exit_text(code: int, lived: float, killed: bool) -> str:
    """Describes how a process ended. `killed`: by this supervisor, which then need not guess why."""
    if code >= 0:
        return f"ended with exit code {code} after {lived:.1f} s"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    likely = ", likely out of memory unless somebody killed it" if -code == signal.SIGKILL and not killed else ""
    return f"was ended by {name} after {lived:.1f} s{likely}"
