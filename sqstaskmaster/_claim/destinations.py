"""Where messages are sent on to: the queue they came from, and its dead-letter queue. Blocking calls."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqstaskmaster._claim import forwarding
from sqstaskmaster._sqs.confirmation import is_of_boto3
from sqstaskmaster._sqs.explained import send
from sqstaskmaster._sqs.queues import QueueCalls
from sqstaskmaster._sqs.values import Writer
from sqstaskmaster.errors import CannotContinue

#: Logged once per problem of a queue, with the task's name and what is wrong.
NOT_DEAD_LETTERED = (
    "Task %s is not dead-lettered, and has failed as usual: %s: give the queue a redrive policy, and allow "
    "sqs:GetQueueAttributes on it and sqs:SendMessage on its dead-letter queue. Logged once"
)

#: With the task's name, the number of the receive, and the message.
LAST_RECEIVE = (
    "Task %s was given back on receive %d, the last that the redrive policy allows: the next receive moves it to "
    "the dead-letter queue, though nothing is wrong with it. Raise maxReceiveCount, or let the task raise Continue "
    "when it has to stop, which costs no receive: message %s"
)

# A redrive policy that was changed, or added on the advice of a warning, is noticed after this long.
_KNOWN_SECONDS = 60.0

# Names the sender in the reason of a dead letter.
_BY = f"sqstaskmaster on {socket.gethostname()}"


class DeadLetterQueue(NamedTuple):
    """Where the redrive policy of a queue leads, and after how many receives."""

    url: str
    max_receive_count: int
    queue: Any


class Origin:
    """The queue that messages came from, for sending them on: to itself, or to its dead-letter queue.

    The dead-letter queue is looked up again after a minute. Thread-safe.

    :param url: the queue's URL.
    :param queue: returns the queue to ask, looked up on use: each request is made once, and bounded.
    :param make: makes the queue of another URL, as this one was made. None: boto3's own.
    :param writer: writes the body of a successor; strict if the manager is.
    """

    def __init__(
        self,
        url: str,
        queue: Callable[[], Any],
        make: Callable[[str], Any] | None,
        writer: Writer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self.writer = writer
        self._queue = queue
        self._make = make
        self._clock = clock
        self._known: tuple[float, DeadLetterQueue | None] | None = None
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # The cached lookup belongs to this process's connections.
        return Origin, (self.url, self._queue, self._make, self.writer)

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a successor.

        :raises Exception: what the queue raises.
        """
        send(self._queue(), self.url, request)

    def change_visibility(self, message: Any, seconds: int) -> None:
        """Set the visibility timeout of a message that came from here, by one request.

        :raises Exception: whatever went wrong.
        """
        (error,) = QueueCalls(self._queue()).change_visibility([(message, seconds)])
        if error is not None:
            raise error

    def send_dead_letter(self, message: Any, task: str, error: BaseException, has_attributes: bool) -> bool:
        """Send a failed message to the dead-letter queue, with the reason, if that is due. Returns whether it was.

        :param has_attributes: whether the message was received with all its message attributes.
        :raises CannotContinue: if there is no such queue, or the message cannot be sent as it is.
        :raises Exception: what the queue raises.
        """
        if not has_attributes:
            raise CannotContinue(
                "its message was received without its message attributes, which would be lost: "
                'task_generator(message_attribute_names=["All"])'
            )
        found = self.dead_letters()
        if found is None:
            raise CannotContinue(f"{self.url} has no dead-letter queue")
        if not forwarding.is_due(message, error, found.max_receive_count):
            return False
        send(found.queue, found.url, forwarding.dead_letter(message, task, error, _BY))
        return True

    def is_news(self, problem: BaseException) -> bool:
        """Whether this problem with the dead-letter queue has not been reported yet."""
        from sqstaskmaster._sqs.answers import code_of  # loads botocore, which programs that only send tasks can skip

        said = code_of(problem) or type(problem).__name__
        with self._lock:
            told = said in self._warned
            self._warned.add(said)
        return not told

    def is_last_receive(self, message: Any) -> bool:
        """Whether the next receive moves the message to the dead-letter queue; False if that cannot be known."""
        try:
            found = self.dead_letters()
        except Exception:  # a stopping worker has better things to do than to report this
            return False
        return found is not None and forwarding.is_last_receive(message, found.max_receive_count)

    def dead_letters(self) -> DeadLetterQueue | None:
        """The dead-letter queue, None if there is none.

        :raises Exception: what the queue raises.
        """
        known, now = self._known, self._clock()
        if known is not None and now - known[0] < _KNOWN_SECONDS:
            return known[1]
        try:
            found = self._ask()
        except Exception:
            if known is None:
                raise
            found = known[1]
        self._known = now, found
        return found

    def _ask(self) -> DeadLetterQueue | None:
        queue = self._queue()
        queue.load()
        policy = json.loads(queue.attributes.get("RedrivePolicy") or "{}")
        if not policy:
            return None
        url = dead_letter_url(self.url, str(policy["deadLetterTargetArn"]))
        return DeadLetterQueue(url, int(policy["maxReceiveCount"]), self._other(queue, url))

    def _other(self, queue: Any, url: str) -> Any:
        """The queue of another URL, made by the user's own constructor: it may, say, encrypt what it sends."""
        if self._make is None and is_of_boto3(queue, "send_message"):
            return type(queue)(url, client=queue.meta.client)
        other = (self._make or type(queue))(url)
        if getattr(other, "url", url) != url:
            raise CannotContinue(
                f"queue_constructor({url!r}) returned the queue {other.url}, and dead letters do not belong there: "
                "it must return the queue of the URL that it gets"
            )
        return other


def dead_letter_url(url: str, arn: str) -> str:
    """The URL of a queue's dead-letter queue: SQS requires the same account and region, so only the name differs."""
    return f"{url.rpartition('/')[0]}/{arn.rpartition(':')[2]}"
