"""The driver of a block whose task has a process of its own: `run` starts it, and a loop waits for it.

::

    worker: with handler:                                       task's process
              handler.run()  ---- isolation.Child ------------> run() of the subclass
                loop: wait --- what is due (`watch`) ---------> extend | stop, keep the claim until all is gone
              <-------------------- value, or exception ------- returns, or raises
            leave: the settlement is carried out
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from sqstaskmaster._block.block import Block
from sqstaskmaster._claim.stop_order import StopOrder
from sqstaskmaster._claim.watch import Limits, Need, Watch
from sqstaskmaster._isolation.child import Child
from sqstaskmaster._isolation.task_side import Function
from sqstaskmaster._isolation.usage import Usage
from sqstaskmaster._logging import get_logger
from sqstaskmaster._signals.bounded import BoundedCall
from sqstaskmaster.endings import Continue
from sqstaskmaster.errors import ShutdownRequested

# The longest wait for one answer of `running()`: it is asked alongside the heartbeat, not before it.
_RUNNING_SECONDS = 0.25

# How often to check whether an extension under way is done: it takes milliseconds.
_CALL_LOOK_SECONDS = 0.005

logger = get_logger("sqstaskmaster.process_handler")


class ProcessBlock(Block):
    """One block. `child`: the task's process, None while nothing runs."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.child: Child | None = None
        self._children: list[Child] = []
        self._watch: Watch | None = None
        self._next_alarm_at = 0.0
        self._asked: _Question | None = None
        self._asked_in_vain = False
        self._told_stopping = False

    def enter(self) -> None:
        """Claim the message. No signal is touched, so this works in any thread."""
        self.begin()

    def leave(self, exception: Any) -> bool:
        """End what runs, and settle the attempt. True if the exception is swallowed."""
        self.leave_if_forked(exception)
        try:
            for child in self._children:
                self._stop(child)  # already done, unless interrupts came too fast for that
            return self.conclude(exception)
        finally:
            for child in self._children:
                child.close()
            self._children.clear()

    def run(self, function: Callable[[float], Function], limits: Limits) -> Any:
        """Run the task, wait for it, and return what it returned. Raises what it raised, or what stopped it.

        :param function: takes the seconds until the limit, and returns what the task's process calls.
        """
        self.raise_what_stops()
        self._stop_where_lost()
        now, claim_now = self.handler._clock(), self.clock()
        # The limit is the block's: time before `run` counts.
        watch = self._watch = Watch(self.attempt, limits, self.handler._start_time, now)
        child = Child(
            function(watch.limit_at(now, claim_now) - now),
            name=self.attempt.task,
            start_method=limits.start_method,
            term_grace=limits.term_grace,
        )
        self._children.append(child)
        try:
            child.start()
            self.child = child
            self._set_next_alarm()
            wakeup = self.attempt.terms.wakeup
            while not child.wait(self._seconds_to_attend(watch), None if wakeup is None else wakeup.fileno()):
                self.handler.progress = child.progress
                self._attend(child, watch)
            self.handler.progress = child.progress
            return child.result()
        except BaseException as error:
            self._stop(child)
            if self.claim.lost is None:
                answer = _answer_of(child)
                if answer is None and isinstance(error, ShutdownRequested):
                    return child.result()  # it finished within its grace: finished work is not repeated
                self.attempt.answer = answer if isinstance(answer, Continue) and answer is not error else None
            self.report.stack = child.stack
            show_stack(error, child.stack)
            raise
        finally:
            self.child = self._watch = None
            self.report.used = _total(self.report.used, child.usage)

    def order_stop(self, order: StopOrder) -> None:
        """From another thread: have the thread that waits for the task stop it."""
        self.stop_order = order
        if self.attempt.terms.wakeup is not None:
            self.attempt.terms.wakeup.wake()

    def _attend(self, child: Child, watch: Watch) -> None:
        """Do what is due now. Raises the reason if the task is to be stopped."""
        if self.attempt.terms.wakeup is not None:
            self.attempt.terms.wakeup.clear()
        self.raise_what_stops()
        if self.stop_order is not None:
            self.attempt.stop_by(self.stop_order)
        if not self._told_stopping and self.attempt.terms.is_stopping():
            self._told_stopping = True
            child.tell_stopping()
        now = self.handler._clock()
        need = watch.next(now, self.clock())
        if need is Need.MEASURE:
            began = time.monotonic()
            watch.measured(child.memory(watch.limits.max_memory or 0), time.monotonic() - began, now)
        elif need is Need.ASK or self._asked is not None:
            self._ask_running(watch)
        if self.attempt.stop_reason is not None:
            raise self.attempt.stop_reason
        if now >= self._next_alarm_at:
            self.handler._extend_timeout(self.handler.sqs_timeout)
            self._stop_where_lost()
            self._set_next_alarm()

    def _ask_running(self, watch: Watch) -> None:
        """Ask `running()`. If it does not answer, the task goes on: its limit still holds."""
        patience = _RUNNING_SECONDS if self._asked is None else 0.0
        asked = self._asked = self._asked or _Question(self.handler.running)
        if asked.call.wait(patience):
            self._asked = None
            watch.running(asked.answer, asked.call.error, self.handler._clock())
        elif not self._asked_in_vain:
            self._asked_in_vain = True
            logger.warning(
                "running() of task %s does not return: it counts as true until it does. The worker calls it in a "
                "thread; it must not wait for anything",
                self.attempt.task,
            )

    def _stop_where_lost(self) -> None:
        if self.attempt.stops_for_lost_claim and self.claim.lost is not None:
            raise self.claim.lost

    def _stop(self, child: Child) -> None:
        """Stop the task, and hold the claim until its last process is gone. No exception here keeps it alive.

        A second Ctrl-C or shutdown kills it at once.
        """
        step = child.stop
        while True:
            try:
                step()
                while not child.wait(max(0.0, self._next_alarm_at - self.handler._clock())):
                    self.handler._extend_timeout(self.handler.sqs_timeout)
                    self._next_alarm_at = self.handler._clock() + self.handler.alarm_timeout
                return
            except BaseException as error:
                logger.warning("Stopping task %s at once, because of %r", self.attempt.task, error)
                step = child.kill
                self._next_alarm_at = self.handler._clock() + self.handler.alarm_timeout

    def _set_next_alarm(self) -> None:
        now = self.clock()
        due = max(0.0, min(self.handler.alarm_timeout, self.claim.due(now) - now))
        self._next_alarm_at = self.handler._clock() + due

    def _seconds_to_attend(self, watch: Watch) -> float:
        now = self.handler._clock()
        due = min(watch.due(now, self.clock()), self._next_alarm_at, self.attempt.terms.stop_at())
        return max(0.0, float(due - now))

    def wait_for(self, call: BoundedCall) -> bool:
        """Keep attending to the child while SQS is slow to answer, so that the limit is not missed."""
        child, watch, clock = self.child, self._watch, self.handler._clock
        if child is None or watch is None:
            return super().wait_for(call)
        now = clock()
        until = min(now + self.attempt.wait_seconds, watch.limit_at(now, self.clock()))
        while not call.done and clock() < until and not child.wait(_CALL_LOOK_SECONDS):
            pass
        return call.done


class _Question:
    """One call of `running()`, in a thread of its own: it is the user's code, and may hang."""

    def __init__(self, running: Callable[[], Any]) -> None:
        self.answer = True
        self.call = BoundedCall(lambda: self._ask(running))

    def _ask(self, running: Callable[[], Any]) -> None:
        self.answer = bool(running())


def _answer_of(child: Child) -> BaseException | None:
    """The exception that a stopped task ended with; None if it returned."""
    try:
        child.result()
    except BaseException as error:
        return error
    return None


def _total(before: Mapping[str, Any], used: Usage) -> Mapping[str, Any]:
    """What a block has used so far: usually by one task, but `run` may be called again."""
    seconds, peak = before.get("cpu_seconds"), before.get("peak_memory")
    return {
        "cpu_seconds": used.cpu_seconds if seconds is None else seconds + (used.cpu_seconds or 0.0),
        "peak_memory": used.peak_memory if peak is None else max(peak, used.peak_memory or 0),
    }


class TaskStack(Exception):
    """Where the task was, shown as the cause of the exception that says why it was stopped."""

    __module__ = "sqstaskmaster"  # what a traceback shows, instead of the private module

    def __str__(self) -> str:
        return f"the task was here:\n{self.args[0]}"


def show_stack(error: BaseException, stack: str) -> None:
    """Show where the task was, as the cause of the exception that says why it was stopped."""
    if stack and error.__cause__ is None:
        error.__cause__ = TaskStack(stack)
