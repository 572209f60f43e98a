"""What the workers of this machine run, told to whoever asks: `sqstaskmaster ps`.

    ps --- connects, sends what it wants ---> a thread of the worker's: facts ---> one JSON object, and the end

Each worker has a socket, named by its pid, in the folder `sqstaskmaster-UID` among the temporary files, which nobody
but that user (and root) can enter: found again without configuration. Nothing that is asked waits for the worker's
loop, but for stacks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sqstaskmaster._isolation import pipes
from sqstaskmaster._signals import state

# An answer takes milliseconds; with stacks, up to a second. Whoever does not answer in this time is stopped or frozen.
_ANSWER_SECONDS = 3.0

# A descriptor that is lacking may be there a moment later.
_AGAIN_SECONDS = 1.0

_NAME = "sqstaskmaster-"

THREAD = "sqstaskmaster-ps"

logger = logging.getLogger("sqstaskmaster.worker")


# Gives what is told, plain data; with True, with the stacks of tasks.
AskFacts = Callable[[bool], "dict[str, Any]"]


class Status:
    """The socket of one worker. One that cannot be had is a warning: the worker works on.

    :param facts: called in a thread.
    """

    def __init__(self, facts: AskFacts) -> None:
        self._facts = facts
        self._path: Path | None = None
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Begin to answer."""
        try:
            self._socket, self._path = _listening()
            pipes.keep_from_children(self._socket.fileno())
        except OSError as error:
            logger.warning("sqstaskmaster ps will not see this worker: %s", error, extra={"action": "status_failed"})
            return
        with state.starting_thread():
            threading.Thread(target=self._serve, args=(self._socket,), name=THREAD, daemon=True).start()

    def close(self) -> None:
        """Take the socket away, and the folder where it was the last."""
        listening, self._socket = self._socket, None
        if listening is None or self._path is None:
            return
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)  # wakes the thread
        pipes.close(listening.detach())
        with contextlib.suppress(OSError):
            self._path.unlink()
            self._path.parent.rmdir()

    def _serve(self, listening: socket.socket) -> None:
        state.block_all()
        while self._socket is not None:
            try:
                connection, _ = listening.accept()
            except OSError:
                if self._socket is not None:
                    time.sleep(_AGAIN_SECONDS)
                continue
            with connection:
                try:
                    connection.settimeout(_ANSWER_SECONDS)
                    answer = self._facts(connection.recv(64) == _STACKS)
                    connection.sendall(json.dumps(answer, default=repr, skipkeys=True).encode())
                except OSError:
                    pass  # whoever asked has gone
                except Exception:
                    logger.exception("A question of ps was not answered", extra={"action": "status_failed"})


_STACKS, _NO_STACKS = b"stacks", b"tasks"


def _listening() -> tuple[socket.socket, Path]:
    folder = _folder(os.geteuid())
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        listening = socket.socket(socket.AF_UNIX)
        try:
            _check(folder, os.geteuid())
            # Not before the check: whoever made the folder would say what is connected to, and removed.
            for _ in _left_behind(folder):
                pass
            # Containers that share the folder may share pids.
            path = folder / f"{os.getpid()}-{time.time_ns():x}.sock"
            listening.bind(str(path))
            listening.listen()
            return listening, path
        except FileNotFoundError:
            listening.close()  # another worker has ended in this moment, and taken the folder with it
        except BaseException:
            listening.close()
            raise


def _folder(uid: int) -> Path:
    return Path(tempfile.gettempdir(), f"{_NAME}{uid}")


def _check(folder: Path, uid: int) -> None:
    """:raises OSError: where others could have made it, or can enter it."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} is no folder that only user {uid} can enter: remove it")


# -- asking -----------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a worker says; `said` is None where it does not answer."""

    pid: int
    uid: int
    said: dict[str, Any] | None


def ask(stacks: bool = False) -> list[Answer]:
    """What this user's workers on this machine say; as root, everybody's."""
    found = []
    folders = sorted(_folder(0).parent.glob(f"{_NAME}*")) if os.geteuid() == 0 else [_folder(os.geteuid())]
    for folder in folders:
        uid = folder.name.removeprefix(_NAME)
        try:
            _check(folder, int(uid))
        except (OSError, ValueError):
            continue  # none, or none of a worker's
        for pid, connection in _left_behind(folder):
            with connection:
                found.append(Answer(pid, int(uid), _said(connection, stacks)))
    return found


def _left_behind(folder: Path) -> Iterator[tuple[int, socket.socket]]:
    """The pid and a connection of each worker there; of this user's, the sockets of those that are gone are removed."""
    for path in sorted(folder.glob("*.sock")):
        pid = path.stem.partition("-")[0]
        if not pid.isdecimal():
            continue  # no worker's
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            try:
                connection.connect(str(path))
            except ConnectionRefusedError:
                # In another user's folder root could be led, by a link put there after the check, to remove anything.
                if folder == _folder(os.geteuid()):
                    with contextlib.suppress(OSError):
                        path.unlink()
            except OSError:
                continue
            else:
                yield int(pid), connection


def _said(connection: socket.socket, stacks: bool) -> dict[str, Any] | None:
    try:
        connection.sendall(_STACKS if stacks else _NO_STACKS)
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        found: dict[str, Any] = json.loads(said)
    except (OSError, ValueError):
        return None
    return found
