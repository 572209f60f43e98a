"""The queues that a message is sent on to: the one it came from, and that one's dead-letter queue. Blocking calls."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqstaskmaster.errors import CannotContinue


class DeadLetterQueue(NamedTuple):
    """Where the redrive policy of a queue leads, and after how many receives."""

    url: str
    max_receive_count: int
    send: Callable[[Mapping[str, Any]], Any]


def send_successor(message: Any, request: Mapping[str, Any]) -> None:
    """Send to the queue that the message came from.

    :raises CannotContinue: where the message does not know its queue.
    :raises Exception: what the queue raises.
    """
    _queue_of(message).send_message(**request)


class DeadLetterQueues:
    """Finds the dead-letter queues of queues: each queue is asked for its redrive policy once, again after an error."""

    def __init__(self) -> None:
        self._known: dict[str, DeadLetterQueue | None] = {}
        self._lock = threading.Lock()

    def of(self, message: Any) -> DeadLetterQueue | None:
        """The dead-letter queue of the queue that the message came from, None where that has none.

        :raises CannotContinue: where the message does not know its queue.
        :raises Exception: what the queue raises.
        """
        queue = _queue_of(message)
        with self._lock:
            if queue.url in self._known:
                return self._known[queue.url]
        found = _asked(queue)
        with self._lock:
            return self._known.setdefault(queue.url, found)


def dead_letter_url(url: str, arn: str) -> str:
    """The URL of a queue's dead-letter queue: SQS wants both in one account and region, so only the name differs."""
    return f"{url.rpartition('/')[0]}/{arn.rpartition(':')[2]}"


def _asked(queue: Any) -> DeadLetterQueue | None:
    queue.load()
    policy = json.loads(queue.attributes.get("RedrivePolicy") or "{}")
    if not policy:
        return None
    url = dead_letter_url(queue.url, str(policy["deadLetterTargetArn"]))
    client = getattr(getattr(queue, "meta", None), "client", None)
    if client is not None:
        return DeadLetterQueue(
            url, int(policy["maxReceiveCount"]), lambda request: client.send_message(QueueUrl=url, **request)
        )
    other = type(queue)(url)
    return DeadLetterQueue(url, int(policy["maxReceiveCount"]), lambda request: other.send_message(**request))


def _queue_of(message: Any) -> Any:
    find = getattr(message, "Queue", None)
    if not callable(find):
        raise CannotContinue(
            f"{message!r} does not know the queue it came from: a message needs a Queue() that gives it, as boto3's has"
        )
    return find()
