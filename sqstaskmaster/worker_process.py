"""One worker process: what the supervisor starts, in a fresh interpreter, to run one Worker.

It says on a socket how it is, and stops at once, giving its message back, when the supervisor is gone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from sqstaskmaster import logs
from sqstaskmaster.exits import CommandError, Exit, explain

if TYPE_CHECKING:
    from sqstaskmaster.worker import Worker


class Options(NamedTuple):
    """What the command line asked of each process."""

    worker: str
    burst: bool
    log_level: str
    log_json: bool
    debug: bool

    def command(self) -> list[str]:
        """The arguments of the Python interpreter that runs such a process."""
        return ["-m", __name__, self.worker, json.dumps(self[1:])]


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
