"""Worker: task name -> handler, as many at once as it has slots, and an orderly stop.

::

    Worker ---- all tasks have processes of their own -----> _service.loop: one loop, N slots
       |
       +------- a plain MessageHandler among them ---------> _service.plain_loop: one task after the other
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from sqstaskmaster._isolation import process_tree
from sqstaskmaster._isolation.child import require_processes
from sqstaskmaster._isolation.template import Template
from sqstaskmaster._isolation.warm import Warm
from sqstaskmaster._logging import get_logger
from sqstaskmaster._service import loading, order, processors, registry
from sqstaskmaster._service.ecs import ScaleInProtection
from sqstaskmaster._service.log_writer import LogWriter
from sqstaskmaster._service.loop import Loop
from sqstaskmaster._service.plain_loop import PlainLoop
from sqstaskmaster._service.settings import Settings
from sqstaskmaster._service.slot_pool import allow_descriptors
from sqstaskmaster._service.status import AskFacts, AskStop, Status
from sqstaskmaster._service.warming import WarmSettings
from sqstaskmaster._service.world import World
from sqstaskmaster._signals import alarm
from sqstaskmaster._signals.shutdown import Shutdown
from sqstaskmaster._sqs.limits import MAX_WAIT_SECONDS, check_whole, check_whole_seconds, is_number, is_whole
from sqstaskmaster.errors import UnsupportedContext
from sqstaskmaster.message_handler import MessageHandler, check_timeouts
from sqstaskmaster.task_manager import TaskManager

logger: logging.Logger = get_logger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])
Environment = Mapping[str, str]

_MOST_SLOTS = 1000
_MOST_TASKS = 1_000_000_000
_MOST_INITIALIZER_SECONDS = 43200


class Worker:
    """Runs the tasks of a queue, as many at once as it has slots, until it is asked to stop.

    ::

        worker = Worker(TaskManager(url), {"Train": Train}, slots=4)

        @worker.task("Report", hard_timeout=600)
        def report(customer, month="last"):
            ...

        if __name__ == "__main__":
            worker.run()

    Each task of a `ProcessMessageHandler`, and each function, runs in a process of its own. All are forked from one
    process, which imports the worker's modules once and never runs a task itself. The worker's own process holds all
    claims, and claims a message only when a slot is free.

    A handler's constructor runs twice: in the worker, for `running`, `notify`, `retry_delay` and `claim_lost` (called
    in threads, so that none of them holds up another slot), and again in the task's process, for `run`. What it sets up
    in one process does not exist in the other.

    All times are in seconds.

    :param manager: the queue, or a list of queues in order of priority: a later one is polled only after an empty poll
        (of one second) of each earlier one. Idle, that costs a request a second, instead of one in 20.
    :param handlers: task name -> handler class, constructed as `Handler(message, **kwargs)` with those of
        `sqs_timeout`, `alarm_timeout` and `hard_timeout` that it takes.
    :param slots: how many tasks at once: a number from 1 to 1000, `"auto"` (the processors this container may use: the
        ECS task's CPU limit, the cgroup's quota, or the affinity, whichever is least), or a sequence of environments,
        one per slot: `[{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]`. A variable that a library reads
        when it is loaded, such as OMP_NUM_THREADS, must be set before the worker starts. More than one needs Linux, and
        tasks in processes of their own.
    :param sqs_timeout: the visibility timeout of each receive and each extension, whole seconds. A claim always
        outlasts an outage of `sqs_timeout - alarm_timeout`.
    :param alarm_timeout: seconds between two extensions; more than one below `sqs_timeout`.
    :param hard_timeout: seconds that a task may take, up to 43200.
    :param wait_time: seconds that a poll waits for a message, 0 to 20.
    :param shutdown_grace: seconds that running tasks get to finish after SIGTERM or SIGINT, 0 or more.
    :param on_claim_lost: `"stop"`: a task whose claim is lost is stopped, since another worker may be running it; the
        outcome is `claim lost`, and its message is left alone. `"continue"`: it goes on. Tasks in the worker's own
        process always go on. A task whose claim has lapsed before it begins is never started.
    :param dead_letter_reasons: if a task fails on the last receive that the queue's redrive policy allows, the worker
        sends its message to the dead-letter queue, with the reason. Needs sqs:SendMessage on that queue.
    :param around: `around(current_task)` returns a context manager, which is entered in the task's process around the
        task and sees its exception: for tracing, for example.
    :param on_start: called once, in the worker, after the process that forks tasks has been started: to open a metrics
        port, for example.
    :param on_finish: called in the worker, in a thread, as `on_finish(finished)` for each task that has ended.
    :param initializer: `initializer()` is called in each process that is to run tasks, before its first task: to load a
        model, to make a CUDA context, to start a server of its own. Tasks find what it leaves in globals. No message is
        claimed for a process until it has returned there. If it fails, its traceback is logged, and it is retried, 1 to
        60 seconds apart; three failures in a row in every slot, with no task in between, end the worker. To pass
        arguments, use `functools.partial`. Needs Linux, and one start method for all tasks: with
        `start_method="spawn"` each slot has a fresh interpreter that stays.
    :param max_tasks_per_child: how many tasks a process runs, one after the other; None for no limit. A process gets no
        other task after any failure, stop or lost claim, or if a task has left something behind (a thread, a process, a
        descriptor, a signal handler, a timer, another folder, umask, limit or environment).
    :param initializer_timeout: seconds that the initializer may take, over 0; then its stack is logged and it is
        killed.
    :param max_growth: bytes by which a process may have grown since its initializer returned and still get another
        task; None for no limit.
    :raises ValueError: for a time or a number out of its range.
    :raises TypeError: for a manager that is not a TaskManager, and for a handler that cannot be constructed as above.
    :raises UnsupportedContext: for more than one slot, and for processes that run several tasks, outside Linux.

    The arguments are attributes of the same names; `managers` is the list of queues, `manager` its first.
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
        initializer: Callable[[], Any] | None = None,
        max_tasks_per_child: int | None = 1,
        initializer_timeout: float = 600,
        max_growth: int | None = None,
    ) -> None:
        check_timeouts(sqs_timeout, alarm_timeout, hard_timeout)
        if not is_number(shutdown_grace) or shutdown_grace < 0:
            raise ValueError(f"shutdown_grace must be a number of seconds, 0 or more, not {shutdown_grace!r}")
        if on_claim_lost not in ("stop", "continue"):
            raise ValueError(f'on_claim_lost must be "stop" or "continue", not {on_claim_lost!r}')
        hooks = {"around": around, "on_start": on_start, "on_finish": on_finish, "initializer": initializer}
        for name, value in hooks.items():
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
        self.max_tasks_per_child: int | None = (
            None
            if max_tasks_per_child is None
            else check_whole("max_tasks_per_child", max_tasks_per_child, 1, _MOST_TASKS)
        )
        if not is_number(initializer_timeout) or not 0 < initializer_timeout <= _MOST_INITIALIZER_SECONDS:
            raise ValueError(
                f"initializer_timeout must be a number of seconds over 0, up to {_MOST_INITIALIZER_SECONDS}, not "
                f"{initializer_timeout!r}"
            )
        self.initializer_timeout = initializer_timeout
        if max_growth is not None and (not is_whole(max_growth) or max_growth < 0):
            raise ValueError(f"max_growth must be a whole number of bytes, 0 or more, or None, not {max_growth!r}")
        self.max_growth = max_growth
        self._around, self._on_start, self._on_finish = around, on_start, on_finish
        self._initializer = initializer
        self._status: Callable[[AskFacts, AskStop], Status] = Status
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
        """Decorator: makes a function of its kwargs a task, which runs in a process of its own.

        :param name: the task's name, as passed to `submit`.
        :param sqs_timeout: whole seconds; default: the worker's.
        :param alarm_timeout: seconds; default: the worker's.
        :param hard_timeout: seconds; default: the worker's.
        :param retry_delay: `retry_delay(exception, receive_count)`, see `MessageHandler.retry_delay`.
        :param term_grace: seconds from SIGTERM to SIGKILL, see `ProcessMessageHandler`.
        :param start_method: how its process is started, see `ProcessMessageHandler`.
        :param max_memory: bytes that the task and what it started may hold, see `ProcessMessageHandler`.
        :param dead_letter: exceptions for which no retry helps, see `ProcessMessageHandler`.
        :param max_continuations: how often it may raise `Continue`, see `ProcessMessageHandler`.
        :raises TypeError: for anything but a plain function that takes keyword arguments: not a coroutine function, not
            a generator.
        :raises ValueError: for a setting out of its range, or a name that is taken.

        Unless the start method is fork, the function must be importable from its module. What it raises goes to the
        manager's `notify`.
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
        # Checked here, so that wrong settings raise where they are written.
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

        Returns how many messages had each outcome: the values of `Outcome`, `given back` (received while stopping) and
        `refused` (unknown task, kwargs that do not fit).

        :param slots: in place of the worker's own, like the command line's `--slots`.
        :param on_event: called with "polled" after each poll that SQS answered, and every few seconds while no slot is
            free, as long as the worker's loop is alive. Without slots "busy" and "idle" come around each task instead.
            With an initializer, "ready" comes once, when it has returned in a slot. It is for health checks, and must
            be quick. If it raises, that is logged.
        :param ecs_agent_uri: ECS_AGENT_URI on Amazon ECS: the ECS task is protected from scale-in while it works.
        :param ecs_metadata_uri: ECS_CONTAINER_METADATA_URI_V4 on Amazon ECS: `slots="auto"` asks it for the CPU limit.
        :param ecs_lock: if several processes of a container run workers: the descriptor of a file, opened for reading
            and writing, that they share. The process that becomes idle last releases the protection.
        :raises InitializerFailed: if no slot gets ready, see `initializer`. Nothing was received meanwhile.
        :raises PollRefused: if polling again does not help; the text says what does.
        :raises UnsupportedContext: outside the main thread, and while the command line imports the worker's module.
        :raises ValueError: for a worker without tasks, and for a test's queues that do not share their clock.
        """
        loading.refuse_to_run()
        if not len(self._registry):
            raise ValueError(
                'This worker has no tasks, and would refuse every message: Worker(manager, {"Name": Handler}), or '
                '@worker.task("Name")'
            )
        wanted = self.slots if slots is None else _checked_slots(slots)
        self._check_slots(wanted)
        warm = self._warm(wanted)
        settings = Settings(
            registry=self._registry,
            managers=self.managers,
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
            warm=warm,
        )
        alarm.require_alarm(
            "A worker",
            "run it there, and everything else in threads, or run it as 'sqstaskmaster worker MODULE:WORKER'",
        )
        if os.getpid() == 1:
            logger.warning(
                "This process is process 1 of its container and runs the worker itself, so nobody reaps the processes "
                "that tasks leave behind: start it as 'sqstaskmaster worker MODULE:WORKER'",
                extra={"action": "no_reaper"},
            )
        with LogWriter() as writer, contextlib.ExitStack() as stack:
            isolated = self._has_slots(wanted)
            template = None
            if isolated and process_tree.LINUX:
                # Started first, so that what is forked from it inherits no thread and no connection.
                template = Template(
                    functools.partial(order.run, self._registry, self._around), None if warm is None else warm.process
                )
                template.start()
                stack.callback(template.close)
            writer.start()
            more: dict[str, Any] = {
                "burst": burst,
                "on_event": on_event,
                "protection": stack.enter_context(ScaleInProtection(ecs_agent_uri, lock=ecs_lock)),
                "shutdown": stack.enter_context(Shutdown(self.shutdown_grace)),
            }
            if isolated:
                environments = _environments(wanted, ecs_metadata_uri)
                allow_descriptors(len(environments))
                queue_clock = settings.queue_clock()
                world = World(queue_clock)
                stack.callback(world.close)
                loop = Loop(settings, template, environments, world=world, **more)
                stack.enter_context(queue_clock.attended(loop.attendant))
                counts = loop.run()
            else:
                counts = PlainLoop(settings, **more).run()
            stack.close()
            facts = {"action": "stopped", "counts": dict(counts)}
            logger.info("Worker stopped: %s", dict(counts), extra=facts)
        return counts

    def handler_for(self, task: str, kwargs: Mapping[str, Any], message: Any) -> MessageHandler:
        """The handler that runs this task: for tests, and for loops of your own.

        :param task: the task's name.
        :param kwargs: its arguments, by name.
        :param message: the message, as for `MessageHandler`.
        :raises UnknownTask: if the worker has no such task.
        :raises ArgumentsDoNotFit: if the arguments do not fit the task.
        """
        return self._registry.handler_for(task, kwargs, message, self.manager.notify)

    def _alone(self, manager: TaskManager, status: Callable[[AskFacts, AskStop], Status]) -> Worker:
        """The same tasks and limits for that queue, one at a time, with an immediate stop: to run one task by hand.

        The hooks of the worker's own process are not called: they are for production.

        :param status: makes what answers `sqstaskmaster ps`.
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
        """The hard timeout of each task by name, in seconds. A handler class may set another for itself."""
        return {name: entry.hard_timeout for name, entry in self._registry.items()}

    @property
    def sends_dead_letters(self) -> bool:
        """Whether it is set to send failed messages to the dead-letter queue. What tasks raise is not known here."""
        return self.dead_letter_reasons or any(entry.dead_letters for _, entry in self._registry.items())

    @property
    def tasks_without_max_memory(self) -> list[str]:
        """Names of the functions that are tasks without `max_memory`. What a handler class sets is not known here."""
        return [name for name, entry in self._registry.items() if entry.without_max_memory]

    def _has_slots(self, slots: Any) -> bool:
        """Whether tasks run in slots: all of them have processes of their own.

        If pidfd_open is refused (older Docker, gVisor), one task at a time runs without a slot.
        """
        if not self._is_single(slots):
            return True
        kernel_helps = not process_tree.LINUX or process_tree.has_pidfd()
        return kernel_helps and all(entry.isolated for _, entry in self._registry.items())

    def _warm(self, slots: Any) -> WarmSettings | None:
        """The settings of processes that stay; None if each task has its own process, and nothing runs before it."""
        if self._initializer is None and self.max_tasks_per_child == 1:
            return None
        what = "initializer" if self._initializer is not None else "max_tasks_per_child"
        if not process_tree.LINUX:
            raise UnsupportedContext(f"{what} needs Linux: leave it out")
        for name, entry in self._registry.items():
            if not entry.isolated:
                raise TypeError(
                    f"{what} is for tasks in processes of their own, and task {name!r} is none: {entry.expected} runs "
                    f"in the worker's own process. Make it a ProcessMessageHandler, or leave out {what}"
                )
        if not self._has_slots(slots):
            raise UnsupportedContext(f"{what} needs Linux 5.3 or later (pidfd_open): leave it out")
        methods = {entry.start_method for _, entry in self._registry.items()} - {None}
        if len(methods) > 1 or "forkserver" in methods:
            raise UnsupportedContext(
                f"{what} makes processes that run all of the worker's tasks, forked or spawned, and their start_method "
                f"is {' and '.join(sorted(map(repr, methods)))}: give all of them the same, \"spawn\" or none"
            )
        return WarmSettings(
            Warm(self._initializer, self.max_growth, methods == {"spawn"}),
            self.max_tasks_per_child,
            self.initializer_timeout,
        )

    @staticmethod
    def _is_single(slots: Any) -> bool:
        return isinstance(slots, int) and slots == 1 or slots == [{}]

    def _check_slots(self, slots: Any) -> None:
        """Refuse tasks that cannot run in several slots, or in a slot with its own environment."""
        if self._is_single(slots):
            return
        require_processes()
        for name, entry in self._registry.items():
            if not entry.isolated:
                raise TypeError(
                    f"Task {name!r} cannot run in a slot: {entry.expected} runs in the worker's own process. Make it a "
                    "ProcessMessageHandler, or leave out slots"
                )
            if not process_tree.LINUX and entry.start_method != "spawn":
                raise UnsupportedContext(
                    "More than one slot needs Linux, or tasks with start_method='spawn': leave out slots, or run more "
                    "worker processes"
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
