"""The threads of a simulated worker: what is called in them, how long that takes, and when its result arrives."""

import collections
import functools

from sqstaskmaster._service.world import _REQUEST_THREADS, _THREADS, CALLBACKS, EVENTS, MEMORY, SLOTS
from sqstaskmaster.errors import NoAnswer

from benchmarks.simulation.service import Thread


class Threads:
    """The threads of one worker, by pool."""

    def __init__(self, world):
        self.run = world.run
        self._world = world
        self._pools = {}

    def call(self, pool, function, then, patience):
        threads = self._pools.get(pool)
        if threads is None:
            threads = self._pools[pool] = _Pool(_THREADS.get(pool, _REQUEST_THREADS))
        answered = then if then is None or patience is None else self._in_time(then, patience)
        tries = ()
        if pool.startswith("extensions "):
            tries = self.run.ledger.tries_to_extend(self._world, self._asked_about(function))
        elif getattr(getattr(function, "func", None), "__name__", "") == "change_visibility":
            self.run.ledger.tries_to_return(self._asked_about(function))
        threads.unfinished += 1
        threads.waiting.append((pool, function, answered, tries, self.run.events.now))
        self._start_next(threads)

    def _in_time(self, then, patience):
        timer = self._world.at(
            self._world.now() + patience, lambda: then(None, NoAnswer(f"No answer in {patience:g} s"))
        )

        def answered(result, error):
            if timer.action is not None:
                timer.cancel()
                then(result, error)

        return answered

    def _asked_about(self, function):
        """Which claims a request is about, by their receipt handles, without making the request."""
        run = self.run
        thread = Thread("peek", run.events.now, None, 0.0)
        thread.peeks = []
        before, run.thread = run.thread, thread
        try:
            function()
        finally:
            run.thread = before
        return thread.peeks

    def _start_next(self, threads):
        while threads.waiting and threads.busy < threads.most:
            threads.busy += 1
            self._begin(threads, *threads.waiting.popleft())

    def _begin(self, threads, pool, function, then, tries, called_at):
        """A thread takes the call."""
        run = self.run
        events, chance, weather = run.events, run.chance, run.weather
        if pool == EVENTS or pool == MEMORY:
            # These have no result to wait for: they are over at once.
            self._run_call(threads, pool, function, then, None)
            return
        if pool == CALLBACKS or pool == SLOTS or pool.startswith("constructors "):
            seconds = chance.skewed(0.0005, 0.05)
            if pool == CALLBACKS and chance.happens(weather.callback_hangs):
                seconds = chance.between(1.0, 200.0)
                run.counts["callback hangs"] += 1
            elif pool != CALLBACKS and chance.happens(weather.slow_start):
                seconds = chance.between(1.0, 50.0)
                run.counts["slot or constructor is slow"] += 1
            thread = Thread(pool, events.now, None, 0.001)
            call = functools.partial(self._run_call, threads, pool, function, then, thread)
            events.after(seconds, functools.partial(self._when_awake, call))
            return
        # A request.
        thread, arrives, answer = run.weather.request(self._world, pool)
        thread.called_at = called_at
        for each in tries:
            each.goes_well = thread.fault is None and arrives < 1.0
        call = functools.partial(self._run_call, threads, pool, function, then, thread, answer)
        if pool.startswith("polls "):
            events.after(arrives, functools.partial(run.polls[pool[6:]].begin, thread, call))
        else:
            events.after(arrives, call)

    def _when_awake(self, call):
        machine = self._world.machine
        if self.run.events.now < machine.stands_until:
            self.run.events.at(machine.stands_until, call)
        else:
            call()

    def _run_call(self, threads, pool, function, then, thread, answer=0.0):
        """Make the thread's call, and send back its result."""
        run = self.run
        if self._world.dead and (thread is None or pool in (CALLBACKS, SLOTS)):
            return
        result, error = None, None
        before, run.thread = run.thread, thread or Thread("", run.events.now, None, 0.0)
        try:
            result = function()
        except Exception as raised:
            error = raised
        finally:
            run.thread = before
        done = functools.partial(self._thread_done, threads, then, result, error)
        if answer:
            run.events.after(answer, done)
        else:
            done()

    def _thread_done(self, threads, then, result, error):
        threads.unfinished -= 1
        threads.busy -= 1
        if self._world.dead or self._world.over_at is not None:
            return
        if then is not None:
            self._world.put(functools.partial(then, result, error))
        elif threads.wakes and not threads.unfinished:
            self._world.put(_nothing)
        self._start_next(threads)

    def unfinished(self, *pools):
        found = [self._pools[pool] for pool in pools if pool in self._pools]
        for threads in found:
            threads.wakes = True
        return sum(threads.unfinished for threads in found)


class _Pool:
    def __init__(self, most):
        self.most = most
        self.busy = 0
        self.unfinished = 0
        self.wakes = False
        self.waiting = collections.deque()


def _nothing():
    pass
