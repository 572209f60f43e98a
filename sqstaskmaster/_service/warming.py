"""Processes that stay: which slots have a ready one, how its initializer went, and why it was replaced."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from sqstaskmaster._isolation.slot import Slot, SlotLost
from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster._isolation.warm import Warm
from sqstaskmaster._service.driven import Driven
from sqstaskmaster._service.world import EVENTS, World
from sqstaskmaster.backoff import ExponentialBackoff
from sqstaskmaster.errors import InitializerFailed

# Between two tries of an initializer.
_BACKOFF = ExponentialBackoff(first=1.0, longest=60.0)

# This many failures in a row in every slot, with no task in between, are the host's or the program's fault.
_MOST_FAILURES = 3

_TERM_GRACE_SECONDS = 5.0

_NAME = "the initializer"


class WarmSettings(NamedTuple):
    """The settings of processes that stay. See Worker; `process` is for the slots themselves.

    `on_event`: called with "ready", in a thread, once a slot has become ready.
    """

    process: Warm
    max_tasks: int | None
    timeout: float
    on_event: Callable[[str], Any] | None = None


class _Slot:
    """The process of one slot."""

    def __init__(self) -> None:
        self.is_ready = False
        self.starting: _Starting | None = None
        self.tasks = 0
        self.failures = 0
        self.not_before = -math.inf
        self.replaced = ""


class Warming:
    """The processes of all slots, by the slots' numbers.

    :param on_idle: called with the number of a slot whose process has become ready, or can be started now.
    :param on_broken: called with the error when no slot gets ready.
    """

    def __init__(
        self,
        world: World,
        settings: WarmSettings,
        slots: int,
        on_idle: Callable[[int], None],
        on_broken: Callable[[Exception], None],
    ) -> None:
        self._world = world
        self._settings = settings
        self._slots = [_Slot() for _ in range(slots)]
        self._on_idle = on_idle
        self._on_broken = on_broken
        self._rests = self._has_been_ready = False

    def is_ready(self, number: int) -> bool:
        """Whether the slot's process could take a task."""
        return self._slots[number].is_ready

    def rest(self) -> None:
        """Start no more processes."""
        self._rests = True

    def close(self) -> None:
        """Stop waiting for anything. The keepers end their processes."""
        self.rest()
        for slot in self._slots:
            if slot.starting is not None:
                slot.starting.leave()
                slot.starting.process.open.close_all()
                slot.starting = None

    def facts(self) -> list[dict[str, Any]]:
        """What `sqstaskmaster ps` shows of each slot's process. Thread-safe."""
        found = []
        for number, slot in enumerate(self._slots):
            starting = slot.starting
            found.append(
                {
                    "slot": number,
                    "ready": slot.is_ready,
                    "starting": None if starting is None else round(starting.process.seconds, 1),
                    "timeout": self._settings.timeout,
                    "tasks": slot.tasks,
                    "replaced": slot.replaced,
                }
            )
        return found

    # -- a process's life ----------------------------------------------------------------------------------------

    def begin(self, number: int, keeper: Slot) -> None:
        """Start the slot's process, and its initializer, if it has none."""
        slot = self._slots[number]
        waits = self._world.now() < slot.not_before
        if not keeper.alive or self._rests or slot.is_ready or slot.starting is not None or waits:
            return
        try:
            process = keeper.begin(_NAME, _TERM_GRACE_SECONDS)
        except (OSError, SlotLost) as error:
            self._failed(number, error, "")
            return
        slot.starting = _Starting(self._world, process, self._settings.timeout, lambda: self._ended(number))
        slot.starting.begin()

    def is_last(self, number: int) -> bool:
        """Whether the task that begins now is the last of the slot's process."""
        most = self._settings.max_tasks
        for each in self._slots:
            each.failures = 0
        return most is not None and self._slots[number].tasks + 1 >= most

    def task_ended(self, number: int, process: TaskProcess) -> None:
        """A task of the slot's process is gone."""
        if process.meter.inherited is not None:  # else it never began
            self._slots[number].tasks += 1
        if not process.stays:
            self.lose(number, process.spent or "its last task did not end well")

    def lose(self, number: int, why: str) -> None:
        """The slot's process, or its keeper, is gone: it needs another."""
        slot = self._slots[number]
        if slot.starting is not None:
            slot.starting.leave()
            slot.starting.process.open.close_all()
            slot.starting = None
        elif slot.is_ready:
            slot.is_ready = False
            slot.replaced = why
            if not self._rests:
                text = "Slot %d gets a new process, the old one ran %d tasks: %s"
                facts = {"action": "process_replaced", "slot": number, "tasks": slot.tasks, "reason": why}
                self._world.log(logging.INFO, text, number, slot.tasks, why, extra=facts)
            slot.tasks = 0

    def _ended(self, number: int) -> None:
        slot = self._slots[number]
        starting, slot.starting = slot.starting, None
        assert starting is not None
        process = starting.process
        try:
            process.result()
            if not process.stays:
                raise SlotLost(process.spent or "its process has ended")
        except BaseException as error:  # whatever the initializer raised
            if starting.timed_out:
                timeout = TimeoutError(f"it has not returned in {self._settings.timeout:g} s (initializer_timeout)")
                timeout.__cause__ = error
                error = timeout
            self._failed(number, error, process.stack)
            return
        slot.is_ready, slot.failures = True, 0
        on_event = self._settings.on_event
        if on_event is not None and not self._has_been_ready:
            self._world.call(EVENTS, lambda: on_event("ready"))
        self._has_been_ready = True
        self._on_idle(number)

    def _failed(self, number: int, error: BaseException, stack: str) -> None:
        slot = self._slots[number]
        slot.failures += 1
        if self._rests:
            return
        again = _BACKOFF.bound(slot.failures)
        text = "The initializer of slot %d has failed, it is tried again in %g s: %r%s"
        shown = f"\nIt was at:\n{stack}" if stack else ""
        facts = {"action": "initializer_failed", "slot": number}
        self._world.log(logging.ERROR, text, number, again, error, shown, exc_info=error, extra=facts)
        if all(each.failures >= _MOST_FAILURES for each in self._slots):
            failed = InitializerFailed(f"{_MOST_FAILURES} times in a row in every slot, the last time: {error!r}")
            failed.__cause__ = error
            self._on_broken(failed)
            return
        slot.not_before = self._world.now() + again
        self._world.at(slot.not_before, lambda: self._on_idle(number))  # the slot may have another keeper then


class _Starting(Driven):
    """A process whose initializer is running."""

    def __init__(self, world: World, process: TaskProcess, timeout: float, on_gone: Callable[[], None]) -> None:
        super().__init__(world, process)
        self.timed_out = False
        self._ends_at = world.now() + timeout
        self._on_gone = on_gone

    def begin(self) -> None:
        """From now on `on_gone` may be called."""
        self._changed()

    def _see_to(self, now: float) -> None:
        if now >= self._ends_at and not self.timed_out:
            self.timed_out = True
            self.process.stop()

    def _next_at(self, now: float) -> float:
        return math.inf if self.timed_out else self._ends_at

    def _gone(self) -> None:
        self._on_gone()
