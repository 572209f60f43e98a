"""A queue in memory lives in one process. Elsewhere it would be a copy, and what is sent to that would be lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sqstaskmaster._isolation import channel
from sqstaskmaster.errors import UnsupportedContext

_REMEDY = (
    "use it in the worker or in the test itself; if a task uses a queue itself, give it one of a real server "
    "(moto_server, with AWS_ENDPOINT_URL_SQS in the environment)"
)


class AtHome:
    """A queue in memory, which all objects with the same URL share within a process, copies included."""

    url: str
    _is_copy = False

    def _require_home(self) -> None:
        """Raise UnsupportedContext in a process that was made for a task, or if another process pickled this object.

        Call before taking any lock: an inherited one may be held by a thread that does not exist here. In a process
        that other code, such as a test runner, has forked, the queue works: that code knows that it is a copy.
        """
        if self._is_copy:
            raise UnsupportedContext(f"{self!r} came here from another process, and is an empty copy: {_REMEDY}")
        require_no_task(repr(self))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _arrived, (type(self), self.url, os.getpid())


def require_no_task(what: str) -> None:
    """Raise UnsupportedContext in a process that was made for a task."""
    if channel.current is not None:
        raise UnsupportedContext(f"{what} is a copy in the process of a task, which ends with it: {_REMEDY}")


def _arrived(kind: Callable[[str], AtHome], url: str, home: int) -> AtHome:
    queue = kind(url)
    queue._is_copy = os.getpid() != home
    return queue
