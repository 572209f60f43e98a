"""The template: the process that the keepers of slots are forked from, forked once from a worker that is still clean.

    worker (threads, AWS clients, claims)
      +-- template: has imported what the worker has, has no thread, no open connection, runs nothing
            +-- keeper of slot 0 -- spare, or task
            +-- keeper of slot 1 -- ...

So whatever the worker does later, a keeper that died is replaced by one that is as good as the first. It ends with the
worker, and with its socket.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
from collections.abc import Mapping
from typing import NoReturn

from sqstaskmaster._isolation import child, process_tree, slot_keeper
from sqstaskmaster._isolation.slot import Slot
from sqstaskmaster._signals import state

# A fork copies page tables: 10 to 20 ms for each gigabyte that the worker holds.
_ANSWER_SECONDS = 10.0

_LONGEST_REQUEST = 1 << 16


class Template:
    """The worker's side of it.

    :param function: called in each task's process with its order (bytes) and its channel.
    """

    def __init__(self, function: slot_keeper.Function) -> None:
        self._function = function
        self._pid: int | None = None
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Fork it. To be called in the main thread, before there are other threads.

        :raises OSError: where the system has no process left.
        """
        process_tree.load()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child.flush()
        try:
            with theirs, state.held() as caught:
                self._pid = child.fork()
                if self._pid == 0:
                    try:
                        ours.close()
                        _be_template(theirs, self._function, caught)
                    finally:
                        os._exit(1)
        except BaseException:
            ours.close()
            raise
        ours.settimeout(_ANSWER_SECONDS)
        self._socket = ours

    def fileno(self) -> int:
        """Readable, outside of `open_slot`, once the template is gone."""
        return -1 if self._socket is None else self._socket.fileno()

    def open_slot(self, environment: Mapping[str, str]) -> Slot:
        """A new slot, whose tasks have these variables in their environment.

        :raises OSError: where the system has no process left, or the template is gone.
        """
        if self._socket is None:
            raise OSError("The template has not been started")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                socket.send_fds(self._socket, [json.dumps(dict(environment)).encode()], [theirs.fileno()])
            content, descriptors, _, _ = socket.recv_fds(self._socket, _LONGEST_REQUEST, 1)
            if not content:
                raise OSError("The process that tasks are forked from is gone")
            answer = json.loads(content)
            if "error" in answer:
                raise OSError(answer["error"])
            return Slot(ours, answer["keeper"], descriptors[0] if descriptors else None)
        except BaseException:
            ours.close()
            raise

    def close(self) -> None:
        """Have it end, and reap it. The slots end when they are closed."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._pid is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = None


def _be_template(requests: socket.socket, function: slot_keeper.Function, caught: frozenset[int]) -> NoReturn:
    """The template's whole life."""
    worker = os.getppid()
    process_tree.die_with_parent()
    if os.getppid() != worker:
        os._exit(1)
    # Unlike the keepers' and the tasks', its session is the worker's: it holds nothing that has to outlast a Ctrl-C.
    state.keep_exit_status()
    gc.collect()
    gc.disable()
    gc.freeze()
    nothing = os.open(os.devnull, os.O_RDONLY)
    end = process_tree.pidfd(worker)
    while True:
        content, descriptors, _, _ = socket.recv_fds(requests, _LONGEST_REQUEST, 1)
        if not content:
            os._exit(0)
        _reap()
        orders = socket.socket(fileno=descriptors[0])
        pid, error = 0, ""
        try:
            pid = os.fork()
        except OSError as failure:
            error = f"No process for a slot: {failure}"
        else:
            if pid == 0:
                try:
                    requests.close()
                    slot_keeper.keep_slot(orders, function, json.loads(content), nothing, end, caught)
                finally:
                    os._exit(1)
        orders.close()
        _answer(requests, pid, error)


def _answer(requests: socket.socket, pid: int, error: str) -> None:
    if error:
        requests.send(json.dumps({"error": error}).encode())
        return
    # Opened here, where its pid cannot be another's: nobody else reaps it.
    end = process_tree.pidfd(pid)
    socket.send_fds(requests, [json.dumps({"keeper": pid}).encode()], [] if end is None else [end])
    if end is not None:
        os.close(end)


def _reap() -> None:
    """Reap the keepers that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
