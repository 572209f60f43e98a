"""The supervisor: keeps N worker processes alive, and never runs a task itself.

    supervisor (no boto3, no user code)
       |  starts a fresh interpreter each, in a session of its own; restarts those that die, with backoff
       |  passes SIGTERM and SIGINT on, once per signal
       |  reaps everything, orphans too (as PID 1 it inherits every process whose parent has ended)
       +-- worker process 0   <-- one byte per event over a socket: loaded, polled, busy, idle
       +-- worker process 1       the supervisor's end of the socket closes when it dies, however it dies
       +-- ...

Fresh interpreters rather than forks: a process that forks must not have run native code (user modules do when they are
imported), and after a restart the module is read anew. That costs each process its own 25 MB of boto3, and 0.3 s.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster._signals.wakeup import Inbox

logger = logging.getLogger(__name__)

# What a worker process says over its socket.
LOADED, POLLED, BUSY, IDLE = b"l", b"p", b"b", b"i"

# A process whose last successful poll is older is not alive, unless it is busy: the longest poll (20 s), its longest
# answer (10 s more) and a pause after an error (up to a minute).
POLL_PATIENCE_SECONDS = 90.0

_TOUCH_SECONDS = 1.0

# After the second signal a worker process ends its task and gives its message back; one that has not by then is killed.
_LAST_GRACE_SECONDS = 15.0

# So many deaths in a row before any process has polled once: restarting does not help.
_START_DEATHS = 8

# These exit codes of a worker process are about what it was told to do: the next would end the same way.
_HOPELESS = {Exit.USAGE, Exit.MODULE, Exit.QUEUE}


class Backoff:
    """How long to wait before a restart, in seconds: doubled from `first` up to `longest`.

    A process that lived at least `healthy` seconds begins anew.
    """

    def __init__(self, first: float = 0.5, longest: float = 30.0, healthy: float = 60.0) -> None:
        self._first, self._longest, self._healthy = first, longest, healthy
        self._next = first

    def after(self, lived: float) -> float:
        if lived >= self._healthy:
            self._next = self._first
        seconds, self._next = self._next, min(self._next * 2, self._longest)
        return seconds


class _Slot:
    """One of the N places, and the process in it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.backoff = Backoff()
        self.due = 0.0
        self.finished = False
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: socket.socket | None = None
        self.started = 0.0
        self.loaded = False
        self.polled: float | None = None
        self.busy = False

    def is_alive(self, now: float) -> bool:
        """Whether the process does its work, as far as it has said."""
        if self.process is None:
            return False
        return self.busy or (self.polled is not None and now - self.polled <= POLL_PATIENCE_SECONDS)


class Supervisor:
    """Runs `command` in `processes` processes until it is told to stop.

    :param command: the arguments of a fresh Python interpreter; the process gets two more, the number of its
        descriptor to speak on and this process's id.
    :param burst: a process that ends with 0 has found the queue empty, and is not restarted.
    :param alive_file: touched once a second while every process has polled in the last 90 seconds, or is busy with a
        task. So it grows old when one of them hangs, or cannot reach the queue; a container's health check looks at it.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        burst: bool = False,
        alive_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = [sys.executable, *command]
        self._burst = burst
        self._alive_file = alive_file
        self._touched = 0.0
        self._clock = clock
        self._slots = [_Slot(number) for number in range(processes)]
        self._stop_signals = 0
        self._kill_at: float | None = None
        self._start_deaths = 0
        self._code = Exit.OK
        self._selector = selectors.DefaultSelector()

    def run(self) -> Exit:
        """Supervise until every process has ended for good."""
        stops = (signal.SIGTERM, signal.SIGINT)
        with Inbox(*stops, signal.SIGCHLD) as inbox, self._selector:
            self._selector.register(inbox, selectors.EVENT_READ, None)
            while True:
                self._start_due()
                if all(slot.process is None for slot in self._slots) and self._is_over():
                    return self._code
                for key, _ in self._selector.select(self._seconds_to_next()):
                    if key.data is not None:
                        self._hear(key.data)
                for number in inbox.read():
                    if number in stops:
                        self._stop(number)
                self._reap()
                self._kill_when_due()
                self._touch()

    # -- starting ------------------------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        return bool(self._stop_signals) or all(slot.finished for slot in self._slots)

    def _start_due(self) -> None:
        if self._stop_signals:
            return
        now = self._clock()
        # One process first: what is wrong with the module is then said once, not N times.
        proven = any(slot.loaded for slot in self._slots) or any(slot.finished for slot in self._slots)
        for slot in self._slots if proven else self._slots[:1]:
            if slot.process is None and not slot.finished and slot.due <= now:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            slot.process = subprocess.Popen(
                [*self._command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Ctrl-C in a terminal goes to a whole session: a worker would count it, and the one passed on, as two.
                start_new_session=True,
            )
        slot.socket, slot.started = ours, self._clock()
        slot.loaded = slot.busy = False
        slot.polled = None
        self._selector.register(ours, selectors.EVENT_READ, slot)
        logger.info(
            "Worker process %d started as pid %d",
            slot.number,
            slot.process.pid,
            extra={"action": "process_started", "slot": slot.number, "pid": slot.process.pid},
        )

    # -- listening -----------------------------------------------------------------------------------------------

    def _hear(self, slot: _Slot) -> None:
        """Take in what a worker process has said."""
        if slot.socket is None:
            return
        try:
            said = slot.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self._selector.unregister(slot.socket)
            slot.socket.close()
            slot.socket = None
            return
        slot.loaded = True
        if POLLED in said:
            slot.polled = self._clock()
            self._start_deaths = 0
        last = max(said.rfind(BUSY), said.rfind(IDLE))
        if last >= 0:
            slot.busy = said[last : last + 1] == BUSY
            slot.polled = self._clock()

    def _touch(self) -> None:
        now = self._clock()
        if self._alive_file is None or now - self._touched < _TOUCH_SECONDS:
            return
        if all(slot.finished or slot.is_alive(now) for slot in self._slots):
            self._touched = now
            try:
                self._alive_file.touch()
            except OSError as error:
                logger.warning("Cannot touch the alive file: %s", error, extra={"action": "alive_file_failed"})

    # -- ending --------------------------------------------------------------------------------------------------

    def _stop(self, number: int) -> None:
        """Pass a stop signal on. The workers make of it what they do: the first drains, the second means now."""
        self._stop_signals += 1
        name = signal.Signals(number).name
        what = "no more tasks are taken" if self._stop_signals == 1 else "running tasks are stopped now"
        logger.info("%s: %s", name, what, extra={"action": "stopping", "signal": name})
        if self._stop_signals == 2:
            self._kill_at = self._clock() + _LAST_GRACE_SECONDS
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for slot in self._slots:
            if slot.process is not None:
                # Not reaped yet, so the id is still this process's.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.process.pid, number)

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
                if slot.process is not None and slot.process.pid == pid:
                    slot.process.returncode = code
                    self._ended(slot, code)

    def _ended(self, slot: _Slot, code: int) -> None:
        self._hear(slot)
        lived = self._clock() - slot.started
        pid, never_polled = slot.process and slot.process.pid, slot.polled is None
        slot.process = None
        slot.busy = False
        if self._stop_signals:
            logger.info("Worker process %d %s", slot.number, _words(code, lived), extra={"action": "process_stopped"})
            return
        if code == Exit.OK and self._burst:
            slot.finished = True
            return
        if code in _HOPELESS:
            self._give_up(Exit(code))
            return
        self._start_deaths = self._start_deaths + 1 if never_polled else 0
        if self._start_deaths >= _START_DEATHS:
            logger.error(
                "Worker processes died %d times before their first poll, the last %s: giving up",
                self._start_deaths,
                _words(code, lived),
                extra={"action": "crashing"},
            )
            self._give_up(Exit.CRASHING)
            return
        pause = slot.backoff.after(lived)
        slot.due = self._clock() + pause
        logger.warning(
            "Worker process %d (pid %s) %s; another starts in %.1f s",
            slot.number,
            pid,
            _words(code, lived),
            pause,
            extra={"action": "process_died", "slot": slot.number, "exit_code": code, "elapsed": lived},
        )

    def _give_up(self, code: Exit) -> None:
        """Stop the other processes, as the first signal does, and end with this code."""
        self._code = code
        self._stop_signals += 1
        self._send(signal.SIGTERM)

    def _seconds_to_next(self) -> float | None:
        """Until a restart, a kill or a touch is due; None where only an event can change anything."""
        now = self._clock()
        due = [slot.due - now for slot in self._slots if slot.process is None and not slot.finished]
        if self._kill_at is not None:
            due.append(self._kill_at - now)
        if self._alive_file is not None:
            due.append(_TOUCH_SECONDS)
        return max(0.0, min(due)) if due and not (self._stop_signals and self._kill_at is None) else None


def _words(code: int, lived: float) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code} after {lived:.1f} s"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    likely = ", likely out of memory unless somebody killed it" if -code == signal.SIGKILL else ""
    return f"was ended by {name} after {lived:.1f} s{likely}"
