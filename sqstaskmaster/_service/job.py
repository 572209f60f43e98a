"""One message on its way through a worker with slots: from the receive to the moment nothing more is done about it.

PREPARING: its handler is made -> RUNNING in a slot -> ENDING: the slot is free, the verdict is carried out -> over
"""

from __future__ import annotations

import enum
import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqstaskmaster._claim import clock, forwarding
from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._claim.report import FactsFilter, Report
from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster.endings import Outcome
from sqstaskmaster.process_handler import ProcessMessageHandler
from sqstaskmaster.results import Finished

if TYPE_CHECKING:
    from sqstaskmaster._service.slots import Source


logger = logging.getLogger("sqstaskmaster.worker")
logger.addFilter(FactsFilter())


class Stage(enum.Enum):
    PREPARING = "its handler is made"
    RUNNING = "its task runs"
    ENDING = "its verdict is carried out"


class Job:
    """What is known of one message. The loop decides; this only holds, and answers what is due when.

    Times are of `time.monotonic`, but for those of the claim, which has a clock of its own.
    """

    def __init__(self, source: Source, message: Any, task: str, kwargs: Mapping[str, Any], claim: Claim) -> None:
        self.source = source
        self.message = message
        self.report = Report(
            message, task, source.manager.notify, lambda: logger, time.monotonic, queue_url=source.manager.url
        )
        self.continuation = forwarding.chain_of(message).number
        self.report.continuation = self.continuation or None
        self.task = task
        self.kwargs = kwargs
        self.claim = claim
        self.stage = Stage.PREPARING
        self.handler: ProcessMessageHandler | None = None
        self.slot = -1
        self.process: TaskProcess | None = None
        self.watched: set[int] = set()
        self.began = math.inf
        self.limit_at = math.inf
        self.look_at = math.inf  # when running() is asked next
        self.asking = False  # running() is being asked
        self.memory_at = math.inf
        self.stop_reason: BaseException | None = None
        self.stopped_as: Outcome | None = None
        self.keeps_claim = True
        self.extensions = 0  # under way
        self.lost_told = False

    @property
    def is_running(self) -> bool:
        return self.stage is Stage.RUNNING

    def due(self) -> float:
        """When something has to be done about the task, by `time.monotonic`."""
        if self.stage is Stage.ENDING:
            return math.inf
        if self.process is None:
            return self.limit_at
        if self.stop_reason is not None:
            return self.process.next_step_at
        return min(self.process.next_step_at, self.memory_at, self.limit_at, self.look_at)

    def set_handler(self, handler: ProcessMessageHandler) -> None:
        """From now on it is the handler that is told of what goes wrong."""
        self.handler = handler
        self.report.notify_with(handler.notify)

    def set_outcome(self, outcome: Outcome) -> None:
        self.report.outcome = outcome.value
        self.report.ended_at = time.monotonic()
        if self.process is not None:
            self.report.stack = self.process.stack
            usage = self.process.meter.usage
            self.report.used = {"cpu_seconds": usage.cpu_seconds, "peak_memory": usage.peak_memory}
        if self.handler is not None:
            self.handler.outcome = outcome

    def finished(self) -> Finished:
        """The facts of an ended task."""
        used = self.report.used
        facts = self.report.facts("finished")
        return Finished(
            task=self.task,
            message_id=facts["message_id"],
            receive_count=facts["receive_count"],
            queue=self.source.manager.url,
            outcome=str(facts["outcome"]),
            queued=facts["queued"],
            elapsed=facts["elapsed"],
            cpu_seconds=used.get("cpu_seconds"),
            peak_memory=used.get("peak_memory"),
            continuation=self.continuation,
        )

    def facts(self, process: TaskProcess, stack: bool) -> dict[str, Any]:
        """What `sqstaskmaster ps` shows of its task. May be called in any thread. In seconds and bytes."""
        said = self.report.facts("")
        handler = self.handler
        return {
            "slot": self.slot,
            "pid": process.pid,
            "task": self.task,
            "message_id": said["message_id"],
            "receive_count": said["receive_count"],
            "seconds": round(process.seconds, 1),
            "limit": None if handler is None else handler.hard_timeout,
            "memory": process.meter.held,
            "cpu_seconds": process.meter.usage.cpu_seconds,
            "progress": process.progress,
            "claim_age": None if handler is None else round(handler.sqs_timeout - self.claim.left(clock.now()), 1),
            "stopping": self.stop_reason is not None,
            **({"stack": process.stack} if stack else {}),
        }

    def stop(self, reason: BaseException, outcome: Outcome | None = None) -> None:
        """Stop the task, because of that. The first reason counts."""
        if self.stop_reason is None and self.process is not None:
            self.stop_reason, self.stopped_as = reason, outcome
            self.process.stop()
