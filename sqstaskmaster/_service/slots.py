"""A worker with slots: one loop holds every claim, and each task runs in a process of its own.

    poll (a thread) ---> Job: its handler is made (a thread, where that runs the user's code)
                          |
                          v
    a free slot <--- order --- RUNNING --- the loop: claim, limit, running(), memory, stop ---> the task's process
                          |
                          v
    the slot is free again; ENDING: delete, give back, delay, report, send on (threads) ---> over

The loop waits for descriptors, for answers of threads, and for what is due next. It never makes a request, never calls
code of the user's, and never writes to a log by itself: each of those can take for ever, and every claim waits here.

Two clocks: limits are of `time.monotonic`; claims count the time that the machine was suspended, as SQS does.
"""

from __future__ import annotations

import collections
import functools
import logging
import math
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from sqstaskmaster._claim import clock, note
from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._isolation.slot import Slot, SlotLost
from sqstaskmaster._isolation.template import Template
from sqstaskmaster._service import order
from sqstaskmaster._service.ecs import ScaleInProtection
from sqstaskmaster._service.endings import Endings
from sqstaskmaster._service.heartbeat import Heartbeat
from sqstaskmaster._service.job import Job, Stage
from sqstaskmaster._service.polling import Polling
from sqstaskmaster._service.queue_calls import QueueCalls
from sqstaskmaster._service.settings import Settings
from sqstaskmaster._service.threads import Mailbox, Threads
from sqstaskmaster._signals import state
from sqstaskmaster._sqs.answers import POLL_ERRORS, code_of
from sqstaskmaster._sqs.limits import MAX_BATCH_ENTRIES
from sqstaskmaster.errors import (
    ArgumentsDoNotFit,
    HandlerStuck,
    HardTimeout,
    MemoryLimitExceeded,
    PollRefused,
    ShutdownRequested,
    UnknownTask,
    UnsupportedContext,
)
from sqstaskmaster.message_handler import Outcome
from sqstaskmaster.process_handler import ProcessMessageHandler
from sqstaskmaster.task_manager import Task, TaskManager

# Threads for requests, and for the user's code. One that hangs is one less.
_REQUEST_THREADS = 32
_USER_THREADS = 64

# A constructor that takes longer is given up: its message is left, its slot goes on.
_PREPARE_SECONDS = 30.0

# How far before the end of a claim's 12 hours a task is stopped, so that it is gone when the message comes back.
_END_MARGIN_SECONDS = 2.0

# How often the memory of a task with max_memory is looked at: a process fills about a gigabyte in this time.
_MEMORY_LOOK_SECONDS = 0.1

# After a poll that brought something the next may wait this long for more slots to become free, while a quarter of them
# is busy: short tasks then share a request.
_LINGER_SECONDS = 0.025

# After the second signal, and when all tasks are over, requests and reports get so long.
_LAST_SECONDS = 5.0

# While no slot is free there are no polls that would tell that the loop turns.
_ALIVE_SECONDS = 5.0

# A slot that cannot be opened is tried again.
_REOPEN_SECONDS = 1.0

logger = logging.getLogger("sqstaskmaster.worker")


class Source:
    """One queue."""

    def __init__(self, manager: TaskManager) -> None:
        self.manager = manager
        self.calls = QueueCalls(manager.queue)

    def __str__(self) -> str:
        return self.manager.url


class SlotsRun:
    """One run of a worker with slots. Main thread only."""

    def __init__(
        self,
        settings: Settings,
        *,
        burst: bool,
        on_event: Callable[[str], Any],
        protection: ScaleInProtection,
    ) -> None:
        self._settings = settings
        self._burst = burst
        self._on_event = on_event
        self._protection = protection
        self.counts: collections.Counter[str] = collections.Counter()
        self._jobs: dict[Job, None] = {}
        self._slots: list[Slot | None] = [None] * len(settings.environments)
        self._free = set(range(len(settings.environments)))
        self._linger_until = -math.inf
        self._reopen_at = math.inf
        self._polls = 0  # under way
        self._alive_at = 0.0
        self._stop_signals = 0
        self._stop_at = math.inf
        self._end_at = math.inf
        self._refused: PollRefused | None = None
        self._broken: SlotLost | None = None
        self._events = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}

    def run(self) -> collections.Counter[str]:
        """Run tasks until a stop is requested, or, in a burst, until the queues are empty.

        :raises PollRefused: where polling again does not help.
        """
        settings = self._settings
        if threading.current_thread() is not threading.main_thread():
            raise UnsupportedContext(
                f"Worker.run takes SIGTERM and SIGINT, which Python gives to the main thread only (this is "
                f"{threading.current_thread().name!r}): run the worker in the main thread, and the rest in others"
            )
        self._template = Template(functools.partial(order.run, settings.registry, settings.around))
        self._template.start()
        try:
            for number in range(len(self._slots)):
                self._open_slot(number)
            # From here on there may be threads.
            if settings.on_start is not None:
                settings.on_start()
            self._run()
        finally:
            for slot in filter(None, self._slots):
                slot.close()
            self._template.close()
        for error in filter(None, (self._refused, self._broken)):
            raise error
        return self.counts

    def _run(self) -> None:
        self._mailbox = Mailbox()
        self._requests = Threads(self._mailbox, "sqstaskmaster-requests", _REQUEST_THREADS)
        self._user = Threads(self._mailbox, "sqstaskmaster-callbacks", _USER_THREADS)
        # One thread each, so that the order is kept.
        self._logs = Threads(self._mailbox, "sqstaskmaster-logs", 1)
        self._told = Threads(self._mailbox, "sqstaskmaster-events", 1)
        sources = [Source(manager) for manager in self._settings.managers]
        self._polling: Polling[Source] = Polling(sources, self._settings.wait_time, self.log)
        self._endings = Endings(self._settings, self._requests, self._user, self._log_with, self._over)
        self._heartbeat = Heartbeat(self._requests, clock.now, self._claim_lost, self._endings.extension_failed)
        self._watch(self._mailbox.fileno(), self._mailbox.deliver)
        handlers = state.Handlers(self._on_signal, signal.SIGTERM, signal.SIGINT)
        handlers.install()
        try:
            while not self._is_over():
                self._turn()
        finally:
            handlers.put_back()
            self._mailbox.close()

    # -- the loop ------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        now, claim_now = time.monotonic(), clock.now()
        self._stop_when_due(now)
        for job in list(self._jobs):
            self._attend(job, now, claim_now)
        self._heartbeat.attend(self._jobs, claim_now)
        self._endings.attend(claim_now)
        self._reopen_slots(now)
        self._poll(now)
        due = min(
            self._heartbeat.due(self._jobs, claim_now) - claim_now,
            self._endings.due(claim_now) - claim_now,
            min((job.due() for job in self._jobs), default=math.inf) - now,
            self._next_look() - now,
        )
        # Rounded up: a little late is on time, a little early is a turn for nothing.
        wait = None if due == math.inf else math.ceil(max(0.0, due) * 1000)
        for descriptor, _ in self._events.poll(wait):
            reader = self._readers.get(descriptor)
            if reader is not None:  # else one that was read before it has ended this one
                reader()

    def _next_look(self) -> float:
        """When the loop has something to do on its own account."""
        due = min(self._stop_at, self._end_at, self._reopen_at)
        if self._free and not self._polls and not self._stop_signals and self._refused is None:
            due = min(due, max(self._polling.due(), self._linger_until))
        elif not self._free:
            due = min(due, self._alive_at)
        return due

    def _is_over(self) -> bool:
        if self._end_at <= time.monotonic():
            return True
        if self._jobs or self._polls and self._stop_signals < 2:
            return False
        if not (self._stop_signals or self._refused or self._burst and self._polling.all_empty):
            return False
        if self._endings.unfinished:
            # Only the user's code is left: an error service that hangs gets so long.
            self._end_at = min(self._end_at, time.monotonic() + _LAST_SECONDS)
            return False
        return True

    def _watch(self, descriptor: int, reader: Callable[[], None]) -> None:
        self._readers[descriptor] = reader
        self._events.register(descriptor, select.POLLIN)

    def _unwatch(self, descriptor: int) -> None:
        if self._readers.pop(descriptor, None) is not None:
            self._events.unregister(descriptor)

    def log(self, level: int, text: str, *values: Any, **more: Any) -> None:
        """`Logger.log`, from a thread of its own: a reader of the log that stalls holds up no claim."""
        self._log_with(lambda: logger.log(level, text, *values, **more))

    def _log_with(self, function: Callable[[], Any]) -> None:
        self._logs.call(function, _tell_defect)

    # -- slots ---------------------------------------------------------------------------------------------------

    def _open_slot(self, number: int) -> None:
        slot = self._template.open_slot(self._settings.environments[number])
        self._slots[number] = slot
        self._watch(slot.descriptor, functools.partial(self._close_slot, number))

    def _close_slot(self, number: int) -> None:
        """Its keeper has ended: another is asked for."""
        slot = self._slots[number]
        if slot is not None:
            self._unwatch(slot.descriptor)
            slot.close()
            self._slots[number] = None
            self._reopen_at = min(self._reopen_at, time.monotonic())

    def _reopen_slots(self, now: float) -> None:
        """Replace keepers that have died, from the template, which is as clean as when it started."""
        if now < self._reopen_at:
            return
        self._reopen_at = math.inf
        for number, slot in enumerate(self._slots):
            if slot is None:
                try:
                    self._open_slot(number)
                except SlotLost as error:
                    self._lose_template(error)
                    return
                except OSError as error:
                    self.log(logging.ERROR, "Slot %d cannot be opened, trying again: %s", number, error, extra=_SLOT)
                    self._reopen_at = now + _REOPEN_SECONDS

    def _lose_template(self, error: SlotLost) -> None:
        """No keeper can be replaced any more: come to an orderly end, for the supervisor to start afresh."""
        if self._broken is None:
            self._broken = error
            self.log(logging.ERROR, "Tasks cannot be started any more, the worker stops: %s", error, extra=_SLOT)
            self._stop(signal.SIGTERM)

    def _usable(self) -> int:
        """How many slots are free."""
        return sum(self._slots[number] is not None for number in self._free)

    def _free_slot(self, job: Job) -> None:
        if job.slot >= 0:
            self._free.add(job.slot)
            job.slot = -1

    # -- from the poll to the start ------------------------------------------------------------------------------

    def _poll(self, now: float) -> None:
        """Ask for as many messages as slots are free; one poll at a time."""
        free = min(self._usable(), MAX_BATCH_ENTRIES)
        if self._polls or not free or self._stop_signals or self._refused is not None:
            if not free and now >= self._alive_at:
                self._alive_at = now + _ALIVE_SECONDS
                self._tell("polled")
            return
        if self._burst and self._polling.all_empty:
            if not self._jobs and not self._endings.unfinished:
                return
            if free == len(self._slots):
                self._polling.busy()  # what has just ended may have left something behind
        if now < self._linger_until and len(self._slots) - self._usable() > len(self._slots) // 4:
            return
        source = self._polling.next(now)
        if source is None:
            return
        self._polls += 1
        wait, timeout = self._polling.wait_time, self._settings.sqs_timeout
        self._requests.call(
            lambda: source.manager.receive(wait, timeout, free, MessageAttributeNames=["All"]),
            functools.partial(self._polled, source),
        )

    def _polled(self, source: Source, received: Sequence[Task | None] | None, error: BaseException | None) -> None:
        self._polls -= 1
        if isinstance(error, POLL_ERRORS):
            remedy = self._polling.failed(source, error, time.monotonic())
            if remedy is not None and len(self._settings.managers) == 1:
                self._refuse(PollRefused(error, code_of(error) or type(error).__name__, remedy, source.manager.url))
            return
        if error is not None:
            raise error  # a queue of the user's own making
        self._polling.answered(source, len(received or ()))
        if received:
            self._linger_until = time.monotonic() + _LINGER_SECONDS
        self._tell("polled")
        for task in received or ():
            if task is not None:
                self._take(source, *task)
        if not self._jobs:
            self._protection.idle()

    def _refuse(self, error: PollRefused) -> None:
        """No poll will succeed: let what runs come to its end, then end with the error."""
        self._refused = error
        self._stop_at = time.monotonic() + self._settings.shutdown_grace

    def _take(self, source: Source, task: str, kwargs: dict[str, Any], message: Any) -> None:
        """Begin with a message: give it back, refuse it, or have its handler made."""
        claim = Claim.of(note.read(message), self._settings.sqs_timeout, self._settings.alarm_timeout, clock.now())
        job = Job(source, message, task, kwargs, claim)
        self._jobs[job] = None
        if self._stop_signals or not self._usable():
            self._endings.give_back_unstarted(job)
            return
        try:
            entry = self._settings.registry.entry_for(task, kwargs)
        except (UnknownTask, ArgumentsDoNotFit) as error:
            self._endings.refuse(job, error)
            return
        job.slot = next(number for number in sorted(self._free) if self._slots[number] is not None)
        self._free.discard(job.slot)
        make = functools.partial(self._settings.registry.handler_for, task, kwargs, message, source.manager.notify)
        if entry.quick:
            self._prepared(job, make(), None)
        else:
            job.limit_at = time.monotonic() + _PREPARE_SECONDS
            self._user.call(make, functools.partial(self._prepared, job))

    def _prepared(self, job: Job, handler: Any, error: BaseException | None) -> None:
        if job not in self._jobs or job.stage is not Stage.PREPARING:
            return  # it came too late
        if error is not None:
            self._end(job)
            self._endings.refuse(job, error)
            return
        if not isinstance(handler, ProcessMessageHandler):
            self._end(job)
            text = f"gave a {type(handler).__name__}, and a worker with slots runs ProcessMessageHandlers only"
            self._endings.refuse(job, ArgumentsDoNotFit(job.task, text, "ProcessMessageHandler"))
            return
        job.set_handler(handler)
        job.claim.retime(handler.sqs_timeout, handler.alarm_timeout)
        if self._stop_signals:
            self._end(job)
            self._endings.give_back_unstarted(job)
        elif job.claim.lapsed(clock.now()):
            self._end(job)
            self._endings.lost(job, job.claim.lost)
        else:
            self._start(job, handler)

    def _start(self, job: Job, handler: ProcessMessageHandler) -> None:
        slot = self._slots[job.slot]
        try:
            if slot is None:
                raise SlotLost("its keeper has ended")
            job.process = slot.start(order.of(job), name=job.task, term_grace=handler.term_grace)
        except (OSError, SlotLost) as error:
            self.log(logging.WARNING, "Slot %d takes no task, it is replaced: %s", job.slot, error, extra=_SLOT)
            self._close_slot(job.slot)
            self._end(job)
            self._endings.give_back_unstarted(job)
            return
        now, claim_now = time.monotonic(), clock.now()
        job.stage = Stage.RUNNING
        job.began = now
        self._set_limit(job, now, claim_now)
        job.look_at = now + handler.alarm_timeout if _asks_running(handler) else math.inf
        job.memory_at = math.inf if handler.max_memory is None else now
        self._watch_process(job)
        if sum(each.is_running for each in self._jobs) == 1:
            self._tell("busy")
        self._protection.busy(handler.hard_timeout)

    # -- while a task runs ---------------------------------------------------------------------------------------

    def _attend(self, job: Job, now: float, claim_now: float) -> None:
        """Do what is due about one task."""
        process, handler = job.process, job.handler
        if job.stage is Stage.PREPARING:
            if now >= job.limit_at:
                self._end(job)
                self._endings.refuse(job, HandlerStuck(f"The constructor of {job.task}'s handler has not returned"))
            return
        if not job.is_running or process is None or handler is None:
            return
        if now >= process.next_step_at:
            process.step(now)
            self._watch_process(job)
        if process.gone:
            self._ended(job)
        elif job.stop_reason is None:
            if now >= job.limit_at:
                job.stop(HardTimeout("Hit Hard Timeout for message handler"), Outcome.TIMED_OUT)
            elif handler.max_memory is not None and now >= job.memory_at:
                job.memory_at = now + _MEMORY_LOOK_SECONDS
                size = process.memory(handler.max_memory)
                if size > handler.max_memory:
                    job.stop(MemoryLimitExceeded(job.task, size, handler.max_memory))
            elif now >= job.look_at:
                job.look_at = now + handler.alarm_timeout
                self._ask_running(job, handler)

    def _ask_running(self, job: Job, handler: ProcessMessageHandler) -> None:
        """Ask for progress, in a thread: one that hangs is no answer, and holds up neither limit nor heartbeat."""
        if job.asking:
            return
        job.asking = True
        if job.process is not None:
            handler.progress = job.process.progress
        self._user.call(handler.running, functools.partial(self._running_answered, job))

    def _running_answered(self, job: Job, makes_progress: Any, error: BaseException | None) -> None:
        job.asking = False
        if error is not None:
            job.stop(error if isinstance(error, Exception) else HandlerStuck(f"running() raised {error!r}"))
        elif not makes_progress:
            text = f"Handler is stuck on {job.message} after {time.monotonic() - job.began:.1f} seconds"
            job.stop(HandlerStuck(text), Outcome.STUCK)

    def _set_limit(self, job: Job, now: float, claim_now: float) -> None:
        """The hard timeout, or the end of the claim's 12 hours, in time for the task to be gone by then."""
        if job.handler is not None:
            claim_ends = now + job.claim.ends - claim_now - _END_MARGIN_SECONDS - job.handler.term_grace
            job.limit_at = min(job.began + job.handler.hard_timeout, claim_ends)

    def _claim_lost(self, job: Job) -> None:
        """SQS, or the clock, says that the claim is gone."""
        if job.lost_told:
            return
        job.lost_told = True
        error = job.claim.lost
        if error is None or job.stage is not Stage.RUNNING or job.handler is None:
            return
        if self._settings.stops_on_lost_claim:
            job.stop(error, Outcome.CLAIM_LOST)
        handler = job.handler
        self._user.call(lambda: handler.claim_lost(error), functools.partial(self._claim_lost_told, job))

    def _claim_lost_told(self, job: Job, _: Any, error: BaseException | None) -> None:
        if error is not None:
            job.stop(error, Outcome.CLAIM_LOST)

    def _watch_process(self, job: Job) -> None:
        """Have the loop read what the task's descriptors have to say: those it has now."""
        process = job.process
        if process is None:
            return
        wanted = set(process.descriptors())
        for descriptor in job.watched - wanted:
            self._unwatch(descriptor)
        for descriptor in wanted - job.watched:
            self._watch(descriptor, functools.partial(self._read, job, descriptor))
        job.watched = wanted

    def _read(self, job: Job, descriptor: int) -> None:
        if job.process is not None and job.is_running:
            job.process.read(descriptor)
            self._watch_process(job)
            if job.process.gone:
                self._ended(job)

    def _ended(self, job: Job) -> None:
        """A task and everything it started is gone: its slot is free, and what it came to is carried out."""
        self._end(job)
        self._endings.ended(job, others=any(each.is_running for each in self._jobs))

    def _end(self, job: Job) -> None:
        was_running = job.is_running
        job.stage = Stage.ENDING
        self._free_slot(job)
        if was_running and not any(each.is_running for each in self._jobs):
            self._tell("idle")

    def _over(self, job: Job, outcome: str) -> None:
        """Nothing more is done about a message."""
        if self._jobs.pop(job, self) is None:
            self.counts[outcome] += 1
            self._polling.busy()

    # -- stopping ------------------------------------------------------------------------------------------------

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._mailbox.put(functools.partial(self._stop, signum))

    def _stop(self, signum: int) -> None:
        """The first signal: no more polls, running tasks get their grace. The second: now."""
        self._stop_signals += 1
        name = signal.Signals(signum).name
        now = time.monotonic()
        self._stop_at = min(self._stop_at, now + (self._settings.shutdown_grace if self._stop_signals == 1 else 0.0))
        running = [job for job in self._jobs if job.is_running]
        for job in running:
            if job.process is not None:
                job.process.tell_stopping()
        if self._stop_signals == 1:
            what = f"taking no more work; {len(running)} running, which get {self._settings.shutdown_grace} seconds"
            if self._polls:
                what += f"; waiting for the poll, up to {self._polling.wait_time} s. A second signal means now"
        else:
            what = "stopping now"
            self._end_at = (
                now + _LAST_SECONDS + max((job.handler.term_grace for job in running if job.handler), default=0)
            )
        self.log(logging.INFO, "%s: %s", name, what, extra={"action": "stopping", "signal": name})

    def _stop_when_due(self, now: float) -> None:
        if now < self._stop_at:
            return
        self._stop_at = math.inf
        for job in list(self._jobs):
            if job.is_running:
                job.stop(ShutdownRequested("The worker is stopping, and the task's time to finish is over"))
            elif job.stage is Stage.PREPARING:
                self._end(job)
                self._endings.give_back_unstarted(job)

    def _tell(self, event: str) -> None:
        self._told.call(lambda: self._on_event(event), _tell_defect)


_SLOT = {"action": "slot_failed"}


def _asks_running(handler: ProcessMessageHandler) -> bool:
    """Whether `running` is anything but the default, which always says yes."""
    return type(handler).running is not ProcessMessageHandler.running or "running" in vars(handler)


def _tell_defect(_: Any, error: BaseException | None) -> None:
    """What `on_event`, or a line of the log, raised."""
    if error is not None:
        logger.error("A callback of the worker failed", exc_info=error, extra={"action": "callback_failed"})
