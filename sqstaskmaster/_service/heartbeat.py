"""The extensions of many claims: those due together leave as one request, and none waits for another's answer.

due ----------+--> one batch a queue, up to ten --> a thread --> each claim is told its own answer
due soon -----+                                      | no answer within the patience
                                                     +--> another batch, from another thread; a late answer counts
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sqstaskmaster._claim.claim import Answer, Request
from sqstaskmaster._service.job import Job
from sqstaskmaster._service.threads import Threads
from sqstaskmaster.errors import NoAnswer

# How early an extension may be sent to join a batch, as a part of the time between two.
_EARLY = 0.25

# SQS answers in milliseconds. A batch that has not by then is sent again.
_PATIENCE_SECONDS = 2.0


class _Batch(NamedTuple):
    requests: list[tuple[Job, Request]]
    give_up_at: float


class Heartbeat:
    """Keeps the claims of all jobs that want theirs kept.

    :param clock: the claims' clock.
    :param on_lost: called where SQS says that a claim is gone.
    :param on_failure: called where an extension failed and the claim is held yet.
    """

    def __init__(
        self,
        threads: Threads,
        clock: Callable[[], float],
        on_lost: Callable[[Job], None],
        on_failure: Callable[[Job, BaseException], None],
    ) -> None:
        self._threads = threads
        self._clock = clock
        self._on_lost = on_lost
        self._on_failure = on_failure
        self._batches: list[_Batch] = []

    def due(self, jobs: Iterable[Job], now: float) -> float:
        """When `attend` has something to do."""
        return min(
            min((job.claim.due(now) for job in jobs if job.keeps_claim), default=math.inf),
            min((batch.give_up_at for batch in self._batches), default=math.inf),
        )

    def attend(self, jobs: Iterable[Job], now: float) -> None:
        """Send what is due, find what has lapsed, and wait no longer for what has not answered."""
        held = [job for job in jobs if job.keeps_claim]
        for job in held:
            if job.claim.lapsed(now):
                self._on_lost(job)
        self._give_up(now)
        while True:
            first = next((job for job in held if job.claim.extension_is_due(now)), None)
            if first is None:
                return
            self._send(first, [job for job in held if job.source is first.source], now)

    def _send(self, first: Job, others: list[Job], now: float) -> None:
        """One batch: the first, and whoever of the others is due now or soon, the most urgent first."""
        early = _EARLY * first.claim.alarm_timeout
        joining = [job for job in others if job is not first and job.claim.extension_is_due(now, early)]
        joining.sort(key=lambda job: job.claim.due(now))
        calls = first.source.calls
        most = calls.most(first.message)
        batch = [first, *(job for job in joining if calls.most(job.message) == most)][:most]
        requests = [(job, request) for job in batch if (request := job.claim.begin_extension(now)) is not None]
        if not requests:
            return
        for job, _ in requests:
            job.extensions += 1
        patience = min(_PATIENCE_SECONDS, *(job.claim.alarm_timeout / 2 for job, _ in requests))
        sent = _Batch(requests, now + patience)
        self._batches.append(sent)
        changes = [(job.message, request.seconds) for job, request in requests]
        self._threads.call(lambda: calls.change_visibility(changes), functools.partial(self._answered, sent))

    def _give_up(self, now: float) -> None:
        for batch in [batch for batch in self._batches if batch.give_up_at <= now]:
            self._batches.remove(batch)
            for job, request in batch.requests:
                job.claim.unanswered(request, now)
                text = f"SQS has not answered the extension of the claim on {job.message}; trying another"
                self._on_failure(job, NoAnswer(text))

    def _answered(self, batch: _Batch, errors: list[BaseException | None] | None, error: BaseException | None) -> None:
        if batch in self._batches:
            self._batches.remove(batch)
        now = self._clock()
        for (job, request), failed in zip(batch.requests, errors or [error] * len(batch.requests)):
            job.extensions -= 1
            if job.claim.lapsed(now):
                self._on_lost(job)
            elif failed is None:
                job.claim.extended(request, now)
            elif job.claim.failed(request, failed, now) is Answer.LOST:
                self._on_lost(job)
            else:
                self._on_failure(job, failed)
