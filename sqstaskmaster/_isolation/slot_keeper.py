"""The keeper of a slot: one task after the other, each in a process that was forked ahead. Runs below the template.

    template -- forks --> keeper -- forks --> spare: waits for an order, then it is the task
                            ^                    ^
      worker -- order ------+----- passed on ----+

It is to its tasks what `keeper` is to one: their parent, and, on Linux, that of every orphan below it; it never runs
one itself. One fork a task: the spare is forked when all of the task before is gone, while the worker deletes and
polls.

The order goes through the keeper, so that it knows whether a spare that died had taken one. Its parent is the template,
so it watches the worker itself.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from sqstaskmaster._isolation import channel, keeper, news, pipes, process_tree, task_side
from sqstaskmaster._isolation.pipes import Ends

#: Called in a task's process with the order and the task's channel.
Function = Callable[[bytes, channel.Channel], Any]

# What an order comes with: the order itself, and the task's ends of its pipes.
DESCRIPTORS = 1 + len(Ends._fields)

# Between two tries to fork, where the system has no process left.
_FORK_AGAIN_MILLISECONDS = 500


def keep_slot(
    orders: socket.socket,
    function: Function,
    environment: Mapping[str, str],
    nothing: int,
    worker: int | None,
    caught: frozenset[int],
) -> NoReturn:
    """The keeper's whole life, in a process that was forked for it, in `state.held`.

    :param orders: where orders come from; its end is the end of the slot.
    :param environment: set for its tasks.
    :param nothing: an open os.devnull.
    :param worker: a descriptor that is readable once the worker is gone, where there is one.
    :param caught: the signals the worker had handlers for.
    """
    try:
        gc.disable()
        keeper.become_keeper()
        os.environ.update(environment)
        while True:
            spare = _fork_spare(orders, function, nothing, caught)
            descriptors = _next_order(orders, spare, worker)
            if descriptors is None:
                break
            if descriptors:
                _run(spare, descriptors, worker)
    finally:
        with contextlib.suppress(BaseException):
            process_tree.sweep()
        os._exit(0)


class _Spare:
    """A process that will be a task. `pid` is None where the system had none left; `error` says why."""

    def __init__(self, pid: int | None, orders: socket.socket | None, error: OSError | None = None) -> None:
        self.pid = pid
        self.orders = orders
        self.error = error
        self.end = None if pid is None else process_tree.pidfd(pid)

    def close(self) -> None:
        if self.orders is not None:
            self.orders.close()
        if self.end is not None:
            os.close(self.end)


def _fork_spare(orders: socket.socket, function: Function, nothing: int, caught: frozenset[int]) -> _Spare:
    this = os.getpid()
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        return _Spare(None, None, error)
    try:
        pid = os.fork()
    except OSError as error:
        ours.close()
        theirs.close()
        return _Spare(None, None, error)
    if pid == 0:
        try:
            ours.close()
            orders.close()
            _be_spare(theirs, function, this, nothing, caught)
        finally:
            os._exit(1)
    theirs.close()
    return _Spare(pid, ours)


def _next_order(orders: socket.socket, spare: _Spare, worker: int | None) -> list[int] | None:
    """The descriptors of the next order; [] where the spare has ended instead, None where the slot has."""
    events = select.poll()
    events.register(orders, select.POLLIN)
    for descriptor in (spare.end, worker):
        if descriptor is not None:
            events.register(descriptor, select.POLLIN)
    happened = dict(events.poll(_FORK_AGAIN_MILLISECONDS if spare.pid is None else None))
    if worker in happened:
        return None
    if orders.fileno() in happened:
        content, descriptors, _, _ = socket.recv_fds(orders, 1, DESCRIPTORS)
        return descriptors if content else None
    if spare.pid is not None:
        keeper.bury(spare.pid)
    spare.close()
    return []


def _run(spare: _Spare, descriptors: list[int], worker: int | None) -> None:
    """Pass the order on, and watch over the task until all of it is gone."""
    order, *others = descriptors
    ends = Ends(*others)
    try:
        if spare.pid is None or spare.orders is None:
            news.say_failed(ends.news, spare.error or OSError("there is no process for it"))
            return
        with contextlib.suppress(OSError):  # it has just died, which is noticed below
            socket.send_fds(spare.orders, [b"!"], [order, ends.results, ends.stack, ends.notice])
        pipes.close(order, ends.results, ends.stack, ends.notice)
        news.say_started(ends.news, spare.pid)
        keeper.attend(spare.pid, ends.lifeline, lambda: False, worker)
        news.say_ended(ends.news, *keeper.bury(spare.pid))
    finally:
        pipes.close(*descriptors)
        spare.close()


def _be_spare(orders: socket.socket, function: Function, parent: int, nothing: int, caught: frozenset[int]) -> NoReturn:
    """All that can be done ahead; then wait for an order, and be its task."""
    task_side.settle(parent, nothing)
    content, descriptors, _, _ = socket.recv_fds(orders, 1, DESCRIPTORS)
    orders.close()
    if not content:
        os._exit(0)
    order, *others = map(pipes.out_of_reach, descriptors)
    results, stack, notice = others

    def load() -> task_side.Function:
        with open(order, "rb") as file:
            file.seek(0)
            content = file.read()
        return lambda own: function(content, own)

    task_side.perform(Ends(results, stack, -1, -1, notice), load, caught)
