"""TaskManager: the queue, seen as tasks.

submit(task, **kwargs) -> messages.encode -> size check -> queue.send_message
task_generator -> queue.receive_messages -> messages.decode -> yields (task, kwargs, message)
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from sqstaskmaster import claims, messages
from sqstaskmaster.errors import ConfigurationError, MalformedMessage, MessageTooLarge
from sqstaskmaster.limits import (
    MAX_MESSAGE_BYTES,
    MAX_VISIBILITY_SECONDS,
    MAX_WAIT_SECONDS,
    check_whole_seconds,
    is_sendable,
)
from sqstaskmaster.protocols import Queue

logger = logging.getLogger(__name__)

Task = tuple[str, dict[str, Any], Any]

# Connecting takes milliseconds where it works at all; botocore's default of 60 s is longer than most claims.
_CONNECT_SECONDS = 5
# Longer than the longest poll. A visibility timeout should exceed it, and botocore's default of 60 s often does not.
_READ_SECONDS = MAX_WAIT_SECONDS + 10

# A poll that took longer than it was asked to wait was delayed on its way, so its claim may be older than it looks.
_ON_TIME_SECONDS = 1.0

# sqs.eu-west-1.amazonaws.com, sqs.cn-north-1.amazonaws.com.cn, sqs-fips.us-east-1.amazonaws.com,
# vpce-0123-abcd.sqs.us-east-1.vpce.amazonaws.com, and the legacy eu-west-1.queue.amazonaws.com.
_REGION_IN_HOST = re.compile(
    r"(?:^|\.)(?:sqs(?:-fips)?\.(?P<region>[a-z0-9-]+)(?:\.vpce)?|(?P<legacy>[a-z0-9-]+)\.queue)"
    r"\.amazonaws\.com(?:\.cn)?$"
)
# The oldest form of all names no region and means one.
_REGION_OF_HOST = {"queue.amazonaws.com": "us-east-1", "sqs.amazonaws.com": "us-east-1"}


class TaskManager:
    """Sends tasks to an SQS queue, and receives them.

    :param sqs_url: the queue's URL, as SQS gives it.
    :param notify: called as `notify(exception, context=mapping)` with what went wrong in receiving, to feed an error
        service.
    :param queue_constructor: `queue_constructor(sqs_url)` makes the queue. `LocalQueue`, or any callable that gives an
        object with the methods of boto3's `SQS.Queue` used here. Default: boto3's own, with credentials, endpoint and
        retries from the standard AWS configuration, and the region in the URL where there is one.
    :param sender_name: sent with each message as its attribute `service_name`.
    :raises TypeError: for a queue constructor that does not give a queue.
    :raises ValueError: for a URL or a sender name that is none, or (ConfigurationError) where no region is configured.
    """

    def __init__(
        self,
        sqs_url: str,
        notify: Callable[..., Any] | None = None,
        queue_constructor: Callable[[str], Any] | None = None,
        sender_name: str | None = None,
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
        self.sender_name = sender_name or f"Unknown sender to: {sqs_url}"
        self._notify = notify
        self.queue = _boto3_queue(sqs_url) if queue_constructor is None else _custom_queue(queue_constructor, sqs_url)

    def submit(self, task: str, **kwargs: Any) -> Any:
        """Send one task, and return the response of SQS (with `MessageId`).

        Values JSON cannot hold are sent as `str(value)`.

        :raises InvalidTask: (a ValueError) for a name that is no non-empty string, arguments that cannot be written as
            JSON, or, as MessageTooLarge, a message over 1 MiB. Nothing has been sent then.
        :raises botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError: where SQS refused it, or could not
            be reached.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html
        """
        body = messages.encode(task, kwargs)
        attributes = {"service_name": {"StringValue": self.sender_name, "DataType": "String"}}
        size = len(body) + len("service_name") + len("String") + len(self.sender_name.encode())
        if size > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(task, size, MAX_MESSAGE_BYTES)
        with _remedies():
            return self.queue.send_message(MessageBody=body, MessageAttributes=attributes)

    def task_generator(self, wait_time: int = 20, sqs_timeout: int = 20) -> Iterator[Task]:
        """Yield `(task, kwargs, message)` for ever, polling for one message at a time.

        :param wait_time: how long each poll waits for a message: 0 to 20 seconds.
        :param sqs_timeout: the visibility timeout of the receive: 0 to 43200 seconds (12 hours). It should exceed the
            time until the message's handler is entered; a handler's own `sqs_timeout` takes over there.
        :raises ValueError: for a time out of its range, here and not at the first `next()`.

        A body that `submit` did not write is notified and logged, and left to the queue's redrive policy. Errors of
        SQS in receiving are raised: let the process end, and its supervisor restart it.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html
        """
        wait_time = check_whole_seconds("wait_time", wait_time, MAX_WAIT_SECONDS)
        sqs_timeout = check_whole_seconds("sqs_timeout", sqs_timeout, MAX_VISIBILITY_SECONDS)
        return self._generate(wait_time, sqs_timeout)

    def _generate(self, wait_time: int, sqs_timeout: int) -> Iterator[Task]:
        while True:
            yield from self._poll(wait_time, sqs_timeout)

    def _poll(self, wait_time: int, sqs_timeout: int) -> Iterator[Task]:
        asked_at = time.monotonic()
        with _remedies():
            received = self.queue.receive_messages(
                AttributeNames=["All"],
                MaxNumberOfMessages=1,
                WaitTimeSeconds=wait_time,
                VisibilityTimeout=sqs_timeout,
            )
        now = time.monotonic()
        expires = now + sqs_timeout if now - asked_at <= wait_time + _ON_TIME_SECONDS else None
        for message in received:
            try:
                task, kwargs = messages.decode(message.body)
            except MalformedMessage as error:
                self._refuse(error, message)
                continue
            claims.note(message, claims.Claim(received=asked_at, expires=expires, task=task))
            yield task, kwargs, message

    def _refuse(self, error: MalformedMessage, message: Any) -> None:
        logger.exception("Malformed message, left to the redrive policy: %s", message, extra={"action": "malformed"})
        try:
            self.notify(error, context={"body": message.body, **(message.attributes or {})})
        except Exception:
            logger.exception("notify failed for message: %s", message, extra={"action": "notify_failed"})

    def attributes(self) -> Mapping[str, Any]:
        """The queue's attributes, asked for now. Counts in them are approximate.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html
        """
        with _remedies():
            self.queue.load()
            return self.queue.attributes

    def purge(self) -> None:
        """Delete every message in the queue, those in flight too. SQS allows one purge a minute, and takes as long.

        https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_PurgeQueue.html
        """
        with _remedies():
            self.queue.purge()

    def notify(self, exception: BaseException, context: Mapping[str, Any] | None = None) -> None:
        """Call the `notify` given to the constructor, if any."""
        if self._notify is not None:
            self._notify(exception, context=context)

    def __repr__(self) -> str:
        return f"TaskManager({self.url!r})"


def region_of(url: str) -> str | None:
    """The AWS region in a queue URL of amazonaws.com, None for any other URL.

    Requests are signed for a region, and SQS refuses those signed for another than the queue's.
    """
    host = urlsplit(url).hostname or ""
    found = _REGION_IN_HOST.search(host)
    return (found["region"] or found["legacy"]) if found else _REGION_OF_HOST.get(host)


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

    config = Config(connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS)
    region = {"region_name": region_of(url)} if region_of(url) else {}
    try:
        queue: Queue = boto3.resource("sqs", config=config, **region).Queue(url)
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


@contextlib.contextmanager
def _remedies() -> Iterator[None]:
    """Say what to do where credentials are missing. The error stays a botocore.exceptions.NoCredentialsError."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "NoCredentialsError":
            error.args = (
                "No AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run "
                "with an IAM role",
            )
        raise
