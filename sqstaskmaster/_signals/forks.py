"""What this package has set for a process stays out of those that are forked from it.

Whoever forks may send SIGTERM at once, as multiprocessing's pools do, and only once. A handler that raises loses it
there: in the child Python swallows what a function of os.register_at_fork raises. So a signal with a handler of ours is
blocked over each fork, and the child puts the handler away before it unblocks the signal. A handler that somebody else
has installed in the meantime stays, and its signal is not blocked.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# The handler that is ours, and what a child has in its place, by signal.
_handlers: dict[int, tuple[Any, Any]] = {}

# What else a child does.
_undoing: list[Callable[[], Any]] = []

# Which registration counts: a process of ours registers anew, to come before what its parent has registered.
_registration: object = None

# A signal that came while this process forked comes once more after this: a fork's last steps take microseconds.
_LATER_SECONDS = 0.01


class _Mask(threading.local):
    """The mask that the thread had before it began to fork; None where that was not touched."""

    before: set[Any] | None = None


_mask = _Mask()


def keep_handler(number: int, handler: Any, instead: Any) -> None:
    """`handler` has been installed by this package: a child has `instead`, where it is still there."""
    if callable(handler):
        _register()
        _handlers[number] = handler, instead


def forget_handler(number: int) -> None:
    _handlers.pop(number, None)


def undo_in_child(undo: Callable[[], Any]) -> None:
    """Have each child that this process forks call `undo`, once. What it raises is of no interest."""
    _register()
    _undoing.append(undo)


def forget_all() -> None:
    """In a new process of this package's own, which sets for itself what it needs."""
    global _registration
    _registration = None
    _handlers.clear()
    _undoing.clear()


def send_again(number: int) -> None:
    """Have the signal come once more, when this thread has gone on."""
    _thread.start_new_thread(_send_later, (threading.get_ident(), number))


def _send_later(thread: int, number: int) -> None:
    # From 3.12 on os.fork warns of other threads when its functions are through, and swallows what is raised there too.
    time.sleep(_LATER_SECONDS)
    signal.pthread_kill(thread, number)


def _register() -> None:
    global _registration
    if _registration is None and hasattr(os, "register_at_fork"):
        _registration = object()
        before, in_parent, in_child = (_counting(hook, _registration) for hook in (_before, _in_parent, _in_child))
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def _counting(hook: Callable[[], None], registration: object) -> Callable[[], None]:
    """The hook, for as long as that registration is the one that counts."""

    def run() -> None:
        if registration is _registration:
            hook()

    return run


def _ours() -> Iterator[tuple[int, Any]]:
    for number, (handler, instead) in list(_handlers.items()):
        if signal.getsignal(number) == handler:
            yield number, instead


def _before() -> None:
    numbers = [number for number, _ in _ours()]
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if numbers else None


def _in_parent() -> None:
    _unblock()


def _in_child() -> None:
    for number, instead in _ours():
        with contextlib.suppress(ValueError):  # not the main interpreter
            signal.signal(number, signal.SIG_DFL if instead is None else instead)
    for undo in _undoing:
        with contextlib.suppress(Exception):
            undo()
    forget_all()
    _unblock()


def _unblock() -> None:
    before, _mask.before = _mask.before, None
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


#: What is raised in one of these is swallowed.
HOOKS = frozenset(hook.__code__ for hook in (_before, _in_parent, _in_child, _counting(_before, None)))
