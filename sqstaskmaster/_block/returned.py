"""Checks what `run` returned: a coroutine or generator has done nothing yet, so its message must not be deleted."""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any

from sqstaskmaster.errors import NothingHasRun

# Like `inspect.isawaitable` and its siblings, in one check, since it is made after every task.
_YET_TO_RUN = (Coroutine, Generator, AsyncGenerator)


def check_has_run(value: Any) -> Any:
    """What `run` returned, unless that still has to be run.

    :raises NothingHasRun: for a coroutine or a generator.
    """
    if inspect.isawaitable(value) or isinstance(value, _YET_TO_RUN):
        _close(value)
        raise _nothing_has_run(value)
    return value


class WatchedRun:
    """Stands in for a handler's `run` in its block, where the user's own code calls it, and watches what it returns.

    A coroutine or a generator may be awaited or iterated in the block, and is then a task like any other. A `run` set
    on the handler instance itself is left alone.
    """

    __slots__ = ("_handler", "_names", "_returned")

    def __init__(self, handler: Any) -> None:
        self._names = vars(handler)
        self._returned: list[Any] = []
        self._handler = handler
        if isinstance(self._names.get("run", self), WatchedRun):  # absent, or left over from a block never left
            self._names["run"] = self

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        value = self._own()(*arguments, **named)
        if value is not None and isinstance(value, _YET_TO_RUN):  # abstract classes are slow to say no
            self._returned.append(value)
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own(), name)  # a test may ask a mock in its place how it was called

    def end(self) -> NothingHasRun | None:
        """The block is left. Returns the error if `run` returned something that was never begun."""
        if self._names.get("run") is self:
            del self._names["run"]
        unrun = [value for value in self._returned if _is_created(value)]
        self._returned.clear()
        for value in unrun:
            _close(value)
        return _nothing_has_run(unrun[0]) if unrun else None

    def _own(self) -> Any:
        """The handler's own `run`, looked up when used."""
        if self._names.get("run") is not self:
            return self._handler.run
        del self._names["run"]
        try:
            return self._handler.run
        finally:
            self._names["run"] = self


def _is_created(value: Any) -> bool:
    if inspect.iscoroutine(value):
        return inspect.getcoroutinestate(value) == inspect.CORO_CREATED
    if inspect.isgenerator(value):
        return inspect.getgeneratorstate(value) == inspect.GEN_CREATED
    if inspect.isasyncgen(value):
        if sys.version_info >= (3, 12):
            return inspect.getasyncgenstate(value) == inspect.AGEN_CREATED
        # If never begun, it stands before its first instruction or, in 3.11, at the one that made it.
        frame = value.ag_frame
        return frame is not None and (frame.f_lasti < 0 or frame.f_code.co_code[frame.f_lasti] == _MADE)
    return False


_MADE = dis.opmap.get("RETURN_GENERATOR")


def _close(value: Any) -> None:
    if inspect.iscoroutine(value):
        value.close()  # or Python would warn of it too


def _nothing_has_run(value: Any) -> NothingHasRun:
    return NothingHasRun(
        f"run() returned a {type(value).__name__} and has done nothing yet: call asyncio.run(...) in it, or go "
        "through the generator"
    )
