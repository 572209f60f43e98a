"""LocalQueue: an in-memory stand-in for an SQS queue, for tests that producer and consumer agree on message content.

It is simple: one first-in-first-out line per URL for the whole process, no visibility timeout, no redelivery. A
received message is gone from the queue. Delays are kept, in real time. If the URL ends in .fifo, a message group is
required, as in SQS, and an optional deduplication id drops repetitions for five minutes; the body alone never does.
Message attributes are kept as given, and come without being asked for. To test what becomes of messages, use
`sqstaskmaster.testing.SimulatedQueue`; for anything else, a real SQS server.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import logging
import math
import queue
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from sqstaskmaster._logging import get_logger
from sqstaskmaster._memory.home import AtHome
from sqstaskmaster._memory.refusals import IDENTIFIERS, TRACE_HEADER, refusal, too_long, wrong_entries, wrong_message
from sqstaskmaster._sqs.confirmation import md5
from sqstaskmaster._sqs.limits import (
    DEDUPLICATION_SECONDS,
    MAX_BATCH_ENTRIES,
    MAX_WAIT_SECONDS,
    check_whole_seconds,
    is_whole,
    message_bytes,
)

logger: logging.Logger = get_logger(__name__)

_numbers = itertools.count(1)

# How often a waiting receive looks for delayed messages, which another thread may have sent meanwhile.
_LOOK_SECONDS = 0.05

# The shortest wait for a message: long enough that on a busy machine it is not over before it begins.
_SHORTEST_WAIT_SECONDS = 0.02

# What a message keeps of its send parameters, as with SQS.
_KEPT = (*IDENTIFIERS, TRACE_HEADER)


class LocalMessage:
    """A message of a `LocalQueue`, with the parts of boto3's `SQS.Message` that a consumer uses.

    :param body: text, as `TaskManager.submit` writes it.
    :param attributes: SQS's attributes of the message, such as `{"ApproximateReceiveCount": "1"}`; `{}` for None.
    :param message_attributes: as SQS gives them, `{"a": {"StringValue": "b", "DataType": "String"}}`; `{}` for None.

    `deleted` and `visibility_changes` (seconds, in order) show a test afterwards what became of it.
    """

    # There is no visibility timeout that could run out.
    claim_lapses: ClassVar[bool] = False

    def __init__(
        self,
        body: str,
        attributes: Mapping[str, Any] | None = None,
        message_attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.body = body
        self.attributes: Mapping[str, Any] = {} if attributes is None else attributes
        self.message_attributes: Mapping[str, Any] = {} if message_attributes is None else message_attributes
        self.queue_url: str | None = None
        self.message_id: str = f"local-{next(_numbers)}"
        self.deleted: bool = False

    @functools.cached_property
    def visibility_changes(self) -> list[int]:
        # Made on demand: a list for each of many waiting messages would keep the garbage collector busy.
        return []

    @property
    def receipt_handle(self) -> str:
        """A handle like SQS's, but without meaning: there are no claims here."""
        return f"receipt-{self.message_id}"

    @property
    def md5_of_body(self) -> str:
        """The MD5 of the body, as SQS gives it: 32 hexadecimal digits."""
        return md5(self.body)

    def change_visibility(self, *args: Any, **kwargs: Any) -> None:
        """Only notes `VisibilityTimeout` (seconds) in `visibility_changes`. Takes any arguments."""
        logger.info("Noop change_visibility: %s", kwargs or args)
        if "VisibilityTimeout" in kwargs:
            self.visibility_changes.append(kwargs["VisibilityTimeout"])

    def delete(self, *args: Any, **kwargs: Any) -> None:
        """Only notes it: the message left the queue when it was received. Takes any arguments."""
        logger.info("Noop delete!")
        self.deleted = True

    def Queue(self) -> LocalQueue:
        """The queue it was received from.

        :raises ValueError: for a message that was made by hand, and did not come from a queue.
        """
        if self.queue_url is None:
            raise ValueError(f"{self!r} was received from no queue: put it into one, LocalQueue(url).queue.put_nowait")
        return LocalQueue(self.queue_url)

    def __repr__(self) -> str:
        # Without the body: log lines show this.
        return f"LocalMessage(message_id={self.message_id!r}, deleted={self.deleted})"


class _Aside:
    """What a queue keeps beside its line: delayed messages, and deduplication ids. Seconds, monotonic."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.delayed: list[tuple[float, int, LocalMessage]] = []
        self.known: dict[str, tuple[float, LocalMessage]] = {}

    def earlier(self, deduplication_id: str, message: LocalMessage) -> LocalMessage:
        """The first message with this id in the last five minutes: `message` itself if there was none."""
        now = time.monotonic()
        with self.lock:
            self.known = {name: kept for name, kept in self.known.items() if kept[0] > now}
            _, earlier = self.known.setdefault(deduplication_id, (now + DEDUPLICATION_SECONDS, message))
            return earlier


class LocalQueue(AtHome):
    """An in-memory queue with the parts of boto3's `SQS.Queue` that `TaskManager` uses.

    Every `LocalQueue` of one URL is the same queue, for the whole process: `LocalQueue.local_queues` maps the URL to
    its `queue.SimpleQueue`. Tests begin with `LocalQueue.reset()`, or see what others left behind. In the process of a
    task, or after pickling, it would be a copy: there, sending and receiving raise UnsupportedContext.

    It is for tests of what messages contain. It keeps message attributes as they are given, and ignores
    `VisibilityTimeout`, `AttributeNames`, `MessageAttributeNames`, and the arguments of its messages' methods. To test
    what becomes of messages (redelivery, dead letters), or batch deletes and batch changes of visibility, use
    `SimulatedQueue`.

    :param url: any text that names the queue; if it ends in `.fifo`, a FIFO queue.
    """

    #: The queue of each URL, for the whole process.
    local_queues: dict[str, queue.SimpleQueue[LocalMessage]] = {}
    _asides: weakref.WeakKeyDictionary[queue.SimpleQueue[LocalMessage], _Aside] = weakref.WeakKeyDictionary()

    def __init__(self, url: str) -> None:
        self.url = url
        self.queue  # creates it, so that it is listed

    @property
    def queue(self) -> queue.SimpleQueue[LocalMessage]:
        """The messages that wait. Looked up on use, so that a test can patch it on the class."""
        try:
            return self.local_queues[self.url]
        except KeyError:
            return self.local_queues.setdefault(self.url, queue.SimpleQueue())

    @property
    def _aside(self) -> _Aside:
        return self._asides.setdefault(self.queue, _Aside())

    @classmethod
    def reset(cls, url: str | None = None) -> None:
        """Forget what was sent to the queue of one URL, or to all: waiting and delayed messages, deduplication ids."""
        for each in [*cls.local_queues] if url is None else [url]:
            cls.local_queues.pop(each, None)

    @property
    def attributes(self) -> dict[str, Any]:
        """The same attributes as `SQS.Queue.attributes`, always current."""
        self._let_in()
        return {
            "QueueArn": f"LocalQueue replacing: {self.url}",
            "ApproximateNumberOfMessages": self.queue.qsize(),
            "ApproximateNumberOfMessagesNotVisible": 0,
            "ApproximateNumberOfMessagesDelayed": len(self._aside.delayed),
            "FifoQueue": True,
            "ContentBasedDeduplication": False,
        }

    def load(self) -> None:
        """Does nothing: `attributes` is never out of date."""
        logger.info("Noop load!")

    def purge(self) -> None:
        """Drop every waiting message, delayed ones included."""
        self._require_home()
        with self._aside.lock:
            self._aside.delayed.clear()
        try:
            while True:
                self.queue.get_nowait()
        except queue.Empty:
            pass

    def send_message(self, **kwargs: Any) -> dict[str, str]:
        """Append a message: `MessageBody`, and `MessageAttributes`, `DelaySeconds`, `MessageGroupId` and
        `MessageDeduplicationId` if any.

        :raises TypeError: for a body that is not a string, as with boto3; nothing is appended then.
        :raises botocore.exceptions.ClientError: for what SQS refuses, with its code; nothing is appended then.
        """
        self._require_home()
        body = kwargs.get("MessageBody")
        if not isinstance(body, str):
            raise TypeError(f"MessageBody must be a string, not {body!r}")
        wrong = wrong_message(kwargs, self.url.endswith(".fifo"), _size(kwargs))
        if wrong:
            raise refusal("SendMessage", *wrong)
        message = self._append(kwargs)
        return {"MD5OfMessageBody": md5(body), "MessageId": message.message_id}

    def send_messages(self, *, Entries: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Append `Entries`, up to 10 messages and 1 MiB: each as in `send_message`, and with an `Id`.

        Like SQS it answers for each entry, in `Successful` or `Failed`, and refuses a request that is wrong as a whole.

        :raises TypeError: for a body that is not a string; nothing is appended then.
        :raises botocore.exceptions.ClientError: for no entries or too many, duplicate ids, and more than 1 MiB.
        """
        self._require_home()
        for entry in Entries:
            if not isinstance(entry.get("MessageBody"), str):
                raise TypeError(f"MessageBody must be a string, not {entry.get('MessageBody')!r}")
        wrong = wrong_entries(Entries, "SendMessage") or too_long(sum(map(_size, Entries)))
        if wrong:
            raise refusal("SendMessageBatch", *wrong)
        answer: dict[str, list[dict[str, Any]]] = {"Successful": [], "Failed": []}
        for entry in Entries:
            wrong = wrong_message(entry, self.url.endswith(".fifo"), _size(entry))
            if wrong:
                code, text = wrong
                answer["Failed"].append({"Id": entry["Id"], "SenderFault": True, "Code": code, "Message": text})
                continue
            message = self._append(entry)
            answer["Successful"].append(
                {"Id": entry["Id"], "MessageId": message.message_id, "MD5OfMessageBody": message.md5_of_body}
            )
        return answer

    def _append(self, given: Mapping[str, Any]) -> LocalMessage:
        message = LocalMessage(given["MessageBody"], {}, given.get("MessageAttributes", {}))
        sent = {"SentTimestamp": str(int(time.time() * 1000)), "ApproximateReceiveCount": "1"}
        trace = given.get("MessageSystemAttributes", {}).get(TRACE_HEADER)
        asked = {TRACE_HEADER: trace and trace["StringValue"], **given}
        message.attributes = {**sent, **{name: asked[name] for name in _KEPT if asked.get(name) is not None}}
        if "MessageDeduplicationId" in given:
            earlier = self._aside.earlier(given["MessageDeduplicationId"], message)
            if earlier is not message:
                return earlier
        delay = given.get("DelaySeconds", 0)
        if delay:
            with self._aside.lock:
                heapq.heappush(self._aside.delayed, (time.monotonic() + delay, next(_numbers), message))
        else:
            self.queue.put_nowait(message)
        return message

    def _let_in(self) -> float:
        """Append the delayed messages whose time has come. Returns the seconds until the next one's comes."""
        if not self._asides:  # nothing was ever delayed
            return math.inf
        with self._aside.lock:
            delayed, now = self._aside.delayed, time.monotonic()
            while delayed and delayed[0][0] <= now:
                self.queue.put_nowait(heapq.heappop(delayed)[2])
            return delayed[0][0] - now if delayed else math.inf

    def receive_messages(self, **kwargs: Any) -> list[LocalMessage]:
        """Like SQS: as soon as there is a message, all that are there, up to the maximum; nothing after the wait.

        `WaitTimeSeconds` (0 to 20, default 20), `MaxNumberOfMessages` (1 to 10, default 1); ValueError for others.
        """
        self._require_home()
        wait = check_whole_seconds("WaitTimeSeconds", kwargs.get("WaitTimeSeconds", MAX_WAIT_SECONDS), MAX_WAIT_SECONDS)
        most = kwargs.get("MaxNumberOfMessages", 1)
        if not is_whole(most) or not 1 <= most <= MAX_BATCH_ENTRIES:
            raise ValueError(f"MaxNumberOfMessages must be a whole number from 1 to {MAX_BATCH_ENTRIES}, not {most!r}")
        received: list[LocalMessage] = []
        try:
            received.append(self._first(wait))
            while len(received) < most:
                received.append(self.queue.get_nowait())
        except queue.Empty:
            pass
        for message in received:
            with contextlib.suppress(AttributeError):  # anything can be put into a queue by hand
                message.queue_url = self.url
        return received

    def _first(self, wait: float) -> LocalMessage:
        self._let_in()
        try:
            return self.queue.get_nowait()
        except queue.Empty:
            if not wait:
                raise
        deadline = time.monotonic() + wait
        while True:
            patience = min(_LOOK_SECONDS, self._let_in(), deadline - time.monotonic())
            try:
                # Python 3.10 waits for ever if a timeout is over before the wait begins: SimpleQueue then takes the
                # negative remainder for no timeout.
                if patience <= 0:
                    return self.queue.get_nowait()
                return self.queue.get(timeout=max(_SHORTEST_WAIT_SECONDS, patience))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise

    def __getattr__(self, name: str) -> NoReturn:
        # Callers that send batches look for these on the class, where they must not be.
        if name in ("delete_messages", "change_message_visibility_batch"):
            raise AttributeError(
                f"LocalQueue has no {name}: ask each message, or use sqstaskmaster.testing.SimulatedQueue"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"LocalQueue(url={self.url!r})"


def _size(given: Mapping[str, Any]) -> int:
    """The bytes of a message without its attributes, which are kept whatever they are."""
    return message_bytes({"MessageBody": given["MessageBody"]})
