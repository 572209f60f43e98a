"""Long, CPU-heavy, uncooperative tasks on Amazon SQS.

The names below are loaded when they are first used: `import sqstaskmaster` itself loads neither boto3 nor botocore.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sqstaskmaster.version import __version__

if TYPE_CHECKING:
    from sqstaskmaster.backoff import ExponentialBackoff
    from sqstaskmaster._claim.current import CurrentTask, TaskFilter, current_task
    from sqstaskmaster.endings import Continue, DeadLetter
    from sqstaskmaster.errors import Failure, SubmitInterrupted, TasksNotSent
    from sqstaskmaster.local import LocalMessage, LocalQueue
    from sqstaskmaster.message_handler import MessageHandler, Outcome
    from sqstaskmaster.process_handler import ProcessMessageHandler
    from sqstaskmaster.queue_scale import Provisioner, ServiceState
    from sqstaskmaster.results import Finished, SubmitResult
    from sqstaskmaster.task_manager import TaskManager
    from sqstaskmaster.worker import Worker

__all__ = [
    "Continue",
    "CurrentTask",
    "DeadLetter",
    "ExponentialBackoff",
    "Failure",
    "Finished",
    "LocalMessage",
    "LocalQueue",
    "MessageHandler",
    "Outcome",
    "ProcessMessageHandler",
    "Provisioner",
    "ServiceState",
    "SubmitInterrupted",
    "SubmitResult",
    "TaskFilter",
    "TaskManager",
    "Worker",
    "TasksNotSent",
    "__version__",
    "current_task",
]

_HOME = {
    "Continue": "endings",
    "CurrentTask": "_claim.current",
    "DeadLetter": "endings",
    "ExponentialBackoff": "backoff",
    "Failure": "errors",
    "Finished": "results",
    "LocalMessage": "local",
    "LocalQueue": "local",
    "MessageHandler": "message_handler",
    "Outcome": "message_handler",
    "ProcessMessageHandler": "process_handler",
    "Provisioner": "queue_scale",
    "ServiceState": "queue_scale",
    "SubmitInterrupted": "errors",
    "SubmitResult": "results",
    "TaskFilter": "_claim.current",
    "TaskManager": "task_manager",
    "Worker": "worker",
    "TasksNotSent": "errors",
    "current_task": "_claim.current",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
