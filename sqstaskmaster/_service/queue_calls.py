"""The requests that end or extend claims on the messages of one queue: up to ten of a kind in one request.

Each entry of a batch has its own answer: HTTP 200 may carry entries that failed. A queue that has no batches of its
own is asked message by message.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibilityBatch.html
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessageBatch.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from botocore.exceptions import ClientError

from sqstaskmaster._sqs.limits import MAX_BATCH_ENTRIES

Errors = list["BaseException | None"]
Batch = Callable[[list[dict[str, Any]]], Any]


class QueueCalls:
    """Blocking calls, to be made in any thread. Each gives one answer a message: None, or what went wrong with it."""

    def __init__(self, queue: Any) -> None:
        self._delete, self._change = _batches(queue)
        self._of_boto3 = _is_of_boto3(queue, "delete_messages")

    def most(self, message: Any) -> int:
        """How many messages like this one may go into one call."""
        if self._delete is None or not hasattr(message, "receipt_handle"):
            return 1
        # A message that somebody wrapped does more in its own methods than the batches of boto3 would.
        return MAX_BATCH_ENTRIES if not self._of_boto3 or _is_of_boto3(message, "delete") else 1

    def delete(self, messages: Sequence[Any]) -> Errors:
        """Delete each of the messages."""
        if self._delete is None or len(messages) == 1:
            return [_error_of(message.delete) for message in messages]
        return _batch("DeleteMessage", self._delete, [_entry(n, message) for n, message in enumerate(messages)])

    def change_visibility(self, changes: Sequence[tuple[Any, int]]) -> Errors:
        """Set each message's visibility timeout, in seconds from now; 0 makes it visible."""
        if self._change is None or len(changes) == 1:
            return [_error_of(lambda: m.change_visibility(VisibilityTimeout=seconds)) for m, seconds in changes]
        entries = [_entry(n, m, VisibilityTimeout=seconds) for n, (m, seconds) in enumerate(changes)]
        return _batch("ChangeMessageVisibility", self._change, entries)


def _entry(number: int, message: Any, **more: Any) -> dict[str, Any]:
    return {"Id": str(number), "ReceiptHandle": message.receipt_handle, **more}


def _error_of(call: Callable[[], Any]) -> BaseException | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _batch(operation: str, send: Batch, entries: list[dict[str, Any]]) -> Errors:
    try:
        answer = send(entries)
    except Exception as error:
        return [error] * len(entries)
    failed = {entry["Id"]: entry for entry in (answer or {}).get("Failed", ())}
    return [_client_error(operation, failed[entry["Id"]]) if entry["Id"] in failed else None for entry in entries]


def _client_error(operation: str, entry: Mapping[str, Any]) -> ClientError:
    """What the request for this one message would have raised."""
    fault = bool(entry.get("SenderFault", True))
    error: Any = {
        "Error": {
            "Code": str(entry.get("Code", "Unknown")),
            "Message": str(entry.get("Message", "no reason given")),
            "Type": "Sender" if fault else "Receiver",
        },
        "ResponseMetadata": {"HTTPStatusCode": 400 if fault else 500},
    }
    return ClientError(error, operation)


def _batches(queue: Any) -> tuple[Batch | None, Batch | None]:
    """How batches are sent to this queue, (None, None) where it has none."""
    # boto3 says that clients may be shared by threads, and that resources may not.
    if _is_of_boto3(queue, "delete_messages"):
        client, url = queue.meta.client, queue.url
        return (
            lambda entries: client.delete_message_batch(QueueUrl=url, Entries=entries),
            lambda entries: client.change_message_visibility_batch(QueueUrl=url, Entries=entries),
        )
    # Of its own: a wrapper that passes on whatever it is asked for does not mean its messages to be passed over.
    kind = type(queue)
    if hasattr(kind, "delete_messages") and hasattr(kind, "change_message_visibility_batch"):
        return (
            lambda entries: queue.delete_messages(Entries=entries),
            lambda entries: queue.change_message_visibility_batch(Entries=entries),
        )
    return None, None


def _is_of_boto3(thing: Any, method: str) -> bool:
    return getattr(getattr(type(thing), method, None), "__module__", None) == "boto3.resources.factory"
