"""What a worker decides for its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqstaskmaster._service.registry import Registry
from sqstaskmaster._service.status import AskFacts, Status
from sqstaskmaster.task_manager import TaskManager

# How a message ends that is no task's end.
GIVEN_BACK = "given back"
REFUSED = "refused"


class Settings(NamedTuple):
    """See Worker. `environments`: one a slot. `status`: what tells whoever asks what runs."""

    registry: Registry
    managers: Sequence[TaskManager]
    environments: Sequence[Mapping[str, str]]
    wait_time: int
    sqs_timeout: int
    alarm_timeout: float
    shutdown_grace: float
    stops_on_lost_claim: bool
    dead_letter_reasons: bool
    around: Callable[..., Any] | None
    on_start: Callable[[], Any] | None
    on_finish: Callable[..., Any] | None
    status: Callable[[AskFacts], Status]
