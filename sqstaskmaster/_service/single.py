"""A worker without slots: one task at a time, in this process or (where there are no slots) in one of its own.

poll --- nothing ------------------------------------------ burst: the end
  |
  +--- unknown task, kwargs that do not fit --------------- told, left to the redrive policy
  |
  +--- its claim has lapsed ------------------------------- told, another worker may be running it
  |
  +--- a task --- with handler: handler.run() ------------- done, failed, timed out, stuck
  |                       ^
  +--- stop requested ----+-------------------------------- given back at once
"""

from __future__ import annotations

import collections
import functools
import logging
import os
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from sqstaskmaster._claim import clock, note, owner
from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._claim.ending import warn_of_last_receive
from sqstaskmaster._claim.report import Report
from sqstaskmaster._claim.returned import check_has_run
from sqstaskmaster._isolation import child
from sqstaskmaster._service.ecs import ScaleInProtection
from sqstaskmaster._service.facts import SingleFacts
from sqstaskmaster._service.polling import Polling
from sqstaskmaster._service.settings import GIVEN_BACK, REFUSED, Settings
from sqstaskmaster._signals import alarm
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster._signals.shutdown import Shutdown
from sqstaskmaster._sqs.answers import code_of, is_failed_poll
from sqstaskmaster.endings import Continue, Outcome
from sqstaskmaster.errors import (
    ArgumentsDoNotFit,
    PollRefused,
    ShutdownRequested,
    TaskQuit,
    UnknownTask,
)
from sqstaskmaster.message_handler import MessageHandler
from sqstaskmaster.process_handler import ProcessMessageHandler
from sqstaskmaster.task_manager import Task, TaskManager

logger = logging.getLogger("sqstaskmaster.worker")

# A task in this process that goes on after it was told to stop is told again this often.
_STOP_AGAIN_SECONDS = 1.0

# The longest that giving back a message is waited for.
_GIVE_BACK_SECONDS = 5.0


class SingleRun:
    """One run of a worker without slots: its steps, and what they share. Main thread only."""

    def __init__(
        self,
        settings: Settings,
        *,
        burst: bool,
        on_event: Callable[[str], Any],
        protection: ScaleInProtection,
        stop: Shutdown,
    ) -> None:
        self._settings = settings
        self._burst = burst
        self._on_event = on_event
        self._protection = protection
        self._stop = stop
        self._process = os.getpid()
        self._polling: Polling[TaskManager] = Polling(settings.managers, settings.wait_time, logger.log)
        self._facts = SingleFacts(settings, lambda: stop.requested)

    def run(self) -> collections.Counter[str]:
        """Run tasks until a stop is requested, or, in a burst, until the queues are empty.

        :raises PollRefused: where polling again does not help.
        """
        status = self._settings.status(self._facts)
        status.open()
        try:
            return self._run_tasks()
        finally:
            if os.getpid() == self._process:
                status.close()

    def _run_tasks(self) -> collections.Counter[str]:
        counts: collections.Counter[str] = collections.Counter()
        while not self._stop.requested:
            owner.leave_if_forked(self._process)  # forked by a hook, say: the queue is its parent's to consume
            manager = self._polling.next(time.monotonic())
            if manager is None:
                self._stop.wait(self._polling.due() - time.monotonic())
                continue
            received = self._poll(manager)
            for task in received:
                if task is not None:
                    counts[self._take(manager, *task)] += 1
            if not received:
                self._protection.idle()
                if self._burst and self._polling.all_empty:
                    break
        return counts

    def _poll(self, manager: TaskManager) -> list[Task | None]:
        """What a poll brings; nothing where a stop was requested meanwhile."""
        wait, timeout = self._polling.wait_time, self._settings.sqs_timeout
        try:
            received = self._stop.poll(
                lambda: manager.receive(wait, timeout, in_worker=True, MessageAttributeNames=["All"]), wait
            )
        except ShutdownRequested:
            return []
        except Exception as error:
            if not is_failed_poll(error):
                raise
            remedy = self._polling.failed(manager, error, time.monotonic())
            if remedy is not None and len(self._settings.managers) == 1:
                raise PollRefused(error, code_of(error) or type(error).__name__, remedy, manager.url) from error
            return []
        self._polling.answered(manager, len(received))
        self._tell("polled")
        return received

    def _take(self, manager: TaskManager, task: str, kwargs: dict[str, Any], message: Any) -> str:
        """Run one task, or give its message back. How it ended."""
        if self._stop.requested:
            self._give_back(manager, task, message)
            return GIVEN_BACK
        try:
            handler = self._settings.registry.handler_for(task, kwargs, message, manager.notify)
        except (UnknownTask, ArgumentsDoNotFit) as error:
            report = self._report(manager, task, message, REFUSED)
            logger.error("%s: %s", error, message, exc_info=error.__cause__, extra=report.facts("refused"))
            report.notify(error)
            return REFUSED
        lost = _lapsed(handler, message)
        if lost is not None:
            report = self._report(manager, task, message, str(Outcome.CLAIM_LOST))
            report.trouble("Claim lost, the task is not run: %s", lost, "claim_lost", logging.ERROR)
            report.finished()
            return str(Outcome.CLAIM_LOST)
        handler._queue_url = manager.url
        self._leave_terms(task, handler, message)
        self._protection.busy(handler.hard_timeout)
        self._tell("busy")
        try:
            self._run(manager, task, handler, message)
        finally:
            self._tell("idle")
            self._stop.renew()
        return str(handler.outcome or Outcome.FAILED)

    def _run(self, manager: TaskManager, task: str, handler: MessageHandler, message: Any) -> None:
        if not isinstance(handler, ProcessMessageHandler):  # whose task is told by its signal
            handler._is_stopping = lambda: self._stop.requested
        try:
            with handler:
                self._facts.begin(handler)
                try:
                    if isinstance(handler, ProcessMessageHandler):
                        self._stop.interruptible(handler.run, child.is_waiting)
                    else:
                        check_has_run(self._stop.interruptible(handler.run, _is_outside_heartbeat, _STOP_AGAIN_SECONDS))
                except (Exception, Continue, ShutdownRequested):
                    raise
                except BaseException as error:
                    raise TaskQuit(f"The task raised {error!r} in the worker's process") from error
                finally:
                    self._facts.end()
        except ShutdownRequested:
            pass
        except Exception as error:  # of `__enter__`, or of a subclass's `__exit__`
            report = self._report(manager, task, message, str(handler.outcome or Outcome.FAILED))
            logger.exception("Handler failed for message: %s", message, extra=report.facts("handler_failed"))
            report.notify(error)
        owner.leave_if_forked(self._process)

    def _leave_terms(self, task: str, handler: MessageHandler, message: Any) -> None:
        receipt = note.read(message)
        if receipt is not None:
            terms = note.Terms(
                fits=functools.partial(self._settings.registry.entry_for, task),
                stops_on_lost_claim=self._settings.stops_on_lost_claim and isinstance(handler, ProcessMessageHandler),
                dead_letter_reasons=self._settings.dead_letter_reasons,
            )
            note.leave(message, receipt._replace(terms=terms))

    def _give_back(self, manager: TaskManager, task: str, message: Any) -> None:
        """Make a message that has not been started visible to others at once."""
        report = self._report(manager, task, message, GIVEN_BACK)
        call = BoundedCall(lambda: message.change_visibility(VisibilityTimeout=0))
        if not call.wait(_GIVE_BACK_SECONDS) or call.error is not None:
            text = "Message not given back, it comes back when its visibility timeout ends: %s: %s"
            report.log(logging.WARNING, "give_back_failed", text, message, call.error or "no answer")
            return
        report.log(logging.INFO, "given_back", "Message given back, unstarted: %s", message)
        receipt = note.read(message)
        if receipt is not None:
            warn_of_last_receive(receipt.dead_letters, message, report)

    def _report(self, manager: TaskManager, task: str, message: Any, outcome: str) -> Report:
        """For what is told of a message outside its handler."""
        report = Report(message, task, manager.notify, lambda: logger, time.monotonic, queue_url=manager.url)
        report.outcome = outcome
        return report

    def _tell(self, event: str) -> None:
        try:
            self._on_event(event)
        except Exception:
            logger.exception("on_event failed for %s", event, extra={"action": "on_event_failed"})


def _lapsed(handler: MessageHandler, message: Any) -> Exception | None:
    """Why the task is not to be started: its claim has ended, and another worker may be running it."""
    now = clock.now()
    claim = Claim.of(note.read(message), handler.sqs_timeout, handler.alarm_timeout, now)
    claim.lapsed(now)
    return claim.lost


def _is_outside_heartbeat(frame: FrameType | None) -> bool:
    """Whether no heartbeat is under way there, which may be sending an extension that has to be waited for later.

    Nor is a handler being entered or left, of a task that uses one itself.
    """
    if alarm.is_outside_body(frame, MessageHandler):
        return False
    while frame is not None:
        if frame.f_code is MessageHandler._handle_alarm.__code__:
            return False
        frame = frame.f_back
    return True
