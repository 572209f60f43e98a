"""The worker with slots against a bare loop of receive, os.fork, waitpid, delete: one run, one server, in turns.

    python -m benchmarks.slots [speed] [memory] [start] [idle]

Each side is a process of its own with its own queue. The server must be faster than they are (`pip install roto-aws`).
`memory` wants numpy, pandas, scikit-learn and xgboost; it imports those that are installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

from benchmarks.servers import END_SECONDS, fast_server, heading, row

TURNS = 5
TASKS = 400
STARTS = 30
START_SIZES = (0.0, 0.25, 1.0, 3.0)
# How many slots, and the most that their worker may use of a core, in percent.
IDLE_SLOTS = {10: 0.3, 100: 1.5, 500: 6.0, 1000: 12.0}
IDLE_SECONDS = 30
IDLE_SETTLES_SECONDS = 12
DEADLINE_SECONDS = 180
HEAVY = ("numpy", "pandas", "sklearn", "xgboost")

#: For a worker's module: a queue whose requests are counted.
COUNTED = """
class Counted:
    requests = 0

def queue(url):
    import boto3
    made = boto3.resource("sqs").Queue(url)
    made.meta.client.meta.events.register("before-send.sqs", count)
    return made

def count(**_):
    Counted.requests += 1
"""

MODULE = (
    """
import os, sys, time
from sqstaskmaster import TaskManager, Worker

for name in {heavy!r}:
    __import__(name)
held = bytearray({gigabytes} * 2**30)
for at in range(0, len(held), 4096):
    held[at] = 1

"""
    + COUNTED
    + """
manager = TaskManager({url!r}, queue_constructor={constructor})
worker = Worker(manager, slots={slots}, sqs_timeout={claim}, alarm_timeout={alarm}, wait_time={wait}, {more})

@worker.task("NoOp")
def no_op():
    pass

@worker.task("Started")
def started(path):
    with open(path, "w") as file:
        file.write(repr(time.time()))

@worker.task("Sleep")
def sleep(seconds):
    time.sleep(seconds)
"""
)

BARE = """
import os, time, boto3
queue = boto3.resource("sqs").Queue({url!r})
done = 0
while done < {tasks}:
    for message in queue.receive_messages(AttributeNames=["All"], MaxNumberOfMessages=1, WaitTimeSeconds=5,
                                          VisibilityTimeout=30):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        message.delete()
        done += 1
"""

# Seconds, processor seconds too if available, and requests if they are counted.
RUN = """
import json, os, time
{before}
def cpu():
    with open(os.environ["GROUP"]) as file:
        return dict(line.split() for line in file)
group = os.environ.get("GROUP") and cpu
wall, used = time.perf_counter(), group and group()
{work}
print(json.dumps(dict(wall=time.perf_counter() - wall, used=[used, group and group()], requests=Counted.requests)))
"""

# Where the kernel counts what a group of processes used, including those that no process waits for: the kernel reaps
# the keepers. https://docs.kernel.org/admin-guide/cgroup-v2.html
GROUPS = next(filter(os.path.isdir, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")))


class Queue:
    def __init__(self, sqs):
        self.sqs = sqs
        self.url = sqs.create_queue(QueueName=f"slots-{uuid.uuid4().hex}")["QueueUrl"]

    def send(self, task, count=1, **kwargs):
        body = json.dumps({"task": task, "kwargs": kwargs})
        for begin in range(0, count, 10):
            entries = [{"Id": str(i), "MessageBody": body} for i in range(min(10, count - begin))]
            self.sqs.send_message_batch(QueueUrl=self.url, Entries=entries)


def module(url, slots=1, heavy=(), gigabytes=0.0, constructor="queue", wait=1, claim=120, alarm=30, more=""):
    """`more`: further arguments of the worker, as source text."""
    text = MODULE.replace("{gigabytes} * 2**30", f"int({gigabytes} * 2**30)")
    arguments = {"constructor": constructor, "wait": wait, "claim": claim, "alarm": alarm, "more": more}
    return text.format(url=url, slots=slots, heavy=tuple(heavy), **arguments)


def measured(source):
    """The last line that a script prints, parsed as JSON."""
    with group() as folder:
        environ = {**os.environ, "GROUP": folder and os.path.join(folder, "cpu.stat")}
        join = 'echo $$ > "$0/cgroup.procs" && exec "$@"' if folder else 'exec "$@"'
        output = subprocess.run(
            ["sh", "-c", join, folder, sys.executable, "-c", source],
            stdout=subprocess.PIPE, text=True, timeout=DEADLINE_SECONDS, check=True, env=environ,
        ).stdout  # fmt: skip
    result = json.loads(output.splitlines()[-1])
    before, after = result.pop("used")
    result["cpu"] = (int(after["usage_usec"]) - int(before["usage_usec"])) / 1e6 if after else None
    return result


@contextlib.contextmanager
def group():
    """The folder of a new control group; "" if none can be made."""
    folder = os.path.join(GROUPS, f"slots-{uuid.uuid4().hex}")
    try:
        os.mkdir(folder)
    except OSError:
        yield ""
        return
    yield folder
    deadline = time.monotonic() + END_SECONDS
    while True:
        try:
            return os.rmdir(folder)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def ours(sqs, slots):
    queue = Queue(sqs)
    queue.send("NoOp", TASKS)
    before = module(queue.url, slots, wait=0)
    # The last poll, which finds nothing, is not part of the work.
    return measured(RUN.format(before=before, work="assert sum(worker.run(burst=True).values()) == %d" % TASKS))


def bare(sqs):
    queue = Queue(sqs)
    queue.send("NoOp", TASKS)
    first, *rest = BARE.strip().split("\nqueue", 1)
    before = f"{first}\nclass Counted: requests = 0\n"
    return measured(RUN.format(before=before, work=("queue" + rest[0]).format(url=queue.url, tasks=TASKS)))


def speed(sqs):
    base, one, eight = [], [], []
    for _ in range(TURNS):
        base.append(bare(sqs))
        one.append(ours(sqs, 1))
        eight.append(ours(sqs, 8))
    heading("ours", "bare loop")
    for name, sides, goal in (("one slot", one, "at least 0.95"), ("eight slots", eight, "at least 1.5")):
        rates = [[TASKS / each["wall"] for each in side] for side in (sides, base)]
        row(f"no-op tasks, {name}", *rates, "tasks/s", goal)
    if all(each["cpu"] is not None for each in (*base, *one)):
        used = [[1000 * each["cpu"] / TASKS for each in side] for side in (one, base)]
        row("CPU, one slot", *used, "ms/task", "at most 1.35")
    else:
        print("CPU, one slot: not measured, there are no control groups to be had")
    requests = statistics.median(each["requests"] for each in eight) / TASKS
    print(f"{'requests a task, eight slots':<44} {requests:>10.3f} {'':<29} at most 0.5", flush=True)


@contextlib.contextmanager
def running(source):
    """Run a worker of that module, in its own session."""
    code = source + "\nprint('ready', flush=True)\nworker.run()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        if not select.select([process.stdout], [], [], DEADLINE_SECONDS)[0]:
            sys.exit(f"the worker was not ready within {DEADLINE_SECONDS} seconds")
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(END_SECONDS)
        process.stdout.close()


def tree(pid):
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{each}/task"):
                with open(f"/proc/{each}/task/{thread}/children") as children:
                    found += map(int, children.read().split())
    return found


def pss(pid):
    """MiB that a process and all below it hold, shared pages counted once."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError), open(f"/proc/{each}/smaps_rollup") as rollup:
            total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return total / 1024


def settled(measure, seconds=3):
    """Measure after this many seconds."""
    time.sleep(seconds)
    return measure()


def memory(sqs):
    heavy = [name for name in HEAVY if importlib.util.find_spec(name)]
    print(f"idle memory (PSS) with {', '.join(heavy) or 'nothing'} imported")
    found = {}
    for slots in (1, 8):
        with running(module(Queue(sqs).url, slots, heavy, constructor="None", wait=2)) as pid:
            found[slots] = settled(lambda: pss(pid))
    row("eight slots beside one", [found[8]], [found[1]], "MiB", "at most 1.3")
    with contextlib.ExitStack() as stack:
        pids = [
            stack.enter_context(running(module(Queue(sqs).url, 1, heavy, constructor="None", wait=2))) for _ in range(8)
        ]
        whole = settled(lambda: sum(map(pss, pids)))
    row("eight slots beside eight interpreters", [found[8]], [whole], "MiB", "")


def start(sqs):
    """Milliseconds from the send to the first line of the task, on an idle worker, one slot."""
    heading("held", "nothing")
    nothing = None
    with tempfile.TemporaryDirectory() as folder:
        for size in START_SIZES:
            queue = Queue(sqs)
            with running(module(queue.url, 1, gigabytes=size, constructor="None", wait=2)):
                times = [started_in(queue, os.path.join(folder, f"{size}-{turn}")) for turn in range(STARTS)][5:]
            nothing = nothing or times
            goal = "at most 1.3" if size == 1 else ""
            row(f"from send to start, {size:g} GiB held", times, nothing, "ms", goal)


def started_in(queue, path):
    time.sleep(0.15)  # until the poll waits and the spare is ready
    sent = time.time()
    queue.send("Started", path=path)
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            return (float(file.read()) - sent) * 1000
        time.sleep(0.001)
    sys.exit("the task did not start")


def idle(sqs):
    """CPU of a worker whose tasks all sleep, and how long its stop takes."""
    for slots, most in IDLE_SLOTS.items():
        queue = Queue(sqs)
        queue.send("Sleep", slots, seconds=3600)
        source = module(queue.url, slots, constructor="None", wait=5, claim=30, alarm=10)
        with running(source) as pid:
            wait_for_tasks(pid, slots)
            before = cpu(pid)
            time.sleep(IDLE_SECONDS)
            share = (cpu(pid) - before) / IDLE_SECONDS
            began = time.monotonic()
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)  # the second means now
            wait_for_tasks(pid, 0)
            stopped = time.monotonic() - began
        name = f"{slots} sleeping tasks, claims of 30 s every 10: CPU"
        print(f"{name:<58} {share * 100:.2f} % of a core   at most {most} %; stopped in {stopped:.1f} s", flush=True)


def wait_for_tasks(pid, number):
    """Wait until this many tasks run below the worker: its template, a keeper per slot, and the tasks' processes."""
    until = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < until:
        running_tasks = sum(_is_task(each) for each in tree(pid))
        if running_tasks >= number if number else not running_tasks:
            time.sleep(IDLE_SETTLES_SECONDS if number else 0)
            return
        time.sleep(0.05)
    sys.exit(f"{number} tasks did not run, or end, in {DEADLINE_SECONDS} s")


def _is_task(pid):
    """Whether the process leads its own group in its keeper's session: a task, or the spare for the next one."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            _, _, group, session = stat.read().rpartition(")")[2].split()[:4]
    except OSError:
        return False
    return int(group) == pid != int(session)


def cpu(pid):
    """Seconds of processor time of a process and all below it."""
    ticks = 0
    for each in tree(pid):
        with contextlib.suppress(OSError), open(f"/proc/{each}/stat") as stat:
            ticks += sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def main(wanted):
    logging.disable(logging.CRITICAL)
    with fast_server():
        import boto3

        sqs = boto3.client("sqs")
        for part in (speed, memory, start, idle):
            if not wanted or part.__name__ in wanted:
                print(f"-- {part.__name__}", flush=True)
                part(sqs)


if __name__ == "__main__":
    main(sys.argv[1:])
