"""A slot's process that stays, as a fresh interpreter: for code that does not survive a fork, or where none does.

    keeper -- forks --> child -- execs --> Python -- multiprocessing's own start --> Beginning -- be_warm --> ...

The interpreter imports the user's modules as the first step of the initializer, so that an error there is reported
with its traceback, and a hang shows where it is.
"""

from __future__ import annotations

import gc
import multiprocessing.process
import os
import pickle
import socket
import sys
from multiprocessing import spawn
from typing import Any, NamedTuple, NoReturn

from sqstaskmaster._isolation import buffers, pipes, warm
from sqstaskmaster._isolation.channel import Channel
from sqstaskmaster._isolation.child import pickled


class Carried(NamedTuple):
    """What the new process takes over from the worker's.

    `preparation`: multiprocessing's, with the main module. `initializer`: pickled.
    """

    preparation: dict[str, Any]
    initializer: bytes


def carried(initializer: Any) -> Carried:
    """:raises TaskNotPicklable: if the initializer cannot be sent.
    :raises RuntimeError: in a spawned interpreter that is still importing the main module.
    """
    preparation = spawn.get_preparation_data("MainProcess")
    preparation["authkey"] = bytes(preparation["authkey"])  # an AuthenticationString refuses to be pickled
    return Carried(preparation, pickled(initializer, "The initializer", "spawn"))


def become(orders: int, said: int, nothing: int, settings: warm.Warm, carries: Carried) -> NoReturn:
    """Turn this process, which has let go of what it inherited, into a fresh interpreter.

    Only these descriptors and the standard ones stay open there.
    """
    beginning = Beginning(orders, said, nothing, settings._replace(initializer=None), carries)
    # Needed to find this package, which may not be on the default path.
    file = pipes.file_with(pickle.dumps({"sys_path": sys.path}) + pickle.dumps(beginning))
    os.lseek(file, 0, os.SEEK_SET)
    stay = (orders, said, nothing, file)
    for descriptor in stay:
        os.set_inheritable(descriptor, True)
    pipes.close_all_but(*stay)
    os.execv(spawn.get_executable(), spawn.get_command_line(pipe_handle=file))


class Beginning:
    """Unpickled in the new interpreter by multiprocessing, which then calls `_bootstrap`."""

    def __init__(self, orders: int, said: int, nothing: int, settings: warm.Warm, carries: Carried) -> None:
        self._descriptors = orders, said, nothing
        self._settings = settings
        self._carried = carries

    def _bootstrap(self, sentinel: int) -> NoReturn:
        os.close(sentinel)
        for descriptor in self._descriptors:
            os.set_inheritable(descriptor, False)
        orders, said, nothing = self._descriptors
        sockets = socket.socket(fileno=orders), socket.socket(fileno=said)
        settings = self._settings._replace(initializer=self._initialize)
        warm.be_warm(*sockets, run, settings, frozenset(), nothing)

    def _initialize(self) -> None:
        process: Any = multiprocessing.process.current_process()
        # A main module that runs its worker when it is imported is refused with a clear error.
        process._inheriting = True
        try:
            spawn.prepare(self._carried.preparation)
            initializer = pickle.loads(self._carried.initializer)
        finally:
            del process._inheriting
        # The main module has been imported: what it opened and set up belongs to no task.
        buffers.before_fork()
        buffers.carry_records()
        gc.freeze()
        if initializer is not None:
            initializer()


def run(order: bytes, own: Channel) -> Any:
    """Run a task there: the order is its function, pickled."""
    return pickle.loads(order)(own)
