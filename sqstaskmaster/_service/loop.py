"""A worker's loop for tasks in processes: it holds every claim, and each task runs in a slot.

    poll (a thread) ---> Attempt: its handler is made (a thread, where that runs the user's code)
                          |
                          v
    a free slot <------- Running: the loop does what is due: limit, running(), memory, stop ---> the task's process
                          |
                          v
    the slot is free again; Settling: delete, give back, delay, report, send on (threads) ---> over

Where processes stay, the settlement of a task that is done begins while its process is inspected: `_leaving`.

The loop waits for descriptors, for answers of threads, and for what is due next. It never makes a request, calls user
code, or writes to a log itself: each of those can take for ever, and every claim waits here. Its cost depends on what
happens, not on how many tasks run.
"""

from __future__ import annotations

import collections
import functools
import logging
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqstaskmaster._claim import note
from sqstaskmaster._claim.attempt import Attempt
from sqstaskmaster._claim.claim import Claim
from sqstaskmaster._claim.report import FactsFilter, Report
from sqstaskmaster._claim.settlement import Settlement, give_back, leave_lost, refuse, settle
from sqstaskmaster._isolation.slot import SlotLost
from sqstaskmaster._isolation.template import Template
from sqstaskmaster._logging import get_logger
from sqstaskmaster._service.attendant import Attendant
from sqstaskmaster._service.ecs import ScaleInProtection
from sqstaskmaster._service.facts import SlotFacts
from sqstaskmaster._service.intake import Intake
from sqstaskmaster._service.order import Prepared, prepare
from sqstaskmaster._service.running import Running, order_stop
from sqstaskmaster._service.sampling import Sampling
from sqstaskmaster._service.settings import Settings
from sqstaskmaster._service.settling import Settling
from sqstaskmaster._service.slot_pool import SlotPool
from sqstaskmaster._service.source import Source
from sqstaskmaster._service.stops import Stops
from sqstaskmaster._service.world import CALLBACKS, EVENTS, World
from sqstaskmaster._signals.shutdown import Shutdown
from sqstaskmaster.backoff import ExponentialBackoff
from sqstaskmaster.errors import (
    ArgumentsDoNotFit,
    HandlerStuck,
    ShutdownRequested,
    TaskKilled,
    TaskNotStarted,
    TasksCannotStart,
    UnknownTask,
)
from sqstaskmaster.task_manager import Task

# A constructor that takes longer is abandoned: its message is left, its slot is free again.
_PREPARE_SECONDS = 30.0

# After the second signal, and when all tasks are over, requests and reports get this long.
_LAST_SECONDS = 5.0

# A message that a poll brought less than this ago counts as held, however long the poll took.
_FRESH_SECONDS = 2.0

# When tasks cannot be started: how long the next poll waits, and how many failures in a row end the worker.
_START_BACKOFF = ExponentialBackoff(first=1.0, longest=60.0)
_MOST_START_FAILURES = 8

# SIGTERM may reach a task before its worker: when all processes of a container get it, say.
_STOP_BEHIND_SECONDS = 1.0

# For how long a loop that has failed keeps turning, to end what it has started.
_DRAIN_SECONDS = 10.0

logger = get_logger("sqstaskmaster.worker")
logger.addFilter(FactsFilter())


class _Preparing(NamedTuple):
    """An attempt whose handler is being made."""

    source: Source
    slot: int


class Loop:
    """One run of a worker whose tasks have processes of their own. Main thread only.

    :param template: the started template that slots are forked from; None if they are not forked.
    :param environments: one per slot.
    :param world: see World.
    """

    def __init__(
        self,
        settings: Settings,
        template: Template | None,
        environments: Sequence[Mapping[str, str]],
        *,
        burst: bool,
        on_event: Callable[[str], Any] | None,
        protection: ScaleInProtection,
        shutdown: Shutdown,
        world: World,
    ) -> None:
        self._settings = settings
        self._burst = burst
        self._on_event = on_event
        self._protection = protection
        self._shutdown = shutdown
        self._world = world
        self.counts: collections.Counter[str] = collections.Counter()
        self._preparing: dict[Attempt, _Preparing] = {}
        self._running: dict[Attempt, Running] = {}
        self._leaving: dict[Attempt, Running] = {}  # done, but their slots are not free yet
        self._sources: dict[Attempt, Source] = {}  # of all attempts that are not over
        self._stop_signals = 0
        self._end_at = math.inf
        self._lost: Exception | None = None
        self._start_failures = 0
        self._by_id: dict[tuple[Source, str], Attempt] = {}
        self._waiting: dict[Attempt, functools.partial[None]] = {}  # for the end of the same message's earlier task
        warm = None if settings.warm is None else settings.warm._replace(on_event=on_event)
        self._slots = SlotPool(
            world, template, environments, lambda: self._intake.look_soon(), self._cannot_go_on, warm
        )
        sources = [Source(world, manager, self._claim_lost, self._extension_failed) for manager in settings.managers]
        times = settings.wait_time, settings.sqs_timeout
        asked = self._wants_more, lambda: not self._sources
        self._intake = Intake(world, sources, *times, self._slots, *asked, self._take, self._polled)
        self._sampling = Sampling(world)
        #: For the clock of a test's queues.
        between: Callable[[], bool] = lambda: bool(self._preparing or self._leaving)
        self.attendant = Attendant(world, sources, self._running.values(), between)
        self._stops = Stops(functools.partial(order_stop, world, self._running))

        def others_soon(source: Source) -> bool:
            # A process that stays is soon free again. SQS delivers no other message of a FIFO group before the delete.
            is_quick = settings.warm is not None and not source.manager.url.endswith(".fifo")
            return bool(self._running) or is_quick and not self._takes_no_more

        self._settling = Settling(world, settings.on_finish, others_soon, self._over)

    def run(self) -> collections.Counter[str]:
        """Run tasks until a stop is requested, or, in a burst, until the queues are empty.

        However it ends, it ends what it has started.

        :raises PollRefused: if polling again does not help.
        :raises SlotLost, TasksCannotStart: if tasks cannot be started any more.
        """
        for _ in self.turns():
            pass
        return self.counts

    def turns(self) -> Iterator[float]:
        """The same turn by turn, for worlds with several loops. Yields until when the next turn may wait."""
        world, settings = self._world, self._settings
        self._slots.open_all()
        # From here on there may be threads.
        status = settings.status(self._facts, self._stops)
        try:
            settings.start(logger)
            world.add_reader(self._shutdown.fileno(), self._on_signal)
            status.open()
            settings.say_ready(world.log, len(self._slots))
            try:
                self._intake.look_soon()
                while not self._is_over():
                    yield self._end_at
                    world.turn(self._end_at)
                    self.attendant.keep_up()
            except BaseException as error:
                yield from self._drain(error)
                raise
        finally:
            self.attendant.end()
            status.close()
            self._stops.end()
            self._slots.close()
        refused = self._intake.first_refused if self._burst else self._intake.refused
        for reason in filter(None, (self._lost, refused)):
            raise reason

    def _drain(self, error: BaseException) -> Iterator[float]:
        """The loop itself has failed: stop what runs, return the messages, and report, before the error is raised."""
        world = self._world
        text = "The worker has failed, and stops its tasks: %r"
        world.log(logging.ERROR, text, error, exc_info=error, extra={"action": "worker_failed"})
        self._stop_signals = max(self._stop_signals, 1)
        until = self._end_at = world.now() + _DRAIN_SECONDS + _longest_grace(self._running.values())
        self._stop_all()

        def is_over() -> bool:
            return not self._sources and not world.unfinished(CALLBACKS) or world.now() >= until

        while not is_over():
            try:
                yield until
                world.turn(until)
            except Exception as another:
                world.log(logging.ERROR, "Once more: %r", another, exc_info=another)

    def _facts(self, stacks: bool) -> dict[str, Any]:
        return {
            "queues": [manager.url for manager in self._settings.managers],
            "slots": len(self._slots),
            "processes": self._slots.facts(),
            "stopping": self._stop_signals > 0,
            "tasks": SlotFacts(self._running, self._world.put)(stacks),
        }

    # -- whether it is over --------------------------------------------------------------------------------------

    @property
    def _takes_no_more(self) -> bool:
        return self._stop_signals > 0 or self._intake.refused is not None or self._lost is not None

    def _wants_more(self) -> bool:
        return not self._takes_no_more and not (self._burst and self._intake.all_empty and not self._sources)

    def _is_over(self) -> bool:
        now = self._world.now()
        if self._end_at <= now:
            return True
        takes_no_more = self._takes_no_more
        if not takes_no_more and not (self._burst and self._intake.all_empty):
            return False
        # A second signal abandons a poll. So does the refusal of all queues: a poll still out then is overdue.
        waits_for_poll = self._intake.out and (self._stop_signals == 1 or not takes_no_more)
        if waits_for_poll or self._running or self._preparing or self._waiting or self._leaving:
            return False
        if self._sources and not self._stop_signals:
            return False
        if self._sources or self._world.unfinished(CALLBACKS):
            # Whatever depends on SQS or on an error service gets this long, and no longer.
            self._end_at = min(self._end_at, now + _LAST_SECONDS)
            return False
        return True

    # -- from the poll to the start ------------------------------------------------------------------------------

    def _polled(self) -> None:
        """A poll was answered, or the loop is alive without polls. For health checks."""
        if not self._sources:
            self._protection.idle()
        on_event = self._on_event
        if on_event is not None:
            self._world.call(EVENTS, lambda: on_event("polled"))

    def _take(self, source: Source, received: Task) -> None:
        """Begin with a message: return it, refuse it, or have its handler made."""
        task, kwargs, message = received
        settings, manager = self._settings, source.manager
        receipt = note.read(message)
        assert receipt is not None  # `receive` has left it
        claim = Claim.of(receipt, settings.sqs_timeout, settings.alarm_timeout, self._world.claim_now())
        report = Report(message, task, manager.notify, lambda: logger, self._world.now, queue_url=manager.url)
        earlier = self._by_id.get((source, report.message_id or ""))
        if earlier is not None:
            if self._is_adopted(earlier, source, message, receipt, claim):
                return
            earlier.claim.let_go(self._world.claim_now())
        terms = settings.terms(manager, task, soonest=functools.partial(self._intake.soonest, source))
        attempt = Attempt(message, receipt, claim, report, terms)
        self._sources[attempt] = source
        source.clock.begin(attempt)
        if report.message_id is not None:
            self._by_id[source, report.message_id] = attempt
        source.heartbeat.keep(attempt)
        if earlier in self._running and not self._takes_no_more:
            # Its task is being stopped: it starts again in the same slot once all of that is gone.
            self._waiting[earlier] = functools.partial(self._prepare, attempt, source, kwargs)
        elif self._takes_no_more or not self._slots.ready:
            self._settling.begin(attempt, source, give_back(attempt))
        else:
            self._prepare(attempt, source, kwargs, self._slots.take())

    def _is_adopted(self, attempt: Attempt, source: Source, message: Any, receipt: note.Receipt, claim: Claim) -> bool:
        """Whether a message that was received again joins its own attempt, which then continues under the new receipt.

        Its claim had lapsed, and no other worker received it. Not if its task is being stopped for the lost claim.
        """
        is_settled = self._settling.has_begun(attempt)
        if is_settled and not self._settling.adopts(attempt):
            return False
        if attempt.stop_reason is not None and attempt.claim.lost is not None and not is_settled:
            return False
        attempt.adopt(message, receipt, claim)
        if not is_settled or self._settling.keeps_claim(attempt):
            source.heartbeat.keep(attempt)
        facts = attempt.report.facts("adopted")
        text = "Task %s received its message again, which came back while the task ran: message %s"
        self._world.log(logging.WARNING, text, attempt.task, attempt.report.message_id, extra=facts)
        return True

    def _prepare(self, attempt: Attempt, source: Source, kwargs: dict[str, Any], slot: int) -> None:
        """Have the handler made; its slot is already taken."""
        settings, manager, task = self._settings, source.manager, attempt.task
        try:
            entry = settings.registry.entry_for(task, kwargs)
        except (UnknownTask, ArgumentsDoNotFit) as error:
            self._slots.free(slot, None)
            self._settling.begin(attempt, source, refuse(attempt, error))
            return
        self._preparing[attempt] = _Preparing(source, slot)
        notify, method, claim_now = manager.notify, self._slots.method, self._world.claim_now()
        stays = settings.warm is not None
        make = functools.partial(prepare, settings.registry, attempt, kwargs, notify, method, claim_now, stays)
        made = functools.partial(self._prepared, attempt)
        if entry.quick:
            _call_here(make, made)
        else:
            stuck = HandlerStuck(f"The constructor of {task}'s handler has not returned")
            self._world.at(self._world.now() + _PREPARE_SECONDS, lambda: made(None, stuck))
            self._world.call(f"constructors {manager.url}", make, made)

    def _prepared(self, attempt: Attempt, prepared: Prepared | None, error: BaseException | None) -> None:
        preparing = self._preparing.pop(attempt, None)
        if preparing is None:
            return  # it came too late
        source, slot = preparing
        claim_now = self._world.claim_now()
        if prepared is not None:
            limits = prepared.limits
            attempt.handle_with(prepared.handler, limits.dead_letter, limits.max_continuations)
            source.heartbeat.keep(attempt)
        if prepared is None:
            reason = error if isinstance(error, Exception) else HandlerStuck(f"Its constructor raised {error!r}")
            settlement = refuse(attempt, reason)
        elif self._takes_no_more:
            settlement = give_back(attempt)
        elif attempt.claim.lapsed(claim_now) or attempt.claim.lost is not None or _may_have_lapsed(attempt, claim_now):
            attempt.claim.let_go(claim_now)
            settlement = leave_lost(attempt, claim_now)
        else:
            try:
                self._start(attempt, slot, prepared)
                return
            except (OSError, SlotLost) as problem:
                settlement = self._start_failed(attempt, problem)
        self._slots.free(slot, None)
        self._settling.begin(attempt, source, settlement)

    def _start(self, attempt: Attempt, slot: int, prepared: Prepared) -> None:
        process = self._slots.start(slot, prepared, attempt.task)
        handler, limits = prepared.handler, prepared.limits
        self._protection.busy(limits.hard_timeout)
        on_done = None if self._settings.warm is None else self._done
        running = Running(self._world, attempt, handler, limits, process, slot, self._ended, on_done)
        self._running[attempt] = running
        self._stops.begin(attempt)
        running.begin()
        self._sampling.begin(process.meter)

    def _start_failed(self, attempt: Attempt, error: Exception) -> Settlement:
        """The worker lacks something. The message must not be received again and again meanwhile."""
        self._start_failures += 1
        pause = _START_BACKOFF.bound(self._start_failures)
        self._intake.not_before = self._world.now() + pause
        text = "Task %s cannot be started, no other is taken for %g s: %s"
        facts = attempt.report.facts("start_failed")
        self._world.log(logging.ERROR, text, attempt.task, pause, error, extra=facts)
        if self._start_failures >= _MOST_START_FAILURES:
            self._cannot_go_on(TasksCannotStart(f"{self._start_failures} tasks in a row: {error}"))
        return give_back(attempt, math.ceil(pause))

    def _done(self, running: Running) -> None:
        """A task is done. Its process is still being inspected for leftovers, which decide only about the process."""
        attempt = running.attempt
        self._leaving[attempt] = self._running.pop(attempt)
        self._start_failures = 0
        settlement = settle(attempt, None, self._world.claim_now())
        self._settling.begin(attempt, self._sources[attempt], settlement, waits=True)

    def _ended(self, running: Running, exception: BaseException | None) -> None:
        """A task and everything it started is gone: its slot is free, and its attempt is settled."""
        attempt = running.attempt
        if self._leaving.pop(attempt, None) is not None:
            self._slots.free(running.slot, running.process)
            self._settling.let_finish(attempt)
            return
        self._running.pop(attempt, None)
        next_in_slot = self._waiting.pop(attempt, None)
        self._slots.free(running.slot, running.process, taken=next_in_slot is not None)
        if isinstance(exception, TaskNotStarted):
            self._settling.begin(attempt, self._sources[attempt], self._start_failed(attempt, exception))
        else:
            self._start_failures = 0
            if isinstance(exception, TaskKilled) and exception.signal == signal.SIGTERM and not self._stop_signals:
                settle_later = functools.partial(self._settle, attempt, exception)
                self._world.at(self._world.now() + _STOP_BEHIND_SECONDS, settle_later)
            else:
                self._settle(attempt, exception)
        if next_in_slot is not None:
            next_in_slot(running.slot)

    def _settle(self, attempt: Attempt, exception: BaseException | None) -> None:
        if isinstance(exception, TaskKilled) and exception.signal == signal.SIGTERM and self._stop_signals:
            interrupted = ShutdownRequested("SIGTERM ended the task, and the worker is stopping too")
            interrupted.__cause__ = exception
            exception = interrupted
        self._settling.begin(attempt, self._sources[attempt], settle(attempt, exception, self._world.claim_now()))

    def _over(self, attempt: Attempt) -> None:
        """Nothing more is done about a message."""
        source = self._sources.pop(attempt)
        source.clock.end(attempt)
        key = (source, attempt.report.message_id or "")
        if self._by_id.get(key) is attempt:
            del self._by_id[key]
        self.counts[str(attempt.report.outcome)] += 1
        self._stops.over(attempt, attempt)
        self._intake.busy()

    # -- the claims ----------------------------------------------------------------------------------------------

    def _claim_lost(self, attempt: Attempt) -> None:
        """SQS, or the clock, says that a claim is gone."""
        running = self._running.get(attempt)
        if running is not None:
            lost = attempt.lost_now(self._world.claim_now())
            if lost is not None:
                running.lose(lost)

    def _extension_failed(self, attempt: Attempt, error: BaseException) -> None:
        """An extension failed, and is retried. The task goes on."""
        running = self._running.get(attempt)
        if running is not None:  # SQS may have said that the claim's 12 hours end sooner
            self._world.at(self._world.now(), running.look)
        text = "Claim not extended, the task goes on, message: %s"
        self._world.call(CALLBACKS, lambda: attempt.report.trouble(text, error, "extension_failed"))

    def _cannot_go_on(self, error: Exception) -> None:
        """Stop the worker, so that the supervisor starts another."""
        if self._lost is None:
            self._lost = error
            text = "Tasks cannot be started any more, the worker stops: %s"
            self._world.log(logging.ERROR, text, error, extra={"action": "template_lost"})
            self._stop("template lost")

    # -- stopping ------------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        for name in self._shutdown.clear():
            self._stop(name)

    def _stop(self, why: str) -> None:
        """The first signal: no more polls, and running tasks get their grace. The second: stop now."""
        self._stop_signals += 1
        self._slots.rest()
        now, settings = self._world.now(), self._settings
        for running in self._running.values():
            running.process.tell_stopping()
        if self._stop_signals == 1:
            what = "taking no more work; nothing runs"
            if self._running:
                grace = settings.shutdown_grace
                what = f"taking no more work; {len(self._running)} running, which get {grace:g} seconds"
            if self._intake.out:
                what += f"; waiting for the poll, up to {self._intake.wait_time} s. A second signal stops it at once"
            self._world.at(now + settings.shutdown_grace, self._stop_all)
            # After that the loop waits for nothing that depends on a peer.
            wait = self._intake.wait_time if self._intake.out else 0
            grace = settings.shutdown_grace + _longest_grace(self._running.values()) if self._running else 0.0
            self._end_at = min(self._end_at, now + max(wait, grace) + 2 * _LAST_SECONDS)
        elif self._stop_signals == 2:
            what = f"stopping now{settings.abandoned() if self._intake.out else ''}"
            self._end_at = min(self._end_at, now + _LAST_SECONDS + _longest_grace(self._running.values()))
            self._stop_all()
        else:
            return  # it cannot end any sooner, and is not delayed
        self._world.log(logging.INFO, "%s: %s", why, what, extra={"action": "stopping", "signal": why})

    def _stop_all(self) -> None:
        """The tasks' time to finish is over."""
        for running in list(self._running.values()):
            running.stop(ShutdownRequested("The worker is stopping, and the task's time to finish is over"))
        for attempt, (source, slot) in list(self._preparing.items()):
            del self._preparing[attempt]
            self._slots.free(slot, None)
            self._settling.begin(attempt, source, give_back(attempt))


def _may_have_lapsed(attempt: Attempt, now: float) -> bool:
    """Whether its message may be visible by now, though a poll has just brought it: see `TaskManager.receive`.

    The machine may have been suspended, or no extension answered while the handler was made.
    """
    claim = attempt.claim
    return claim.lapses and not claim.left(now) and now > attempt.receipt.answered_at + _FRESH_SECONDS


def _longest_grace(running: Iterable[Running]) -> float:
    return max((each.watch.limits.term_grace for each in running), default=0.0)


def _call_here(make: Callable[[], Prepared], made: Callable[[Any, BaseException | None], None]) -> None:
    try:
        prepared = make()
    except Exception as error:
        made(None, error)
    else:
        made(prepared, None)
