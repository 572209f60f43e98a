"""How this machine's workers answer `sqstaskmaster ps` (what is running?) and `sqstaskmaster stop`.

    ps ----- connects, sends what it wants ---> a thread of the worker's: facts ---> one JSON object, and the end
    stop --- connects, sends {"stop": ...} ---> the same thread, then one for this ---> {"stop": whether it runs here},
                                                when the message is settled ---> {"outcome": ..., "line": ...}

Each worker has a socket, named by its pid, in a folder that only its user and root can enter; `places` finds it without
configuration. No question waits for the worker's loop, except for stacks.
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

# An answer takes milliseconds; with stacks, up to a second. A worker that takes longer than this is stopped or frozen.
_ANSWER_SECONDS = 3.0

# If descriptors are exhausted, one may be free a moment later.
_AGAIN_SECONDS = 1.0

# Limits for the question to a worker, and for its answer; a task's report is 1 MiB at most, and so is its stack.
MOST_REASON = 500
_MOST_QUESTION = 4096
_MOST_ANSWER = 256 << 20

# How many workers of one user are asked at once.
_AT_ONCE = 200

THREAD = "sqstaskmaster-ps"

logger = get_logger("sqstaskmaster.worker")


# Returns the facts, as plain data; with True, the tasks' stacks too.
AskFacts = Callable[[bool], "dict[str, Any]"]

# Stops a task. Returns its end, to wait for; None if no such task is running.
AskStop = Callable[[StopOrder], "Ended | None"]


class Status:
    """The socket of one worker. If it cannot be opened, the worker logs a warning and works on.

    :param facts: called in a thread.
    :param stop: called in a thread.
    """

    def __init__(self, facts: AskFacts, stop: AskStop) -> None:
        self._facts = facts
        self._stop = stop
        self._path: Path | None = None
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Begin to answer requests."""
        try:
            self._socket, self._path = _listening()
            pipes.keep_from_children(self._socket.fileno())
        except OSError as error:
            logger.warning("sqstaskmaster ps will not see this worker: %s", error, extra={"action": "status_failed"})
            return
        with state.starting_thread():
            threading.Thread(target=self._serve, args=(self._socket,), name=THREAD, daemon=True).start()

    def close(self) -> None:
        """Remove the socket, and the folder if this was the last one."""
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
                    pass  # the client has gone
                except Exception:
                    logger.exception("A request of sqstaskmaster ps failed", extra={"action": "status_failed"})


def _order(question: bytes) -> StopOrder:
    said = json.loads(question)
    return StopOrder(str(said["stop"]), bool(said["retry"]), str(said["reason"]))


def _tell_end(connection: socket.socket, ended: Ended) -> None:
    """Wait until the message is settled, and send the end. In a thread of its own."""
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
            # Not before the check: a stranger who made the folder would decide what we connect to, and remove.
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
            listening.close()  # another worker has just ended, and removed the folder
        except BaseException:
            listening.close()
            raise


# -- asking -----------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """The answer of a worker; `said` is None if it does not answer, or not as a worker does."""

    pid: int
    uid: int
    path: Path
    said: dict[str, Any] | None


class StopAnswer(NamedTuple):
    """The answer to a stop. `runs`: whether the task is running there, None if unknown. `end`: see `Stops`."""

    runs: bool | None
    end: dict[str, Any] | None = None


def ask(stacks: bool = False) -> list[Answer]:
    """The answers of this user's workers on this machine; as root, of everybody's.

    Workers of others are not trusted: each user's workers share one limit on how long they may take to answer.
    """
    found: list[Answer] = []
    for folder, uid in places.look().places:
        until = time.monotonic() + _ANSWER_SECONDS
        there = list(_sockets(folder))
        for begin in range(0, len(there), _AT_ONCE):
            found += _ask_at_once(folder, there[begin : begin + _AT_ONCE], uid, stacks, until)
    return found


def stop(answer: Answer, order: StopOrder) -> StopAnswer:
    """Have the worker that gave this answer stop a task, and wait until the task's message is settled."""
    question = {"stop": order.message_id, "retry": order.retry, "reason": order.reason[:MOST_REASON]}
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(_ANSWER_SECONDS)
            if not _connect(connection, answer.path.parent, answer.path):
                return StopAnswer(None)
            connection.sendall(json.dumps(question, ensure_ascii=False).encode(errors="replace"))
            with connection.makefile("rb") as lines:
                runs = json.loads(lines.readline(_MOST_ANSWER))["stop"]
                connection.settimeout(None)  # once it says yes, wait for the end, however long its processes take
                end = json.loads(lines.readline(_MOST_ANSWER)) if runs else None
        except KeyError:
            raise NotKnown from None
        except (OSError, ValueError, TypeError):
            return StopAnswer(None)
    return StopAnswer(bool(runs), end if isinstance(end, dict) else None)


class NotKnown(Exception):
    """The worker's version does not know `stop`."""


def _sockets(folder: Path) -> Iterator[tuple[Path, int]]:
    """The sockets of the workers in a folder, and the pid of each."""
    for path in sorted(folder.glob("*.sock")):
        pid = path.stem.partition("-")[0]
        if pid.isdecimal() and len(pid) < 20:
            yield path, int(pid)


def _connect(connection: socket.socket, folder: Path, path: Path) -> bool | None:
    """Connect to a process of the user who owns the folder. Removes this user's sockets that no process serves.

    Returns False if no process is there, None if one is but does not accept the connection.
    """
    try:
        connection.connect(str(path))
        return _is_of(connection, folder.stat().st_uid)
    except (BlockingIOError, TimeoutError):
        return None
    except ConnectionRefusedError:
        # In another user's folder, a link put there after the check could make root remove anything.
        if folder == places.folder_of(os.geteuid()):
            with contextlib.suppress(OSError):
                path.unlink()
    except OSError:
        pass
    return False


def _is_of(connection: socket.socket, uid: int) -> bool:
    """Whether a process of this user is on the other side, if the system can tell: its link may lead anywhere."""
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
            said[key.data] = None  # the answer is incomplete
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
    """The answer, if it looks like a worker's: an object whose `tasks` are objects."""
    try:
        found = json.loads(said or b"")
    except (ValueError, RecursionError):
        return None
    tasks = found.get("tasks") if isinstance(found, dict) else None
    told = isinstance(tasks, list) and all(isinstance(task, dict) for task in tasks)
    return found if told else None
