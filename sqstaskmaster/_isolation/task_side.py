"""The task's process: how it sheds what it inherited, calls the function, and reports how that ended."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing.process
import os
import shutil
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from sqstaskmaster._isolation import buffers, carried, channel, pipes, plain, process_tree
from sqstaskmaster._isolation.pipes import Ends
from sqstaskmaster._signals import forks, state

#: Makes the task write its Python stack. A real-time signal if there are any, since tasks may use SIGUSR1 and SIGUSR2.
STACK_SIGNAL: int = signal.SIGRTMAX - 2 if hasattr(signal, "SIGRTMAX") else getattr(signal, "SIGUSR2", 0)

#: Called in the task with its channel.
Function = Callable[[channel.Channel], Any]


# The worker's temporary folder of multiprocessing, which its tasks go on using.
_inherited_folder: str | None = None


def _temporary_folder() -> str | None:
    """The temporary folder of multiprocessing, which makes one for each process that needs it."""
    return multiprocessing.process.current_process()._config.get("tempdir")  # type: ignore[attr-defined, no-any-return]


def settle(keeper: int, nothing: int) -> None:
    """The first acts of a process that will be a task: let go of what it inherited. Signals stay as they are.

    `nothing` is its standard input: see `pipes.standard_input`.
    """
    # Freeze what was inherited: a collection that visited it would copy every page of it.
    gc.enable()
    gc.freeze()
    process_tree.die_with_parent()
    if os.getppid() != keeper:
        os._exit(1)
    os.setpgid(0, 0)
    process_tree.prefer_for_oom_kill()
    global _inherited_folder
    _inherited_folder = _temporary_folder()
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]  # the worker's
    os.dup2(nothing, 0)
    pipes.reserve_standard()
    if "numpy.random" in sys.modules:
        # Forked processes would all draw the same numbers; Python's own generator reseeds itself.
        sys.modules["numpy.random"].seed()


def perform(ends: Ends, load: Callable[[], Function], caught: frozenset[int]) -> NoReturn:
    """Run the function that `load` returns, and report how it ended. `load` may load the user's code.

    Only `results`, `stack` and `notice` of the ends are used. `caught` are the signals the worker had handlers for.
    """

    def run(owner: int) -> None:
        begin(ends.stack, caught)
        run_one(load, ends, owner, _end_as_python_does, says_start=True)

    exit_after(run)


def begin(stack: int, caught: frozenset[int]) -> None:
    """Set up signals and logging as the user's code is to find them. Stacks are written to `stack`."""
    state.start_afresh(caught)
    _write_stacks_to(stack)
    buffers.carry_records()


def exit_after(body: Callable[[int], Any]) -> NoReturn:
    """Call `body` with this process's pid, then end the process, however `body` ends."""
    code = 1
    owner = os.getpid()
    try:
        body(owner)
        code = 0
    except state.Terminated as terminated:
        code = int(terminated.code or 1)
    except _Untold:
        pass  # the worker sees that there is no verdict, and reports that
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


def run_one(
    load: Callable[[], Function], ends: Ends, owner: int, end: Callable[[], Any], says_start: bool = False
) -> bool:
    """Run the function, and report how it ended. True if it returned.

    :param end: called when it has returned, before that is reported: to write what is buffered, at least.
    :param says_start: whether to report its start too: in a process that stays, the keeper knows.
    """
    own: channel.Channel | None = None
    try:
        function = load()
        if os.getpid() != owner:
            os._exit(0)
        own = channel.current = channel.Channel(ends.results, ends.notice, function)
        if says_start:
            own.send(channel.STARTED, plain.dump(process_tree.peak_of_self()))
        value = function(own)
        if os.getpid() == owner:
            end()
    except BaseException as error:
        if os.getpid() != owner:
            os._exit(_exit_code(error))
        own = own or channel.Channel(ends.results, ends.notice, load)
        _tell(_written_down(error), own)
        if isinstance(error, state.Terminated):
            raise
        return False
    if os.getpid() != owner:
        os._exit(0)
    _send(own, channel.DONE, plain.spoken(value))
    return True


class _StackFile:
    """Referenced by faulthandler alone: gone as soon as the task gives that another file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def flush(self) -> None:
        pass


def _write_stacks_to(descriptor: int) -> None:
    """Have faulthandler write stacks there, in this process only: those of its forks would be taken for the task's."""
    was_enabled = faulthandler.is_enabled()
    on_crash, on_signal = _StackFile(descriptor), _StackFile(descriptor)
    faulthandler.enable(on_crash)
    faulthandler.register(STACK_SIGNAL, on_signal, all_threads=True)
    crash_is_ours, signal_is_ours = weakref.ref(on_crash), weakref.ref(on_signal)

    def put_back() -> None:
        if signal_is_ours() is not None:
            faulthandler.unregister(STACK_SIGNAL)
        if crash_is_ours() is not None:
            faulthandler.disable()
            if was_enabled:
                faulthandler.enable()

    forks.undo_in_child(put_back)


class _Untold(Exception):
    """The task has closed, or filled, the pipe that its verdict is sent through."""


def _send(own: channel.Channel, kind: bytes, content: bytes) -> None:
    try:
        own.send(kind, content)
    except OSError as error:
        raise _Untold from error


#: The function that calls the task, for readers of its stack.
STARTER = (run_one.__code__.co_filename, run_one.__name__)


def _end_as_python_does() -> None:
    """Do what Python does at the end of a process: wait for threads and processes that are not daemons.

    Functions registered with atexit are not run: most of them are the worker's.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # ends idle pools first
    end_multiprocessing()
    buffers.write_all()


def end_multiprocessing(stays: Collection[Any] = (), least: int | None = None) -> None:
    """Do what multiprocessing does at the end of a process.

    :param stays: children that are not waited for.
    :param least: the least priority of the finalizers to run. None: all, and multiprocessing forgets those without a
        priority, which would run when their objects go.
    """
    # This process's own only: pools and managers are ended, then queues written, the temporary folder removed.
    finalize = getattr(sys.modules.get("multiprocessing.util"), "_run_finalizers", lambda least=None: None)
    finalize(0)
    for process in multiprocessing.process.active_children():
        if not process.daemon and process not in stays:
            process.join()
    finalize(least)


def _written_down(error: BaseException) -> BaseException:
    """Write what is buffered; the error to report. One that stands for finished work gives way if the write fails."""
    folder = _temporary_folder()
    if folder is not None and folder != _inherited_folder:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        buffers.write_all()
    except OSError as lost:
        return lost if getattr(error, "crosses_processes", False) else error
    return error


def _tell(error: BaseException, own: channel.Channel) -> None:
    if isinstance(error, state.Terminated):
        _send(own, channel.TERMINATED, b"null")
    elif isinstance(error, SystemExit):
        how = f"it called sys.exit({plain.text_of(error.code, 1000)})"
        _send(own, channel.EXITED, plain.dump([_exit_code(error), how]))
    else:
        _send(own, channel.ERROR, carried.described(error))


def _exit_code(error: BaseException) -> int:
    """The exit code that Python itself would derive from the exception."""
    if not isinstance(error, SystemExit):
        return 1
    code = error.code
    # The system keeps only the lowest byte.
    return code & 0xFF if isinstance(code, int) else int(code is not None)
