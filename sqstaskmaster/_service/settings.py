"""The settings of a worker for its runs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqstaskmaster._claim import clock, owner
from sqstaskmaster._claim.attempt import Terms
from sqstaskmaster._claim.report import printable
from sqstaskmaster._service.registry import Registry
from sqstaskmaster._service.status import AskFacts, AskStop, Status
from sqstaskmaster._service.warming import WarmSettings
from sqstaskmaster.task_manager import TaskManager
from sqstaskmaster.version import __version__


class Settings(NamedTuple):
    """See Worker. `status`: makes what answers `sqstaskmaster ps` and `stop`. `warm`: None if each task has its own
    process.
    """

    registry: Registry
    managers: Sequence[TaskManager]
    wait_time: int
    sqs_timeout: int
    alarm_timeout: float
    shutdown_grace: float
    stops_on_lost_claim: bool
    dead_letter_reasons: bool
    around: Callable[..., Any] | None
    on_start: Callable[[], Any] | None
    on_finish: Callable[..., Any] | None
    status: Callable[[AskFacts, AskStop], Status]
    warm: WarmSettings | None = None

    def start(self, logger: logging.Logger) -> None:
        """Call `on_start`. An error is logged with its origin, and ends the worker."""
        if self.on_start is None:
            return
        with owner.only_in_this_process():
            try:
                self.on_start()
            except Exception as error:
                name = getattr(self.on_start, "__qualname__", repr(self.on_start))
                text = "on_start=%s of the worker has failed, and the worker ends: %s: %s"
                facts = {"action": "on_start_failed"}
                logger.error(text, name, type(error).__name__, error, exc_info=error, extra=facts)
                raise

    def queue_clock(self) -> Any:
        """The clock that the queues share.

        :raises ValueError: if they do not share one.
        """
        return clock.of_queues(manager.queue for manager in self.managers)

    def say_ready(self, log: Callable[..., None], slots: int) -> None:
        """Log what the worker serves, once it is ready."""
        queues, tasks = (", ".join(map(printable, names)) for names in (self._queues(), dict(self.registry.items())))
        text = "Worker ready, sqstaskmaster %s: serves %s; tasks: %s; slots: %d"
        log(logging.INFO, text, __version__, queues, tasks, slots, extra={"action": "ready"})

    def _queues(self) -> list[str]:
        return [manager.url for manager in self.managers]

    def abandoned(self) -> str:
        """Describes what a second signal does to a poll under way."""
        return (
            "; the poll under way is abandoned, and a message that it still brings stays hidden for "
            f"{self.sqs_timeout} s"
        )

    def terms(self, manager: TaskManager, task: str, **more: Any) -> Terms:
        """The worker's terms for the handler of this task."""
        return Terms(
            queue_url=manager.url,
            fits=functools.partial(self.registry.entry_for, task),
            stops_on_lost_claim=self.stops_on_lost_claim,
            dead_letter_reasons=self.dead_letter_reasons,
            around=self.around,
            **more,
        )
