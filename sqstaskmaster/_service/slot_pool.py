"""The slots of a worker: which are free, and what replaces one whose keeper has died."""

from __future__ import annotations

import functools
import logging
import math
import resource
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqstaskmaster._isolation.slot import Slot, SlotLost
from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster._isolation.template import Template
from sqstaskmaster._service.readers import Readers

# A slot that cannot be opened is tried again.
_REOPEN_SECONDS = 1.0

# The longest that a keeper is waited for, forked in milliseconds as it is: longer where no claim is held yet.
_START_SECONDS = 60.0
_REPLACE_SECONDS = 10.0

# A slot with a task holds so many, and all of them together some more.
_DESCRIPTORS_PER_SLOT = 8
_OTHER_DESCRIPTORS = 256

_FACTS = {"action": "slot_failed"}


class SlotPool:
    """Slots by number, from a template that has been started.

    :param environments: one a slot.
    :param log: `Logger.log`, or what does the same without ever waiting.
    """

    def __init__(
        self,
        template: Template,
        environments: Sequence[Mapping[str, str]],
        readers: Readers,
        log: Callable[..., Any],
    ) -> None:
        self._template = template
        self._environments = environments
        self._readers = readers
        self._log = log
        self._slots: list[Slot | None] = [None] * len(environments)
        self._free = set(range(len(environments)))
        self._reopen = False
        self.due = math.inf  # when `reopen` has something to do, by time.monotonic
        self.lost: SlotLost | None = None  # why no slot can be replaced any more

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def usable(self) -> int:
        """How many slots are free, and have a keeper."""
        return sum(self._slots[number] is not None for number in self._free)

    def open_all(self) -> None:
        """:raises OSError: where the system has no process left."""
        _allow_descriptors(_DESCRIPTORS_PER_SLOT * len(self._slots) + _OTHER_DESCRIPTORS)
        for number in range(len(self._slots)):
            self._open(number, _START_SECONDS)

    def take(self) -> int:
        """A free slot, the lowest."""
        number = min(number for number in self._free if self._slots[number] is not None)
        self._free.discard(number)
        return number

    def free(self, number: int, keeper_spent: bool) -> None:
        """No task is there any more. `keeper_spent`: as a task left it, perhaps before the loop hears of it."""
        if keeper_spent:
            self._close(number)
        self._free.add(number)

    def start(self, number: int, order: bytes, name: str, term_grace: float) -> TaskProcess | None:
        """Run a task there; None where the slot takes none, and is replaced."""
        slot = self._slots[number]
        try:
            if slot is None:
                raise SlotLost("its keeper has ended")
            return slot.start(order, name=name, term_grace=term_grace)
        except (OSError, SlotLost) as error:
            self._log(logging.WARNING, "Slot %d takes no task, it is replaced: %s", number, error, extra=_FACTS)
            self._close(number)
            return None

    def reopen(self, now: float) -> None:
        """Replace keepers that have died, from the template, which is as clean as when it started."""
        if not self._reopen or self.lost is not None or now < self.due and self.due != math.inf:
            return
        self._reopen, self.due = False, math.inf
        for number, slot in enumerate(self._slots):
            if slot is None:
                try:
                    self._open(number, _REPLACE_SECONDS)
                except SlotLost as error:
                    self.lost = error
                    return
                except OSError as error:
                    text = "Slot %d cannot be opened, trying again: %s"
                    self._log(logging.ERROR, text, number, error, extra=_FACTS)
                    self._reopen, self.due = True, now + _REOPEN_SECONDS

    def close(self) -> None:
        for slot in filter(None, self._slots):
            slot.close()

    def _open(self, number: int, patience: float) -> None:
        slot = self._template.open_slot(self._environments[number], patience)
        self._slots[number] = slot
        self._readers.add(slot.descriptor, functools.partial(self._close, number))

    def _close(self, number: int) -> None:
        """Its keeper has ended, or ends now: another is asked for."""
        slot = self._slots[number]
        if slot is not None:
            self._readers.remove(slot.descriptor)
            slot.close()
            self._slots[number] = None
            self._reopen = True


def _allow_descriptors(number: int) -> None:
    """Raise the soft limit to the hard one, where it is lower. Tasks keep theirs: the template was forked before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
