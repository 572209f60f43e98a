"""A process that stays: it runs the initializer, then one task after another, until it is spoiled.

    keeper                          process
      |-- order: begin, with pipes --->| runs the initializer, reports how that ended, as a task does
      |<-- said ----------------------|  what it has used, whether it can take a task
      |-- order, with pipes --------->|  runs the task, reports its end, checks what it left behind
      |<-- said ----------------------|
      ...                                after any failure it ends, as a task's own process does

Each order brings its own pipes. They are duplicated onto three fixed descriptors, which are open on os.devnull between
two orders.
"""

from __future__ import annotations

import functools
import gc
import json
import multiprocessing.process
import os
import socket
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, NoReturn

from sqstaskmaster._isolation import buffers, channel, pipes, process_tree, slot_keeper, task_side
from sqstaskmaster._isolation.spoiling import Snapshot, new_threads
from sqstaskmaster._signals import state

#: The most bytes of a process's report.
MOST_BYTES = 1 << 12

_MOST_REASON = 500


class Warm(NamedTuple):
    """How processes that stay are made and limited. `initializer`: run first; None for none. `max_growth`: in bytes.

    `spawned`: each is a fresh interpreter.
    """

    initializer: Callable[[], Any] | None = None
    max_growth: int | None = None
    spawned: bool = False


class Said(NamedTuple):
    """What a process reports to its keeper after an order.

    `spoiled`: why it must take no other. `cpu_seconds`: since it began. `peak`: in bytes, since the order.
    `has_children`: whether it has child processes.
    """

    spoiled: str
    cpu_seconds: float
    peak: int
    has_children: bool


def be_warm(
    orders: socket.socket,
    said: socket.socket,
    function: slot_keeper.OrderFunction,
    warm: Warm,
    caught: frozenset[int],
    nothing: int,
) -> NoReturn:
    """The process's whole life, after it has let go of what it inherited.

    :param orders: the socket that the keeper's orders come from; when it ends, so does this process.
    :param said: the socket for `Said`.
    :param nothing: an open os.devnull.
    """
    nothing = pipes.out_of_reach(nothing)
    ends = pipes.Ends(*(pipes.out_of_reach(os.dup(nothing)) if place not in (2, 3) else -1 for place in range(5)))
    task_side.exit_after(lambda owner: _Process(orders, said, function, warm, nothing, ends, owner).live(caught))


class _Process:
    def __init__(
        self,
        orders: socket.socket,
        said: socket.socket,
        function: slot_keeper.OrderFunction,
        warm: Warm,
        nothing: int,
        ends: pipes.Ends,
        owner: int,
    ) -> None:
        self._orders = orders
        self._said = said
        self._function = function
        self._warm = warm
        self._nothing = nothing
        self._ends = ends
        self._owner = owner
        self._as_it_was: _AsItWas | None = None
        self._spoiled = ""  # as far as known before the task's end is reported

    def live(self, caught: frozenset[int]) -> None:
        task_side.begin(self._ends.stack, caught)
        while True:
            word, descriptors, _, _ = socket.recv_fds(self._orders, len(slot_keeper.ORDER), 4)
            if not word:
                return
            *ends, order = descriptors
            self._redirect(*ends)
            pipes.close(*ends)
            content = slot_keeper.content_of(order)
            # Each order's peak is its own.
            process_tree.forget_peak()
            run = self._initialize if word == slot_keeper.BEGIN else self._run
            if not run(content):
                return
            channel.current = None
            self._redirect(self._nothing, self._nothing, self._nothing)
            self._say()

    def _redirect(self, *to: int) -> None:
        for descriptor, ours in zip(to, (self._ends.results, self._ends.stack, self._ends.notice), strict=True):
            os.dup2(descriptor, ours, inheritable=False)

    def _initialize(self, _: bytes) -> bool:
        initializer = self._warm.initializer or (lambda: None)
        if not task_side.run_one(
            lambda: lambda _: _without_value(initializer), self._ends, self._owner, _keep_what_is_there
        ):
            return False
        # SIGTERM must stop a task, whatever handler the initializer has installed.
        state.take_stops()
        self._as_it_was = _AsItWas(self._ends, self._warm.max_growth)
        return True

    def _run(self, content: bytes) -> bool:
        function = functools.partial(self._function, content)
        return task_side.run_one(lambda: function, self._ends, self._owner, self._end_task)

    def _end_task(self) -> None:
        """Wait for what the task left running, and write what it buffered, as at the end of a process."""
        if self._as_it_was is not None:
            self._spoiled = self._as_it_was.wait_for_the_rest()
        if buffers.write_all():  # it closed them: what still refers to them is of no use to the next task
            self._spoiled = self._spoiled or "it left files open that it wrote to"

    def _say(self) -> None:
        """Check what the task left behind. Its end has been reported by then, so its message is deleted meanwhile."""
        spoiled = self._spoiled
        if self._as_it_was is not None:
            spoiled = spoiled or self._as_it_was.snapshot.spoiled()
        said = Said(
            spoiled[:_MOST_REASON],
            process_tree.cpu_seconds_of_self(),
            process_tree.peak_of_self(),
            _has_children(),
        )
        self._said.send(json.dumps(said).encode())


class _AsItWas:
    """The state of the process after its initializer: what is older than its tasks."""

    def __init__(self, ours: Collection[int], max_growth: int | None) -> None:
        self.snapshot = Snapshot(ours, max_growth)
        self._children = set(multiprocessing.process.active_children())
        self._finalizers = [key for key in _finalizers() if key[0] is not None]
        self._folder = _configuration().get("tempdir")

    def wait_for_the_rest(self) -> str:
        """Wait for the threads and processes that a task started, unless daemonic, as Python does when a process ends.

        Returns what makes the process unfit for another task, for people: a pool whose threads were ended takes no
        more work.
        """
        threads = new_threads(self.snapshot.threads)
        spoiled = "it left the threads of a ThreadPoolExecutor" if threads and _send_pools_home(threads) else ""
        for thread in threads:
            if not thread.daemon:
                thread.join()
        finalizers = _finalizers()
        ours = {key: finalizers.pop(key) for key in self._finalizers if key in finalizers}
        if finalizers or multiprocessing.process._children:  # type: ignore[attr-defined]
            task_side.end_multiprocessing(self._children, least=-sys.maxsize)
        finalizers.update(ours)
        if _configuration().get("tempdir") != self._folder:
            _configuration()["tempdir"] = self._folder  # the task's has been removed
        return spoiled


def _finalizers() -> dict[Any, Any]:
    return getattr(sys.modules.get("multiprocessing.util"), "_finalizer_registry", {})


def _configuration() -> dict[str, Any]:
    return multiprocessing.process.current_process()._config  # type: ignore[attr-defined, no-any-return]


def _send_pools_home(threads: list[threading.Thread]) -> bool:
    """Have threads of ThreadPoolExecutors finish their work and end, as when a process ends. Whether there were any."""
    pools = sys.modules.get("concurrent.futures.thread")
    queues = {thread: queue for thread, queue in dict(getattr(pools, "_threads_queues", {})).items()}
    theirs = [thread for thread in threads if thread in queues]
    if pools is None or not theirs:
        return False
    pools._shutdown = True  # type: ignore[attr-defined]
    try:
        for thread in theirs:
            queues[thread].put(None)
        for thread in theirs:
            thread.join()
    finally:
        pools._shutdown = False  # type: ignore[attr-defined]
    return True


def _keep_what_is_there() -> None:
    """At the end of the initializer: keep the collector off what it loaded, and leave open what it opened."""
    buffers.note_writers()
    gc.collect()
    gc.freeze()
    buffers.write_all()


def _without_value(initializer: Callable[[], Any]) -> None:
    initializer()


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
