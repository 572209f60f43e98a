"""Keeps the signal handlers that this package installs in a process out of the children that it forks.

Code that forks may send SIGTERM at once, as multiprocessing's pools do, and only once. A handler that raises would lose
it there: Python swallows what an os.register_at_fork hook raises in the child. So a signal with a handler of ours is
blocked over each fork, and the child removes the handler before it unblocks the signal. A handler that other code has
installed in the meantime stays, and its signal is not blocked.
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

# By signal: our handler, and what a child gets in its place.
_handlers: dict[int, tuple[Any, Any]] = {}

# What else a child undoes.
_undoing: list[Callable[[], Any]] = []

# The registration in force: a process of ours registers anew, so that its hooks come before its parent's.
_registration: object = None

# A signal that came during a fork is sent again after this long: a fork's last steps take microseconds.
_LATER_SECONDS = 0.01


class _Mask(threading.local):
    """The mask that the thread had before it began to fork; None if it was not changed."""

    before: set[Any] | None = None


_mask = _Mask()


def keep_handler(number: int, handler: Any, instead: Any) -> None:
    """This package has installed `handler`: in a child, if it is still installed, `instead` replaces it."""
    if callable(handler):
        _register()
        _handlers[number] = handler, instead


def forget_handler(number: int) -> None:
    _handlers.pop(number, None)


def undo_in_child(undo: Callable[[], Any]) -> None:
    """Have each child that this process forks call `undo`, once. What it raises is ignored."""
    _register()
    _undoing.append(undo)


def forget_all() -> None:
    """Forget everything, in a new process of this package's own, which sets up what it needs itself."""
    global _registration
    _registration = None
    _handlers.clear()
    _undoing.clear()


def send_again(number: int) -> None:
    """Send the signal to this thread again, once it has gone on."""
    _thread.start_new_thread(_send_later, (threading.get_ident(), number))


def _send_later(thread: int, number: int) -> None:
    # From 3.12 on os.fork warns of other threads after its hooks have run, and swallows what is raised there too.
    time.sleep(_LATER_SECONDS)
    signal.pthread_kill(thread, number)


def _register() -> None:
    global _registration
    if _registration is None and hasattr(os, "register_at_fork"):
        _registration = object()
        before, in_parent, in_child = (_counting(hook, _registration) for hook in (_before, _in_parent, _in_child))
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def _counting(hook: Callable[[], None], registration: object) -> Callable[[], None]:
    """The hook, active only while that registration is in force."""

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


#: The code of our fork hooks: Python swallows what is raised in them.
HOOKS = frozenset(hook.__code__ for hook in (_before, _in_parent, _in_child, _counting(_before, None)))
