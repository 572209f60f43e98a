"""The worker's end of a slot, which starts tasks in it, one at a time. Nothing here blocks."""

from __future__ import annotations

import os
import socket

from sqstaskmaster._isolation import pipes
from sqstaskmaster._isolation.slot_keeper import BEGIN, LAST, ORDER
from sqstaskmaster._isolation.task import TaskProcess


class SlotLost(RuntimeError):
    """A slot's keeper, or the template that forks keepers, has ended: open another slot, or start another template."""


class Slot:
    """One slot, as `Template.open_slot` returns it.

    :param connection: the worker's end of the keeper's socket.
    :param keeper: the keeper's pid.
    :param descriptor: the keeper's pidfd: readable once the keeper has ended. This object now owns it and the socket.
    """

    def __init__(self, connection: socket.socket, keeper: int, descriptor: int) -> None:
        self.keeper = keeper
        self.descriptor = descriptor
        self._connection = connection
        connection.setblocking(False)
        pipes.keep_from_children(connection.fileno(), descriptor)

    @property
    def alive(self) -> bool:
        """Whether the keeper is running; False after `close`."""
        return self.descriptor >= 0 and not pipes.is_readable(self.descriptor)

    def begin(self, name: str, term_grace: float) -> TaskProcess:
        """Have the slot make a process that stays and runs the initializer, which ends as a task does.

        :raises SlotLost, OSError: as `start`.
        """
        return self._start(BEGIN, b"", name, term_grace)

    def start(self, order: bytes, *, name: str, term_grace: float = 5.0, last: bool = False) -> TaskProcess:
        """Have the slot run its function with the order: at once, if the task before is gone.

        :param name: what the task is called in errors.
        :param term_grace: seconds between SIGTERM and SIGKILL.
        :param last: whether its process is to end afterwards.
        :raises SlotLost: if the keeper is gone. Nothing was started.
        :raises OSError: if this process has no descriptor left. Nothing was started, and no descriptor is open.
        """
        return self._start(LAST if last else ORDER, order, name, term_grace)

    def fileno(self) -> int:
        """A descriptor that is readable once a process that stays has ended between two tasks."""
        return self._connection.fileno()

    def heard(self) -> str:
        """Why that process has ended; "" if it has not."""
        try:
            return self._connection.recv(1 << 12).decode(errors="replace")
        except OSError:
            return ""

    def _start(self, word: bytes, order: bytes, name: str, term_grace: float) -> TaskProcess:
        if not self.alive:
            raise SlotLost(f"The keeper of the slot (pid {self.keeper}) has ended: open another slot")
        opened: list[int] = []
        try:
            ours, others = pipes.open_pipes()
            opened += [*ours, *others]
            file = pipes.file_with(order)
            opened.append(file)
            pidfd = os.dup(self.descriptor)
            opened.append(pidfd)
            socket.send_fds(self._connection, [word], [*others, file])
        except (BrokenPipeError, ConnectionResetError) as error:
            pipes.close(*opened)
            raise SlotLost(f"The keeper of the slot (pid {self.keeper}) has ended: open another slot") from error
        except BaseException:
            pipes.close(*opened)
            raise
        pipes.close(*others, file)
        return TaskProcess(name, term_grace, ours, self.keeper, pidfd, waiting=True)

    def close(self) -> None:
        """End the slot: the keeper kills what it runs and ends. Does not wait."""
        if self.descriptor >= 0:
            pipes.hang_up(self._connection)
            pipes.close(self.descriptor)
            self.descriptor = -1
