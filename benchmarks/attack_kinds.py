"""The attacks, and the workers that they are made on: what benchmarks.attacks starts.

    python -m sqstaskmaster worker benchmarks.attack_kinds:worker          with slots
    python -m benchmarks.attack_kinds process|plain                        a loop with a handler

ATTACK names the attack, ATTACK_URL the queue, ATTACK_EVENTS the file that outcomes are written to.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack

from sqstaskmaster import MessageHandler, ProcessMessageHandler, TaskManager, Worker, current_task

LIMIT_SECONDS = 2
GRACE_SECONDS = 0.5
SLOTS = 3


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def hang():
    time.sleep(3600)


def falls_out():
    """Forks, and is true in the child, which returns from the task's function then. The task has waited for it."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return not child


# -- one function for each attack ------------------------------------------------------------------------------------


def fork_falls_out_then_killed():
    if falls_out():
        return
    os.kill(os.getpid(), signal.SIGKILL)


def fork_falls_out_then_exits():
    if falls_out():
        return
    os._exit(1)


def fork_falls_out_then_raises():
    if falls_out():
        return
    raise ValueError("the task's own verdict")


def fork_leaves_by_exit():
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    time.sleep(0.5)


def coroutine():
    async def later():
        pass

    return later()


def hangs_in_an_exit_stack():
    with ExitStack() as stack:
        stack.callback(hang)


def stops_its_keeper_in_a_loop():
    while True:
        try:
            os.kill(os.getppid(), signal.SIGSTOP)
        except OSError:
            pass


def kills_its_keeper():
    os.kill(os.getppid(), signal.SIGKILL)
    hang()


def kills_its_keeper_below_a_daemon():
    daemonise(hang)
    os.kill(os.getppid(), signal.SIGKILL)
    hang()


def is_preferred_by_the_oom_killer():
    with open("/proc/self/oom_score_adj") as score:
        assert int(score.read()) > 0


def fails_with_much_to_log():
    raise ValueError("x" * 900_000)


def storm_of_forks():
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
                hang()
        except OSError:
            pass
        time.sleep(0.005)


def daemonise(function):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            function()
        os._exit(0)


def chain_of_forks():
    """Each lives a moment, and there is always one more; should all fail, not for ever."""
    until = time.monotonic() + 30

    def chain():
        while time.monotonic() < until:
            if os.fork() != 0:
                os._exit(0)
            time.sleep(0.001)

    daemonise(chain)


def garbage_into_every_descriptor():
    for _ in range(50):
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:
                try:
                    os.set_blocking(int(name), False)
                    os.write(int(name), os.urandom(997))
                except OSError:
                    pass
    os._exit(0)


def closes_every_descriptor():
    os.closerange(0, 1 << 14)
    hang()


def changes_its_user():
    os.setuid(65534)
    hang()


def changes_its_root():
    os.chroot(tempfile.gettempdir())
    hang()


def stops_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


def kills_its_group():
    os.killpg(0, signal.SIGKILL)


def stops_its_group():
    os.killpg(0, signal.SIGSTOP)


def floods_with_progress():
    while True:
        current_task().report(text="x" * 1000)


def floods_with_large_progress():
    while True:
        current_task().report(text="x" * 1_000_000)


def reports_nesting_too_deep():
    current_task().report(value=nested(100_000))


def raises_nesting_too_deep():
    raise ValueError(nested(100_000))


def recurses_for_ever():
    recurses_for_ever()


def healthy():
    pass


# -- the workers -----------------------------------------------------------------------------------------------------


def record(task, outcome, seconds):
    line = json.dumps({"task": task, "outcome": str(outcome), "seconds": round(seconds, 2)})
    descriptor = os.open(os.environ["ATTACK_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def beside():
    """Runs for as long as the attack."""
    time.sleep(LIMIT_SECONDS + 1)


def functions():
    return {"Attack": globals().get(os.environ["ATTACK"], healthy), "Beside": beside, "After": healthy}


class TakesOptions(ProcessMessageHandler):
    """Has no constructor of its own: the limits are not the producer's to set."""

    def run(self):
        pass


def make_worker():
    made = Worker(
        TaskManager(os.environ["ATTACK_URL"]),
        {"TakesOptions": TakesOptions},
        slots=SLOTS,
        wait_time=1,
        shutdown_grace=1,
        on_finish=lambda finished: record(finished.task, finished.outcome, finished.elapsed),
    )
    for name, function in functions().items():
        limit = LIMIT_SECONDS if name == "Attack" else 30
        made.task(name, hard_timeout=limit, term_grace=GRACE_SECONDS)(function)
    return made


def loop(handler_class, **options):
    class Handler(handler_class):
        def run(self):
            return functions()[task]()

    for task, kwargs, message in TaskManager(os.environ["ATTACK_URL"]).task_generator(wait_time=1):
        limit = LIMIT_SECONDS if task == "Attack" else 30
        began = time.monotonic()
        with Handler(message, 20, 5, limit, **kwargs, **options) as handler:
            handler.run()
        record(task, handler.outcome, time.monotonic() - began)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    if sys.argv[1] == "plain":
        loop(MessageHandler)
    else:
        loop(ProcessMessageHandler, term_grace=GRACE_SECONDS)
elif "ATTACK_URL" in os.environ:
    worker = make_worker()
