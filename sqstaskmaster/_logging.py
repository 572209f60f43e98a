"""The package's loggers: no logging setup of the program can take down a task, or the loop around it.

A record factory, a filter or a handler is user code and may raise; a factory may put fields on records that ours have
too, as the standard library's documentation suggests. The log calls of this package stand between a task that is done
and the delete of its message.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from sqstaskmaster.errors import HandlerStuck, HardTimeout

_NAME = __name__.partition(".")[0]

# What a signal handler raises in a plain task, whatever it is running, to stop it.
_STOPS = (HardTimeout, HandlerStuck)

# Takes a function that writes a record, to call it in another thread. Returns False if it does not take it.
Writer = Callable[[Callable[[], object]], bool]

_writer: Writer | None = None


def get_logger(name: str) -> logging.Logger:
    """`logging.getLogger(name)`, whose calls do not raise."""
    logger = logging.getLogger(name)
    if not isinstance(logger, _Quiet):
        object.__setattr__(logger, "__class__", _quiet(type(logger)))
    return logger


def switch_on() -> None:
    """Enable the package's loggers again: `dictConfig` and `fileConfig` disable existing loggers by default.

    For a command, whose log lines are its output.
    """
    for name, logger in logging.getLogger(_NAME).manager.loggerDict.items():
        if name.partition(".")[0] == _NAME and isinstance(logger, logging.Logger):
            logger.disabled = False


def write_by(writer: Writer | None) -> Writer | None:
    """From now on this writer writes the records of the package's loggers; None: they call their handlers themselves.

    Returns the previous writer.
    """
    global _writer
    found, _writer = _writer, writer
    return found


class _Quiet(logging.Logger):
    def makeRecord(
        self,
        name: str,
        level: int,
        fn: str,
        lno: int,
        msg: object,
        args: Any,
        exc_info: Any,
        func: str | None = None,
        extra: Mapping[str, object] | None = None,
        sinfo: str | None = None,
    ) -> logging.LogRecord:
        try:
            record = super().makeRecord(name, level, fn, lno, msg, args, exc_info, func, None, sinfo)
        except _STOPS:
            raise
        except Exception:
            record = logging.LogRecord(name, level, fn, lno, msg, args, exc_info, func, sinfo)
            _tell(record)
        # Not in the call above, which refuses a field that the factory has already set.
        record.__dict__.update(extra or {})
        return record

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        except _STOPS:
            raise
        except Exception:
            _tell(record)

    def callHandlers(self, record: logging.LogRecord) -> None:
        call_handlers = super().callHandlers
        if _writer is None or not _writer(functools.partial(_write, call_handlers, record)):
            call_handlers(record)


def _write(call_handlers: Callable[[logging.LogRecord], object], record: logging.LogRecord) -> None:
    try:
        call_handlers(record)
    except Exception:
        _tell(record)


def _tell(record: logging.LogRecord) -> None:
    """Report it on standard error, as logging reports failing handlers."""
    try:
        logging.NullHandler().handleError(record)
    except Exception:  # the record cannot be shown either
        pass


def _quiet(kind: type[logging.Logger]) -> type[logging.Logger]:
    """A quiet subclass of the logger class that the program uses."""
    return _Quiet if kind is logging.Logger else type(kind.__name__, (_Quiet, kind), {})
