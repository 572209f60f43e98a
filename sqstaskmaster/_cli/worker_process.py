"""One worker process, which the supervisor starts in a fresh interpreter to run one Worker.

It reports its state on a socket. If the supervisor is gone, it gives its message back and stops at once.
"""

from __future__ import annotations

import faulthandler
import importlib
import io
import json
import os
import signal
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TextIO

from sqstaskmaster._cli import logs
from sqstaskmaster._cli.exits import CommandError, explain
from sqstaskmaster._cli.stderr import STDERR
from sqstaskmaster._isolation import process_tree
from sqstaskmaster._logging import switch_on
from sqstaskmaster._service import loading
from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster._service.supervisor import BUSY, DRAINED, FATAL, FATAL_CODES, IDLE, LOADED, POLLED, READY
from sqstaskmaster._signals import state
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster.errors import ConfigurationError, InitializerFailed, PollRefused, UnsupportedContext

if TYPE_CHECKING:
    from sqstaskmaster.worker import Worker


# This package's folder.
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

# The longest that this process outlives the supervisor, whatever its task does.
_ORPHAN_SECONDS = 1.5

# The longest that threads of the user's module keep the process alive once its work is done.
_LEAVE_SECONDS = 5.0

# The longest wait, at the end, for a stalled reader to take what the process has printed.
_FLUSH_SECONDS = 1.0

_EVENTS = {"polled": POLLED, "busy": BUSY, "idle": IDLE, "ready": READY}


class Options(NamedTuple):
    """What the command line asks of each process."""

    worker: str
    burst: bool
    log_level: str
    log_json: bool
    debug: bool
    ecs_lock: int | None = None
    slots: int | Literal["auto"] | None = None

    def command(self) -> list[str]:
        """The arguments of the Python interpreter that runs such a process."""
        return ["-m", "sqstaskmaster._cli.worker_process", self.worker, json.dumps(self[1:])]


def load(name: str) -> Worker:
    """The Worker that MODULE:WORKER names, with the current folder importable.

    :raises CommandError: if there is none. Its cause is what the module raised during import, if anything.
    """
    module_name, _, path = name.partition(":")
    try:
        folder = os.getcwd()
    except FileNotFoundError as error:
        text = "The current folder has been removed: start the command in one that exists"
        raise CommandError(Exit.MODULE, text) from error
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        with loading.importing(module_name):
            found: Any = importlib.import_module(module_name)
        # Only now: it loads botocore, and the user's module may first have to patch its dependencies (gevent).
        from sqstaskmaster.worker import Worker

        switch_on()  # a module that configures logging may have disabled the library's
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(module_name, error) from error
        remedy = "run the command in the folder that holds it, or install it"
        raise CommandError(Exit.MODULE, f"There is no module {module_name!r} in {folder}: {remedy}") from error
    except Exception as error:
        raise _broken(module_name, error) from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise CommandError(
                Exit.MODULE, f"Module {module_name!r} has no {path!r}: name the variable that holds the Worker"
            ) from error
    if not isinstance(found, Worker):
        raise CommandError(
            Exit.MODULE,
            f"{name} is not a Worker but of type {type(found).__name__}: write {path} = Worker(TaskManager(url))",
        )
    return found


def _broken(module_name: str, error: Exception) -> CommandError:
    """The sentence for a module that cannot be imported, with the user's line that failed."""
    if isinstance(error, UnsupportedContext):
        return CommandError(Exit.MODULE, str(error))
    if isinstance(error, ConfigurationError):
        return CommandError(Exit.QUEUE, f"{error} (needed by module {module_name!r})")
    where = _users_line(error)
    said = " ".join(str(error).split()).rstrip(".")
    return CommandError(
        Exit.MODULE,
        f"Module {module_name!r} cannot be imported{where}: {type(error).__name__}: {said} (--debug shows all)",
    )


def _users_line(error: Exception) -> str:
    """The innermost line of the user's code: not Python's, an installed package's, or ours."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    not_theirs = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = os.path.abspath(frame.filename)
        if not path.startswith((*not_theirs, _OURS)) and not frame.filename.startswith("<"):
            return f" ({frame.filename}, line {frame.lineno})"
    return ""


def main(arguments: Sequence[str]) -> int:
    """The whole life of a worker process; returns its exit code.

    :param arguments: those of `Options.command`, then the descriptor of the socket to report on, the supervisor's pid.
    """
    options = Options(arguments[0], *json.loads(arguments[1]))
    events = _Events(socket.socket(fileno=int(arguments[2])))
    _end_with_supervisor(int(arguments[3]), events.socket)
    # While the worker does not handle it, Ctrl-C ends this process as SIGTERM does: without a traceback.
    state.Handlers(signal.SIG_DFL, signal.SIGINT).install()
    logs.configure(options.log_level, options.log_json)
    print_whole_lines()
    try:
        worker = load(options.worker)
        events.send(LOADED)
        worker.run(
            burst=options.burst,
            slots=options.slots,
            on_event=events.on_event,
            ecs_agent_uri=os.environ.get("ECS_AGENT_URI"),
            ecs_metadata_uri=os.environ.get("ECS_CONTAINER_METADATA_URI_V4"),
            ecs_lock=options.ecs_lock,
        )
        events.send(DRAINED)
    except Exception as error:
        if options.debug:
            STDERR.write("".join(traceback.format_exception(error)).rstrip())
        code, sentence = explain(error)
        STDERR.write(f"sqstaskmaster: {sentence}")
        if code in FATAL_CODES and (isinstance(error, (PollRefused, InitializerFailed)) or not events.polled):
            events.send(FATAL)
        return code
    finally:
        events.socket.detach()  # it closes when this process ends
    return Exit.OK


def print_whole_lines() -> None:
    """Have each line that tasks print leave at once, and in one piece: several tasks may print at the same time.

    Neither is the default: Python writes to a pipe some kilobytes at a time, and with PYTHONUNBUFFERED word by word.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, write_through=False)


class _Events:
    """What this process reports to the supervisor."""

    def __init__(self, supervisor: socket.socket) -> None:
        self.socket = supervisor
        self.polled = False
        self._process = os.getpid()

    def on_event(self, event: str) -> None:
        self.polled = True
        self.send(_EVENTS[event])

    def send(self, what: bytes) -> None:
        if os.getpid() != self._process:
            return  # called in a fork of this process, which must not report for it
        try:
            self.socket.send(what, socket.MSG_DONTWAIT)
        except OSError:
            pass  # it is gone, which is noticed elsewhere; or its inbox is full, and the next event will do


def _flush(stream: TextIO) -> bool:
    """Flush the stream, waiting only so long for a reader that does not read. Whether everything was written."""
    call = BoundedCall(stream.flush)
    return call.wait(_FLUSH_SECONDS)


# -- the end of the supervisor ----------------------------------------------------------------------------------------


def _end_with_supervisor(pid: int, supervisor: socket.socket) -> None:
    """Have this process stop, as on a second signal, when the supervisor is gone, perhaps by SIGKILL.

    Linux sends a signal then. Elsewhere a thread notices that the other end of the socket is closed.

    Limits: a plain MessageHandler in C code that holds the interpreter notices only when it lets go. The tasks of
    ProcessMessageHandler never hold this process's interpreter.
    """
    state.Handlers(_orphaned, signal.SIGHUP).install()
    process_tree.die_with_parent(signal.SIGHUP)
    if not process_tree.LINUX:
        with state.starting_thread():
            threading.Thread(target=_wait_for_end, args=(supervisor,), daemon=True).start()
    if os.getppid() != pid:
        os._exit(Exit.FAILED)  # the supervisor was gone before this was set up


def _wait_for_end(supervisor: socket.socket) -> None:
    supervisor.recv(1)  # it never sends anything
    os.kill(os.getpid(), signal.SIGHUP)


def _orphaned(signum: int, frame: FrameType | None) -> None:
    """Stop at once and give the message back. In any case a C thread, which nothing can hold up, ends the process."""
    faulthandler.dump_traceback_later(_ORPHAN_SECONDS, exit=True, file=_nowhere())
    stop = signal.getsignal(signal.SIGTERM)
    if not callable(stop):
        os._exit(Exit.FAILED)  # no worker is running, so there is nothing to give back
    stop(signal.SIGTERM, frame)
    stop(signal.SIGTERM, frame)


def _nowhere() -> TextIO:
    """A file for a stack that does not wait for the reader of standard error."""
    try:
        return open(os.devnull, "w")
    except OSError:  # no descriptor left
        return sys.__stderr__ or sys.stderr


def leave(code: int) -> NoReturn:
    """End this process within a few seconds.

    Python waits for non-daemon threads, and for what was registered with atexit: a scheduler or a client that the
    user's module started at import never ends by itself.
    """
    with state.starting_thread():
        threading.Thread(target=_end_later, args=(code,), daemon=True).start()
    if sys.stdout is not None and not _flush(sys.stdout):
        os._exit(code)  # Python would wait for it
    sys.exit(code)


def _end_later(code: int) -> None:
    time.sleep(_LEAVE_SECONDS)
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
