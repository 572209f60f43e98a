"""The clock of simulated queues: it stands still until a test, or a poll that waits, moves it from event to event."""

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

# Two readings of one timer count as the same moment if they differ by less than this.
_SAME_TIMER_SECONDS = 0.002


class Poll(Protocol):
    """A receive that waits. `done`: whether it has ended. `next_event`: when it may end, in seconds of the clock."""

    done: bool

    def next_event(self) -> float: ...

    def attempt(self, now: float) -> None: ...


class Attendant(Protocol):
    """A worker's loop, whose claims and limits follow this clock. `due_in` waits until it has done what is due, and
    returns the seconds until something is due next. `moved` is called after each step of the clock."""

    def due_in(self) -> float: ...

    def moved(self) -> None: ...


class SimulatedClock:
    """The clock of a `SimulatedQueue` and its dead-letter queue, which a test may share with more queues.

    It stands still until `advance`, or a poll with a wait, moves it to the next event (a message becomes visible, a
    poll ends), so that events happen in order. A poll moves it only while no task runs. While one does (a plain
    handler's block is open, or code is between `begin` and `end`), a poll waits in real time instead.

    It is thread-safe. `queue.clock` returns it, `SimulatedQueue(clock=...)` takes it.
    """

    def __init__(self) -> None:
        self.changed: threading.Condition = threading.Condition(threading.RLock())
        # Whole, so that whole seconds add up exactly, whatever the steps. The date is in milliseconds, like SQS's.
        self._now = self._began = float(math.ceil(clock.now()))
        self._began_epoch = round(time.time(), 3)
        self._tasks: list[object] = []
        self._polls: list[Poll] = []
        self._attendants: list[Attendant] = []
        self.advanced: float = 0.0
        self._timer = math.nan, math.nan

    # -- for tests, and for code that runs tasks -----------------------------------------------------------------

    def now(self) -> float:
        """Seconds since an arbitrary moment."""
        return self._now

    def epoch(self) -> float:
        """The same moment in seconds since 1970, as in message timestamps."""
        return self._began_epoch + self._now - self._began

    @property
    def moved(self) -> float:
        """Seconds that it has been moved in all. Code that runs in real time adds what was moved meanwhile."""
        return self._now - self._began

    def wait(self, seconds: float) -> None:
        """Move the time ahead as a poll would, without sleeping; while a task runs, wait in real time instead.

        :param seconds: 0 or more.
        """
        nothing = _Wait(self._now + seconds)
        self.poll(nothing, seconds)

    def advance(self, seconds: float, *, suspended: bool = False) -> None:
        """Move the time ahead, event by event: messages become visible, waiting polls end, a worker extends the claims
        of its tasks in processes and stops them at their limits. If this is called in the main thread, a plain handler
        whose block is open gets its alarms (its claim is extended, its task stopped at its limit).

        :param seconds: 0 or more.
        :param suspended: as if this process had been stopped meanwhile: one alarm is raised when the time is over.
        :raises ValueError: for anything but a number of seconds, 0 or more.
        :raises UnsupportedContext: in a task's process; the queue is in the worker's.
        """
        require_no_task("This clock")
        if not is_number(seconds) or seconds < 0:
            raise ValueError(f"seconds must be a number, 0 or more, not {seconds!r}")
        target = self._now + seconds
        while True:
            # Outside the lock: what they do makes requests.
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
                # Outside the lock: the handler makes requests, in threads of their own. It resets the timer.
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
        """The task has stopped running. No effect for a task that was not begun."""
        with self.changed:
            if task in self._tasks:
                self._tasks.remove(task)
            self.changed.notify_all()

    @contextmanager
    def attended(self, attendant: Attendant) -> Iterator[None]:
        """A block in which each step of `advance` waits for this attendant."""
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
        """Forget all tasks that were begun: none runs any more."""
        with self.changed:
            self._tasks.clear()
            self.changed.notify_all()

    # -- for queues ----------------------------------------------------------------------------------------------

    def served(self) -> None:
        """A queue has changed: let waiting polls try again. Call with the lock held."""
        if not self._polls:
            return
        went_on = True
        while went_on:  # what one of them does may serve another: a move to a dead-letter queue
            went_on = False
            for poll in self._polls:
                if not poll.done:
                    poll.attempt(self._now)
                    went_on = went_on or poll.done
        self.changed.notify_all()

    def poll(self, poll: Poll, seconds: float) -> None:
        """Wait until the poll is done: by moving the time or, while a task runs, for at most `seconds` of real time."""
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
        """The message of a plain handler's open block in this process, if its queue uses this clock."""
        for message in current.messages():
            if getattr(message, "simulated_clock", None) is self:
                return message
        return None

    def _next_event(self) -> float:
        """When a waiting poll ends, or a message is there for it."""
        return min((poll.next_event() for poll in self._polls if not poll.done), default=math.inf)

    def _move(self, to: float) -> None:
        self._now = max(self._now, to)
        self.served()

    def _next_alarm(self) -> float:
        """When the alarm of an open block is due: the real timer, less what the clock was moved since it was set."""
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
    """A poll that only waits."""

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
    """Calling a function makes Python run pending signal handlers."""
