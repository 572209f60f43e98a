"""What can be set for a single message: a delay, a message group, a deduplication id, message attributes."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from sqstaskmaster._sqs.limits import (
    MAX_DELAY_SECONDS,
    check_identifier,
    check_whole_seconds,
    is_number,
    is_sendable,
)

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
_ATTRIBUTE_NAME = re.compile(r"(?=.{1,256}\Z)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_MOST_ATTRIBUTES = 8
_OURS = ("service_name", "sqstaskmaster")

# A value, or a function of the task and its arguments that returns it.
Given = Any | Callable[[str, Mapping[str, Any]], Any]


def _delay(value: Any) -> int:
    return check_whole_seconds("delay_seconds", value, MAX_DELAY_SECONDS)


def _group(value: Any) -> str:
    return check_identifier("message_group_id", value)


def _deduplication(value: Any) -> str:
    return check_identifier("message_deduplication_id", value)


def _attributes(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, Mapping) or len(value) > _MOST_ATTRIBUTES:
        shown = f"{len(value)} of them" if isinstance(value, Mapping) else repr(value)
        raise ValueError(
            f"message_attributes must be up to {_MOST_ATTRIBUTES} values by name (SQS takes ten, and two are this "
            f"package's), not {shown:.200}"
        )
    return {_attribute_name(name): _attribute(name, given) for name, given in value.items()}


def _attribute_name(name: Any) -> str:
    if not isinstance(name, str) or not _ATTRIBUTE_NAME.fullmatch(name) or name.lower().startswith(("aws.", "amazon.")):
        raise ValueError(
            "The name of a message attribute must be 1 to 256 ASCII letters, digits, hyphens, underscores and single "
            f"periods between them, and not begin with AWS. or Amazon., unlike {name!r:.200}"
        )
    if name in _OURS:
        raise ValueError(f"The message attribute {name!r} is this package's own: give yours another name")
    return name


def _attribute(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str) and is_sendable(value):
        return {"DataType": "String", "StringValue": value}
    if is_number(value):
        return {"DataType": "Number", "StringValue": str(value)}
    if isinstance(value, (bytes, bytearray)) and value:
        return {"DataType": "Binary", "BinaryValue": bytes(value)}
    raise ValueError(
        f"The message attribute {name!r} must be text (not empty, no control characters), a finite number, or bytes, "
        f"not {value!r:.200}"
    )


_CHECKS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "delay_seconds": ("DelaySeconds", _delay),
    "message_group_id": ("MessageGroupId", _group),
    "message_deduplication_id": ("MessageDeduplicationId", _deduplication),
    "message_attributes": ("MessageAttributes", _attributes),
}


def _check(options: Mapping[str, Given]) -> None:
    for name, value in options.items():
        if not callable(value):
            _CHECKS[name][1](value)


def _added(before: Given, more: Given) -> Given:
    """Message attributes with more added; either may be a function that returns them."""
    if callable(before) or callable(more):
        return functools.partial(_both, before, more)  # picklable where the functions are
    return {**before, **more}


def _both(before: Given, more: Given, task: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = [value(task, kwargs) if callable(value) else value for value in (before, more)]
    for value in given:
        if value is not None:
            _attributes(value)
    return {name: value for each in given for name, value in (each or {}).items()}


_NO_GROUP = (
    "A FIFO queue needs a message group, within which it keeps the order: "
    'manager.options(message_group_id="...").submit(...)'
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a message as they were given; see `TaskManager.options`. None: not given."""

    delay_seconds: Given = None
    message_group_id: Given = None
    message_deduplication_id: Given = None
    message_attributes: Given = None

    def check_many(self, fifo: bool) -> None:
        """Raise ValueError if these options cannot apply to more than one message."""
        if fifo and self.message_group_id is None:
            raise ValueError(_NO_GROUP)
        if self.message_deduplication_id is not None and not callable(self.message_deduplication_id):
            raise ValueError(
                f"One message_deduplication_id, {self.message_deduplication_id!r}, for many tasks: SQS would keep the "
                "first and drop the others. Give a function of (task, kwargs)"
            )

    def replaced(self, fifo: bool, **given: Given) -> Options:
        """These options, with the given ones replacing their own, checked for the kind of queue.

        Message attributes are added, and replace those of the same name.
        """
        new = {name: value for name, value in given.items() if value is not None}
        _check(new)
        if self.message_attributes is not None and "message_attributes" in new:
            new["message_attributes"] = _added(self.message_attributes, new["message_attributes"])
            _check(new)  # there may be too many now
        options = dataclasses.replace(self, **new)
        if fifo and options.delay_seconds is not None:
            raise ValueError(
                f"delay_seconds is {options.delay_seconds!r}, and SQS takes no delay for single messages of a FIFO "
                "queue: set the queue's own DelaySeconds"
            )
        if not fifo and options.message_deduplication_id is not None:
            raise ValueError(
                f"message_deduplication_id is {options.message_deduplication_id!r}, and only FIFO queues (their "
                "names end in .fifo) deduplicate"
            )
        return options

    def parameters(self, fifo: bool, task: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of SendMessage for one task.

        :raises ValueError: for a value out of its range that a function gave, and for a FIFO queue without a group.
        """
        found = {}
        for name, (parameter, check) in _CHECKS.items():
            value = getattr(self, name)
            if callable(value):
                value = value(task, kwargs)
            if value is not None:
                found[parameter] = check(value)
        if fifo and "MessageGroupId" not in found:
            raise ValueError(_NO_GROUP)
        return found


NO_OPTIONS = Options()
