"""Processes that stay against a bare loop of receive, call, delete in one process, and in two: one server, in turns.

    python -m benchmarks.warm [model] [noop] [far] [start] [looks]

`model`: an initializer of 2 s and tasks of 20 ms, two at once; cold, each task begins with the initializer. The time
before the first task does not count. The server must be faster than both (`pip install roto-aws`). `far`: each request
takes 5 ms longer. `start`: from the send to the first line of the task; needs a server that wakes a waiting poll at
once (SQSTASKMASTER_TEST_ENDPOINT; roto looks every 100 ms).
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time

from benchmarks.producing import far_away
from benchmarks.servers import fast_server, heading, row
from benchmarks.slots import COUNTED, RUN, Queue, measured, module, running, started_in

TURNS = 5
TASKS = 400
COLD_TASKS = 4
INITIALIZER_SECONDS = 2.0
TASK_SECONDS = 0.02
LOOKS = 2000
STARTS = 20
FAR_SECONDS = 0.005

WORKER = (
    """
import logging, os, time
logging.disable(logging.CRITICAL)
from sqstaskmaster import TaskManager, Worker

"""
    + COUNTED
    + """
times = []

def initialize():
    time.sleep({initializer})

worker = Worker(TaskManager({url!r}, queue_constructor=queue), wait_time=0, on_finish=lambda _: times.append(clock()),
                slots={slots}, max_tasks_per_child={most}, initializer={function})
clock = time.perf_counter

@worker.task("NoOp")
def task():
    time.sleep({seconds})
"""
)

OURS = """
ready = lambda event: event == "ready" and times.append(clock())
assert sum(worker.run(burst=True, on_event=ready).values()) == {tasks}
"""

# Each of them alone, as in two terminals.
BARE = """
import os, time
class Counted: requests = 0
def loop():
    import boto3
    queue = boto3.resource("sqs").Queue({url!r})
    while True:
        messages = queue.receive_messages(AttributeNames=["All"], WaitTimeSeconds=0, VisibilityTimeout=30)
        if not messages:
            return
        for message in messages:
            time.sleep({seconds})
            message.delete()
def loops(number):
    pids = []
    for _ in range(number - 1):
        pids.append(os.fork())
        if not pids[-1]:
            loop()
            os._exit(0)
    loop()
    for pid in pids:
        os.waitpid(pid, 0)
"""


WAITING = """
import json, time, boto3
queue = boto3.resource("sqs").Queue({url!r})
class worker:
    def run():
        while True:
            for message in queue.receive_messages(AttributeNames=["All"], WaitTimeSeconds=2, VisibilityTimeout=30):
                with open(json.loads(message.body)["kwargs"]["path"], "w") as file:
                    file.write(repr(time.time()))
                message.delete()
"""


def bare(sqs, loops, seconds):
    queue = Queue(sqs)
    queue.send("NoOp", TASKS)
    before = BARE.format(url=queue.url, seconds=seconds)
    return measured(RUN.format(before=before, work=f"loops({loops})"))


def ours(sqs, slots, seconds, tasks=TASKS, initializer=0.0, warm=True):
    queue = Queue(sqs)
    queue.send("NoOp", tasks)
    function = "initialize" if initializer else None
    most = None if warm else 1
    before = WORKER.format(
        url=queue.url, slots=slots, seconds=seconds, initializer=initializer, function=function, most=most
    )
    found = measured(RUN.format(before=before, work=OURS.format(tasks=tasks)))
    found["wall"] -= initializer if warm else 0
    return found


def rates(sides, tasks=TASKS):
    return [tasks / each["wall"] for each in sides]


def model(sqs):
    base, warm, cold = [], [], []
    for _ in range(TURNS):
        base.append(bare(sqs, 2, TASK_SECONDS))
        warm.append(ours(sqs, 2, TASK_SECONDS, initializer=INITIALIZER_SECONDS))
        cold.append(ours(sqs, 2, TASK_SECONDS + INITIALIZER_SECONDS, tasks=COLD_TASKS, warm=False))
    heading("warm", "two bare loops")
    row("tasks of 20 ms, two at once", rates(warm), rates(base), "tasks/s", "at least 0.9")
    heading("warm", "cold")
    row("the same, beside a model of 2 s a task", rates(warm), rates(cold, COLD_TASKS), "tasks/s", "at least 50")


def noop(sqs):
    sides = {(who, number): [] for who in ("bare", "warm", "cold") for number in (1, 2)}
    for _ in range(TURNS):
        for number in (1, 2):
            sides["bare", number].append(bare(sqs, number, 0))
            sides["warm", number].append(ours(sqs, number, 0))
            sides["cold", number].append(ours(sqs, number, 0, warm=False))
    heading("ours", "bare loops")
    for number, goal in ((1, "at least 0.9"), (2, "at least 0.8")):
        base = sides["bare", number]
        row(f"no-op, {number} at once", rates(sides["warm", number]), rates(base), "tasks/s", goal)
        row(f"no-op, {number} at once, cold", rates(sides["cold", number]), rates(base), "tasks/s", "")
        for name in ("warm", "cold"):
            if all(each["cpu"] is not None for each in (*base, *sides[name, number])):
                used = [[1000 * each["cpu"] / TASKS for each in side] for side in (sides[name, number], base)]
                row(f"CPU, {number} at once, {name}", *used, "ms/task", "at most 1.3" if name == "warm" else "")
        most = "   at most 1.1" if number == 2 else ""
        requests = [each["requests"] / TASKS for each in sides["warm", number]]
        print(f"requests a task, {number} at once: {sorted(requests)[len(requests) // 2]:.3f}{most}", flush=True)


def far(sqs):
    near = os.environ["AWS_ENDPOINT_URL"]
    base, warm = [], []
    with far_away(near, FAR_SECONDS) as endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        try:
            for _ in range(TURNS):
                base.append(bare(sqs, 1, 0))
                warm.append(ours(sqs, 1, 0))
        finally:
            os.environ["AWS_ENDPOINT_URL"] = near
    heading("warm", "bare loop")
    row("no-op, 5 ms away", rates(warm), rates(base), "tasks/s", "at least 1.3")


def start(sqs):
    """Each side is idle for a moment before each send, so that its poll waits."""
    sources = {
        "bare": lambda url: WAITING.format(url=url),
        "cold": lambda url: module(url, constructor="None", wait=2),
        "warm": lambda url: module(url, constructor="None", wait=2, more="max_tasks_per_child=None"),
    }
    times = {side: [] for side in sources}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            for side, source in sources.items():
                queue = Queue(sqs)
                with running(source(queue.url)):
                    found = [started_in(queue, os.path.join(folder, f"{side}-{turn}-{n}")) for n in range(STARTS)]
                times[side].append(statistics.median(found[5:]))
    heading("ours", "bare loop")
    for side in ("cold", "warm"):
        row(f"from send to start, {side}", times[side], times["bare"], "ms", "")
    more = statistics.median(one - other for one, other in zip(times["warm"], times["bare"]))
    print(f"from send to start, warm: {more:+.2f} ms   at most +1.0", flush=True)


def looks(sqs):
    """CPU time of the comparisons after each task, in a process as bare as this one."""
    from sqstaskmaster._isolation.spoiling import Snapshot

    snapshot = Snapshot((), 2**30)
    used = time.process_time()
    for _ in range(LOOKS):
        assert not snapshot.spoiled()
    print(f"looks for what a task has left: {1000 * (time.process_time() - used) / LOOKS:.3f} ms   at most 0.1")


def main(wanted):
    logging.disable(logging.CRITICAL)
    with fast_server():
        import boto3

        sqs = boto3.client("sqs")
        for part in (model, noop, far, start, looks):
            if not wanted or part.__name__ in wanted:
                print(f"-- {part.__name__}", flush=True)
                part(sqs)


if __name__ == "__main__":
    main(sys.argv[1:])
