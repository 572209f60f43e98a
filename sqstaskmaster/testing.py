"""SimulatedQueue: SQS in memory, as AWS promises it, for tests of what happens to messages.

Visibility, redelivery, receive counts, redrive to a dead-letter queue, delays, the 12 hours of a claim, FIFO groups and
lost claims, on a clock that the test moves; and faults on request. It refuses what AWS refuses, with AWS's codes and
texts, and what boto3 would not send. To test only what messages contain, `LocalQueue` is enough.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

from sqstaskmaster._memory import service
from sqstaskmaster._memory.calls import Calls
from sqstaskmaster._memory.clock import SimulatedClock as SimulatedClock
from sqstaskmaster._memory.home import AtHome
from sqstaskmaster._memory.requests import (
    chosen,
    md5_of_attributes,
    wrong_batch,
    wrong_receive,
    wrong_send,
    wrong_send_batch,
)
from sqstaskmaster._memory.store import ACCOUNT, Received, Refused, Settings, Store, WaitingReceive
from sqstaskmaster._sqs.limits import (
    MAX_DELAY_SECONDS,
    MAX_MESSAGE_BYTES,
    MAX_VISIBILITY_SECONDS,
    MAX_WAIT_SECONDS,
    check_whole,
    check_whole_seconds,
)

if TYPE_CHECKING:
    # Type checkers know these on any Python; typing has them from 3.11 on.
    from typing_extensions import Required, Unpack

    class _Message(TypedDict, total=False):
        MessageBody: Required[str]
        DelaySeconds: int
        MessageAttributes: Mapping[str, Mapping[str, Any]]
        MessageSystemAttributes: Mapping[str, Mapping[str, Any]]
        MessageDeduplicationId: str
        MessageGroupId: str

    class _Receive(TypedDict, total=False):
        AttributeNames: Sequence[str]
        MessageSystemAttributeNames: Sequence[str]
        MessageAttributeNames: Sequence[str]
        MaxNumberOfMessages: int
        VisibilityTimeout: int
        WaitTimeSeconds: int
        ReceiveRequestAttemptId: str


_BASE = f"https://sqs.simulated/{ACCOUNT}"
_numbers = itertools.count(1)

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html
_SHORTEST_RETENTION, _LONGEST_RETENTION = 60, 14 * 24 * 60 * 60
_SMALLEST_MESSAGE = 1024
_SCOPES = ("queue", "messageGroup")

_ELSEWHERE = "use a real SQS server for it (moto_server, with AWS_ENDPOINT_URL_SQS in the environment)"

# The attributes that can be set, and the settings that they stand for.
_ATTRIBUTES = {
    "VisibilityTimeout": "visibility_timeout",
    "DelaySeconds": "delay_seconds",
    "ReceiveMessageWaitTimeSeconds": "wait_time_seconds",
    "MaximumMessageSize": "maximum_message_size",
    "MessageRetentionPeriod": "retention_seconds",
    "ContentBasedDeduplication": "content_based_deduplication",
    "DeduplicationScope": "deduplication_scope",
}


class SimulatedQueue(AtHome):
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

    All queues made for one URL are one queue, with the settings of the first, until `reset`. It may be used from
    several threads, but only in the process that made it.

    Time stands still until `advance`, or a poll that waits, moves it: see `SimulatedClock`. A poll with
    `WaitTimeSeconds=20` takes no time: it moves the clock to what comes next, 20 seconds at most.

    Its methods are those of boto3's `SQS.Queue`, with its parameters and answers. What boto3 would not send raises
    `botocore.exceptions.ParamValidationError`, what AWS refuses `botocore.exceptions.ClientError` with AWS's code and
    text; `exceptions` has its classes.

    Where SQS leaves it open, this queue does what tests should be ready for: it answers an extension of a lapsed claim
    as if nothing had happened, even with an old receipt handle, and on a standard queue that handle still deletes.

    Not simulated, and refused: encryption (KMS), permissions and policies, tags, `RedriveAllowPolicy`, high throughput
    for FIFO, message move tasks, a queue's own deletion. Not simulated, without an error: the limit of messages in
    flight, the order of fair queues, samples of the queue that miss messages, statistics that lag.

    :param url: the queue's URL; one that ends in .fifo makes it a FIFO queue. Default: a new one.
    :param visibility_timeout: seconds, 0 to 43200, the default for receives.
    :param max_receive_count: of the redrive policy, 1 to 1000: then there is a `dead_letter_queue`. None: no policy.
    :param content_based_deduplication: for a FIFO queue.
    :param deduplication_scope: for a FIFO queue: "queue" or "messageGroup".
    :param delay_seconds: 0 to 900, the default for messages; on a FIFO queue for all.
    :param wait_time_seconds: 0 to 20, the default for receives.
    :param maximum_message_size: bytes, 1024 to 1048576.
    :param retention_seconds: 60 to 1209600; older messages are dropped.
    :param clock: that of another queue, to share its time. Default: its own, shared with its dead-letter queue.
    :raises ValueError: for a value out of its range; for settings that differ from those of the queue with this URL.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        visibility_timeout: int = 30,
        max_receive_count: int | None = None,
        content_based_deduplication: bool = False,
        deduplication_scope: str = "queue",
        delay_seconds: int = 0,
        wait_time_seconds: int = 0,
        maximum_message_size: int = MAX_MESSAGE_BYTES,
        retention_seconds: int = 4 * 24 * 60 * 60,
        clock: SimulatedClock | None = None,
    ) -> None:
        self.url: str = url or f"{_BASE}/queue-{next(_numbers)}"
        if deduplication_scope not in _SCOPES:
            raise ValueError(f"deduplication_scope must be one of {', '.join(_SCOPES)}, not {deduplication_scope!r}")
        settings = Settings(
            check_whole_seconds("visibility_timeout", visibility_timeout, MAX_VISIBILITY_SECONDS),
            None if max_receive_count is None else check_whole("max_receive_count", max_receive_count, 1, 1000),
            bool(content_based_deduplication),
            deduplication_scope,
            check_whole_seconds("delay_seconds", delay_seconds, MAX_DELAY_SECONDS),
            check_whole_seconds("wait_time_seconds", wait_time_seconds, MAX_WAIT_SECONDS),
            check_whole("maximum_message_size", maximum_message_size, _SMALLEST_MESSAGE, MAX_MESSAGE_BYTES),
            check_whole("retention_seconds", retention_seconds, _SHORTEST_RETENTION, _LONGEST_RETENTION),
        )
        of_fifo = (settings.content_based_deduplication, settings.deduplication_scope)
        if of_fifo != (False, "queue") and not self.url.endswith(".fifo"):
            raise ValueError(f"Only FIFO queues deduplicate (their URLs end in .fifo), not {self.url!r}")
        self._home = _found(self.url, settings, clock)

    @classmethod
    def reset(cls, url: str | None = None) -> None:
        """Forget the messages, deduplication ids and faults of one queue and its dead-letter queue, or of all.

        Queues in use keep their settings and their time; a test that makes one of them again may give it other
        settings. Call it at the beginning of each test, so that nothing is left from an earlier one.

        :param url: that of the one queue; None: all.
        """
        with _making:
            for home in list(_homes.values()):
                if url is None or home.store.url == url:
                    home.reset()
                    _kept.pop(home.store.url, None)
                    if url is not None and home.dead_letters is not None:
                        home.dead_letters.reset()

    @classmethod
    @contextlib.contextmanager
    def in_place_of(cls, manager: Any, **settings: Any) -> Iterator[SimulatedQueue]:
        """A block in which a TaskManager, say of a production module, has an empty simulated queue with its URL.

        ::

            with SimulatedQueue.in_place_of(manager, max_receive_count=3) as queue:
                manager.submit("Train")

        :param manager: the TaskManager; everything else that uses it (a Worker, a producer) uses the queue too.
        :param settings: those of the queue.
        """
        cls.reset(manager.url)
        queue = cls(manager.url, **settings)
        before = manager._connection
        manager._connect(before.made_by(cls).with_queue(queue))
        try:
            yield queue
        finally:
            manager._connect(before)
            cls.reset(manager.url)

    @property
    def dead_letter_queue(self) -> SimulatedQueue:
        """Where messages go after `max_receive_count` receives.

        :raises ValueError: if there is none.
        """
        dead_letters = self._home.dead_letters
        if dead_letters is None:
            raise ValueError(f"{self!r} has no dead-letter queue: make it with max_receive_count")
        return SimulatedQueue(dead_letters.store.url)

    @property
    def exceptions(self) -> Any:
        """SQS's error classes, as on a boto3 client: `queue.exceptions.PurgeQueueInProgress`."""
        return service.exceptions()

    # -- its clock, and faults -----------------------------------------------------------------------------------

    @property
    def clock(self) -> SimulatedClock:
        """Its time, and that of its dead-letter queue."""
        return self._home.store.clock

    def now(self) -> float:
        """The queue's time, in seconds. It does not start at a date."""
        return self.clock.now()

    def advance(self, seconds: float, *, suspended: bool = False) -> None:
        """Move the time of this queue and its dead-letter queue ahead: see `SimulatedClock.advance`.

        :param seconds: 0 or more.
        :param suspended: as if this process had been stopped meanwhile.
        :raises ValueError: for anything but a number of seconds, 0 or more.
        :raises UnsupportedContext: in a task's process: the queue is in its worker.
        """
        self.clock.advance(seconds, suspended=suspended)

    def throttle(self, operation: str, times: int = 1) -> None:
        """Have the next calls of an operation ("SendMessage", say) throttled; they are not carried out.

        :raises ValueError: for a name that is not an operation of SQS.
        """
        self._home.calls.throttle(operation, times)

    def cut(self, operation: str, times: int = 1, *, carried_out: bool = False) -> None:
        """Have the next calls of an operation end without an answer, with botocore's ReadTimeoutError.

        :param carried_out: whether the request is carried out, and only its answer lost.
        :raises ValueError: for a name that is not an operation of SQS.
        """
        self._home.calls.cut(operation, times, carried_out)

    def fail_entries(self, operation: str, *places: int, times: int = 1) -> None:
        """Have entries of the next batches fail, given by their positions from 0 on; the others are carried out.

        :param operation: "SendMessageBatch", "DeleteMessageBatch" or "ChangeMessageVisibilityBatch".
        :raises ValueError: for any other.
        """
        self._home.calls.fail_entries(operation, places, times)

    def deliver_twice(self, times: int = 1) -> None:
        """Have the messages of the next receives delivered again by the following receive, though they are claimed or
        even deleted by then, as can happen on a standard queue.

        :raises ValueError: for a FIFO queue, on which that never happens.
        """
        self._home.require_standard("deliver_twice")
        self._home.store.twice += check_whole("times", times, 1, 1_000_000)

    def deliver_out_of_order(self, times: int = 1) -> None:
        """Have the next receives bring the messages sent last, as can happen on a standard queue.

        :raises ValueError: for a FIFO queue, which keeps its order.
        """
        self._home.require_standard("deliver_out_of_order")
        self._home.store.out_of_order += check_whole("times", times, 1, 1_000_000)

    # -- what boto3's SQS.Queue has ------------------------------------------------------------------------------

    @property
    def attributes(self) -> dict[str, str]:
        """As SQS gives them, as text. Always current."""
        with self.clock.changed:
            return self._home.store.attributes()

    def load(self) -> None:
        """Ask for the attributes."""
        self._home.calls.call("GetQueueAttributes", {"AttributeNames": ["All"]}, lambda: None)

    def set_attributes(self, *, Attributes: Mapping[str, str]) -> dict[str, Any]:
        """Change settings by SQS's names and text values: `{"DelaySeconds": "5"}`.

        :raises ValueError: for attributes that are not simulated.
        """
        self._require_home()
        store = self._home.store

        def change() -> dict[str, Any]:
            store.settings = _changed(store, Attributes)
            return service.answer()

        return self._home.calls.call("SetQueueAttributes", {"Attributes": Attributes}, change)

    def purge(self) -> dict[str, Any]:
        """Drop every message, those in flight too. Allowed once in 60 seconds."""
        self._require_home()
        store = self._home.store

        def purge() -> dict[str, Any]:
            store.purge()
            return service.answer()

        return self._home.calls.call("PurgeQueue", {}, purge)

    def send_message(self, **kwargs: Unpack[_Message]) -> dict[str, Any]:
        """Send `MessageBody`, with `MessageAttributes`, `MessageSystemAttributes`, `DelaySeconds`, `MessageGroupId`,
        and, on a FIFO queue, `MessageDeduplicationId`.
        """
        self._require_home()
        store = self._home.store
        return self._home.calls.call("SendMessage", kwargs, lambda: service.answer(**_sent(store, kwargs)))

    def send_messages(self, *, Entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Send up to 10 messages, together up to 1 MiB: each as in `send_message`, with its own `Id` and answer."""
        self._require_home()
        store = self._home.store
        by_content = store.settings.content_based_deduplication
        wrong = lambda: wrong_send_batch(Entries, store.fifo, by_content)  # noqa: E731
        return self._home.calls.batch("SendMessageBatch", Entries, wrong, lambda entry: _sent(store, entry))

    def receive_messages(self, **kwargs: Unpack[_Receive]) -> list[SimulatedMessage]:
        """Receive up to `MaxNumberOfMessages` (1 to 10, default 1) as soon as there is one, or none after
        `WaitTimeSeconds` (0 to 20), with the given `VisibilityTimeout`, `MessageSystemAttributeNames` (or
        `AttributeNames`, deprecated by SQS), `MessageAttributeNames` and, on a FIFO queue, `ReceiveRequestAttemptId`.
        """
        self._require_home()
        store = self._home.store

        def receive() -> list[Received]:
            wrong = wrong_receive(kwargs, store.fifo)
            if wrong:
                raise Refused(*wrong)
            most = kwargs.get("MaxNumberOfMessages", 1)
            hidden = kwargs.get("VisibilityTimeout", store.settings.visibility_timeout)
            attempt = kwargs.get("ReceiveRequestAttemptId")
            received = store.receive(most, hidden, attempt)
            wait = kwargs.get("WaitTimeSeconds", store.settings.wait_time_seconds)
            if received or not wait:
                return received
            poll = WaitingReceive(store, store.clock.now() + wait, most, hidden, attempt)
            store.clock.poll(poll, wait)
            return poll.received

        received = self._home.calls.call("ReceiveMessage", kwargs, receive)
        names = (*kwargs.get("AttributeNames", ()), *kwargs.get("MessageSystemAttributeNames", ()))
        attribute_names = kwargs.get("MessageAttributeNames", ())
        return [SimulatedMessage(self, each, names, attribute_names) for each in received]

    def delete_messages(self, *, Entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Delete up to 10 messages, each with its own answer."""
        self._require_home()
        store = self._home.store
        wrong = lambda: wrong_batch(Entries, "DeleteMessage")  # noqa: E731
        delete = lambda entry: store.delete(entry["ReceiptHandle"])  # noqa: E731
        return self._home.calls.batch("DeleteMessageBatch", Entries, wrong, delete)

    def change_message_visibility_batch(self, *, Entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Change the visibility timeouts of up to 10 messages, each with its own answer."""
        self._require_home()
        store = self._home.store
        wrong = lambda: wrong_batch(Entries, "ChangeMessageVisibility")  # noqa: E731

        def change(entry: Mapping[str, Any]) -> None:
            store.change(entry["ReceiptHandle"], entry.get("VisibilityTimeout", store.settings.visibility_timeout))

        return self._home.calls.batch("ChangeMessageVisibilityBatch", Entries, wrong, change)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(f"SimulatedQueue has no {name}: if SQS has it, {_ELSEWHERE}")

    def __repr__(self) -> str:
        return f"SimulatedQueue(url={self.url!r})"


class SimulatedMessage:
    """One receive of one message of a `SimulatedQueue`, with the parts of boto3's `SQS.Message`.

    `body`, `message_id`, `receipt_handle`, `md5_of_body`, `queue_url`; `attributes`, `message_attributes` and
    `md5_of_message_attributes` have what was requested, or None if that is nothing.
    """

    def __init__(
        self, queue: SimulatedQueue, received: Received, names: Iterable[str], attribute_names: Iterable[str]
    ) -> None:
        message = received.message
        self.body: str = message.body
        self.message_id: str = message.message_id
        self.receipt_handle: str = received.handle
        self.md5_of_body: str = message.md5
        self.queue_url: str = queue.url
        self.attributes: dict[str, str] | None = dict(chosen(_system_attributes(received), names)) or None
        kept = chosen(message.message_attributes, attribute_names)
        self.message_attributes: dict[str, Any] | None = dict(kept) or None
        self.md5_of_message_attributes: str | None = md5_of_attributes(kept) if kept else None
        self._queue = queue
        self._generation = queue._home.store.generation
        self._moved_before = queue.clock.moved

    def change_visibility(self, **kwargs: Any) -> dict[str, Any]:
        """Have the claim end in `VisibilityTimeout` seconds from now."""
        self._queue._require_home()
        home = self._queue._home

        def change() -> dict[str, Any]:
            home.store.change(self.receipt_handle, kwargs["VisibilityTimeout"])
            return service.answer()

        parameters = {"ReceiptHandle": self.receipt_handle, **kwargs}
        return home.calls.call("ChangeMessageVisibility", parameters, change)

    def delete(self) -> dict[str, Any]:
        """Delete the message. Repeating this does no harm."""
        self._queue._require_home()
        home = self._queue._home

        def delete() -> dict[str, Any]:
            home.store.delete(self.receipt_handle)
            return service.answer()

        return home.calls.call("DeleteMessage", {"ReceiptHandle": self.receipt_handle}, delete)

    def Queue(self) -> SimulatedQueue:
        """The queue it was received from."""
        return self._queue

    @property
    def simulated_clock(self) -> SimulatedClock | None:
        """The queue's clock; None once the queue was reset."""
        store = self._queue._home.store
        return store.clock if store.generation == self._generation else None

    def seconds_moved(self) -> float:
        """By how much the queue's time was moved since this receive: an hour of that is an hour of the task's time."""
        return self._queue.clock.moved - self._moved_before

    def __repr__(self) -> str:
        return f"SimulatedMessage(message_id={self.message_id!r})"


# -- what is behind it ------------------------------------------------------------------------------------------------


class _Home:
    """The state that all objects of one URL share."""

    def __init__(self, store: Store, dead_letters: _Home | None) -> None:
        self.store = store
        self.dead_letters = dead_letters
        self.calls = Calls(store)
        self.may_change = False

    def reset(self) -> None:
        with self.store.clock.changed:
            self.store.clear()
            self.calls.forget_faults()
            self.store.clock.forget_tasks()
            self.may_change = True

    def require_standard(self, fault: str) -> None:
        if self.store.fifo:
            raise ValueError(f"{fault} is for standard queues: SQS keeps the promises of {self.store.url!r}")


# One per URL. `_kept` keeps it until `reset`, after that the queues in use do.
_homes: weakref.WeakValueDictionary[str, _Home] = weakref.WeakValueDictionary()
_kept: dict[str, _Home] = {}
_making = threading.RLock()


def _found(url: str, settings: Settings, clock: SimulatedClock | None) -> _Home:
    with _making:
        home = _homes.get(url)
        if home is None:
            home = _homes[url] = _Home(Store(url, settings, clock or SimulatedClock(), None), None)
            _give_dead_letters(home)
        elif home.may_change and settings != Settings():
            home.store.settings = settings
            _give_dead_letters(home)
        elif settings not in (home.store.settings, Settings()):
            raise ValueError(
                f"There is a queue {url!r} with other settings: give it a URL of its own, or call "
                "SimulatedQueue.reset() first, at the beginning of each test"
            )
        if clock not in (None, home.store.clock):
            raise ValueError(f"The queue {url!r} has another clock: give that one to the other queue")
        home.may_change = False
        _kept[url] = home
        return home


def _give_dead_letters(home: _Home) -> None:
    """Give a queue the dead-letter queue that its settings require."""
    store = home.store
    home.dead_letters = store.dead_letters = None
    if store.settings.max_receive_count is None:
        return
    name = f"{store.url.removesuffix('.fifo')}-dead{'.fifo' if store.fifo else ''}"
    dead_letters = _homes.get(name)
    if dead_letters is None:
        dead_letters = _homes[name] = _Home(Store(name, Settings(), store.clock, None), None)
    elif dead_letters.store.clock is not store.clock:
        raise ValueError(f"There is a queue {name!r} already, the name of this one's dead-letter queue")
    home.dead_letters, store.dead_letters = dead_letters, dead_letters.store


def _sent(store: Store, given: Mapping[str, Any]) -> dict[str, str]:
    settings = store.settings
    wrong = wrong_send(given, store.fifo, settings.content_based_deduplication, settings.maximum_message_size)
    if wrong:
        raise Refused(*wrong)
    return store.send(given)


def _system_attributes(received: Received) -> dict[str, str]:
    message = received.message
    first = message.sent_at if message.first_received is None else message.first_received
    return {
        "SenderId": "AIDASIMULATED00000000",
        "SentTimestamp": str(round(message.sent_at * 1000)),
        "ApproximateReceiveCount": str(received.receives),
        "ApproximateFirstReceiveTimestamp": str(round(first * 1000)),
        **message.system,
    }


def _changed(store: Store, attributes: Mapping[str, str]) -> Settings:
    """The settings of a queue with these attributes."""
    changed: dict[str, Any] = {}
    for name, text in attributes.items():
        if name not in service.queue_attribute_names():
            raise Refused("InvalidAttributeName", f"Unknown Attribute {name}.")
        if name == "FifoQueue" and store.fifo:
            if text != "true":
                raise Refused(*_bad_value(name, " Reason: Modifying queue type is not supported."))
            continue
        if name in ("FifoQueue", "ContentBasedDeduplication") and not store.fifo:
            raise Refused("InvalidAttributeName", f"Unknown Attribute {name}.")
        if name == "DeduplicationScope" and not store.fifo:
            text = "You can specify the DeduplicationScope only when FifoQueue is set to true."
            raise Refused("InvalidAttributeName", text)
        if name not in _ATTRIBUTES:
            raise ValueError(f"SimulatedQueue does not simulate {name}: {_ELSEWHERE}")
        value = _value(name, text)
        if value is None:
            raise Refused(*_bad_value(name))
        changed[_ATTRIBUTES[name]] = value
    return store.settings._replace(**changed)


def _bad_value(name: str, reason: str = "") -> tuple[str, str]:
    return "InvalidAttributeValue", f"Invalid value for the parameter {name}.{reason}"


_RANGES = {
    "VisibilityTimeout": (0, MAX_VISIBILITY_SECONDS),
    "DelaySeconds": (0, MAX_DELAY_SECONDS),
    "ReceiveMessageWaitTimeSeconds": (0, MAX_WAIT_SECONDS),
    "MaximumMessageSize": (_SMALLEST_MESSAGE, MAX_MESSAGE_BYTES),
    "MessageRetentionPeriod": (_SHORTEST_RETENTION, _LONGEST_RETENTION),
}


def _value(name: str, text: str) -> int | bool | str | None:
    """The value that the text of an attribute stands for; None for a text that SQS refuses."""
    if name == "DeduplicationScope":
        return text if text in _SCOPES else None
    if name == "ContentBasedDeduplication":
        return {"true": True, "false": False}.get(text)
    lowest, highest = _RANGES[name]
    return int(text) if text.isdecimal() and lowest <= int(text) <= highest else None
