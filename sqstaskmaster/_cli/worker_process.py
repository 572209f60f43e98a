"""One worker process: what the supervisor starts, in a fresh interpreter, to run one Worker.

It says on a socket how it is, and stops at once, giving its message back, when the supervisor is gone.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from sqstaskmaster._cli import logs
from sqstaskmaster._cli.exits import CommandError, report
from sqstaskmaster._isolation import process_tree
from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster._service.supervisor import BUSY, IDLE, LOADED, POLLED
from sqstaskmaster._signals import state

if TYPE_CHECKING:
    from sqstaskmaster.worker import Worker


# From the moment that the supervisor is gone until this process is too, whatever its task does.
_ORPHAN_SECONDS = 1.5

_SAID = {"polled": POLLED, "busy": BUSY, "idle": IDLE}


class Options(NamedTuple):
    """What the command line asked of each process."""

    worker: str
    burst: bool
    log_level: str
    log_json: bool
    debug: bool

    def command(self) -> list[str]:
        """The arguments of the Python interpreter that runs such a process."""
        return ["-m", "sqstaskmaster._cli.worker_process", self.worker, json.dumps(self[1:])]


def load(name: str) -> Worker:
    """The Worker that MODULE:WORKER names, with the current folder importable.

    :raises CommandError: where there is none. What the module raises while it is imported is the cause.
    """
    from sqstaskmaster.worker import Worker

    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(module_name, error) from error
        remedy = "run the command in the folder that holds it, or install it"
        raise CommandError(Exit.MODULE, f"There is no module {module_name!r} in {os.getcwd()}: {remedy}") from error
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
            Exit.MODULE, f"{name} is no Worker but {type(found).__name__}: write {path} = Worker(TaskManager(url), ...)"
        )
    return found


def _broken(module_name: str, error: Exception) -> CommandError:
    """The sentence for a module that cannot be imported, with the line of it that failed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = f" in {frames[-1].filename}, line {frames[-1].lineno}" if len(frames) > 1 else ""
    said = " ".join(str(error).split())
    return CommandError(
        Exit.MODULE,
        f"Module {module_name!r} cannot be imported: {type(error).__name__}: {said}{where} (--debug shows all)",
    )


def main(arguments: Sequence[str]) -> int:
    """The whole life of a worker process; gives its exit code.

    :param arguments: those of `Options.command`, the descriptor of the socket to speak on, the supervisor's id.
    """
    options = Options(arguments[0], *json.loads(arguments[1]))
    supervisor = socket.socket(fileno=int(arguments[2]))
    _end_with_supervisor(int(arguments[3]), supervisor)
    logs.configure(options.log_level, options.log_json)
    try:
        worker = load(options.worker)
        _say(supervisor, LOADED)
        worker.run(
            burst=options.burst,
            on_event=lambda event: _say(supervisor, _SAID[event]),
            ecs_agent_uri=os.environ.get("ECS_AGENT_URI"),
        )
    except (Exception, KeyboardInterrupt) as error:
        return report(error, options.debug)
    return Exit.OK


def _say(supervisor: socket.socket, what: bytes) -> None:
    try:
        supervisor.send(what, socket.MSG_DONTWAIT)
    except OSError:
        pass  # it is gone, which is noticed otherwise; or its inbox is full, and the next word counts as well


# -- the end of the supervisor ----------------------------------------------------------------------------------------


def _end_with_supervisor(pid: int, supervisor: socket.socket) -> None:
    """Have this process stop, as on a second signal, when the supervisor is gone, SIGKILLed perhaps.

    Linux sends a signal then. Elsewhere a thread notices that the other end of the socket is closed.

    Limits: a plain MessageHandler in C code that holds the interpreter notices when it lets go, no sooner. The tasks of
    ProcessMessageHandler never hold this process's interpreter.
    """
    state.Handlers(_orphaned, signal.SIGHUP).install()
    process_tree.die_with_parent(signal.SIGHUP)
    if not process_tree.LINUX:
        threading.Thread(target=_wait_for_end, args=(supervisor,), daemon=True).start()
    if os.getppid() != pid:
        os._exit(Exit.FAILED)  # it was gone before any of this


def _wait_for_end(supervisor: socket.socket) -> None:
    state.block_all()
    supervisor.recv(1)  # it never says anything
    os.kill(os.getpid(), signal.SIGHUP)


def _orphaned(signum: int, frame: FrameType | None) -> None:
    """Stop at once and give the message back; and end in any case, from a thread in C that asks nobody."""
    faulthandler.dump_traceback_later(_ORPHAN_SECONDS, exit=True)
    stop = signal.getsignal(signal.SIGTERM)
    if not callable(stop):
        os._exit(Exit.FAILED)  # no worker is running, so there is nothing to give back
    stop(signal.SIGTERM, frame)
    stop(signal.SIGTERM, frame)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
