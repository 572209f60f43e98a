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
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from sqstaskmaster._claim import clock, note, owner
from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._isolation.template import Template
from sqstaskmaster._service import order
from sqstaskmaster._service.ecs import ScaleInProtection
from sqstaskmaster._service.endings import Endings
from sqstaskmaster._service.facts import Facts
from sqstaskmaster._service.heartbeat import Heartbeat
from sqstaskmaster._service.job import Job, Stage
from sqstaskmaster._service.polling import Polling
from sqstaskmaster._service.queue_calls import QueueCalls
from sqstaskmaster._service.readers import Readers
from sqstaskmaster._service.settings import Settings
from sqstaskmaster._service.slot_pool import SlotPool
from sqstaskmaster._service.threads import Mailbox, Threads
from sqstaskmaster._service.watching import Watching
from sqstaskmaster._signals import state
from sqstaskmaster._sqs.answers import code_of, is_failed_poll
from sqstaskmaster._sqs.limits import MAX_BATCH_ENTRIES
from sqstaskmaster.errors import (
    ArgumentsDoNotFit,
    HandlerStuck,
    PollRefused,
    ShutdownRequested,
    UnknownTask,
    UnsupportedContext,
)
from sqstaskmaster.process_handler import ProcessMessageHandler
from sqstaskmaster.task_manager import Task, TaskManager

# Threads for requests, and for the user's code. One that hangs is one less.
_REQUEST_THREADS = 32
_USER_THREADS = 64

# A constructor that takes longer is given up: its message is left, its slot goes on.
_PREPARE_SECONDS = 30.0

# After a poll that brought something the next may wait this long for more slots to become free, while a quarter of them
# is busy: short tasks then share a request.
_LINGER_SECONDS = 0.025

# After the second signal, and when all tasks are over, requests and reports get so long.
_LAST_SECONDS = 5.0

# While no slot is free there are no polls that would tell that the loop turns.
_ALIVE_SECONDS = 5.0

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
        on_event: Callable[[str], Any] | None,
        protection: ScaleInProtection,
    ) -> None:
        self._settings = settings
        self._burst = burst
        self._on_event = on_event
        self._protection = protection
        self.counts: collections.Counter[str] = collections.Counter()
        self._jobs: dict[Job, None] = {}
        self._linger_until = -math.inf
        self._polls = 0  # under way
        self._alive_at = 0.0
        self._stop_signals = 0
        self._stop_at = math.inf
        self._end_at = math.inf
        self._refused: PollRefused | None = None
        self._readers = Readers()

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
        template = Template(functools.partial(order.run, settings.registry, settings.around))
        template.start()
        self._slots = SlotPool(template, settings.environments, self._readers, self.log)
        try:
            self._slots.open_all()
            # From here on there may be threads.
            if settings.on_start is not None:
                with owner.only_in_this_process():
                    settings.on_start()
            self._run()
        finally:
            self._slots.close()
            template.close()
        for error in filter(None, (self._refused, self._slots.lost)):
            raise error
        return self.counts

    def _run(self) -> None:
        self._mailbox = Mailbox()
        self._requests = Threads(self._mailbox, "sqstaskmaster-requests", _REQUEST_THREADS)
        self._user = Threads(self._mailbox, "sqstaskmaster-callbacks", _USER_THREADS)
        # One thread each, so that the order is kept.
        self._logs = Threads(self._mailbox, "sqstaskmaster-logs", 1)
        self._events = Threads(self._mailbox, "sqstaskmaster-events", 1)
        sources = [Source(manager) for manager in self._settings.managers]
        self._polling: Polling[Source] = Polling(sources, self._settings.wait_time, self.log)
        self._endings = Endings(self._settings, self._requests, self._user, self._log_with, self._over)
        stops = self._settings.stops_on_lost_claim
        self._watching = Watching(self._user, self._readers, stops, self._ended)
        failed = self._endings.extension_failed
        self._heartbeat = Heartbeat(self._requests, clock.now, self._watching.claim_lost, failed)
        self._readers.add(self._mailbox.fileno(), self._mailbox.deliver)
        handlers = state.Handlers(self._on_signal, signal.SIGTERM, signal.SIGINT)
        handlers.install()
        status = self._settings.status(Facts(self._settings, self._jobs, self._mailbox, lambda: self._stop_signals > 0))
        status.open()
        try:
            while self._turn():
                pass
        finally:
            status.close()
            handlers.put_back()
            for threads in (self._requests, self._user, self._logs, self._events):
                threads.close()
            self._mailbox.close()

    # -- the loop ------------------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Do what is due, and wait for what comes. False where the run is over."""
        now, claim_now = time.monotonic(), clock.now()
        self._stop_when_due(now)
        for job in list(self._jobs):
            if job.is_running:
                self._watching.attend(job, now)
            elif job.stage is Stage.PREPARING and now >= job.limit_at:
                self._end(job)
                self._endings.refuse(job, HandlerStuck(f"The constructor of {job.task}'s handler has not returned"))
        self._heartbeat.attend(self._jobs, claim_now)
        self._slots.reopen(now)
        if self._slots.lost is not None and not self._stop_signals:
            # For the supervisor to start afresh.
            text = "Tasks cannot be started any more, the worker stops: %s"
            self.log(logging.ERROR, text, self._slots.lost, extra={"action": "template_lost"})
            self._stop(signal.SIGTERM)
        # Before the deletes: a free slot waits for what the poll brings, and nobody for them.
        self._poll(now)
        self._endings.attend(claim_now)
        # Before the wait: what was given up just now may have been the last.
        if self._is_over():
            return False
        due = min(
            self._heartbeat.due(self._jobs, claim_now) - claim_now,
            self._endings.due(claim_now) - claim_now,
            min((job.due() for job in self._jobs), default=math.inf) - now,
            self._next_look() - now,
        )
        self._readers.wait(due)
        return True

    def _next_look(self) -> float:
        """When the loop has something to do on its own account."""
        due = min(self._stop_at, self._end_at, self._slots.due)
        ended = self._burst and self._polling.all_empty and not self._jobs
        if self._slots.usable and not self._polls and not self._stop_signals and self._refused is None and not ended:
            due = min(due, max(self._polling.due(), self._linger_until))
        elif not self._slots.usable:
            due = min(due, self._alive_at)
        return due

    def _is_over(self) -> bool:
        if self._end_at <= time.monotonic():
            return True
        if self._jobs or self._polls and self._stop_signals < 2:
            return False
        if not (self._stop_signals or self._refused or self._burst and self._polling.all_empty):
            return False
        # First: what ends between the two still wakes the loop.
        self._logs.wakes = self._user.wakes = True
        if self._endings.unfinished or self._logs.unfinished:
            # Only the user's code is left: an error service or a log that hangs gets so long.
            self._end_at = min(self._end_at, time.monotonic() + _LAST_SECONDS)
            return False
        return True

    def log(self, level: int, text: str, *values: Any, **more: Any) -> None:
        """`Logger.log`, from a thread of its own: a reader of the log that stalls holds up no claim."""
        self._log_with(lambda: logger.log(level, text, *values, **more))

    def _log_with(self, function: Callable[[], Any]) -> None:
        self._logs.call(function)

    # -- from the poll to the start ------------------------------------------------------------------------------

    def _poll(self, now: float) -> None:
        """Ask for as many messages as slots are free; one poll at a time."""
        free = min(self._slots.usable, MAX_BATCH_ENTRIES)
        if self._polls or not free or self._stop_signals or self._refused is not None:
            if not free and now >= self._alive_at:
                self._alive_at = now + _ALIVE_SECONDS
                self._tell("polled")
            return
        if self._burst and self._polling.all_empty and not self._jobs:
            return
        if now < self._linger_until and len(self._slots) - free > len(self._slots) // 4:
            return
        source = self._polling.next(now)
        if source is None:
            return
        self._polls += 1
        wait, timeout = self._polling.wait_time, self._settings.sqs_timeout
        # One answer of a FIFO queue may hold several messages of one group, which would then run side by side. While
        # one is claimed, SQS itself keeps back the others.
        most = 1 if source.manager.url.endswith(".fifo") else free
        self._requests.call(
            lambda: source.manager.receive(wait, timeout, most, in_worker=True, MessageAttributeNames=["All"]),
            functools.partial(self._polled, source, not self._jobs),
        )

    def _polled(
        self, source: Source, idle: bool, received: Sequence[Task | None] | None, error: BaseException | None
    ) -> None:
        """`idle`: whether nothing ran when the poll was sent."""
        self._polls -= 1
        if error is not None:
            if not is_failed_poll(error):
                raise error
            remedy = self._polling.failed(source, error, time.monotonic())
            if remedy is not None and len(self._settings.managers) == 1:
                self._refuse(PollRefused(error, code_of(error) or type(error).__name__, remedy, source.manager.url))
            return
        self._polling.answered(source, len(received or ()))
        if not idle:
            self._polling.busy()  # what ran meanwhile may have left something behind: a successor, a message given back
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
        if self._stop_signals or not self._slots.usable:
            self._endings.give_back_unstarted(job)
            return
        try:
            entry = self._settings.registry.entry_for(task, kwargs)
        except (UnknownTask, ArgumentsDoNotFit) as error:
            self._endings.refuse(job, error)
            return
        job.slot = self._slots.take()
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
        elif job.claim.lapsed(clock.now()) or job.claim.lost is not None:
            self._end(job)
            self._endings.lost(job, job.claim.lost)
        else:
            self._start(job, handler)

    def _start(self, job: Job, handler: ProcessMessageHandler) -> None:
        job.process = self._slots.start(job.slot, order.of(job), job.task, handler.term_grace)
        if job.process is None:
            self._end(job)
            self._endings.give_back_unstarted(job)
            return
        job.stage = Stage.RUNNING
        self._watching.begin(job, handler, time.monotonic(), clock.now())
        self._protection.busy(handler.hard_timeout)

    def _ended(self, job: Job) -> None:
        """A task and everything it started is gone: its slot is free, and what it came to is carried out."""
        if job.claim.lapsed(clock.now()):
            # A worker that was stopped itself may hear of the end before the heartbeat has looked at the claim.
            self._watching.claim_lost(job)
        self._end(job)
        self._endings.ended(job, others=any(each.is_running for each in self._jobs))

    def _end(self, job: Job) -> None:
        job.stage = Stage.ENDING
        if job.slot >= 0:
            self._slots.free(job.slot, job.process is not None and job.process.keeper_spent)
            job.slot = -1

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
            what = "taking no more work; nothing runs"
            if running:
                grace = self._settings.shutdown_grace
                what = f"taking no more work; {len(running)} running, which get {grace:g} seconds"
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
        on_event = self._on_event
        if on_event is not None:
            self._events.call(lambda: on_event(event))
