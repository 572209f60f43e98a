"""How the command line writes log records: as lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from collections.abc import Mapping
from typing import Any

from sqstaskmaster._claim import words
from sqstaskmaster._claim.current import TaskFilter
from sqstaskmaster._cli.stderr import STDERR

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

# The attributes of every record; any other came through `extra`.
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

# At INFO they log where credentials were found, at DEBUG whole requests, message bodies included.
_TALKATIVE = ("boto3", "botocore", "urllib3")


# Characters that could forge a line of the log, or control a terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Formatter(logging.Formatter):
    """What the formatters share: the text of a record.

    A failure in a classic block is logged as tests of the classic library expect it, with the message alone; its facts
    are fields of the record, and are put into words here. A message is shown by its id: its receipt handle must not be
    logged. This package's frames are cut from tracebacks: the user's are what helps.

    :param comes_back: whether a failed task's message comes back: not if there is no queue.
    """

    def __init__(self, comes_back: bool = True) -> None:
        super().__init__()
        self._comes_back = comes_back

    def words(self, record: logging.LogRecord) -> str:
        if _is_failure(record) and record.exc_info:
            return words.of_failure(vars(record), record.exc_info[1], self._comes_back)
        if not record.args or isinstance(record.args, Mapping):
            return record.getMessage()
        return str(record.msg) % tuple(map(_shown, record.args))

    def traceback(self, record: logging.LogRecord) -> str:
        """The record's traceback, "" if it has none."""
        return words.cut(self.formatException(record.exc_info)) if record.exc_info else ""


class JsonFormatter(Formatter):
    """One JSON object a line: time (UTC), level, logger, message, process, the fields of `extra`, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": self.words(record),
            "process": record.process,
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and value is not None:
                fields.setdefault(name, value)
        arguments: tuple[Any, ...] = record.args if isinstance(record.args, tuple) else ()
        for argument in arguments:
            if _is_message(argument):
                fields.setdefault("message_id", argument.message_id)
        if record.exc_info:
            fields["exception"] = self.traceback(record)
        if record.stack_info:
            fields["stack_info"] = self.formatStack(record.stack_info)
        return json.dumps(fields, default=str)


class PlainFormatter(Formatter):
    """`2026-01-31 12:00:00,123Z INFO 4711 the.logger: what happened`, and a traceback indented below it.

    The time is UTC: a module that sets another time zone (Django's settings do) would change it within one log.

    Text from a message cannot begin a line: line ends are escaped in this package's records; in others, which may
    contain them on purpose, all further lines are indented. Other control characters are escaped in both.
    """

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s,%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        said = self.words(record)
        if record.name.partition(".")[0] == "sqstaskmaster":
            said = said.replace("\n", "\\n")
        traceback = self.traceback(record)
        if _is_failure(record) and not words.FRAME.search(traceback):
            traceback = ""  # the sentence says it all
        lines = [said, *filter(None, (traceback, record.stack_info))]
        text = "\n    ".join(line for block in lines for line in block.rstrip().split("\n"))
        head = f"{self.formatTime(record)} {record.levelname} {record.process} {record.name}"
        return f"{head}: {_CONTROL.sub(lambda found: repr(found[0])[1:-1], text)}"


def _is_failure(record: logging.LogRecord) -> bool:
    return getattr(record, "action", None) == "failed" and hasattr(record, "comes_back_in")


def _is_message(argument: Any) -> bool:
    return isinstance(getattr(argument, "message_id", None), str) and hasattr(argument, "change_visibility")


def _shown(argument: Any) -> Any:
    return f"message {argument.message_id}" if _is_message(argument) else argument


class StderrHandler(logging.Handler):
    """Writes records to standard error, and waits at most a second for a stalled reader."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            STDERR.write(self.format(record))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Report what is wrong with a record (arguments that do not fit its text, say), as logging itself does."""
        if logging.raiseExceptions:
            STDERR.write(f"Logging failed for {record.msg!r} in {record.pathname}, line {record.lineno}")
            STDERR.write(traceback.format_exc().rstrip())


def configure(level: str, as_json: bool, comes_back: bool = True) -> None:
    """Send the records of every logger, from `level` up, to standard error. `comes_back`: see Formatter."""
    handler = StderrHandler()
    handler.setFormatter((JsonFormatter if as_json else PlainFormatter)(comes_back))
    handler.addFilter(TaskFilter())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
