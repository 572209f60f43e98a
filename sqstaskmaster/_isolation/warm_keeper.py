"""The keeper of a slot whose process stays. It only takes orders: the worker decides when the slot gets a new process.

    worker                    keeper                                process
      |-- begin, with pipes ->|-- forks, hands it on ---------------->| runs the initializer
      |<-- ended, stays ------|<-- said ------------------------------|
      |-- order, with pipes ->|-- hands it on ----------------------->| runs the task
      |<-- ended, stays ------|<-- said ------------------------------| waits
      |-- order, with pipes ->|-- hands it on ----------------------->| fails, and ends
      |<-- ended, spent ------| kills and reaps what is left          x

What the initializer starts lives as long as its process. If the process ends between two orders, or loses something
that its initializer started, the keeper reports that to the worker on the slot's socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from typing import NoReturn

from sqstaskmaster._isolation import fresh, keeper, news, pipes, process_tree, task_side, warm
from sqstaskmaster._isolation.slot_keeper import BEGIN, LAST, OrderFunction, SlotKeeper
from sqstaskmaster._signals import state
from sqstaskmaster._signals.bounded import looks

# A child that has just ended, or been killed, lingers for a moment.
_LEFT_SECONDS = 0.02
_LOOK_SECONDS = 0.001


class _Process:
    """The process of a slot, as its keeper knows it."""

    def __init__(self, pid: int, orders: socket.socket, its_end: socket.socket, said: socket.socket) -> None:
        self.pid = pid
        self.orders = orders
        self._its_end = its_end
        self.said = said
        self.end = process_tree.pidfd(pid)
        self.cpu_seconds = 0.0  # as of the end of the last order
        self.helpers: dict[int, int | None] = {}  # the processes that the initializer started, with their pidfds
        self._share = self._resident = self._image = 0

    def meet(self, keeper: int) -> None:
        """The initializer has returned: every process below the keeper now belongs to it."""
        pids = [pid for pid in process_tree.descendants(keeper) if pid != self.pid and not process_tree.is_dead(pid)]
        self.helpers = {pid: process_tree.pidfd(pid) for pid in pids}
        everybody = (self.pid, *self.helpers)
        self._share = sum(map(process_tree.proportional_of, everybody))
        self._resident = sum(map(process_tree.resident_of, everybody))
        self._image = process_tree.image_of(self.pid)

    def before(self) -> news.Before:
        """What is used and held now, as a task is about to begin."""
        helpers = sum(map(process_tree.resident_of, self.helpers))
        resident = process_tree.resident_of(self.pid)
        share = self._share + resident + helpers - self._resident
        return news.Before(self.used(), helpers, share, self._image, resident)

    def has_taken_order(self) -> bool:
        """Whether the process has taken the last order from its socket."""
        return not pipes.is_readable(self._its_end.fileno())

    def used(self) -> float:
        """CPU seconds used so far."""
        return self.cpu_seconds + (process_tree.cpu_seconds_of(self.helpers) if self.helpers else 0.0)

    def lost_helper(self) -> bool:
        """Whether a process that the initializer started has ended."""
        return any(end is None or pipes.is_readable(end) for end in self.helpers.values())

    def close(self) -> None:
        """Close the descriptors: the process is gone."""
        for connection in (self.orders, self._its_end, self.said):
            connection.close()
        pipes.close(*(end for end in (self.end, *self.helpers.values()) if end is not None))


class WarmKeeper(SlotKeeper):
    """The keeper of a slot whose process stays.

    :param settings: how the process is to be made and limited.
    :param carries: what a fresh interpreter gets from the worker; None if the process is forked.
    """

    def __init__(
        self,
        settings: warm.Warm,
        carries: fresh.Carried | None,
        function: OrderFunction,
        orders: socket.socket,
        worker: int,
        caught: frozenset[int],
    ) -> None:
        super().__init__(function, orders, worker, caught)
        self._settings = settings
        self._carries = carries
        self._process: _Process | None = None

    def live(self) -> None:
        """Run until the slot or the worker ends."""
        try:
            while self._wait():
                pass
        finally:
            if self._process is not None:
                process_tree.kill(self._process.pid, signal.SIGKILL)

    def _wait(self) -> bool:
        events = select.poll()
        events.register(self._orders, select.POLLIN)
        events.register(self._worker, select.POLLIN)
        process = self._process
        ends = [] if process is None else [process.end, *process.helpers.values()]
        for each in ends:
            if each is not None:
                events.register(each, select.POLLIN)
        happened = dict(events.poll())
        if self._worker in happened:
            return False
        if process is not None and any(each in happened for each in ends):
            why = "it was killed, or ended, while it was idle" if process.end in happened else _HELPER_LOST
            self._bury(process)
            with contextlib.suppress(OSError):
                self._orders.send(why.encode(), socket.MSG_DONTWAIT)
            return True
        return self._take_order()

    def _see_to(self, said: bytes, ends: pipes.Ends, order: int) -> None:
        if said == BEGIN and not self._begin(ends, order):
            pipes.close(ends.results, ends.stack, ends.notice, order)
            news.say(ends.news, news.failed(self._problem))
            return
        process = self._process
        if process is None:
            pipes.close(ends.results, ends.stack, ends.notice, order)
            news.say(ends.news, news.failed(RuntimeError("the process of its slot has ended")))
            return
        before = process.before()
        try:
            socket.send_fds(process.orders, [said], [ends.results, ends.stack, ends.notice, order])
        except OSError:
            pass  # the process has ended: handled below
        pipes.close(ends.results, ends.stack, ends.notice, order)
        start = [news.started(process.pid, before)]
        sent = keeper.attend(
            process.pid,
            ends.lifeline,
            worker=self._worker,
            told=process.said.fileno(),
            is_long=lambda: news.say(ends.news, start.pop()),
        )
        told = self._told(process)
        if told is None and not process.has_taken_order():
            self._bury(process)
            news.say(ends.news, news.failed(RuntimeError("the process of its slot had ended before it began")))
            return
        if told is None:
            spent = "its last task did not end well"
        elif said == BEGIN:
            spent = ""
            process.meet(self._pid)
        else:
            spent = told.spoiled or self._spoiled(process, told, sent)
        if said == LAST:
            spent = spent or "max_tasks_per_child"
        if spent or told is None:
            status, seconds, peak = self._bury(process)
            if told is not None:
                peak = told.peak
        else:
            process.cpu_seconds, peak = told.cpu_seconds, told.peak
            status, seconds = 0, process.used()
        news.say(ends.news, *start, news.stays(spent), news.ended(status, max(0.0, seconds - before.cpu_seconds), peak))

    def _told(self, process: _Process) -> warm.Said | None:
        """What the process reported; None if it has ended."""
        if process.end is None or pipes.is_readable(process.end) or not pipes.is_readable(process.said.fileno()):
            return None
        try:
            return warm.Said(*json.loads(process.said.recv(warm.MOST_BYTES)))
        except (OSError, ValueError, TypeError):  # a task wrote to this socket
            return None

    def _spoiled(self, process: _Process, told: warm.Said, sent: set[int]) -> str:
        if sent - {task_side.STACK_SIGNAL}:
            return "it was being stopped"
        if process.lost_helper():
            return _HELPER_LOST
        left: list[int] = []
        for _ in looks(_LEFT_SECONDS, _LOOK_SECONDS):
            left = self._left_behind(process, told)
            if not left:
                return ""
        return f"it left {len(left)} {'process' if len(left) == 1 else 'processes'} behind"

    def _left_behind(self, process: _Process, told: warm.Said) -> list[int]:
        if not told.has_children and process_tree.children_of_self() == [process.pid]:
            return []  # the usual case
        found = []
        for pid in process_tree.descendants(self._pid, without=process.helpers):
            if pid == process.pid:
                continue
            if not process_tree.is_dead(pid):
                found.append(pid)
            else:
                with contextlib.suppress(ChildProcessError):  # its own parent has not reaped it yet
                    os.waitpid(pid, os.WNOHANG)
        return found

    def _begin(self, ends: pipes.Ends, order: int) -> bool:
        if self._process is not None:
            self._bury(self._process)
        to_process, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        from_process, said = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except OSError as error:
            self._problem = error
            for connection in (to_process, orders, from_process, said):
                connection.close()
            return False
        if pid == 0:
            try:
                to_process.close()
                from_process.close()
                os.close(order)
                self._be_process(orders, said, ends)
            finally:
                os._exit(1)
        said.close()
        self._process = _Process(pid, to_process, orders, from_process)
        return True

    def _be_process(self, orders: socket.socket, said: socket.socket, ends: pipes.Ends) -> NoReturn:
        state.await_orders(self._caught)
        task_side.settle(self._pid, self._nothing)
        pipes.close(*ends, self._worker)
        for connection in (self._orders, self._to_spare, self._from_keeper):
            connection.close()
        orders, said = (socket.socket(fileno=pipes.out_of_reach(each.detach())) for each in (orders, said))
        if self._carries is not None:
            nothing = pipes.out_of_reach(self._nothing)
            fresh.become(orders.fileno(), said.fileno(), nothing, self._settings, self._carries)
        warm.be_warm(orders, said, self._function, self._settings, self._caught, self._nothing)

    def _bury(self, process: _Process) -> tuple[int, float, int]:
        """End the process and everything that it and its tasks started."""
        process_tree.kill(process.pid, signal.SIGKILL)
        self._process = None
        process.close()
        return keeper.bury(process.pid)


_HELPER_LOST = "a process that the initializer had started has ended"
