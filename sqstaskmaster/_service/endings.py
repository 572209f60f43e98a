"""What a task that has ended in a slot came to, and what is told of it.

the task's process has ended -> what was it?   done | failed | timed out | stuck | interrupted | claim lost
                                               continued | dead-lettered
the loop's thread decides, Verdicts makes the requests, the user's code (notify, retry_delay, on_finish) has threads
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from sqstaskmaster._claim import clock, forwarding
from sqstaskmaster._claim.destinations import LAST_RECEIVE, NOT_DEAD_LETTERED, DeadLetterQueues, send_successor
from sqstaskmaster._claim.ending import SEND_SECONDS, retry_delay_of
from sqstaskmaster._service.job import Job
from sqstaskmaster._service.settings import GIVEN_BACK, REFUSED, Settings
from sqstaskmaster._service.threads import Threads
from sqstaskmaster._service.verdicts import Verdicts
from sqstaskmaster.endings import Continue, Outcome
from sqstaskmaster.errors import CannotContinue, NoAnswer, ShutdownRequested, TaskDied
from sqstaskmaster.process_handler import show_stack
from sqstaskmaster.results import Finished


class Endings:
    """Decides what ended tasks came to, and has it carried out and told.

    :param log: has a function called in the thread that writes the log.
    :param over: called with a job and its outcome, in the loop's thread, when nothing more is done about it.
    """

    def __init__(
        self,
        settings: Settings,
        requests: Threads,
        user: Threads,
        log: Callable[[Callable[[], Any]], Any],
        over: Callable[[Job, str], None],
    ) -> None:
        self._settings = settings
        self._requests = requests
        self._user = user
        self._log = log
        self._over = over
        self._verdicts = Verdicts(requests, clock.now)
        self._dead_letters = DeadLetterQueues()
        self._sendings: list[_Sending] = []

    # -- for the loop --------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """How many requests and reports have not answered yet."""
        return self._verdicts.unfinished + len(self._sendings) + self._user.unfinished

    def due(self, now: float) -> float:
        """When `attend` has something to do, by the claims' clock."""
        return min(self._verdicts.due(now), min((each.give_up_at for each in self._sendings), default=math.inf))

    def attend(self, now: float) -> None:
        """Send what is due, and wait no longer for what has not answered."""
        self._verdicts.attend(now)
        for each in [each for each in self._sendings if each.give_up_at <= now]:
            self._sendings.remove(each)
            each.give_up()

    def ended(self, job: Job, others: bool) -> None:
        """Its task is gone. `others`: whether other tasks run, and requests may wait a moment to be shared."""
        value, error = _result(job)
        reason = job.stop_reason
        if job.claim.lost is not None and self._settings.stops_on_lost_claim:
            self.lost(job, job.claim.lost)
        elif isinstance(error, Continue):
            self._continue(job, error)
        elif reason is not None and (error is not None or not isinstance(reason, ShutdownRequested)):
            show_stack(reason, job.process.stack if job.process is not None else "")
            self._failed(job, reason, job.stopped_as)
        elif error is not None:
            if isinstance(error, TaskDied):
                show_stack(error, error.stack)  # nobody stopped it: where it crashed
            self._failed(job, error, None)
        else:
            self._done(job, Outcome.DONE, others)

    def lost(self, job: Job, error: Exception | None) -> None:
        """Another worker may be running it: nothing is deleted, given back, delayed or sent on."""
        job.keeps_claim = False

        def report() -> None:
            if not job.lost_told:  # else `claim_lost` was called
                job.report.trouble(
                    "Claim lost, the task is not run: %s", error or NoAnswer("?"), "claim_lost", logging.ERROR
                )

        self._report(job, report, Outcome.CLAIM_LOST)

    def refuse(self, job: Job, error: BaseException) -> None:
        """No task of ours: it is told, and left to the redrive policy."""
        job.keeps_claim = False

        def report() -> None:
            job.report.outcome = REFUSED
            job.report.log(logging.ERROR, "refused", "%s: %s", error, job.message)
            job.report.notify(error)

        self._user.call(report, lambda *_: self._over(job, REFUSED))

    def give_back_unstarted(self, job: Job) -> None:
        """Received while the worker stops, or without a slot to run it: visible to others at once."""
        job.keeps_claim = False

        def told(error: BaseException | None) -> None:
            if error is None:
                text = "Message given back, unstarted: %s"
                self._log(lambda: job.report.log(logging.INFO, "given_back", text, job.message))
                self._user.call(lambda: self._warn_of_last_receive(job))
            else:
                self._not_given_back(job, error)
            self._over(job, GIVEN_BACK)

        self._verdicts.change_visibility(job, 0, told)

    def extension_failed(self, job: Job, error: BaseException) -> None:
        """An extension failed, and is tried again. The task goes on."""
        text = "Claim not extended, the task goes on, message: %s"
        self._user.call(lambda: job.report.trouble(text, error, "extension_failed"))

    # -- what it came to -----------------------------------------------------------------------------------------

    def _done(self, job: Job, outcome: Outcome, others: bool = False) -> None:
        job.keeps_claim = False

        def told(error: BaseException | None) -> None:
            if isinstance(error, Exception):
                self._report(job, functools.partial(job.report.not_deleted, error), outcome)
            else:
                self._finish(job)

        job.set_outcome(outcome)

        self._verdicts.delete(job, others, told)

    def _failed(self, job: Job, error: BaseException, stopped_as: Outcome | None) -> None:
        interrupted = not isinstance(error, Exception)
        outcome = Outcome.INTERRUPTED if interrupted else stopped_as or Outcome.FAILED
        if interrupted:
            job.keeps_claim = False

            def told(problem: BaseException | None) -> None:
                if problem is not None:
                    self._not_given_back(job, problem)
                else:
                    job.report.comes_back_in = 0
                self._report(job, lambda: self._report_interrupted(job, error), outcome)

            self._verdicts.change_visibility(job, 0, told)
            return
        final = forwarding.without_retry(error, () if job.handler is None else job.handler.dead_letter)
        if final is not None or self._settings.dead_letter_reasons:
            self._dead_letter(job, final or error, error, outcome)
        else:
            self._report_failure(job, error, outcome)

    def _report_interrupted(self, job: Job, error: BaseException) -> None:
        job.report.failed(error)
        if job.report.comes_back_in == 0:
            self._warn_of_last_receive(job)

    def _warn_of_last_receive(self, job: Job) -> None:
        if self._dead_letters.is_last_receive(job.message):
            job.report.log(
                logging.WARNING, "last_receive", LAST_RECEIVE, job.task, job.report.receive_count, job.message
            )

    def _report_failure(self, job: Job, error: BaseException, outcome: Outcome) -> None:
        """Report it, ask when it is to come back, and see to that."""
        job.keeps_claim = False
        job.set_outcome(outcome)

        def delayed(seconds: int | None, _: BaseException | None) -> None:
            if seconds is None or job.claim.lost is not None:
                self._finish(job)
            else:
                self._verdicts.change_visibility(job, job.claim.cut(seconds, clock.now()), returned)

        def returned(problem: BaseException | None) -> None:
            if problem is not None:
                self._not_given_back(job, problem)
            self._finish(job)

        self._user.call(lambda: _report_and_ask(job, error), delayed)

    # -- sending on ----------------------------------------------------------------------------------------------

    def _continue(self, job: Job, ending: Continue) -> None:
        """Send the successor, then delete. Checked first, so that what cannot run is never sent."""
        kwargs = {**job.kwargs, **ending.kwargs}
        try:
            self._settings.registry.entry_for(job.task, kwargs)
            most = job.handler.max_continuations if job.handler is not None else 0
            request = forwarding.successor(job.message, job.task, kwargs, ending.delay_seconds, most, True)
        except Exception as error:
            self._stays(job, error)
            return

        def sent(_: Any, error: BaseException | None) -> None:
            if error is None:
                self._done(job, Outcome.CONTINUED)
            else:
                self._stays(job, error)

        self._send(job, lambda: send_successor(job.message, request), sent)

    def _stays(self, job: Job, error: BaseException) -> None:
        """A successor that was not sent: the task has failed, and its message stays."""
        if not isinstance(error, CannotContinue):
            problem = CannotContinue(f"Task {job.task!r} cannot continue, its successor was not sent: {error}")
            problem.__cause__ = error
            error = problem
        self._report_failure(job, error, Outcome.FAILED)

    def _dead_letter(self, job: Job, reason: BaseException, error: BaseException, outcome: Outcome) -> None:
        """Send it to the dead-letter queue with the reason, where that is due, then delete it."""

        def sent(was_due: bool | None, problem: BaseException | None) -> None:
            if was_due:
                job.set_outcome(Outcome.DEAD_LETTERED)
                self._user.call(lambda: job.report.failed(error), lambda *_: self._done(job, Outcome.DEAD_LETTERED))
                return
            if problem is not None and self._dead_letters.is_news(job.source.manager.url, problem):
                self._log(
                    lambda: job.report.log(logging.WARNING, "dead_letter_failed", NOT_DEAD_LETTERED, job.task, problem)
                )
            self._report_failure(job, error, outcome)

        self._send(job, lambda: self._dead_letters.send(job.message, job.task, reason, True), sent)

    def _send(self, job: Job, send: Callable[[], Any], then: Callable[[Any, BaseException | None], None]) -> None:
        """Make a request that comes before the delete; the claim is kept for so long, and no longer than that."""
        waiting = _Sending(clock.now() + SEND_SECONDS, lambda: then(None, NoAnswer(f"No answer in {SEND_SECONDS:g} s")))
        self._sendings.append(waiting)

        def answered(result: Any, error: BaseException | None) -> None:
            if waiting in self._sendings:
                self._sendings.remove(waiting)
                then(result, error)

        self._requests.call(send, answered)

    # -- telling -------------------------------------------------------------------------------------------------

    def _not_given_back(self, job: Job, error: BaseException) -> None:
        text = "Message not given back, it comes back when its visibility timeout ends: %s"
        self._user.call(lambda: job.report.trouble(text, error, "give_back_failed"))

    def _report(self, job: Job, report: Callable[[], Any], outcome: Outcome) -> None:
        """Report, in a thread, then be done with the message."""
        job.set_outcome(outcome)
        self._user.call(report, lambda *_: self._finish(job))

    def _finish(self, job: Job) -> None:
        """The one line of a task that has ended, and whoever wants to know."""
        finished = job.finished()
        if job.report.is_said(logging.INFO):
            self._log(job.report.finished)
        on_finish = self._settings.on_finish
        if on_finish is not None:
            self._user.call(lambda: _call_on_finish(on_finish, finished, job))
        self._over(job, finished.outcome)


class _Sending(NamedTuple):
    give_up_at: float
    give_up: Callable[[], None]


def _report_and_ask(job: Job, error: BaseException) -> int | None:
    """In a thread, since all of it is the user's code: report a failure; when is the message to come back?"""
    handler, report = job.handler, job.report
    delay = None if handler is None else retry_delay_of(handler.retry_delay, error, report)
    report.comes_back_in = job.claim.left(clock.now()) if delay is None else delay
    report.failed(error)
    return delay


def _call_on_finish(on_finish: Callable[[Finished], Any], finished: Finished, job: Job) -> None:
    try:
        on_finish(finished)
    except Exception as error:
        job.report.trouble("on_finish failed for message: %s", error, "on_finish_failed", logging.ERROR)


def _result(job: Job) -> tuple[Any, BaseException | None]:
    try:
        return (job.process.result() if job.process is not None else None), None
    except BaseException as error:  # a Continue, or whatever the task raised
        return None, error
