"""A worker's loop for tasks in the worker's own process: one task at a time, each in a block.

poll --- nothing ------------------------------------------ burst: the end
  |
  +--- unknown task, kwargs that do not fit --------------- refused
  |
  +--- its claim has lapsed ------------------------------- another worker may be running it
  |
  +--- a task --- with handler: handler.run() ------------- settled by the block
  |                       ^
  +--- stop requested ----+-------------------------------- given back at once
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import time
from collections.abc import Callable
from typing import Any

from sqstaskmaster._block.returned import check_has_run
from sqstaskmaster._block.settling import Settling, ask
from sqstaskmaster._claim import clock, note, owner
from sqstaskmaster._claim.attempt import Attempt, Terms
from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._claim.report import Report
from sqstaskmaster._claim.settlement import Settlement, give_back, leave_lost, refuse
from sqstaskmaster._claim.stop_order import StopOrder
from sqstaskmaster._logging import get_logger
from sqstaskmaster._service.ecs import ScaleInProtection
from sqstaskmaster._service.facts import BlockFacts
from sqstaskmaster._service.polling import Polling
from sqstaskmaster._service.settings import Settings
from sqstaskmaster._service.settling import call_on_finish
from sqstaskmaster._service.stops import Stops
from sqstaskmaster._signals import state
from sqstaskmaster._signals.shutdown import Shutdown
from sqstaskmaster.endings import Continue, Outcome
from sqstaskmaster.errors import ArgumentsDoNotFit, NoAnswer, ShutdownRequested, TaskQuit, UnknownTask
from sqstaskmaster.message_handler import MessageHandler
from sqstaskmaster.process_handler import ProcessMessageHandler
from sqstaskmaster.task_manager import Task, TaskManager

logger = get_logger("sqstaskmaster.worker")

# After the first signal the loop waits this much longer than the poll takes for the poll under way.
_LATE_SECONDS = 5.0


class PlainLoop:
    """One run of a worker with tasks in its own process. Main thread only."""

    def __init__(
        self,
        settings: Settings,
        *,
        burst: bool,
        on_event: Callable[[str], Any] | None,
        protection: ScaleInProtection,
        shutdown: Shutdown,
    ) -> None:
        self._settings = settings
        self._burst = burst
        self._on_event = on_event
        self._protection = protection
        self._shutdown = shutdown
        self._process = os.getpid()
        self._polling: Polling[TaskManager] = Polling(settings.managers, settings.wait_time, logger.log)
        self._facts = BlockFacts()
        self._entered: MessageHandler | None = None
        self._stops = Stops(self._order_stop)
        self._is_polling = False

    def run(self) -> collections.Counter[str]:
        """Run tasks until a stop is requested, or, in a burst, until the queues are empty.

        :raises PollRefused: if polling again does not help.
        """
        self._shutdown.on_signal = self._on_signal
        self._settings.start(logger)
        status = self._settings.status(self._tell_facts, self._stops)
        late_alarms = state.late_alarms()
        late_alarms.install()
        status.open()
        self._settings.say_ready(logger.log, 1)
        try:
            return self._run_tasks()
        finally:
            if os.getpid() == self._process:
                status.close()
                self._stops.end()
                late_alarms.put_back()

    def _run_tasks(self) -> collections.Counter[str]:
        counts: collections.Counter[str] = collections.Counter()
        while not self._shutdown.requested:
            owner.leave_if_forked(self._process)  # forked by a hook, say: only the parent may consume the queue
            if self._polling.refused is not None:
                raise self._polling.refused
            now = time.monotonic()
            manager = self._polling.next(now)
            if manager is None:
                self._shutdown.wait(self._polling.due(now) - now)
                continue
            received = self._poll(manager)
            for task in received:
                if task is not None:
                    counts[self._take(manager, *task)] += 1
            if not received:
                self._protection.idle()
                if self._burst and self._polling.all_empty and self._polling.refused is None:
                    break
        return counts

    def _poll(self, manager: TaskManager) -> list[Task | None]:
        """The result of a poll; empty if a stop was requested meanwhile."""
        wait, timeout = self._polling.wait_time, self._settings.sqs_timeout
        receive = functools.partial(manager.receive, wait, timeout, in_worker=True, MessageAttributeNames=["All"])
        self._polling.sent(manager, time.monotonic())
        self._is_polling = True
        try:
            received = self._shutdown.poll(receive, wait + _LATE_SECONDS)
        except ShutdownRequested:
            return []
        except Exception as error:
            self._polling.failed(manager, error, manager.url, time.monotonic())
            return []
        finally:
            self._is_polling = False
        self._polling.answered(manager, len(received))
        self._tell("polled")
        return received

    def _take(self, manager: TaskManager, task: str, kwargs: dict[str, Any], message: Any) -> str:
        """Run one task, or return its message. Returns how it ended."""
        attempt = self._attempt(manager, task, message)
        if self._shutdown.requested:
            return self._settle(attempt, give_back(attempt))
        try:
            handler = self._settings.registry.handler_for(task, kwargs, message, manager.notify)
        except (UnknownTask, ArgumentsDoNotFit) as error:
            return self._settle(attempt, refuse(attempt, error))
        if self._shutdown.requested:
            return self._settle(attempt, give_back(attempt))
        now = clock.now()
        if attempt.claim.lapsed(now):
            return self._settle(attempt, leave_lost(attempt, now))
        handler._accept(self._terms(manager, task))
        self._protection.busy(handler.hard_timeout)
        self._tell("busy")
        self._stops.begin(attempt)
        try:
            self._run(handler, attempt)
        finally:
            self._stops.over(attempt, handler._attempt)
            self._tell("idle")
            self._shutdown.renew()
        return str(handler.outcome or Outcome.FAILED)

    def _run(self, handler: MessageHandler, attempt: Attempt) -> None:
        try:
            with handler:
                self._entered = handler
                self._facts.begin(handler)
                try:
                    self._call_run(handler)
                finally:
                    self._facts.end()
                    self._entered = None
        except ShutdownRequested:
            pass
        except Exception as error:  # of `__enter__`, or of a subclass's `__exit__`
            report = attempt.report
            report.outcome = str(handler.outcome or Outcome.FAILED)
            logger.exception("Handler failed for message: %s", report.subject, extra=report.facts("handler_failed"))
            with contextlib.suppress(NoAnswer):
                ask(attempt, functools.partial(report.notify, error), "notify", time.monotonic())
        owner.leave_if_forked(self._process)

    def _call_run(self, handler: MessageHandler) -> None:
        around = self._settings.around
        if self._shutdown.requested:
            raise ShutdownRequested("The worker is stopping")
        try:
            if isinstance(handler, ProcessMessageHandler):
                handler.run()  # its process enters `around`
            elif around is None:
                check_has_run(handler.run())
            else:
                with around(handler._block.current):
                    check_has_run(handler.run())
        except (Exception, Continue, ShutdownRequested):
            raise
        except BaseException as error:
            raise TaskQuit(f"The task raised {error!r} in the worker's process") from error

    def _terms(self, manager: TaskManager, task: str) -> Terms:
        shutdown = self._shutdown
        stopping = {"stop_at": lambda: shutdown.stop_at, "wakeup": shutdown}
        return self._settings.terms(manager, task, on_finish=self._on_finish, **stopping)

    def _attempt(self, manager: TaskManager, task: str, message: Any) -> Attempt:
        """For settling a message outside its handler."""
        receipt, settings = note.read(message), self._settings
        assert receipt is not None  # `receive` has left it
        claim = Claim.of(receipt, settings.sqs_timeout, settings.alarm_timeout, clock.now())
        report = Report(message, task, manager.notify, lambda: logger, time.monotonic, queue_url=manager.url)
        return Attempt(message, receipt, claim, report, self._terms(manager, task))

    def _settle(self, attempt: Attempt, settlement: Settlement) -> str:
        Settling(attempt, clock.now).carry_out(settlement)
        return str(attempt.report.outcome)

    def _on_finish(self, attempt: Attempt) -> None:
        on_finish = self._settings.on_finish
        if on_finish is not None:
            with contextlib.suppress(NoAnswer):
                ask(attempt, functools.partial(call_on_finish, on_finish, attempt), "on_finish", time.monotonic())

    def _order_stop(self, attempt: Attempt, order: StopOrder) -> bool:
        """Carry out a stop order. In a thread. Returns False if the task has not begun, or has ended."""
        entered = self._entered
        if entered is not None:
            entered._block.order_stop(order)
        return entered is not None

    def _tell_facts(self, stacks: bool) -> dict[str, Any]:
        return {
            "queues": [manager.url for manager in self._settings.managers],
            "slots": 1,
            "stopping": self._shutdown.requested,
            "tasks": self._facts(stacks),
        }

    def _on_signal(self, name: str, number: int) -> None:
        """In the signal handler."""
        if number == 1:
            what = f"taking no more work; a running task gets {self._settings.shutdown_grace:g} seconds"
            if self._is_polling:
                what = f"taking no more work; waiting for the poll under way (up to {self._polling.wait_time} s)"
            what += "; a second signal stops it at once"
        else:
            what = f"stopping now{self._settings.abandoned() if self._is_polling else ''}"
        logger.info("%s: %s", name, what, extra={"action": "stopping", "signal": name})
        entered = self._entered
        if entered is not None and not isinstance(entered, ProcessMessageHandler):
            entered._block.look_soon()

    def _tell(self, event: str) -> None:
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                logger.exception("on_event failed for %s", event, extra={"action": "on_event_failed"})
