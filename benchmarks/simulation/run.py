"""One run of one seed."""

import collections
import functools
import gc
import heapq
import itertools
import logging
import random

from sqstaskmaster import TaskManager
from sqstaskmaster._claim import claim
from sqstaskmaster._claim.destinations import Origin
from sqstaskmaster._memory import store as memory
from sqstaskmaster._service.ecs import ScaleInProtection
from sqstaskmaster._service.loop import Loop
from sqstaskmaster._service.settings import Settings
from sqstaskmaster._sqs import messages
from sqstaskmaster._sqs.limits import MAX_VISIBILITY_SECONDS
from sqstaskmaster.errors import InitializerFailed, PollRefused, TasksCannotStart
from sqstaskmaster._isolation.slot import SlotLost
from sqstaskmaster._isolation.warm import Warm
from sqstaskmaster._service.warming import WarmSettings
from sqstaskmaster.testing import SimulatedQueue

from benchmarks.simulation import service, supervisors
from benchmarks.simulation.events import Chance, Events, Violation
from benchmarks.simulation.ledger import Ledger
from benchmarks.simulation.machines import Machine, World
from benchmarks.simulation.processes import ENDS, MAX_MEMORY, Template
from benchmarks.simulation.user import User
from benchmarks.simulation.weather import Troubles, Weather

# How long it may take until everything is done once nothing goes wrong any more.
_LAST_SECONDS = 4000.0

# A run of a hundred tasks does not have more events than this.
_MOST_EVENTS = 200_000

_ENDED_BY_TROUBLE = (InitializerFailed, PollRefused, SlotLost, TasksCannotStart)


_numbers = itertools.count(1)  # of queues: each run has its own


class Result:
    def __init__(self, seed, violation, events, seconds, counts):
        self.seed, self.violation = seed, violation
        self.events, self.seconds, self.counts = events, seconds, counts


class Run:
    """The world of one seed. `thread`: the thread whose call is being made right now, None in a loop."""

    def __init__(self, seed, tell=None, tasks=None):
        self.seed = seed
        self.chance = chance = Chance(seed)
        self.events = Events(tell)
        self.clock = service.Clock(self.events.now)
        self.counts = collections.Counter()
        self.calm = False
        self.thread = None
        self.tasks = chance.whole(50, 100) if tasks is None else tasks
        self.sqs_timeout, self.alarm_timeout = chance.one_of(((20, 5.0), (30, 10.0), (60, 20.0), (120, 30.0)))
        self.hard_timeout = self.alarm_timeout * chance.one_of((1.5, 3.0, 6.0))
        self.term_grace = chance.one_of((0.0, 1.0, 5.0))
        self.shutdown_grace = chance.one_of((0.0, 5.0, 20.0))
        self.wait_time = chance.one_of((3, 10, 20))
        # The longest claim that SQS allows; 12 hours would take too many events.
        self.total = MAX_VISIBILITY_SECONDS
        if chance.happens(0.3):
            self.hard_timeout = self.sqs_timeout * chance.one_of((2.0, 4.0))
            self.total = int(self.hard_timeout * chance.between(0.6, 1.0))
        self.long_tasks = chance.one_of((0.02, 0.1))
        self.ends = ENDS if chance.happens(0.8) else {"done": 1}
        self.max_memory = None
        if chance.happens(0.1) and self.hard_timeout < 60:  # it is measured ten times a second
            self.max_memory, self.ends = MAX_MEMORY, {**self.ends, "grows": 10}
        self.warm = None  # the settings of processes that stay
        if chance.happens(0.2):
            self.warm = WarmSettings(Warm(), chance.one_of((None, 2, 5)), timeout=20.0)
        self.most_receives = chance.one_of((None, 3, 10))
        self.weather = Weather(self)
        self.ledger = Ledger(self)
        self.user = User(self)
        self.queues = {}  # by URL, in order of priority
        number = next(_numbers)
        fifo = 0.5 if chance.happens(0.3) else 0.0
        for place in range(chance.one_of((2, 2, 3)) if chance.happens(0.15) else 1):
            name = f"simulation-{number}{f'q{place}' if place else ''}{'.fifo' if chance.happens(fifo) else ''}"
            url = f"https://sqs.simulated/123456789012/{name}"
            self.events.names[url] = f"queue {place}"
            queue = self.queues[url] = SimulatedQueue(url, clock=self.clock, max_receive_count=self.most_receives)
            queue._home.calls = service.Calls(queue._home.store)
        self.stores = [queue._home.store for queue in self.queues.values()]
        if len(self.queues) > 1:
            self.wait_time = 1  # the most with several queues
        self.groups = chance.whole(1, 10)
        self.polls = {url: service.LongPolls(self, queue._home.store) for url, queue in self.queues.items()}
        self.machines = [Machine(self, number) for number in range(chance.one_of((1, 2, 2, 3, 4)))]
        self.slots = [chance.whole(1, 8) for _ in self.machines]
        self.worlds = [None] * len(self.machines)
        self._workers = 0
        self._ended = self._closing = False

    # -- the run -------------------------------------------------------------------------------------------------

    def go(self):
        """Returns the violation that ended the run; None if every law held."""
        random.seed(self.seed)  # the jitter of the package
        try:
            self._plan()
            self._turn_events()
        except Violation:
            pass
        finally:
            for world in self.worlds:
                if world is not None and world.over_at is None and not world.dead:
                    world.die()
            for url in self.queues:
                SimulatedQueue.reset(url)
        return self.ledger.violation

    def _turn_events(self):
        events, clock = self.events, self.clock
        heap, ledger, count = events.heap, self.ledger, 0
        while heap:
            when, _, action = heapq.heappop(heap)
            if when > events.now:
                events.now = clock._now = when
            count += 1
            events.count = count
            action()
            if count > _MOST_EVENTS:
                ledger.violated("it does not come to an end")
            if self._ended or ledger.violation is not None:
                break  # a loop may go on for a while, to end what it has started

    def _plan(self):
        chance, events = self.chance, self.events
        self.lasts = chance.one_of((60.0, 200.0, 600.0) if len(self.queues) == 1 else (60.0, 200.0))
        for n in range(self.tasks):
            events.after(chance.between(0, self.lasts * 0.8), functools.partial(self._submit, n))
        for number in range(len(self.machines)):
            events.after(chance.between(0, 5), functools.partial(self._start_worker, number))
        Troubles(self).plan()
        events.after(self.lasts, self._clear_up)

    def _clear_up(self):
        """From now on nothing goes wrong, and tasks are short, so that everything ends."""
        self.events.trace("WEATHER", "clears up")
        self.calm = True
        self.weather.clear_up()
        for store in self.stores:
            store.twice = store.out_of_order = 0
        self.events.after(1.0, self._look_whether_done)
        self.events.after(_LAST_SECONDS, self._too_long)

    def _look_whether_done(self):
        if self._is_empty() and not any(each.live for each in self.ledger.records.values()):
            for world in self.worlds:
                if world is not None and world.over_at is None and not world.dead:
                    self.signal(world)
            self._closing = True
            self.events.after(100.0, self._end)
        else:
            for world in filter(None, self.worlds):
                # If one of its queues is refused for good while others go on, the worker has to be restarted.
                if world.begun and not world.signals_sent and world.loop._intake.first_refused is not None:
                    self.signal(world)
            self.events.after(5.0, self._look_whether_done)

    def _is_empty(self):
        for store in self.stores:
            store._settle()
        return not any(store._messages or store._copies for store in self.stores)

    def _too_long(self):
        left = [self.events.names[each.message_id] for store in self.stores for each in store._messages.values()]
        self.ledger.violated(f"these are not done, and nothing goes wrong any more: {', '.join(left)}")

    def _end(self):
        if any(self.worlds):
            self.events.after(5.0, self._end)  # each gets its time to stop
        else:
            self._ended = True
            self.ledger.end()

    # -- what is submitted ---------------------------------------------------------------------------------------

    def _submit(self, n):
        body = messages.encode("Task" if n % 4 else "Class", {"n": n}, messages.LENIENT)
        url = self.chance.one_of(list(self.queues))
        group = {}
        if url.endswith(".fifo"):
            group = {"MessageGroupId": f"g{self.chance.whole(1, self.groups)}", "MessageDeduplicationId": str(n)}
        answer = self.queues[url].send_message(MessageBody=body, **group)
        self.ledger.sent(url, {"n": n}, answer["MessageId"], group.get("MessageGroupId"))
        self.polls[url].look()

    def duration(self):
        chance = self.chance
        if chance.happens(self.long_tasks):
            return chance.between(0.5, 1.2) * self.hard_timeout
        return chance.skewed(0.005, 8.0)

    # -- workers -------------------------------------------------------------------------------------------------

    def _start_worker(self, number):
        if self._closing or self.worlds[number] is not None:
            return
        machine = self.machines[number]
        self._workers += 1
        name = f"w{self._workers}"
        world = self.worlds[number] = World(self, machine, name)
        world.template = Template(world)
        managers = [
            TaskManager(url, notify=self.user.notify, queue_constructor=service.constructor(world))
            for url in self.queues
        ]
        for manager in managers:
            # So that it caches the dead-letter queue by the time of this world.
            connection, writer = manager._connection, manager._writer
            manager._origin = Origin(manager.url, connection.queue, connection.constructor, writer, world.claim_now)
        settings = Settings(
            registry=self.user.registry(),
            managers=managers,
            wait_time=self.wait_time,
            sqs_timeout=self.sqs_timeout,
            alarm_timeout=self.alarm_timeout,
            shutdown_grace=self.shutdown_grace,
            stops_on_lost_claim=True,
            dead_letter_reasons=False,
            around=None,
            on_start=None,
            on_finish=self.user.on_finish,
            status=lambda *_: _Nothing(),
            warm=self.warm,
        )
        world.loop = Loop(
            settings,
            world.template,
            [{}] * self.slots[number],
            burst=False,
            on_event=None,
            protection=ScaleInProtection(None),
            shutdown=_Signals(world),
            world=world,
        )
        self.counts["worker started"] += 1
        self.events.trace(name, "starts on machine %d with %d slots", number, self.slots[number])
        world.turns = world.loop.turns()
        world._wake(self.events.now)

    def worker_over(self, world, error):
        """The worker's loop has ended."""
        world.over_at = self.events.now
        self.events.trace(world.name, "is over: %s", "stopped" if error is None else repr(error))
        if error is not None and not isinstance(error, _ENDED_BY_TROUBLE):
            self.ledger.violated(f"the loop of {world.name} ends with {error!r}")
        if error is not None:
            self.counts[f"worker ended by {type(error).__name__}"] += 1
        self.replace(world)

    def replace(self, world):
        number = world.machine.number
        self.worlds[number] = None
        self.events.after(self.chance.between(0.5, 5.0), functools.partial(self._start_worker, number))

    def signal(self, world):
        """Send one more request to stop, which must end the worker in time."""
        world.signals.append("SIGTERM")
        world.readable(_Signals.descriptor)
        world.signals_sent += 1
        count = world.signals_sent
        self.events.trace(world.name, "SIGTERM")
        grace = self.shutdown_grace + self.term_grace if count == 1 else self.term_grace
        wait = self.wait_time if count == 1 else 0
        seconds = max(grace, wait) + (10.0 if count == 1 else 5.0) + 2.0
        until = world.machine.awake() + seconds

        def look():
            if world.dead or world.over_at is not None:
                return
            left = until - world.machine.awake()
            if left <= 0:
                self.ledger.violated(f"{world.name} has not stopped {seconds:g} s after signal {count}")
            self.events.after(left, look)

        self.events.after(seconds, look)


class _Nothing:
    """The socket of `ps`."""

    def open(self):
        pass

    def close(self):
        pass


class _Signals:
    """A worker's requests to stop."""

    descriptor = 1

    def __init__(self, world):
        self._world = world

    def fileno(self):
        return self.descriptor

    def clear(self):
        names, self._world.signals = self._world.signals, []
        self._world._readable.pop(self.descriptor, None)
        return names


class _Lines(logging.Handler):
    """Passes log lines about messages to the run's ledger."""

    def __init__(self, ledger):
        super().__init__()
        self._ledger = ledger

    def handle(self, record):
        said = record.__dict__
        if said.get("message_id"):
            self._ledger.reports(said["message_id"], said.get("receive_count"), said.get("action"))
        return True


def run(seed, tell=None, tasks=None):
    """Do one run.

    :param tell: called with each line of its trace.
    """
    gc.disable()
    try:
        return _run(seed, tell, tasks)
    finally:
        gc.enable()


def _run(seed, tell, tasks):
    simulated = Run(seed, tell, tasks)
    claim.MAX_VISIBILITY_SECONDS = memory.MAX_VISIBILITY_SECONDS = simulated.total
    loggers = [logging.getLogger(f"sqstaskmaster.{name}") for name in ("worker", "task_manager")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    for logger in loggers:
        logger.handlers[:], logger.propagate = [_Lines(simulated.ledger)], False
        logger.setLevel(logging.INFO)
    source, logging._srcfile = logging._srcfile, None  # nobody asks where a line was logged
    try:
        violation = simulated.go()
    finally:
        claim.MAX_VISIBILITY_SECONDS = memory.MAX_VISIBILITY_SECONDS = MAX_VISIBILITY_SECONDS
        logging._srcfile = source
        for logger, (level, logger.propagate, logger.handlers[:]) in zip(loggers, before):
            logger.setLevel(level)
    events = simulated.events
    result = Result(seed, violation, events.count, events.now - 1000.0, simulated.counts)
    # Emptied by hand, so that the garbage collector need not look for what they hold.
    for each in (simulated.ledger, events, simulated.weather, simulated):
        vars(each).clear()
    if violation is None:
        result.violation, more = supervisors.run(seed, tell)
        result.events += more
    return result
