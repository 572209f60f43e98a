"""An ordinary worker that also records what happens: started by torture.py, one for each row of the table.

python -m benchmarks.torture_worker {plain|process|slots|warm} QUEUE_URL [OPTIONS]
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from multiprocessing import forkserver, resource_tracker

from benchmarks import torture_kinds
from sqstaskmaster import MessageHandler, ProcessMessageHandler, TaskManager, Worker

VISIBILITY_SECONDS = 4
HEARTBEAT_SECONDS = 1

#: In the environment of a worker, and so of all that its tasks start: the file of events, which also identifies them.
EVENTS = "TORTURE_EVENTS"


def record(event, **facts):
    """Write one line to the file of events. Opens it each time, since tasks close descriptors."""
    line = json.dumps({"event": event, "at": time.monotonic(), "pid": os.getpid(), **facts})
    descriptor = os.open(os.environ[EVENTS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def processes(events):
    """The ids of all processes with that file of events, without those that have ended but are not yet reaped."""
    wanted = f"{EVENTS}={events}".encode()
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/environ", "rb") as environment:
                if name.isdigit() and wanted in environment.read().split(b"\0"):
                    found.append(int(name))
        except OSError:
            continue
    return found


class Recorded:
    """Shared by both handlers."""

    def __init__(self, message, task, limit, **options):
        super().__init__(message, VISIBILITY_SECONDS, HEARTBEAT_SECONDS, limit, **options)
        self.task = task

    def run(self):
        record("started", task=self.task)
        getattr(torture_kinds, self.task)()

    def notify(self, exception, context=None):
        stack = (context or {}).get("stack", "").partition("Current thread")[2].partition("Another thread")[0]
        calls = re.findall(r", in (\w+)$", stack, re.MULTILINE)
        record("notified", task=self.task, error=type(exception).__name__, inside=calls[-1] if calls else "")


class Plain(Recorded, MessageHandler):
    pass


class Process(Recorded, ProcessMessageHandler):
    pass


def start_helpers(start_method):
    """The worker's own processes: itself, and those that multiprocessing starts once and keeps."""
    if start_method in ("spawn", "forkserver"):
        resource_tracker.ensure_running()
    if start_method == "forkserver":
        forkserver.ensure_running()
    own = processes(os.environ[EVENTS])
    record("workers", task="", pids=own)
    return own


class Slotted(Process):
    """In a slot: constructed in the worker, and again in the task's process."""

    def __init__(self, message, task, limit, **options):
        super().__init__(message, task, limit, **options)
        if os.getpid() == WORKER:
            record("entered", task=task)


WORKER = os.getpid()


def below(pid):
    """The children of a process."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children") as children:
            found += map(int, children.read().split())
    return found


def slot_processes():
    """The worker's own processes: itself, the template, its keepers, and one process each, spare or task."""
    found = [WORKER]
    for template in below(WORKER):
        found.append(template)
        for keeper in below(template):
            found += [keeper, *below(keeper)[:1]]
    return found


def all_below(pid):
    found = below(pid)
    for each in found:
        found += below(each)
    return found


def with_slots(url, options, **warm):
    """A worker with a slot for each neighbour and one for the kind."""

    def finished(facts):
        record("left", task=facts.task)
        others = []
        try:
            own = slot_processes()
            # Without the processes of another worker's tasks.
            others = [pid for pid in all_below(WORKER) if pid not in own]
        except OSError:
            pass  # a keeper ended meanwhile
        record("ended", task=facts.task, outcome=facts.outcome, others=others)

    handlers = {
        name: type(name, (Slotted,), {"__init__": _constructor(name, options)}) for name in torture_kinds.names()
    }
    worker = Worker(
        TaskManager(url),
        handlers,
        slots=1 + torture_kinds.NEIGHBOURS,
        sqs_timeout=VISIBILITY_SECONDS,
        alarm_timeout=HEARTBEAT_SECONDS,
        wait_time=1,
        on_finish=finished,
        **warm,
    )
    worker.run()


def _constructor(name, options):
    def construct(self, message, limit):
        Slotted.__init__(self, message, name, limit, **options)

    return construct


def main(handler_name, url, options="{}"):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if handler_name in ("slots", "warm"):
        warm = {"max_tasks_per_child": None} if handler_name == "warm" else {}
        with_slots(url, {"term_grace": json.loads(options)["term_grace"]}, **warm)
        return
    handler_class = {"plain": Plain, "process": Process}[handler_name]
    options = json.loads(options)
    own = start_helpers(options.get("start_method"))
    for task, kwargs, message in TaskManager(url).task_generator(wait_time=1, sqs_timeout=VISIBILITY_SECONDS):
        with handler_class(message, task, **kwargs, **options) as handler:
            record("entered", task=task)
            try:
                handler.run()
            finally:
                record("left", task=task)
        others = [pid for pid in processes(os.environ[EVENTS]) if pid not in own]
        record("ended", task=task, outcome=str(handler.outcome), others=others)
        if task == torture_kinds.nothing.__name__:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
