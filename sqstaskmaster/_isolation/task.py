"""The worker's side of one task: driven by events, it never blocks. Its driver does the waiting: `Child`, or a loop.

    for each readable descriptor in task.descriptors():  task.read(descriptor)
    when task.next_step_at has passed:                   task.step()
    until task.gone; then task.result(), task.meter.usage

A stop proceeds in steps:

    stop() -> `stopping` becomes true in the task, its stack is requested
           -> SIGTERM -- term_grace --> the keeper kills and reaps everything: kill()
                                    -- no answer --> what is below the keeper is killed from here
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from sqstaskmaster._isolation import pipes, process_tree, task_side, verdict
from sqstaskmaster._isolation.channel import DONE, MessageReader
from sqstaskmaster._isolation.news import News
from sqstaskmaster._isolation.stacks import Dump
from sqstaskmaster._isolation.usage import Meter
from sqstaskmaster._signals import state

# A signal handler in C writes the stack in under a millisecond, on a busy machine a little more. SIGTERM does not wait
# longer than this, but a stack that comes later is still read.
_STACK_SECONDS = 0.05
_STACK_PAUSE_SECONDS = 0.005

# A task that has reported its verdict only has output left to flush, perhaps to a pipe that nobody reads.
_LAST_SECONDS = 5.0

# A keeper that has not carried out a kill after this time is being stopped (SIGSTOP) by its task.
_KEEPER_SECONDS = 0.5
_KILL_AGAIN_SECONDS = 0.05

# The keeper of a slot reports within a millisecond that a task has started. One that stays silent this long hangs or is
# stopped: it is killed, with everything below it.
_SILENT_SECONDS = 2.0

# A keeper that has not ended after this time hangs: in a library's fork hook (os.register_at_fork), say. What it leaves
# behind is found by its mark.
_HUNG_KEEPER_SECONDS = 5.0

# The interval between searches for processes that a killed keeper left behind.
_LOOK_SECONDS = 0.01

_READ_BYTES = 1 << 20

# The most reads per pipe once the task is gone: pipes hold less, but a process that we may not kill could keep writing.
_LAST_READS = 16


class _Plan:
    """The one step to take next."""

    def __init__(self) -> None:
        self.step: Callable[[], None] | None = None
        self.at = math.inf

    def step_in(self, seconds: float, step: Callable[[], None]) -> None:
        self.step, self.at = step, time.monotonic() + seconds

    def drop(self, step: Callable[[], None]) -> None:
        """Cancel this step, if it is the next."""
        if self.step == step:
            self.step, self.at = None, math.inf

    def take(self, now: float) -> None:
        """Take the step, if it is due."""
        if now >= self.at and self.step:
            step, self.step, self.at = self.step, None, math.inf
            step()


class TaskProcess:
    """One task below a keeper, as the worker sees it.

    `done`: it has reported that its function returned. `gone`: it and everything below the keeper have ended.
    `meter`: what it uses. `open`: its descriptors here.
    `stays`: once this task is gone, its process can take another. `spent`: why it cannot, for people, if known; the
    driver may set it too.
    `spoiled`: it wrote to a descriptor that is not its own; nothing more is heard from it except that it ended.

    :param name: what the task is called in errors.
    :param term_grace: seconds between SIGTERM and SIGKILL.
    :param ends: the worker's ends of the task's pipes; closed when the task is gone.
    :param keeper: the keeper's pid.
    :param waiting: whether the keeper already exists and waits for a task, as a slot's does.
    :param pidfd: the keeper's pidfd, which signals its end even if another process has inherited ends of the pipes;
        None if the system has none. Closed when the task is gone.
    """

    def __init__(
        self, name: str, term_grace: float, ends: pipes.Ends, keeper: int, pidfd: int | None, waiting: bool = False
    ) -> None:
        self.name = name
        self.gone = False
        self.done = self.stays = False
        self.spent = ""
        self._began = time.monotonic()
        self.meter = Meter(self._began, keeper)
        self._term_grace = term_grace
        self._ends = ends
        self._keeper = keeper
        self._pidfd = pidfd
        self.open = pipes.Open(ends if pidfd is None else (*ends, pidfd))
        self.spoiled = False
        self._messages = MessageReader()
        self._dump = Dump()
        self._news = News()
        self._readers: dict[int, Callable[[bytes], None]] = {
            ends.results: self._messages.feed,
            ends.stack: self._dump.feed,
            ends.news: self._news.feed,
        }
        self._ended: float | None = None
        self._plan = _Plan()
        self._keeper_until = math.inf
        self._past_keeper = False
        self._failure = ""
        if waiting:
            self._plan.step_in(_SILENT_SECONDS, self._give_up_keeper)

    # -- for the driver ------------------------------------------------------------------------------------------

    def descriptors(self) -> list[int]:
        """The descriptors to read once they are readable; empty once the task is gone."""
        if self.gone:
            return []
        # Once a task has reported its verdict, only its being gone is waited for; the rest is read then.
        ends = [end for end in self._readers if not self.told or end == self._ends.news]
        return ends if self._pidfd is None else [*ends, self._pidfd]

    def read(self, descriptor: int) -> None:
        """Read what has come, if anything."""
        if self.gone:
            return
        if descriptor == self._pidfd:
            self._lose_keeper()
        elif descriptor in self._readers:
            self._read(descriptor)
        if self._news.over:
            self._end()

    @property
    def next_step_at(self) -> float:
        """When `step` has something to do, by `time.monotonic`; infinity if nothing is due."""
        return math.inf if self.gone else self._plan.at

    def step(self, now: float | None = None) -> None:
        """Do what is due."""
        self._plan.take(time.monotonic() if now is None else now)

    # -- what is known of it -------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The pid of the task's process; None until known."""
        return self._news.pid

    @property
    def told(self) -> bool:
        """Whether the task has reported how it ended; its process may live on for a moment."""
        return self._messages.verdict is not None

    @property
    def keeper_spent(self) -> bool:
        """Whether the keeper must get no other task, once this one is gone.

        Either it ended without reporting that everything is gone (it was killed, or is about to end), or processes
        below it were killed from here. The next task's spare may be among them: it can still take an order, and die
        with it.
        """
        return self.gone and (self._past_keeper or not self._news.over)

    @property
    def progress(self) -> dict[str, Any]:
        """The task's last progress report."""
        return self._messages.progress

    @property
    def stack(self) -> str:
        """Where the task was when it was last asked, stopped or crashed, for people; "" if unknown."""
        return self._dump.text(task_side.STARTER)

    @property
    def seconds(self) -> float:
        """How long the task has run."""
        return (time.monotonic() if self._ended is None else self._ended) - self._began

    def result(self) -> Any:
        """What the function returned, once the task is gone. Anything that is not plain data arrives as its repr.

        :raises BaseException: what the function raised, with the child's traceback as its cause.
        :raises RemoteError: the same as text, if the exception cannot be rebuilt here.
        :raises TaskKilled, TaskExited: if the task ended without finishing.
        :raises TaskNotStarted: if the system had no process for it.
        """
        news = self._news
        failure = news.failure or self._failure
        death = verdict.Death(self.name, news.pid, self.seconds, self.stack, news.status, failure)
        return verdict.value_of(self._messages.verdict, death)

    # -- stopping ------------------------------------------------------------------------------------------------

    def tell_stopping(self) -> None:
        """Make `stopping` true in the task from now on. The task itself goes on."""
        self.open.write(self._ends.notice, 1)

    def ask_stack(self, unseen: bool = False) -> bool:
        """Have the task write where it is, without stopping it; `stack` has the answer some milliseconds later.

        False if the task cannot answer: one that has exec'ed another program would die of the signal.

        :param unseen: ask even before the pid is known, when that cannot be checked: a keeper may be slower than its
            task.
        """
        if self.gone or self.pid is None and not unseen:
            return False
        caught = None if self.pid is None else state.mask_of_caught(self.pid)
        if not (self._messages.started if caught is None else caught >> (task_side.STACK_SIGNAL - 1) & 1):
            return False
        self._dump.begin_anew()
        self._order(task_side.STACK_SIGNAL)
        return True

    def forget_stack(self) -> None:
        """After `ask_stack`: drop the stack, which is out of date. What a crash wrote stays."""
        if not self._dump.is_fatal:
            self._dump.begin_anew()

    def stop(self) -> None:
        """Begin the end: the stack is taken, then SIGTERM, then, `term_grace` later, SIGKILL to all. Does not wait."""
        for descriptor in list(self._readers):
            self.read(descriptor)  # the report that it has started may still be unread
        self.tell_stopping()
        if self.ask_stack(unseen=True):
            self._plan.step_in(_STACK_SECONDS, self._terminate)
        elif not self.gone:
            self._terminate()

    def kill(self) -> None:
        """SIGKILL to the task and everything below it, now. Does not wait."""
        if self.gone:
            return
        # As an explicit order: closing the lifeline does not end it while another process has inherited this end.
        self._order(signal.SIGKILL)
        self.open.close(self._ends.lifeline)
        self._keeper_until = time.monotonic() + _HUNG_KEEPER_SECONDS
        self._plan.step_in(_KEEPER_SECONDS, self._kill_past_keeper)

    def _terminate(self) -> None:
        self._order(signal.SIGTERM)
        self._plan.step_in(self._term_grace, self.kill)

    def _kill_past_keeper(self) -> None:
        """For a task that stops its keeper again and again, and for a keeper that hangs."""
        self.read(self._ends.news)
        if self.gone:
            return
        if process_tree.wake(self._keeper, self._pidfd):
            self._past_keeper = True
            below = set(process_tree.descendants(self._keeper))
            process_tree.kill_all(below - process_tree.trackers(below))  # the keeper gives trackers a moment
            if time.monotonic() >= self._keeper_until:
                process_tree.send(self._keeper, self._pidfd, signal.SIGKILL)
        self._plan.step_in(_KILL_AGAIN_SECONDS, self._kill_past_keeper)

    def _give_up_keeper(self) -> None:
        """Kill a keeper that was waiting for a task but has not reported its start."""
        self.read(self._ends.news)
        if not self.gone and self._news.pid is None:
            self._failure = f"its keeper (pid {self._keeper}) has not answered in {_SILENT_SECONDS:g} s"
            process_tree.kill_all(process_tree.descendants(self._keeper))
            process_tree.send(self._keeper, self._pidfd, signal.SIGKILL)

    def _order(self, number: int) -> None:
        self.open.write(self._ends.lifeline, number)
        process_tree.wake(self._keeper, self._pidfd)  # the task may have stopped it

    # -- reading, and the end ------------------------------------------------------------------------------------

    def _read(self, descriptor: int) -> bool:
        """Read once; whether there was anything."""
        try:
            content = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if not content:
            del self._readers[descriptor]
            self.open.close(descriptor)
            if descriptor == self._ends.news and not self._news.over:
                self._lose_keeper()
            return False
        self._readers[descriptor](content)
        self.spoiled, before = self._messages.spoiled, self._news.before
        self.meter.before = before
        self.meter.inherited = self._messages.inherited if before is None else before.resident
        if self._news.pid is not None:
            self._plan.drop(self._give_up_keeper)
        if descriptor == self._ends.stack and self._plan.step == self._terminate:
            self._plan.step_in(_STACK_PAUSE_SECONDS, self._terminate)
        told = self._messages.verdict
        if told is not None:
            self.done = told[0] == DONE
            if self._plan.step is None:
                self._plan.step_in(_LAST_SECONDS, self.kill)
        return True

    def _lose_keeper(self) -> None:
        """The keeper has ended. If it did not report that everything is gone, it was killed; the task died with it."""
        if self._pidfd is not None:
            self.open.close(self._pidfd)
            self._pidfd = None
        if self._ends.news in self._readers:
            self._read(self._ends.news)
        if not self._news.over and not self.gone:
            self._end_what_is_left()

    def _end_what_is_left(self) -> None:
        """Kill what the task started: that does not die with it, and is found by its keeper's mark."""
        left = process_tree.marked(self._keeper)
        if not left:
            self._end()
            return
        process_tree.kill_all(left)
        self._plan.step_in(_LOOK_SECONDS, self._end_what_is_left)

    def _end(self) -> None:
        """Everything below the keeper is gone: read what is left in the pipes, and clean up."""
        for descriptor in [end for end in self._readers if end != self._ends.news]:
            reads = 0
            while reads < _LAST_READS and self._read(descriptor):
                reads += 1
        self.gone = True
        self.stays = self._news.stays and not self.spent
        self.spent = self.spent or self._news.spent
        self._ended = time.monotonic()
        self.meter.end(self._news.cpu_seconds, self._news.resident_peak)
        self.open.close_all()
        self._pidfd = None
