"""The order that goes down to a task's process, and how the process carries it out.

forked ahead:  of(attempt) -> bytes ~~~ slot ~~~ run(registry, ...)(bytes, channel) -> handler.run(): nothing is pickled
spawned:       the handler itself, pickled, as in a block, for a process of its own or one that stays
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sqstaskmaster._claim.attempt import Attempt
from sqstaskmaster._claim.watch import Limits
from sqstaskmaster._isolation import plain
from sqstaskmaster._isolation.channel import Channel
from sqstaskmaster._isolation.child import Child, pickled
from sqstaskmaster._service.registry import Notify, Registry
from sqstaskmaster._sqs import messages
from sqstaskmaster.errors import ArgumentsDoNotFit, UnsupportedContext
from sqstaskmaster.process_handler import MessageContent, ProcessMessageHandler, run_task


class Prepared(NamedTuple):
    """A task that is ready to start: by an order to a slot, or as a child of its own."""

    handler: ProcessMessageHandler
    limits: Limits
    order: bytes
    child: Child | None


def prepare(
    registry: Registry,
    attempt: Attempt,
    kwargs: dict[str, Any],
    notify: Notify,
    method: str | None,
    claim_now: float,
    stays: bool = False,
) -> Prepared:
    """Make the task's handler, and all that is needed to start it. In a thread if this runs user code.

    :param method: how slots start their processes ahead of tasks; None if they do not.
    :param stays: whether these processes take one task after the other.
    """
    handler = registry.handler_for(attempt.task, kwargs, attempt.message, notify)
    if not isinstance(handler, ProcessMessageHandler):
        text = f"returned a {type(handler).__name__}, and a worker with slots runs only ProcessMessageHandlers"
        raise ArgumentsDoNotFit(attempt.task, text, "ProcessMessageHandler")
    handler._attempt = attempt
    try:
        limits = handler._limits()
    except Exception as error:
        wrong = f"its handler cannot be run: {error!r}"
        raise ArgumentsDoNotFit(attempt.task, wrong, type(handler).__name__) from error
    seconds = min(limits.hard_timeout, attempt.seconds_to_claim_limit(claim_now, limits.term_grace))
    if method is not None and limits.start_method in (None, method):
        if method == "fork":
            return Prepared(handler, limits, _order(attempt, seconds), None)
        order = pickled(handler._task_function(seconds), f"Task {attempt.task}", method)
        return Prepared(handler, limits, order, None)
    if stays:
        raise UnsupportedContext(
            f"Task {attempt.task} has start_method={limits.start_method!r}, and the processes of this worker stay (it "
            f"has an initializer, or max_tasks_per_child) and are started by {method!r}: leave it out, or have the "
            "worker see it: in @worker.task, or as the default of start_method in the handler's constructor"
        )
    child = Child(
        handler._task_function(seconds),
        name=attempt.task,
        start_method=limits.start_method,
        term_grace=limits.term_grace,
    )
    child.prepare()
    return Prepared(handler, limits, b"", child)


def _order(attempt: Attempt, seconds: float) -> bytes:
    """The message's content. The claim stays with the worker. Of any length: it goes down, to a task we start."""
    message = attempt.message
    said = {
        "body": message.body,
        "attributes": _plain(message.attributes),
        "message_attributes": _plain(getattr(message, "message_attributes", None)),
        "message_id": getattr(message, "message_id", None),
        "task": attempt.task,
        "seconds": seconds,
    }
    return plain.spoken(said, most=None)


def run(registry: Registry, around: Callable[..., Any] | None, order: bytes, channel: Channel) -> Any:
    """In the task's process: make the handler anew, and run it."""
    said = plain.load(order, most=None)
    task, kwargs = messages.decode(said["body"])
    message = MessageContent(said["body"], said["attributes"], said["message_attributes"], said["message_id"])
    handler = registry.handler_for(task, kwargs, message)
    if not isinstance(handler, ProcessMessageHandler):
        raise TypeError(f"{handler!r} is not a ProcessMessageHandler")
    return run_task(handler, channel, task=task, seconds=said["seconds"], around=around)


def _plain(mapping: Any) -> dict[str, Any] | None:
    """A mapping of a message as a plain dict, None if it is empty or missing."""
    return dict(mapping) if mapping else None
