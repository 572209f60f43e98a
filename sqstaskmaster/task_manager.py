"""TaskManager: the queue as a stream of tasks.

::

    submit(task, **kwargs) -> messages.encode -> size check -> queue.send_message
    submit_many(tasks) -> the same for each -> sending -> client.send_message_batch
    task_generator -> queue.receive_messages -> messages.decode -> yields (task, kwargs, message)
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqstaskmaster._claim import clock, note
from sqstaskmaster._claim.destinations import Origin
from sqstaskmaster._claim.forwarding import SENDER
from sqstaskmaster._claim.report import Report
from sqstaskmaster._logging import get_logger
from sqstaskmaster._sending.batches import GroupedLine, Line
from sqstaskmaster._sqs import messages
from sqstaskmaster._sqs.confirmation import attributes_in, is_of_boto3
from sqstaskmaster._sqs.explained import IN_TESTS, Explained, send
from sqstaskmaster._sqs.limits import (
    MAX_BATCH_ENTRIES,
    MAX_MESSAGE_ATTRIBUTES,
    MAX_MESSAGE_BYTES,
    MAX_VISIBILITY_SECONDS,
    MAX_WAIT_SECONDS,
    attributes_bytes,
    check_whole,
    check_whole_seconds,
    is_number,
    is_sendable,
)
from sqstaskmaster._sqs.options import NO_OPTIONS, Given
from sqstaskmaster._sqs.protocols import Queue
from sqstaskmaster._sqs.regions import region_of
from sqstaskmaster._sqs.values import Writer
from sqstaskmaster.errors import ConfigurationError, InvalidTask, MalformedMessage, MessageTooLarge
from sqstaskmaster.results import SubmitResult

logger: logging.Logger = get_logger(__name__)

Task = tuple[str, dict[str, Any], Any]

# Connecting takes milliseconds if it works at all; botocore's default of 60 s is longer than most claims.
_CONNECT_SECONDS = 5.0
# Longer than the longest poll. A visibility timeout should exceed it, and botocore's default of 60 s often does not.
_READ_SECONDS = MAX_WAIT_SECONDS + 5.0

# For a request that a claim waits for: half to connect, half for the answer.
_URGENT_SECONDS = 10.0

# The most sender threads of one submit_many, and connections of its client. botocore's default is 10.
_MAX_THREADS = 64

# A poll that is answered this long after its wait is late: SQS sent the messages earlier.
_LATE_SECONDS = 2.0

# The bytes of each message's attribute service_name, without the sender's name.
_ATTRIBUTE_BYTES = len(SENDER) + len("String")

# The id of this process. Cached, since asking the system costs as much as reading a message's body.
_process = os.getpid()


def _note_fork() -> None:
    global _process
    _process = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _with_words_for_two_tasks(submit: Callable[..., Any]) -> Callable[..., Any]:
    """`submit`, whose error says how to send an argument named `task`; `submit(task="Name")` is a classic call."""

    @functools.wraps(submit)
    def submit_one(self: TaskManager, *arguments: Any, **kwargs: Any) -> Any:
        if len(arguments) > 1:
            raise TypeError(
                f"submit({arguments[0]!r:.80}, {arguments[1]!r:.80}): a task's arguments are sent by name, as in "
                f"submit({arguments[0]!r:.80}, below={arguments[1]!r:.80})"
            )
        if arguments and "task" in kwargs:
            raise TypeError(
                f"submit({arguments[0]!r:.80}, task=...): an argument named task is taken for the task's name; send it "
                "with submit_many([(task, kwargs)])"
            )
        return submit(self, *arguments, **kwargs)

    return submit_one


class TaskManager:
    """Sends tasks to an SQS queue, and receives them.

    :param sqs_url: the queue's URL, as SQS gives it.
    :param notify: called as `notify(exception, context=mapping)` for errors in receiving, to feed an error service.
    :param queue_constructor: `queue_constructor(sqs_url)` makes the queue. `LocalQueue`, or any callable that returns
        an object with the methods of boto3's `SQS.Queue` used here. Default: boto3's own, with credentials, endpoint
        and retries from the standard AWS configuration, and the region in the URL where there is one.
    :param sender_name: sent with each message as its attribute `service_name`.
    :param strict: refuse values that JSON cannot hold (also NaN, infinity, and keys that are not strings) instead of
        sending them as `str(value)`. "Values, and what they arrive as" in the documentation has the table. A strict
        manager looks at every value, which costs about a microsecond each.
    :param send_timeout: how many seconds one `submit` may take, with the client's retries, if the queue is made here
        (without `queue_constructor`): more than 0. It waits at most 5 seconds for a connection and 25 for an answer,
        and less if this is less than their sum. It starts no further try that could not end in time. Time to resolve
        the host's name does not count.
    :raises TypeError: for a queue constructor that does not return a queue.
    :raises ValueError: for an invalid URL or sender name.
    :raises ConfigurationError: (a ValueError) if no region is configured.

    `url` and `sender_name` are attributes. A manager can be copied and pickled if `notify` and `queue_constructor` can:
    the copy makes a queue of its own when it is first used.
    """

    url: str = ""
    sender_name: str | None = None

    def __init__(
        self,
        sqs_url: str,
        notify: Callable[..., Any] | None = None,
        queue_constructor: Callable[[str], Any] | None = None,
        sender_name: str | None = None,
        *,
        strict: bool = False,
        send_timeout: float = 30,
    ) -> None:
        if not isinstance(sqs_url, str) or not sqs_url:
            raise ValueError(f"A queue URL must be a non-empty string, not {sqs_url!r}")
        if sender_name is not None and (not isinstance(sender_name, str) or not is_sendable(sender_name)):
            raise ValueError(
                f"A sender name must be non-empty text without control characters and surrogates, not {sender_name!r}"
            )
        if not is_number(send_timeout) or send_timeout <= 0:
            raise ValueError(f"send_timeout must be a number of seconds, more than 0, not {send_timeout!r}")
        self.url = sqs_url
        self.sender_name = sender_name
        self._service_name = sender_name or f"Unknown sender to: {sqs_url}"
        self._notify = notify
        self._writer = Writer(strict)
        self._fifo = sqs_url.endswith(".fifo")  # SQS requires it of FIFO queues' names, and forbids it in others
        self._options = NO_OPTIONS
        self._warned_of_attributes: list[int] = []  # shared with the managers that `options` returns
        self._extra_bytes = _ATTRIBUTE_BYTES + len(self._service_name.encode())
        self._connect(_Connection(queue_constructor, sqs_url, float(send_timeout)))
        self._connection.queue()

    @property
    def queue(self) -> Any:
        """The queue. It is made anew in a forked process: two processes cannot share a connection."""
        return self._connection.queue()

    @queue.setter
    def queue(self, queue: Any) -> None:
        self._connect(self._connection.with_queue(queue))

    def _connect(self, connection: _Connection) -> None:
        self._connection = connection
        self._origin = Origin(self.url, connection.urgent_queue, connection.constructor, self._writer)

    def submit(self, task: str, **kwargs: Any) -> Any:
        """Send one task, and return the response of SQS (with `MessageId`).

        Values that JSON cannot hold are sent as `str(value)`; the first one of each type is logged at WARNING with the
        path of the field. A FIFO queue needs a message group: `manager.options(message_group_id=...)`.

        :raises InvalidTask: (a ValueError) for a name that is not a non-empty string, arguments that cannot be written
            as JSON (for a strict manager, any value that JSON cannot hold), or, as `MessageTooLarge`, a message over 1
            MiB. Nothing has been sent then.
        :raises ValueError: on a FIFO queue without a message group. Nothing has been sent then.
        :raises botocore.exceptions.ClientError: if SQS refused it.
        :raises botocore.exceptions.BotoCoreError: if SQS could not be reached, or no request could be made.
        :raises NoAnswer: (a TimeoutError) if the answer does not confirm the send. With boto3's own queues, SQS's
            answer must have the MessageId and the MD5 of the body, which a login page, for example, does not have. With
            a queue object of your own, the send counts when it returns, unless it passes on botocore's answer without a
            MessageId. The task may have been sent all the same.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
        """
        return self._submit(task, kwargs)

    if not TYPE_CHECKING:
        submit = _with_words_for_two_tasks(submit)

    def _submit(self, task: str, kwargs: Mapping[str, Any]) -> Any:
        """`submit` for arguments of any name."""
        request, _ = self._request(task, kwargs)
        answer = send(self.queue, self.url, request)
        self._warn_of_attributes(request["MessageAttributes"])
        return answer

    def _warn_of_attributes(self, sent: Mapping[str, Any]) -> None:
        """Warn once if a message has no room for our attribute that Continue and DeadLetter need.

        Instrumentation, or a queue of the user's own making, may have added attributes to the given ones.
        """
        others = len(sent) - (SENDER in sent)
        if others >= MAX_MESSAGE_ATTRIBUTES and not self._warned_of_attributes:
            self._warned_of_attributes.append(others)
            logger.warning(
                "A message with %d attributes leaves no room for the one with which a task continues or is "
                "dead-lettered: those that are sent with it cannot. SQS takes %d: leave one free. Logged once",
                others,
                MAX_MESSAGE_ATTRIBUTES,
                extra={"action": "no_room_for_attribute"},
            )

    def submit_many(
        self,
        tasks: Iterable[tuple[str, Mapping[str, Any]]],
        *,
        threads: int = 8,
        on_progress: Callable[[SubmitResult], Any] | None = None,
    ) -> SubmitResult:
        """Send many tasks: in requests of up to 10 messages and 1 MiB, in parallel, each task accounted for.

        :param tasks: any iterable of `(task, kwargs)`, taken lazily and in the calling thread, at most 40 tasks for
            each thread (or 4 MiB) ahead of what is sent. So a generator of millions takes no more memory than one of
            hundreds, except 16 bytes a task for the message ids of the result.
        :param threads: how many requests may be under way at a time, 1 to 64. There are fewer if the answers come so
            fast that more would only cost processor time, or if the client keeps fewer connections (botocore: 10; the
            client that `TaskManager` makes: 64).
        :param on_progress: called as `on_progress(result)` in the calling thread, several times a second while tasks
            are sent, and once at the end. If it raises, that is logged.
        :return: the counts and the message ids (`result.message_ids[index]`).
        :raises TasksNotSent: after all others were sent, if some could not be sent: `failures` has the index, task,
            code and reason of each, and the error itself can be given to `submit_many` to try those again. The codes of
            its own: `HeldBack` (see below), `NotTried` (8 requests in a row did not get through, so the rest was not
            tried), `NoAnswer`, and the names of exceptions (`MessageTooLarge`, `InvalidTask`, ...). With 100,000
            failures no more tasks are taken: `rest` has those.
        :raises SubmitInterrupted: (a KeyboardInterrupt) on Ctrl-C, after waiting at most 5 seconds for requests under
            way; a second Ctrl-C ends the wait. It has the same attributes. Code `Unknown`: may have been sent.
        :raises ValueError: before anything is taken: for `threads` out of range, a FIFO queue without a message group,
            one deduplication id for all tasks.

        If the iterable itself raises, that is raised after everything taken from it has been sent.

        After throttling, service errors and network errors it tries again, after random pauses that grow to at most 10
        seconds, up to 10 times and for 100 seconds (on top of the client's own retries). It does not try again what SQS
        refuses as the sender's fault. Delivery is at least once: when the answer to a request is lost, its messages are
        sent again, and a standard queue may then have them twice. A FIFO queue drops the second by its deduplication
        id, for five minutes.

        A standard queue keeps no order. On a FIFO queue the order of each message group is kept: a group has one
        message on its way at a time, and a request holds messages of different groups, since SQS may refuse a message
        for a moment and accept the next. Many groups are fast; a single one takes a request for each message. When
        a message is given up after its retries, all that follow in its group are held back and are failures too. A
        task that can never be sent (too long, refused by SQS) holds nothing back.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html
        """
        from sqstaskmaster._sending.sending import Sending

        threads = check_whole("threads", threads, 1, _MAX_THREADS)
        if on_progress is not None and not callable(on_progress):
            raise TypeError(f"on_progress must be callable as on_progress(result), not {on_progress!r}")
        self._options.check_many(self._fifo)
        send_batch, most, of_boto3 = _sender(self.queue, self.url)

        def send_entries(entries: list[dict[str, Any]]) -> Any:
            answer = send_batch(entries)
            for entry in entries:
                self._warn_of_attributes(entry["MessageAttributes"])
            return answer

        line = GroupedLine(most) if self._fifo else Line(most)
        threads = min(threads, _connections(self.queue))
        return Sending(tasks, self._request_of_any, send_entries, of_boto3, line, threads, on_progress).run()

    def options(
        self,
        *,
        delay_seconds: Given = None,
        message_group_id: Given = None,
        message_deduplication_id: Given = None,
        message_attributes: Given = None,
    ) -> TaskManager:
        """This manager, submitting with these: `manager.options(delay_seconds=60).submit("MyTask", x=1)`.

        Each is a value, or a function of the task that returns it (`lambda task, kwargs: kwargs["customer"]`; None
        means none), so that the tasks of one `submit_many` can have different ones. The manager itself is unchanged,
        and options can be added to options.

        :param delay_seconds: seconds until the message can be received, 0 to 900. Standard queues only: a FIFO queue
            has one delay for all messages.
        :param message_group_id: 1 to 128 ASCII letters, digits and punctuation characters. Required on a FIFO queue,
            where the messages of one group are received in order. On a standard queue it makes a fair queue: a group
            with a large backlog does not delay the others.
        :param message_deduplication_id: the same characters; FIFO queues only. SQS drops a message whose id was sent in
            the last five minutes. Required unless the queue has ContentBasedDeduplication, which drops a task that is
            equal to an earlier one.
        :param message_attributes: name -> text, number or bytes: up to eight, besides this package's two. For trace
            context, for example; `message.message_attributes` has them if the receiver asks for them. They count
            towards the message's 1 MiB. They are added to those of earlier options, and replace those of the same name.
        :raises ValueError: for a value out of its range, or not for this kind of queue. For a function's value it is
            raised by `submit`, and is a failure in `submit_many`.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-messagegroupid-property.html
        """
        view = copy.copy(self)
        view._options = self._options.replaced(
            self._fifo,
            delay_seconds=delay_seconds,
            message_group_id=message_group_id,
            message_deduplication_id=message_deduplication_id,
            message_attributes=message_attributes,
        )
        return view

    def _request(self, task: str, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """The parameters of SendMessage, and the bytes that SQS counts."""
        body = messages.encode(task, kwargs, self._writer)
        size = len(body) + self._extra_bytes
        # New dictionaries for each message: instrumentation adds to them.
        attributes: dict[str, Any] = {SENDER: {"StringValue": self._service_name, "DataType": "String"}}
        request: dict[str, Any] = {"MessageBody": body, "MessageAttributes": attributes}
        if self._fifo or self._options is not NO_OPTIONS:
            found = self._options.parameters(self._fifo, task, kwargs)
            given = found.pop("MessageAttributes", {})
            request.update(found)
            attributes.update(given)
            size += attributes_bytes(given)
        if size > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(task, size, MAX_MESSAGE_BYTES)
        return request, size

    def _request_of_any(self, task: Any, kwargs: Any) -> tuple[dict[str, Any], int]:
        """`_request` for an item of an iterable, which may be anything."""
        try:
            "".join(kwargs)  # the fastest check that all names are strings; this may be called millions of times
            named = isinstance(kwargs, Mapping)
        except TypeError:
            named = False
        if not named:
            raise InvalidTask(
                "submit_many takes pairs of a task's name and a dictionary of its arguments, by name; not "
                f"({task!r:.80}, {type(kwargs).__name__})"
            )
        return self._request(task, kwargs if isinstance(kwargs, dict) else dict(kwargs))

    def task_generator(
        self,
        wait_time: int = 20,
        sqs_timeout: int = 20,
        message_attribute_names: Iterable[str] = (),
        *,
        burst: bool = False,
    ) -> Iterator[Task]:
        """Yield `(task, kwargs, message)` for ever, polling for one message at a time.

        :param wait_time: how long each poll waits for a message: 0 to 20 seconds.
        :param sqs_timeout: the visibility timeout of the receive: 0 to 43200 seconds (12 hours). It should exceed the
            time until the message's handler is entered; from then on the handler's own `sqs_timeout` counts.
        :param message_attribute_names: the message attributes to ask for, `["All"]` for all of them: then
            `message.message_attributes` has them. SQS sends only those.
        :param burst: end when a poll brings nothing, for tests. Without it an empty queue is polled for ever.
        :raises ValueError: for a time out of its range, at once and not at the first `next()`.
        :raises TypeError: for attribute names that are not strings.

        A message whose body `submit` did not write is logged, passed to `notify`, and left to the queue's redrive
        policy. Errors of SQS in receiving are raised: let the process end, and its supervisor restart it. If the loop
        is stopped while it polls (Ctrl-C), a message that the poll still brings stays hidden for `sqs_timeout`;
        `Worker` gives it back.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
        """
        wait_time = check_whole_seconds("wait_time", wait_time, MAX_WAIT_SECONDS)
        sqs_timeout = check_whole_seconds("sqs_timeout", sqs_timeout, MAX_VISIBILITY_SECONDS)
        names = _attribute_names(message_attribute_names)
        return self._generate(wait_time, sqs_timeout, names, burst)

    def _generate(self, wait_time: int, sqs_timeout: int, names: list[str], burst: bool) -> Iterator[Task]:
        while True:
            # A new list for each poll: instrumentation adds to it.
            wanted: dict[str, Any] = {"MessageAttributeNames": [*names]} if names else {}
            try:
                received = self.receive(wait_time, sqs_timeout, **wanted)
            except (KeyboardInterrupt, SystemExit):
                logger.warning(
                    "Stopped during a poll of %s: a message that it still brings stays hidden for %d s. A Worker "
                    "gives such a message back at once",
                    self.url,
                    sqs_timeout,
                    extra={"action": "poll_interrupted"},
                )
                raise
            for task in received:
                if task is not None:
                    yield task
            if burst and not received:
                return

    def receive(
        self,
        wait_time: int,
        sqs_timeout: int,
        most: int = 1,
        now: Callable[[], float] = lambda: clock.now(),
        in_worker: bool = False,
        **wanted: Any,
    ) -> list[Task | None]:
        """The result of one poll, as in `task_generator`: tasks, and None for each message that must not be run.

        Those are a body that `submit` did not write, and a message whose claim may have ended before it arrived.

        :param wait_time: seconds to wait for a message, 0 to 20.
        :param sqs_timeout: the visibility timeout of the receive, 0 to 43200 seconds.
        :param most: the most messages to receive, 1 to 10.
        :param now: returns seconds of the clock of claims.
        :param in_worker: whether a Worker polls: it names the remedy itself if a poll is refused, and its `notify` gets
            more detail.
        :param wanted: further parameters of ReceiveMessage.
        """
        asked_at = now()
        queue = self._connection.queue_to_poll()
        with Explained(self.url, queue, remedies=not in_worker):
            received = queue.receive_messages(
                AttributeNames=["All"],
                MaxNumberOfMessages=most,
                WaitTimeSeconds=wait_time,
                VisibilityTimeout=sqs_timeout,
                **wanted,
            )
        answered_at = now()
        # SQS may have sent them at any time since the request.
        if sqs_timeout and answered_at - asked_at >= max(sqs_timeout, wait_time + _LATE_SECONDS):
            if any(_lapses(message) for message in received):
                self._leave_lapsed(len(received), answered_at - asked_at)
                return [None] * len(received)
        names = wanted.get("MessageAttributeNames", ())
        has_attributes = "All" in names or ".*" in names
        receipt = asked_at, answered_at, sqs_timeout, has_attributes
        return [self._open(message, receipt, in_worker) for message in received]

    def _open(self, message: Any, receipt: tuple[float, float, int, bool], in_worker: bool) -> Task | None:
        try:
            task, kwargs = messages.decode(message.body)
        except MalformedMessage as error:
            self._refuse(error, message, in_worker)
            return None
        asked_at, answered_at, seconds, has_attributes = receipt
        # A visibility timeout of 0 gives no claim.
        received = note.Receipt(
            asked_at, answered_at, seconds or None, task, has_attributes, self._origin, _lapses(message)
        )
        note.leave(message, received)
        return task, kwargs, message

    def _leave_lapsed(self, number: int, seconds: float) -> None:
        """Log that messages came too late to be run: another worker may already have them."""
        text = "A poll of %s was answered after %.0f s: what it brought (%d) is not run, its claims may have ended"
        logger.warning(text, self.url, seconds, number, extra={"action": "poll_late"})

    def _refuse(self, error: MalformedMessage, message: Any, in_worker: bool) -> None:
        queue_url = self.url if in_worker else None
        report = Report(message, "", self.notify, lambda: logger, time.monotonic, queue_url)
        report.outcome = "refused"
        text = "Malformed message, left to the redrive policy: %s"
        logger.exception(text, report.subject, extra=report.facts("malformed"))
        report.notify(error)

    def attributes(self) -> Mapping[str, Any]:
        """The queue's attributes, requested now. Counts in them are approximate.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
        """
        with Explained(self.url, self.queue):
            self.queue.load()
            attributes: Mapping[str, Any] | None = self.queue.attributes
            return attributes_in({}) if attributes is None else attributes

    def purge(self) -> None:
        """Delete every message in the queue, those in flight too. SQS takes up to a minute, and allows one purge in it.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_PurgeQueue.html
        """
        with Explained(self.url, self.queue):
            self.queue.purge()

    def notify(self, exception: BaseException, context: Mapping[str, Any] | None = None) -> None:
        """Call the `notify` given to the constructor, if any, as `notify(exception, context=context)`.

        If it is not callable, that is logged at ERROR, once.
        """
        if callable(self._notify):
            self._notify(exception, context=context)
        elif self._notify is not None:
            wrong, self._notify = self._notify, None
            logger.error(
                "notify is not callable, so it receives nothing: pass a function notify(exception, "
                "context=...), not %r",
                wrong,
                extra={"action": "notify_failed"},
            )

    def __repr__(self) -> str:
        return f"TaskManager({self.url!r})"


class _Connection:
    """A manager's queue, shared with all managers that its `options` returned: made once in each process.

    :param send_timeout: seconds for one send, if boto3's own queue is made here.
    """

    def __init__(self, constructor: Callable[[str], Any] | None, url: str, send_timeout: float) -> None:
        self.constructor = constructor
        self._url = url
        self._send_timeout = send_timeout
        self._queue: Any = None
        self._polled: Any = None  # one like it whose client waits long enough for a long poll
        self._urgent: Any = None  # one like it whose client makes each request once
        self._process: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Connection, (self.constructor, self._url, self._send_timeout)

    def queue(self) -> Any:
        if self._process != _process:
            constructor, url = self.constructor, self._url
            if constructor is None:
                self._queue = _boto3_queue(url, self._send_timeout)
            else:
                self._queue = _custom_queue(constructor, url)
            self._process, self._polled, self._urgent = _process, None, None
        return self._queue

    def queue_to_poll(self) -> Any:
        """The queue, or one like it whose client waits long enough for a long poll."""
        queue = self.queue()
        patient = self._send_timeout >= _CONNECT_SECONDS + _READ_SECONDS
        if self.constructor is not None or patient or not is_of_boto3(queue, "receive_messages"):
            return queue
        if self._polled is None:
            self._polled = _boto3_queue(self._url, _CONNECT_SECONDS + _READ_SECONDS)
        return self._polled

    def urgent_queue(self) -> Any:
        """The queue, or one like it whose client makes each request once, and bounded: for requests a claim waits for.

        If a client repeated a change of visibility to 0, the message might be another worker's by then.
        """
        queue = self.queue()
        if self.constructor is not None or self._polled is queue or not is_of_boto3(queue, "send_message"):
            return queue
        if self._urgent is None:
            self._urgent = _boto3_queue(self._url, _URGENT_SECONDS, total_max_attempts=1)
        return self._urgent

    def made_by(self, constructor: Callable[[str], Any]) -> _Connection:
        """A connection to the queue that this constructor makes."""
        return _Connection(constructor, self._url, self._send_timeout)

    def with_queue(self, queue: Any) -> _Connection:
        """A connection to a given queue, which is also polled as it is."""
        other = _Connection(self.constructor, self._url, self._send_timeout)
        other._queue, other._polled, other._process = queue, queue, _process
        return other


def _boto3_queue(url: str, send_timeout: float, **retries: int) -> Queue:
    """:param retries: for botocore's configuration, in place of the user's own."""
    if not _is_queue_url(url):
        raise ValueError(
            f"{url!r} is not a queue URL, which looks like "
            f"https://sqs.eu-west-1.amazonaws.com/123456789012/name{_url_of(url)}"
        )
    # Loaded here, so that those who only import this module, or use a LocalQueue, need not wait for it.
    import boto3
    from botocore.config import Config
    from botocore.exceptions import NoRegionError

    from sqstaskmaster._sqs.clients import prepare

    connecting = min(_CONNECT_SECONDS, send_timeout / 2)
    reading = min(_READ_SECONDS, send_timeout - connecting)
    more: dict[str, Any] = {"retries": retries} if retries else {}
    config = Config(connect_timeout=connecting, read_timeout=reading, max_pool_connections=_MAX_THREADS, **more)
    region = {"region_name": region_of(url)} if region_of(url) else {}
    try:
        queue: Any = boto3.resource("sqs", config=config, **region).Queue(url)
    except ValueError as error:
        if "endpoint" not in str(error).lower():
            raise
        raise ConfigurationError(
            f"{str(error).rstrip('.')}: AWS_ENDPOINT_URL_SQS, AWS_ENDPOINT_URL, or endpoint_url in the profile, "
            "must be an address like http://127.0.0.1:5000, or be left out"
        ) from error
    except NoRegionError as error:
        raise ConfigurationError(
            f"No AWS region is configured, and the queue URL {url!r} names none: set AWS_DEFAULT_REGION, or a region "
            "in the profile you use"
        ) from error
    if is_of_boto3(queue, "send_message"):
        prepare(queue.meta.client, send_timeout)
    made: Queue = queue
    return made


def _url_of(given: str) -> str:
    """How to find the URL of the queue that may be meant; "" if unknown."""
    arn = re.fullmatch(r"arn:[\w-]+:sqs:([\w-]+):(\d+):([\w.-]+)", given)
    if arn is not None:
        region, account, name = arn.groups()
        more = f" --queue-owner-aws-account-id {account} --region {region}"
    elif re.fullmatch(r"[\w-]{1,80}(\.fifo)?", given):
        name, more = given, ""
    else:
        return IN_TESTS if "://" in given else ""
    return f". 'aws sqs get-queue-url --queue-name {name}{more}' prints this queue's"


def _is_queue_url(url: str) -> bool:
    if any(character.isspace() for character in url):
        return False  # the newline at the end of a file; urlsplit would not notice
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and bool(parts.path.strip("/"))


def _custom_queue(constructor: Any, url: str) -> Queue:
    wrong = f"TaskManager invalid queue_constructor type {constructor!r}"
    remedy = "give LocalQueue, or a callable that takes the queue's URL and returns an object like boto3's SQS.Queue"
    if not callable(constructor):
        raise TypeError(f"{wrong}: not callable; {remedy}")
    try:
        queue: Queue = constructor(url)
    except (TypeError, ValueError) as error:
        # If the call itself raised (as with `object` or `int`), the constructor does not take a URL. The user should
        # see an error from within the constructor's own code as it is.
        within = error.__traceback__ and error.__traceback__.tb_next
        if within:
            raise
        raise TypeError(f"{wrong}: cannot be called with a queue URL ({error}); {remedy}") from error
    lacking = [
        method
        for method in ("send_message", "receive_messages", "load", "purge")
        if not callable(getattr(queue, method, None))
    ]
    if lacking:
        raise TypeError(f"{wrong}: it returned {queue!r}, which has no {', no '.join(lacking)}; {remedy}")
    return queue


def _lapses(message: Any) -> bool:
    """Whether a claim on it can lapse; not in a queue that has no visibility timeouts."""
    return getattr(message, "claim_lapses", True) is not False


def _attribute_names(names: Any) -> list[str]:
    wrong = TypeError(f"message_attribute_names must be names of message attributes, like ['All'], not {names!r}")
    if isinstance(names, str):
        raise wrong
    try:
        listed = list(names)
    except TypeError:
        raise wrong from None
    if not all(isinstance(name, str) and name for name in listed):
        raise wrong
    return listed


def _sender(queue: Any, url: str) -> tuple[Callable[[list[dict[str, Any]]], Any], int, bool]:
    """How to send entries to a queue, how many at a time, and whether boto3's own method does it.

    The function can be called from several threads.
    """
    # According to boto3, threads may share its clients, but not its resources. Only boto3's own method is bypassed: one
    # that a user put in its place does something more.
    if is_of_boto3(queue, "send_messages"):
        client = queue.meta.client
        explained = Explained(url, client)

        def send_batch(entries: list[dict[str, Any]]) -> Any:
            with explained:
                return client.send_message_batch(QueueUrl=url, Entries=entries)

        return send_batch, MAX_BATCH_ENTRIES, True
    if callable(getattr(queue, "send_messages", None)):
        return lambda entries: queue.send_messages(Entries=entries), MAX_BATCH_ENTRIES, False

    def send_one(entries: list[dict[str, Any]]) -> Any:
        (entry,) = entries
        answer = send(queue, url, {name: value for name, value in entry.items() if name != "Id"})
        message_id = answer.get("MessageId") if isinstance(answer, Mapping) else None
        return {"Successful": [{"Id": entry["Id"], "MessageId": message_id}]}

    return send_one, 1, False


def _connections(queue: Any) -> int:
    """How many connections a boto3 queue's client keeps: further threads make a new one for each request."""
    config = getattr(getattr(getattr(queue, "meta", None), "client", None), "meta", None)
    most = getattr(getattr(config, "config", None), "max_pool_connections", None)
    return most if isinstance(most, int) and most > 0 else _MAX_THREADS
