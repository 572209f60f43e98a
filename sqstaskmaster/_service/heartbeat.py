"""The extensions of one queue's claims: those due together are sent in one request; none waits for another's answer.

due ----------+--> one batch, up to ten --> a thread --> each claim gets its own answer
due soon -----+                              | no answer within the patience
                                             +--> another batch, from another thread; a late answer counts
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

from sqstaskmaster._claim.attempt import Attempt
from sqstaskmaster._claim.claim import Answer, Claim, Request
from sqstaskmaster._service.world import Timer, World
from sqstaskmaster._sqs.queues import QueueCalls
from sqstaskmaster.errors import NoAnswer

# How early an extension may be sent to join a batch, as a fraction of the time between two.
_EARLY = 0.25

# SQS answers in milliseconds. A batch without an answer by then is sent again.
_PATIENCE_SECONDS = 2.0

# While a machine is suspended, claims run on and timers stand still. After that the timer may be late by this much.
_LOOK_SECONDS = 5.0

# When to look again at a claim that ends at this very moment.
_SOON_SECONDS = 0.001


class _Batch(NamedTuple):
    requests: list[tuple[Attempt, Claim, Request]]
    timer: Timer


class Heartbeat:
    """Keeps the claims of the attempts that it is given, until it is told to let go.

    :param pool: the pool whose threads make the requests. An attribute too.
    :param on_lost: called once with an attempt whose claim is gone.
    :param on_failure: called when an extension failed and the claim is still held.
    """

    def __init__(
        self,
        world: World,
        pool: str,
        calls: QueueCalls,
        on_lost: Callable[[Attempt], None],
        on_failure: Callable[[Attempt, BaseException], None],
    ) -> None:
        self._world = world
        self.pool = pool
        self._calls = calls
        self._on_lost = on_lost
        self._on_failure = on_failure
        # When each attempt is due, and the same as a heap. A heap entry that disagrees with `_due` is stale.
        self._due: dict[Attempt, float] = {}
        self._order: list[tuple[float, int, Attempt]] = []
        self._numbers = itertools.count()
        self._under_way: dict[Attempt, int] = {}
        self._quiet: dict[Attempt, Callable[[], None]] = {}
        self._timer = Timer(None)
        self._timer_at = math.inf

    def keep(self, attempt: Attempt) -> None:
        """Keep its claim from now on. Call it again after its times have changed."""
        self._plan(attempt)
        self._wake()

    def let_go(self, attempt: Attempt, seconds: float, then: Callable[[], None]) -> None:
        """Stop extending it. Calls `then()` once no extension is under way, or after this many seconds."""
        self._due.pop(attempt, None)
        if not seconds or attempt not in self._under_way:
            then()
            return
        timer = self._world.at(self._world.now() + seconds, lambda: self._is_quiet(attempt))

        def once() -> None:
            timer.cancel()
            then()

        self._quiet[attempt] = once

    def due_in(self) -> float:
        """Seconds until a claim needs something; 0 if one does now, inf if none does."""
        earliest = self._next()
        return math.inf if earliest is None else max(0.0, earliest[0] - self._world.claim_now())

    def look(self) -> None:
        """The clock of claims has moved: do what is due."""
        self._timer.cancel()
        self._attend()

    # -- what is due ---------------------------------------------------------------------------------------------

    def _plan(self, attempt: Attempt, earliest: float = -math.inf) -> None:
        before = self._due.get(attempt)
        self._due[attempt] = due = max(attempt.claim.due(self._world.claim_now()), earliest)
        if due < math.inf and due != before:  # else it is in the heap already, and would be extended twice
            heapq.heappush(self._order, (due, next(self._numbers), attempt))

    def _next(self) -> tuple[float, Attempt] | None:
        """The earliest entry that is not stale."""
        while self._order:
            due, _, attempt = self._order[0]
            if self._due.get(attempt) == due:
                return due, attempt
            heapq.heappop(self._order)
        return None

    def _wake(self) -> None:
        """Have `_attend` called when the earliest is due."""
        earliest = self._next()
        due = math.inf if earliest is None else earliest[0]
        if due != self._timer_at:
            self._timer.cancel()
            self._timer_at = due
            if due < math.inf:
                when = self._world.now() + min(_LOOK_SECONDS, max(0.0, due - self._world.claim_now()))
                self._timer = self._world.at(when, self._attend)

    def _attend(self) -> None:
        self._timer_at = math.inf
        now = self._world.claim_now()
        while (earliest := self._next()) is not None and earliest[0] <= now:
            attempt = earliest[1]
            if attempt.claim.lapsed(now):
                self._lost(attempt)
            elif attempt.claim.extension_is_due(now):
                self._send(attempt, now)
            else:
                self._plan(attempt, now + _SOON_SECONDS)
        self._wake()

    def _send(self, first: Attempt, now: float) -> None:
        """Send one batch: the first, and others that are due now or soon, the most urgent first."""
        most = self._calls.most(first.message)
        until = now + _EARLY * first.claim.alarm_timeout
        batch: list[Attempt] = []
        others: list[Attempt] = []
        while len(batch) < most and (earliest := self._next()) is not None and earliest[0] <= until:
            attempt = earliest[1]
            heapq.heappop(self._order)
            del self._due[attempt]
            alike = self._calls.most(attempt.message) == most and attempt.claim.extension_is_due(until)
            (batch if alike or attempt is first else others).append(attempt)
        for attempt in others:
            self._plan(attempt)
        begun = [(each, each.claim, each.claim.begin_extension(now)) for each in batch]
        requests = [(each, claim, request) for each, claim, request in begun if request is not None]
        for attempt in batch:
            self._plan(attempt)
        if not requests:
            return
        for attempt, _, _ in requests:
            self._under_way[attempt] = self._under_way.get(attempt, 0) + 1
        patience = min(_PATIENCE_SECONDS, *(claim.alarm_timeout / 2 for _, claim, _ in requests))
        sent = _Batch(requests, self._world.at(self._world.now() + patience, lambda: self._give_up(sent)))
        changes = [(attempt.message, request.seconds) for attempt, _, request in requests]
        answered = functools.partial(self._answered, sent)
        self._world.call(self.pool, lambda: self._calls.change_visibility(changes), answered)

    # -- what came back ------------------------------------------------------------------------------------------

    def _give_up(self, batch: _Batch) -> None:
        now = self._world.claim_now()
        for attempt, claim, request in batch.requests:
            claim.unanswered(request, now)
            text = f"SQS has not answered the extension of the claim on {attempt.report.subject}; trying another"
            if attempt in self._due:
                self._plan(attempt)
                self._on_failure(attempt, NoAnswer(text))
        self._wake()

    def _answered(self, batch: _Batch, errors: list[BaseException | None] | None, error: BaseException | None) -> None:
        batch.timer.cancel()
        now = self._world.claim_now()
        for (attempt, claim, request), failed in zip(batch.requests, errors or [error] * len(batch.requests)):
            self._under_way[attempt] -= 1
            if not self._under_way[attempt]:
                del self._under_way[attempt]
            if claim is not attempt.claim:
                pass  # the answer is for an earlier receipt: the message has been received again since
            elif not claim.lapsed(now):
                if failed is None:
                    claim.extended(request, now)
                elif claim.failed(request, failed, now) is not Answer.LOST and attempt in self._due:
                    self._on_failure(attempt, failed)
            if attempt in self._due:
                if attempt.claim.lost is None:
                    self._plan(attempt)
                else:
                    self._lost(attempt)
            if attempt not in self._under_way:
                self._is_quiet(attempt)
        self._wake()

    def _lost(self, attempt: Attempt) -> None:
        del self._due[attempt]
        self._on_lost(attempt)

    def _is_quiet(self, attempt: Attempt) -> None:
        then = self._quiet.pop(attempt, None)
        if then is not None:
            then()
