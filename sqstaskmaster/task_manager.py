"""TaskManager: the queue, seen as tasks.

::

    submit(task, **kwargs) -> messages.encode -> size check -> queue.send_message
    submit_many(tasks) -> the same for each -> sending -> client.send_message_batch
    task_generator -> queue.receive_messages -> messages.decode -> yields (task, kwargs, message)
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqstaskmaster._claim import clock, note
from sqstaskmaster._claim.destinations import DeadLetterQueues
from sqstaskmaster._claim.report import Report
from sqstaskmaster._sending.batches import GroupedLine, Line
from sqstaskmaster._sqs import messages
from sqstaskmaster._sqs.limits import (
    MAX_BATCH_ENTRIES,
    MAX_MESSAGE_BYTES,
    MAX_VISIBILITY_SECONDS,
    MAX_WAIT_SECONDS,
    attributes_bytes,
    check_whole,
    check_whole_seconds,
    is_sendable,
)
from sqstaskmaster._sqs.options import NO_OPTIONS, Given
from sqstaskmaster._sqs.protocols import Queue
from sqstaskmaster._sqs.regions import region_of
from sqstaskmaster._sqs.values import Writer
from sqstaskmaster.errors import ConfigurationError, InvalidTask, MalformedMessage, MessageTooLarge
from sqstaskmaster.results import SubmitResult

logger: logging.Logger = logging.getLogger(__name__)

Task = tuple[str, dict[str, Any], Any]

# Connecting takes milliseconds where it works at all; botocore's default of 60 s is longer than most claims.
_CONNECT_SECONDS = 5
# Longer than the longest poll. A visibility timeout should exceed it, and botocore's default of 60 s often does not.
_READ_SECONDS = MAX_WAIT_SECONDS + 10

# Sender threads of one submit_many, and with them the connections of the client. botocore's default is 10.
_MAX_THREADS = 64

# What each message has as its attribute service_name, the sender's name aside.
_ATTRIBUTE_BYTES = len("service_name") + len("String")

# This process. Kept, since to ask the system costs as much as to read a message's body.
_process = os.getpid()


def _note_fork() -> None:
    global _process
    _process = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _with_words_for_two_tasks(submit: Callable[..., Any]) -> Callable[..., Any]:
    """`submit`, whose error says how to send an argument named `task`. `submit(task="Name")` is a classic call."""

    @functools.wraps(submit)
    def submit_one(self: TaskManager, *arguments: Any, **kwargs: Any) -> Any:
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
    :param notify: called as `notify(exception, context=mapping)` with what went wrong in receiving, to feed an error
        service.
    :param queue_constructor: `queue_constructor(sqs_url)` makes the queue. `LocalQueue`, or any callable that gives an
        object with the methods of boto3's `SQS.Queue` used here. Default: boto3's own, with credentials, endpoint and
        retries from the standard AWS configuration, and the region in the URL where there is one.
    :param sender_name: sent with each message as its attribute `service_name`.
    :param strict: refuse values that JSON cannot hold (NaN and infinity, and keys that are no strings, are among them)
        instead of sending them as `str(value)`. "Values, and what they arrive as" in the documentation has the table.
        A strict manager looks at every value, which costs about a microsecond each.
    :raises TypeError: for a queue constructor that does not give a queue.
    :raises ValueError: for a URL or a sender name that is none.
    :raises ConfigurationError: (a ValueError) where no region is configured.

    `url` and `sender_name` are attributes, as they were given.
    """

    def __init__(
        self,
        sqs_url: str,
        notify: Callable[..., Any] | None = None,
        queue_constructor: Callable[[str], Any] | None = None,
        sender_name: str | None = None,
        *,
        strict: bool = False,
    ) -> None:
        if not isinstance(sqs_url, str) or not sqs_url:
            raise ValueError(f"A queue URL must be a non-empty string, not {sqs_url!r}")
        if notify is not None and not callable(notify):
            raise TypeError(f"notify must be callable as notify(exception, context=...), not {notify!r}")
        if sender_name is not None and (not isinstance(sender_name, str) or not is_sendable(sender_name)):
            raise ValueError(
                f"A sender name must be non-empty text without control characters and surrogates, not {sender_name!r}"
            )
        self.url = sqs_url
        self.sender_name = sender_name
        self._service_name = sender_name or f"Unknown sender to: {sqs_url}"
        self._notify = notify
        self._dead_letters = DeadLetterQueues()
        self._writer = Writer(strict)
        self._fifo = sqs_url.endswith(".fifo")  # SQS asks it of the names of FIFO queues, and forbids it to others
        self._options = NO_OPTIONS
        self._extra_bytes = _ATTRIBUTE_BYTES + len(self._service_name.encode())
        self._remedies = _Remedies(sqs_url)
        self._queue_constructor = queue_constructor
        self.queue = self._make_queue()

    @property
    def queue(self) -> Any:
        """The queue. In a process that was forked it is made anew: two processes cannot share a connection."""
        if self._process != _process:
            self.queue = self._make_queue()
        return self._queue

    @queue.setter
    def queue(self, queue: Any) -> None:
        self._queue, self._process = queue, _process

    def _make_queue(self) -> Queue:
        if self._queue_constructor is None:
            return _boto3_queue(self.url)
        return _custom_queue(self._queue_constructor, self.url)

    def submit(self, task: str, **kwargs: Any) -> Any:
        """Send one task, and return the response of SQS (with `MessageId`).

        Values JSON cannot hold are sent as `str(value)`, and the first time for each type that is logged at WARNING
        with the path of the field. A FIFO queue needs a message group: `manager.options(message_group_id=...)`.

        :raises InvalidTask: (a ValueError) for a name that is no non-empty string, arguments that cannot be written as
            JSON (or, by a strict manager, values JSON cannot hold), or, as `MessageTooLarge`, a message over 1 MiB.
            Nothing has been sent then.
        :raises ValueError: on a FIFO queue without a message group. Nothing has been sent then.
        :raises botocore.exceptions.ClientError: where SQS refused it.
        :raises botocore.exceptions.BotoCoreError: where SQS could not be reached, or no request could be made.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
        """
        return self._submit(task, kwargs)

    if not TYPE_CHECKING:
        submit = _with_words_for_two_tasks(submit)

    def _submit(self, task: str, kwargs: Mapping[str, Any]) -> Any:
        """`submit` for arguments of any name."""
        request, _ = self._request(task, kwargs)
        with self._remedies:
            return self.queue.send_message(**request)

    def submit_many(
        self,
        tasks: Iterable[tuple[str, Mapping[str, Any]]],
        *,
        threads: int = 8,
        on_progress: Callable[[SubmitResult], Any] | None = None,
    ) -> SubmitResult:
        """Send many tasks: in requests of up to 10 messages and 1 MiB, in parallel, each task accounted for.

        :param tasks: any iterable of `(task, kwargs)`, taken lazily and in the calling thread: 40 tasks for each thread
            (or 4 MiB) ahead of what is sent, so a generator of millions takes no more memory than one of hundreds (the
            message ids of the result aside: 16 bytes a task).
        :param threads: how many requests may be under way at a time, 1 to 64. Fewer are, where the answers come so
            fast that more would only cost processor time, or the client keeps fewer connections (botocore: 10; the
            client `TaskManager` makes by itself: 64).
        :param on_progress: called as `on_progress(result)` in the calling thread, some times a second while tasks are
            sent and once at the end. What it raises is logged.
        :return: the counts and the message ids (`result.message_ids[index]`).
        :raises TasksNotSent: after all the others were sent, where some were not: `failures` has the index, task, code
            and reason of each, and the error itself can be given to `submit_many` to try those again. The codes of
            its own: `HeldBack` (see below), `NotTried` (8 requests in a row did not get through, so the rest was not
            tried), `NoAnswer`, and the names of exceptions (`MessageTooLarge`, `InvalidTask`, ...). With 100,000
            failures no more tasks are taken: `rest` has those.
        :raises SubmitInterrupted: (a KeyboardInterrupt) on Ctrl-C, after waiting at most 5 seconds for requests under
            way; a second Ctrl-C ends the wait. It has the same attributes. Code `Unknown`: may have been sent.
        :raises ValueError: before anything is taken: for `threads` out of range, a FIFO queue without a message group,
            one deduplication id for all tasks.

        What the iterable itself raises is raised once all that it gave is sent.

        Throttling, faults of the service and troubles of the network are tried again, after random pauses that grow
        to at most 10 seconds, up to 10 times and for 100 seconds (on top of the client's own retries); what SQS
        refuses as the sender's fault is not. Delivery is at least once: when the answer to a request is lost, its
        messages are sent again, and a standard queue may then have them twice. A FIFO queue drops the second by its
        deduplication id, for five minutes.

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
        send, most = _sender(self.queue)
        line = GroupedLine(most) if self._fifo else Line(most)
        threads = min(threads, _connections(self.queue))
        return Sending(tasks, self._request_of_any, send, line, threads, on_progress).run()

    def options(
        self,
        *,
        delay_seconds: Given = None,
        message_group_id: Given = None,
        message_deduplication_id: Given = None,
        message_attributes: Given = None,
    ) -> TaskManager:
        """This manager, submitting with these: `manager.options(delay_seconds=60).submit("MyTask", x=1)`.

        Each is a value, or a function of the task that gives it (`lambda task, kwargs: kwargs["customer"]`; None means
        none), which is how the tasks of one `submit_many` get different ones. The manager itself is unchanged, and
        options can be added to options.

        :param delay_seconds: 0 to 900: the message is received no sooner. Standard queues only: a FIFO queue has one
            delay for all.
        :param message_group_id: 1 to 128 ASCII letters, digits and punctuation characters. On a FIFO queue required:
            the messages of one group are received in order. On a standard queue a fair queue: a group with a large
            backlog does not delay the others.
        :param message_deduplication_id: the same characters; FIFO queues only. SQS drops a message with the id of one
            of the last five minutes. Required unless the queue has
            ContentBasedDeduplication, which drops a task that is equal to an earlier one.
        :param message_attributes: name -> text, number or bytes: up to eight, beside this package's two. Trace context,
            say; `message.message_attributes` has them where they are asked for. They count towards the message's 1 MiB.
        :raises ValueError: for a value out of its range, or not for this kind of queue; of a function's value in
            `submit`, and as a failure in `submit_many`.

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
        # Dictionaries of its own for each message: instrumentation adds to them.
        attributes: dict[str, Any] = {"service_name": {"StringValue": self._service_name, "DataType": "String"}}
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
        """`_request` for what an iterable gave, which may be anything."""
        try:
            "".join(kwargs)  # the quickest way to see that all names are strings; this is called for each of millions
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
            time until the message's handler is entered; a handler's own `sqs_timeout` takes over there.
        :param message_attribute_names: the message attributes to ask for, `["All"]` for all of them: then
            `message.message_attributes` has them. SQS sends none that are not asked for.
        :param burst: end when a poll brings nothing, as tests want it: without it an empty queue is polled for ever.
        :raises ValueError: for a time out of its range, here and not at the first `next()`.
        :raises TypeError: for attribute names that are no strings.

        A body that `submit` did not write is notified and logged, and left to the queue's redrive policy. Errors of
        SQS in receiving are raised: let the process end, and its supervisor restart it. A loop that is stopped while it
        polls (Ctrl-C) leaves the message that this poll still brings hidden for `sqs_timeout`; `Worker` gives it back.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
        """
        wait_time = check_whole_seconds("wait_time", wait_time, MAX_WAIT_SECONDS)
        sqs_timeout = check_whole_seconds("sqs_timeout", sqs_timeout, MAX_VISIBILITY_SECONDS)
        names = _attribute_names(message_attribute_names)
        return self._generate(wait_time, sqs_timeout, names, burst)

    def _generate(self, wait_time: int, sqs_timeout: int, names: list[str], burst: bool) -> Iterator[Task]:
        while True:
            # A list of its own for each poll: instrumentation adds to it.
            wanted: dict[str, Any] = {"MessageAttributeNames": [*names]} if names else {}
            try:
                received = self.receive(wait_time, sqs_timeout, **wanted)
            except (KeyboardInterrupt, SystemExit):
                logger.warning(
                    "Stopped during a poll of %s: a message that it still brings stays hidden for %d s. Worker gives "
                    "it back at once",
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
        self, wait_time: int, sqs_timeout: int, most: int = 1, in_worker: bool = False, **wanted: Any
    ) -> list[Task | None]:
        """What one poll brings: tasks, and None for each body that `submit` did not write. As `task_generator` does.

        :param wait_time: seconds that it waits for a message, 0 to 20.
        :param sqs_timeout: the visibility timeout of the receive, 0 to 43200 seconds.
        :param most: how many messages it may bring, 1 to 10.
        :param in_worker: whether a Worker asks: it says itself what helps where it is refused, and its `notify` is told
            more.
        :param wanted: further parameters of ReceiveMessage.
        """
        asked_at = clock.now()
        with contextlib.nullcontext() if in_worker else self._remedies:
            received = self.queue.receive_messages(
                AttributeNames=["All"],
                MaxNumberOfMessages=most,
                WaitTimeSeconds=wait_time,
                VisibilityTimeout=sqs_timeout,
                **wanted,
            )
        names = wanted.get("MessageAttributeNames", ())
        has_attributes = "All" in names or ".*" in names
        receipt = asked_at, clock.now(), sqs_timeout, has_attributes
        return [self._open(message, receipt, in_worker) for message in received]

    def _open(self, message: Any, receipt: tuple[float, float, int, bool], in_worker: bool) -> Task | None:
        try:
            task, kwargs = messages.decode(message.body)
        except MalformedMessage as error:
            self._refuse(error, message, in_worker)
            return None
        asked_at, answered_at, seconds, has_attributes = receipt
        note.leave(
            message,
            note.Receipt(asked_at, answered_at, seconds, task, self.url, has_attributes, self._dead_letters),
        )
        return task, kwargs, message

    def _refuse(self, error: MalformedMessage, message: Any, in_worker: bool) -> None:
        queue_url = self.url if in_worker else None
        report = Report(message, "", self.notify, lambda: logger, time.monotonic, queue_url)
        report.outcome = "refused"
        text = "Malformed message, left to the redrive policy: %s"
        logger.exception(text, message, extra=report.facts("malformed"))
        report.notify(error)

    def attributes(self) -> Mapping[str, Any]:
        """The queue's attributes, asked for now. Counts in them are approximate.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
        """
        with self._remedies:
            self.queue.load()
            attributes: Mapping[str, Any] = self.queue.attributes
            return attributes

    def purge(self) -> None:
        """Delete every message in the queue, those in flight too. SQS allows one purge a minute, and takes as long.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_PurgeQueue.html
        """
        with self._remedies:
            self.queue.purge()

    def notify(self, exception: BaseException, context: Mapping[str, Any] | None = None) -> None:
        """Call the `notify` given to the constructor, if any, as `notify(exception, context=context)`."""
        if self._notify is not None:
            self._notify(exception, context=context)

    def __repr__(self) -> str:
        return f"TaskManager({self.url!r})"


def _boto3_queue(url: str) -> Queue:
    if not _is_queue_url(url):
        raise ValueError(
            f"{url!r} is no queue URL: one looks like https://sqs.eu-west-1.amazonaws.com/123456789012/name. For an "
            "in-memory queue, give queue_constructor=LocalQueue"
        )
    # Loaded here, so that whoever only imports this module, or uses a LocalQueue, does not wait for it.
    import boto3
    from botocore.config import Config
    from botocore.exceptions import NoRegionError

    config = Config(connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, max_pool_connections=_MAX_THREADS)
    region = {"region_name": region_of(url)} if region_of(url) else {}
    try:
        queue: Queue = boto3.resource("sqs", config=config, **region).Queue(url)
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
    return queue


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
    remedy = "give LocalQueue, or a callable that takes the queue's URL and gives an object like boto3's SQS.Queue"
    if not callable(constructor):
        raise TypeError(f"{wrong}: not callable; {remedy}")
    try:
        queue: Queue = constructor(url)
    except (TypeError, ValueError) as error:
        # Raised by the call itself, as by `object` or `int`, the constructor does not take a URL. An error from within
        # a constructor's own code is the user's to see as it is.
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
        raise TypeError(f"{wrong}: gave {queue!r}, which has no {', no '.join(lacking)}; {remedy}")
    return queue


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


def _sender(queue: Any) -> tuple[Callable[[list[dict[str, Any]]], Any], int]:
    """How entries are sent to a queue, and how many at a time. The function can be called from several threads."""
    # boto3 says that its clients may be shared by threads, and that its resources may not. Only boto3's own method is
    # passed over: one that somebody put in its place does something more.
    if getattr(getattr(type(queue), "send_messages", None), "__module__", None) == "boto3.resources.factory":
        client, url = queue.meta.client, queue.url
        remedies = _Remedies(url)

        def send(entries: list[dict[str, Any]]) -> Any:
            with remedies:
                return client.send_message_batch(QueueUrl=url, Entries=entries)

        return send, MAX_BATCH_ENTRIES
    if callable(getattr(queue, "send_messages", None)):
        return lambda entries: queue.send_messages(Entries=entries), MAX_BATCH_ENTRIES

    def send_one(entries: list[dict[str, Any]]) -> Any:
        (entry,) = entries
        answer = queue.send_message(**{name: value for name, value in entry.items() if name != "Id"})
        message_id = answer.get("MessageId") if isinstance(answer, Mapping) else None
        return {"Successful": [{"Id": entry["Id"], "MessageId": message_id}]}

    return send_one, 1


def _connections(queue: Any) -> int:
    """How many connections the client of a boto3 queue keeps: a thread beyond makes a new one for each request."""
    config = getattr(getattr(getattr(queue, "meta", None), "client", None), "meta", None)
    most = getattr(getattr(config, "config", None), "max_pool_connections", None)
    return most if isinstance(most, int) and most > 0 else _MAX_THREADS


class _Remedies:
    """A block whose errors say what to do, where credentials or the queue are missing. They stay botocore's own."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or not type(error).__module__.startswith("botocore."):
            return
        from sqstaskmaster._sqs.answers import is_missing_queue, remedy_for

        if type(error).__name__ == "NoCredentialsError":
            error.args = (f"No AWS credentials found: {remedy_for(error)}",)
        elif is_missing_queue(error) and self._url not in str(error):
            error.args = (f"{str(error).rstrip('.')}: {self._url}: {remedy_for(error)}",)
