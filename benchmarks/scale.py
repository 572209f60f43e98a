"""The cost of more processes, a longer queue and an idle worker.

    python -m benchmarks.scale

Processes are those of `sqstaskmaster worker`; the tasks of the first table sleep, each in a process of its own, so that
it measures the worker and not the machine's cores. The last table compares the worker with the shortest boto3 loop
(receive one, delete it) on one server, in turns, as the queue grows: both include the server's own growth.
Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

import boto3

from benchmarks.servers import END_SECONDS, fast_server
from sqstaskmaster import MessageHandler, TaskManager, Worker

PROCESSES = (1, 2, 4, 8)
SLEEP_SECONDS = 0.25
TASKS_PER_PROCESS = 20
IDLE_PROCESSES = 4
IDLE_SECONDS = 15
LATENCY_TASKS = 100
LENGTHS = (1_000, 10_000, 50_000)
TURNS = 5
TASKS_PER_TURN = 60
GIVE_UP_SECONDS = 120

TASKS = """
import os, time
from sqstaskmaster import TaskManager, Worker

worker = Worker(TaskManager(os.environ["SCALE_URL"]))
journal = os.open(os.environ["SCALE_JOURNAL"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@worker.task("Sleep")
def sleep(seconds):
    began = time.time()
    time.sleep(seconds)
    os.write(journal, f"{began} {time.time()}\\n".encode())
"""

LOOP = """
import boto3, os, sys, time
queue = boto3.resource("sqs").Queue(sys.argv[1])
journal = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    for message in queue.receive_messages(MaxNumberOfMessages=1, WaitTimeSeconds=20, VisibilityTimeout=30):
        os.write(journal, f"{time.time()} 0\\n".encode())
        message.delete()
"""


class Fleet:
    """`sqstaskmaster worker` with this many processes, on its own queue."""

    def __init__(self, processes):
        self.url = new_queue()
        self.folder = tempfile.TemporaryDirectory()
        self.journal = os.path.join(self.folder.name, "journal")
        with open(os.path.join(self.folder.name, "scale_tasks.py"), "w") as module:
            module.write(TASKS)
        environ = {**os.environ, "SCALE_URL": self.url, "SCALE_JOURNAL": self.journal}
        environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
        command = [sys.executable, "-m", "sqstaskmaster", "worker", "scale_tasks:worker", "--processes", str(processes)]
        self.process = subprocess.Popen(
            [*command, "--log-level", "WARNING"], cwd=self.folder.name, env=environ, stdout=subprocess.DEVNULL
        )
        self.processes = processes

    def __enter__(self):
        # Every process works once before anything is measured.
        self.submit_and_wait(self.processes * 2, 0.2)
        return self

    def __exit__(self, *exception):
        for _ in range(2):  # the second means now: without waiting for the poll under way
            self.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        self.process.wait(60)
        self.folder.cleanup()

    def submit_and_wait(self, tasks, seconds):
        """(began, ended) of each of this many tasks, in the order in which they ended."""
        before = len(read(self.journal))
        manager = TaskManager(self.url)
        for _ in range(tasks):
            manager.submit("Sleep", seconds=seconds)
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while len(read(self.journal)) < before + tasks:
            if time.monotonic() > deadline:
                sys.exit(f"{tasks} tasks were not done in {GIVE_UP_SECONDS} seconds")
            time.sleep(0.002)
        return read(self.journal)[before:]

    def workers(self):
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as found:
            return [int(word) for word in found.read().split()]


class NoOp(MessageHandler):
    def run(self):
        pass


def new_queue():
    return boto3.client("sqs").create_queue(QueueName=f"scale-{uuid.uuid4().hex}")["QueueUrl"]


def throughput():
    print(f"{'processes':>10} {'tasks/s':>10} {'of linear':>10}   goal: near linear, {SLEEP_SECONDS} s of sleep a task")
    single = None
    for processes in PROCESSES:
        with Fleet(processes) as fleet:
            entries = fleet.submit_and_wait(processes * TASKS_PER_PROCESS, SLEEP_SECONDS)
        took = max(ended for _, ended in entries) - min(began for began, _ in entries)
        rate = len(entries) / took
        single = single or rate
        print(f"{processes:>10} {rate:>10.2f} {rate / single / processes:>10.2f}", flush=True)


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_memory(pid):
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:")) / 1024


def idle():
    with Fleet(IDLE_PROCESSES) as fleet:
        supervisor, workers = fleet.process.pid, fleet.workers()
        time.sleep(1)
        used = {pid: cpu_seconds(pid) for pid in (supervisor, *workers)}
        time.sleep(IDLE_SECONDS)
        used = {pid: (cpu_seconds(pid) - before) / IDLE_SECONDS * 100 for pid, before in used.items()}
        memory = {pid: proportional_memory(pid) for pid in used}
    print(f"{'':<20} {'% of a core':>12} {'MB':>8}   idle for {IDLE_SECONDS} s; memory is proportional set size")
    print(f"{'supervisor':<20} {used[supervisor]:>12.2f} {memory[supervisor]:>8.1f}")
    each = [statistics.mean(values[pid] for pid in workers) for values in (used, memory)]
    print(f"{'each worker process':<20} {each[0]:>12.2f} {each[1]:>8.1f}", flush=True)


def latency():
    with Fleet(1) as fleet, tempfile.TemporaryDirectory() as folder:
        url, journal = new_queue(), os.path.join(folder, "journal")
        loop = subprocess.Popen([sys.executable, "-c", LOOP, url, journal])
        try:
            start_seconds(url, journal)  # waits until the loop works
            turns = [
                (start_seconds(url, journal) * 1000, start_seconds(fleet.url, fleet.journal) * 1000)
                for _ in range(LATENCY_TASKS)
            ]
        finally:
            loop.kill()
            loop.wait(END_SECONDS)
    print(
        f"{'':<10} {'loop':>9} {'worker':>9} {'ours':>9}   ms from submit to the task's first line, on an idle worker"
    )
    for name, of in (("median", statistics.median), ("p95", lambda values: statistics.quantiles(values, n=20)[-1])):
        them, us = (of(column) for column in zip(*turns))
        print(f"{name:<10} {them:>9.1f} {us:>9.1f} {us - them:>9.1f}", flush=True)


def start_seconds(url, journal):
    """Seconds from sending a task until it begins."""
    known = len(read(journal))
    time.sleep(0.15)  # until the consumer is in its poll
    manager = TaskManager(url)
    submitted = time.time()
    manager.submit("Sleep", seconds=0)
    while len(read(journal)) == known:
        if time.time() > submitted + GIVE_UP_SECONDS:
            sys.exit(f"a task was not begun in {GIVE_UP_SECONDS} seconds")
        time.sleep(0.001)
    return read(journal)[-1][0] - submitted


def read(journal):
    try:
        with open(journal) as entries:
            return [tuple(map(float, line.split())) for line in entries]
    except FileNotFoundError:
        return []


def fill(url, length):
    sqs = boto3.client("sqs")
    body = '{"task": "NoOp", "kwargs": {}}'
    for _ in range(length // 10):
        sqs.send_message_batch(QueueUrl=url, Entries=[{"Id": str(i), "MessageBody": body} for i in range(10)])


def loop_turn(url):
    queue = boto3.resource("sqs").Queue(url)
    began = time.perf_counter()
    for _ in range(TASKS_PER_TURN):
        (message,) = queue.receive_messages(
            AttributeNames=["All"], MaxNumberOfMessages=1, WaitTimeSeconds=20, VisibilityTimeout=30
        )
        message.delete()
    return time.perf_counter() - began


def worker_turn(url):
    """The same with a worker, which is stopped after its last task."""
    done = 0

    def count(event):
        nonlocal done
        done += event == "idle"
        if done == TASKS_PER_TURN:
            os.kill(os.getpid(), signal.SIGTERM)

    worker = Worker(TaskManager(url), {"NoOp": NoOp})
    began = time.perf_counter()
    worker.run(on_event=count)
    return time.perf_counter() - began


def growth():
    print(f"{'messages':>10} {'loop':>9} {'worker':>9} {'ours':>9}   ms a task, as the queue grows; in one process")
    for length in LENGTHS:
        url = new_queue()
        fill(url, length)
        turns = [(loop_turn(url), worker_turn(url)) for _ in range(TURNS)]
        loop, worker = (statistics.median(column) / TASKS_PER_TURN * 1000 for column in zip(*turns))
        print(f"{length:>10} {loop:>9.3f} {worker:>9.3f} {worker - loop:>9.3f}", flush=True)
        boto3.client("sqs").delete_queue(QueueUrl=url)


def main():
    parts = {"throughput": throughput, "idle": idle, "latency": latency, "growth": growth}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    chosen = parser.parse_args().parts or parts
    logging.disable(logging.CRITICAL)
    with fast_server():
        for part in chosen:
            parts[part]()
            print()


if __name__ == "__main__":
    main()
