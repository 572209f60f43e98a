"""One task, here and now: run by its worker, on an in-memory queue that holds only this message.

What runs is the Worker itself, so isolation, limits, memory and the final log line are those of production.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from sqstaskmaster._cli import logs
from sqstaskmaster._cli.exits import CommandError
from sqstaskmaster._cli.operations import kwargs_of, opened
from sqstaskmaster._cli.worker_process import load, print_whole_lines
from sqstaskmaster._isolation import pipes
from sqstaskmaster._logging import get_logger
from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster._service.status import AskFacts, AskStop, Status
from sqstaskmaster._signals import state
from sqstaskmaster._sqs import messages
from sqstaskmaster.errors import ArgumentsDoNotFit, MalformedMessage, UnknownTask
from sqstaskmaster.local import LocalMessage, LocalQueue
from sqstaskmaster.task_manager import TaskManager

logger = get_logger("sqstaskmaster.worker")

# The pause between two looks at the task's progress: it may report a thousand times a second.
_PROGRESS_SECONDS = 0.5

_HERE, _DEAD = "here", "dead"

# How long an empty poll takes: the worker keeps polling until a task's end is reported.
_EMPTY_POLL_SECONDS = 0.05


class _Queue(LocalQueue):
    """Never waits long, and has a dead-letter queue, so that DeadLetter ends a task as it does in production."""

    @property
    def attributes(self) -> dict[str, Any]:
        policy = {"deadLetterTargetArn": f"arn:::::{_DEAD}", "maxReceiveCount": 1000}
        return {**super().attributes, "RedrivePolicy": json.dumps(policy)}

    def receive_messages(self, **kwargs: Any) -> list[LocalMessage]:
        received = super().receive_messages(**{**kwargs, "WaitTimeSeconds": 0})
        for message in received:
            setattr(message, "Queue", lambda: self)  # to send a continuation, and to look up the dead-letter queue
        if not received:
            time.sleep(_EMPTY_POLL_SECONDS)
        return received

    def send_message(self, **kwargs: Any) -> dict[str, str]:
        kwargs.pop("DelaySeconds", None)  # even a delayed continuation runs now
        return super().send_message(**kwargs)


class _Progress(Status):
    """Logs the task's progress while it runs, a line for each change that lasts a moment."""

    def __init__(self, facts: AskFacts, stop: AskStop) -> None:
        super().__init__(facts, stop)
        self._ask = facts
        self._over = threading.Event()
        self._told: dict[str, Any] = {}

    def open(self) -> None:
        super().open()
        with state.starting_thread():
            threading.Thread(target=self._watch, name="sqstaskmaster-progress", daemon=True).start()

    def close(self) -> None:
        self._over.set()
        super().close()

    def _watch(self) -> None:
        while not self._over.wait(_PROGRESS_SECONDS):
            for task in self._ask(False)["tasks"]:
                self._tell(task)

    def _tell(self, task: Mapping[str, Any]) -> None:
        progress = task["progress"]
        if progress and progress != self._told:
            self._told = dict(progress)
            words = ", ".join(f"{name}={value}" for name, value in progress.items())
            facts = {name: task[name] for name in ("task", "message_id", "receive_count", "progress")}
            logger.info(
                "Task %s after %.1f s: %s", task["task"], task["seconds"], words, extra={"action": "progress", **facts}
            )


def run(arguments: argparse.Namespace) -> Exit:
    """Run the task that the arguments name. `Exit.OK` only if it is done."""
    body, attributes = _message(arguments)
    worker = load(arguments.worker)
    try:
        worker._registry.entry_for(*messages.decode(body))
    except (UnknownTask, ArgumentsDoNotFit, MalformedMessage) as error:
        raise CommandError(Exit.USAGE, str(error)) from error
    logs.configure(arguments.log_level, arguments.log_json, comes_back=False)
    logging.getLogger("sqstaskmaster.local").setLevel(logging.WARNING)
    print_whole_lines()
    if sys.stdin is not None and sys.stdin.isatty():
        pipes.standard_input = os.ttyname(sys.stdin.fileno())  # for breakpoint() in the task
    manager = TaskManager(_HERE, None, _Queue)
    manager.queue.send_message(MessageBody=body, MessageAttributes=attributes)
    counts = worker._alone(manager, _Progress).run(burst=True)
    ends = set(counts) - {"continued"}
    if ends == {"done"}:
        return Exit.OK
    return Exit.INTERRUPTED if ends & {"interrupted", "given back"} else Exit.FAILED


def _message(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The body and the message attributes."""
    task, pairs = arguments.words[0] if arguments.words else None, arguments.words[1:]
    if arguments.body is not None:
        if task is not None or arguments.json is not None:
            raise CommandError(Exit.USAGE, "--body brings the task and its arguments: leave out TASK and --json")
        with opened(arguments.body) as file:
            return _read(file.read())
    if task is None:
        raise CommandError(Exit.USAGE, "Nothing to run: give a TASK name, or --body FILE")
    if "=" in task:
        raise CommandError(Exit.USAGE, f"{task!r} stands where the TASK name belongs: TASK key=value ...")
    return messages.encode(task, kwargs_of(pairs, arguments.json)), {}


def _read(content: bytes) -> tuple[str, dict[str, Any]]:
    """Body and attributes, from a plain message body or from what `dead --json` printed for one message."""
    lines = content.decode("utf-8-sig", errors="replace").strip()
    try:
        found = json.loads(lines)
    except ValueError as error:
        if "Extra data" in str(error):
            remedy = "choose one, with 'sqstaskmaster dead URL --json --id ID'"
            raise CommandError(Exit.USAGE, f"--body has more than one message: {remedy}") from error
        raise CommandError(Exit.USAGE, f"--body is not JSON ({error}): give a message's body") from error
    if isinstance(found, Mapping) and isinstance(found.get("body"), str) and "kwargs" not in found:
        return found["body"], _attributes(found.get("message_attributes") or {})
    return lines, {}


def _attributes(found: Mapping[str, Any]) -> dict[str, Any]:
    """The message attributes, with binary values decoded to bytes: JSON has them in base64."""
    try:
        return {
            name: {
                part: base64.b64decode(value, validate=True) if part == "BinaryValue" else value
                for part, value in attribute.items()
            }
            for name, attribute in found.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        remedy = "give them as 'dead --json' prints them, a BinaryValue in base64"
        raise CommandError(Exit.USAGE, f"--body: these are not message attributes ({error}): {remedy}") from error
