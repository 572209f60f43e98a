"""What is sent on before a message is deleted: its successor (Continue), or itself with a reason (DeadLetter).

    forwarded first, deleted second: a crash in between leaves two messages, never none

The body, the user's message attributes and the trace header of AWS X-Ray are passed on byte for byte. Our data is one
attribute, `sqstaskmaster`, a JSON object: SQS allows ten, and if there is no room for it, `service_name` is dropped.
Pure: the driver of the claim makes the requests.

A FIFO queue drops a message with the deduplication id of one of the last five minutes. The user may have given one id
to two messages, so forwarded messages get ids made from SQS's message id instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from sqstaskmaster._sqs import messages
from sqstaskmaster._sqs.limits import MAX_MESSAGE_ATTRIBUTES, MAX_MESSAGE_BYTES, check_identifier, message_bytes
from sqstaskmaster._sqs.values import Writer
from sqstaskmaster.endings import Continue, DeadLetter
from sqstaskmaster.errors import CannotContinue

ATTRIBUTE = "sqstaskmaster"

# The sender's name: ours too, and the dispensable one.
SENDER = "service_name"

#: The system attribute in which AWS X-Ray passes a trace on.
TRACE_HEADER = "AWSTraceHeader"

# A reason is for people; a longer one is cut before SQS's limit has to cut it.
_REASON_CHARACTERS = 10_000


@dataclasses.dataclass(frozen=True)
class Chain:
    """Where a message stands in the continuations of a task. `number` is 0 for the submitted message."""

    number: int = 0
    first_id: str | None = None
    first_sent: str | None = None


def chain_of(message: Any) -> Chain:
    """The chain that the message itself states; anything that is not ours is ignored."""
    found = _ours(message)
    number, first_id, first_sent = found.get("continuation"), found.get("first_id"), found.get("first_sent")
    return Chain(
        number if isinstance(number, int) and not isinstance(number, bool) and number >= 0 else 0,
        first_id if isinstance(first_id, str) else None,
        first_sent if isinstance(first_sent, str) else None,
    )


def successor(
    message: Any,
    task: str,
    kwargs: Mapping[str, Any],
    delay_seconds: int,
    most: int,
    has_attributes: bool,
    writer: Writer | None = None,
) -> dict[str, Any]:
    """The parameters of SendMessage for the continuation of a task.

    :param kwargs: those of the message, updated.
    :param most: how many continuations one task may have.
    :param has_attributes: whether the message was received with all its message attributes.
    :param writer: writes the body: a strict one refuses what JSON cannot hold.
    :raises CannotContinue: if it cannot be sent; names the remedy.
    """
    if not has_attributes:
        raise CannotContinue(
            f"Task {task!r} cannot continue: its message was received without its message attributes, which would be "
            'lost: task_generator(message_attribute_names=["All"])'
        )
    chain = chain_of(message)
    if chain.number >= most:
        raise CannotContinue(
            f"Task {task!r} has continued {chain.number:,} times and may do so {most:,} times (max_continuations): "
            "if that is not a bug, raise the limit"
        )
    system = _mapping(message.attributes)
    fifo = "MessageGroupId" in system and "MessageDeduplicationId" in system
    if fifo and delay_seconds:
        raise CannotContinue(f"Task {task!r} cannot continue with a delay: a FIFO queue has one delay for all messages")
    first_id = chain.first_id or _message_id(message)
    content = {"continuation": chain.number + 1, "first_id": first_id}
    first_sent = chain.first_sent or system.get("SentTimestamp")
    if isinstance(first_sent, str):
        content["first_sent"] = first_sent
    try:
        body = messages.encode(task, kwargs, writer or messages.LENIENT)
    except ValueError as error:
        raise CannotContinue(f"Task {task!r} cannot continue: {error}") from error
    request: dict[str, Any] = {"MessageBody": body, "MessageAttributes": _with(message, task, content)}
    if delay_seconds:
        request["DelaySeconds"] = delay_seconds
    request.update(_of_system(system))
    if fifo:
        request["MessageDeduplicationId"] = _deduplication_id(f"{first_id}-{chain.number + 1}")
    size = message_bytes(request)
    if size > MAX_MESSAGE_BYTES:
        raise CannotContinue(
            f"Task {task!r} cannot continue: its successor would have {size:,} bytes and SQS takes at most "
            f"{MAX_MESSAGE_BYTES:,}: store the state elsewhere, in S3 for example, and continue with its address"
        )
    return request


def ungrouped(error: Any) -> Any:
    """The Continue that is alone in a group (asyncio.TaskGroup raises such); else the error as it is.

    A Continue with others in its group becomes a CannotContinue.
    """
    leaves = _leaves(error)
    others = [leaf for leaf in leaves if not isinstance(leaf, Continue)]
    if leaves == [error] or len(others) == len(leaves) or not all(isinstance(leaf, Exception) for leaf in others):
        return error
    if len(leaves) == 1:
        return leaves[0]
    problem = CannotContinue(
        f"Continue was raised {len(leaves) - len(others)} times in one group, with {len(others)} other errors, and a "
        "task can only end once"
    )
    problem.__cause__ = error
    return problem


def checked_types(given: Any) -> tuple[type[BaseException], ...]:
    """:raises ValueError: for anything but a type of exceptions, or a tuple of them."""
    types = given if isinstance(given, tuple) else (given,)
    for each in types:
        if not isinstance(each, type) or not issubclass(each, BaseException):
            raise ValueError(f"dead_letter must be types of exceptions, like (KeyError, ValueError), not {given!r}")
    return types


def without_retry(error: Any, types: tuple[type[BaseException], ...]) -> DeadLetter | None:
    """The error as a DeadLetter if no retry helps: it is one, or is of one of the types. None: a retry may help.

    A group counts if everything in it does.
    """
    leaves = [error] if isinstance(error, types) else _leaves(error)
    if not all(isinstance(leaf, (DeadLetter, *types)) for leaf in leaves):
        return None
    if len(leaves) == 1 and isinstance(leaves[0], DeadLetter):
        return leaves[0]
    reasons = (str(leaf) if isinstance(leaf, DeadLetter) else f"{type(leaf).__name__}: {leaf}" for leaf in leaves)
    dead_letter = DeadLetter("; ".join(dict.fromkeys(reasons)))
    dead_letter.__cause__ = error
    return dead_letter


def _leaves(error: Any) -> list[Any]:
    """The exceptions in a group, nested groups included; of any other exception the exception itself.

    Recognized by `exceptions`: before Python 3.11 groups come from a package, with names of its own.
    """
    inner = getattr(error, "exceptions", None) if isinstance(error, BaseException) else None
    if not isinstance(inner, (tuple, list)) or not inner or not all(isinstance(one, BaseException) for one in inner):
        return [error]
    return [leaf for one in inner for leaf in _leaves(one)]


def is_due(message: Any, error: BaseException, max_receive_count: int) -> bool:
    """Whether a failed message is to be dead-lettered now: the task asked for it, or no receive is left."""
    return isinstance(error, DeadLetter) or is_last_receive(message, max_receive_count)


def is_last_receive(message: Any, max_receive_count: int) -> bool:
    """Whether the redrive policy allows no receive after this one."""
    received = _mapping(message.attributes).get("ApproximateReceiveCount")
    return isinstance(received, str) and received.isdecimal() and int(received) >= max_receive_count


def dead_letter(message: Any, task: str, error: BaseException, by: str, now: float | None = None) -> dict[str, Any]:
    """The parameters of SendMessage for the message itself, with the reason for giving it up.

    :param by: names the sender.
    :param now: seconds since the epoch.
    :raises CannotContinue: if SQS would not take it even with the reason cut as short as possible.
    """
    system = _mapping(message.attributes)
    earlier = _ours(message)
    content: dict[str, Any] = {
        **{name: earlier[name] for name in ("continuation", "first_id", "first_sent") if name in earlier},
        "task": task,
        "error": type(error).__name__,
        "reason": _sendable(str(error))[:_REASON_CHARACTERS],
        "receive_count": str(system.get("ApproximateReceiveCount", "")),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "by": by,
    }
    if isinstance(system.get("SentTimestamp"), str):
        content.setdefault("first_sent", system["SentTimestamp"])
    request: dict[str, Any] = {"MessageBody": message.body, **_of_system(system)}
    if "MessageDeduplicationId" in system:
        # As SQS's own move does. Under its own id it would be dropped if another message of that id had just died.
        request["MessageDeduplicationId"] = _deduplication_id(_message_id(message))
    while True:
        request["MessageAttributes"] = _with(message, task, content)
        over = message_bytes(request) - MAX_MESSAGE_BYTES
        if over <= 0:
            return request
        if not content["reason"]:
            raise CannotContinue(
                f"The message of task {task!r} and the reason do not fit into {MAX_MESSAGE_BYTES:,} bytes"
            )
        # A character takes up to six bytes as JSON: never cut more than needed.
        content["reason"] = content["reason"][: -max(1, over // 6)]


def redriven(message: Any, fifo: bool) -> dict[str, Any]:
    """The parameters of SendMessage for a dead message that is to be tried again: itself, without the reason.

    :param fifo: whether it goes to a FIFO queue. Its deduplication id is the dead message's id: under its own it would
        be dropped, and then deleted, if it died young. This way it is dropped only if it was redriven just now.
    """
    system, ours = _mapping(message.attributes), _ours(message)
    kept = ("continuation", "first_id", "first_sent")
    content: dict[str, Any] = {name: ours[name] for name in kept if name in ours}
    request: dict[str, Any] = {"MessageBody": message.body, "MessageAttributes": _with(message, "", content)}
    if not content:
        del request["MessageAttributes"][ATTRIBUTE]
    request.update(_of_system(system))
    if fifo:
        request["MessageDeduplicationId"] = _deduplication_id(_message_id(message))
    return request


def reason_of(message: Any) -> dict[str, Any]:
    """What `dead_letter` added to a message: task, error, reason, receive_count, when, by; {} if it did not."""
    found = _ours(message)
    return found if "reason" in found else {}


def _of_system(system: Mapping[str, Any]) -> dict[str, Any]:
    """What is passed on of the attributes that SQS, not the sender, keeps: the message's group, and its trace.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-message-metadata.html
    """
    request: dict[str, Any] = {}
    if "MessageGroupId" in system:
        request["MessageGroupId"] = str(system["MessageGroupId"])
    if isinstance(system.get(TRACE_HEADER), str):
        header = {"StringValue": system[TRACE_HEADER], "DataType": "String"}
        request["MessageSystemAttributes"] = {TRACE_HEADER: header}
    return request


def _message_id(message: Any) -> str:
    """SQS's id of the message; its deduplication id if it has none (an object of the user's own)."""
    found = getattr(message, "message_id", None) or _mapping(message.attributes).get("MessageDeduplicationId")
    return str(found or "")


def _deduplication_id(text: str) -> str:
    """The text if SQS takes it, else its hash."""
    try:
        return check_identifier("MessageDeduplicationId", text)
    except ValueError:
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _ours(message: Any) -> dict[str, Any]:
    attribute = _mapping(getattr(message, "message_attributes", None)).get(ATTRIBUTE)
    try:
        found = json.loads(_mapping(attribute)["StringValue"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _with(message: Any, task: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The message attributes to send: those the message has, and ours."""
    kept = {
        name: {part: value[part] for part in ("StringValue", "BinaryValue", "DataType") if part in value}
        for name, value in _mapping(getattr(message, "message_attributes", None)).items()
        if name != ATTRIBUTE
    }
    if len(kept) >= MAX_MESSAGE_ATTRIBUTES:
        kept.pop(SENDER, None)
    if len(kept) >= MAX_MESSAGE_ATTRIBUTES:
        raise CannotContinue(
            f"The message of task {task!r} has {len(kept)} message attributes and SQS takes {MAX_MESSAGE_ATTRIBUTES}: "
            f"leave one of them to {ATTRIBUTE!r}"
        )
    return {**kept, ATTRIBUTE: {"StringValue": json.dumps(content), "DataType": "String"}}


def _sendable(text: str) -> str:
    return "".join(
        c for c in text if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
