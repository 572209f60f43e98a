"""How a task ended: the value that it returned, or the exception that says why there is none."""

from __future__ import annotations

import os
import signal
from typing import Any, NamedTuple

from sqstaskmaster._isolation import carried, channel, plain
from sqstaskmaster.errors import TaskExited, TaskKilled, TaskNotStarted


class Death(NamedTuple):
    """What is known of a task's end besides its own verdict. `failure`: why it could not be started, "" if it was."""

    task: str
    pid: int | None
    seconds: float
    stack: str
    status: int | None
    failure: str


def value_of(verdict: tuple[bytes, bytes] | None, death: Death) -> Any:
    """What the task returned.

    :raises BaseException: what it raised, or an exception that names how it ended.
    """
    kind, content = verdict or (b"", b"")
    facts: dict[str, Any] = {"task": death.task, "pid": death.pid, "seconds": death.seconds, "stack": death.stack}
    try:
        if kind == channel.DONE:
            return plain.load(content)
        if kind == channel.ERROR:
            error: BaseException = carried.rebuilt(content, death.task)
        elif kind == channel.TERMINATED:
            error = TaskKilled(signal.SIGTERM, **facts)
        elif kind == channel.EXITED:
            code, how = plain.load(content)
            error = TaskExited(code, how, **facts)
        else:
            error = _silent(death, facts)
    except (ValueError, LookupError, TypeError):  # the task wrote bytes that are no message
        error = _silent(death, facts)
    raise error


def _silent(death: Death, facts: dict[str, Any]) -> Exception:
    """How a task ended that gave no verdict."""
    if death.failure:
        return TaskNotStarted(death.task, death.failure)
    if death.status is None:
        return TaskKilled(None, **facts)
    code = os.waitstatus_to_exitcode(death.status)
    if code < 0:
        return TaskKilled(-code, **facts)
    return TaskExited(code, "perhaps it called os._exit, or closed all its descriptors", **facts)
