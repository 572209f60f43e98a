"""Worker: task name -> handler, one loop, and an orderly stop.

poll --- nothing ------------------------------------------ burst: the end
  |
  +--- unknown task, kwargs that do not fit --------------- told, left to the redrive policy
  |
  +--- a task --- with handler: handler.run() ------------- done, failed, timed out, stuck
  |                       ^
  +--- stop requested ----+-------------------------------- given back at once
"""

from __future__ import annotations

import collections
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple, TypeVar

from sqstaskmaster._claim import owner
from sqstaskmaster._isolation import child as isolation
from sqstaskmaster._service import loading
from sqstaskmaster._service.ecs import ScaleInProtection
from sqstaskmaster._service.function_handler import FunctionHandler
from sqstaskmaster._signals import alarm
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster._signals.shutdown import Shutdown
from sqstaskmaster._sqs.answers import POLL_ERRORS, code_of, remedy_for
from sqstaskmaster._sqs.limits import MAX_WAIT_SECONDS, check_whole_seconds, is_number
from sqstaskmaster.backoff import ExponentialBackoff
from sqstaskmaster.errors import ArgumentsDoNotFit, PollRefused, ShutdownRequested, TaskQuit, UnknownTask
from sqstaskmaster.message_handler import MessageHandler, Outcome, check_timeouts
from sqstaskmaster.process_handler import ProcessMessageHandler
from sqstaskmaster.task_manager import Task, TaskManager

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

# Between polls that fail.
_POLL_BACKOFF = ExponentialBackoff(first=1.0, longest=60.0)

# A task in this process that goes on after it was told to stop is told again this often.
_STOP_AGAIN_SECONDS = 1.0

# The longest that giving back a message is waited for.
_GIVE_BACK_SECONDS = 5.0

_NO_MESSAGE: Any = None

GIVEN_BACK = "given back"
REFUSED = "refused"


class Worker:
    """Runs the tasks of a queue, one at a time, until it is told to stop.

    ::

        worker = Worker(TaskManager(url), {"Train": Train})

        @worker.task("Report", hard_timeout=600)
        def report(customer, month="last"):
            ...

        if __name__ == "__main__":
            worker.run()

    :param manager: the queue.
    :param handlers: task name -> handler class, constructed as
        `Handler(message, sqs_timeout=..., alarm_timeout=..., hard_timeout=..., **kwargs)`.
    :param sqs_timeout: the visibility timeout of each receive and each extension, whole seconds.
    :param alarm_timeout: seconds between two extensions; more than one below `sqs_timeout`.
    :param hard_timeout: seconds that a task may take, up to 43200.
    :param wait_time: seconds that a poll waits for a message, 0 to 20.
    :param shutdown_grace: seconds that a running task gets to finish after SIGTERM or SIGINT, 0 or more.
    :raises ValueError: for a time out of its range.
    :raises TypeError: for a handler that cannot be constructed as above.
    """

    def __init__(
        self,
        manager: TaskManager,
        handlers: Mapping[str, Callable[..., MessageHandler]] | None = None,
        *,
        sqs_timeout: int = 30,
        alarm_timeout: float = 10,
        hard_timeout: float = 14400,
        wait_time: int = 20,
        shutdown_grace: float = 20,
    ) -> None:
        check_timeouts(sqs_timeout, alarm_timeout, hard_timeout)
        if not is_number(shutdown_grace) or shutdown_grace < 0:
            raise ValueError(f"shutdown_grace must be a number of seconds, 0 or more, not {shutdown_grace!r}")
        self.manager = manager
        self.sqs_timeout = int(sqs_timeout)
        self.alarm_timeout = alarm_timeout
        self.hard_timeout = hard_timeout
        self.wait_time = check_whole_seconds("wait_time", wait_time, MAX_WAIT_SECONDS)
        self.shutdown_grace = shutdown_grace
        self._entries: dict[str, _Entry] = {}
        for name, handler in (handlers or {}).items():
            self._add(name, _entry_of_class(name, handler, self._timeouts()))

    def task(
        self,
        name: str,
        *,
        sqs_timeout: int | None = None,
        alarm_timeout: float | None = None,
        hard_timeout: float | None = None,
        **options: Any,
    ) -> Callable[[Function], Function]:
        """Decorator: makes a task of a function of its kwargs, which runs in a process of its own.

        :param name: the task's name, as `submit` was given it.
        :param sqs_timeout, alarm_timeout, hard_timeout: where they differ from the worker's.
        :param options: `retry_delay` (see MessageHandler.retry_delay: a callable of the exception and the receive
            count), and `term_grace`, `start_method`, `max_memory` of ProcessMessageHandler.
        :raises TypeError: for an option there is not, and for anything but a function that takes keyword arguments.
        :raises ValueError: for a setting out of its range, or a name that is taken.

        The function must be importable from its module where the start method is not fork. What it raises is notified
        through the manager's `notify`.
        """
        settings = {**self._timeouts(sqs_timeout, alarm_timeout, hard_timeout), **options}
        # Made once here, so that what is wrong with the settings is told to whoever wrote them.
        FunctionHandler(_NO_MESSAGE, _nothing, {}, **settings)

        def register(function: Function) -> Function:
            notify = self.manager.notify
            self._add(name, _entry_of_function(name, function, {"notify": notify, **settings}))
            return function

        return register

    def run(
        self,
        burst: bool = False,
        *,
        on_event: Callable[[str], Any] | None = None,
        ecs_agent_uri: str | None = None,
        ecs_lock: int | None = None,
    ) -> collections.Counter[str]:
        """Run tasks until SIGTERM or SIGINT, or, with `burst`, until a poll brings nothing.

        Returns how many messages ended how: the values of `Outcome`, `given back` (received while stopping) and
        `refused` (unknown task, kwargs that do not fit).

        :param on_event: called with "polled" after each poll that SQS answered, and with "busy" and "idle" round each
            task, in the main thread. Meant for health checks: it must be quick. What it raises is logged.
        :param ecs_agent_uri: ECS_AGENT_URI on Amazon ECS: the ECS task is protected from scale-in while it works.
        :param ecs_lock: where several processes of a container run workers: the descriptor of a file, opened for
            reading and writing, that they share. The one that becomes idle last returns the protection.
        :raises PollRefused: where polling again does not help; the text says what does.
        :raises UnsupportedContext: outside the main thread, and while the command line imports the worker's module.
        """
        loading.refuse_to_run()
        counts: collections.Counter[str] = collections.Counter()
        stopping, protecting = Shutdown(self.shutdown_grace), ScaleInProtection(ecs_agent_uri, lock=ecs_lock)
        with stopping as stop, protecting as protection, owner.only_in_this_process():
            run = _Run(self, stop, protection, on_event or _nothing)
            while not stop.requested:
                received = run.poll()
                for task in received:
                    if task is not None:
                        counts[run.take(*task)] += 1
                if not received:
                    protection.idle()
                    if burst and not stop.requested:
                        break
        logger.info("Worker stopped: %s", dict(counts), extra={"action": "stopped", "counts": dict(counts)})
        return counts

    def handler_for(self, task: str, kwargs: dict[str, Any], message: Any) -> MessageHandler:
        """The handler that runs this task.

        :raises UnknownTask, ArgumentsDoNotFit: where there is none.
        """
        entry = self._entries.get(task)
        if entry is None:
            raise UnknownTask(task, sorted(self._entries))
        try:
            entry.fits(kwargs)
        except TypeError as error:
            raise ArgumentsDoNotFit(task, error, entry.expected) from None
        try:
            return entry.make(message, kwargs)
        except Exception as error:
            raise ArgumentsDoNotFit(task, repr(error), entry.expected) from error

    @property
    def hard_timeouts(self) -> dict[str, float]:
        """The hard timeout of each task by its name, in seconds. A handler class may set another for itself."""
        return {name: entry.hard_timeout for name, entry in self._entries.items()}

    def notify(self, exception: BaseException, message: Any) -> None:
        """Tell the manager's `notify`. What it raises is logged and goes no further."""
        try:
            self.manager.notify(exception, context={"body": message.body, **(message.attributes or {})})
        except Exception:
            logger.exception("notify failed for message: %s", message, extra={"action": "notify_failed"})

    def _timeouts(
        self,
        sqs_timeout: int | None = None,
        alarm_timeout: float | None = None,
        hard_timeout: float | None = None,
    ) -> dict[str, Any]:
        return {
            "sqs_timeout": self.sqs_timeout if sqs_timeout is None else sqs_timeout,
            "alarm_timeout": self.alarm_timeout if alarm_timeout is None else alarm_timeout,
            "hard_timeout": self.hard_timeout if hard_timeout is None else hard_timeout,
        }

    def _add(self, name: str, entry: _Entry) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"A task's name must be a non-empty string, not {name!r}")
        if name in self._entries:
            raise ValueError(f"There is a task {name!r} already: give each its own name")
        self._entries[name] = entry


class _Entry(NamedTuple):
    """One task that a worker has: what its messages' kwargs must fit, and how its handler is made of them."""

    fits: Callable[[dict[str, Any]], object]
    make: Callable[[Any, dict[str, Any]], MessageHandler]
    expected: str
    hard_timeout: float


class _Run:
    """One `run` of a worker: its steps, and what they share."""

    def __init__(
        self, worker: Worker, stop: Shutdown, protection: ScaleInProtection, on_event: Callable[[str], Any]
    ) -> None:
        self._worker = worker
        self._stop = stop
        self._protection = protection
        self._on_event = on_event
        self._failed_polls = 0
        self._last_failure = ""
        self._owner = os.getpid()

    def poll(self) -> list[Task | None]:
        """What a poll brings; nothing where a stop was requested meanwhile."""
        while True:
            owner.leave_if_forked(self._owner)  # forked by a hook, say: the queue is its parent's to consume
            try:
                received = self._stop.poll(self._receive, self._worker.wait_time)
            except ShutdownRequested:
                return []
            except POLL_ERRORS as error:
                self._poll_failed(error)
            else:
                self._poll_succeeded()
                return received

    def _receive(self) -> list[Task | None]:
        worker = self._worker
        return worker.manager.receive(worker.wait_time, worker.sqs_timeout, MessageAttributeNames=["All"])

    def _poll_failed(self, error: Exception) -> None:
        remedy = remedy_for(error)
        if remedy is not None:
            raise PollRefused(
                error, code_of(error) or type(error).__name__, remedy, self._worker.manager.url
            ) from error
        self._failed_polls += 1
        failure = code_of(error) or type(error).__name__
        if failure != self._last_failure:
            logger.warning("Polling fails, trying again: %s", error, extra={"action": "poll_failed", "code": failure})
        self._last_failure = failure
        self._stop.wait(_POLL_BACKOFF(error, self._failed_polls))

    def _poll_succeeded(self) -> None:
        if self._failed_polls:
            logger.info("Polling again, after %d failures", self._failed_polls, extra={"action": "poll_recovered"})
        self._failed_polls, self._last_failure = 0, ""
        self._say("polled")

    def take(self, task: str, kwargs: dict[str, Any], message: Any) -> str:
        """Run one task, or give its message back. How it ended."""
        if self._stop.requested:
            self._give_back(message)
            return GIVEN_BACK
        try:
            handler = self._worker.handler_for(task, kwargs, message)
        except (UnknownTask, ArgumentsDoNotFit) as error:
            logger.error("%s: %s", error, message, exc_info=error.__cause__, extra={"action": "refused", "task": task})
            self._worker.notify(error, message)
            return REFUSED
        owner.leave_if_forked(self._owner)
        self._protection.busy(handler.hard_timeout)
        self._say("busy")
        try:
            self._run(handler, message)
        finally:
            self._say("idle")
            self._stop.renew()
        return str(handler.outcome or Outcome.FAILED)

    def _run(self, handler: MessageHandler, message: Any) -> None:
        try:
            with handler:
                try:
                    if isinstance(handler, ProcessMessageHandler):
                        self._stop.interruptible(handler.run, isolation.is_waiting)
                    else:
                        self._stop.interruptible(handler.run, _is_outside_heartbeat, _STOP_AGAIN_SECONDS)
                except (Exception, ShutdownRequested):
                    raise
                except BaseException as error:
                    raise TaskQuit(f"The task raised {error!r} in the worker's process") from error
        except ShutdownRequested:
            pass
        except Exception as error:  # of `__enter__`, or of a subclass's `__exit__`
            logger.exception("Handler failed for message: %s", message, extra={"action": "handler_failed"})
            self._worker.notify(error, message)

    def _give_back(self, message: Any) -> None:
        """Make a message that has not been started visible to others at once."""
        call = BoundedCall(lambda: message.change_visibility(VisibilityTimeout=0))
        if not call.wait(_GIVE_BACK_SECONDS) or call.error is not None:
            text = "Message not given back, it comes back when its visibility timeout ends: %s: %s"
            logger.warning(text, message, call.error or "no answer", extra={"action": "give_back_failed"})
        else:
            logger.info("Message given back, unstarted: %s", message, extra={"action": "given_back"})

    def _say(self, event: str) -> None:
        try:
            self._on_event(event)
        except Exception:
            logger.exception("on_event failed for %s", event, extra={"action": "on_event_failed"})


def _entry_of_class(name: str, handler: Callable[..., MessageHandler], timeouts: dict[str, Any]) -> _Entry:
    called = getattr(handler, "__name__", repr(handler))
    if not callable(handler):
        raise TypeError(f"The handler of task {name!r} must be a handler class, not {handler!r}")
    signature = inspect.signature(handler)
    try:
        signature.bind_partial(None, **timeouts)
    except TypeError as error:
        raise TypeError(
            f"The handler of task {name!r} cannot be constructed as {called}(message, sqs_timeout=..., "
            f"alarm_timeout=..., hard_timeout=..., **kwargs): {error}"
        ) from error
    settings = _settings_of(handler) - _own_parameters(handler, signature)

    def fits(kwargs: dict[str, Any]) -> object:
        if settings & set(kwargs):
            refused = ", ".join(sorted(settings & set(kwargs)))
            raise TypeError(f"{refused}: for the worker to set, not for a message")
        return signature.bind(None, **timeouts, **kwargs)

    return _Entry(
        fits=fits,
        make=lambda message, kwargs: handler(message, **timeouts, **kwargs),
        expected=f"{called}{signature}",
        hard_timeout=timeouts["hard_timeout"],
    )


def _settings_of(handler: Callable[..., MessageHandler]) -> set[str]:
    """What the base class of a handler takes beside the message and the timeouts. It would lift the worker's limits."""
    base = MessageHandler if isinstance(handler, type) and not issubclass(handler, ProcessMessageHandler) else None
    parameters = inspect.signature(base or ProcessMessageHandler).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _own_parameters(handler: Callable[..., MessageHandler], signature: inspect.Signature) -> set[str]:
    """What a handler names in a constructor of its own, and so lets a message say."""
    inherited = getattr(handler, "__init__", None) in (MessageHandler.__init__, ProcessMessageHandler.__init__)
    return set() if inherited else set(signature.parameters)


def _entry_of_function(name: str, function: Callable[..., Any], settings: dict[str, Any]) -> _Entry:
    called = getattr(function, "__name__", repr(function))
    if not callable(function) or isinstance(function, type) or inspect.iscoroutinefunction(function):
        raise TypeError(f"Task {name!r} must be a plain function, not {function!r}: call what you want from one")
    signature = inspect.signature(function)
    unnamed = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    if unnamed:
        raise TypeError(
            f"Task {name!r}: {called}{signature} takes {', '.join(unnamed)} by position only, and tasks are called "
            "with keyword arguments"
        )
    return _Entry(
        fits=lambda kwargs: signature.bind(**kwargs),
        make=lambda message, kwargs: FunctionHandler(message, function, kwargs, **settings),
        expected=f"{called}{signature}",
        hard_timeout=settings["hard_timeout"],
    )


def _is_outside_heartbeat(frame: FrameType | None) -> bool:
    """Whether no heartbeat is under way there, which may be sending an extension that has to be waited for later.

    Nor is a handler being entered or left, of a task that uses one itself.
    """
    if alarm.is_outside_body(frame, MessageHandler):
        return False
    while frame is not None:
        if frame.f_code is MessageHandler._handle_alarm.__code__:
            return False
        frame = frame.f_back
    return True


def _nothing(*_: object) -> None:
    pass
