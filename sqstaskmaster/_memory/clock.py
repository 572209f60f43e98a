"""The time of simulated queues: it stands still until a test, or a poll that waits, moves it from event to event."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from sqstaskmaster._claim import clock, current
from sqstaskmaster._memory.home import require_no_task
from sqstaskmaster._sqs.limits import is_number

# Two looks at one timer give the same moment, as far as that is rounded.
_SAME_TIMER_SECONDS = 0.002


class Poll(Protocol):
    """A receive that waits. `done`: whether it has ended. `next_event`: when it may, seconds of the clock."""

    done: bool

    def next_event(self) -> float: ...

    def attempt(self, now: float) -> None: ...


class Attendant(Protocol):
    """A worker's loop, whose claims and limits follow this clock. `due_in` waits until it has done what is due, and
    returns the seconds until the next thing is. `moved` is called after each step of the clock."""

    def due_in(self) -> float: ...

    def moved(self) -> None: ...


class SimulatedClock:
    """The time of a `SimulatedQueue` and of its dead-letter queue, which a test may share between more of them.

    It stands still until `advance`, or a poll with a wait, moves it: to what comes next (a message becomes visible, a
    poll ends), so that events happen in their order. A poll moves it only while no task runs; while one does (a plain
    handler's block is open, or somebody is between `begin` and `end`), a poll waits in real time instead.

    It is safe for threads. `queue.clock` returns it, `SimulatedQueue(clock=...)` takes it.
    """

    def __init__(self) -> None:
        self.changed: threading.Condition = threading.Condition(threading.RLock())
        # Whole, so that whole seconds add up exactly, however they are moved; and of SQS's milliseconds.
        self._now = self._began = float(math.ceil(clock.now()))
        self._began_epoch = round(time.time(), 3)
        self._tasks: list[object] = []
        self._polls: list[Poll] = []
        self._attendants: list[Attendant] = []
        self.advanced: float = 0.0
        self._timer = math.nan, math.nan

    # -- for tests, and for whoever runs tasks -------------------------------------------------------------------

    def now(self) -> float:
        """Seconds, from a beginning that is no date."""
        return self._now

    def epoch(self) -> float:
        """The same moment in seconds since 1970, as in the timestamps of messages."""
        return self._began_epoch + self._now - self._began

    @property
    def moved(self) -> float:
        """Seconds that it has been moved in all. What runs in real time adds what was moved meanwhile."""
        return self._now - self._began

    def wait(self, seconds: float) -> None:
        """Move it ahead as a poll would, without sleeping; while a task runs, wait in real time instead.

        :param seconds: 0 or more.
        """
        nothing = _Wait(self._now + seconds)
        self.poll(nothing, seconds)

    def advance(self, seconds: float, *, suspended: bool = False) -> None:
        """Move the time ahead, event by event: messages become visible, polls that wait come to their end, a worker
        extends the claims of its tasks in processes and stops them at their limits. The alarms of a plain handler whose
        block is open are raised (its claim is extended, its task stopped at its limit) where this is called in the main
        thread.

        :param seconds: 0 or more.
        :param suspended: as if this process had been stopped meanwhile: one alarm is raised when the time is over.
        :raises ValueError: for anything but a number of seconds, 0 or more.
        :raises UnsupportedContext: in the process of a task, whose worker has the queue.
        """
        require_no_task("This clock")
        if not is_number(seconds) or seconds < 0:
            raise ValueError(f"seconds must be a number, 0 or more, not {seconds!r}")
        target = self._now + seconds
        while True:
            # Outside of the lock: what they have to do makes requests.
            attendants = () if suspended else tuple(self._attendants)
            due = min((each.due_in() for each in attendants), default=math.inf)
            with self.changed:
                alarm = self._next_alarm()
                event = min(self._next_event(), math.inf if suspended else min(alarm, self._now + due))
                before = self._now
                self._move(min(event, target))
                self.advanced += self._now - before
                is_over = event > target
                is_alarm = alarm <= self._now if not suspended else is_over and alarm < math.inf
            if is_alarm:
                # Outside of the lock: the handler makes requests, in threads of their own. It sets the timer anew.
                self._timer = math.nan, math.nan
                _raise_alarm()
            for each in tuple(self._attendants):
                each.moved()
            if is_over:
                return

    def begin(self, task: object) -> None:
        """A task runs from now on: polls leave the time alone."""
        with self.changed:
            self._tasks.append(task)

    def end(self, task: object) -> None:
        """The task runs no more. Ending one that was not begun is nothing."""
        with self.changed:
            if task in self._tasks:
                self._tasks.remove(task)
            self.changed.notify_all()

    @contextmanager
    def attended(self, attendant: Attendant) -> Iterator[None]:
        """A block in which `advance` waits for it at each of its steps."""
        self._attendants.append(attendant)
        try:
            yield
        finally:
            self._attendants.remove(attendant)

    @contextmanager
    def task(self) -> Iterator[None]:
        """A block in which a task runs."""
        token = object()
        self.begin(token)
        try:
            yield
        finally:
            self.end(token)

    def forget_tasks(self) -> None:
        """No task runs any more, whatever was begun."""
        with self.changed:
            self._tasks.clear()
            self.changed.notify_all()

    # -- for queues ----------------------------------------------------------------------------------------------

    def served(self) -> None:
        """Something has changed in a queue: polls that wait may have what they wait for. With the lock held."""
        if not self._polls:
            return
        went_on = True
        while went_on:  # what one of them does may be what another waits for: a move to a dead-letter queue
            went_on = False
            for poll in self._polls:
                if not poll.done:
                    poll.attempt(self._now)
                    went_on = went_on or poll.done
        self.changed.notify_all()

    def poll(self, poll: Poll, seconds: float) -> None:
        """Wait until the poll is done: moving the time, or, while a task runs, letting `seconds` pass at most."""
        with self.changed:
            self._polls.append(poll)
            real_end = math.inf
            try:
                while not poll.done:
                    if not self._is_busy():
                        real_end = math.inf
                        self._move(self._next_event())
                        continue
                    real_end = min(real_end, time.monotonic() + seconds)
                    left = real_end - time.monotonic()
                    if left <= 0:
                        return
                    self.changed.wait(left)
            finally:
                self._polls.remove(poll)

    def _is_busy(self) -> bool:
        return bool(self._tasks) or self._open_block() is not None

    def _open_block(self) -> Any:
        """The message of a plain handler's block that is open in this process, of a queue with this clock."""
        for message in current.messages():
            if getattr(message, "simulated_clock", None) is self:
                return message
        return None

    def _next_event(self) -> float:
        """When a poll that waits comes to its end, or a message is there for it."""
        return min((poll.next_event() for poll in self._polls if not poll.done), default=math.inf)

    def _move(self, to: float) -> None:
        self._now = max(self._now, to)
        self.served()

    def _next_alarm(self) -> float:
        """When the alarm of an open block is due: the real timer, less what the time was moved since it was set."""
        if threading.current_thread() is not threading.main_thread() or self._open_block() is None:
            return math.inf
        left = signal.getitimer(signal.ITIMER_REAL)[0]
        if not left:
            return math.inf
        fires_at = time.monotonic() + left
        if not abs(fires_at - self._timer[0]) < _SAME_TIMER_SECONDS:
            self._timer = fires_at, self._now + left
        return self._timer[1]


class _Wait:
    """A poll of nothing."""

    def __init__(self, until: float) -> None:
        self._until = until
        self.done = False

    def next_event(self) -> float:
        return self._until

    def attempt(self, now: float) -> None:
        self.done = now >= self._until


def _raise_alarm() -> None:
    signal.raise_signal(signal.SIGALRM)
    _nothing()


def _nothing() -> None:
    """Python runs signal handlers where a function is called."""
