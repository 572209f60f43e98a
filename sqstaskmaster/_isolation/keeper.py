"""The keeper of one task: the process between the worker and the task. What runs here runs after the fork.

    worker -- starts --> keeper -- forks --> task -- starts whatever it likes --> ...

The keeper is why a task can leave nothing behind. It is the parent of the task and, on Linux, of every descendant whose
own parent ends. It only waits for one of two events, and then kills and reaps everything below it:

- the task ended, in whatever way;
- its lifeline, a pipe whose other end only the worker has, was closed: the worker closed it, or the worker itself is
  gone, perhaps by SIGKILL.

The lifeline also carries orders, a byte each: the number of a signal to send to the task. The keeper sends them because
it reaps the task, and so is the only process that cannot hit one that got the task's pid later.

For what it reports to the worker, see `news`.
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

# How often the keeper checks that the worker is still there. The lifeline tells at once, but not while another process
# has inherited the worker's end of it.
_LOOK_MILLISECONDS = 1000

# The same for the task, on systems that do not report at once that a process has ended (no pidfd).
_LOOK_WITHOUT_PIDFD_MILLISECONDS = 20

# If a task is over by then, its start is reported together with its end.
_SHORT_MILLISECONDS = 20


def keep(ends: Ends, nothing: int, load: Callable[[], task_side.Function], caught: frozenset[int]) -> NoReturn:
    """The keeper's whole life, in a process that was started for it, in `state.held`.

    `load` is called in the task, as it may load the user's code. `caught` are the signals with a handler. They and
    requests to stop stay blocked here: the keeper outlasts them. `nothing` is an open os.devnull.

    After a fork each page that is touched is copied, which costs more than any work done here. So this does little, and
    whatever can be done before the fork is done there.
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
    """Leave the terminal's reach (the worker decides on Ctrl-C), and become the parent of every orphan below."""
    state.keep_exit_status()
    os.setsid()
    process_tree.die_with_parent(signal.SIGCONT)  # when the worker ends, wake a keeper that its task has stopped
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
    """Wait until the task ends, or kill it if the worker says so or is gone. It is not reaped here.

    Returns the signals that it was sent: none if it ended undisturbed.

    :param parent: the worker's pid, if the worker is this process's parent: checked once a second.
    :param worker: otherwise, a descriptor that is readable once the worker is gone.
    :param told: a descriptor that is readable once the task is over, in a process that stays.
    :param is_long: called once, if the task is not over after a moment, or is sent a signal.
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
    """Kill and reap the task and everything below this process.

    Returns the wait status, the CPU seconds of all, and the peak bytes.
    """
    if not process_tree.trackers(process_tree.descendants(os.getpid())):  # trackers are in the task's group
        with contextlib.suppress(OSError):
            os.killpg(task, signal.SIGKILL)  # before it is reaped, while no other group can have its number
    _, status, used = os.wait4(task, 0)
    return status, process_tree.cpu_seconds(used) + process_tree.sweep(), process_tree.peak_bytes(used)
