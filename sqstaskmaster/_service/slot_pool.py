"""The slots of a worker: which are ready, how to start a task in one, and how to replace one whose keeper has died.

On Linux a slot is a keeper, forked by a template that was started before any thread, with a spare forked ahead.
Elsewhere, and for a task with another start method, its process is started when the task arrives.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqstaskmaster._isolation.child import Child
from sqstaskmaster._isolation.slot import Slot, SlotLost
from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster._isolation.template import Template
from sqstaskmaster._service.order import Prepared
from sqstaskmaster._service.warming import Warming, WarmSettings
from sqstaskmaster._service.world import SLOTS, World
from sqstaskmaster.backoff import ExponentialBackoff

# Between two tries to open a slot.
_BACKOFF = ExponentialBackoff(first=1.0, longest=60.0)

# The longest wait for a keeper, though forking one takes milliseconds: longer at the start, when no claim is held yet.
_START_SECONDS = 60.0
_REPLACE_SECONDS = 10.0

# Descriptors that a slot with a task holds, and those that the rest of the worker holds.
_DESCRIPTORS_PER_SLOT = 8
_OTHER_DESCRIPTORS = 256

# How long the end waits for slots that are being opened, which takes milliseconds.
_LAST_SLOT_SECONDS = 1.0

_FACTS = {"action": "slot_failed"}


class SlotPool:
    """Slots by number.

    :param template: a started template, None if there is none.
    :param environments: one per slot.
    :param on_ready: called when a slot has become ready.
    :param on_lost: called with the error when no slot can be replaced any more.
    :param warm: the settings of processes that stay; None if they do not.
    """

    def __init__(
        self,
        world: World,
        template: Template | None,
        environments: Sequence[Mapping[str, str]],
        on_ready: Callable[[], None],
        on_lost: Callable[[Exception], None],
        warm: WarmSettings | None = None,
    ) -> None:
        self._world = world
        self._template = template
        self._environments = environments
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._warm = warm
        self._warming = None if warm is None else Warming(world, warm, len(environments), self._become_ready, on_lost)
        self._slots: list[Slot | None] = [None] * len(environments)
        self._children: dict[int, Child] = {}
        self._busy: set[int] = set()
        self._ready: set[int] = set()
        self._failures = 0
        self._is_closed = False
        self._unheard: set[Slot] = set()  # opened, and not in use yet
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def method(self) -> str | None:
        """How slots start their processes ahead of tasks; None if they do not."""
        if self._template is None:
            return None
        return "fork" if self._warm is None or not self._warm.process.spawned else "spawn"

    @property
    def ready(self) -> int:
        """How many slots are free and could start a task now."""
        return len(self._ready)

    def open_all(self) -> None:
        """:raises OSError: if the system has no process left."""
        for number, environment in enumerate(self._environments):
            if self._template is not None:
                self._adopt(number, self._template.open_slot(environment, _START_SECONDS))
            self._become_ready(number)

    def take(self) -> int:
        """Take the lowest ready slot."""
        number = min(self._ready)
        self._ready.discard(number)
        self._busy.add(number)
        return number

    def free(self, number: int, process: TaskProcess | None, taken: bool = False) -> None:
        """The slot's task is gone. Its keeper may be spent by the task, perhaps before the loop hears of that.

        :param taken: the slot is for another task at once.
        """
        child = self._children.pop(number, None)
        if child is not None:
            self._world.call(SLOTS, child.close)  # reaps its keeper, which is just ending
        elif process is not None:
            if self._warming is not None:
                self._warming.task_ended(number, process)
            if process.keeper_spent:
                self._close(number)
        if not taken:
            self._busy.discard(number)
            self._become_ready(number)

    def start(self, number: int, prepared: Prepared, name: str) -> TaskProcess:
        """Start a task there.

        :raises SlotLost, OSError: if nothing was started. A slot that takes no task is replaced.
        """
        child = prepared.child
        if child is not None:
            child.start()
            self._children[number] = child
            assert child.task is not None
            return child.task
        slot, last = self._slots[number], False
        if self._warming is not None:
            if not self._warming.is_ready(number):
                raise SlotLost("its process has ended, and another is being made")
            last = self._warming.is_last(number)
        try:
            if slot is None:
                raise SlotLost("its keeper has ended")
            return slot.start(prepared.order, name=name, term_grace=prepared.limits.term_grace, last=last)
        except (OSError, SlotLost) as error:
            self._world.log(logging.WARNING, "Slot %d takes no task, it is replaced: %s", number, error, extra=_FACTS)
            self._close(number)
            raise

    def rest(self) -> None:
        """The worker is stopping: start no more processes that stay."""
        if self._warming is not None:
            self._warming.rest()

    def facts(self) -> list[dict[str, Any]]:
        """What `sqstaskmaster ps` shows of processes that stay. Thread-safe."""
        return [] if self._warming is None else self._warming.facts()

    def close(self) -> None:
        """End all slots and children."""
        if self._warming is not None:
            self._warming.close()
        with self._lock:
            self._is_closed = True
            for slot in (*filter(None, self._slots), *self._unheard):
                slot.close()
        # A slot that is being opened is closed by its thread.
        self._world.wait_for(SLOTS, _LAST_SLOT_SECONDS)
        for child in self._children.values():
            child.kill()

    # -- keepers -------------------------------------------------------------------------------------------------

    def _become_ready(self, number: int) -> None:
        slot = self._slots[number]
        if number not in self._busy and (self._template is None or slot is not None):
            if self._warming is not None and not self._warming.is_ready(number):
                if slot is not None:
                    self._warming.begin(number, slot)
                return
            self._ready.add(number)
            self._on_ready()

    def _adopt(self, number: int, slot: Slot) -> None:
        self._slots[number] = slot
        self._world.add_reader(slot.descriptor, functools.partial(self._close, number))
        if self._warming is not None:
            self._world.add_reader(slot.fileno(), functools.partial(self._lose, number, slot))

    def _lose(self, number: int, slot: Slot) -> None:
        """Its process has ended between two tasks, or its keeper has, which is noticed in another way."""
        why = slot.heard()
        if not why:
            self._world.remove_reader(slot.fileno())
        elif self._warming is not None:
            self._warming.lose(number, why)
            self._ready.discard(number)
            self._become_ready(number)

    def _close(self, number: int) -> None:
        """Its keeper has ended, or is ended now: another is requested, beside the loop."""
        slot = self._slots[number]
        if slot is not None:
            self._world.remove_reader(slot.descriptor)
            if self._warming is not None:
                self._world.remove_reader(slot.fileno())
                self._warming.lose(number, "the keeper of its slot has ended")
            slot.close()
            self._slots[number] = None
            self._ready.discard(number)
            self._reopen(number)

    def _reopen(self, number: int) -> None:
        template, environment = self._template, self._environments[number]
        if template is not None and not self._is_closed:
            opened = functools.partial(self._reopened, number)
            self._world.call(SLOTS, lambda: self._keep(template.open_slot(environment, _REPLACE_SECONDS)), opened)

    def _keep(self, slot: Slot) -> Slot:
        """In the thread. If the worker ends meanwhile, the slot is never adopted."""
        with self._lock:
            if self._is_closed:
                slot.close()
            self._unheard.add(slot)
        return slot

    def _reopened(self, number: int, slot: Slot | None, error: BaseException | None) -> None:
        if slot is not None:
            self._failures = 0
            self._unheard.discard(slot)
            self._adopt(number, slot)
            self._become_ready(number)
        elif isinstance(error, SlotLost):
            self._on_lost(error)
        elif error is not None:
            self._failures += 1
            again = _BACKOFF.bound(self._failures)
            text = "Slot %d cannot be opened, trying again in %.1f s: %s"
            self._world.log(logging.ERROR, text, number, again, error, extra=_FACTS)
            self._world.at(self._world.now() + again, functools.partial(self._reopen, number))


def allow_descriptors(slots: int) -> None:
    """Raise the soft limit to the hard one if it is too low. Tasks keep theirs: the template was forked before."""
    import resource  # missing on Windows, where workers can be defined but not run

    number = _DESCRIPTORS_PER_SLOT * slots + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
