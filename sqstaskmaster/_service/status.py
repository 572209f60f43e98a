"""What the workers of this machine run, told to whoever asks: `sqstaskmaster ps`; and stopped: `sqstaskmaster stop`.

    ps ----- connects, sends what it wants ---> a thread of the worker's: facts ---> one JSON object, and the end
    stop --- connects, sends {"stop": ...} ---> the same thread, then one for this ---> {"stop": whether it runs here},
                                                when the message is settled ---> {"outcome": ..., "line": ...}

Each worker has a socket, named by its pid, in a folder that only its user and root can enter; `places` finds it again
without configuration. No question waits for the worker's loop, except for stacks.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqstaskmaster._claim.stop_order import StopOrder
from sqstaskmaster._isolation import pipes
from sqstaskmaster._logging import get_logger
from sqstaskmaster._service import places
from sqstaskmaster._signals import state

if TYPE_CHECKING:
    from sqstaskmaster._service.stops import Ended

# An answer takes milliseconds; with stacks, up to a second. Whoever does not answer in this time is stopped or frozen.
_ANSWER_SECONDS = 3.0

# A descriptor that is lacking may be there a moment later.
_AGAIN_SECONDS = 1.0

# What is sent to a worker, and what one may answer; a task reports 1 MiB at most, and so long is a stack, or shorter.
MOST_REASON = 500
_MOST_QUESTION = 4096
_MOST_ANSWER = 256 << 20

# Of how many workers of one user the answers are waited for at once.
_AT_ONCE = 200

THREAD = "sqstaskmaster-ps"

logger = get_logger("sqstaskmaster.worker")


# Gives what is told, plain data; with True, with the stacks of tasks.
AskFacts = Callable[[bool], "dict[str, Any]"]

# Stops a task. Gives its end, to be waited for; None where no such task runs.
AskStop = Callable[[StopOrder], "Ended | None"]


class Status:
    """The socket of one worker. One that cannot be had is a warning: the worker works on.

    :param facts: called in a thread.
    :param stop: called in a thread.
    """

    def __init__(self, facts: AskFacts, stop: AskStop) -> None:
        self._facts = facts
        self._stop = stop
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
        while self._socket is not None:
            try:
                connection, _ = listening.accept()
            except OSError:
                if self._socket is not None:
                    time.sleep(_AGAIN_SECONDS)
                continue
            with contextlib.ExitStack() as stack:
                stack.enter_context(connection)
                try:
                    connection.settimeout(_ANSWER_SECONDS)
                    question = connection.recv(_MOST_QUESTION)
                    if question.startswith(b"{"):
                        ended = self._stop(_order(question))
                        connection.sendall(b'{"stop": %s}\n' % (b"false" if ended is None else b"true"))
                        if ended is not None:
                            stack.pop_all()
                            with state.starting_thread():
                                waits = threading.Thread(target=_tell_end, args=(connection, ended), name=THREAD)
                                waits.daemon = True
                                waits.start()
                    else:
                        answer = self._facts(question == _STACKS)
                        connection.sendall(json.dumps(answer, default=repr, skipkeys=True).encode())
                except OSError:
                    pass  # whoever asked has gone
                except Exception:
                    logger.exception("A request of sqstaskmaster ps failed", extra={"action": "status_failed"})


def _order(question: bytes) -> StopOrder:
    said = json.loads(question)
    return StopOrder(str(said["stop"]), bool(said["retry"]), str(said["reason"]))


def _tell_end(connection: socket.socket, ended: Ended) -> None:
    """In a thread of its own: until the message is settled."""
    with connection, contextlib.suppress(OSError):
        said = ended.get()
        if said is not None:
            connection.sendall(json.dumps(said).encode() + b"\n")


_STACKS, _NO_STACKS = b"stacks", b"tasks"


def _listening() -> tuple[socket.socket, Path]:
    folder = places.folder_of(os.geteuid())
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        listening = socket.socket(socket.AF_UNIX)
        try:
            places.check(folder, os.geteuid())
            # Not before the check: whoever made the folder would say what is connected to, and removed.
            for path, _ in _sockets(folder):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(_ANSWER_SECONDS)
                    _connect(connection, folder, path)
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


# -- asking -----------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a worker says; `said` is None where it does not answer, or not as a worker does."""

    pid: int
    uid: int
    path: Path
    said: dict[str, Any] | None


class StopAnswer(NamedTuple):
    """What came of a stop. `runs`: whether the task runs there; None: no word of it. `end`: see `Stops`."""

    runs: bool | None
    end: dict[str, Any] | None = None


def ask(stacks: bool = False) -> list[Answer]:
    """What this user's workers on this machine say; as root, everybody's.

    Those of others are not trusted: of each user's workers the answers are waited for together, and so long at most.
    """
    found: list[Answer] = []
    for folder, uid in places.look().places:
        until = time.monotonic() + _ANSWER_SECONDS
        there = list(_sockets(folder))
        for begin in range(0, len(there), _AT_ONCE):
            found += _ask_at_once(folder, there[begin : begin + _AT_ONCE], uid, stacks, until)
    return found


def stop(answer: Answer, order: StopOrder) -> StopAnswer:
    """Have a task stopped by the worker that has given this answer, and wait until its message is settled."""
    question = {"stop": order.message_id, "retry": order.retry, "reason": order.reason[:MOST_REASON]}
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(_ANSWER_SECONDS)
            if not _connect(connection, answer.path.parent, answer.path):
                return StopAnswer(None)
            connection.sendall(json.dumps(question, ensure_ascii=False).encode(errors="replace"))
            with connection.makefile("rb") as lines:
                runs = json.loads(lines.readline(_MOST_ANSWER))["stop"]
                connection.settimeout(None)  # once it says so, that is waited for, however long its processes take
                end = json.loads(lines.readline(_MOST_ANSWER)) if runs else None
        except KeyError:
            raise NotKnown from None
        except (OSError, ValueError, TypeError):
            return StopAnswer(None)
    return StopAnswer(bool(runs), end if isinstance(end, dict) else None)


class NotKnown(Exception):
    """A worker of a version that knows no stop."""


def _sockets(folder: Path) -> Iterator[tuple[Path, int]]:
    """The sockets of workers there, and the pid of each."""
    for path in sorted(folder.glob("*.sock")):
        pid = path.stem.partition("-")[0]
        if pid.isdecimal() and len(pid) < 20:
            yield path, int(pid)


def _connect(connection: socket.socket, folder: Path, path: Path) -> bool | None:
    """Connect to a process of the user whose folder it is. Of this user's sockets those that nobody has are removed.

    False where nobody is there, None where somebody is who takes no connection.
    """
    try:
        connection.connect(str(path))
        return _is_of(connection, folder.stat().st_uid)
    except (BlockingIOError, TimeoutError):
        return None
    except ConnectionRefusedError:
        # In another user's folder root could be led, by a link put there after the check, to remove anything.
        if folder == places.folder_of(os.geteuid()):
            with contextlib.suppress(OSError):
                path.unlink()
    except OSError:
        pass
    return False


def _is_of(connection: socket.socket, uid: int) -> bool:
    """Whether a process of this user is on the other side, where the system tells: its link may lead anywhere."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == uid)


def _ask_at_once(folder: Path, there: list[tuple[Path, int]], uid: int, stacks: bool, until: float) -> list[Answer]:
    said: dict[Path, bytearray | None] = {}
    with contextlib.ExitStack() as stack:
        events = stack.enter_context(selectors.DefaultSelector())
        for path, _ in there:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.setblocking(False)
            connected = _connect(connection, folder, path)
            if connected is not False:
                said[path] = bytearray() if connected else None
            if connected:
                with contextlib.suppress(OSError):
                    connection.send(_STACKS if stacks else _NO_STACKS)
                    events.register(connection, selectors.EVENT_READ, path)
        while events.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in events.select(left):
                _read(events, key, said)
        for key in events.get_map().values():
            said[key.data] = None  # it has not come to its end
    return [Answer(pid, uid, path, _facts_in(said[path])) for path, pid in there if path in said]


def _read(events: selectors.BaseSelector, key: selectors.SelectorKey, said: dict[Path, bytearray | None]) -> None:
    connection, before = key.fileobj, said[key.data]
    assert isinstance(connection, socket.socket) and before is not None
    try:
        piece = connection.recv(1 << 16)
    except BlockingIOError:
        return
    except OSError:
        piece, said[key.data] = b"", None
    before += piece
    if len(before) > _MOST_ANSWER:
        piece, said[key.data] = b"", None
    if not piece:
        events.unregister(connection)


def _facts_in(said: bytearray | None) -> dict[str, Any] | None:
    """What was said, where it is what a worker says: an object whose `tasks` are objects."""
    try:
        found = json.loads(said or b"")
    except (ValueError, RecursionError):
        return None
    tasks = found.get("tasks") if isinstance(found, dict) else None
    told = isinstance(tasks, list) and all(isinstance(task, dict) for task in tasks)
    return found if told else None
