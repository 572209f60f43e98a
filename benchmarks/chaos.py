"""Whether anything is lost or done twice while workers are killed and the network fails throughout the run.

    python -m benchmarks.chaos [--tasks 500] [--processes 4] [--slots 1] [--seed N]
    python -m benchmarks.chaos --minutes 15 [--seed N]                   everything at once: benchmarks/soak.py

500 short tasks, 4 processes (2, if each has slots) under one supervisor. At random moments one of them is hit: SIGKILL
to a worker, to a task's process, its keeper or the template of a worker's slots, to the supervisor (which is then
restarted, as an orchestrator would), SIGTERM to a worker or the supervisor. Between the workers and the server is a
proxy that cuts, delays and refuses connections. Each execution holds a file lock and keeps a journal, to detect two at
once, and every repetition.
Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid

import boto3

from benchmarks.servers import END_SECONDS, fast_server, free_port
from sqstaskmaster import TaskManager

SECONDS_BETWEEN_HITS = (0.5, 2.5)
SECONDS_OF_WEATHER = (0.3, 1.5)
WEATHER = {"clear": 60, "delay": 15, "cut": 15, "refuse": 10}
HITS = {
    "KILL worker": 30,
    "KILL task": 25,
    "KILL keeper": 15,
    "KILL template": 10,
    "KILL supervisor": 10,
    "TERM worker": 12,
    "TERM super": 8,
}
GIVE_UP_SECONDS = 600
MARK = "SQSTASKMASTER_CHAOS"

TASKS = """
import fcntl, os, random, time
from sqstaskmaster import TaskManager, Worker

worker = Worker(
    TaskManager(os.environ["CHAOS_URL"]),
    sqs_timeout=6, alarm_timeout=2, hard_timeout=60, wait_time=2, shutdown_grace=1,
)
WORKER = os.getpid()
FOLDER = os.environ["CHAOS_FOLDER"]
journal = os.open(os.path.join(FOLDER, "journal"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(*words):
    os.write(journal, (" ".join(map(str, (time.monotonic(), *words))) + "\\n").encode())


@worker.task("Work", term_grace=1)
def work(number, seconds):
    lock = os.open(os.path.join(FOLDER, str(number)), os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note("together", number, WORKER, os.getpid())
    note("begin", number, WORKER, os.getpid())
    time.sleep(seconds)
    note("end", number, WORKER, os.getpid())
"""


class Proxy:
    """A TCP proxy in its own thread. `odds`: how often each weather comes; `seconds`: how long it lasts."""

    seconds, odds = SECONDS_OF_WEATHER, WEATHER

    def __init__(self, target_port, chance):
        self.port = free_port()
        self.weather = "clear"
        self.cuts = collections.Counter()
        self._target_port = target_port
        self._chance = chance
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    def be_clear(self):
        self.weather = "fine for good"

    async def _serve(self):
        await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        while self.weather != "fine for good":
            await asyncio.sleep(self._chance.uniform(*self.seconds))
            if self.weather != "fine for good":
                self.weather = self._chance.choices(list(self.odds), list(self.odds.values()))[0]
        await asyncio.Event().wait()

    async def _connected(self, reader, writer):
        if self.weather == "refuse":
            self.cuts["refused"] += 1
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        both = (writer, there[1])
        await asyncio.gather(self._pump(reader, there[1], both), self._pump(there[0], writer, both))

    async def _pump(self, reader, writer, both):
        try:
            while data := await reader.read(65536):
                if self.weather == "delay":
                    self.cuts["delayed"] += 1
                    await asyncio.sleep(self._chance.uniform(0.05, 1.0))
                elif self.weather == "cut" and self._chance.random() < 0.5:
                    self.cuts["cut"] += 1
                    writer.write(data[: self._chance.randrange(len(data))])
                    await writer.drain()
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        for each in both:
            each.transport.abort()


class Service:
    """The supervisor as an orchestrator runs it: restarted whenever it has ended."""

    def __init__(self, folder, processes, slots, environ, *more):
        self._command = [sys.executable, "-m", "sqstaskmaster", "worker", "chaos_tasks:worker"]
        self._command += ["--processes", str(processes), "--slots", str(slots), *more]
        self._folder = folder
        self._environ = environ
        self._log = open(os.path.join(folder, "log"), "ab")
        self.starts = 0
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            self._command, cwd=self._folder, env=self._environ, stdout=self._log, stderr=self._log
        )
        self.starts += 1

    def workers(self):
        return children(self.process.pid)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:  # what it leaves behind is counted
            self.process.kill()
            self.process.wait(END_SECONDS)
        self._log.close()


class Hits:
    """Which processes were hit, and when: this explains why a task is done again."""

    def __init__(self, service, chance, kinds=None):
        self._service = service
        self._chance = chance
        self._kinds = kinds or HITS
        self.count = collections.Counter()
        self.pids = set()
        self.worker_hits = []

    def hit(self):
        kind = self._chance.choices(list(self._kinds), list(self._kinds.values()))[0]
        number = signal.SIGKILL if kind.startswith("KILL") else signal.SIGTERM
        supervisor, workers = self._service.process.pid, self._service.workers()
        # The template comes between a worker and its keepers.
        templates = children_of(workers)
        keepers = children_of(templates)
        among = {"worker": workers, "template": templates, "keeper": keepers, "task": children_of(keepers)}.get(
            kind.split()[1], [supervisor]
        )
        if not among:
            return
        pid = self._chance.choice(among)
        # A worker that goes takes its tasks with it, the supervisor all of them. Without its template a worker stops.
        felled = {pid}
        if pid == supervisor:
            felled.update(workers)
        elif pid in templates:
            felled.update(worker for worker in workers if pid in children(worker))
        elif pid in keepers:
            felled.update(children(pid))
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        self.count[kind] += 1
        self.pids |= felled
        if number == signal.SIGKILL and pid in (supervisor, *workers):
            self.worker_hits.append((time.monotonic(), set(felled)))


def children_of(pids):
    return [child for pid in pids for child in children(pid)]


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as found:
            return [int(word) for word in found.read().split()]
    except OSError:
        return []


def left_behind(mark):
    """The processes of this run that still exist."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as environ:
                    if f"{MARK}={mark}".encode() in environ.read():
                        found.append(int(name))
            except OSError:
                pass
    return found


def read_journal(folder):
    try:
        with open(os.path.join(folder, "journal")) as journal:
            for line in journal:
                moment, what, number, worker, task = line.split()
                yield float(moment), what, int(number), int(worker), int(task)
    except FileNotFoundError:
        return


def finished(folder):
    return {number for _, what, number, _, _ in read_journal(folder) if what == "end"}


def unexplained(folder, hit):
    """(executions beyond the first, those of them whose predecessor's processes were not hit)"""
    before, repeated, odd = {}, 0, []
    for _, what, number, worker, task in read_journal(folder):
        if what != "begin":
            continue
        if number in before:
            repeated += 1
            if not hit & {*before[number]}:
                odd.append((number, *before[number], worker, task))
        before[number] = (worker, task)
    return repeated, odd


def recoveries(folder, hits):
    """Seconds from each SIGKILL of a worker or the supervisor to the next task begun by a new worker."""
    begins = [(moment, worker) for moment, what, _, worker, _ in read_journal(folder) if what == "begin"]
    seconds = []
    for moment, _ in hits.worker_hits:
        known = {worker for began, worker in begins if began <= moment}
        new = [began for began, worker in begins if began > moment and worker not in known]
        if new:
            seconds.append(new[0] - moment)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="a soak of so long, in place of all else")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    arguments = parser.parse_args()
    if arguments.processes is None:
        arguments.processes = 4 if arguments.slots == 1 else 2
    print(f"seed {arguments.seed}", flush=True)
    chance = random.Random(arguments.seed)
    with fast_server() as endpoint, tempfile.TemporaryDirectory() as folder:
        if arguments.minutes:
            from benchmarks import soak  # which imports this module

            soak.run(endpoint, folder, arguments, chance)
        else:
            run(endpoint, folder, arguments, chance)


def environment(proxy, url, folder, mark):
    """The environment of a worker of `TASKS`."""
    return {
        **os.environ,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        "CHAOS_URL": url,
        "CHAOS_FOLDER": folder,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        MARK: mark,
    }


def run(endpoint, folder, arguments, chance):
    url = boto3.client("sqs").create_queue(QueueName=f"chaos-{uuid.uuid4().hex}")["QueueUrl"]
    manager = TaskManager(url)
    for number in range(arguments.tasks):
        manager.submit("Work", number=number, seconds=round(chance.uniform(0.05, 0.5), 3))
    with open(os.path.join(folder, "chaos_tasks.py"), "w") as module:
        module.write(TASKS)
    proxy = Proxy(int(endpoint.rpartition(":")[2]), chance)
    mark = uuid.uuid4().hex
    environ = environment(proxy, url, folder, mark)
    began = time.monotonic()
    service = Service(folder, arguments.processes, arguments.slots, environ)
    hits = Hits(service, chance)
    while len(finished(folder)) < arguments.tasks and time.monotonic() < began + GIVE_UP_SECONDS:
        time.sleep(chance.uniform(*SECONDS_BETWEEN_HITS))
        hits.hit()
        if service.process.poll() is not None:
            service.start()
    took = time.monotonic() - began
    proxy.be_clear()
    empty = wait_for_empty(url, service, began + GIVE_UP_SECONDS)
    service.stop()
    deadline = time.monotonic() + 5
    while left_behind(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    report(folder, arguments, hits, proxy, service, took, empty, left_behind(mark))


def wait_for_empty(url, service, deadline):
    """Whether the queue became empty: tasks that were finished but not deleted are done again first."""
    names = [f"ApproximateNumberOfMessages{kind}" for kind in ("", "NotVisible", "Delayed")]
    sqs = boto3.client("sqs")
    while time.monotonic() < deadline:
        counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        if not any(int(counts[name]) for name in names):
            return True
        if service.process.poll() is not None:
            service.start()
        time.sleep(0.5)
    return False


def report(folder, arguments, hits, proxy, service, took, empty, left):
    done = finished(folder)
    repeated, odd = unexplained(folder, hits.pids)
    together = sum(what == "together" for _, what, _, _, _ in read_journal(folder))
    seconds = recoveries(folder, hits)
    rows = (
        ("tasks completed", len(done), arguments.tasks),
        ("tasks lost", arguments.tasks - len(done), 0),
        ("executions beyond the first", repeated, "each explained"),
        ("  of them not explained by a hit", len(odd), 0),
        ("two at once", together, 0),
        ("processes left", len(left), 0),
        ("messages left in the queue", "none" if empty else "some", "none"),
    )
    for name, value, goal in rows:
        print(f"{name:<44} {value!s:>10}   goal {goal}")
    if seconds:
        row = f"{statistics.median(seconds):.1f} median, {max(seconds):.1f} longest"
        print(f"{'seconds from a SIGKILL to a new worker at work':<44} {row}")
    print(f"{'seconds for all of it':<44} {took:>10.1f}")
    print(f"hits: {dict(hits.count)}; supervisor started {service.starts} times; network: {dict(proxy.cuts)}")
    for number, *pids in odd:
        print(f"unexplained: task {number} (worker, task; again: worker, task) {pids}")
    if odd or left or together or not empty or len(done) < arguments.tasks:
        with open(os.path.join(folder, "log"), errors="replace") as log:
            sys.stderr.writelines(log.readlines()[-200:])
        sys.exit(1)


if __name__ == "__main__":
    main()
