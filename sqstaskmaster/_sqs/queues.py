"""One adapter over what a queue can be: boto3's `SQS.Queue`, a queue in memory, or an object of the user's own.

Instead of boto3's own methods, those of the client are called: threads may share it, and it has batches. A method that
a user has put in their place does something more, so it is called.

Each entry of a batch has its own answer: HTTP 200 may carry entries that failed. A queue without batches of its own is
asked message by message.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibilityBatch.html
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessageBatch.html
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from sqstaskmaster._sqs.confirmation import batch_results, is_of_boto3
from sqstaskmaster._sqs.limits import MAX_BATCH_ENTRIES

Errors = list["BaseException | None"]


def client_of(queue: Any, method: str) -> Any:
    """The client behind a boto3 queue or message whose `method` is boto3's own; None for any other."""
    return queue.meta.client if is_of_boto3(queue, method) else None


class QueueCalls:
    """The requests that end or extend claims, up to ten of a kind in one.

    Blocking calls, for any thread. Each returns one answer per message: None, or what went wrong with it.

    :param queue: the queue for deletes.
    :param urgent: the queue for changes of visibility, if another: it makes each request once, and bounded.
    """

    def __init__(self, queue: Any, urgent: Any = None) -> None:
        self._queue = queue
        self._clients = client_of(queue, "delete_messages"), client_of(urgent or queue, "delete_messages")
        # On its class: a wrapper that passes on every attribute does not want its messages bypassed.
        kind = type(queue)
        own = hasattr(kind, "delete_messages") and hasattr(kind, "change_message_visibility_batch")
        self._has_batches = own or self._clients[0] is not None

    def most(self, message: Any) -> int:
        """How many messages like this one may go into one call."""
        if not self._has_batches or not hasattr(message, "receipt_handle"):
            return 1
        return MAX_BATCH_ENTRIES if self._clients[0] is None or self._is_plain(message) else 1

    def delete(self, messages: Sequence[Any]) -> Errors:
        """Delete each of the messages."""
        client, url = self._clients[0], getattr(self._queue, "url", None)
        if len(messages) > 1 and self._has_batches:
            send = self._queue.delete_messages
            if client is not None:
                send = functools.partial(client.delete_message_batch, QueueUrl=url)
            return _batch("DeleteMessageBatch", send, [_entry(n, m) for n, m in enumerate(messages)], client)
        errors: Errors = []
        for message in messages:
            delete = message.delete
            if client is not None and self._is_plain(message):
                delete = functools.partial(client.delete_message, QueueUrl=url, ReceiptHandle=message.receipt_handle)
            errors.append(_error_of(delete))
        return errors

    def change_visibility(self, changes: Sequence[tuple[Any, int]]) -> Errors:
        """Set each message's visibility timeout, in seconds from now; 0 makes it visible."""
        client, url = self._clients[1], getattr(self._queue, "url", None)
        if len(changes) > 1 and self._has_batches:
            send = self._queue.change_message_visibility_batch
            if client is not None:
                send = functools.partial(client.change_message_visibility_batch, QueueUrl=url)
            entries = [_entry(n, m, VisibilityTimeout=seconds) for n, (m, seconds) in enumerate(changes)]
            return _batch("ChangeMessageVisibilityBatch", send, entries, client)
        errors: Errors = []
        for message, seconds in changes:
            change = message.change_visibility
            if client is not None and self._is_plain(message):
                handle = message.receipt_handle
                change = functools.partial(client.change_message_visibility, QueueUrl=url, ReceiptHandle=handle)
            errors.append(_error_of(functools.partial(change, VisibilityTimeout=seconds)))
        return errors

    @staticmethod
    def _is_plain(message: Any) -> bool:
        """Whether it is boto3's: a wrapped message does more in its own methods than a client would."""
        return client_of(message, "delete") is not None


def _entry(number: int, message: Any, **more: Any) -> dict[str, Any]:
    return {"Id": str(number), "ReceiptHandle": message.receipt_handle, **more}


def _error_of(call: Callable[[], Any]) -> BaseException | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _batch(operation: str, send: Callable[..., Any], entries: list[dict[str, Any]], client: Any) -> Errors:
    try:
        answer = send(Entries=entries)
    except Exception as error:
        return [error] * len(entries)
    results = batch_results(operation, answer, {entry["Id"]: None for entry in entries}, client is not None)
    return [result if isinstance(result, Exception) else None for result in map(results.get, results)]
