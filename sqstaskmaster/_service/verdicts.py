"""Carries out what was decided about messages whose tasks have ended, beside the tasks that run.

    done       -> delete, again and again while the claim is held
    failed     -> report, in a thread: the user's code; then leave it, or have it come back when `retry_delay` says
    given back -> visible at once, then report
    continued, dead-lettered -> send on, then delete; what cannot be sent on has failed

Deletes, and changes of visibility, that are due together leave as one request.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqstaskmaster._claim.deletion import Deleted, Deletion
from sqstaskmaster._service.job import Job
from sqstaskmaster._service.threads import Threads
from sqstaskmaster.errors import NoAnswer

# A delete may wait this long for others to join it, where other tasks run.
_LINGER_SECONDS = 0.025

# An extension under way would hide a message again that is given back meanwhile: so long is it waited for.
_EXTENSION_SECONDS = 1.0

# The longest that a change of visibility is waited for.
_CHANGE_SECONDS = 5.0


class _Change(NamedTuple):
    job: Job
    seconds: int
    at_latest: float
    then: Callable[[BaseException | None], None]


class _Try(NamedTuple):
    """One request under way, and who is waited for."""

    jobs: list[Job]
    give_up_at: float
    answered: Callable[[Job, BaseException | None], None]


class Verdicts:
    """The requests at the end of claims.

    :param clock: the claims' clock.
    """

    def __init__(self, threads: Threads, clock: Callable[[], float]) -> None:
        self._threads = threads
        self._clock = clock
        self._deletions: dict[Job, tuple[Deletion, Callable[[BaseException | None], None]]] = {}
        self._lingering: list[Job] = []
        self._changes: list[_Change] = []
        self._tries: list[_Try] = []

    @property
    def unfinished(self) -> int:
        """How many messages are waited for."""
        return len(self._deletions) + len(self._changes) + sum(len(each.jobs) for each in self._tries)

    def delete(self, job: Job, linger: bool, then: Callable[[BaseException | None], None]) -> None:
        """Delete the message, trying while the claim is held; `then` is told None, or why it was given up."""
        now = self._clock()
        deletion = Deletion(job.claim, now)
        if linger:
            deletion.due = now + _LINGER_SECONDS
            self._lingering.append(job)
        self._deletions[job] = (deletion, then)

    def change_visibility(self, job: Job, seconds: int, then: Callable[[BaseException | None], None]) -> None:
        """Have the message visible in so many seconds, once; `then` is told None, or what went wrong."""
        self._changes.append(_Change(job, seconds, self._clock() + _EXTENSION_SECONDS, then))

    def due(self, now: float) -> float:
        """When `attend` has something to do."""
        return min(
            min((deletion.due for deletion, _ in self._deletions.values()), default=math.inf),
            min((each.at_latest if each.job.extensions else now for each in self._changes), default=math.inf),
            min((each.give_up_at for each in self._tries), default=math.inf),
        )

    def attend(self, now: float) -> None:
        """Send what is due, and wait no longer for what has not answered."""
        for each in [each for each in self._tries if each.give_up_at <= now]:
            self._tries.remove(each)
            for job in each.jobs:
                each.answered(job, NoAnswer(f"SQS has not answered a request about {job.message}"))
        due = [job for job, (deletion, _) in self._deletions.items() if deletion.due <= now]
        if due:
            # Those that wait for company have it now.
            due += [job for job in self._lingering if job in self._deletions and job not in due]
            self._lingering.clear()
        for jobs in _batches(due):
            self._send_deletes(jobs, now)
        for change in [*self._changes]:
            claim = change.job.claim
            if claim.lapsed(now) or claim.lost is not None:
                self._changes.remove(change)  # another worker may be running it
                change.then(claim.lost)
        changes = {each.job: each for each in self._changes if not each.job.extensions or each.at_latest <= now}
        for jobs in _batches(list(changes)):
            self._send_changes([changes[job] for job in jobs], now)

    def _send_deletes(self, jobs: list[Job], now: float) -> None:
        waits = [self._deletions[job][0].begin(now) for job in jobs]
        for job in jobs:
            self._deletions[job][0].due = math.inf
        calls, messages = jobs[0].source.calls, [job.message for job in jobs]
        self._send(_Try(jobs, now + max(waits), self._delete_answered), lambda: calls.delete(messages))

    def _delete_answered(self, job: Job, error: BaseException | None) -> None:
        if job not in self._deletions:
            return  # an earlier try, answered late, has settled it
        deletion, then = self._deletions[job]
        failed = error if error is None or isinstance(error, Exception) else NoAnswer(repr(error))
        answer = deletion.answered(failed, self._clock())
        if answer is not Deleted.RETRY:
            del self._deletions[job]
            then(error if answer is Deleted.GIVE_UP else None)

    def _send_changes(self, changes: Sequence[_Change], now: float) -> None:
        thens = {}
        for each in changes:
            self._changes.remove(each)
            thens[each.job] = each.then
        calls, pairs = changes[0].job.source.calls, [(each.job.message, each.seconds) for each in changes]
        jobs = [each.job for each in changes]
        answered: Callable[[Job, BaseException | None], None] = lambda job, error: thens[job](error)
        self._send(_Try(jobs, now + _CHANGE_SECONDS, answered), lambda: calls.change_visibility(pairs))

    def _send(self, sent: _Try, request: Callable[[], Any]) -> None:
        self._tries.append(sent)
        self._threads.call(request, functools.partial(self._answered, sent))

    def _answered(self, sent: _Try, errors: list[BaseException | None] | None, error: BaseException | None) -> None:
        late = sent not in self._tries
        if not late:
            self._tries.remove(sent)
        for job, failed in zip(sent.jobs, errors or [error] * len(sent.jobs)):
            if not late or (failed is None and job in self._deletions):
                sent.answered(job, failed)


def _batches(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in requests: of one queue each, and as many as it takes."""
    found: list[list[Job]] = []
    for job in jobs:
        most = job.source.calls.most(job.message)
        for batch in found:
            if batch[0].source is job.source and len(batch) < min(most, batch[0].source.calls.most(batch[0].message)):
                batch.append(job)
                break
        else:
            found.append([job])
    return found
