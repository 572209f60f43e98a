"""Worker: task name -> handler, as many at once as it has slots, and an orderly stop.

::

    Worker ---- Linux, tasks in processes of their own ----> _service.slots: one loop, N slots
       |
       +------- plain MessageHandlers, or no Linux --------> _service.single: one task after the other
"""

from __future__ import annotations

import collections
import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from sqstaskmaster._claim import owner
from sqstaskmaster._isolation import process_tree
from sqstaskmaster._service import loading, processors, registry
from sqstaskmaster._service.ecs import ScaleInProtection
from sqstaskmaster._service.settings import Settings
from sqstaskmaster._service.single import SingleRun
from sqstaskmaster._service.status import AskFacts, Status
from sqstaskmaster._signals.shutdown import Shutdown
from sqstaskmaster._sqs.limits import MAX_WAIT_SECONDS, check_whole, check_whole_seconds, is_number
from sqstaskmaster.errors import UnsupportedContext
from sqstaskmaster.message_handler import MessageHandler, check_timeouts
from sqstaskmaster.task_manager import TaskManager

logger: logging.Logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])
Environment = Mapping[str, str]

_MOST_SLOTS = 1000


class Worker:
    """Runs the tasks of a queue, as many at once as it has slots, until it is told to stop.

    ::

        worker = Worker(TaskManager(url), {"Train": Train}, slots=4)

        @worker.task("Report", hard_timeout=600)
        def report(customer, month="last"):
            ...

        if __name__ == "__main__":
            worker.run()

    Each task of a `ProcessMessageHandler`, and each function, runs in a process of its own. The worker's modules are
    imported once, by the process that all of them are forked from; it never runs a task itself. The worker's own
    process holds the claims of all of them, and claims no message that it has no free slot for.

    A handler's constructor runs twice: in the worker, where the handler is there for `running`, `notify`,
    `retry_delay` and `claim_lost` (called in threads, so that none of them holds up another slot), and again in the
    task's process, for `run`. What it sets up in one is not there in the other.

    All times are in seconds.

    :param manager: the queue, or a list of queues in order of priority: a later one is polled only after an empty poll
        (of one second) of each earlier one. Idle, that costs a request a second, instead of one in 20.
    :param handlers: task name -> handler class, constructed as `Handler(message, **kwargs)` with those of
        `sqs_timeout`, `alarm_timeout`, `hard_timeout` that it takes.
    :param slots: how many tasks at once: a number from 1 to 1000, `"auto"` (the processors this container may use: the
        ECS task's CPU limit, the cgroup's quota, or the affinity, whichever is least), or a sequence of environments,
        one a slot: `[{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]`. They reach what reads its
        environment late: OMP_NUM_THREADS, say, is read when the library is loaded, so set it before the worker starts.
        More than one needs Linux, and tasks in processes of their own.
    :param sqs_timeout: the visibility timeout of each receive and each extension, whole seconds. A claim outlasts an
        outage of `sqs_timeout - alarm_timeout` for certain.
    :param alarm_timeout: seconds between two extensions; more than one below `sqs_timeout`.
    :param hard_timeout: seconds that a task may take, up to 43200.
    :param wait_time: seconds that a poll waits for a message, 0 to 20.
    :param shutdown_grace: seconds that running tasks get to finish after SIGTERM or SIGINT, 0 or more.
    :param on_claim_lost: `"stop"`: a task whose claim is lost is stopped, since another worker may be running it; the
        outcome is `claim lost`, and nothing is done about its message. `"continue"`: it goes on. Tasks in the worker's
        own process always do. A task whose claim has lapsed before it begins is not started in any case.
    :param dead_letter_reasons: a task that fails on the last receive that the queue's redrive policy allows is sent to
        its dead-letter queue by the worker, with the reason. Needs sqs:SendMessage on that queue.
    :param around: `around(current_task)` gives a context manager, entered in the task's process round the task, and
        told of its exception: for tracing, say.
    :param on_start: called once, in the worker, after whatever forks tasks has been forked: to open a metrics port,
        say.
    :param on_finish: called in the worker, in a thread, as `on_finish(finished)` for each task that has ended.
    :raises ValueError: for a time or a number out of its range.
    :raises TypeError: for a manager that is none, and for a handler that cannot be constructed as above.
    :raises UnsupportedContext: for more than one slot where there is no Linux.

    What was given is there as attributes of the same names; `managers` is the list of queues, `manager` its first.
    """

    def __init__(
        self,
        manager: TaskManager | Sequence[TaskManager],
        handlers: Mapping[str, Callable[..., MessageHandler]] | None = None,
        *,
        slots: int | Literal["auto"] | Sequence[Environment] = 1,
        sqs_timeout: int = 120,
        alarm_timeout: float = 30,
        hard_timeout: float = 14400,
        wait_time: int = 20,
        shutdown_grace: float = 20,
        on_claim_lost: Literal["stop", "continue"] = "stop",
        dead_letter_reasons: bool = False,
        around: Callable[..., Any] | None = None,
        on_start: Callable[[], Any] | None = None,
        on_finish: Callable[..., Any] | None = None,
    ) -> None:
        check_timeouts(sqs_timeout, alarm_timeout, hard_timeout)
        if not is_number(shutdown_grace) or shutdown_grace < 0:
            raise ValueError(f"shutdown_grace must be a number of seconds, 0 or more, not {shutdown_grace!r}")
        if on_claim_lost not in ("stop", "continue"):
            raise ValueError(f'on_claim_lost must be "stop" or "continue", not {on_claim_lost!r}')
        for name, value in (("around", around), ("on_start", on_start), ("on_finish", on_finish)):
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be callable, not {value!r}")
        if handlers is not None and not isinstance(handlers, Mapping):
            raise TypeError(f'handlers must be a mapping like {{"Train": Train}}, not {handlers!r}')
        self.managers: list[TaskManager] = _managers(manager)
        self.manager: TaskManager = self.managers[0]
        self.slots: int | Literal["auto"] | list[dict[str, str]] = _checked_slots(slots)
        self.sqs_timeout: int = int(sqs_timeout)
        self.alarm_timeout = alarm_timeout
        self.hard_timeout = hard_timeout
        self.wait_time: int = check_whole_seconds("wait_time", wait_time, MAX_WAIT_SECONDS)
        self.shutdown_grace = shutdown_grace
        self.on_claim_lost = on_claim_lost
        self.dead_letter_reasons: bool = bool(dead_letter_reasons)
        self._around, self._on_start, self._on_finish = around, on_start, on_finish
        self._status: Callable[[AskFacts], Status] = Status
        self._registry = registry.Registry()
        for name, handler in (handlers or {}).items():
            self._registry.add(name, registry.of_class(name, handler, self._timeouts()))
        if slots != 1:
            self._check_slots(self.slots)

    def task(
        self,
        name: str,
        *,
        sqs_timeout: int | None = None,
        alarm_timeout: float | None = None,
        hard_timeout: float | None = None,
        retry_delay: Callable[[BaseException, int], float | None] | None = None,
        term_grace: float = 5.0,
        start_method: str | None = None,
        max_memory: int | None = None,
        dead_letter: tuple[type[BaseException], ...] = (),
        max_continuations: int = 1000,
    ) -> Callable[[Function], Function]:
        """Decorator: makes a task of a function of its kwargs, which runs in a process of its own.

        :param name: the task's name, as `submit` was given it.
        :param sqs_timeout: whole seconds, where it differs from the worker's.
        :param alarm_timeout: seconds, where it differs from the worker's.
        :param hard_timeout: seconds, where it differs from the worker's.
        :param retry_delay: `retry_delay(exception, receive_count)`, see `MessageHandler.retry_delay`.
        :param term_grace: seconds from SIGTERM to SIGKILL, see `ProcessMessageHandler`.
        :param start_method: how its process is started, see `ProcessMessageHandler`.
        :param max_memory: bytes that the task and what it started may hold, see `ProcessMessageHandler`.
        :param dead_letter: exceptions for which no retry helps, see `ProcessMessageHandler`.
        :param max_continuations: how often it may raise `Continue`, see `ProcessMessageHandler`.
        :raises TypeError: for anything but a function that takes keyword arguments and has run when it returns: no
            coroutine function, no generator.
        :raises ValueError: for a setting out of its range, or a name that is taken.

        The function must be importable from its module where the start method is not fork. What it raises is notified
        through the manager's `notify`.
        """
        if callable(name):
            raise TypeError(
                f'Write @worker.task("{getattr(name, "__name__", "Name")}"): the decorator needs the task\'s name'
            )
        settings = {
            **self._timeouts(sqs_timeout, alarm_timeout, hard_timeout),
            "retry_delay": retry_delay,
            "term_grace": term_grace,
            "start_method": start_method,
            "max_memory": max_memory,
            "dead_letter": dead_letter,
            "max_continuations": max_continuations,
        }
        # Made once here, so that what is wrong with the settings is told to whoever wrote them.
        registry.check_settings(settings)

        def register(function: Function) -> Function:
            self._registry.add(name, registry.of_function(name, function, settings))
            return function

        return register

    def run(
        self,
        burst: bool = False,
        *,
        slots: int | Literal["auto"] | None = None,
        on_event: Callable[[str], Any] | None = None,
        ecs_agent_uri: str | None = None,
        ecs_metadata_uri: str | None = None,
        ecs_lock: int | None = None,
    ) -> collections.Counter[str]:
        """Run tasks until SIGTERM or SIGINT, or, with `burst`, until a poll brings nothing while no task runs.

        Returns how many messages ended how: the values of `Outcome`, `given back` (received while stopping) and
        `refused` (unknown task, kwargs that do not fit).

        :param slots: in place of the worker's own, as the command line's `--slots`.
        :param on_event: called with "polled" after each poll that SQS answered, and every few seconds while no slot is
            free, as long as the worker's loop turns. Without slots "busy" and "idle" come round each task instead.
            Meant for health checks: it must be quick. What it raises is logged.
        :param ecs_agent_uri: ECS_AGENT_URI on Amazon ECS: the ECS task is protected from scale-in while it works.
        :param ecs_metadata_uri: ECS_CONTAINER_METADATA_URI_V4 on Amazon ECS: `slots="auto"` asks it for the CPU limit.
        :param ecs_lock: where several processes of a container run workers: the descriptor of a file, opened for
            reading and writing, that they share. The one that becomes idle last returns the protection.
        :raises PollRefused: where polling again does not help; the text says what does.
        :raises UnsupportedContext: outside the main thread, and while the command line imports the worker's module.
        :raises ValueError: for a worker without tasks.
        """
        loading.refuse_to_run()
        if not len(self._registry):
            raise ValueError(
                'This worker has no tasks, and would refuse every message: Worker(manager, {"Name": Handler}), or '
                '@worker.task("Name")'
            )
        environments = _environments(self.slots if slots is None else _checked_slots(slots), ecs_metadata_uri)
        self._check_slots(environments)
        settings = Settings(
            registry=self._registry,
            managers=self.managers,
            environments=environments,
            wait_time=self.wait_time,
            sqs_timeout=self.sqs_timeout,
            alarm_timeout=self.alarm_timeout,
            shutdown_grace=self.shutdown_grace,
            stops_on_lost_claim=self.on_claim_lost == "stop",
            dead_letter_reasons=self.dead_letter_reasons,
            around=self._around,
            on_start=self._on_start,
            on_finish=self._on_finish,
            status=self._status,
        )
        with ScaleInProtection(ecs_agent_uri, lock=ecs_lock) as protection:
            if self._has_slots(environments):
                # Loaded here: what it needs is there on Linux only.
                from sqstaskmaster._service.slots import SlotsRun

                counts = SlotsRun(settings, burst=burst, on_event=on_event, protection=protection).run()
            else:
                with Shutdown(self.shutdown_grace) as stop, owner.only_in_this_process():
                    if self._on_start is not None:
                        self._on_start()
                    run = SingleRun(
                        settings, burst=burst, on_event=on_event or _nothing, protection=protection, stop=stop
                    )
                    counts = run.run()
        logger.info("Worker stopped: %s", dict(counts), extra={"action": "stopped", "counts": dict(counts)})
        return counts

    def handler_for(self, task: str, kwargs: Mapping[str, Any], message: Any) -> MessageHandler:
        """The handler that runs this task: for tests, and for loops of one's own.

        :param task: the task's name.
        :param kwargs: its arguments, by name.
        :param message: the message, as for `MessageHandler`.
        :raises UnknownTask: where there is none.
        :raises ArgumentsDoNotFit: where its arguments are not the task's.
        """
        return self._registry.handler_for(task, kwargs, message, self.manager.notify)

    def _alone(self, manager: TaskManager, status: Callable[[AskFacts], Status]) -> Worker:
        """The same tasks and limits for that queue, one at a time, stopped at once: to run one task by hand.

        The hooks of the worker's own process are not called: they are for what runs in production.

        :param status: what tells whoever asks what runs.
        """
        alone = copy.copy(self)
        alone.managers, alone.manager = [manager], manager
        alone.slots = self.slots[:1] if isinstance(self.slots, list) else 1
        alone.shutdown_grace = alone.wait_time = 0
        alone._on_start = alone._on_finish = None
        alone._status = status
        return alone

    @property
    def hard_timeouts(self) -> dict[str, float]:
        """The hard timeout of each task by its name, in seconds. A handler class may set another for itself."""
        return {name: entry.hard_timeout for name, entry in self._registry.items()}

    @property
    def sends_dead_letters(self) -> bool:
        """Whether it is set to send failed messages to the dead-letter queue. What a task raises is not known here."""
        return self.dead_letter_reasons or any(entry.dead_letters for _, entry in self._registry.items())

    @property
    def tasks_without_max_memory(self) -> list[str]:
        """Names of the functions that are tasks without `max_memory`. What a handler class sets is not known here."""
        return [name for name, entry in self._registry.items() if entry.without_max_memory]

    def _has_slots(self, environments: Sequence[Environment]) -> bool:
        """Whether tasks run in slots: all of them have processes of their own, forked as Linux can."""
        if len(environments) > 1 or any(environments):
            return True
        return process_tree.LINUX and all(entry.slotted for _, entry in self._registry.items())

    def _check_slots(self, slots: Any) -> None:
        """Refuse what cannot run in more slots than one, or in one with an environment of its own."""
        if isinstance(slots, int) and slots == 1 or slots == [{}]:
            return
        if not process_tree.LINUX:
            raise UnsupportedContext("More than one slot needs Linux: leave out slots, or run more worker processes")
        for name, entry in self._registry.items():
            if not entry.slotted:
                raise TypeError(
                    f"Task {name!r} cannot run in a slot: {entry.expected} runs in the worker's own process, or is "
                    "started otherwise than by fork. Make it a ProcessMessageHandler with start_method=None, or leave "
                    "out slots"
                )

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


def _managers(given: Any) -> list[TaskManager]:
    managers = [given] if isinstance(given, TaskManager) else given
    if not isinstance(managers, Sequence) or isinstance(managers, str) or not managers:
        raise TypeError(f"Worker takes a TaskManager, or a list of them: Worker(TaskManager({given!r}), ...)")
    for manager in managers:
        if not isinstance(manager, TaskManager):
            raise TypeError(f"Worker takes TaskManagers, not {manager!r}: Worker([TaskManager(url), ...], ...)")
    if len({manager.url for manager in managers}) < len(managers):
        raise ValueError("Two of the worker's queues are the same: name each once")
    return list(managers)


def _checked_slots(slots: Any) -> int | Literal["auto"] | list[dict[str, str]]:
    if slots == "auto":
        return "auto"
    if isinstance(slots, Sequence) and not isinstance(slots, str):
        wrong = [each for each in slots if not isinstance(each, Mapping) or not _is_environment(each)]
        if wrong or not 1 <= len(slots) <= _MOST_SLOTS:
            raise ValueError(
                f"slots as a sequence is one environment a slot, 1 to {_MOST_SLOTS} of them, names and values text: "
                f'[{{"CUDA_VISIBLE_DEVICES": "0"}}, ...], not {slots!r:.200}'
            )
        return [dict(each) for each in slots]
    try:
        return check_whole("slots", slots, 1, _MOST_SLOTS)
    except ValueError as error:
        raise ValueError(f'{error}; or "auto", or a sequence of environments') from None


def _is_environment(given: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, str) and "=" not in name for name, value in given.items())


def _environments(
    slots: int | Literal["auto"] | list[dict[str, str]], ecs_metadata_uri: str | None
) -> list[dict[str, str]]:
    if isinstance(slots, list):
        return slots
    return [{}] * (processors.available(ecs_metadata_uri) if slots == "auto" else slots)


def _nothing(*_: object) -> None:
    pass
