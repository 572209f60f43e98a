"""What is in a dead-letter queue, and moving some of it back.

    receive, 10 at a time -> look at each: show it, or send it to its destination and delete it -> give back all others

A message that is looked at is hidden for as long as the look lasts, so that none is seen twice. SQS counts each look as
a receive: where the queue has a redrive policy of its own, that would move messages on, so it is refused.
"""

from __future__ import annotations

import argparse
import base64
import calendar
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqstaskmaster._claim import forwarding
from sqstaskmaster._claim.report import printable
from sqstaskmaster._cli import tables
from sqstaskmaster._cli.exits import CommandError
from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster._sqs import messages
from sqstaskmaster._sqs.answers import SQS_ERRORS
from sqstaskmaster._sqs.limits import MAX_BATCH_ENTRIES
from sqstaskmaster.errors import MalformedMessage
from sqstaskmaster.task_manager import TaskManager

# A look ends after so long, well before what it has hidden becomes visible by itself.
_LOOK_SECONDS = 60.0
_HIDDEN_SECONDS = 120

# A poll that waits asks all of SQS's servers; one that does not may miss messages that are there.
_WAIT_SECONDS = 1

_SHOWN_CHARACTERS = 60


def dead(arguments: argparse.Namespace) -> Exit:
    """Show the messages of a dead-letter queue."""
    queue = TaskManager(arguments.url).queue
    _refuse_where_a_look_matters(queue)
    rows: list[list[str]] = []
    with _Look(queue) as look:
        for message in itertools.islice(look.matching(arguments.task, arguments.id), arguments.limit):
            if arguments.json:
                print(json.dumps(_record(message)), flush=True)
            else:
                rows.append(_row(_record(message)))
    if not arguments.json:
        numbers = ("age", "receives")
        tables.show(
            tables.Table(("id", "task", "kwargs", "reason", "age", *numbers[1:], "first sent"), rows, (), numbers)
        )
    look.tell_what_was_not_seen(arguments.limit)
    return Exit.OK


def move_some(arguments: argparse.Namespace, destination: str) -> Exit:
    """Send the messages that the filter names to the destination, then delete them."""
    manager = TaskManager(arguments.url)
    _refuse_where_a_look_matters(manager.queue)
    target = TaskManager(destination).queue
    moved = 0
    pause = 0.0 if arguments.rate is None else 1 / arguments.rate
    with tables.progress("Moved", None) as update, _Look(manager.queue) as look:
        for message in itertools.islice(look.matching(arguments.task, arguments.id), arguments.limit):
            target.send_message(**forwarding.redriven(message, target.url.endswith(".fifo")))
            message.delete()
            look.forget(message)
            moved += 1
            update(moved, None)
            time.sleep(pause)
    print(f"{moved:,} messages moved to {destination}")
    look.tell_what_was_not_seen(arguments.limit)
    missing = sorted(set(arguments.id or ()) - look.seen)
    if missing:
        raise CommandError(
            Exit.QUEUE, f"Not found: {', '.join(missing)}: see what is there with 'sqstaskmaster dead {arguments.url}'"
        )
    return Exit.OK


class _Look:
    """The messages of a queue, each once. What it still holds in the end is given back at once.

    `seen`: the ids of the messages that matched.
    """

    def __init__(self, queue: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self.seen: set[str] = set()
        self._queue = queue
        self._clock = clock
        self._held: dict[str, Any] = {}
        self._out_of_time = False

    def __enter__(self) -> _Look:
        return self

    def __exit__(self, *exception: object) -> None:
        handles = list(self._held.values())
        refused = 0
        for start in range(0, len(handles), MAX_BATCH_ENTRIES):
            entries = [
                {"Id": str(number), "ReceiptHandle": handle, "VisibilityTimeout": 0}
                for number, handle in enumerate(handles[start : start + MAX_BATCH_ENTRIES])
            ]
            try:
                refused += len(self._queue.change_message_visibility_batch(Entries=entries).get("Failed", ()))
            except SQS_ERRORS:
                refused += len(entries)
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
                if message.message_id in self.seen:
                    continue  # standard queues deliver at least once
                if (task is None or _task_of(message)[0] == task) and (ids is None or message.message_id in ids):
                    self.seen.add(message.message_id)
                    yield message

    def forget(self, message: Any) -> None:
        """It has been deleted."""
        self._held.pop(message.message_id, None)

    def tell_what_was_not_seen(self, limit: int | None) -> None:
        if self._out_of_time:
            print(f"There may be more: a look ends after {_LOOK_SECONDS:g} s", file=sys.stderr)
        if limit is not None and len(self.seen) >= limit:
            print(f"There may be more: the first {limit:,} are shown or moved (--limit)", file=sys.stderr)
        if self._queue.url.endswith(".fifo"):
            print(
                f"A FIFO queue shows the first {MAX_BATCH_ENTRIES} messages of each message group to one look, no more",
                file=sys.stderr,
            )


def _refuse_where_a_look_matters(queue: Any) -> None:
    queue.load()
    if queue.attributes.get("RedrivePolicy"):
        raise CommandError(
            Exit.QUEUE,
            f"{queue.url} has a redrive policy of its own, and each look counts as a receive: its messages would be "
            "moved on. Take the policy off for the look, or use the AWS console's redrive",
        )


# -- what is said of a message ----------------------------------------------------------------------------------------


def _task_of(message: Any) -> tuple[str | None, dict[str, Any] | None]:
    try:
        return messages.decode(message.body)
    except MalformedMessage:
        return None, None


def _record(message: Any) -> dict[str, Any]:
    """All there is to say of a message. `age` in seconds; `run --body` takes it."""
    task, kwargs = _task_of(message)
    reason = forwarding.reason_of(message)
    sent = _milliseconds(message.attributes.get("SentTimestamp"))
    first = _milliseconds(forwarding.chain_of(message).first_sent) or sent
    why = ": ".join(str(reason[part]) for part in ("error", "reason") if reason.get(part))
    return {
        "id": message.message_id,
        "task": task,
        "kwargs": kwargs,
        "reason": why or None,
        "when": reason.get("when"),
        "age": None if sent is None else round(max(0.0, time.time() - _died(reason, sent))),
        "receives": reason.get("receive_count") or message.attributes.get("ApproximateReceiveCount"),
        "first_sent": None if first is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(first)),
        "body": message.body,
        "message_attributes": _attributes(message.message_attributes),
    }


def _died(reason: Mapping[str, Any], sent: float) -> float:
    """Since when it is dead, in seconds since the epoch: where nobody says that, since when it was sent."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return calendar.timegm(time.strptime(reason["when"], "%Y-%m-%dT%H:%M:%SZ"))
    return sent


def _attributes(found: Any) -> dict[str, Any]:
    """As JSON holds them: bytes in base64, which `run --body` takes back."""
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
        record["id"],
        printable(record["task"]) if record["task"] else "(no task)",
        _short(kwargs),
        _short(record["reason"] or "?"),
        "?" if record["age"] is None else _age(record["age"]),
        str(record["receives"] or "?"),
        record["first_sent"] or "?",
    ]


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _milliseconds(text: Any) -> float | None:
    return int(text) / 1000 if isinstance(text, str) and text.isdecimal() and len(text) < 20 else None
