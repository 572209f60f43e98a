"""The demo's working process: a producer thread submits, and the main thread consumes as any worker does.

    producer --submit--> queue --WatchedQueue--> task_generator --> handler
                              WatchedMessage reports every answer     |
                                                                      v
                                 events, one JSON line each, on standard output

It is a process of its own so that a task, whatever it does, never keeps the picture from being drawn.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from sqstaskmaster._cli.demo.events import Event, Kind
from sqstaskmaster._cli.demo.scenarios import CLAIM_SECONDS, SCENARIOS, Task
from sqstaskmaster.errors import SQSTaskMasterError
from sqstaskmaster.local import LocalQueue
from sqstaskmaster.task_manager import TaskManager

Record = Callable[..., None]

_SUBMIT_EVERY_SECONDS = 0.15
_POLL_SECONDS = 1

# The demo ends after this, whatever else the queue carries and whatever else consumes from it.
_DEADLINE_SECONDS = 60
_TIDY_SECONDS = 5

# Other senders' messages are hidden for this long, so that the demo receives each only once; they are given back when
# it ends.
_ASIDE_SECONDS = _DEADLINE_SECONDS + _TIDY_SECONDS


class Finished(Exception):
    """Nothing more is to come. A poll raises it to end task_generator, which otherwise never ends."""


class WatchedMessage:
    """A message that reports each of SQS's answers about it."""

    def __init__(self, message: Any, row: int, record: Record) -> None:
        self._message = message
        self._record = record
        self.row = row
        self.deleted = False
        self.body: str = message.body
        self.attributes: Mapping[str, Any] = message.attributes or {}
        self.message_id: str = message.message_id

    def change_visibility(self, *, VisibilityTimeout: int) -> None:
        self._message.change_visibility(VisibilityTimeout=VisibilityTimeout)
        if VisibilityTimeout:
            self._record(Kind.EXTENDED, self.row, claim=VisibilityTimeout)

    def delete(self) -> None:
        self._message.delete()
        self.deleted = True


class WatchedQueue:
    """A queue that passes on what this run of the demo sent, each message once, and sets the rest aside."""

    def __init__(self, queue: Any, run: str, record: Record, redelivers: bool) -> None:
        self._queue = queue
        self._ours = re.compile(re.escape(run) + r"/(\d+)")
        self._record = record
        self._redelivers = redelivers
        self._deadline = time.monotonic() + _DEADLINE_SECONDS
        self.sent: set[int] = set()
        self._waiting = set(range(len(SCENARIOS)))  # have yet to end in some way
        self._coming_back: dict[int, WatchedMessage] = {}  # ended, and not deleted
        self._aside: list[Any] = []
        self.trouble: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def receive_messages(self, **asked: Any) -> Sequence[WatchedMessage]:
        if self.trouble is not None:
            raise self.trouble
        if time.monotonic() > self._deadline or not (self._waiting or self._coming_back):
            raise Finished
        return [ours for message in self._queue.receive_messages(**asked) if (ours := self._sorted(message))]

    def _sorted(self, message: Any) -> WatchedMessage | None:
        found = self._ours.search(message.body)
        if found is None:
            message.change_visibility(VisibilityTimeout=_ASIDE_SECONDS)
            self._aside.append(message)
            self._record(Kind.ASIDE)
            return None
        ours = WatchedMessage(message, int(found[1]), self._record)
        if ours.row not in self._waiting:
            message.delete()
            if self._coming_back.pop(ours.row, None):
                self._record(Kind.BACK, ours.row, text=str(ours.attributes.get("ApproximateReceiveCount", "")))
            return None
        self._record(Kind.RECEIVED, ours.row, claim=CLAIM_SECONDS)
        if SCENARIOS[ours.row].handler is None:
            self.ended(ours, Kind.REFUSED)
        return ours

    def ended(self, message: WatchedMessage, kind: Kind, text: str = "", stack: str = "") -> None:
        self._record(kind, message.row, text=text, stack=stack)
        self._waiting.discard(message.row)
        if self._redelivers and kind is not Kind.DONE:
            self._coming_back[message.row] = message

    def tidy(self) -> None:
        """Leave the queue as it was found: delete what the demo sent, give back what others sent."""
        if not self._redelivers:
            return
        for message in self._coming_back.values():
            message.delete()
        end = time.monotonic() + _TIDY_SECONDS
        unseen, self._waiting = self._waiting & self.sent, set()
        while unseen and time.monotonic() < end:
            for message in self._queue.receive_messages(
                MaxNumberOfMessages=10, WaitTimeSeconds=_POLL_SECONDS, VisibilityTimeout=CLAIM_SECONDS
            ):
                found = self._ours.search(message.body)
                self._sorted(message)
                if found:
                    unseen.discard(int(found[1]))
        for message in self._aside:
            message.change_visibility(VisibilityTimeout=0)


def produce(manager: TaskManager, run: str, queue: WatchedQueue, record: Record, stop: threading.Event) -> None:
    """Submit every scenario, at short intervals."""
    for row, scenario in enumerate(SCENARIOS):
        if stop.wait(_SUBMIT_EVERY_SECONDS if row else 0):
            return
        # Recorded first, so that no message appears as received before it was sent.
        record(Kind.SENT, row)
        queue.sent.add(row)
        if scenario.handler is None:
            manager.queue.send_message(MessageBody='{"task": "Resize", "kwargs": {"demo": "%s/%d' % (run, row))
        else:
            manager.submit(scenario.task, demo=f"{run}/{row}")


def consume(manager: TaskManager, queue: WatchedQueue) -> None:
    """The loop of a worker."""
    for _, kwargs, message in manager.task_generator(wait_time=_POLL_SECONDS, sqs_timeout=CLAIM_SECONDS):
        handler = handler_of(message, kwargs)
        try:
            with handler:
                handler.run()
        finally:
            error = f"{type(handler.error).__name__}: {handler.error}" if handler.error else ""
            kind = Kind(str(handler.outcome or Kind.INTERRUPTED.value))
            if kind is Kind.DONE and not message.deleted:
                kind = Kind.FAILED
            queue.ended(message, kind, error, handler.stack)


def handler_of(message: WatchedMessage, kwargs: Mapping[str, Any]) -> Task:
    handler = SCENARIOS[message.row].handler
    assert handler is not None
    return handler(message, **kwargs)


def run(url: str | None, record: Record) -> None:
    """Produce and consume until every message has ended, on the queue with that URL or on a LocalQueue."""
    name = uuid.uuid4().hex[:12]
    address, constructor = (url, None) if url else (f"local://demo-{name}", LocalQueue)
    producer = TaskManager(address, queue_constructor=constructor, sender_name="sqstaskmaster demo")
    # A queue object of its own for the consumer: boto3's resources are not thread-safe.
    own = TaskManager(address, queue_constructor=constructor).queue
    queue = WatchedQueue(own, name, record, redelivers=bool(url))
    manager = TaskManager(address, queue_constructor=lambda _: queue)
    stop = threading.Event()

    def submit() -> None:
        try:
            produce(producer, name, queue, record, stop)
        except Exception as error:  # raised in the main thread, by its next poll
            queue.trouble = error

    thread = threading.Thread(target=submit, name="producer")
    thread.start()
    try:
        consume(manager, queue)
    except Finished:
        pass
    finally:
        stop.set()
        thread.join()
        if queue.trouble is None:
            queue.tidy()


def main(url: str | None = None) -> int:
    # Anything a task prints goes to standard error: standard output carries only events.
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    started = time.monotonic()
    # The picture shows what the library would log.
    logging.getLogger("sqstaskmaster").addHandler(logging.NullHandler())

    def record(kind: Kind, row: int = -1, text: str = "", claim: float = 0.0, stack: str = "") -> None:
        os.write(events, Event(time.monotonic() - started, kind, row, text, claim, stack).to_line())

    try:
        run(url, record)
    except KeyboardInterrupt:
        return 130
    except (SQSTaskMasterError, ValueError, ClientError, BotoCoreError) as error:
        record(Kind.TROUBLE, text=str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
