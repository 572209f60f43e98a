"""The real supervisor's decisions: which process it restarts and when, and how it ends. No process is started.

A seed decides what its processes send, and how they end. The clock jumps, as in the world of the loops.
"""

import math
import signal
from unittest import mock

from sqstaskmaster._service import supervisor
from sqstaskmaster._service.exit_codes import Exit

from benchmarks.simulation.events import Chance, Violation

# The longest pause before a process is restarted; and after the end of one that never had a ready slot.
_LONGEST_PAUSE = 30.0
_NOT_READY_PAUSE = 60.0
_SHORTEST_PAUSE = 0.5
_SLACK_SECONDS = 0.01

_LAST_GRACE_SECONDS = 15.0
_DEATHS = 8

# How a process ends: its exit code, whether it reports that the next would end the same way, and how likely that is.
_ENDS = (
    (Exit.OK, False, 1),
    (1, False, 3),
    (-signal.SIGKILL, False, 3),
    (Exit.QUEUE, False, 1),
    (Exit.QUEUE, True, 0.2),
    (Exit.NOT_READY, True, 0.5),
    (Exit.NOT_READY, False, 0.5),
)


class _Socket:
    """The supervisor's end of a process's socket."""

    def __init__(self):
        self.said = []

    def recv(self, most):
        if not self.said:
            raise BlockingIOError
        return self.said.pop(0)

    def close(self):
        pass


class _Life:
    """One process, from its start to its end."""

    def __init__(self, supervised, number):
        chance, now = supervised.chance, supervised.now
        self.socket = _Socket()
        self.process = supervisor._Process(mock.Mock(pid=number), self.socket, now)
        self.signals = []
        self.polls = self.ready = False
        self.code, self.is_fatal = supervised.pick_end()
        lives = chance.skewed(0.1, 200.0)
        self.events = []  # when, and what it sends then; None for its end
        at = now + 0.3
        for said in (supervisor.LOADED, supervisor.POLLED, supervisor.READY):
            if at > now + lives or not chance.happens(supervised.starts_well):
                break
            self.events.append((at, said))
            at += chance.between(0.01, 2.0)
        if self.code == Exit.NOT_READY:
            self.events = [event for event in self.events if event[1] != supervisor.READY]
        if supervised.burst and self.code == Exit.OK and len(self.events) > 1:
            self.events.append((now + lives, supervisor.DRAINED))
        if self.is_fatal:
            self.events.append((now + lives, supervisor.FATAL))
        self.events.append((now + lives, None))

    def told(self, number, now, chance):
        """A signal arrives, which may end the process."""
        self.signals.append(number)
        if number == signal.SIGKILL or chance.happens(0.8):
            code = -number if number == signal.SIGKILL else Exit.OK
            self.code, self.is_fatal = code, False
            seconds = 0.01 if number == signal.SIGKILL else chance.skewed(0.01, 40.0)
            self.events = [event for event in self.events if event[0] <= now and event[1]] + [(now + seconds, None)]


class Supervised(supervisor.Supervisor):
    """One run of one seed."""

    def __init__(self, seed, trace=None):
        self.chance = chance = Chance(f"supervisor {seed}")
        self.now = 0.0
        self.count = 0
        self.violation = None
        self.burst = chance.happens(0.2)
        self.starts_well = chance.one_of((1.0, 1.0, 0.9, 0.3))
        self.spawn_fails = chance.one_of((0.0, 0.0, 0.2, 0.7))
        super().__init__(["-c", ""], chance.whole(1, 4), burst=self.burst, clock=lambda: self.now)
        self._selector.close()
        self._selector = mock.Mock()
        self._trace = trace or (lambda text: None)
        self.lives = {}  # by slot
        self.ended = [(-math.inf, None)] * len(self._slots)  # when the last process of each slot ended, and its life
        self.signals_at = sorted(chance.between(0.0, 400.0) for _ in range(chance.one_of((0, 1, 1, 2))))
        self.stopped_at = []
        self.deaths = 0  # in a row before a first poll
        self.any_ready = [False] * len(self._slots)
        self.must_end_with = None
        self._numbers = 0

    def pick_end(self):
        weights = {place: weight for place, (_, _, weight) in enumerate(_ENDS)}
        code, is_fatal, _ = _ENDS[self.chance.weighted(weights)]
        return code, is_fatal

    def go(self):
        """Returns the violation that ended the run; None if every law held."""
        try:
            while self.now < 3000.0 or self._is_ending() and self.now < 4000.0:
                self._start_due()
                if all(slot.process is None for slot in self._slots) and self._is_over():
                    self._check_code()
                    return None
                self._check_starts()
                self._let_happen()
                self._kill_when_due()
            if self._is_ending():
                self._violated("it does not come to an end")
        except Violation as violation:
            return str(violation)
        return None

    def _violated(self, text):
        self._trace(f"LAW {text}")
        raise Violation(f"the supervisor: {text}, after {self.now:.3f} s")

    def _let_happen(self):
        """Let the next event happen: a signal, a process's message or end, or what is due."""
        seconds = self._seconds_to_next()
        due = [(math.inf if seconds is None else self.now + seconds, 0, None)]
        due += [(at, 1, None) for at in self.signals_at[:1]]
        due += [(life.events[0][0], 2, number) for number, life in self.lives.items()]
        at, kind, number = min(due, key=lambda each: each[:2])
        if at == math.inf:
            self._violated("it waits for nothing")
        self.count += 1
        if self.count > 20_000:
            self._violated("it spins")
        self.now = max(self.now, at)
        if kind == 1:
            self.signals_at.pop(0)
            self._trace(f"{self.now:9.3f}  SIGTERM")
            self.stopped_at.append(self.now)
            self._stop(signal.SIGTERM)
            self._check_signals()
        elif kind == 2:
            self._happens_to(number, self.lives[number])

    def _happens_to(self, number, life):
        _, said = life.events.pop(0)
        slot = self._slots[number]
        if said is not None:
            life.socket.said.append(said)
            life.polls = life.polls or said == supervisor.POLLED
            life.ready = self.any_ready[number] = self.any_ready[number] or said == supervisor.READY
            self._listen(life.process)
            if said == supervisor.POLLED:
                self.deaths = 0
            return
        self._trace(f"{self.now:9.3f}  process {number} ends with {life.code}{', FATAL' if life.is_fatal else ''}")
        del self.lives[number]
        self.ended[number] = self.now, life
        before = {other: len(each.signals) for other, each in self.lives.items()}
        was_ending = self._is_ending()
        self._ended(slot, life.process, life.code)
        if was_ending:
            return
        others_ready = any(ready for other, ready in enumerate(self.any_ready) if other != number)
        is_for_good = life.is_fatal and not (life.code == Exit.NOT_READY and others_ready)
        drained = self.burst and life.code == Exit.OK and life.process.drained
        if not is_for_good and not drained:
            proved = life.polls or any(other.polls for other in self.lives.values())
            self.deaths = 0 if proved else self.deaths + 1
        if is_for_good:
            self.must_end_with = life.code
            if any(len(each.signals) > before[other] for other, each in self.lives.items()):
                self._violated("one process is refused for good, and others are signalled")
        elif self.deaths >= _DEATHS:
            self.must_end_with = Exit.CRASHING
        if (self.must_end_with is not None) != self._gave_up:
            self._violated(f"{'it gives up' if self._gave_up else 'it does not give up'}: process {number}")

    # -- what a supervisor does to processes -----------------------------------------------------------------------

    def _spawn(self):
        number = next(each.number for each in self._vacant() if each.due <= self.now)
        if self.must_end_with is not None or self.stopped_at:
            self._violated(f"process {number} is started, and all is to end")
        if self.chance.happens(self.spawn_fails) and self.now < 500.0:
            self.ended[number] = self.now, None
            proved = any(life.polls for life in self.lives.values())
            self.deaths = 0 if proved else self.deaths + 1
            if self.deaths >= _DEATHS:
                self.must_end_with = Exit.CRASHING
            raise OSError("no process left")
        at, before = self.ended[number]
        not_ready = before is not None and before.is_fatal and before.code == Exit.NOT_READY
        if self.now < at + (_NOT_READY_PAUSE if not_ready else _SHORTEST_PAUSE) - _SLACK_SECONDS:
            self._violated(f"process {number} is started again after {self.now - at:.3f} s")
        self._numbers += 1
        life = self.lives[number] = _Life(self, self._numbers)
        self._trace(f"{self.now:9.3f}  process {number} starts")
        return life.process

    def _send(self, number):
        for life in self.lives.values():
            life.told(number, self.now, self.chance)

    # -- the laws ----------------------------------------------------------------------------------------------------

    def _check_starts(self):
        """Every process that has ended must be restarted in time."""
        if self._is_ending() or not self._proven:
            return
        for number, slot in enumerate(self._slots):
            at, life = self.ended[number]
            not_ready = life is not None and life.is_fatal and life.code == Exit.NOT_READY
            late = self.now - max(at, 0.0) - (_NOT_READY_PAUSE if not_ready else _LONGEST_PAUSE)
            if slot.process is None and not slot.finished and at > -math.inf and late > _SLACK_SECONDS:
                self._violated(f"process {number} is not started again")

    def _check_signals(self):
        for life in self.lives.values():
            if len(life.signals) > len(self.stopped_at) + (self.must_end_with == Exit.CRASHING):
                self._violated("a process is signalled twice for one signal")

    def _check_code(self):
        wanted = self.must_end_with
        if len(self.stopped_at) > 1 and self.now > self.stopped_at[1] + _LAST_GRACE_SECONDS + 0.1:
            self._violated("what does not end is not killed in time")
        if wanted is not None and self._code not in (wanted, Exit.KILLED):
            self._violated(f"it ends with {self._code!r}, not with {wanted!r}")


def run(seed, trace=None):
    """Returns what was wrong, None if nothing was; and how much happened."""
    logger = supervisor.logger
    disabled, logger.disabled = logger.disabled, True
    try:
        supervised = Supervised(seed, trace)
        return supervised.go(), supervised.count
    finally:
        logger.disabled = disabled
