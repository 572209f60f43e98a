"""SimulatedQueue: SQS in memory as its promises have it, for tests of what happens to messages.

Visibility, redelivery, receive counts, redrive to a dead-letter queue, delays, the 12 hours of a claim, FIFO groups and
lost claims, on a clock that the test moves; and faults to order. For what a message says, `LocalQueue` is enough.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqstaskmaster._claim import clock
from sqstaskmaster._sqs.limits import (
    DEDUPLICATION_SECONDS,
    MAX_BATCH_ENTRIES,
    MAX_VISIBILITY_SECONDS,
    MAX_WAIT_SECONDS,
    check_whole,
    check_whole_seconds,
    is_number,
)
from sqstaskmaster._sqs.refusals import SYSTEM_ATTRIBUTES, md5, refusal, wrong_batch, wrong_message

_OPERATIONS = (
    "SendMessage",
    "SendMessageBatch",
    "ReceiveMessage",
    "DeleteMessage",
    "DeleteMessageBatch",
    "ChangeMessageVisibility",
    "ChangeMessageVisibilityBatch",
    "GetQueueAttributes",
    "PurgeQueue",
)

_ACCOUNT = "https://sqs.simulated/123456789012"
_numbers = itertools.count(1)


class SimulatedQueue:
    """A queue in memory that does what SQS promises, for TaskManager in place of boto3's `SQS.Queue`.

    ::

        from sqstaskmaster import MessageHandler, TaskManager
        from sqstaskmaster.testing import SimulatedQueue


        class Fail(MessageHandler):
            def run(self):
                raise KeyError("why")


        queue = SimulatedQueue(max_receive_count=2)
        manager = TaskManager(queue.url, queue_constructor=SimulatedQueue)
        manager.submit("Fail")
        for receive in (1, 2):
            for task, kwargs, message in manager.task_generator(wait_time=0, sqs_timeout=30, burst=True):
                assert message.attributes["ApproximateReceiveCount"] == str(receive)
                with Fail(message, sqs_timeout=30, alarm_timeout=10, hard_timeout=60) as handler:
                    handler.run()
                assert handler.outcome == "failed"
            queue.advance(30)  # its claim ends, and the message comes back
        assert not queue.receive_messages()  # two receives were allowed
        [dead] = queue.dead_letter_queue.receive_messages()
        assert dead.body == '{"task": "Fail", "kwargs": {}}'

    All queues made for one URL are one queue, for as long as one of them is kept. It may be used from several threads.

    Time runs as it does, and `advance` moves it ahead: claims end, delays are over, polls that wait come to their end.
    A handler that is to see the same time is given it: `Fail(message, ..., clock=queue.now)`.

    Where SQS leaves it open, this one does what tests should be ready for: an extension of a claim that has lapsed is
    answered as if nothing had happened, by an old receipt handle too, and on a standard queue that handle deletes. Not
    simulated: retention, the limit of messages in flight, permissions, samples of the queue that miss messages.

    :param url: of the queue; one that ends in .fifo makes it a FIFO queue. Default: one of its own.
    :param visibility_timeout: seconds, 0 to 43200, for receives that do not say.
    :param max_receive_count: of the redrive policy: from 1 on there is a `dead_letter_queue`, None: there is none.
    :param content_based_deduplication: of a FIFO queue.
    :raises ValueError: for a value out of its range; for settings other than those that the queue of this URL has.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        visibility_timeout: int = 30,
        max_receive_count: int | None = None,
        content_based_deduplication: bool = False,
    ) -> None:
        self.url: str = url or f"{_ACCOUNT}/queue-{next(_numbers)}"
        settings = _Settings(
            check_whole_seconds("visibility_timeout", visibility_timeout, MAX_VISIBILITY_SECONDS),
            None if max_receive_count is None else check_whole("max_receive_count", max_receive_count, 1, 1000),
            bool(content_based_deduplication),
        )
        with _making:
            found = _stores.get(self.url)
            if found is None:
                found = _made(self.url, settings)
            elif settings not in (found.settings, _Settings()):
                raise ValueError(f"There is a queue {self.url!r} with other settings: give it a URL of its own")
        self._store = found

    @property
    def dead_letter_queue(self) -> SimulatedQueue | None:
        """Where messages go that were received `max_receive_count` times."""
        dead_letters = self._store.dead_letters
        return None if dead_letters is None else SimulatedQueue(dead_letters.url)

    # -- its clock, and faults -----------------------------------------------------------------------------------

    def now(self) -> float:
        """The queue's time, in seconds: the clock of claims, and what `advance` has added. Its beginning is no date."""
        return self._store.clock.now()

    def advance(self, seconds: float) -> None:
        """Move the time ahead, of this queue and of its dead-letter queue.

        :raises ValueError: for anything but a number of seconds, 0 or more.
        """
        if not is_number(seconds) or seconds < 0:
            raise ValueError(f"seconds must be a number, 0 or more, not {seconds!r}")
        self._store.clock.advance(seconds)

    def throttle(self, operation: str, times: int = 1) -> None:
        """Have the next calls of an operation ("SendMessage", say) refused as one too many; nothing is done then.

        :raises ValueError: for a name that is no operation of SQS.
        """
        error = lambda: refusal(operation, "RequestThrottled", "Rate exceeded")  # noqa: E731
        self._store.order(operation, times, _Fault(error, carried_out=False))

    def cut(self, operation: str, times: int = 1, *, carried_out: bool = False) -> None:
        """Have the next calls of an operation end without an answer, by botocore's ReadTimeoutError.

        :param carried_out: it is the answer that is lost, and what was asked for is done.
        :raises ValueError: for a name that is no operation of SQS.
        """
        self._store.order(operation, times, _Fault(lambda: _no_answer(self.url), carried_out))

    def fail_entries(self, operation: str, *places: int, times: int = 1) -> None:
        """Have entries of the next batches fail, by their places from 0 on; the others are carried out.

        :param operation: "SendMessageBatch", "DeleteMessageBatch" or "ChangeMessageVisibilityBatch".
        :raises ValueError: for any other.
        """
        if not operation.endswith("Batch"):
            raise ValueError(f"Only a batch has entries: {', '.join(o for o in _OPERATIONS if o.endswith('Batch'))}")
        self._store.order(operation, times, _Fault(None, carried_out=True, places=frozenset(places)))

    # -- what boto3's SQS.Queue has ------------------------------------------------------------------------------

    @property
    def attributes(self) -> dict[str, str]:
        """As SQS tells them: text. Always as of now."""
        return self._store.attributes()

    def load(self) -> None:
        """Ask for the attributes."""
        self._store.call("GetQueueAttributes", lambda: None)

    def purge(self) -> None:
        """Drop every message, those in flight too."""
        self._store.call("PurgeQueue", self._store.messages.clear)

    def send_message(self, **kwargs: Any) -> dict[str, str]:
        """See `LocalQueue.send_message`: the same checks, and on a FIFO queue that of the deduplication id."""
        _check_body(kwargs)
        store = self._store
        wrong = store.wrong(kwargs)
        if wrong:
            raise refusal("SendMessage", *wrong)
        answer: dict[str, str] = store.call("SendMessage", lambda: store.append(kwargs))
        return answer

    def send_messages(self, *, Entries: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """See `LocalQueue.send_messages`."""
        for entry in Entries:
            _check_body(entry)
        wrong = wrong_batch(Entries)
        if wrong:
            raise refusal("SendMessageBatch", *wrong)
        store = self._store

        def send(entry: Mapping[str, Any]) -> dict[str, str]:
            wrong = store.wrong(entry)
            if wrong:
                raise refusal("SendMessage", *wrong)
            return store.append(entry)

        return store.batch("SendMessageBatch", Entries, send)

    def receive_messages(self, **kwargs: Any) -> list[Any]:
        """Up to `MaxNumberOfMessages` (1 to 10, default 1), as soon as there is one, or none after `WaitTimeSeconds` (0
        to 20, default 0). With `VisibilityTimeout`, `AttributeNames` and `MessageAttributeNames` as SQS has them.
        """
        store = self._store
        most = kwargs.get("MaxNumberOfMessages", 1)
        wait = kwargs.get("WaitTimeSeconds", 0)
        hidden = kwargs.get("VisibilityTimeout", store.settings.visibility_timeout)
        try:
            check_whole("MaxNumberOfMessages", most, 1, MAX_BATCH_ENTRIES)
            check_whole_seconds("WaitTimeSeconds", wait, MAX_WAIT_SECONDS)
            check_whole_seconds("VisibilityTimeout", hidden, MAX_VISIBILITY_SECONDS)
        except ValueError as error:
            raise refusal("ReceiveMessage", "InvalidParameterValue", str(error)) from None
        names = kwargs.get("AttributeNames", ()), kwargs.get("MessageAttributeNames", ())
        received = store.call("ReceiveMessage", lambda: store.receive(most, wait, hidden))
        return [_Message(store, message, handle, *names) for message, handle in received]

    def delete_messages(self, *, Entries: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Up to 10, each with an answer of its own."""
        return self._store.batch(
            "DeleteMessageBatch", Entries, lambda entry: self._store.delete(entry["ReceiptHandle"])
        )

    def change_message_visibility_batch(
        self, *, Entries: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[dict[str, Any]]]:
        """Up to 10, each with an answer of its own."""
        return self._store.batch(
            "ChangeMessageVisibilityBatch",
            Entries,
            lambda entry: self._store.change(entry["ReceiptHandle"], entry["VisibilityTimeout"]),
        )

    def __repr__(self) -> str:
        return f"SimulatedQueue(url={self.url!r})"


class _Message:
    """One receive of one message, with the parts of boto3's `SQS.Message` that a consumer uses."""

    def __init__(
        self, store: _Store, message: _Stored, handle: str, names: Sequence[str], attribute_names: Sequence[str]
    ) -> None:
        self.body = message.body
        self.message_id = message.message_id
        self.receipt_handle = handle
        self.md5_of_body = md5(message.body)
        self.queue_url = store.url
        # SQS sends what was asked for, and boto3 has None where that is nothing.
        self.attributes = _chosen(message.system_attributes(), names)
        self.message_attributes = _chosen(message.message_attributes, attribute_names)
        self._store = store

    def change_visibility(self, *, VisibilityTimeout: int) -> None:
        """Have the claim end in so many seconds from now."""
        change = self._store.change
        self._store.call("ChangeMessageVisibility", lambda: change(self.receipt_handle, VisibilityTimeout))

    def delete(self) -> None:
        """Delete it. Once more does no harm."""
        self._store.call("DeleteMessage", lambda: self._store.delete(self.receipt_handle))

    def Queue(self) -> SimulatedQueue:
        """The queue it was received from."""
        return SimulatedQueue(self.queue_url)

    def __repr__(self) -> str:
        return f"SimulatedMessage(message_id={self.message_id!r})"


# -- what is behind it ------------------------------------------------------------------------------------------------


class _Settings:
    """What a queue was made with."""

    def __init__(
        self, visibility_timeout: int = 30, max_receive_count: int | None = None, by_content: bool = False
    ) -> None:
        self.visibility_timeout = visibility_timeout
        self.max_receive_count = max_receive_count
        self.by_content = by_content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Settings) and vars(self) == vars(other)


class _Clock:
    """The time of a queue and its dead-letter queue, and the one lock of both."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._moved = 0.0

    def now(self) -> float:
        return clock.now() + self._moved

    def advance(self, seconds: float) -> None:
        with self.changed:
            self._moved += seconds
            self.changed.notify_all()


class _Stored:
    """One message in a queue. `visible_at`: when it may be received; `claimed_at`: when it was received last."""

    def __init__(self, given: Mapping[str, Any], number: int, now: float) -> None:
        self.body: str = given["MessageBody"]
        self.message_attributes: dict[str, Any] = dict(given.get("MessageAttributes", {}))
        self.message_id = str(uuid.uuid4())
        self.given = {name: given[name] for name in SYSTEM_ATTRIBUTES if name in given}
        self.sent_at = time.time()
        self.number = number
        self.visible_at = now + given.get("DelaySeconds", 0)
        self.receives = 0
        self.claimed_at = -math.inf
        self.first_received: float | None = None
        self.handles: list[str] = []

    @property
    def group(self) -> str | None:
        return self.given.get("MessageGroupId")

    def is_claimed(self, now: float) -> bool:
        return bool(self.receives) and self.visible_at > now

    def receive(self, now: float, hidden: int) -> str:
        """Its new receipt handle."""
        self.receives += 1
        self.claimed_at = now
        self.first_received = self.first_received or time.time()
        self.visible_at = now + hidden
        self.handles.append(f"{self.message_id}#{self.receives}")
        return self.handles[-1]

    def system_attributes(self) -> dict[str, str]:
        found = {
            "SenderId": "simulated",
            "SentTimestamp": str(int(self.sent_at * 1000)),
            "ApproximateReceiveCount": str(self.receives),
            "ApproximateFirstReceiveTimestamp": str(int((self.first_received or self.sent_at) * 1000)),
            **self.given,
        }
        return {**found, "SequenceNumber": f"{self.number:020}"} if "MessageDeduplicationId" in found else found


class _Fault:
    """One fault that was ordered. `error` gives what is raised, None where only entries of a batch fail."""

    def __init__(
        self, error: Callable[[], Exception] | None, carried_out: bool, places: frozenset[int] = frozenset()
    ) -> None:
        self.error = error
        self.carried_out = carried_out
        self.places = places


class _Store:
    """The messages of one queue, and what is done with them."""

    def __init__(self, url: str, settings: _Settings, clock: _Clock, dead_letters: _Store | None) -> None:
        self.url = url
        self.settings = settings
        self.clock = clock
        self.dead_letters = dead_letters
        self.fifo = url.endswith(".fifo")
        self.messages: list[_Stored] = []
        self._faults: dict[str, collections.deque[_Fault]] = {name: collections.deque() for name in _OPERATIONS}
        self._sent = itertools.count(1)
        self._known: dict[str, tuple[float, _Stored]] = {}  # deduplication ids, and until when

    # -- calls ---------------------------------------------------------------------------------------------------

    def order(self, operation: str, times: int, fault: _Fault) -> None:
        if operation not in self._faults:
            raise ValueError(f"{operation!r} is no operation that can fail: one of {', '.join(_OPERATIONS)}")
        self._faults[operation].extend([fault] * check_whole("times", times, 1, 1_000_000))

    def call(self, operation: str, function: Callable[[], Any]) -> Any:
        """What the function gives, as SQS would answer it: with the next fault that was ordered."""
        fault = self._next_fault(operation)
        if fault is None or fault.carried_out:
            with self.clock.changed:
                answer = function()
                self.clock.changed.notify_all()
        if fault is not None and fault.error is not None:
            raise fault.error()
        return answer

    def batch(
        self, operation: str, entries: Sequence[Mapping[str, Any]], function: Callable[[Mapping[str, Any]], Any]
    ) -> dict[str, list[dict[str, Any]]]:
        from botocore.exceptions import ClientError

        fault = self._next_fault(operation)
        if fault is not None and fault.error is not None and not fault.carried_out:
            raise fault.error()
        answer: dict[str, list[dict[str, Any]]] = {"Successful": [], "Failed": []}
        for place, entry in enumerate(entries):
            if fault is not None and place in fault.places:
                said = {"Code": "InternalError", "Message": "It was ordered to fail", "SenderFault": False}
                answer["Failed"].append({"Id": entry["Id"], **said})
                continue
            try:
                with self.clock.changed:
                    answer["Successful"].append({"Id": entry["Id"], **(function(entry) or {})})
                    self.clock.changed.notify_all()
            except ClientError as error:
                said = {"Code": error.response["Error"]["Code"], "Message": error.response["Error"]["Message"]}
                answer["Failed"].append({"Id": entry["Id"], "SenderFault": True, **said})
        if fault is not None and fault.error is not None:
            raise fault.error()
        return answer

    def _next_fault(self, operation: str) -> _Fault | None:
        with self.clock.changed:
            faults = self._faults[operation]
            return faults.popleft() if faults else None

    # -- sending -------------------------------------------------------------------------------------------------

    def wrong(self, given: Mapping[str, Any]) -> tuple[str, str] | None:
        found = wrong_message(given, self.fifo)
        if found or not self.fifo or self.settings.by_content or "MessageDeduplicationId" in given:
            return found
        text = "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided"
        return "InvalidParameterValue", text

    def append(self, given: Mapping[str, Any]) -> dict[str, str]:
        now = self.clock.now()
        if self.fifo and "MessageDeduplicationId" not in given:
            given = {**given, "MessageDeduplicationId": md5(given["MessageBody"])}
        message = _Stored(given, next(self._sent), now)
        if self.fifo:
            self._known = {name: kept for name, kept in self._known.items() if kept[0] > now}
            fresh = now + DEDUPLICATION_SECONDS, message
            _, earlier = self._known.setdefault(message.given["MessageDeduplicationId"], fresh)
            if earlier is not message:
                return {"MD5OfMessageBody": md5(earlier.body), "MessageId": earlier.message_id}
        self.messages.append(message)
        return {"MD5OfMessageBody": md5(message.body), "MessageId": message.message_id}

    # -- receiving -----------------------------------------------------------------------------------------------

    def receive(self, most: int, wait: float, hidden: int) -> list[tuple[_Stored, str]]:
        until = self.clock.now() + wait
        while True:
            now = self.clock.now()
            received = self._take(most, hidden, now)
            if received or now >= until:
                return received
            soonest = min((m.visible_at for m in self.messages if m.visible_at > now), default=math.inf)
            self.clock.changed.wait(min(until, soonest) - now)

    def _take(self, most: int, hidden: int, now: float) -> list[tuple[_Stored, str]]:
        taken: list[tuple[_Stored, str]] = []
        held = {message.group for message in self.messages if message.is_claimed(now)} if self.fifo else set()
        for message in list(self.messages):
            if len(taken) == most:
                break
            if message.visible_at > now or (self.fifo and message.group in held):
                continue
            if self.dead_letters is not None and message.receives >= (self.settings.max_receive_count or 0):
                self.messages.remove(message)
                self.dead_letters.messages.append(message)
                continue
            taken.append((message, message.receive(now, hidden)))
        return taken

    # -- claims --------------------------------------------------------------------------------------------------

    def change(self, handle: str, seconds: int) -> None:
        operation, now = "ChangeMessageVisibility", self.clock.now()
        message = self._by(handle)
        if message is None:
            text = "Value for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available "
            raise refusal(operation, "InvalidParameterValue", f"{text}for visibility timeout change.")
        try:
            check_whole_seconds("VisibilityTimeout", seconds, MAX_VISIBILITY_SECONDS)
        except ValueError as error:
            raise refusal(operation, "InvalidParameterValue", str(error)) from None
        if now + seconds > message.claimed_at + MAX_VISIBILITY_SECONDS:
            text = f"Total VisibilityTimeout for the message is beyond the limit [{MAX_VISIBILITY_SECONDS} seconds]"
            raise refusal(operation, "InvalidParameterValue", f"Value {seconds} for it is invalid. Reason: {text}")
        if message.handles[-1] == handle:
            message.visible_at = now + seconds

    def delete(self, handle: str) -> None:
        message = self._by(handle)
        if message is None:
            return
        is_old = message.handles[-1] != handle or not message.is_claimed(self.clock.now())
        if self.fifo and is_old:
            text = f"Value {handle} for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired."
            raise refusal("DeleteMessage", "InvalidParameterValue", text)
        self.messages.remove(message)

    def _by(self, handle: str) -> _Stored | None:
        return next((message for message in self.messages if handle in message.handles), None)

    def attributes(self) -> dict[str, str]:
        with self.clock.changed:
            now = self.clock.now()
            hidden = [message for message in self.messages if message.visible_at > now]
            claimed = sum(message.is_claimed(now) for message in hidden)
            counts = len(self.messages) - len(hidden), claimed, len(hidden) - claimed
        visible, in_flight, delayed = map(str, counts)
        found = {
            "QueueArn": _arn(self.url),
            "ApproximateNumberOfMessages": visible,
            "ApproximateNumberOfMessagesNotVisible": in_flight,
            "ApproximateNumberOfMessagesDelayed": delayed,
            "VisibilityTimeout": str(self.settings.visibility_timeout),
        }
        if self.dead_letters is not None:
            policy = {
                "deadLetterTargetArn": _arn(self.dead_letters.url),
                "maxReceiveCount": self.settings.max_receive_count,
            }
            found["RedrivePolicy"] = json.dumps(policy)
        if self.fifo:
            found.update(FifoQueue="true", ContentBasedDeduplication=str(self.settings.by_content).lower())
        return found


# Kept by the queues that are kept. The lock lets one thread at a time make one.
_stores: weakref.WeakValueDictionary[str, _Store] = weakref.WeakValueDictionary()
_making = threading.RLock()


def _made(url: str, settings: _Settings) -> _Store:
    shared, dead_letters = _Clock(), None
    if settings.max_receive_count is not None:
        name = f"{url.removesuffix('.fifo')}-dead{'.fifo' if url.endswith('.fifo') else ''}"
        if name in _stores:
            raise ValueError(f"There is a queue {name!r} already, the name of this one's dead-letter queue")
        dead_letters = _Store(name, _Settings(), shared, None)
        _stores[name] = dead_letters
    return _stores.setdefault(url, _Store(url, settings, shared, dead_letters))


def _arn(url: str) -> str:
    return f"arn:aws:sqs:simulated:123456789012:{url.rpartition('/')[2]}"


def _chosen(attributes: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any] | None:
    """Those that were asked for, None for none at all."""
    prefixes = tuple(name[:-2] for name in names if name.endswith(".*"))
    wanted = {
        name: value
        for name, value in attributes.items()
        if "All" in names or name in names or (prefixes and name.startswith(prefixes))
    }
    return wanted or None


def _check_body(given: Mapping[str, Any]) -> None:
    if not isinstance(given.get("MessageBody"), str):
        raise TypeError(f"MessageBody must be a string, not {given.get('MessageBody')!r}")


def _no_answer(url: str) -> Exception:
    from botocore.exceptions import ReadTimeoutError

    error: Exception = ReadTimeoutError(endpoint_url=url)
    return error
