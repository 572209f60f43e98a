"""The task's process: what it cleans of what it inherited, how the function is called, and how its end is told."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing.process
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from sqstaskmaster._isolation import carried, channel, plain, process_tree
from sqstaskmaster._isolation.pipes import Ends
from sqstaskmaster._signals import state

#: Makes the task write its Python stack. A real-time signal where there are any, since tasks use the other two.
STACK_SIGNAL: int = signal.SIGRTMAX - 2 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2

#: Called in the task with its channel.
Function = Callable[[channel.Channel], Any]


def settle(keeper: int, nothing: int) -> None:
    """The first acts of a process that will be a task: part from what it inherited. Signals stay as they are.

    `nothing` is an open os.devnull, for its standard input: a terminal is not for it to read from.
    """
    # What was inherited stays: a collection that visits it would copy every page of it.
    gc.enable()
    gc.freeze()
    process_tree.die_with_parent()
    if os.getppid() != keeper:
        os._exit(1)
    os.setpgid(0, 0)
    process_tree.prefer_for_oom_kill()
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]  # the worker's
    os.dup2(nothing, 0)
    if "numpy.random" in sys.modules:
        # Forked processes would all draw the same; Python's own generator takes care of itself.
        sys.modules["numpy.random"].seed()


def perform(ends: Ends, load: Callable[[], Function], caught: frozenset[int]) -> NoReturn:
    """Run the function that `load` gives, and tell how it ended. What it loads may be the user's.

    Only `results`, `stack` and `notice` of the ends are used. `caught` are the signals the worker had handlers for.
    """
    code = 1
    owner = os.getpid()
    try:
        faulthandler.enable(ends.stack)
        faulthandler.register(STACK_SIGNAL, ends.stack, all_threads=True)
        state.start_afresh(caught)
        _run(load, ends, owner)
        code = 0
    except state.Terminated as terminated:
        code = int(terminated.code or 1)
    except _Untold:
        pass  # the worker sees that nothing was told, and says so
    except BaseException:
        if os.getpid() == owner:
            traceback.print_exc()
    finally:
        if os.getpid() == owner:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
        os._exit(code)


def _run(load: Callable[[], Function], ends: Ends, owner: int) -> None:
    own: channel.Channel | None = None
    try:
        function = load()
        if os.getpid() != owner:
            os._exit(0)
        own = channel.current = channel.Channel(ends.results, ends.notice, function)
        own.send(channel.STARTED, plain.dump(process_tree.peak_of_self()))
        value = function(own)
        if os.getpid() == owner:
            _end_as_python_does()
    except BaseException as error:
        if os.getpid() != owner:
            os._exit(_exit_code(error))
        own = own or channel.Channel(ends.results, ends.notice, load)
        _tell(error, own)
        if isinstance(error, state.Terminated):
            raise
    else:
        if os.getpid() != owner:
            os._exit(0)
        _send(own, channel.DONE, plain.spoken(value))


class _Untold(Exception):
    """The task has closed, or filled, what its end is told through."""


def _send(own: channel.Channel, kind: bytes, content: bytes) -> None:
    try:
        own.send(kind, content)
    except OSError as error:
        raise _Untold from error


#: Where the task is called from, for whoever reads its stack.
STARTER = (_run.__code__.co_filename, _run.__name__)


def _end_as_python_does() -> None:
    """What Python does at the end of a process: wait for threads that are no daemons, and for such processes.

    Not what was registered with atexit: most of that is the worker's.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # sends idle pools home first
    for process in multiprocessing.process.active_children():
        if not process.daemon:
            process.join()


def _tell(error: BaseException, own: channel.Channel) -> None:
    if isinstance(error, state.Terminated):
        _send(own, channel.TERMINATED, b"null")
    elif isinstance(error, SystemExit):
        how = f"it called sys.exit({plain.text_of(error.code, 1000)})"
        _send(own, channel.EXITED, plain.dump([_exit_code(error), how]))
    else:
        _send(own, channel.ERROR, carried.described(error))


def _exit_code(error: BaseException) -> int:
    """As Python itself makes an exit code of an exception."""
    if not isinstance(error, SystemExit):
        return 1
    code = error.code
    # The lowest byte is what the system keeps of it.
    return code & 0xFF if isinstance(code, int) else int(code is not None)
