"""The keeper of a slot: one process for all the tasks that a slot runs, one after another, each forked ahead.

    worker                    keeper                                spare
      |                         |-- forks, after the sweep --------->| lets go of what it inherited, waits
      |-- order, with pipes --->|-- hands it on -------------------->| becomes the task: runs, reports its end, exits
      |<-- started -------------|                                    |
      |<-- ended, usage --------| kills and reaps what is left       x
      |                         |-- forks the next spare ----------->| ...

It never runs a task and starts no thread, so what it forks is as clean as the keeper itself: OpenMP, say, works.
All its spares read orders from one queue: a spare that is killed before it takes one leaves it to the next.
It watches the worker itself, by pidfd, since its parent is the template.
"""

from __future__ import annotations

import functools
import gc
import math
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from sqstaskmaster._isolation import keeper, news, pipes, process_tree, task_side
from sqstaskmaster._isolation.channel import Channel
from sqstaskmaster._signals import state

#: Called in the task with the order's bytes and its channel.
OrderFunction = Callable[[bytes, Channel], Any]

#: An order on the socket: this word, and the descriptors of `pipes.Ends` and of a file with the order's content.
ORDER = b"order"

#: In a slot whose process stays: the order to make that process, and the order that is its last.
BEGIN, LAST = b"begin", b"final"

_DESCRIPTORS = len(pipes.Ends._fields) + 1

# Between two tries to fork a spare, if the system has no process left.
_FORK_AGAIN_SECONDS = 0.2

# A spare that dies before it gets an order is replaced, after a longer pause each time; an order gets this many spares.
_LONGEST_PAUSE_SECONDS = 60.0
_MOST_SPARES = 3


def keep_slot(
    orders: socket.socket,
    worker: int,
    environment: Mapping[str, str],
    caught: frozenset[int],
    kind: Kind,
) -> NoReturn:
    """The keeper's whole life, in a process that was forked for it.

    :param orders: the slot's socket; its end is the end of the slot.
    :param worker: the worker's pidfd.
    :param environment: what the slot's tasks find in os.environ beside what was inherited.
    :param caught: the signals that the worker had handlers for. They and requests to stop stay blocked here.
    """
    try:
        gc.disable()
        keeper.become_keeper()
        os.environ.update(environment)
        slot = kind(orders, worker, caught)
        slot.live()
    finally:
        process_tree.sweep()
        os._exit(0)


class SlotKeeper:
    """The keeper of a slot whose tasks have a process each.

    :param function: what runs in the task's process.
    """

    def __init__(self, function: OrderFunction, orders: socket.socket, worker: int, caught: frozenset[int]) -> None:
        self._orders = orders
        self._worker = worker
        self._function = function
        self._caught = caught
        self._pid = os.getpid()
        self._nothing = pipes.open_nothing()
        self._to_spare, self._from_keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._spare: int | None = None
        self._deaths = 0  # of spares without an order, in a row
        self._fork_at = 0.0
        self._problem = OSError()

    def live(self) -> None:
        """Run until the slot or the worker ends."""
        try:
            while True:
                if self._spare is None and time.monotonic() >= self._fork_at:
                    self._fork_spare()
                if not self._await():
                    return
        finally:
            # By its pid: running out of descriptors is a way to get here, and then the sweep cannot list processes.
            if self._spare is not None:
                process_tree.kill(self._spare, signal.SIGKILL)

    def _await(self) -> bool:
        """Wait for an order and carry it out, or for the spare's end. False when the slot or the worker has ended."""
        events = select.poll()
        events.register(self._orders, select.POLLIN)
        events.register(self._worker, select.POLLIN)
        end = None if self._spare is None else process_tree.pidfd(self._spare)
        if end is not None:
            events.register(end, select.POLLIN)
        try:
            pause = max(_FORK_AGAIN_SECONDS, self._fork_at - time.monotonic())
            happened = dict(events.poll(None if self._spare is not None else math.ceil(pause * 1000)))
        finally:
            if end is not None:
                os.close(end)
        if self._worker in happened:
            return False
        if end in happened and self._spare is not None:
            keeper.bury(self._spare)
            self._spare = None
            self._deaths += 1
            self._fork_at = time.monotonic() + min(2.0 ** (self._deaths - 1), _LONGEST_PAUSE_SECONDS)
        elif self._orders.fileno() in happened:
            return self._take_order()
        return True

    def _take_order(self) -> bool:
        try:
            said, descriptors, _, _ = socket.recv_fds(self._orders, len(ORDER), _DESCRIPTORS)
        except ConnectionResetError:
            return False
        if not descriptors:
            return False
        *ends, order = descriptors
        try:
            self._see_to(said, pipes.Ends(*ends), order)
            return True
        finally:
            for end in (ends[2], ends[3]):  # news and lifeline
                os.close(end)

    def _see_to(self, said: bytes, ends: pipes.Ends, order: int) -> None:
        """One task, from its order to its end."""
        socket.send_fds(self._to_spare, [ORDER], [ends.results, ends.stack, ends.notice, order])
        for descriptor in (ends.results, ends.stack, ends.notice, order):
            os.close(descriptor)
        for _ in range(_MOST_SPARES):
            if self._spare is None:
                self._fork_spare(ends.news, ends.lifeline)
            if self._spare is None:
                self._forget_order()
                news.say(ends.news, news.failed(self._problem))
                return
            task, self._spare = self._spare, None
            news.say(ends.news, news.started(task))
            sent = keeper.attend(task, ends.lifeline, worker=self._worker)
            status, seconds, peak = keeper.bury(task)
            if not self._order_is_untaken():
                self._deaths, self._fork_at = 0, 0.0
                break
            if sent:
                self._forget_order()
                break
        else:
            self._forget_order()
            news.say(ends.news, news.failed(RuntimeError(f"its process died {_MOST_SPARES} times before it began")))
            return
        news.say(ends.news, news.ended(status, seconds, peak))

    def _order_is_untaken(self) -> bool:
        return pipes.is_readable(self._from_keeper.fileno())

    def _forget_order(self) -> None:
        _, descriptors, _, _ = socket.recv_fds(self._from_keeper, len(ORDER), _DESCRIPTORS)
        for descriptor in descriptors:
            os.close(descriptor)

    # -- the spare -----------------------------------------------------------------------------------------------

    def _fork_spare(self, *held: int) -> None:
        """Fork a spare. `held` are descriptors of the keeper's that are not for the spare."""
        try:
            pid = os.fork()
        except OSError as error:
            self._problem = error
            return
        if pid == 0:
            try:
                self._be_spare(*held)
            finally:
                os._exit(1)
        self._spare = pid

    def _be_spare(self, *held: int) -> NoReturn:
        state.await_orders(self._caught)
        task_side.settle(self._pid, self._nothing)
        for descriptor in (*held, self._worker, self._nothing):
            os.close(descriptor)
        self._orders.close()
        self._to_spare.close()
        _, descriptors, _, _ = socket.recv_fds(self._from_keeper, len(ORDER), _DESCRIPTORS)
        results, stack, notice, order = map(pipes.out_of_reach, descriptors)
        self._from_keeper.close()
        function = functools.partial(self._function, content_of(order))
        task_side.perform(pipes.Ends(results, stack, -1, -1, notice), lambda: function, self._caught)


def content_of(order: int) -> bytes:
    """The content of an order; the descriptor is closed."""
    with open(order, "rb") as file:
        file.seek(0)
        return file.read()


#: Makes the keeper from the slot's socket, the worker's pidfd and the signals that the worker handles.
Kind = Callable[[socket.socket, int, frozenset[int]], SlotKeeper]
