"""What a worker with slots runs, as it is now: for whoever asks, in a thread that makes the loop wait for nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster._service.job import Job
from sqstaskmaster._service.settings import Settings
from sqstaskmaster._service.threads import Mailbox

# The tasks' stacks are waited for so long, and one is taken for whole that has not grown between two looks.
_STACKS_SECONDS = 1.0
_LOOK_SECONDS = 0.02

_Running = Sequence[tuple[Job, TaskProcess]]


class Facts:
    """Reads what the loop writes.

    :param jobs: all messages that the worker holds.
    :param mailbox: the loop's: only the loop may speak to a task.
    :param stopping: whether the worker has been told to stop.
    """

    def __init__(
        self, settings: Settings, jobs: Mapping[Job, None], mailbox: Mailbox, stopping: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._mailbox = mailbox
        self._stopping = stopping

    def __call__(self, stacks: bool) -> dict[str, Any]:
        """All there is to say. With `stacks` where each task is, which goes on."""
        running = [(job, job.process) for job in list(self._jobs) if job.is_running and job.process is not None]
        if stacks:
            self._mailbox.put(lambda: _each(running, lambda process: process.ask_stack()))
            _wait_for_stacks([process for _, process in running])
        found = {
            "queues": [manager.url for manager in self._settings.managers],
            "slots": len(self._settings.environments),
            "stopping": self._stopping(),
            "tasks": [job.facts(process, stacks) for job, process in running if job.is_running],
        }
        if stacks:
            # Lest one that fails later be told to have been there.
            self._mailbox.put(lambda: _each(running, lambda process: process.forget_stack()))
        return found


def _each(running: _Running, step: Callable[[TaskProcess], Any]) -> None:
    """In the loop: for those that have not ended meanwhile, and are not being stopped, which asks for stacks itself."""
    for job, process in running:
        if job.is_running and job.stop_reason is None and not process.gone:
            step(process)


def _wait_for_stacks(processes: Sequence[TaskProcess]) -> None:
    until = time.monotonic() + _STACKS_SECONDS
    before: list[str] = []
    while time.monotonic() < until:
        stacks = [process.stack for process in processes]
        if stacks == before and all(stacks):
            return
        before = stacks
        time.sleep(_LOOK_SECONDS)
