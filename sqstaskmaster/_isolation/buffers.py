"""Writes what a process has buffered while it still can: tasks end with os._exit, which writes nothing.

before a fork     what is buffered here is written, lest each task write it again; open writers are noted
in the task       log records for a QueueListener, whose thread is not there, go to its handlers directly
at its end        C's and Python's streams, logging handlers and the noted writers are flushed; writers that the task
                  opened are closed, so that gzip and zip files are complete

A writer is a file object, or a zip file, over a regular file. Sockets and pipes are left alone.
"""

from __future__ import annotations

import _io
import contextlib
import ctypes
import functools
import gc
import io
import logging
import os
import stat
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqstaskmaster._isolation import process_tree
from sqstaskmaster._logging import get_logger
from sqstaskmaster._signals.bounded import BoundedCall

logger = get_logger(__name__)

# What cannot be written within this time is lost: a pipe's reader may never read it.
_SECONDS = 5.0

# The same before a fork, where claims may be waiting.
_FORK_SECONDS = 0.5

# At most this many of the garbage collector's objects are examined, at some 40 ns each.
_MOST_OBJECTS = 1_000_000


class _Inherited:
    """What was open in the process that forks tasks at the last look: what its imports opened."""

    def __init__(self) -> None:
        self.modules = 0
        self.writers: list[weakref.ref[Any]] = []
        self.listeners: list[Any] = []
        self.fortran: list[str] = []

    def look(self) -> None:
        """Look again if modules have been imported since the last look, which takes milliseconds."""
        if self.modules == len(sys.modules):
            return
        self.modules = len(sys.modules)
        self.fortran = process_tree.loaded("libgfortran")
        listener = getattr(sys.modules.get("logging.handlers"), "QueueListener", None)
        found = _instances(_writer_kinds() if listener is None else (*_writer_kinds(), listener), in_modules=True)
        self.listeners = [one for one in found if listener is not None and isinstance(one, listener)]
        self.writers = []
        for one in found:
            with contextlib.suppress(TypeError):  # its class allows no weak references
                self.writers += [weakref.ref(one)] if one not in self.listeners else []


_inherited = _Inherited()


def before_fork() -> None:
    """Call in a process that is about to fork a task, or a process that will fork tasks."""
    _inherited.look()
    _bounded(lambda doing: _flush(doing, None), _FORK_SECONDS)


def note_writers() -> None:
    """In a process that stays: what is open now belongs to no task, and stays open when each ends."""
    known, _inherited.modules = _inherited.writers, 0
    _inherited.look()
    _inherited.writers += known


def carry_records() -> None:
    """In a task's process: what it logs for a QueueListener goes to the listener's handlers, not into a queue."""
    for handler in _queue_handlers():
        for listener in _inherited.listeners:
            if listener.queue is handler.queue:
                handler.enqueue = listener.handle


def unread_queues() -> list[logging.Handler]:
    """Handlers that put records into a queue in this process's memory that no known QueueListener reads."""
    queues = tuple(
        kind
        for kind in (getattr(sys.modules.get("queue"), name, None) for name in ("Queue", "SimpleQueue"))
        if kind is not None
    )
    read = [listener.queue for listener in _inherited.listeners]
    return [
        handler
        for handler in _queue_handlers()
        if isinstance(handler.queue, queues) and not any(handler.queue is queue for queue in read)
    ]


def write_all() -> bool:
    """At the end of a task. Returns whether it closed writers that the task had left open.

    :raises OSError: if a file cannot be written: its disk is full, say.
    """
    closed: list[Any] = []
    _bounded(lambda doing: _flush(doing, closed), _SECONDS)
    return bool(closed)


def _bounded(function: Callable[[list[Any]], None], seconds: float) -> None:
    doing: list[Any] = []
    call = BoundedCall(lambda: function(doing))
    if not call.wait(seconds):
        # Also in another thread: what hangs may be the very thing that this warning is written to.
        hangs = repr(doing[-1:])
        BoundedCall(lambda: logger.warning(_HANGS, seconds, hangs)).wait(_FORK_SECONDS)
    elif call.error is not None:
        raise call.error


_HANGS = "What this process has buffered could not be written within %s s, and some of it is lost: it hung in %s"


def _flush(doing: list[Any], closed: list[Any] | None) -> None:
    """Flush everything; `doing` shows the progress. If `closed` is given, close and list there what the task opened."""
    closes = closed is not None
    handlers = _handlers()
    for handler in handlers:
        doing.append(handler)
        with contextlib.suppress(Exception):
            handler.flush()
    for stream in (sys.stdout, sys.stderr):
        doing.append(stream)
        with contextlib.suppress(Exception):
            stream.flush()
    failed = None
    of_logs = {id(getattr(handler, "stream", None)) for handler in handlers}
    writers = [one for one in (reference() for reference in _inherited.writers) if one is not None]
    for writer, close in [*_ordered(writers, False), *(_ordered(_instances(_writer_kinds()), True) if closes else ())]:
        if id(writer) in of_logs:
            continue
        doing.append(writer)
        try:
            _write(writer, close)
            if close and closed is not None:
                closed.append(type(writer))
        except OSError as error:
            failed = failed or error
        except Exception:  # a class of the user's
            logger.warning("%.200r could not be written", writer, exc_info=True)
    doing.append("C's streams")
    _flush_c(every=closes)
    if failed is not None:
        raise failed


def _write(writer: Any, close: bool) -> None:
    if close:
        writer.close()
    elif isinstance(writer, io.IOBase):  # a zip file has nothing to flush
        writer.flush()


def _ordered(found: Iterable[Any], close: bool) -> Iterator[tuple[Any, bool]]:
    """The writers that may have something to write; those that write into others come before them."""
    return ((writer, close) for writer in sorted(filter(_is_writer, found), key=_rank))


def _is_writer(found: Any) -> bool:
    """Whether the object may have something buffered for a regular file."""
    try:
        if isinstance(found, io.IOBase):
            if found.closed or isinstance(found, io.FileIO) or not found.writable():
                return False
        elif found.fp is None or found.mode == "r":
            return False
        return stat.S_ISREG(os.fstat((found if isinstance(found, io.IOBase) else found.fp).fileno()).st_mode)
    except Exception:  # in memory only, detached, or a class of the user's
        return False


def _rank(writer: Any) -> int:
    if isinstance(writer, io.TextIOBase):
        return 0
    if not isinstance(writer, io.IOBase):
        return 1  # a zip file
    return 3 if type(writer).__module__ == "_io" else 2


def _writer_kinds() -> tuple[type, ...]:
    zipped = getattr(sys.modules.get("zipfile"), "ZipFile", None)
    return (_io._IOBase,) if zipped is None else (_io._IOBase, zipped)


def _instances(kinds: tuple[type, ...], in_modules: bool = False) -> list[Any]:
    """Objects of these kinds that the collector knows; not those from before gc.freeze, at the start of a task.

    This looks at their types, since an object's `__class__` may run code of its own (proxies, mocks).
    """
    candidates = gc.get_objects()
    if len(candidates) > _MOST_OBJECTS:
        candidates = []
    if in_modules:
        for module in list(sys.modules.values()):
            candidates += list(getattr(module, "__dict__", {}).values())
    found = {id(one): one for one in candidates if issubclass(type(one), kinds)}
    return list(found.values())


def _handlers() -> list[Any]:
    """All logging handlers, newest first, as in logging.shutdown: they may write into older ones."""
    known = (reference() for reference in reversed(getattr(logging, "_handlerList", ())))
    return [handler for handler in known if handler is not None]


def _queue_handlers() -> list[Any]:
    kind = getattr(sys.modules.get("logging.handlers"), "QueueHandler", None)
    return [] if kind is None else [handler for handler in _handlers() if isinstance(handler, kind)]


@functools.cache
def _c() -> Any:
    return ctypes.CDLL(None)


def _flush_c(every: bool) -> None:
    """Flush what C and Fortran have buffered.

    :param every: flush all open streams. Otherwise only standard output: flushing all would wait for any stream that
        another thread is reading.
    """
    with contextlib.suppress(Exception):
        name = "stdout" if process_tree.LINUX else "__stdoutp"
        _c().fflush(None if every else ctypes.c_void_p.in_dll(_c(), name))
    if not every:
        return
    imported = len(sys.modules) != _inherited.modules
    for fortran in process_tree.loaded("libgfortran") if imported else _inherited.fortran:
        with contextlib.suppress(Exception):
            ctypes.CDLL(fortran)._gfortran_flush_i4(None)
