"""One task in its slot, from its start until it and everything it started is gone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from sqstaskmaster._block.process_block import show_stack
from sqstaskmaster._claim import clock
from sqstaskmaster._claim.attempt import CALLBACK_SECONDS, Attempt
from sqstaskmaster._claim.report import CALLBACK_GIVEN_UP
from sqstaskmaster._claim.stop_order import StopOrder
from sqstaskmaster._claim.watch import Limits, Need, Watch
from sqstaskmaster._isolation.child import SPOILED
from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster._service.driven import Driven
from sqstaskmaster._service.world import CALLBACKS, MEMORY, World
from sqstaskmaster.errors import NoAnswer
from sqstaskmaster.process_handler import ProcessMessageHandler


class Running(Driven):
    """Drives one task: does what is due about it.

    :param on_ended: called once, with this object and the error of the task's end: None if it is done.
    :param on_done: called before that once the task is done, while its process is still being inspected. None: only
        `on_ended` is called, after that.
    """

    def __init__(
        self,
        world: World,
        attempt: Attempt,
        handler: ProcessMessageHandler,
        limits: Limits,
        process: TaskProcess,
        slot: int,
        on_ended: Callable[[Running, BaseException | None], None],
        on_done: Callable[[Running], None] | None = None,
    ) -> None:
        super().__init__(world, process)
        self.attempt = attempt
        self.handler = handler
        self.slot = slot
        self._on_ended = on_ended
        self._on_done = on_done
        self._is_done = False
        self._warned = False
        now = world.task_now()
        self.watch = Watch(attempt, limits, now, now)

    def begin(self) -> None:
        """From now on `on_ended` may be called."""
        self._changed()

    def stop(self, reason: BaseException) -> None:
        """Stop the task for this reason, unless it is already being stopped."""
        if not self._is_done and self.attempt.stop(reason):
            self.stop_process()

    def stop_by(self, order: StopOrder) -> None:
        """Stop it by order, unless it is already being stopped."""
        if self.attempt.stop_by(order):
            self.stop_process()

    def lose(self, error: Exception) -> None:
        """The claim is gone: notify the handler, and stop the task if the worker or the handler wants that."""
        attempt = self.attempt
        self.process.spent = "its claim was lost"
        if attempt.stops_for_lost_claim and attempt.stop(error):
            self.stop_process()

        def told(_: Any, raised: BaseException | None) -> None:
            if isinstance(raised, NoAnswer):
                say_given_up(self._world, attempt, "claim_lost")
            elif raised is not None:
                attempt.lost_error = raised
                self.stop(raised)

        self._world.call(CALLBACKS, lambda: self.handler.claim_lost(error), told, CALLBACK_SECONDS)

    def facts(self, stack: bool) -> dict[str, Any]:
        """What `sqstaskmaster ps` shows of it, in seconds and bytes. Thread-safe."""
        attempt, process = self.attempt, self.process
        said = attempt.report.facts("")
        return {
            "slot": self.slot,
            "pid": process.pid,
            **{name: said[name] for name in ("task", "message_id", "receive_count")},
            "seconds": round(process.seconds, 1),
            "limit": self.handler.hard_timeout,
            "memory": process.meter.held,
            "cpu_seconds": process.meter.usage.cpu_seconds,
            "progress": process.progress,
            "claim_age": round(attempt.claim.sqs_timeout - attempt.claim.left(clock.now()), 1),
            "stopping": attempt.stop_reason is not None,
            **({"stack": process.stack} if stack else {}),
        }

    def due_in(self) -> float:
        """Seconds until the task is asked whether it makes progress, or is stopped: see `Attendant`."""
        task_now = self._world.task_now()
        return max(0.0, self.watch.decision_at(task_now, self._world.claim_now()) - task_now)

    def look(self) -> None:
        """Something may be due sooner than planned: do what is due."""
        self._due = min(self._due, self._world.now())
        self._attend()

    # -- what is due ---------------------------------------------------------------------------------------------

    def _see_to(self, now: float) -> None:
        if self._is_done:
            return
        need = self.watch.next(self._world.task_now(), self._world.claim_now())
        if need is Need.STOP:
            self.stop_process()
        elif need is Need.MEASURE:
            self._world.call(MEMORY, self._measure, self._measured)
        elif need is Need.ASK:
            self.handler.progress = self.process.progress
            # `bool` too, since it may run user code as well, and take long.
            self._world.call(CALLBACKS, lambda: bool(self.handler.running()), self._answered, CALLBACK_SECONDS)

    def _next_at(self, now: float) -> float:
        if self._is_done:
            return math.inf
        task_now = self._world.task_now()
        return now + self.watch.due(task_now, self._world.claim_now()) - task_now

    def _measure(self) -> tuple[int, float]:
        began = self._world.now()
        size = self.process.meter.memory(self.watch.limits.max_memory or 0)
        return size, self._world.now() - began

    def _measured(self, found: tuple[int, float] | None, error: BaseException | None) -> None:
        size, seconds = found or (0, 0.0)
        if not self._is_done and self.watch.measured(size, seconds, self._world.task_now()):
            self.stop_process()
        self._changed()

    def _answered(self, makes_progress: bool, error: BaseException | None) -> None:
        if isinstance(error, NoAnswer):
            say_given_up(self._world, self.attempt, "running")
            makes_progress, error = True, None
        if not self._is_done and self.watch.running(makes_progress, error, self._world.task_now()):
            self.stop_process()
        self._changed()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            self._world.log(logging.WARNING, SPOILED, self.attempt.task)

    def _heard(self) -> None:
        if self._on_done is not None and not self._is_done and self.process.done and self.attempt.stop_reason is None:
            self._is_done = True
            self.attempt.report.ended_at = self._world.now()
            self._on_done(self)

    def _gone(self) -> None:
        report, process = self.attempt.report, self.process
        usage = process.meter.usage
        report.used = {"cpu_seconds": usage.cpu_seconds, "peak_memory": usage.peak_memory}
        if self._is_done:
            self._on_ended(self, None)
            return
        report.ended_at = self._world.now()
        report.stack = process.stack
        try:
            process.result()
            error = None
        except BaseException as raised:  # a Continue, or whatever the task raised
            error = raised
        exception = self.attempt.came_to(error)
        if exception is not None:
            show_stack(exception, process.stack)
        self._on_ended(self, exception)


def order_stop(world: World, running: Mapping[Attempt, Running], attempt: Attempt, order: StopOrder) -> bool:
    """Have this task stopped by order. From any thread."""

    def stop() -> None:
        if attempt in running:
            running[attempt].stop_by(order)

    world.put(stop)
    return True


def say_given_up(world: World, attempt: Attempt, name: str) -> None:
    """Log that a user's callback has not returned."""
    facts = attempt.report.facts("callback_given_up")
    world.log(logging.WARNING, CALLBACK_GIVEN_UP, name, attempt.task, CALLBACK_SECONDS, extra=facts)
