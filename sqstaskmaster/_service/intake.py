"""The polls of a worker's loop: when to make the next, for how many messages, and what to do with its answer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from sqstaskmaster._service.polling import Polling
from sqstaskmaster._service.slot_pool import SlotPool
from sqstaskmaster._service.source import Source
from sqstaskmaster._service.world import World
from sqstaskmaster._sqs.limits import MAX_BATCH_ENTRIES, MAX_WAIT_SECONDS
from sqstaskmaster.errors import PollRefused
from sqstaskmaster.task_manager import Task

# After a poll that brought something, while over a quarter of the slots are busy, the next may wait this long for more
# slots to become free: short tasks then share a request.
_LINGER_SECONDS = 0.025

# While no slot is free, no polls show that the loop is alive: report it this often instead.
_ALIVE_SECONDS = 5.0


class Intake:
    """Polls for as many messages as slots are ready.

    `not_before`: no poll is made earlier.

    :param sqs_timeout: the visibility timeout to ask for.
    :param wants_more: whether polls may be made.
    :param is_idle: whether nothing runs, and nothing is being settled.
    :param take: called with a source and a task that came from it.
    :param tell: called after each answered poll, and every few seconds while no slot is ready.
    """

    def __init__(
        self,
        world: World,
        sources: Sequence[Source],
        wait_time: int,
        sqs_timeout: int,
        slots: SlotPool,
        wants_more: Callable[[], bool],
        is_idle: Callable[[], bool],
        take: Callable[[Source, Task], None],
        tell: Callable[[], None],
    ) -> None:
        self._world = world
        self._slots = slots
        self._polling: Polling[Source] = Polling(sources, wait_time, world.log)
        self._sqs_timeout = sqs_timeout
        self._wants_more = wants_more
        self._is_idle = is_idle
        self._take = take
        self._tell = tell
        self._timer_at = math.inf
        self._linger_until = -math.inf
        self._alive_at = 0.0
        self.not_before = -math.inf

    @property
    def wait_time(self) -> int:
        return self._polling.wait_time

    @property
    def out(self) -> int:
        """How many polls are under way."""
        return self._polling.out

    @property
    def all_empty(self) -> bool:
        """Whether the last poll of every queue brought nothing, and no task has ended since."""
        return self._polling.all_empty

    @property
    def refused(self) -> PollRefused | None:
        """Why no queue can be polled any more."""
        return self._polling.refused

    @property
    def first_refused(self) -> PollRefused | None:
        """Why one of the queues cannot be polled any more."""
        return self._polling.first_refused

    def busy(self) -> None:
        """A task has ended: a slot may be free, and a queue no longer empty."""
        self._polling.busy()
        self.look_soon()

    def soonest(self, source: Source) -> int:
        """In how many seconds a returned message may become visible: after our own poll, which would receive it."""
        left = self._polling.ends_in(source, self._world.now())
        return min(MAX_WAIT_SECONDS, math.ceil(left)) + 1 if left else 0

    def look_soon(self) -> None:
        """Check soon whether to poll, once for all that happens in this turn."""
        self._look_at(self._world.now())

    def _look_at(self, when: float) -> None:
        if when < self._timer_at:
            self._timer_at = when
            self._world.at(when, functools.partial(self._look, when))

    def _look(self, when: float) -> None:
        if when != self._timer_at:
            return  # superseded by one for an earlier time
        self._timer_at = math.inf
        if not self._wants_more():
            return
        now, ready = self._world.now(), self._slots.ready
        if not ready:
            if now >= self._alive_at:
                self._alive_at = now + _ALIVE_SECONDS
                self._tell()
            self._look_at(self._alive_at)
            return
        lingers = len(self._slots) - ready > len(self._slots) // 4
        earliest = max(self.not_before, self._linger_until if lingers else -math.inf)
        source = self._polling.next(now) if now >= earliest else None
        if source is None:
            self._look_at(max(earliest, self._polling.due(now) if now >= earliest else -math.inf))
            return
        self._poll(source, min(ready, MAX_BATCH_ENTRIES), now)
        self.look_soon()

    def _poll(self, source: Source, most: int, now: float) -> None:
        self._polling.sent(source, now)
        manager, wait, timeout = source.manager, self._polling.wait_time, self._sqs_timeout
        now_of_claims = self._world.claim_now
        # One answer of a FIFO queue may hold several messages of one group, which would then run side by side. While
        # one is claimed, SQS itself holds back the others.
        most = 1 if manager.url.endswith(".fifo") else most
        self._world.call(
            source.polls,
            lambda: manager.receive(wait, timeout, most, now_of_claims, in_worker=True, MessageAttributeNames=["All"]),
            functools.partial(self._polled, source, self._is_idle()),
        )

    def _polled(
        self, source: Source, idle: bool, received: Sequence[Task | None] | None, error: BaseException | None
    ) -> None:
        """`idle`: whether nothing ran when the poll was sent."""
        self.look_soon()
        if error is not None:
            if not isinstance(error, Exception):
                self._polling.ended(source)
                raise error
            self._polling.failed(source, error, source.manager.url, self._world.now())
            return
        self._polling.answered(source, len(received or ()))
        if not idle:
            self._polling.busy()  # what ran meanwhile may have put something there: a successor, a returned message
        if received:
            self._linger_until = self._world.now() + _LINGER_SECONDS
        for task in received or ():
            if task is not None:
                self._take(source, task)
        self._tell()
