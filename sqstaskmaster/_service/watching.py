"""The tasks that run in slots: what is due about each of them, and what stops it.

limit reached | over max_memory | running() says no, or raises | its claim is lost  ->  Job.stop
its process, and everything it started, is gone                                      ->  on_ended
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from sqstaskmaster._service.job import Job
from sqstaskmaster._service.readers import Readers
from sqstaskmaster._service.threads import Threads
from sqstaskmaster.endings import Outcome
from sqstaskmaster.errors import HandlerStuck, MemoryLimitExceeded
from sqstaskmaster.message_handler import stop_exception
from sqstaskmaster.process_handler import ProcessMessageHandler

# How far before the end of a claim's 12 hours a task is stopped, so that it is gone when the message comes back.
_END_MARGIN_SECONDS = 2.0

# How often the memory of a task with max_memory is looked at: a process fills about a gigabyte in this time.
_MEMORY_LOOK_SECONDS = 0.1


class Watching:
    """Watches over the tasks that run.

    :param user: threads for the user's code.
    :param stops_on_lost_claim: whether a task whose claim is lost is stopped.
    :param on_ended: called with a job whose task is gone.
    """

    def __init__(
        self, user: Threads, readers: Readers, stops_on_lost_claim: bool, on_ended: Callable[[Job], None]
    ) -> None:
        self._user = user
        self._readers = readers
        self._stops_on_lost_claim = stops_on_lost_claim
        self._on_ended = on_ended

    def begin(self, job: Job, handler: ProcessMessageHandler, now: float, claim_now: float) -> None:
        """The job's process has been started. Times of both clocks."""
        job.began = now
        claim_ends = now + job.claim.ends - claim_now - _END_MARGIN_SECONDS - handler.term_grace
        job.limit_at = min(now + handler.hard_timeout, claim_ends)
        if _asks_running(handler):
            job.look_at = now + handler.alarm_timeout
        if handler.max_memory is not None:
            job.memory_at = now
        self._watch(job)

    def attend(self, job: Job, now: float) -> None:
        """Do what is due about one task."""
        process, handler = job.process, job.handler
        if process is None or handler is None:
            return
        if now >= process.next_step_at:
            process.step(now)
            self._watch(job)
        if process.gone:
            self._on_ended(job)
        elif job.stop_reason is None:
            if now >= job.limit_at:
                job.stop(stop_exception(Outcome.TIMED_OUT, job.message, now - job.began), Outcome.TIMED_OUT)
            elif handler.max_memory is not None and now >= job.memory_at:
                job.memory_at = now + _MEMORY_LOOK_SECONDS
                size = process.meter.memory(handler.max_memory)
                if size > handler.max_memory:
                    job.stop(MemoryLimitExceeded(job.task, size, handler.max_memory))
            elif now >= job.look_at:
                job.look_at = now + handler.alarm_timeout
                self._ask_running(job, handler)

    def claim_lost(self, job: Job) -> None:
        """SQS, or the clock, says that the claim is gone. Told once."""
        error = job.claim.lost
        if job.lost_told or error is None:
            return
        job.lost_told = job.is_running
        if job.is_running and job.handler is not None:
            handler = job.handler
            if self._stops_on_lost_claim:
                job.stop(error, Outcome.CLAIM_LOST)
            self._user.call(lambda: handler.claim_lost(error), functools.partial(self._claim_lost_told, job))

    def _claim_lost_told(self, job: Job, _: Any, error: BaseException | None) -> None:
        if error is not None:
            job.stop(error, Outcome.CLAIM_LOST)

    def _ask_running(self, job: Job, handler: ProcessMessageHandler) -> None:
        """Ask for progress, in a thread: one that hangs is no answer, and holds up neither limit nor heartbeat."""
        if not job.asking and job.process is not None:
            job.asking = True
            handler.progress = job.process.progress
            self._user.call(handler.running, functools.partial(self._running_answered, job))

    def _running_answered(self, job: Job, makes_progress: Any, error: BaseException | None) -> None:
        job.asking = False
        if error is not None:
            job.stop(error if isinstance(error, Exception) else HandlerStuck(f"running() raised {error!r}"))
        elif not makes_progress:
            job.stop(stop_exception(Outcome.STUCK, job.message, time.monotonic() - job.began), Outcome.STUCK)

    def _watch(self, job: Job) -> None:
        """Have the loop read what the task's descriptors have to say: those it has now."""
        if job.process is None:
            return
        wanted = set(job.process.descriptors())
        for descriptor in job.watched - wanted:
            self._readers.remove(descriptor)
        for descriptor in wanted - job.watched:
            self._readers.add(descriptor, functools.partial(self._read, job, descriptor))
        job.watched = wanted

    def _read(self, job: Job, descriptor: int) -> None:
        if job.process is not None and job.is_running:
            job.process.read(descriptor)
            self._watch(job)
            if job.process.gone:
                self._on_ended(job)


def _asks_running(handler: ProcessMessageHandler) -> bool:
    """Whether `running` is anything but the default, which always says yes."""
    return type(handler).running is not ProcessMessageHandler.running or "running" in vars(handler)
