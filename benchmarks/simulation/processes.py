"""Template, keepers and tasks: what `_isolation` is to a loop, without a process."""

import functools
import json
import math
import signal

from sqstaskmaster._isolation import plain
from sqstaskmaster._isolation.slot import SlotLost
from sqstaskmaster._isolation.usage import Usage
from sqstaskmaster.endings import Continue, DeadLetter
from sqstaskmaster.errors import TaskExited, TaskKilled, TaskNotStarted

_STACK_SECONDS = 0.05
_KEEPER_SECONDS = 0.5
_HUNG_KEEPER_SECONDS = 5.0

# From SIGKILL until the worker can know that everything is gone.
KILL_SECONDS = 0.02

# What a task does, and what it does when it is stopped.
ENDS = {
    "done": 50,
    "fails": 12,
    "hangs": 6,
    "continues": 6,
    "dead letter": 3,
    "killed": 3,  # by the kernel, out of memory
    "exits": 2,
    "keeper killed": 3,
    "not started": 2,
    "terminated": 1,  # by a SIGTERM from outside
}
STOPS = {"ends": 50, "ignores": 25, "finishes": 10, "continues": 8, "fails": 7}

# The memory limit of tasks that have one, and how soon a worker notices that a task exceeds it.
MAX_MEMORY = 1 << 30
_MEASURE_SECONDS = 0.2

_TEXT = {"task": "Task", "pid": None, "seconds": 1.0, "stack": ""}


class Template:
    """Forks keepers, until it dies."""

    def __init__(self, world):
        self._world = world
        self.alive = True

    def open_slot(self, environment, seconds):
        world, run = self._world, self._world.run
        if not self.alive:
            raise SlotLost("the template has ended")
        if world.begun and run.weather.happens(run.weather.slot_fails):
            run.counts["slot not opened"] += 1
            raise OSError("no process left")
        return Slot(world)


class Slot:
    """A keeper. If processes stay: `warm`: its process can take a task; `tasks`: how many it has had."""

    def __init__(self, world):
        self._world = world
        self.alive = True
        self.warm = self.is_last = False
        self.tasks = 0
        self.descriptor, self._socket = world.new_descriptor(), world.new_descriptor()
        self._heard = ""
        world.keepers.append(self)

    def begin(self, name, term_grace):
        """Start a process that stays."""
        self._check()
        self.warm, self.is_last, self.tasks, self._heard = False, False, 0, ""
        return Initializer(self._world, self, term_grace)

    def start(self, order, *, name, term_grace, last=False):
        run = self._world.run
        self._check()
        is_there = self.warm or not run.warm
        if run.warm:
            self.tasks += 1
            most = run.warm.max_tasks or math.inf
            if not is_there and not self._heard or self.is_last or self.tasks > most:
                run.ledger.violated(f"{self._world.name} starts a task in a process that must not take one")
            self.is_last = last
        return Process(self._world, self, order, term_grace, is_there)

    def _check(self):
        run = self._world.run
        if not self.alive:
            raise SlotLost("its keeper has ended")
        if run.weather.happens(run.weather.start_fails):
            run.counts["start fails"] += 1
            raise OSError("no descriptor left")

    def become_warm(self):
        """Its process can take a task from now on. It may end before it gets one."""
        self.warm = True
        run, seconds = self._world.run, self._world.run.chance.between(0.1, 20.0)
        if run.weather.happens(run.weather.warm_ends):
            self._world.after(seconds, functools.partial(self._cool_down, self.tasks))

    def _cool_down(self, tasks):
        if self.alive and self.warm and self.tasks == tasks:
            self._world.run.counts["process that stays ended"] += 1
            self.warm, self._heard = False, "it was killed"
            self._world.readable(self._socket)

    def fileno(self):
        return self._socket

    def heard(self):
        self._world.is_read(self._socket)
        return self._heard

    def die(self):
        """Its keeper is killed, with what runs below it."""
        if self.alive:
            self.alive = False
            self._world.readable(self.descriptor)
            for process in list(self._world.processes):
                if process.slot is self:
                    process.end("keeper killed")

    def close(self):
        self.alive = False
        if self in self._world.keepers:
            self._world.keepers.remove(self)
        for process in list(self._world.processes):
            if process.slot is self:
                self._world.after(KILL_SECONDS, functools.partial(process.end, "killed"))


class _Open:
    before_close = None

    def close_all(self):
        pass


class _Meter:
    next_look_at = math.inf
    usage = Usage(0.5, 1 << 20)
    held = inherited = 1 << 20

    def memory(self, most):
        return self.held


class _Below:
    """A process below a keeper, as `TaskProcess` shows it."""

    meter = _Meter()
    spoiled = done = keeper_spent = keeper_hangs = False
    pid = None
    stack = spent = ""
    on_stop = "ends"

    def __init__(self, world, slot, term_grace):
        self.world, self.slot, self.term_grace = world, slot, term_grace
        self.open = _Open()
        self.descriptor = world.new_descriptor()
        self.alive, self.gone = True, False
        self.stopping = False
        self.progress = {}
        self.next_step_at = math.inf
        self._next = None
        self._verdict = None
        self.began, self.awake_at_start = world.now(), world.machine.awake()
        world.processes.append(self)

    @property
    def stays(self):
        """Whether its process stays for another task."""
        return self.gone and self.slot.warm and not self.spent

    @property
    def longest(self):
        """Seconds of an awake machine after which it must be gone."""
        return self.limit + self.term_grace + _STACK_SECONDS + _HUNG_KEEPER_SECONDS + 3.0

    def _watch(self, seconds):
        def look():
            left = self.awake_at_start + self.longest - self.world.machine.awake()
            if self.alive and not self.world.dead and self.world.over_at is None:
                if left <= 0:
                    text = f"{self.name} runs on {-left:.3f} s after its limit, its grace, and the time of its keeper"
                    self.world.run.ledger.violated(text)
                self._watch(max(left, 0.001))

        self.world.run.events.after(seconds, look)

    # -- the task ------------------------------------------------------------------------------------------------

    def end(self, kind):
        """The task, with everything below its keeper, is gone."""
        if not self.alive:
            return
        self.alive = False
        self._verdict = kind
        world = self.world
        if self in world.processes:
            world.processes.remove(self)
        self._say_end(kind)
        if kind == "keeper killed":
            self.keeper_spent = True
            if self.slot.alive:
                self.slot.alive = False
                world.readable(self.slot.descriptor)
        world.readable(self.descriptor)

    def _sigterm(self):
        if not self.alive:
            return
        chance = self.world.run.chance
        how = self.on_stop
        if how == "ignores":
            return
        seconds = chance.skewed(0.001, max(0.002, self.term_grace * 1.2))
        ends = {"ends": "terminated", "finishes": "done", "continues": "continues", "fails": "fails"}
        self.world.after(seconds, functools.partial(self.end, ends[how]))

    # -- what a loop asks of it ----------------------------------------------------------------------------------

    @property
    def seconds(self):
        return self.world.now() - self.began

    def descriptors(self):
        return [] if self.gone else [self.descriptor]

    def read(self, descriptor):
        if self._verdict is None:
            self.world.is_read(descriptor)
        elif not self.gone:
            self.gone = True
            self.next_step_at = math.inf
            self.open.before_close(self.descriptor)

    def step(self, now=None):
        if self._next is not None and self.world.now() >= self.next_step_at:
            action, self._next, self.next_step_at = self._next, None, math.inf
            action()

    def _plan(self, seconds, action):
        self._next, self.next_step_at = action, self.world.now() + seconds

    def tell_stopping(self):
        if self.alive and not self.stopping:
            self.stopping = True
            chance = self.world.run.chance
            if chance.happens(0.3):  # it checks `stopping`, and continues elsewhere
                self.world.after(chance.between(0.01, 5.0), functools.partial(self.end, "continues"))

    def stop(self):
        if self.gone:
            return
        self.tell_stopping()
        self._plan(_STACK_SECONDS, self._terminate)

    def _terminate(self):
        self.world.after(0.002, self._sigterm)
        self._plan(self.term_grace, self.kill)

    def kill(self):
        if self.gone:
            return
        self.world.run.events.trace(self.world.name, "SIGKILL to %s", self.name)
        if self.keeper_hangs:
            self._plan(_HUNG_KEEPER_SECONDS, self._kill_past_keeper)
        else:
            self.world.after(KILL_SECONDS, functools.partial(self.end, "killed"))

    def _kill_past_keeper(self):
        self.end("keeper killed")

    def result(self):
        kind = self._verdict
        if kind == "done":
            return None
        if kind == "fails":
            raise ValueError("it failed")
        if kind == "continues":
            raise Continue(step=self.step_number + 1)
        if kind == "dead letter":
            raise DeadLetter("no retry helps")
        if kind == "not started":
            raise TaskNotStarted("Task", "no process left")
        if kind == "exits":
            raise TaskExited(3, "it called os._exit", **_TEXT)
        number = {"killed": signal.SIGKILL, "terminated": signal.SIGTERM}.get(kind)
        raise TaskKilled(number, **_TEXT)

    def _say_end(self, kind):
        """It is gone."""


class Initializer(_Below):
    """The initializer of a process that stays."""

    def __init__(self, world, slot, term_grace):
        super().__init__(world, slot, term_grace)
        run = world.run
        self.name = f"the initializer of {world.name}"
        self.limit = run.warm.timeout
        fails = run.weather.happens(run.weather.initializer_fails)
        self.kind = run.chance.one_of(("fails", "fails", "killed", "hangs")) if fails else "done"
        run.counts[f"initializer {self.kind}"] += 1
        if self.kind == "hangs":
            self._watch(self.longest)
        else:
            world.after(run.chance.skewed(0.05, 5.0), functools.partial(self.end, self.kind))

    def _say_end(self, kind):
        if kind == "done":
            self.slot.become_warm()


class Process(_Below):
    """A task."""

    def __init__(self, world, slot, order, term_grace, is_there):
        super().__init__(world, slot, term_grace)
        said = plain.load(order, most=None)
        kwargs = json.loads(said["body"])["kwargs"]
        self.n, self.step_number = kwargs["n"], kwargs.get("step", 0)
        self.message_id = said["message_id"]
        self.receive = said["attributes"]["ApproximateReceiveCount"]
        run = world.run
        chance, calm = run.chance, run.calm
        self.kind = "done" if calm else chance.weighted(run.ends)
        if not is_there:
            self.kind = "not started"
        if self.kind == "grows" and self.n % 4:
            self.kind = "hangs"  # it has no max_memory
        self.on_stop = "ends" if calm else chance.weighted(STOPS)
        self.keeper_hangs = not calm and chance.happens(run.weather.keeper_hangs)
        self.limit = run.hard_timeout
        self.name = f"{run.events.names.get(self.message_id, '?')}/{self.receive}"
        run.ledger.started(self)
        seconds = chance.between(0.01, 2.0) if calm else run.duration()
        run.counts[f"task {self.kind}"] += 1
        if self.kind == "not started":
            seconds = 0.01
        if self.kind == "grows":
            self.meter = _Meter()
            self.limit = min(self.limit, seconds + _MEASURE_SECONDS)
            world.after(seconds, self._grow)
            self._watch(self.longest)
        elif self.kind != "hangs":
            world.after(seconds, functools.partial(self.end, self.kind))
        if seconds > run.hard_timeout or self.kind == "hangs":
            self._watch(self.longest)
        if chance.happens(0.1):
            world.after(seconds / 2, self._report)

    def _report(self):
        self.progress = {"part": 0.5}

    def _grow(self):
        self.meter.held = 2 * MAX_MEMORY

    def end(self, kind):
        if kind != "done" or not self.world.run.warm or self.done or not self.alive:
            super().end(kind)
            return
        # Its process is inspected for leftovers.
        self.done = True
        self.world.run.ledger.ended(self, kind)
        self.world.readable(self.descriptor)
        self.world.after(self.world.run.chance.skewed(0.001, 2.0), functools.partial(super().end, kind))

    def _say_end(self, kind):
        self.slot.warm = False
        if not self.done:
            self.world.run.ledger.ended(self, kind)
        chance = self.world.run.chance
        if self.world.run.warm and kind in ("done", "continues") and not self.stopping and not self.slot.is_last:
            if chance.happens(0.9):  # else it has left something behind
                self.slot.become_warm()
