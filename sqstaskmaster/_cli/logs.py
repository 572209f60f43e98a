"""What the command line writes of the log records: lines for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import logging
import time
import traceback
from typing import Any

from sqstaskmaster._cli.stderr import STDERR

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

# What every record has; anything else on it came through `extra`.
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}

# At INFO they tell where credentials were found, at DEBUG they write whole requests, message bodies included.
_TALKATIVE = ("boto3", "botocore", "urllib3")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, process, the fields of `extra`, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and value is not None:
                fields.setdefault(name, value)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack_info"] = self.formatStack(record.stack_info)
        return json.dumps(fields, default=str)


class PlainFormatter(logging.Formatter):
    """`2026-01-31 12:00:00,123 INFO 4711 message`, and the traceback below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(process)d %(message)s")


class StderrHandler(logging.Handler):
    """Writes records to standard error, and waits a second at most for a reader that has stopped reading."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            STDERR.write(self.format(record))
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say what is wrong with a record (arguments that do not fit its text, say), as logging itself does."""
        if logging.raiseExceptions:
            STDERR.write(f"Logging failed for {record.msg!r} in {record.pathname}, line {record.lineno}")
            STDERR.write(traceback.format_exc().rstrip())


def configure(level: str, as_json: bool) -> None:
    """Send the records of every logger, from `level` up, to standard error."""
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter() if as_json else PlainFormatter())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
