"""What a worker is running, on request: gathered in a thread, without making the worker wait."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqstaskmaster._claim import clock
from sqstaskmaster._claim.attempt import Attempt
from sqstaskmaster._isolation.task import TaskProcess
from sqstaskmaster._service.running import Running
from sqstaskmaster._signals.bounded import looks
from sqstaskmaster.message_handler import MessageHandler
from sqstaskmaster.process_handler import ProcessMessageHandler
from sqstaskmaster.results import Finished

# How long to wait for the tasks' stacks. A stack that has not grown between two looks is considered complete.
_STACKS_SECONDS = 1.0
_LOOK_SECONDS = 0.02


def finished_of(attempt: Attempt) -> Finished:
    """The facts of an ended task."""
    used = attempt.report.used
    facts = attempt.report.facts("finished")
    return Finished(
        task=attempt.task,
        queue=attempt.terms.queue_url or "",
        outcome=str(facts["outcome"]),
        cpu_seconds=used.get("cpu_seconds"),
        peak_memory=used.get("peak_memory"),
        continuation=attempt.report.continuation,
        **{name: facts[name] for name in ("message_id", "receive_count", "queued", "elapsed")},
    )


class SlotFacts:
    """The tasks of a worker with slots. Reads what the loop writes.

    :param running: the running tasks.
    :param put: has a function called in the loop's thread: only the loop may talk to a task.
    """

    def __init__(self, running: Mapping[Attempt, Running], put: Callable[[Callable[[], None]], None]) -> None:
        self._running = running
        self._put = put

    def __call__(self, stacks: bool) -> list[dict[str, Any]]:
        """All facts about each task. With `stacks`, also where it is, while it goes on."""
        running = list(self._running.values())
        if not stacks:
            return [each.facts(False) for each in running]
        self._put(lambda: self._each(running, TaskProcess.ask_stack))
        _wait_for_stacks([each.process for each in running])
        found = [each.facts(True) for each in running if each.attempt in self._running]
        # Else a later failure would be reported with this stack.
        self._put(lambda: self._each(running, TaskProcess.forget_stack))
        return found

    def _each(self, running: Collection[Running], step: Callable[[TaskProcess], Any]) -> None:
        """Take the step for tasks that have not ended, and are not being stopped: a stop asks for stacks itself."""
        for each in running:
            if each.attempt in self._running and each.attempt.stop_reason is None and not each.process.gone:
                step(each.process)


class BlockFacts:
    """The task of a worker without slots. Reads what its main thread writes."""

    def __init__(self) -> None:
        self._handler: MessageHandler | None = None
        self._cpu_before = 0.0

    def begin(self, handler: MessageHandler) -> None:
        """The handler's block was entered."""
        self._cpu_before = time.process_time()
        self._handler = handler

    def end(self) -> None:
        self._handler = None

    def __call__(self, stacks: bool) -> list[dict[str, Any]]:
        """All facts about the task. With `stacks`, also where it is, while it goes on."""
        handler = self._handler
        return [] if handler is None else [self._task(handler, stacks)]

    def _task(self, handler: MessageHandler, stacks: bool) -> dict[str, Any]:
        attempt = handler._attempt
        said = attempt.report.facts("")
        facts = {
            "slot": 0,
            "pid": os.getpid(),
            **{name: said[name] for name in ("task", "message_id", "receive_count")},
            "seconds": round(handler._run_time(), 1),
            "limit": handler.hard_timeout,
            "memory": None,  # the task's cannot be told apart from the worker's
            "cpu_seconds": time.process_time() - self._cpu_before,
            "progress": handler.progress,
            "claim_age": round(handler.sqs_timeout - attempt.claim.left(clock.now()), 1),
            "stopping": attempt.stopped_as is not None,
        }
        child = handler._block.child if isinstance(handler, ProcessMessageHandler) else None
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


def _wait_for_stacks(processes: Sequence[TaskProcess]) -> None:
    before: list[str] = []
    for _ in looks(_STACKS_SECONDS, _LOOK_SECONDS):
        stacks = [process.stack for process in processes]
        if stacks == before and all(stacks):
            return
        before = stacks
