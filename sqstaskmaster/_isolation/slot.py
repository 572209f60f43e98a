"""A slot as the worker has it: starts one task after the other, each by one message that never waits."""

from __future__ import annotations

import contextlib
import os
import socket

from sqstaskmaster._isolation import pipes
from sqstaskmaster._isolation.task import TaskProcess


class Slot:
    """One slot. Made by `Template.open_slot`.

    :param orders: the worker's end of the slot's socket.
    :param keeper: the pid of its keeper.
    :param end: a descriptor that is readable once the keeper is gone, where there is one.
    """

    def __init__(self, orders: socket.socket, keeper: int, end: int | None) -> None:
        self.keeper = keeper
        self._orders = orders
        self._orders.setblocking(False)
        self._end = end

    def fileno(self) -> int:
        """Readable once the keeper is gone."""
        return self._orders.fileno()

    def is_alive(self) -> bool:
        """Whether its keeper is there."""
        try:
            return bool(self._orders.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def start(self, order: bytes, *, name: str, term_grace: float) -> TaskProcess:
        """Have the next task run, with this order. Never waits: the order is a file, and the pipes are the task's own.

        :param name: what the task is called in errors.
        :param term_grace: seconds between SIGTERM and SIGKILL.
        :raises OSError: where the keeper is gone, or there are no more descriptors to be had; nothing runs then.
        """
        file = _file_of(order)
        try:
            ours, others = pipes.open_pipes()
            try:
                socket.send_fds(self._orders, [b"!"], [file, *others])
                end = None if self._end is None else os.dup(self._end)
            except OSError:
                pipes.close(*ours)
                raise
            finally:
                pipes.close(*others)
        finally:
            os.close(file)
        return TaskProcess(name, term_grace, ours, self.keeper, end)

    def close(self) -> None:
        """Have the keeper end, and with it whatever its task is doing."""
        self._orders.close()
        if self._end is not None:
            with contextlib.suppress(OSError):
                os.close(self._end)
            self._end = None


def _file_of(content: bytes) -> int:
    """A file in memory with that content."""
    file = os.memfd_create("order", os.MFD_CLOEXEC)
    unwritten = memoryview(content)
    while unwritten:
        unwritten = unwritten[os.write(file, unwritten) :]
    return file
