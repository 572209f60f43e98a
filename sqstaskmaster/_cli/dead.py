"""Shows what is in a dead-letter queue, and moves some of it back.

    receive, 10 at a time -> look at each: show it, or send it to its destination and delete it -> give back all others

A message stays hidden while the look lasts, so that none is seen twice. SQS counts each look as a receive: if the queue
has a redrive policy of its own, that would move messages on, so such a queue is refused.
"""

from __future__ import annotations

import argparse
import base64
import calendar
import contextlib
import itertools
import json
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqstaskmaster._claim import forwarding
from sqstaskmaster._claim.report import printable
from sqstaskmaster._cli import tables
from sqstaskmaster._cli.exits import CommandError, asking
from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster._signals.wakeup import SignalWakeup
from sqstaskmaster._sqs import messages
from sqstaskmaster._sqs.answers import SQS_ERRORS
from sqstaskmaster._sqs.confirmation import batch_results, is_of_boto3
from sqstaskmaster._sqs.explained import send
from sqstaskmaster._sqs.limits import MAX_BATCH_ENTRIES
from sqstaskmaster.errors import MalformedMessage
from sqstaskmaster.task_manager import TaskManager

# A look ends after this long, well before what it has hidden becomes visible by itself.
_LOOK_SECONDS = 60.0
_HIDDEN_SECONDS = 120

# A poll that waits asks all of SQS's servers; one that does not wait may miss messages.
_WAIT_SECONDS = 1

_SHOWN_CHARACTERS = 60

_NO_REASON = (
    "No reasons are known: SQS moved these messages itself, without a reason. With "
    "Worker(dead_letter_reasons=True) the worker sends the reason at the last failure"
)


def dead(arguments: argparse.Namespace) -> Exit:
    """Show the messages of a dead-letter queue."""
    manager = TaskManager(arguments.url)
    _refuse_where_a_look_matters(manager)
    rows: list[list[str]] = []
    any_reason = False
    with _Look(manager.queue) as look:
        for message in itertools.islice(look.matching(arguments.task, arguments.id), arguments.limit):
            if arguments.json:
                print(json.dumps(_record(message)), flush=True)
            else:
                record = _record(message)
                rows.append(_row(record))
                any_reason = any_reason or record["reason"] is not None
    if not arguments.json:
        columns = ("message_id", "task", "kwargs", "reason", "age", "receive_count", "first_sent")
        below = ("message_id", "first_sent")
        tables.show(tables.Table(columns, rows, (), ("age", "receive_count"), ("task", "kwargs", "reason"), below))
        if rows and not any_reason:
            print(_NO_REASON, file=sys.stderr)
    look.tell_what_was_not_seen(arguments.limit)
    if look.stopped_by is not None:
        raise CommandError(Exit.INTERRUPTED, f"Stopped by {look.stopped_by}: there may be more")
    return Exit.OK


def move_some(arguments: argparse.Namespace, destination: str) -> Exit:
    """Send the messages that match the filter to the destination, then delete them."""
    manager = TaskManager(arguments.url)
    _refuse_where_a_look_matters(manager)
    target = TaskManager(destination).queue
    moved = 0
    last = ""
    pause = 0.0 if arguments.rate is None else 1 / arguments.rate
    with tables.progress("Moved", None) as update, _Look(manager.queue) as look:
        for message in itertools.islice(look.matching(arguments.task, arguments.id), arguments.limit):
            _move(message, target)
            look.forget(message)
            moved += 1
            last = message.message_id
            update(moved, None)
            look.wait(pause)
    if look.stopped_by is not None:
        where = f", the last of them {last}" if moved else ""
        raise CommandError(
            Exit.INTERRUPTED,
            f"Stopped by {look.stopped_by} after {moved:,} messages{where}: run it again for the rest",
        )
    print(f"{moved:,} {'message' if moved == 1 else 'messages'} moved to {destination}")
    look.tell_what_was_not_seen(arguments.limit)
    missing = sorted(set(arguments.id or ()) - look.seen)
    if missing:
        raise CommandError(
            Exit.QUEUE, f"Not found: {', '.join(missing)}: see what is there with 'sqstaskmaster dead {arguments.url}'"
        )
    return Exit.OK


def _move(message: Any, target: Any) -> None:
    """Send the message first, delete it second."""
    with asking(target.url, target):
        send(target, target.url, forwarding.redriven(message, target.url.endswith(".fifo")))
    try:
        with asking(message.queue_url, message):
            message.delete()
    except CommandError as error:
        raise CommandError(
            error.code, f"Message {message.message_id} was sent, but not deleted, so it is in both queues now: {error}"
        ) from error


class _Look:
    """The messages of a queue, each once. At the end, those still held are given back at once.

    SIGINT and SIGTERM end it between two messages. `seen`: the ids of the messages that matched. `stopped_by`: the
    name of the signal that ended it.
    """

    def __init__(self, queue: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self.seen: set[str] = set()
        self._queue = queue
        self._clock = clock
        self._held: dict[str, Any] = {}
        self._out_of_time = False
        self._signals = SignalWakeup(signal.SIGINT, signal.SIGTERM)
        self.stopped_by: str | None = None

    def __enter__(self) -> _Look:
        self._signals.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._give_back()
        finally:
            self._signals.__exit__(*exception)

    def wait(self, seconds: float) -> None:
        """Wait this many seconds, or less if a signal comes."""
        select.select([self._signals], [], [], seconds)

    def _is_stopped(self) -> bool:
        arrived = self._signals.read()
        if arrived and self.stopped_by is None:
            self.stopped_by = signal.Signals(arrived[0]).name
        return self.stopped_by is not None

    def _give_back(self) -> None:
        handles = list(self._held.values())
        refused = 0
        for start in range(0, len(handles), MAX_BATCH_ENTRIES):
            entries = [
                {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": 0}
                for number, handle in enumerate(handles[start : start + MAX_BATCH_ENTRIES])
            ]
            try:
                answer = self._queue.change_message_visibility_batch(Entries=entries)
            except SQS_ERRORS:
                refused += len(entries)
                continue
            of_boto3 = is_of_boto3(self._queue, "change_message_visibility_batch")
            results = batch_results(
                "ChangeMessageVisibilityBatch", answer, dict.fromkeys(entry["Id"] for entry in entries), of_boto3
            )
            refused += sum(isinstance(result, Exception) for result in results.values())
        if refused:
            print(
                f"{refused:,} messages were not given back: they are visible again in {_HIDDEN_SECONDS} s at most",
                file=sys.stderr,
            )

    def matching(self, task: str | None, ids: list[str] | None) -> Iterator[Any]:
        """The messages of this task, and with one of these ids; None for any."""
        ends = self._clock() + _LOOK_SECONDS
        while ids is None or not self.seen.issuperset(ids):
            if self._clock() > ends:
                self._out_of_time = True
                return
            if self._is_stopped():
                return
            received = self._queue.receive_messages(
                AttributeNames=["All"],
                MessageAttributeNames=["All"],
                MaxNumberOfMessages=MAX_BATCH_ENTRIES,
                VisibilityTimeout=_HIDDEN_SECONDS,
                WaitTimeSeconds=_WAIT_SECONDS,
            )
            if not received:
                return
            self._held.update({message.message_id: message.receipt_handle for message in received})
            for message in received:
                if self._is_stopped():
                    return
                if message.message_id in self.seen:
                    continue  # standard queues deliver at least once
                if (task is None or _task_of(message)[0] == task) and (ids is None or message.message_id in ids):
                    self.seen.add(message.message_id)
                    yield message

    def forget(self, message: Any) -> None:
        """Do not give this message back: it has been deleted."""
        self._held.pop(message.message_id, None)

    def tell_what_was_not_seen(self, limit: int | None) -> None:
        if self._out_of_time:
            print(f"There may be more: a look ends after {_LOOK_SECONDS:g} s", file=sys.stderr)
        if limit is not None and len(self.seen) >= limit:
            print(f"There may be more: the first {limit:,} are shown or moved (--limit)", file=sys.stderr)
        if self._queue.url.endswith(".fifo"):
            print(
                f"One look at a FIFO queue shows only the first {MAX_BATCH_ENTRIES} messages of each message group",
                file=sys.stderr,
            )


def _refuse_where_a_look_matters(manager: TaskManager) -> None:
    if manager.attributes().get("RedrivePolicy"):
        raise CommandError(
            Exit.QUEUE,
            f"{manager.url} has a redrive policy of its own, and each look counts as a receive: its messages would "
            "be moved on. Remove the policy while you look, or use the AWS console's redrive",
        )


# -- what is shown of a message ---------------------------------------------------------------------------------------


def _task_of(message: Any) -> tuple[str | None, dict[str, Any] | None]:
    try:
        return messages.decode(message.body)
    except MalformedMessage:
        return None, None


def _record(message: Any) -> dict[str, Any]:
    """Everything shown of a message. `age` is in seconds. `run --body` accepts this record."""
    task, kwargs = _task_of(message)
    reason = forwarding.reason_of(message)
    sent = _milliseconds(message.attributes.get("SentTimestamp"))
    first = _milliseconds(forwarding.chain_of(message).first_sent) or sent
    why = ": ".join(str(reason[part]) for part in ("error", "reason") if reason.get(part))
    return {
        "message_id": message.message_id,
        "task": task,
        "kwargs": kwargs,
        "reason": why or None,
        "when": reason.get("when"),
        "age": None if sent is None else round(max(0.0, time.time() - _died(reason, sent))),
        "receive_count": _count(reason.get("receive_count") or message.attributes.get("ApproximateReceiveCount")),
        "first_sent": None if first is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(first)),
        "body": message.body,
        "message_attributes": _attributes(message.message_attributes),
    }


def _died(reason: Mapping[str, Any], sent: float) -> float:
    """When it was dead-lettered, in seconds since the epoch; if that is not recorded, when it was sent."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return calendar.timegm(time.strptime(reason["when"], "%Y-%m-%dT%H:%M:%SZ"))
    return sent


def _attributes(found: Any) -> dict[str, Any]:
    """The attributes as JSON can hold them: bytes in base64, which `run --body` accepts."""
    return {
        name: {
            part: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for part, value in attribute.items()
            if part in ("DataType", "StringValue", "BinaryValue")
        }
        for name, attribute in (found or {}).items()
    }


def _row(record: Mapping[str, Any]) -> list[str]:
    kwargs = record["body"] if record["kwargs"] is None else json.dumps(record["kwargs"])
    return [
        record["message_id"],
        printable(record["task"]) if record["task"] else "(no task)",
        _short(kwargs),
        _short(record["reason"] or "?"),
        "?" if record["age"] is None else _age(record["age"]),
        "?" if record["receive_count"] is None else str(record["receive_count"]),
        record["first_sent"] or "?",
    ]


def _short(text: str) -> str:
    return tables.shortened(printable(text), _SHOWN_CHARACTERS)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _count(text: Any) -> int | None:
    return int(text) if str(text).isdecimal() and len(str(text)) < 20 else None


def _milliseconds(text: Any) -> float | None:
    return int(text) / 1000 if isinstance(text, str) and text.isdecimal() and len(text) < 20 else None
