"""One function run in a supervised child process of its own, and waited for. Knows nothing of queues.

    child = Child(function)
    child.start()
    while not child.wait(seconds):      True once everything that the task started is gone
        ...                             whatever is due while it runs; child.stop(), child.kill()
    child.result()
    child.close()

The parent blocks only in `wait`, which drives a `TaskProcess`: that reads what comes and carries out a stop step by
step. See `keeper` for the processes, and for why nothing is left behind. Started with `fork`, the function need not be
picklable, and runs about 2 ms later; with `spawn` or `forkserver` it must be, and it takes about 0.2 s.
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import pickle
import select
import sys
import threading
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

from sqstaskmaster._isolation import buffers, keeper, pipes, process_tree
from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster._isolation.task_side import Function
from sqstaskmaster._isolation.usage import Usage
from sqstaskmaster._logging import get_logger
from sqstaskmaster._signals import bounded, state
from sqstaskmaster.errors import TaskNotPicklable, UnsupportedContext

logger = get_logger(__name__)

#: The log message for a task that writes into its pipes; takes its name.
SPOILED = "Task %s broke its channel to the worker, which hears no more from it"

START_METHODS = ("fork", "forkserver", "spawn")

# A thread of ours that has ended stays in the system's count for a moment.
_THREADS_SECONDS = 0.02


class Child:
    """One task in a process of its own, with a keeper of its own.

    :param function: called in the task with one argument, its `channel.Channel`.
    :param name: what the task is called in errors.
    :param start_method: "fork", "forkserver" or "spawn"; None: fork on Linux, else spawn.
    :param term_grace: seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self, function: Function, *, name: str, start_method: str | None = None, term_grace: float = 5.0
    ) -> None:
        self.task: TaskProcess | None = None
        self._function = function
        self._name = name
        self._method = start_method or default_start_method()
        self._term_grace = term_grace
        self._keeper: Any = None  # its pid, or its multiprocessing.Process
        self._payload: bytes | None = None
        self._warned = False

    def prepare(self) -> None:
        """Do the first part of `start`, which may take long: pickle the function, if the start method needs that.

        :raises TaskNotPicklable: if the start method needs to pickle it and cannot.
        """
        if self._method != "fork" and self._payload is None:
            self._payload = pickled(self._function, f"Task {self._name}", self._method)

    def start(self) -> None:
        """Start the processes.

        :raises TaskNotPicklable: if the start method needs to pickle the function and cannot; nothing was started.
        :raises OSError: if the system has no process or descriptor left; nothing was started, no descriptor is open.
        """
        self.prepare()
        payload = self._payload
        process_tree.load()
        nothing = pipes.open_nothing()
        try:
            ours, others = pipes.open_pipes()
            try:
                ends = others._replace(
                    results=pipes.out_of_reach(others.results),
                    stack=pipes.out_of_reach(others.stack),
                    notice=pipes.out_of_reach(others.notice),
                )
                others = ends
                if payload is None:
                    self._fork(ours, ends, nothing)
                else:
                    self._spawn(ours, ends, nothing, payload)
            except BaseException:
                if self.task is None:
                    pipes.close(*ours)
                raise
            finally:
                pipes.close(*others)
        finally:
            pipes.close(nothing)

    def wait(self, seconds: float, wakeup: int | None = None) -> bool:
        """Attend to the child for at most `seconds`. True as soon as it and everything below it is gone.

        :param wakeup: a descriptor that ends the wait when it is readable.
        """
        task = self.task
        now = time.monotonic()
        until = now + seconds
        while task is not None and not task.gone:
            task.step(now)
            if task.gone:
                break
            if now >= task.meter.next_look_at:
                task.meter.look(now)
            left = max(0.0, min(until, task.next_step_at, task.meter.next_look_at) - now)
            if not left and now >= until:
                return False
            # Rounded up: a little late is fine, a little early is a wasted turn.
            happened = self._read_events(task, math.ceil(left * 1000), wakeup)
            if task.spoiled and not self._warned:
                self._warned = True
                logger.warning(SPOILED, self._name)
            if wakeup in happened:
                return task.gone
            # Count what was waited for even if a test has stopped the clock.
            now = max(time.monotonic(), now if happened else now + left)
        return True

    def stop(self) -> None:
        """Begin the end: the stack is taken, then SIGTERM, then, `term_grace` later, SIGKILL to all. Does not wait."""
        if self.task is not None:
            self.task.stop()

    def kill(self) -> None:
        """SIGKILL to the task and everything below it, now. Does not wait."""
        if self.task is not None:
            self.task.kill()

    def tell_stopping(self) -> None:
        """Make `stopping` true in the task from now on. The task itself goes on."""
        if self.task is not None:
            self.task.tell_stopping()

    def result(self) -> Any:
        """What the function returned, once `wait` has returned True; see `TaskProcess.result` for what it raises."""
        return self._started().result()

    def close(self) -> None:
        """Reap the keeper, which has nothing left to do. The system takes half a millisecond to end a process."""
        keeper_process, self._keeper = self._keeper, None
        if isinstance(keeper_process, int):
            with contextlib.suppress(ChildProcessError):  # somebody else's waitpid(-1), or SIGCHLD ignored
                os.waitpid(keeper_process, 0)
        elif keeper_process is not None and keeper_process.pid is not None:
            keeper_process.join()
            keeper_process.close()

    @property
    def pid(self) -> int | None:
        return None if self.task is None else self.task.pid

    @property
    def progress(self) -> dict[str, Any]:
        """The task's last progress report."""
        return self.task.progress if self.task else {}

    @property
    def stack(self) -> str:
        """Where the task was when it was stopped or crashed, for people to read; "" if unknown."""
        return self.task.stack if self.task else ""

    @property
    def usage(self) -> Usage:
        return self.task.meter.usage if self.task else Usage()

    def memory(self, enough: int) -> int:
        """Bytes that it and everything below it hold beyond what it was started with; exact only above `enough`."""
        return self._started().meter.memory(enough)

    def _started(self) -> TaskProcess:
        if self.task is None:
            raise ValueError(f"Task {self._name} has not been started")
        return self.task

    # -- starting ------------------------------------------------------------------------------------------------

    def _fork(self, ours: pipes.Ends, ends: pipes.Ends, nothing: int) -> None:
        warn_of_threads()
        warn_of_what_is_lacking()
        buffers.before_fork()
        # None of the worker's signal handlers may run in the child, nor here before the pid is known.
        with state.held() as caught:
            pid = fork()
            if pid == 0:
                try:
                    pipes.close_own_ends()
                    keeper.keep(ends, nothing, lambda: self._function, caught)
                finally:
                    os._exit(1)
            self._keeper = pid
            self.task = TaskProcess(self._name, self._term_grace, ours, pid, process_tree.pidfd(pid))

    def _spawn(self, ours: pipes.Ends, ends: pipes.Ends, nothing: int, payload: bytes) -> None:
        context: Any = multiprocessing.get_context(self._method)
        given = [
            Connection(os.dup(end), readable=place >= 3, writable=place < 3)
            for place, end in enumerate((*ends, nothing))
        ]
        process = context.Process(target=_keep_spawned, args=(given, payload))
        try:
            process.start()
        finally:
            for connection in given:
                connection.close()
        self._keeper = process
        self.task = TaskProcess(self._name, self._term_grace, ours, process.pid, process_tree.pidfd(process.pid))

    # -- attending -----------------------------------------------------------------------------------------------

    def _read_events(self, task: TaskProcess, milliseconds: int, wakeup: int | None) -> list[int]:
        """The descriptors that were readable."""
        events = select.poll()
        for descriptor in task.descriptors():
            events.register(descriptor, select.POLLIN)
        if wakeup is not None:
            events.register(wakeup, select.POLLIN)
        happened = [descriptor for descriptor, _ in events.poll(milliseconds)]
        for descriptor in happened:
            task.read(descriptor)
        return happened


def default_start_method() -> str:
    """Fork where that is safe: on Linux. The system libraries of macOS do not survive a fork."""
    return "fork" if process_tree.LINUX else "spawn"


def pickled(function: Any, what: str, method: str) -> bytes:
    """The function pickled, for a process that is not forked. `what`: what it is called in the error.

    :raises TaskNotPicklable: if it cannot be pickled.
    """
    try:
        return pickle.dumps(function)
    except Exception as error:
        raise TaskNotPicklable(
            f"{what} cannot be sent to a process started by {method!r}, because something in it cannot be pickled "
            f"({type(error).__name__}: {error}): load it in run(), or use start_method='fork'"
        ) from error


def require_processes() -> None:
    """Raise UnsupportedContext on platforms where none of this works."""
    if not hasattr(os, "fork"):
        raise UnsupportedContext(f"Tasks in processes of their own need Linux or macOS, not {sys.platform}")


def _keep_spawned(ends: list[Any], payload: bytes) -> None:
    """What a process started by spawn or forkserver runs: the keeper. The task loads the payload."""
    buffers.before_fork()  # the main module has been imported
    with contextlib.suppress(OSError):
        # multiprocessing has opened another stdin; the task's is descriptor 0, as in every process: see `pipes`.
        sys.stdin = open(0, encoding=sys.stdin.encoding, closefd=False)
    with state.held() as caught:  # the main module may have installed handlers
        *others, nothing = (end.fileno() for end in ends)
        keeper.keep(pipes.Ends(*others), nothing, lambda: pickle.loads(payload), caught)


def fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of any thread, even one that is just ending; our warning below says what to do.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _own_threads() -> int:
    """How many of this package's own long-lived threads there are: they wait for a question, and hold no lock."""
    return sum(thread.name.startswith("sqstaskmaster-") for thread in threading.enumerate())


_warned_of_threads = False


def warn_of_threads() -> None:
    """A fork copies one thread and every lock the others held; an OpenMP region in the child then waits for ever."""
    global _warned_of_threads
    if _warned_of_threads:
        return
    for _ in bounded.looks(_THREADS_SECONDS, 0.001):
        found = process_tree.threads() - _own_threads()
        if found <= 1:
            return
    _warned_of_threads = True
    logger.warning(
        "This process has %d threads and is about to fork: a task that it forks can hang in its first OpenMP region, "
        "or on a lock that another thread holds. Run native code (NumPy, XGBoost, OR-Tools) in tasks only, never in "
        "the worker itself, or use start_method='spawn'",
        found,
    )


@functools.cache
def warn_of_what_is_lacking() -> None:
    """Warn once of what this system, or its sandbox, lacks."""
    for what in process_tree.lacking():
        logger.warning("Tasks are not fully supervised: %s", what)
