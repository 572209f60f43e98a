"""A claim belongs to the process that holds it. A forked child that leaves the block must end there: it would settle
its parent's message, and go on to consume its parent's queue.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

from sqstaskmaster.errors import TaskQuit


def leave_if_forked(owner: int, exception: object = None) -> None:
    """Return in the process `owner`; end any other, as Python would end with `exception`."""
    if os.getpid() != owner:
        _end(exception)


@contextlib.contextmanager
def only_in_this_process() -> Iterator[None]:
    """A block that no process forked inside it leaves."""
    owner = os.getpid()
    try:
        yield
    except BaseException as error:
        leave_if_forked(owner, error)
        raise
    leave_if_forked(owner)


def _end(exception: object) -> NoReturn:
    """End this process without running anything of the parent's (atexit functions, `finally` blocks, threads)."""
    code = 1
    try:
        if isinstance(exception, TaskQuit):
            exception = exception.__cause__
        if exception is None:
            code = 0
        elif isinstance(exception, SystemExit):
            code = _exit_code(exception.code)
        elif isinstance(exception, BaseException):
            sys.excepthook(type(exception), exception, exception.__traceback__)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
    finally:
        os._exit(code)


def _exit_code(code: object) -> int:
    """As the interpreter interprets the argument of `sys.exit`."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1
