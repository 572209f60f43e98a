"""LocalQueue: an in-memory stand-in for an SQS queue, for tests that producer and consumer agree on message content.

It is honest about what it is: one first-in-first-out line per URL for the whole process, no visibility timeout, no
redelivery. A message that is received is gone from the queue. For anything else, test against a real SQS server.
"""

from __future__ import annotations

import hashlib
import itertools
import queue
import time
from collections.abc import Mapping
from typing import Any

from sqstaskmaster.limits import MAX_BATCH_ENTRIES, MAX_WAIT_SECONDS, check_whole_seconds, is_whole

_numbers = itertools.count(1)


class LocalMessage:
    """A message of a LocalQueue, with the parts of boto3's `SQS.Message` that a consumer uses.

    `deleted` and `visibility_changes` (seconds, in order) tell a test afterwards what became of it.
    """

    def __init__(
        self,
        body: str,
        attributes: Mapping[str, Any] | None = None,
        message_attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.body = body
        self.attributes = attributes
        self.message_attributes = message_attributes
        self.message_id = f"local-{next(_numbers)}"
        self.deleted = False
        self.visibility_changes: list[int] = []

    @property
    def receipt_handle(self) -> str:
        return f"receipt-{self.message_id}"

    @property
    def md5_of_body(self) -> str:
        return _md5(self.body)

    def change_visibility(self, **kwargs: Any) -> None:
        """Nothing but a note of `VisibilityTimeout` (seconds) in `visibility_changes`."""
        self.visibility_changes.append(kwargs["VisibilityTimeout"])

    def delete(self) -> None:
        """Nothing but a note: the message left the queue when it was received."""
        self.deleted = True

    def __repr__(self) -> str:
        # Without the body: this is what log lines show of a message.
        return f"LocalMessage(message_id={self.message_id!r}, deleted={self.deleted})"


class LocalQueue:
    """An in-memory queue with the parts of boto3's `SQS.Queue` that TaskManager uses.

    Every LocalQueue of one URL is the same queue: `LocalQueue.local_queues` maps the URL to its `queue.SimpleQueue`.
    """

    local_queues: dict[str, queue.SimpleQueue[LocalMessage]] = {}

    def __init__(self, url: str) -> None:
        self.url = url
        self.queue = self.local_queues.setdefault(url, queue.SimpleQueue())

    @property
    def attributes(self) -> dict[str, Any]:
        """What `SQS.Queue.attributes` would say, always as of now."""
        return {
            "QueueArn": f"LocalQueue replacing: {self.url}",
            "ApproximateNumberOfMessages": self.queue.qsize(),
            "ApproximateNumberOfMessagesNotVisible": 0,
            "ApproximateNumberOfMessagesDelayed": 0,
            "FifoQueue": True,
            "ContentBasedDeduplication": False,
        }

    def load(self) -> None:
        """Nothing: `attributes` is never out of date."""

    def purge(self) -> None:
        """Drop every message that waits."""
        try:
            while True:
                self.queue.get_nowait()
        except queue.Empty:
            pass

    def send_message(self, **kwargs: Any) -> dict[str, str]:
        """Append a message: `MessageBody`, and `MessageAttributes` if any.

        :raises TypeError: for a body that is no string, as boto3 refuses one; nothing is appended then.
        """
        body = kwargs.get("MessageBody")
        if not isinstance(body, str):
            raise TypeError(f"MessageBody must be a string, not {body!r}")
        message = LocalMessage(body, None, kwargs.get("MessageAttributes"))
        message.attributes = {"SentTimestamp": str(int(time.time() * 1000)), "ApproximateReceiveCount": "1"}
        self.queue.put(message)
        return {"MD5OfMessageBody": _md5(message.body), "MessageId": message.message_id}

    def receive_messages(self, **kwargs: Any) -> list[LocalMessage]:
        """Like SQS: as soon as at least one message is there, all that are, up to the maximum; nothing after the wait.

        `WaitTimeSeconds` (0 to 20, default 20), `MaxNumberOfMessages` (1 to 10, default 1); ValueError for others.
        """
        wait = check_whole_seconds("WaitTimeSeconds", kwargs.get("WaitTimeSeconds", MAX_WAIT_SECONDS), MAX_WAIT_SECONDS)
        most = kwargs.get("MaxNumberOfMessages", 1)
        if not is_whole(most) or not 1 <= most <= MAX_BATCH_ENTRIES:
            raise ValueError(f"MaxNumberOfMessages must be a whole number from 1 to {MAX_BATCH_ENTRIES}, not {most!r}")
        received: list[LocalMessage] = []
        try:
            received.append(self.queue.get(timeout=wait) if wait else self.queue.get_nowait())
            while len(received) < most:
                received.append(self.queue.get_nowait())
        except queue.Empty:
            pass
        return received

    def __repr__(self) -> str:
        return f"LocalQueue(url={self.url!r})"


def _md5(text: str) -> str:
    # The checksum of the SQS protocol, no security: without the flag, FIPS builds of Python refuse it.
    return hashlib.md5(text.encode(errors="surrogatepass"), usedforsecurity=False).hexdigest()
