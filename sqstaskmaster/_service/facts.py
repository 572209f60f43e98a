"""What a worker runs, as it is now: for whoever asks, in a thread that makes the worker wait for nothing."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqstaskmaster._claim import clock
from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster._service.job import Job
from sqstaskmaster._service.settings import Settings
from sqstaskmaster._service.threads import Mailbox
from sqstaskmaster.message_handler import MessageHandler
from sqstaskmaster.process_handler import ProcessMessageHandler

# The tasks' stacks are waited for so long, and one is taken for whole that has not grown between two looks.
_STACKS_SECONDS = 1.0
_LOOK_SECONDS = 0.02

_Running = Sequence[tuple[Job, TaskProcess]]


class Facts:
    """Of a worker with slots. Reads what the loop writes.

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


class SingleFacts:
    """Of a worker without slots. Reads what its main thread writes.

    :param stopping: whether the worker has been told to stop.
    """

    def __init__(self, settings: Settings, stopping: Callable[[], bool]) -> None:
        self._settings = settings
        self._stopping = stopping
        self._handler: MessageHandler | None = None
        self._cpu_before = 0.0

    def begin(self, handler: MessageHandler) -> None:
        """Its block is entered."""
        self._cpu_before = time.process_time()
        self._handler = handler

    def end(self) -> None:
        self._handler = None

    def __call__(self, stacks: bool) -> dict[str, Any]:
        """All there is to say. With `stacks` where the task is, which goes on."""
        handler = self._handler
        return {
            "queues": [manager.url for manager in self._settings.managers],
            "slots": 1,
            "stopping": self._stopping(),
            "tasks": [] if handler is None else [self._task(handler, stacks)],
        }

    def _task(self, handler: MessageHandler, stacks: bool) -> dict[str, Any]:
        block = handler._block
        said = block.report.facts("")
        facts = {
            "slot": 0,
            "pid": os.getpid(),
            "task": said["task"],
            "message_id": said["message_id"],
            "receive_count": said["receive_count"],
            "seconds": round(handler._run_time(), 1),
            "limit": handler.hard_timeout,
            "memory": None,  # that of the task cannot be told from the worker's
            "cpu_seconds": time.process_time() - self._cpu_before,
            "progress": handler.progress,
            "claim_age": round(handler.sqs_timeout - block.claim.left(clock.now()), 1),
            "stopping": block.stopped_as is not None,
        }
        child = handler._child if isinstance(handler, ProcessMessageHandler) else None
        process = None if child is None else child.task
        if process is not None:
            usage = process.meter.usage
            facts.update(pid=process.pid, memory=process.meter.held, cpu_seconds=usage.cpu_seconds)
            facts.update(progress=process.progress)
        if stacks:
            facts["stack"] = _stack_of_main_thread() if process is None else _stack_of(process)
        return facts


def _stack_of_main_thread() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "" if frame is None else "".join(traceback.format_stack(frame))


def _stack_of(process: TaskProcess) -> str:
    if not process.ask_stack():
        return ""
    _wait_for_stacks([process])
    stack = process.stack
    process.forget_stack()
    return stack


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
