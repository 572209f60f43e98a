"""The attacks, and the workers that they attack: what benchmarks.attacks starts.

    python -m sqstaskmaster worker benchmarks.attack_kinds:worker          slots, warm, spawned, worker
    python -m benchmarks.attack_kinds process|plain                        a loop with a handler

ATTACK names the attack, ATTACK_MODE the kind of worker (slots: a process for each task; warm: they stay; spawned: fresh
interpreters; worker: none, all in its own process), ATTACK_URL the queue, ATTACK_EVENTS the file that outcomes are
written to.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack

from sqstaskmaster import Continue, MessageHandler, ProcessMessageHandler, TaskManager, Worker, current_task


def limit(mode):
    """Seconds of an attack's hard timeout. A fresh interpreter takes a while before the task begins."""
    return 10 if mode == "spawned" else 2


LIMIT_SECONDS = limit(os.environ.get("ATTACK_MODE"))
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
    """Forks, and returns true in the child, which then returns from the task's function. The task waits for it."""
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
    """Each lives for a moment, and there is always one more; but not for ever, in case nothing stops it."""
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


def has_300_children():
    for _ in range(300):
        if not os.fork():
            hang()
    time.sleep(0.3)


def stops_its_template():
    """Then its own process dies, so that a new one is needed."""
    with open(f"/proc/{os.getppid()}/status") as status:
        template = next(int(line.split()[1]) for line in status if line.startswith("PPid:"))
    os.kill(template, signal.SIGSTOP)
    os.kill(os.getppid(), signal.SIGKILL)
    hang()


def opens_a_file():
    with open(os.devnull) as file:
        assert file.fileno() > 2, f"a task's file has the descriptor {file.fileno()}"


def continues_with_no_mapping():
    ending = Continue()
    ending.kwargs = [1]
    raise ending


def fails():
    raise ValueError("as it was told")


notify_hangs = retry_delay_hangs = fails


def healthy():
    pass


# -- what a module does ----------------------------------------------------------------------------------------------


def leaves_a_thread():
    threading.Thread(target=hang).start()


def hangs_at_exit():
    atexit.register(hang)


MODULES = {"leaves_a_thread", "hangs_at_exit"}


# -- what a handler does ---------------------------------------------------------------------------------------------


class Array:
    def __bool__(self):
        raise ValueError("The truth value of an array is ambiguous")


def nonsense(base):
    """Subclasses of that handler, by the attack's name."""

    def setting(name, value):
        def __init__(self, message, **timeouts):
            base.__init__(self, message, 20, 1, LIMIT_SECONDS)
            setattr(self, name, value)

        return __init__

    constructors = {
        "sets_no_limit": setting("hard_timeout", None),
        "sets_dead_letters_as_a_list": setting("dead_letter", [KeyError]),
        "sets_its_memory_as_text": setting("max_memory", "2G"),
        "forgets_its_super": lambda self, message, **timeouts: None,
    }
    made = {name: type(name, (base,), {"__init__": init, "run": _run}) for name, init in constructors.items()}
    members = {"__init__": setting("asked", True), "run": lambda self: hang(), "running": lambda self: Array()}
    made["running_gives_an_array"] = type("running_gives_an_array", (base,), members)
    return made


def _run(self):
    pass


# -- the workers -----------------------------------------------------------------------------------------------------


def record(task, outcome, seconds):
    line = json.dumps({"task": task, "outcome": str(outcome), "seconds": round(seconds, 2)})
    descriptor = os.open(os.environ["ATTACK_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def beside():
    """Runs for as long as the attack, or most of it."""
    time.sleep(3)


def functions():
    name = os.environ["ATTACK"]
    attack = healthy if name in MODULES else globals().get(name, healthy)
    return {"Attack": attack, "Beside": beside, "After": healthy}


class TakesOptions(ProcessMessageHandler):
    """Has no constructor of its own: the producer must not be able to set the limits."""

    def run(self):
        pass


def plain(name):
    """A handler whose task is that function."""

    class Plain(MessageHandler):
        def __init__(self, message, **timeouts):
            super().__init__(message, 20, 5, LIMIT_SECONDS if name == "Attack" else 30)

        def run(self):
            return functions()[name]()

        def notify(self, exception, context=None):
            notify(exception, context)

        def retry_delay(self, exception, receives):
            return retry_delay(exception, receives)

    return Plain


def notify(exception, context=None):
    if os.environ["ATTACK"] == "notify_hangs":
        hang()


def retry_delay(exception, receives):
    return hang() if os.environ["ATTACK"] == "retry_delay_hangs" else None


def make_worker():
    attack, mode = os.environ["ATTACK"], os.environ["ATTACK_MODE"]
    if attack in MODULES:
        globals()[attack]()
    more = {"slots": 1 if mode == "worker" else SLOTS}
    if mode == "warm":
        more["max_tasks_per_child"] = None
    base = MessageHandler if mode == "worker" else ProcessMessageHandler
    handlers = {} if mode == "worker" else {"TakesOptions": TakesOptions}
    if attack in nonsense(base):
        handlers["Attack"] = nonsense(base)[attack]
    for name in functions() if mode == "worker" else ():
        handlers.setdefault(name, plain(name))
    made = Worker(
        TaskManager(os.environ["ATTACK_URL"], notify=notify),
        handlers,
        wait_time=1,
        shutdown_grace=1,
        on_finish=lambda finished: record(finished.task, finished.outcome, finished.elapsed),
        **more,
    )
    options = {"term_grace": GRACE_SECONDS, "start_method": "spawn" if mode == "spawned" else None}
    for name, function in functions().items():
        if name not in handlers:
            limit = LIMIT_SECONDS if name == "Attack" else 30
            options["hard_timeout"], options["max_memory"] = limit, 1 << 40
            made.task(name, retry_delay=retry_delay, **options)(function)
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
