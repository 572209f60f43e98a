"""What the command line does with a queue: submit, status, redrive, purge. Each takes the parsed arguments."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import logging
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

from sqstaskmaster._claim.destinations import dead_letter_url
from sqstaskmaster._cli import tables
from sqstaskmaster._cli.exits import CommandError, asking
from sqstaskmaster._service.exit_codes import Exit
from sqstaskmaster.errors import SubmitInterrupted, TasksNotSent
from sqstaskmaster.results import SubmitResult
from sqstaskmaster.task_manager import TaskManager

_MOVE_POLL_SECONDS = 1.0

# The codes of `submit_many` for tasks not yet sent at an interrupt, or whose request it cut off.
_CUT_OFF = {"Interrupted", "Unknown"}


# -- submit -----------------------------------------------------------------------------------------------------------


def submit(arguments: argparse.Namespace) -> Exit:
    """Send one task, or those of a file."""
    task, pairs = arguments.words[0] if arguments.words else None, arguments.words[1:]
    if task is not None and "=" in task:
        raise CommandError(Exit.USAGE, f"{task!r} stands where the TASK name belongs: URL TASK key=value ...")
    if arguments.file is not None:
        if arguments.json is not None or pairs:
            raise CommandError(Exit.USAGE, "--file brings the arguments of each task: leave out key=value and --json")
        return _submit_file(_manager(arguments), arguments.file, task)
    if task is None:
        raise CommandError(Exit.USAGE, "Nothing to submit: give a TASK name, or --file TASKS.jsonl")
    kwargs = kwargs_of(pairs, arguments.json)
    response = _manager(arguments)._submit(task, kwargs)  # `submit` takes no argument named task or self
    print(response.get("MessageId", "sent"))
    return Exit.OK


def _manager(arguments: argparse.Namespace) -> TaskManager:
    if arguments.url.endswith(".fifo") and arguments.group is None:
        raise CommandError(
            Exit.USAGE,
            "A FIFO queue needs --group ID, within which it keeps the order, and --deduplication-id ID, unless the "
            "queue has content-based deduplication",
        )
    manager = TaskManager(arguments.url, sender_name=arguments.sender or "sqstaskmaster submit")
    return manager.options(
        delay_seconds=arguments.delay,
        message_group_id=arguments.group,
        message_deduplication_id=arguments.deduplication_id,
    )


def kwargs_of(pairs: Iterable[str], json_text: str | None) -> dict[str, Any]:
    """A task's arguments, from `key=value` and `--json`.

    :raises CommandError: if they are not valid arguments.
    """
    kwargs = _json_object(json_text)
    for name, value in map(_pair, pairs):
        if name in kwargs:
            raise CommandError(Exit.USAGE, f"Two values for {name!r}: give each argument once")
        kwargs[name] = value
    return kwargs


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise CommandError(Exit.USAGE, f"{text!r} is not key=value: write count=3, or name='two words'")
    return key, _value(value)


def _value(text: str) -> Any:
    """The value if the text parses as JSON, else the text itself. NaN and Infinity are not JSON."""
    try:
        return _parsed(text)
    except _TwoValues as error:
        raise CommandError(Exit.USAGE, f"{error} in {text}: give each once") from error
    except ValueError:
        return text


def _parsed(text: str) -> Any:
    """Parse strict JSON: without NaN and Infinity, and without duplicate names."""
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_two_values)


class _TwoValues(ValueError):
    """A JSON object has two values for one name."""


def _no_two_values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _TwoValues(f"two values for {name!r}")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = _parsed(text)
    except _TwoValues as error:
        raise CommandError(Exit.USAGE, f"--json has {error}: give each argument once") from error
    except ValueError as error:
        raise CommandError(Exit.USAGE, f"--json is not JSON ({error}): write --json '{{\"count\": 3}}'") from error
    if not isinstance(found, dict):
        raise CommandError(Exit.USAGE, f"--json must be an object, not {text}: write --json '{{\"count\": 3}}'")
    return found


class _Lines:
    """The tasks of a JSON-lines file, read as they are needed; remembers which line each came from.

    `refused`: the numbers of lines that are not tasks, with the reason. `last`: the last line read; `stopped`: there
    may be more.

    A line is `{"task": "Name", "kwargs": {...}}` or, if the command names the task, the kwargs alone.
    """

    def __init__(self, lines: Iterable[bytes], task: str | None) -> None:
        self._lines = lines
        self._task = task
        self._numbers = array("Q")  # eight bytes a task: ten million tasks still fit
        self.refused: list[tuple[int, str]] = []
        self.last = 0
        self.stopped = True

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, line in enumerate(self._lines, 1):
            self.last = number
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                task = self._parse(line)
            except ValueError as error:
                self.refused.append((number, str(error)))
                continue
            self._numbers.append(number)
            yield task
        self.stopped = False

    def number_of(self, index: int) -> int:
        """The line of the task with this index among those given."""
        return self._numbers[index]

    def _parse(self, line: bytes) -> tuple[str, dict[str, Any]]:
        try:
            found = _parsed(line.decode())
        except _TwoValues:
            raise
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8: {error.reason} at byte {error.start + 1}") from error
        except ValueError as error:
            raise ValueError(f"not JSON: {error}") from error
        if self._task is not None and isinstance(found, dict):
            return self._task, found
        if not isinstance(found, dict) or "task" not in found:
            raise ValueError('not an object like {"task": "Name", "kwargs": {"count": 3}}')
        kwargs = found.get("kwargs", {})
        if not isinstance(kwargs, dict):
            raise ValueError('"kwargs" is not an object')
        return found["task"], kwargs


def _submit_file(manager: TaskManager, path: str, task: str | None) -> Exit:
    # The summary says what its log would.
    logging.getLogger("sqstaskmaster._sending").addHandler(logging.NullHandler())
    with opened(path) as file:
        lines = _Lines(file, task)
        total = _count_lines(file)
        with tables.progress("Sent", total) as update:
            unsent, result = _send(manager, lines, lambda result: update(result.sent + result.failed, total))
    failures = unsent.failures if unsent is not None else ()
    failed = [*lines.refused]
    cut_off = []
    for failure in failures:
        number = lines.number_of(failure.index)
        if isinstance(unsent, SubmitInterrupted) and failure.code in _CUT_OFF:
            cut_off.append(number)
        else:
            failed.append((number, f"{failure.code}: {failure.reason}"))
    for number, reason in sorted(failed):
        print(f"line {number}: {reason}", file=sys.stderr)
    if cut_off:
        print(
            f"interrupted: of the lines {min(cut_off)} to {max(cut_off)}, {len(cut_off):,} were not sent, or perhaps",
            file=sys.stderr,
        )
    if lines.stopped:
        print(f"the lines after {lines.last} were not tried", file=sys.stderr)
    print(f"{result.sent:,} sent, {len(failed) + len(cut_off):,} not")
    if isinstance(unsent, SubmitInterrupted):
        return Exit.INTERRUPTED
    return Exit.NOT_ALL_SENT if failed else Exit.OK


def _send(
    manager: TaskManager, lines: _Lines, on_progress: Callable[[SubmitResult], None]
) -> tuple[TasksNotSent | SubmitInterrupted | None, SubmitResult]:
    try:
        return None, manager.submit_many(lines, on_progress=on_progress)
    except (TasksNotSent, SubmitInterrupted) as unsent:
        return unsent, unsent.result


def opened(path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    """A file opened for reading; - is standard input.

    :raises CommandError: if it cannot be read.
    """
    if path == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(path, "rb")
    except OSError as error:
        raise CommandError(
            Exit.USAGE, f"Cannot read {path!r}: {error.strerror}; give a file that exists, or - for standard input"
        ) from error


def _count_lines(file: IO[bytes]) -> int | None:
    """How many lines are not blank; None if the file cannot be read twice."""
    if not file.seekable():
        return None
    total = sum(1 for line in file if line.strip())
    file.seek(0)
    return total


# -- status -----------------------------------------------------------------------------------------------------------

_COUNTS = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed")

_COUNT_NAMES = ("visible", "in flight", "delayed")


def status(arguments: argparse.Namespace) -> Exit:
    """Show how many messages the queue and its dead-letter queue hold."""
    manager = TaskManager(arguments.url)
    problems: list[CommandError] = []
    if arguments.json:
        with contextlib.suppress(KeyboardInterrupt):
            tables.show_json(_depths(manager, problems))
            while arguments.watch:
                time.sleep(arguments.every)
                tables.show_json(_depths(manager, problems))
    elif arguments.watch:
        tables.watch(lambda: _depths(manager, problems), arguments.every)
    else:
        tables.show(_depths(manager, problems))
    if problems:
        raise problems[-1]
    return Exit.OK


def _depths(manager: TaskManager, problems: list[CommandError]) -> tables.Table:
    """The counts of both queues. If the dead-letter queue does not answer, the queue itself is still shown.

    :param problems: receives the dead-letter queue's latest error, if it has one.
    """
    attributes = manager.attributes()
    rows = [_depth_row("queue", manager.url, attributes)]
    policy = json.loads(attributes.get("RedrivePolicy") or "{}")
    problems.clear()
    if policy:
        url = dead_letter_url(manager.url, policy["deadLetterTargetArn"])
        found: Mapping[str, Any] = {}
        try:
            found = _attributes(TaskManager(url))
        except CommandError as error:
            problems.append(error)
        rows.append(_depth_row("dead letters", url, found))
    dead = rows[1][2] if policy else "0"
    styles = ("", "" if dead == "0" else "red")
    return tables.Table(("role", "queue", *_COUNT_NAMES), rows, styles, _COUNT_NAMES, long=("queue",))


def _attributes(manager: TaskManager) -> Mapping[str, Any]:
    with asking(manager.url, manager.queue):
        return manager.attributes()


def _depth_row(role: str, url: str, attributes: Mapping[str, Any]) -> list[str]:
    return [role, url.rpartition("/")[2], *(str(attributes.get(count, "?")) for count in _COUNTS)]


# -- purge ------------------------------------------------------------------------------------------------------------


def purge(arguments: argparse.Namespace) -> Exit:
    """Delete every message of the queue."""
    manager = TaskManager(arguments.url)
    attributes = manager.attributes()
    held = sum(int(attributes.get(count, 0)) for count in _COUNTS)
    if not arguments.yes:
        raise CommandError(
            Exit.USAGE,
            f"This deletes every message of {arguments.url} for good, about {held:,}: add --yes if you mean it",
        )
    manager.purge()
    print(f"Purging; messages: about {held:,}. SQS takes up to 60 seconds")
    return Exit.OK


# -- redrive ----------------------------------------------------------------------------------------------------------


def redrive(arguments: argparse.Namespace) -> Exit:
    """Move the messages of a dead-letter queue back to their source, or to another queue, and show the progress.

    The destination is always named, because SQS knows no source of a message that was sent there directly.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_StartMessageMoveTask.html
    """
    dead_letters = TaskManager(arguments.url)
    client = dead_letters.queue.meta.client
    source = str(dead_letters.attributes()["QueueArn"])
    destination = arguments.to or _only_source(client, arguments.url)
    if arguments.task is not None or arguments.id is not None or arguments.limit is not None:
        from sqstaskmaster._cli.dead import move_some

        return move_some(arguments, destination)
    request: dict[str, Any] = {
        "SourceArn": source,
        "DestinationArn": str(_attributes(TaskManager(destination))["QueueArn"]),
    }
    if arguments.rate is not None:
        request["MaxNumberOfMessagesPerSecond"] = arguments.rate
    with _where_it_can(client, "StartMessageMoveTask", "move them one by one, for example with --limit 1000"):
        handle = client.start_message_move_task(**request)["TaskHandle"]
    try:
        found = _follow(client, source)
    except KeyboardInterrupt:
        moved = client.cancel_message_move_task(TaskHandle=handle).get("ApproximateNumberOfMessagesMoved", 0)
        raise CommandError(
            Exit.INTERRUPTED,
            f"Stopped after about {moved:,} messages: run it again for the rest",
        ) from None
    moved = found.get("ApproximateNumberOfMessagesMoved", 0)
    if found.get("Status") != "COMPLETED":
        reason = found.get("FailureReason", "no reason given")
        raise CommandError(
            Exit.QUEUE,
            f"The redrive ended as {found.get('Status')} after about {moved:,} messages ({reason}): correct that, "
            "then run it again for the rest",
        )
    print(f"About {moved:,} {'message' if moved == 1 else 'messages'} moved")
    return Exit.OK


def _only_source(client: Any, url: str) -> str:
    """The queue that has this one as its dead-letter queue.

    :raises CommandError: if there is not exactly one.
    """
    pages = client.get_paginator("list_dead_letter_source_queues").paginate(QueueUrl=url)
    with _where_it_can(client, "ListDeadLetterSourceQueues", "say where the messages go, with --to URL"):
        sources: list[str] = [source for page in pages for source in page.get("queueUrls", ())]
    if len(sources) == 1:
        # Built from the URL that the user gave: a server of their own may return another, which names no region.
        return f"{url.rpartition('/')[0]}/{sources[0].rpartition('/')[2]}"
    found = f"{len(sources)} queues have" if sources else "No queue has"
    named = f" ({', '.join(sources[:5])})" if sources else ""
    raise CommandError(
        Exit.QUEUE, f"{found} {url} as dead-letter queue{named}: say where the messages go, with --to URL"
    )


@contextlib.contextmanager
def _where_it_can(client: Any, operation: str, remedy: str) -> Iterator[None]:
    """A block for a request that not every server supports.

    :raises CommandError: with the remedy, if this server does not.
    """
    from sqstaskmaster._sqs.answers import SQS_ERRORS, is_lacking

    try:
        yield
    except SQS_ERRORS as error:
        if not is_lacking(error):
            raise
        endpoint = client.meta.endpoint_url
        raise CommandError(Exit.QUEUE, f"{endpoint} does not know {operation}: {remedy}") from error


def _follow(client: Any, source: str) -> Mapping[str, Any]:
    """Show the progress of the newest move from this queue until it is over; returns its last state."""
    with tables.progress("Moved", None) as update:
        while True:
            results = client.list_message_move_tasks(SourceArn=source, MaxResults=1).get("Results", [])
            found: Mapping[str, Any] = results[0] if results else {"Status": "RUNNING"}
            update(found.get("ApproximateNumberOfMessagesMoved", 0), found.get("ApproximateNumberOfMessagesToMove"))
            if found["Status"] not in ("RUNNING", "CANCELLING"):
                return found
            time.sleep(_MOVE_POLL_SECONDS)
