"""One function run in a supervised child process, and the parent's side of it. Knows nothing of queues.

    child = Child(function)
    child.start()
    while not child.wait(seconds):      True once everything that the task started is gone
        ...                             what has to be done while it runs; child.stop(), child.kill()
    child.result()
    child.close()

The parent never blocks but in `wait`, which reads what comes, lets time pass, and takes a stop from step to step:

    stop() -> the task's stack is asked for, SIGTERM -- term_grace --> the keeper kills and reaps all there is

See `keeper` for the processes, and for why nothing is left behind. Started with `fork`, the function need not be
picklable, and runs about 2 ms later; with `spawn` or `forkserver` it must be, and it takes about 0.2 s.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import math
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from sqstaskmaster._isolation import keeper, process_tree, stacks
from sqstaskmaster._signals import state
from sqstaskmaster.errors import RemoteError, TaskExited, TaskKilled, TaskNotPicklable, UnsupportedContext

logger = logging.getLogger(__name__)

START_METHODS = ("fork", "forkserver", "spawn")

# A stack takes under a millisecond to write, from a signal handler in C; a machine that is busy, a little longer. What
# comes later is read all the same, SIGTERM does not wait for it.
_STACK_SECONDS = 0.05
_STACK_PAUSE_SECONDS = 0.005

# A thread of ours that has ended is still there for a moment as the system sees it.
_THREADS_SECONDS = 0.02

_READ_BYTES = 1 << 20

# Tasks that close "all" descriptors mostly close those below this one.
_OUT_OF_REACH = 512

# The parent's ends of the pipes of all children, which a keeper must not inherit: it would keep lifelines from ending.
_own_ends: set[int] = set()


class Child:
    """One task in a process of its own.

    :param function: called in the task with one argument, `report`, which hands a dictionary to `progress` here.
    :param name: what the task is called in errors.
    :param start_method: "fork", "forkserver" or "spawn"; None: fork on Linux, else spawn.
    :param term_grace: seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self, function: keeper.Function, *, name: str, start_method: str | None = None, term_grace: float = 5.0
    ) -> None:
        self.progress: dict[str, Any] = {}
        self.pid: int | None = None
        self._function = function
        self._name = name
        self._method = start_method or default_start_method()
        self._term_grace = term_grace
        self._started_at = self._ended_at = 0.0
        self._keeper: Any = None  # its pid, or its multiprocessing.Process
        self._events = select.poll()
        self._readers: dict[int, Callable[[bytes], None]] = {}
        self._lifeline: int | None = None
        self._pidfd: int | None = None
        self._inbox = bytearray()
        self._news = bytearray()
        self._dump = bytearray()
        self._verdict: tuple[Any, ...] | None = None
        self._ready = False
        self._gone = True
        self._status: int | None = None
        self._next_step: Callable[[], None] | None = None
        self._next_step_at = math.inf

    # -- the life of it ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the processes.

        :raises TaskNotPicklable: where the start method needs to pickle the function and cannot; nothing was started.
        """
        payload = None if self._method == "fork" else self._pickled_function()
        process_tree.load()
        pipes = [os.pipe() for _ in range(4)]
        (results, results_end), (stack, stack_end), (news, news_end), (lifeline_end, self._lifeline) = pipes
        nothing = os.open(os.devnull, os.O_RDONLY)
        ends = keeper.Ends(_out_of_reach(results_end), _out_of_reach(stack_end), news_end, lifeline_end, nothing)
        _own_ends.update((results, stack, news, self._lifeline))
        for descriptor, reader in ((results, self._read_results), (stack, self._read_stack), (news, self._read_news)):
            os.set_blocking(descriptor, False)
            self._events.register(descriptor, select.POLLIN)
            self._readers[descriptor] = reader
        self._started_at = time.monotonic()
        # From here on `wait` is right whatever happens: without a keeper the news come to their end at once.
        self._gone = False
        try:
            if payload is None:
                self._fork(ends)
            else:
                self._spawn(ends, payload)
        finally:
            _close(*ends)
        with contextlib.suppress(AttributeError, OSError):
            # Tells of the keeper's end even where another process has inherited an end of the pipe.
            self._pidfd = os.pidfd_open(self._keeper_pid())
            self._events.register(self._pidfd, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        """Attend to the child for at most `seconds`. True as soon as it and everything below it is gone."""
        until = time.monotonic() + seconds
        while not self._gone:
            now = time.monotonic()
            if now >= self._next_step_at and self._next_step:
                step, self._next_step, self._next_step_at = self._next_step, None, math.inf
                step()
            left = min(until, self._next_step_at) - now
            if left <= 0 and now >= until:
                return False
            # Rounded up: a little late is on time, a little early is a turn for nothing.
            self._attend(math.ceil(max(0.0, left) * 1000))
        return True

    def stop(self) -> None:
        """Begin the end: the stack is taken, then SIGTERM, then, `term_grace` later, SIGKILL to all. Does not wait."""
        if self._gone:
            return
        self._attend(0)  # that it has started may have come, and not been read
        if self._ready:
            self._order(keeper.STACK_SIGNAL)
            self._in(_STACK_SECONDS, self._terminate)
        else:
            self._terminate()

    def kill(self) -> None:
        """SIGKILL to the task and everything below it, now. Does not wait."""
        self._next_step, self._next_step_at = None, math.inf
        if not self._gone:
            # In so many words, since the lifeline does not end while another process has inherited this end of it.
            self._order(signal.SIGKILL)
            self._cut_lifeline()

    def result(self) -> Any:
        """What the function returned, once `wait` has said True.

        :raises Exception: what the function raised, the child's traceback as its cause.
        :raises RemoteError: the same as text, where it cannot be unpickled here.
        :raises TaskKilled, TaskExited: where the task ended without having finished.
        """
        kind, *content = self._verdict or (None,)
        if kind == "done":
            return self._returned(*content)
        if kind == "error":
            self._raise(*content)
        raise self._died(kind, *content)

    @property
    def stack(self) -> str:
        """Where the task was when it was stopped or crashed, for people to read; "" where nothing is known."""
        return stacks.readable(self._dump.decode(errors="replace"), keeper.STARTER)

    @property
    def seconds(self) -> float:
        """How long the task has run."""
        return (self._ended_at or time.monotonic()) - self._started_at

    def memory(self, enough: int) -> int:
        """Bytes that the task and everything below it hold; exact only above `enough`. Linux only."""
        below = process_tree.descendants(self._keeper_pid())
        return process_tree.memory(below, enough)

    # -- starting ------------------------------------------------------------------------------------------------

    def _fork(self, ends: keeper.Ends) -> None:
        _warn_of_threads()
        _flush()
        # No signal handler of the worker's may run in the child, nor here before the pid is known.
        with state.held() as caught:
            with warnings.catch_warnings():
                # Python 3.12 warns of any thread, also one that is just ending; ours above says what to do.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                try:
                    _close(*list(_own_ends))
                    keeper.keep(ends, lambda: self._function, caught)
                finally:
                    os._exit(1)
            self._keeper = pid

    def _spawn(self, ends: keeper.Ends, payload: bytes) -> None:
        context: Any = multiprocessing.get_context(self._method)
        given = [Connection(os.dup(end), readable=end in ends[3:], writable=end in ends[:3]) for end in ends]
        self._keeper = context.Process(target=_keep_spawned, args=(given, payload))
        try:
            self._keeper.start()
        finally:
            for connection in given:
                connection.close()

    def _pickled_function(self) -> bytes:
        try:
            return pickle.dumps(self._function)
        except Exception as error:
            raise TaskNotPicklable(
                f"Task {self._name} cannot be sent to a process started by {self._method!r}, because something in it "
                f"cannot be pickled ({type(error).__name__}: {error}): load it in run(), or use start_method='fork'"
            ) from error

    # -- attending -----------------------------------------------------------------------------------------------

    def _attend(self, milliseconds: int) -> None:
        over = False
        for descriptor, _ in self._await_events(milliseconds):
            if descriptor == self._pidfd:
                over = True
            elif not self._read(descriptor):
                self._events.unregister(descriptor)
                over = over or self._readers[descriptor] == self._read_news
        if over or self._status is not None:
            self._end()

    def _await_events(self, milliseconds: int) -> list[tuple[int, int]]:
        return self._events.poll(milliseconds)  # in a frame of its own: see `is_waiting`

    def _read(self, descriptor: int) -> bool:
        """Read what is there. False at the end of the file."""
        try:
            content = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return True
        self._readers[descriptor](content)
        return bool(content)

    def _read_results(self, content: bytes) -> None:
        self._inbox += content
        head = keeper.LENGTH.size
        while len(self._inbox) >= head:
            (length,) = keeper.LENGTH.unpack_from(self._inbox)
            if len(self._inbox) < head + length:
                return
            message = bytes(self._inbox[head : head + length])
            del self._inbox[: head + length]
            self._take(message)

    def _take(self, message: bytes) -> None:
        try:
            kind, *content = _load(message)
        except Exception as error:
            # The task has written to a descriptor that is not its own.
            logger.warning("Task %s (pid %s) spoiled its channel: %s", self._name, self.pid, error)
            return
        if kind == "started":
            self._ready = True
        elif kind == "progress":
            whole, _, words = content
            try:
                self.progress = _load(whole)
            except Exception:
                self.progress = words
        else:
            self._verdict = (kind, *content)

    def _read_stack(self, content: bytes) -> None:
        self._dump += content
        if self._next_step == self._terminate and content:
            self._in(_STACK_PAUSE_SECONDS, self._terminate)

    def _read_news(self, content: bytes) -> None:
        self._news += content
        numbers = [number for (number,) in keeper.NUMBER.iter_unpack(self._news[: len(self._news) // 8 * 8])]
        # Told apart by their sign, not by their order: an interrupt may have lost one of them.
        for number in numbers:
            if number > 0:
                self.pid = number
            else:
                self._status = -1 - number

    def _end(self) -> None:
        """Everything below the keeper is gone: read what is left, and clean up."""
        for descriptor in self._readers:
            with contextlib.suppress(OSError):  # nothing more to read
                while self._drain(descriptor):
                    pass
        if self._status is None and self.pid is not None:
            # The keeper was killed; the task died with it, but what it started may not have.
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        self._ended_at = time.monotonic()
        self._gone = True
        self._cut_lifeline()
        _close(*self._readers, *([] if self._pidfd is None else [self._pidfd]))
        self._readers.clear()

    def close(self) -> None:
        """Reap the keeper, which has nothing left to do. It takes the system half a millisecond to end a process."""
        keeper_process, self._keeper = self._keeper, None
        if isinstance(keeper_process, int):
            with contextlib.suppress(ChildProcessError):  # somebody else's waitpid(-1), or SIGCHLD ignored
                os.waitpid(keeper_process, 0)
        elif keeper_process is not None and keeper_process.pid is not None:
            keeper_process.join()
            keeper_process.close()

    def _cut_lifeline(self) -> None:
        if self._lifeline is not None:
            _close(self._lifeline)
            self._lifeline = None

    def _drain(self, descriptor: int) -> bool:
        content = os.read(descriptor, _READ_BYTES)
        self._readers[descriptor](content)
        return bool(content)

    # -- stopping ------------------------------------------------------------------------------------------------

    def _in(self, seconds: float, step: Callable[[], None]) -> None:
        self._next_step, self._next_step_at = step, time.monotonic() + seconds

    def _terminate(self) -> None:
        self._order(signal.SIGTERM)
        self._in(self._term_grace, self.kill)

    def _order(self, number: int) -> None:
        if self._lifeline is not None:
            with contextlib.suppress(BrokenPipeError):  # the keeper has ended, and wait is about to notice
                os.write(self._lifeline, bytes([number]))
            self._wake_keeper()

    def _wake_keeper(self) -> None:
        process_tree.kill(self._keeper_pid(), signal.SIGCONT)  # lest the task has stopped it

    def _keeper_pid(self) -> int:
        pid: int = self._keeper if isinstance(self._keeper, int) else self._keeper.pid
        return pid

    # -- the words for it ----------------------------------------------------------------------------------------

    def _returned(self, whole: bytes | None, problem: str) -> Any:
        try:
            if whole is not None:
                return _load(whole)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        logger.warning("Task %s finished, but what it returned did not get here: %s", self._name, problem)
        return None

    def _raise(self, whole: bytes | None, summary: str, text: str) -> None:
        cause = _ChildTraceback(text)
        try:
            error = _load(whole) if whole is not None else None
        except Exception:
            error = None
        if not isinstance(error, Exception):
            error = RemoteError(self._name, summary, text)
        raise error from cause

    def _died(self, kind: str | None, *content: Any) -> Exception:
        facts: dict[str, Any] = {"task": self._name, "pid": self.pid, "seconds": self.seconds, "stack": self.stack}
        status = self._status
        if kind == "terminated":
            return TaskKilled(signal.SIGTERM, **facts)
        if kind == "exit":
            return TaskExited(*content, **facts)
        if status is None:
            return TaskKilled(None, **facts)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            return TaskKilled(-code, **facts)
        return TaskExited(code, "it called os._exit, perhaps, or closed all its descriptors", **facts)


class _ChildTraceback(Exception):
    """The traceback of the child process, shown as the cause of what is raised in the parent."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"in the task's process:\n{self.text}"


class _KnownModulesOnly(pickle.Unpickler):
    """Loads nothing of a module that this process has not loaded.

    Importing what only the task uses (XGBoost, NumPy) would hold up the heartbeat, and start threads in a process that
    has to fork.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            raise pickle.UnpicklingError(f"its module {module} is loaded in the task's process only")
        return super().find_class(module, name)


def _load(content: bytes) -> Any:
    return _KnownModulesOnly(io.BytesIO(content)).load()


def is_waiting(frame: FrameType | None) -> bool:
    """Whether `frame`, where a signal landed, is where a Child waits for a task that has not reported its end.

    An exception raised there by the signal's handler does no harm: no process is half started, no result half read.
    """
    return (
        frame is not None
        and frame.f_code is Child._await_events.__code__
        and getattr(frame.f_locals["self"], "_verdict", None) is None
    )


def default_start_method() -> str:
    """Fork where it is safe: on Linux. The system libraries of macOS do not survive one."""
    return "fork" if process_tree.LINUX else "spawn"


def require_processes() -> None:
    """Raises UnsupportedContext where none of this works."""
    if not hasattr(os, "fork"):
        raise UnsupportedContext(f"Tasks in processes of their own need Linux or macOS, not {sys.platform}")


def _out_of_reach(descriptor: int) -> int:
    """The same open file under a number that a task which closes descriptors is unlikely to close."""
    try:
        high = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_REACH)
    except OSError:
        return descriptor  # over this process's limit
    os.close(descriptor)
    return high


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        _own_ends.discard(descriptor)
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _keep_spawned(ends: list[Any], payload: bytes) -> None:
    """What a process started by spawn or forkserver runs: the keeper. The payload is the task's to load."""
    with state.held() as caught:  # the main module may have installed handlers
        keeper.keep(keeper.Ends(*(end.fileno() for end in ends)), lambda: pickle.loads(payload), caught)


def _flush() -> None:
    """Lest what is buffered be written twice."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.flush()


_warned_of_threads = False


def _warn_of_threads() -> None:
    """A fork copies one thread and every lock the others held; an OpenMP region in the child then waits for ever."""
    global _warned_of_threads
    if _warned_of_threads:
        return
    until = time.monotonic() + _THREADS_SECONDS
    while _threads() > 1:
        if time.monotonic() > until:
            _warned_of_threads = True
            logger.warning(
                "This process has %d threads and is about to fork: a task that it forks can hang in its first OpenMP "
                "region, or on a lock that another thread holds. Run native code (NumPy, XGBoost, OR-Tools) in tasks "
                "only, never in the worker itself, or use start_method='spawn'",
                _threads(),
            )
            return
        time.sleep(0.001)


def _threads() -> int:
    """As the system counts them, those of OpenMP included; as Python does where there is no /proc."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()
