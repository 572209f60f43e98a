"""The two processes of one task: the keeper, and the task below it. What runs here runs after the fork.

    worker -- starts --> keeper -- forks --> task -- starts whatever it likes --> ...

The keeper is why nothing of a task can be left behind. It is the parent of the task and, on Linux, of every descendant
whose own parent ends; it does nothing but wait for one of two events, and then kills and reaps what is below it:

- the task ended, however it did;
- its lifeline, a pipe of which only the worker has the other end, came to its end: the worker asked for that by closing
  it, or the worker itself is gone, SIGKILLed perhaps.

Through the lifeline come orders too, a byte each: the number of a signal to be sent to the task. The keeper sends them
since it is the one who reaps the task, and so the only one who cannot hit a process that got the task's pid after it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing.process
import os
import pickle
import select
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from sqstaskmaster._isolation import process_tree
from sqstaskmaster._signals import state

#: Makes the task write its Python stack. A real-time signal where there are any, since tasks use the other two.
STACK_SIGNAL: int = signal.SIGRTMAX - 2 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2

#: What the keeper writes: the task's pid when it has started; when everything is gone, -1 less its wait status.
NUMBER = struct.Struct("=q")

#: Before each message of a task: its length in bytes.
LENGTH = struct.Struct("=Q")

# How often the keeper looks whether the worker is still its parent: the lifeline tells at once, but not while some
# other process has inherited the worker's end of it.
_LOOK_MILLISECONDS = 1000

# The same for the task, on systems that cannot tell at once when a process ends (no pidfd).
_LOOK_WITHOUT_PIDFD_MILLISECONDS = 20

Report = Callable[[dict[str, Any]], None]
Function = Callable[[Report], Any]


class Ends(NamedTuple):
    """The descriptors that the keeper and its task have: where results, stacks and news go, whence orders come.

    `nothing` is an open os.devnull, for the task's standard input.
    """

    results: int
    stack: int
    news: int
    lifeline: int
    nothing: int


class ChannelMisused(RuntimeError):
    """Progress was reported from another process than the task's own."""


def keep(ends: Ends, load: Callable[[], Function], caught: frozenset[int]) -> NoReturn:
    """The keeper's whole life, in a process that was started for it, in `state.held`.

    `load` is called in the task: what it loads may be the user's. `caught` are the signals with a handler. They and
    requests to stop stay blocked here: the keeper outlasts them.

    After a fork each page that is touched is copied, which takes longer than anything done with it here: so there is
    little of it, and what can be done before the fork is done there.
    """
    try:
        gc.disable()
        worker = os.getppid()
        state.keep_exit_status()
        os.setsid()  # out of the terminal's reach: Ctrl-C is for the worker to decide on
        process_tree.adopt_orphans()
        keeper = os.getpid()
        task = os.fork()
        if task == 0:
            _be_task(ends, keeper, load, caught)
        os.close(ends.results)
        os.close(ends.stack)
        os.write(ends.news, NUMBER.pack(task))
        _wait(task, ends.lifeline, worker)
        with contextlib.suppress(OSError):
            os.killpg(task, signal.SIGKILL)  # before it is reaped, while nobody else can be that group
        _, status = os.waitpid(task, 0)
        process_tree.sweep()
        os.write(ends.news, NUMBER.pack(-1 - status))
    except BaseException:
        with contextlib.suppress(OSError):
            os.write(ends.stack, traceback.format_exc().encode())
    finally:
        os._exit(0)


def _wait(task: int, lifeline: int, worker: int) -> None:
    """Until the task has ended, or must: it is not reaped here."""
    events = select.poll()
    events.register(lifeline, select.POLLIN)
    end, look = _pidfd(task), _LOOK_MILLISECONDS
    if end is None:
        look = _LOOK_WITHOUT_PIDFD_MILLISECONDS
    else:
        events.register(end, select.POLLIN)
    while True:
        happened = dict(events.poll(look))
        if end in happened or end is None and os.waitid(os.P_PID, task, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        orders = os.read(lifeline, 64) if lifeline in happened else b""
        for number in orders:
            process_tree.kill(task, number)
        if os.getppid() != worker or lifeline in happened and not orders:
            process_tree.kill(task, signal.SIGKILL)
            return


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _be_task(ends: Ends, keeper: int, load: Callable[[], Function], caught: frozenset[int]) -> NoReturn:
    """The task's whole life. Its first acts clean what it inherited."""
    code = 1
    try:
        # What was inherited stays: a collection that visits it would copy every page of it.
        gc.enable()
        gc.freeze()
        process_tree.die_with_parent()
        if os.getppid() != keeper:
            os._exit(1)
        os.setpgid(0, 0)
        os.close(ends.news)
        os.close(ends.lifeline)
        faulthandler.enable(ends.stack)
        faulthandler.register(STACK_SIGNAL, ends.stack, all_threads=True)
        channel = _Channel(ends.results)
        multiprocessing.process._children.clear()  # type: ignore[attr-defined]  # the worker's
        os.dup2(ends.nothing, 0)  # a terminal is not for it to read from
        if "numpy.random" in sys.modules:
            # Forked processes would all draw the same; Python's own generator takes care of itself.
            sys.modules["numpy.random"].seed()
        state.start_afresh(caught)
        _run(load, channel)
        code = 0
    except state.Terminated as terminated:
        code = int(terminated.code or 1)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _run(load: Callable[[], Function], channel: _Channel) -> None:
    try:
        channel.send("started")
        value = load()(channel.report)
        # What Python does at the end of a process: wait for threads that are no daemons, idle pools sent home first,
        # and for such processes. Not what was registered with atexit: most of that is the worker's.
        threading._shutdown()  # type: ignore[attr-defined]
        for process in multiprocessing.process.active_children():
            if not process.daemon:
                process.join()
    except state.Terminated:
        channel.send("terminated")
        raise
    except SystemExit as error:
        # As Python itself makes an exit code of it.
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        channel.send("exit", code, f"it called sys.exit({error.code!r})")
    except BaseException as error:
        channel.send("error", *described(error))
    else:
        channel.send("done", *pickled(value))


#: Where the task is called from, for whoever reads its stack.
STARTER = (_run.__code__.co_filename, _run.__name__)


class _Channel:
    """The task's side of the results: whole messages, from any of its threads, and from no other process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def report(self, progress: dict[str, Any]) -> None:
        if os.getpid() != self._owner:
            raise ChannelMisused("Progress can be reported by the task's own process only, not by one that it started")
        # For values of modules that only the task has loaded, words must do.
        self.send("progress", *pickled(progress), {name: repr(value) for name, value in progress.items()})

    def send(self, *message: Any) -> None:
        content = pickle.dumps(message)
        unsent = memoryview(LENGTH.pack(len(content)) + content)
        with self._lock:
            while unsent:
                unsent = unsent[os.write(self._descriptor, unsent) :]


def pickled(value: Any) -> tuple[bytes | None, str]:
    """The value for the worker, or None and why there is none."""
    try:
        return pickle.dumps(value), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def described(error: BaseException) -> tuple[bytes | None, str, str]:
    """The exception for the worker: whole if that can be, and in any case as text and with its traceback."""
    # Without the frame that called the task, which is ours.
    shown = error.__traceback__.tb_next if error.__traceback__ else None
    text = "".join(traceback.format_exception(type(error), error, shown))
    whole = None
    # One that would end the worker (KeyboardInterrupt) is only told of.
    if isinstance(error, Exception):
        whole, _ = pickled(error)
        try:
            pickle.loads(whole or b"")
        except Exception:
            whole = None  # many can be pickled but not loaded: they need more than their arguments
    return whole, "".join(traceback.format_exception_only(type(error), error)).strip(), text
