"""Long, CPU-heavy, uncooperative tasks on Amazon SQS.

The names below are loaded when they are first used: `import sqstaskmaster` itself loads neither boto3 nor botocore.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sqstaskmaster.version import __version__

if TYPE_CHECKING:
    from sqstaskmaster._claim.current import CurrentTask, TaskFilter, current_task
    from sqstaskmaster.backoff import ExponentialBackoff
    from sqstaskmaster.endings import Continue, DeadLetter
    from sqstaskmaster.errors import (
        ArgumentsDoNotFit,
        CannotContinue,
        ClaimLapsed,
        ConfigurationError,
        Failure,
        HandlerStuck,
        HardTimeout,
        InitializerFailed,
        InvalidTask,
        MalformedMessage,
        MemoryLimitExceeded,
        MessageTooLarge,
        NoAnswer,
        NothingHasRun,
        PollRefused,
        RemoteError,
        ShutdownRequested,
        SQSTaskMasterError,
        SubmitInterrupted,
        TaskDied,
        TaskExited,
        TaskKilled,
        TaskNotPicklable,
        TaskNotStarted,
        TasksCannotStart,
        TaskQuit,
        TasksNotSent,
        UnknownTask,
        UnsupportedContext,
    )
    from sqstaskmaster.local import LocalMessage, LocalQueue
    from sqstaskmaster.message_handler import MessageHandler, Outcome
    from sqstaskmaster.process_handler import ProcessMessageHandler
    from sqstaskmaster.queue_scale import Provisioner, ServiceState
    from sqstaskmaster.results import Finished, SubmitResult
    from sqstaskmaster.task_manager import TaskManager
    from sqstaskmaster.worker import Worker

__all__ = [
    "ArgumentsDoNotFit",
    "CannotContinue",
    "ClaimLapsed",
    "ConfigurationError",
    "Continue",
    "CurrentTask",
    "DeadLetter",
    "ExponentialBackoff",
    "Failure",
    "Finished",
    "HandlerStuck",
    "HardTimeout",
    "InitializerFailed",
    "InvalidTask",
    "LocalMessage",
    "LocalQueue",
    "MalformedMessage",
    "MemoryLimitExceeded",
    "MessageHandler",
    "MessageTooLarge",
    "NoAnswer",
    "NothingHasRun",
    "Outcome",
    "PollRefused",
    "ProcessMessageHandler",
    "Provisioner",
    "RemoteError",
    "SQSTaskMasterError",
    "ServiceState",
    "ShutdownRequested",
    "SubmitInterrupted",
    "SubmitResult",
    "TaskDied",
    "TaskExited",
    "TaskFilter",
    "TaskKilled",
    "TaskManager",
    "TaskNotPicklable",
    "TaskNotStarted",
    "TasksCannotStart",
    "TaskQuit",
    "TasksNotSent",
    "UnknownTask",
    "UnsupportedContext",
    "Worker",
    "__version__",
    "current_task",
]

_HOME = {
    "ArgumentsDoNotFit": "errors",
    "CannotContinue": "errors",
    "ClaimLapsed": "errors",
    "ConfigurationError": "errors",
    "Continue": "endings",
    "CurrentTask": "_claim.current",
    "DeadLetter": "endings",
    "ExponentialBackoff": "backoff",
    "Failure": "errors",
    "Finished": "results",
    "HandlerStuck": "errors",
    "HardTimeout": "errors",
    "InitializerFailed": "errors",
    "InvalidTask": "errors",
    "LocalMessage": "local",
    "LocalQueue": "local",
    "MalformedMessage": "errors",
    "MemoryLimitExceeded": "errors",
    "MessageHandler": "message_handler",
    "MessageTooLarge": "errors",
    "NoAnswer": "errors",
    "NothingHasRun": "errors",
    "Outcome": "message_handler",
    "PollRefused": "errors",
    "ProcessMessageHandler": "process_handler",
    "Provisioner": "queue_scale",
    "RemoteError": "errors",
    "SQSTaskMasterError": "errors",
    "ServiceState": "queue_scale",
    "ShutdownRequested": "errors",
    "SubmitInterrupted": "errors",
    "SubmitResult": "results",
    "TaskDied": "errors",
    "TaskExited": "errors",
    "TaskFilter": "_claim.current",
    "TaskKilled": "errors",
    "TaskManager": "task_manager",
    "TaskNotPicklable": "errors",
    "TaskNotStarted": "errors",
    "TasksCannotStart": "errors",
    "TaskQuit": "errors",
    "TasksNotSent": "errors",
    "UnknownTask": "errors",
    "UnsupportedContext": "errors",
    "Worker": "worker",
    "current_task": "_claim.current",
}


if not TYPE_CHECKING:  # to a type checker it would say that there is nothing that cannot be imported

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
