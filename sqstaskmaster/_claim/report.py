"""Reports about one message: to the log, as text and fields, and to the user's `notify`."""

from __future__ import annotations

import contextvars
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqstaskmaster._claim import forwarding
from sqstaskmaster._claim.words import of_failure, users_traceback
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster.errors import ShutdownRequested

# How the finished line words its optional fields.
_WORDS: dict[str, Callable[[Any], str]] = {
    "cpu_seconds": lambda seconds: f"CPU {seconds:.3f} s",
    "peak_memory": lambda size: f"peak memory {size / 1024**2:.1f} MiB",
    "continuation": lambda number: f"continuation {number}",
}

#: With the callback's name, the task's name, seconds.
CALLBACK_GIVEN_UP = "%s() of task %s has not returned in %g s; the worker waits no longer"

_facts_of_line: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("facts_of_line", default={})


class FactsFilter(logging.Filter):
    """For a logger: adds their facts, as fields, to its failure lines.

    The call that logs a failure must be exactly `logger.exception(text, message)`: users' tests compare it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        record.__dict__.update(_facts_of_line.get())
        return True


class Report:
    """Reports about one message, from the time its handler has it.

    The message's driver sets `ended_at`, `outcome`, `comes_back_in` (seconds until the message is visible again, None
    if unknown or never), `limit` (the task's hard timeout), `stack` (where the task was when it was stopped) and `used`
    (`cpu_seconds`, and `peak_memory` in bytes, if known). Thread-safe.

    :param message: as for MessageHandler; only its `body` and `attributes` are required.
    :param task: the task's name, empty if the body has none.
    :param notify: called as `notify(exception, context=...)`; what it raises is logged and goes no further.
    :param logger: returns the logger, called each time.
    :param clock: of `started_at` and `ended_at`, seconds.
    :param queue_url: set if `notify`'s context is to have more than the message's body and attributes: the task's
        name, message id, receive count, queue and outcome.
    """

    def __init__(
        self,
        message: Any,
        task: str,
        notify: Callable[..., Any],
        logger: Callable[[], logging.Logger],
        clock: Callable[[], float],
        queue_url: str | None = None,
    ) -> None:
        self.task = task
        self.started_at: float = clock()
        self.ended_at: float | None = None
        self.outcome: str | None = None
        self.comes_back_in: float | None = None
        self.limit: float | None = None
        self.used: Mapping[str, Any] = {}
        self.stack = ""
        self._message = message
        self._notify = notify
        self._logger = logger
        self._clock = clock
        self._queue_url = queue_url

    def is_about(self, message: Any) -> None:
        """From now on report on this receive of the message."""
        self._message = message

    def notify_with(self, notify: Callable[..., Any]) -> None:
        """Use this `notify` from now on."""
        self._notify = notify

    # -- facts ---------------------------------------------------------------------------------------------------

    @property
    def receive_count(self) -> int | None:
        """How often the message has been received, this time included; None if SQS does not say."""
        return _number(attributes_of(self._message).get("ApproximateReceiveCount"))

    @property
    def message_id(self) -> str | None:
        """The message's id; None if it has none."""
        message_id = getattr(self._message, "message_id", None)
        return message_id if isinstance(message_id, str) else None

    @property
    def continuation(self) -> int:
        """How often the task had continued before this message."""
        return forwarding.chain_of(self._message).number

    @property
    def seconds(self) -> float:
        """For how long the message has been handled; once it has ended, for how long it was."""
        return (self._clock() if self.ended_at is None else self.ended_at) - self.started_at

    def facts(self, action: str) -> dict[str, Any]:
        """The fields of every log record about this message, for formatters that write them."""
        now = self._clock()
        sent = _number(attributes_of(self._message).get("SentTimestamp"))  # milliseconds
        queued = None if sent is None else time.time() - (now - self.started_at) - sent / 1000
        return {
            "action": action,
            "task": self.task or None,
            "message_id": self.message_id,
            "receive_count": self.receive_count,
            "queued": None if queued is None else max(0.0, queued),  # SQS's clock may differ from ours
            "elapsed": self.seconds,
            "outcome": self.outcome,
            "comes_back_in": None if self.comes_back_in is None else round(self.comes_back_in, 1),
            "limit": self.limit,
        }

    def context(self) -> dict[str, Any]:
        """The context that `notify` gets."""
        context = {"body": self._message.body, **attributes_of(self._message)}
        if self._queue_url is not None:
            facts = self.facts("")
            context.update({name: facts[name] for name in ("task", "message_id", "receive_count", "outcome")})
            context.update(self.used)
            context["queue"] = self._queue_url
        return {**context, "stack": self.stack} if self.stack else context

    @property
    def subject(self) -> Any:
        """What stands for the message in texts. Tests of the classic library compare the message itself.

        In a worker it is the message's id, and the task: a receipt handle is long, and nobody's business.
        """
        if self._queue_url is None:
            return self._message
        return f"{self._id()} (task {printable(self.task)})" if self.task else self._id()

    # -- the reports ---------------------------------------------------------------------------------------------

    def failed(self, exception: Any) -> None:
        """The task failed, or was interrupted: one `notify` and one line."""
        self.notify(exception)
        if isinstance(exception, ShutdownRequested):
            text = "Task %s interrupted, because the worker is stopping: message %s"
            self.log(logging.WARNING, "interrupted", text, printable(self.task), self._id())
        elif self._queue_url is None:
            self._log_exception("Failed for message: %s", exception, "failed")
        else:
            words = of_failure(self.facts("failed"), exception)
            is_one = isinstance(exception, BaseException)
            # Formatters use a record's `exc_text`, if set, as the text of its traceback.
            more = {"exc_text": users_traceback(exception)} if is_one else {}
            self._log_exception("%s", exception, "failed", words, **more)

    def refused(self, error: BaseException) -> None:
        """The message is no task of ours: one line, with the user's own traceback if there is one, and one `notify`."""
        cause = error.__cause__
        self._logger().error("%s: message %s", error, self.subject, exc_info=cause, extra=self.facts("refused"))
        self.notify(error)

    def not_deleted(self, exception: Exception) -> None:
        """Deleting the message of finished work was given up: one `notify` and one line."""
        self.notify(exception)
        text = "Task finished, but its message could not be deleted and will be redelivered: %s"
        self._log_exception(text, exception, "delete_failed")

    def is_said(self, level: int) -> bool:
        """Whether a line of that level would be logged."""
        return self._logger().isEnabledFor(level)

    def log(self, level: int, action: str, text: str, *arguments: object) -> None:
        """One line, with the facts as fields."""
        if self.is_said(level):
            self._logger().log(level, text, *arguments, extra=self.facts(action))

    def trouble(self, text: str, exception: BaseException, action: str, level: int = logging.WARNING) -> None:
        """Something beside the task went wrong: one `notify` and one line. `text` has one %s, for the message."""
        self.notify(exception)
        self._logger().log(level, text, self.subject, exc_info=exception, extra=self.facts(action))

    def trouble_apart(
        self, wait: float, text: str, exception: BaseException, action: str, level: int = logging.WARNING
    ) -> None:
        """The same in another thread; waits at most `wait` seconds for it.

        For a signal handler: log handlers and error services take locks that the interrupted code may hold.
        """
        BoundedCall(lambda: self.trouble(text, exception, action, level)).wait(wait)

    def deleted(self, wait: float) -> None:
        """Somebody has deleted the message, to have the task stopped: one line, in another thread as above."""
        text = "Task %s is stopped, because its message was deleted: message %s"
        task, message_id = printable(self.task), self._id()
        BoundedCall(lambda: self.log(logging.WARNING, "message_deleted", text, task, message_id)).wait(wait)

    def finished(self) -> None:
        """The one line of a task that has ended, done or not."""
        if self.is_said(logging.INFO):
            text, arguments, facts = self._finished()
            self._logger().info(text, *arguments, extra=facts)

    def finished_line(self) -> str:
        """The text of that line."""
        text, arguments, _ = self._finished()
        return text % arguments

    def _finished(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        more = {**self.used, "continuation": self.continuation or None}
        facts = {**self.facts("finished"), **more}
        arguments = (
            printable(self.task),
            self.outcome,
            self._id(),
            "?" if facts["receive_count"] is None else facts["receive_count"],
            "?" if facts["queued"] is None else f"{facts['queued']:.3f}",
            facts["elapsed"],
            "".join(f", {say(more[name])}" for name, say in _WORDS.items() if more.get(name) is not None),
        )
        return "Task %s %s: message %s, receive %s, queued %s s, ran %.3f s%s", arguments, facts

    def notify(self, exception: Any) -> None:
        """Call the user's `notify`."""
        try:
            self._notify(exception, context=self.context())
        except Exception:
            self._logger().exception("notify failed for message: %s", self.subject, extra=self.facts("notify_failed"))

    def _id(self) -> str:
        return "?" if self.message_id is None else printable(self.message_id)

    def _log_exception(self, text: str, exception: Any, action: str, subject: Any = None, **more: Any) -> None:
        token = _facts_of_line.set({**self.facts(action), **more})
        subject = self.subject if subject is None else subject
        try:
            if isinstance(exception, BaseException) and sys.exc_info()[1] is not exception:
                context = exception.__context__
                try:
                    raise exception
                except BaseException:
                    exception.__context__ = context
                    self._logger().exception(text, subject)
            else:
                self._logger().exception(text, subject)
        finally:
            _facts_of_line.reset(token)


def attributes_of(message: Any) -> dict[str, Any]:
    """The attributes SQS sent with a message; {} for anything that is not a mapping, such as None or a mock."""
    attributes = message.attributes
    return dict(attributes) if isinstance(attributes, Mapping) else {}


def printable(text: str) -> str:
    """Text from a message, on one line and without control characters."""
    return text if text.isprintable() else repr(text)[1:-1]


def _number(value: Any) -> int | None:
    """A number from SQS, which sends them as text; None for anything else."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 20 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
