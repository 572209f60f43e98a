"""What goes wrong in one run, and how often: every seed has its own mix of troubles, and may have none."""

import functools

from benchmarks.simulation.service import CLIENT_SECONDS, FAULTS, Thread

_FAST_SECONDS = (0.002, 0.04)


class Weather:
    def __init__(self, run):
        self._run = run
        chance = run.chance
        self.happens = chance.happens

        def rate(how_often, *rates):
            return chance.one_of(rates) if chance.happens(how_often) else 0.0

        self.faults = {fault: rate(0.4, 0.01, 0.03, 0.1) for fault in FAULTS}
        self.twice = rate(0.3, 0.02, 0.1)
        self.out_of_order = rate(0.3, 0.1)
        self.callback_hangs = rate(0.4, 0.01, 0.05)
        self.callback_raises = rate(0.4, 0.02, 0.2)
        self.slow_start = rate(0.3, 0.02, 0.1)
        self.start_fails = rate(0.3, 0.01, 0.1)
        self.slot_fails = rate(0.3, 0.2, 0.7)
        self.keeper_hangs = rate(0.3, 0.05, 0.3)
        self.initializer_fails = rate(0.5, 0.05, 0.5)
        self.warm_ends = rate(0.5, 0.05, 0.2)
        self.outages = []  # (from, until, kind, number of the machine or None, the queue or None)
        self._plain = not any(self.faults.values())

    def clear_up(self):
        """From now on nothing goes wrong any more."""
        self.faults = dict.fromkeys(self.faults, 0.0)
        self._plain = True
        self.twice = self.out_of_order = self.callback_hangs = self.callback_raises = 0.0
        self.slow_start = self.start_fails = self.slot_fails = self.keeper_hangs = 0.0
        self.initializer_fails = self.warm_ends = 0.0
        self.outages = []

    def request(self, world, pool):
        """How a request goes: its thread, in how many seconds it arrives, and how long its answer then takes."""
        run = self._run
        chance, now = run.chance, run.events.now
        arrives, answer = chance.between(*_FAST_SECONDS), chance.between(*_FAST_SECONDS)
        fault = None
        for begin, end, kind, number, url in self.outages:
            if begin <= now < end and number in (None, world.machine.number) and (url is None or pool.endswith(url)):
                fault = kind
        if fault == "refused" and not pool.startswith("polls "):
            fault = None
        if fault is None and not self._plain:
            fault = self._fault(chance)
        entries = chance.random() if fault else 0.5
        if fault in ("cut before", "cut after"):
            answer = chance.skewed(0.5, CLIENT_SECONDS)
        elif fault == "late answer":
            answer, fault = chance.skewed(0.5, CLIENT_SECONDS), None
            run.counts["fault late answer"] += 1
        elif fault == "late arrival":
            arrives, fault = chance.skewed(0.5, CLIENT_SECONDS / 2), None
            run.counts["fault late arrival"] += 1
        if fault is not None:
            run.counts[f"fault {fault}"] += 1
        return Thread(pool, now, fault, answer, entries), arrives, answer

    def _fault(self, chance):
        drawn = chance.random()
        for fault, rate in self.faults.items():
            drawn -= rate
            if drawn < 0:
                return fault
        return None


class Troubles:
    """The troubles that happen to workers and machines in the course of a run."""

    def __init__(self, run):
        self._run = run

    def plan(self):
        chance, events, weather = self._run.chance, self._run.events, self._run.weather
        start = events.now

        def some(how_often, most, action):
            if chance.happens(how_often):
                for _ in range(chance.whole(1, most)):
                    events.after(chance.between(1.0, self._run.lasts), action)

        if chance.happens(0.5):
            for _ in range(chance.whole(1, 3)):
                begin = start + chance.between(0, self._run.lasts)
                kind = chance.one_of(("cut before", "cut after", "unreachable", "throttled", "refused", "expired"))
                number = None if chance.happens(0.5) else chance.whole(0, len(self._run.machines) - 1)
                urls = list(self._run.queues)
                url = None if len(urls) == 1 or chance.happens(0.5) else chance.one_of(urls)
                weather.outages.append((begin, begin + chance.skewed(1.0, 300.0), kind, number, url))
        some(0.5, 4, self._stand)
        some(0.5, 4, self._stop_a_worker)
        some(0.4, 3, self._kill_a_worker)
        some(0.4, 5, self._kill_a_keeper)
        some(0.15, 1, self._kill_a_template)
        if weather.twice or weather.out_of_order:
            for _ in range(20):
                events.after(chance.between(0.0, self._run.lasts), self._order_faults)

    def _some_world(self):
        alive = [world for world in self._run.worlds if world is not None and world.begun]
        return self._run.chance.one_of(alive) if alive and not self._run.calm else None

    def _stand(self):
        chance = self._run.chance
        seconds = chance.skewed(0.5, 200.0) if chance.happens(0.5) else self._run.sqs_timeout * chance.between(0.2, 1.1)
        suspended, with_tasks = chance.happens(0.5), chance.happens(0.6)
        machine = chance.one_of(self._run.machines)
        if not self._run.calm:
            self._run.counts["machine stands still"] += 1
            self._run.events.trace(f"machine {machine.number}", "stands still for %.3f s", seconds)
            machine.stand(seconds, suspended, with_tasks or suspended)

    def _stop_a_worker(self):
        world = self._some_world()
        if world is not None:
            self._run.counts["worker stopped"] += 1
            self._run.signal(world)
            if self._run.chance.happens(0.3):
                self._run.events.after(
                    self._run.chance.between(0.0, 10.0), functools.partial(self._signal_again, world)
                )

    def _signal_again(self, world):
        if not world.dead and world.over_at is None:
            self._run.signal(world)

    def _kill_a_worker(self):
        world = self._some_world()
        if world is not None:
            self._run.counts["worker killed"] += 1
            self._run.events.trace(world.name, "SIGKILL")
            world.die()
            self._run.replace(world)

    def _kill_a_keeper(self):
        world = self._some_world()
        if world is not None and world.keepers:
            self._run.counts["keeper killed"] += 1
            self._run.events.trace(world.name, "a keeper is killed")
            self._run.chance.one_of(world.keepers).die()

    def _kill_a_template(self):
        world = self._some_world()
        if world is not None:
            self._run.counts["template killed"] += 1
            world.template.alive = False

    def _order_faults(self):
        if self._run.calm:
            return
        store = self._run.chance.one_of(self._run.stores)
        if store.fifo:
            return  # that never happens there
        if self._run.chance.happens(self._run.weather.twice * 3):
            self._run.counts["second delivery"] += 1
            store.twice += 1
        if self._run.chance.happens(self._run.weather.out_of_order * 3):
            self._run.counts["out of order"] += 1
            store.out_of_order += 1
