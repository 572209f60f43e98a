"""The template (a fork server): the worker forks it once its modules are imported, and it forks the keepers of slots.

    worker -- forks --> template -- forks --> keeper of a slot -- forks --> task
                            |---------------> keeper of another

It has everything imported, no connection and no thread, and never runs a task. So whatever becomes of the worker or of
a keeper, the next keeper is forked from a process as clean as at the start, and shares its memory. It ends with the
worker.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Mapping
from typing import NoReturn

from sqstaskmaster._isolation import buffers, fresh, pipes, process_tree
from sqstaskmaster._isolation.child import fork, warn_of_what_is_lacking
from sqstaskmaster._isolation.slot import Slot, SlotLost
from sqstaskmaster._isolation.slot_keeper import Kind, OrderFunction, SlotKeeper, keep_slot
from sqstaskmaster._isolation.warm import Warm
from sqstaskmaster._isolation.warm_keeper import WarmKeeper
from sqstaskmaster._logging import get_logger
from sqstaskmaster._signals import bounded, state
from sqstaskmaster._signals.bounded import looks
from sqstaskmaster.errors import UnsupportedContext

logger = get_logger(__name__)

# An environment is a few lines. A message on this kind of socket could be longer still.
_MOST_BYTES = 1 << 16

# The longest wait for its end: a task may have stopped it, or a library's fork hook may hang in it.
_END_SECONDS = 2.0
_LOOK_SECONDS = 0.001

# A thread that has ended stays in the system's count for a moment.
_THREADS_SECONDS = 0.05


class Template:
    """What slots are made from.

    :param function: called in each task's process with the order's bytes and its `channel.Channel`.
    :param warm: how processes that stay are made and limited; None if each task has its own.
    :raises TaskNotPicklable: if processes are spawned, and the initializer cannot be sent.
    """

    def __init__(self, function: OrderFunction, warm: Warm | None = None) -> None:
        self.pid: int | None = None
        self._kind: Kind = functools.partial(SlotKeeper, function)
        if warm is not None:
            carries = fresh.carried(warm.initializer) if warm.spawned else None
            self._kind = functools.partial(WarmKeeper, warm, carries, function)
        self._control: socket.socket | None = None

    def start(self) -> None:
        """Fork it. Call this in the main thread, once what tasks need is imported, and before anything is connected.

        A warning names threads that already run: a task can hang on a lock that they hold.

        :raises UnsupportedContext: without Linux 5.3 or later.
        :raises OSError: if the system has no process left.
        """
        if not process_tree.LINUX:
            raise UnsupportedContext("More than one slot needs Linux")
        pipes.reserve_standard()
        worker = process_tree.pidfd(os.getpid())
        if worker is None:
            raise UnsupportedContext("More than one slot needs Linux 5.3 or later (pidfd_open)")
        _warn_of_threads()
        warn_of_what_is_lacking()
        process_tree.load()
        buffers.before_fork()
        _warn_of_queues()
        control, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with state.held() as caught:
                pid = fork()
                if pid == 0:
                    try:
                        control.close()
                        _be_template(its_end, worker, self._kind, caught)
                    finally:
                        os._exit(1)
        except OSError:
            control.close()
            raise
        finally:
            its_end.close()
            os.close(worker)
        self.pid, self._control = pid, control
        pipes.keep_from_children(control.fileno())

    def open_slot(self, environment: Mapping[str, str], patience: float = 10.0) -> Slot:
        """Have a keeper and its first spare forked. Takes some milliseconds.

        :param environment: what the slot's tasks find in os.environ beside what was inherited. A variable that an
            imported library has already read (OMP_NUM_THREADS, say) has no effect.
        :param patience: the longest wait for the keeper, in seconds. It blocks everything else.
        :raises TypeError: for names and values that are not strings.
        :raises SlotLost: if the template is gone, or has not been started.
        :raises OSError: if the system has no process or no descriptor left.
        """
        for name, value in environment.items():
            if (
                not isinstance(name, str)
                or not isinstance(value, str)
                or not name
                or "=" in name
                or "\0" in name + value
            ):
                raise TypeError(f"A slot's environment must map names to strings, not {name!r} to {value!r}")
        if self._control is None:
            raise SlotLost("The template has not been started")
        connection, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            keeper, pidfd = self._ask_for_keeper(
                self._control, json.dumps(dict(environment)).encode(), its_end, patience
            )
        except BaseException:
            connection.close()
            raise
        finally:
            its_end.close()
        return Slot(connection, keeper, pidfd)

    def close(self) -> None:
        """End the template; open slots stay. Waits for its end, which takes a moment, but not for ever."""
        control, self._control = self._control, None
        if control is not None:
            pipes.hang_up(control)
        if self.pid is not None:
            with contextlib.suppress(ChildProcessError):
                if not any(os.waitpid(self.pid, os.WNOHANG)[0] for _ in looks(_END_SECONDS, _LOOK_SECONDS)):
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
            self.pid = None

    def _ask_for_keeper(
        self, control: socket.socket, environment: bytes, its_end: socket.socket, patience: float
    ) -> tuple[int, int]:
        if len(environment) > _MOST_BYTES:
            raise TypeError(f"A slot's environment has {len(environment):,} bytes, and may have {_MOST_BYTES:,}")
        control.settimeout(patience)
        try:
            socket.send_fds(control, [environment], [its_end.fileno()])
            said, descriptors, _, _ = socket.recv_fds(control, _MOST_BYTES, 1)
        except OSError as error:
            # Also if it does not answer: a late answer must not be taken for the next one.
            pipes.close(control.detach())
            self._control = None
            raise SlotLost(f"The template (pid {self.pid}) has ended: {error}") from error
        if not said:
            raise SlotLost(f"The template (pid {self.pid}) has ended")
        answer = json.loads(said)
        if not descriptors:
            raise OSError(*answer)
        return int(answer), descriptors[0]


def _be_template(control: socket.socket, worker: int, kind: Kind, caught: frozenset[int]) -> NoReturn:
    """The template's whole life. Signals stay blocked, as at the fork: it ends when the worker does."""
    gc.disable()
    gc.freeze()
    pipes.close_own_ends()
    state.ignore_children()  # nobody waits for keepers here: the worker holds their pidfds
    os.setsid()
    events = select.poll()
    events.register(control, select.POLLIN)
    events.register(worker, select.POLLIN)
    while True:
        if worker in dict(events.poll()):
            os._exit(0)
        try:
            said, descriptors, _, _ = socket.recv_fds(control, _MOST_BYTES, 1)
        except OSError:
            os._exit(0)
        if not said:
            os._exit(0)
        orders = socket.socket(fileno=descriptors[0])
        try:
            pid = os.fork()
            if pid == 0:
                control.close()
                keep_slot(orders, worker, json.loads(said), caught, kind)
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            control.send(json.dumps([error.errno, error.strerror]).encode())
        else:
            socket.send_fds(control, [json.dumps(pid).encode()], [pidfd])
            os.close(pidfd)
        finally:
            orders.close()


def _foreign_threads() -> tuple[list[str], int]:
    """Threads that are not this package's: their names, and how many more native code has started."""
    mine = threading.current_thread()
    # A dummy stands for a thread that `threading` did not start, and outlives it.
    others = [t for t in threading.enumerate() if t is not mine and not isinstance(t, threading._DummyThread)]
    # Threads of a worker that ran here before wait for an answer, and hold nothing.
    foreign = [thread for thread in others if thread.ident not in bounded.running()]
    named = [thread.name for thread in foreign if not thread.name.startswith("sqstaskmaster-")]
    known = bounded.running() | {thread.ident for thread in others}
    return named, process_tree.threads() - 1 - len(known)


def _warn_of_threads() -> None:
    """Warn of other threads: a fork copies one thread, and every lock that the others hold."""
    for _ in looks(_THREADS_SECONDS, _LOOK_SECONDS):
        named, native = _foreign_threads()
        if not named and native <= 0:
            return
    if native > 0:
        named.append(f"{native} started by native code")
    if named:
        logger.warning(
            "Importing the worker's module has started threads (%s). Tasks are forked from this process and can "
            "hang on locks that those threads hold, and work for one of them is lost (except records of "
            "logging.handlers.QueueHandler, which tasks write themselves): start them when a task needs them",
            ", ".join(dict.fromkeys(named)),
        )


def _warn_of_queues() -> None:
    for handler in buffers.unread_queues():
        logger.warning(
            "What tasks log to %r will be lost: it puts records into a queue in memory, and no QueueListener for that "
            "queue was there when the worker's module had been imported. Make the listener at import (it may be "
            "started in on_start): tasks then write to its handlers themselves",
            handler,
        )
