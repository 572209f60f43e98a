"""What goes down to a slot, and what is made of it there: all of it plain data, nothing is pickled.

worker:  of(job) -> bytes ~~~ slot ~~~ task's process: run(registry, ...)(bytes, channel) -> handler.run()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqstaskmaster._isolation import plain
from sqstaskmaster._isolation.channel import Channel
from sqstaskmaster._service.job import Job
from sqstaskmaster._service.registry import Registry
from sqstaskmaster._sqs import messages
from sqstaskmaster.process_handler import MessageContent, ProcessMessageHandler, run_task


def of(job: Job) -> bytes:
    """The order to run this job's task: what its message says. The claim stays with the worker."""
    message = job.message
    return plain.spoken(
        {
            "body": message.body,
            "attributes": _plain(message.attributes),
            "message_attributes": _plain(getattr(message, "message_attributes", None)),
            "message_id": getattr(message, "message_id", None),
            "task": job.task,
            "seconds": job.handler.hard_timeout if job.handler is not None else None,
        }
    )


def run(registry: Registry, around: Callable[..., Any] | None, order: bytes, channel: Channel) -> Any:
    """In the task's process: make the handler anew, and run it."""
    said = plain.load(order)
    task, kwargs = messages.decode(said["body"])
    message = MessageContent(said["body"], said["attributes"], said["message_attributes"], said["message_id"])
    handler = registry.handler_for(task, kwargs, message)
    if not isinstance(handler, ProcessMessageHandler):
        raise TypeError(f"{handler!r} is no ProcessMessageHandler")
    return run_task(handler, channel, task=task, seconds=said["seconds"], around=around)


def _plain(mapping: Any) -> dict[str, Any] | None:
    """A mapping of a message as it is, None where it has none."""
    return dict(mapping) if mapping else None
