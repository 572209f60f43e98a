"""The queues that a message is sent on to: the one it came from, and that one's dead-letter queue. Blocking calls."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqstaskmaster._claim import forwarding
from sqstaskmaster.errors import CannotContinue

#: Said once of a queue, with the task's name and what is wrong.
NOT_DEAD_LETTERED = (
    "Task %s is not dead-lettered and has failed as ever: %s: give the queue a redrive policy, and allow "
    "sqs:GetQueueAttributes on it and sqs:SendMessage on its dead-letter queue. Said once"
)

#: With the task's name, the number of the receive, and the message.
LAST_RECEIVE = (
    "Task %s was given back on receive %d, the last that the redrive policy allows: the next receive moves it to the "
    "dead-letter queue, though nothing is wrong with it. Raise maxReceiveCount, or let the task raise Continue when it "
    "is told to stop, which costs no receive: message %s"
)

# Who says that a message is dead.
_BY = f"sqstaskmaster on {socket.gethostname()}"


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
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def send(self, message: Any, task: str, error: BaseException, has_attributes: bool) -> bool:
        """Send a failed message to its queue's dead-letter queue, with the reason, where that is due. Whether it was.

        :param has_attributes: whether the message was received with all its message attributes.
        :raises CannotContinue: where there is none, or the message cannot be sent as it is.
        :raises Exception: what the queue raises.
        """
        if not has_attributes:
            raise CannotContinue(
                "its message was received without its message attributes, which would be lost: "
                'task_generator(message_attribute_names=["All"])'
            )
        found = self.of(message)
        if found is None:
            raise CannotContinue(f"{_queue_of(message).url} has no dead-letter queue")
        if not forwarding.is_due(message, error, found.max_receive_count):
            return False
        found.send(forwarding.dead_letter(message, task, error, _BY))
        return True

    def is_news(self, url: str | None, problem: BaseException) -> bool:
        """Whether this problem with a queue's dead-letter queue has not been told yet."""
        from sqstaskmaster._sqs.answers import code_of  # loads botocore, which who only sends a task need not wait for

        said = f"{url}: {code_of(problem) or type(problem).__name__}"
        with self._lock:
            told = said in self._warned
            self._warned.add(said)
        return not told

    def is_last_receive(self, message: Any) -> bool:
        """Whether the next receive moves the message to the dead-letter queue; False where that cannot be known."""
        try:
            found = self.of(message)
        except Exception:  # a worker that is stopping has better to do than to tell of this
            return False
        return found is not None and forwarding.is_last_receive(message, found.max_receive_count)

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
