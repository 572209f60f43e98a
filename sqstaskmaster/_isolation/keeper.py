"""The keeper of one task: the process between the worker and the task. What runs here runs after the fork.

    worker -- starts --> keeper -- forks --> task -- starts whatever it likes --> ...

The keeper is why nothing of a task can be left behind. It is the parent of the task and, on Linux, of every descendant
whose own parent ends; it does nothing but wait for one of two events, and then kills and reaps what is below it:

- the task ended, however it did;
- its lifeline, a pipe of which only the worker has the other end, came to its end: the worker asked for that by closing
  it, or the worker itself is gone, SIGKILLed perhaps.

Through the lifeline come orders too, a byte each: the number of a signal to be sent to the task. The keeper sends them
since it is the one who reaps the task, and so the only one who cannot hit a process that got the task's pid after it.

What it says to the worker, see `news`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
from collections.abc import Callable
from typing import NoReturn

from sqstaskmaster._isolation import news, process_tree, task_side
from sqstaskmaster._isolation.pipes import Ends
from sqstaskmaster._signals import state

# How often the keeper looks whether the worker is still there: the lifeline tells at once, but not while some other
# process has inherited the worker's end of it.
_LOOK_MILLISECONDS = 1000

# The same for the task, on systems that cannot tell at once when a process ends (no pidfd).
_LOOK_WITHOUT_PIDFD_MILLISECONDS = 20

# Of a task that is over by then, its start is told with its end.
_SHORT_MILLISECONDS = 20


def keep(ends: Ends, nothing: int, load: Callable[[], task_side.Function], caught: frozenset[int]) -> NoReturn:
    """The keeper's whole life, in a process that was started for it, in `state.held`.

    `load` is called in the task: what it loads may be the user's. `caught` are the signals with a handler. They and
    requests to stop stay blocked here: the keeper outlasts them. `nothing` is an open os.devnull.

    After a fork each page that is touched is copied, which takes longer than anything done with it here: so there is
    little of it, and what can be done before the fork is done there.
    """
    try:
        gc.disable()
        worker = os.getppid()
        become_keeper()
        keeper = os.getpid()
        task = os.fork()
        if task == 0:
            _be_task(ends, nothing, keeper, load, caught)
        os.close(ends.results)
        os.close(ends.stack)
        news.say(ends.news, news.started(task))
        attend(task, ends.lifeline, parent=worker)
        news.say(ends.news, news.ended(*bury(task)))
    except BaseException as error:
        news.say(ends.news, news.failed(error))
    finally:
        os._exit(0)


def _be_task(
    ends: Ends, nothing: int, keeper: int, load: Callable[[], task_side.Function], caught: frozenset[int]
) -> NoReturn:
    try:
        task_side.settle(keeper, nothing)
        os.close(ends.news)
        os.close(ends.lifeline)
        task_side.perform(ends, load, caught)
    finally:
        os._exit(1)


def become_keeper() -> None:
    """Out of the terminal's reach (Ctrl-C is for the worker to decide on), and the parent of every orphan below."""
    state.keep_exit_status()
    os.setsid()
    process_tree.die_with_parent(signal.SIGCONT)  # lest a keeper that its task has stopped not see the worker's end
    process_tree.adopt_orphans()
    process_tree.mark_self()


def attend(
    task: int,
    lifeline: int,
    *,
    parent: int | None = None,
    worker: int | None = None,
    told: int | None = None,
    is_long: Callable[[], None] | None = None,
) -> set[int]:
    """Until the task has ended, or was killed because the worker said so or is gone: it is not reaped here.

    The signals that it was sent: none where it ended undisturbed.

    :param parent: the worker's pid, where it is this process's parent: whether it still is, is looked at once a second.
    :param worker: else a descriptor that is readable once the worker is gone.
    :param told: a descriptor that is readable when the task is over in a process that stays.
    :param is_long: called once, where it is not over after a moment, or is sent a signal.
    """
    events = select.poll()
    events.register(lifeline, select.POLLIN)
    for other in (worker, told):
        if other is not None:
            events.register(other, select.POLLIN)
    end = process_tree.pidfd(task)
    if end is None:
        look: int | None = _LOOK_WITHOUT_PIDFD_MILLISECONDS
    else:
        look = None if parent is None else _LOOK_MILLISECONDS
        events.register(end, select.POLLIN)
    sent: set[int] = set()
    try:
        while True:
            happened = dict(events.poll(look if is_long is None else _SHORT_MILLISECONDS))
            if (
                end in happened
                or told in happened
                or end is None
                and os.waitid(os.P_PID, task, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            ):
                return sent
            if is_long is not None:
                is_long()
                is_long = None
            orders = os.read(lifeline, 64) if lifeline in happened else b""
            for number in orders:
                sent.add(number)
                process_tree.kill(task, number)
            orphaned = worker in happened or parent is not None and os.getppid() != parent
            if orphaned or lifeline in happened and not orders:
                process_tree.kill(task, signal.SIGKILL)
                return sent | {signal.SIGKILL}
    finally:
        if end is not None:
            os.close(end)


def bury(task: int) -> tuple[int, float, int]:
    """Kill and reap the task and all that is below this process: wait status, CPU seconds of all, peak bytes."""
    if not process_tree.trackers(process_tree.descendants(os.getpid())):  # which are in its group
        with contextlib.suppress(OSError):
            os.killpg(task, signal.SIGKILL)  # before it is reaped, while nobody else can be that group
    _, status, used = os.wait4(task, 0)
    return status, process_tree.cpu_seconds(used) + process_tree.sweep(), process_tree.peak_bytes(used)
