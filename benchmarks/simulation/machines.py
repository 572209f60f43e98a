"""A machine with a worker on it: what `_service.world` is to a loop, turned by the events of one simulation."""

import collections
import functools
import heapq
import itertools
import math

from sqstaskmaster._service.world import Timer

from benchmarks.simulation.events import MOST_TURNS_A_SECOND
from benchmarks.simulation.threads import Threads

# Waits end a little late, as real ones do, however their end was rounded.
_LATE_SECONDS = 1e-6


class Machine:
    """It stands still now and then: frozen, or suspended, when the clock of limits stands still too."""

    def __init__(self, run, number):
        self.run = run
        self.number = number
        self.stands_until = -math.inf
        self.stands = []  # (from, until, whether it was suspended)
        self.suspended = 0.0  # seconds, in all
        self.stood = 0.0
        self.tasks_stand = True

    def stand(self, seconds, suspended, with_tasks):
        now = self.run.events.now
        if now < self.stands_until:
            return
        self.stands_until = now + seconds
        self.tasks_stand = with_tasks
        self.stands.append((now, now + seconds, suspended))
        self.stood += seconds
        if suspended:
            self.suspended += seconds

    def awake(self):
        """Seconds for which the machine has not stood still."""
        return self.run.events.now - self.stood + max(0.0, self.stands_until - self.run.events.now)


class World:
    """The world of one worker's loop. `turns` is the loop's own generator, which is advanced when something is due."""

    def __init__(self, run, machine, name):
        self.run = run
        self.machine = machine
        self.name = name
        self.dead = False  # killed: nothing it does has any effect
        self.begun = False
        self.over_at = None
        self.begun_attempts = self.over_attempts = 0
        self.turns = None
        self.loop = None
        self.processes = []
        self.keepers = []
        self.signals, self.signals_sent = [], 0
        self.attempts = {}  # those that are not over
        self.lost = {}  # of these, those whose claim is known to be gone, and since when
        self.queue_clock = _QueueClock(self)
        self._timers = []
        self._numbers = itertools.count()
        self._inbox = collections.deque()
        self._readers = {}
        self._readable = {}
        self._descriptors = itertools.count(100)
        self.threads = Threads(self)
        self._until = math.inf
        self._wake_at = math.inf
        self._wake_number = 0
        self._counted_from, self._turns = -math.inf, 0

    # -- for the simulation --------------------------------------------------------------------------------------

    def new_descriptor(self):
        return next(self._descriptors)

    def readable(self, descriptor):
        self._readable[descriptor] = True
        self._wake(self.run.events.now)

    def is_read(self, descriptor):
        self._readable.pop(descriptor, None)

    def after(self, seconds, action):
        """Have an event of this machine, not of its worker, happen; later if the machine stands still then."""

        def happen():
            machine, events = self.machine, self.run.events
            if events.now < machine.stands_until and machine.tasks_stand:
                events.at(machine.stands_until, happen)
            else:
                action()

        self.run.events.after(seconds, happen)

    def _wake(self, when):
        """Have the loop take a turn then, or sooner."""
        when = max(when, self.machine.stands_until)
        if when < self._wake_at and not self.dead and self.over_at is None:
            self._wake_at = when
            self._wake_number += 1
            self.run.events.at(when, functools.partial(self._woken, self._wake_number))

    def _woken(self, number):
        if number != self._wake_number or self.dead or self.over_at is not None:
            return
        self._wake_at = math.inf
        if self.run.events.now < self.machine.stands_until:
            self._wake(self.machine.stands_until)
            return
        self.turn_loop()

    def turn_loop(self):
        """Take one turn of its loop, which is over when there is no other."""
        run = self.run
        self._turns += 1
        if run.events.now >= self._counted_from + 1.0:
            self._counted_from, self._turns = run.events.now, 0
        elif self._turns > MOST_TURNS_A_SECOND:
            run.ledger.violated(f"the loop of {self.name} spins")
        try:
            self._until = next(self.turns)
            self.begun = True
        except StopIteration:
            run.worker_over(self, None)
            return
        except Exception as error:
            run.worker_over(self, error)
            return
        now = run.events.now
        lost = self.lost
        for attempt in self.attempts:
            if attempt.claim.lost is not None:
                lost.setdefault(attempt, now)
            elif lost:
                lost.pop(attempt, None)  # received again
        if self._inbox or self._readable and any(each in self._readers for each in self._readable):
            self._wake(now)
            return
        timers, due = self._timers, self._until
        while timers and timers[0][2].action is None:  # cancelled
            heapq.heappop(timers)
        if timers and timers[0][0] < due:
            due = timers[0][0]
        if due < math.inf:
            self._wake(due + self.machine.suspended + _LATE_SECONDS)

    def die(self):
        """SIGKILL: its keepers kill their tasks, and end."""
        self.dead = True
        for keeper in list(self.keepers):
            keeper.close()
        # Closing an unfinished generator runs the loop's own clean-up, in a world that is over.
        self.turns.close()

    # -- for the loop --------------------------------------------------------------------------------------------

    def now(self):
        return math.inf if self.dead else self.run.events.now - self.machine.suspended

    def task_now(self):
        return self.now()

    def claim_now(self):
        thread = self.run.thread
        return self.run.events.now if thread is None else thread.time

    def add_reader(self, descriptor, reader):
        self._readers[descriptor] = reader

    def remove_reader(self, descriptor):
        self._readers.pop(descriptor, None)
        self._readable.pop(descriptor, None)

    def at(self, when, action):
        timer = Timer(action)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def put(self, action):
        self._inbox.append(action)
        self._wake(self.run.events.now)

    def turn(self, until=math.inf):
        if self._readable:
            for descriptor in list(self._readable):
                reader = self._readers.get(descriptor)
                if reader is not None:
                    reader()
        inbox = self._inbox
        if inbox:
            for _ in range(len(inbox)):
                inbox.popleft()()
        now = self.now()
        last = next(self._numbers)
        timers = self._timers
        while timers and timers[0][0] <= now and timers[0][1] < last:
            timer = heapq.heappop(timers)[2]
            action, timer.action = timer.action, None
            if action is not None:
                action()

    def log(self, level, text, *values, **more):
        if not self.dead:
            self.run.ledger.logged(self, level, text, values, more)

    def say(self, function):
        if not self.dead:
            function()

    def call(self, pool, function, then=None, patience=None):
        if not self.dead:
            self.threads.call(pool, function, then, patience)

    def unfinished(self, *pools):
        return self.threads.unfinished(*pools)

    def wait_for(self, pool, seconds):
        pass

    def close(self):
        pass


class _QueueClock:
    """Is informed by a source of the attempts that begin and end."""

    def __init__(self, world):
        self._world = world
        self.changed = world.run.clock.changed
        self.moved = 0.0

    def now(self):
        return self._world.run.clock.now()

    def begin(self, attempt):
        self._world.attempts[attempt] = True
        self._world.run.ledger.begun(self._world, attempt)

    def end(self, attempt):
        self._world.attempts.pop(attempt, None)
        self._world.lost.pop(attempt, None)
        self._world.run.ledger.over(self._world, attempt)
