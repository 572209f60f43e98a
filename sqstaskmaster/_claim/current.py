"""The task that runs in this process, for code inside it: the task's own, and filters of its log."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqstaskmaster._claim import forwarding


class CurrentTask:
    """The task that is running, as `current_task()` gives it to the task itself.

    `name`: the task's name. `message_id`: SQS's id of its message, None if it has none. `receive_count`: how often the
    message has been received, this time included, None if unknown. `attributes`, `message_attributes`: those of SQS and
    of the sender. `continuation`: how often the task has continued (see Continue), 0 for the submitted message.
    `first_message_id`: the id of the submitted message.
    """

    def __init__(
        self,
        name: str,
        message: Any,
        seconds_left: Callable[[], float],
        report: Callable[[dict[str, Any]], None],
        stopping: Callable[[], bool],
    ) -> None:
        self.name = name
        self._message = message
        self._seconds_left = seconds_left
        self._report = report
        self._stopping = stopping

    # The message's content is read on demand: most tasks never ask for it.

    @functools.cached_property
    def message_id(self) -> str | None:
        message_id = getattr(self._message, "message_id", None)
        return message_id if isinstance(message_id, str) else None

    @functools.cached_property
    def attributes(self) -> Mapping[str, Any]:
        return _mapping(getattr(self._message, "attributes", None))

    @functools.cached_property
    def message_attributes(self) -> Mapping[str, Any]:
        return _mapping(getattr(self._message, "message_attributes", None))

    @functools.cached_property
    def receive_count(self) -> int | None:
        received = self.attributes.get("ApproximateReceiveCount")
        plausible = isinstance(received, str) and received.isdecimal() and len(received) < 20
        return int(str(received)) if plausible else None

    @functools.cached_property
    def continuation(self) -> int:
        return forwarding.chain_of(self._message).number

    @functools.cached_property
    def first_message_id(self) -> str | None:
        return forwarding.chain_of(self._message).first_id or self.message_id

    @property
    def seconds_left(self) -> float:
        """Seconds until the hard timeout, or until the claim's 12 hours are over; 0 or more."""
        return max(0.0, self._seconds_left())

    @property
    def stopping(self) -> bool:
        """Whether the worker is stopping: from then on the task has its `shutdown_grace`."""
        return self._stopping()

    def report(self, **progress: Any) -> None:
        """Report how far the task is: `handler.progress` in the worker, and what `sqstaskmaster ps` shows.

        Replaces the previous report. Call it a few times a second at most; anything but plain data arrives as its
        `repr`.
        """
        self._report(progress)

    def __repr__(self) -> str:
        return f"CurrentTask(name={self.name!r}, message_id={self.message_id!r})"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# Nested if a task itself handles a message. Not a context variable: the task's threads ask too.
_running: list[CurrentTask] = []


def current_task() -> CurrentTask | None:
    """The task that runs in this process, None outside a task. In any of its threads."""
    return _running[-1] if _running else None


def messages() -> list[Any]:
    """The messages of the tasks that run in this process, as CurrentTask has them."""
    return [task._message for task in _running]


@contextlib.contextmanager
def running(task: CurrentTask) -> Iterator[CurrentTask]:
    """In the block this is the task that runs."""
    begin(task)
    try:
        yield task
    finally:
        end(task)


def begin(task: CurrentTask) -> None:
    _running.append(task)


def end(task: CurrentTask) -> None:
    """Does nothing for a task that is not running, as in a forked process."""
    if task in _running:
        _running.remove(task)


# For records that are written later, in another thread: the task that ran when they were made.
_when_made: contextvars.ContextVar[tuple[CurrentTask | None] | None] = contextvars.ContextVar("when_made", default=None)


def as_of_now() -> contextvars.Context:
    """A copy of the current context, in which TaskFilter uses the task that runs now."""
    context = contextvars.copy_context()
    context.run(_when_made.set, (current_task(),))
    return context


class TaskFilter(logging.Filter):
    """Puts `task` and `message_id` on the records that are made while a task runs in this process.

    For the handlers of a program that configures its own logging: `handler.addFilter(TaskFilter())`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        made = _when_made.get()
        task = current_task() if made is None else made[0]
        if task is not None:
            for name, value in (("task", task.name), ("message_id", task.message_id)):
                if not hasattr(record, name):
                    setattr(record, name, value)
        return True
