"""How a loop drives one process below a keeper: it reads what comes, and takes the steps that are due."""

from __future__ import annotations

import functools
import math

from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster._service.world import World


class Driven:
    """A process, from its start until it and everything it started is gone."""

    def __init__(self, world: World, process: TaskProcess) -> None:
        self.process = process
        self._world = world
        self._watched: set[int] = set()
        self._due = math.inf
        self._is_over = False
        process.open.before_close = self._forget

    def _see_to(self, now: float) -> None:
        """Do what is due, apart from the steps of its stop."""

    def _next_at(self, now: float) -> float:
        """When that is."""
        return math.inf

    def _warn(self) -> None:
        """The process has written to descriptors that are not its own. May be called more than once."""

    def _heard(self) -> None:
        """The process may have sent something, and is not gone."""

    def _gone(self) -> None:
        """The process is gone: called once, after it is no longer driven."""

    def stop_process(self) -> None:
        """Begin to stop the process."""
        if not self._is_over:
            self.process.stop()
            self._changed()

    def _attend(self) -> None:
        """Do what is due."""
        now = self._world.now()
        if now < self._due or self._is_over:
            return  # a timer that a later call has superseded
        self._due = math.inf
        if now >= self.process.next_step_at:
            self.process.step(now)
        self._see_to(now)
        self._changed()

    def _changed(self) -> None:
        """Wait for its descriptors, and for what is due next."""
        if self._is_over:
            return
        if self.process.spoiled:
            self._warn()
        if self.process.gone:
            self.leave()
            self._gone()
            return
        self._heard()
        wanted = set(self.process.descriptors())
        for descriptor in self._watched - wanted:
            self._forget(descriptor)
        for descriptor in wanted - self._watched:
            self._watched.add(descriptor)
            self._world.add_reader(descriptor, functools.partial(self._read, descriptor))
        now = self._world.now()
        due = min(self.process.next_step_at, self._next_at(now))
        if due < self._due:
            self._due = due
            self._world.at(due, self._attend)

    def leave(self) -> None:
        """Stop driving it."""
        self._is_over = True
        for descriptor in list(self._watched):
            self._forget(descriptor)

    def _read(self, descriptor: int) -> None:
        self.process.read(descriptor)
        self._changed()

    def _forget(self, descriptor: int) -> None:
        self._watched.discard(descriptor)
        self._world.remove_reader(descriptor)
