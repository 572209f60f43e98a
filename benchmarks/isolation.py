"""What it costs to run a task in a process of its own, beside multiprocessing's fork and join of a no-op.

    python -m benchmarks.isolation

Both with boto3 loaded, as in a worker, and in turns. The keeper between the worker and the task is a second fork: that
is the price of leaving nothing behind.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import resource
import time

import boto3

from benchmarks.servers import heading, row
from sqstaskmaster import LocalMessage, ProcessMessageHandler
from sqstaskmaster._claim import clock, note
from sqstaskmaster._isolation.child import Child

TURNS = 200
TASKS = 1000
IDLE_SECONDS = 20
SETTLED_TASKS = 100


class NoOp(ProcessMessageHandler):
    def run(self):
        pass


class Sleeper(ProcessMessageHandler):
    def run(self):
        time.sleep(IDLE_SECONDS)


def message():
    fresh = LocalMessage("{}", {})
    note.leave(fresh, note.Receipt(clock.now(), clock.now(), 43200))
    return fresh


def fork_and_join():
    process = multiprocessing.get_context("fork").Process(target=time.time)
    process.start()
    process.join()


def child():
    running = Child(lambda report: None, name="no-op")
    running.start()
    while not running.wait(10):
        pass
    running.result()
    return running.close


def block():
    with NoOp(message(), 43200, 20000, 43200) as handler:
        handler.run()


def timed(function):
    began = time.perf_counter()
    after = function()
    seconds = time.perf_counter() - began
    if after:
        after()
    return seconds * 1000


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main():
    logging.disable(logging.CRITICAL)
    boto3.resource("sqs", region_name="us-east-1")
    gc.collect()
    for function in (fork_and_join, child, block):
        function()
    base, run, whole = [], [], []
    for _ in range(TURNS):
        base.append(timed(fork_and_join))
        run.append(timed(child))
        whole.append(timed(block))
    heading("ours", "mp fork")
    row("no-op task in a child, until it is gone", run, base, "ms", "at most 1.5, and at most 5 ms")
    row("the same as a whole block, keeper reaped", whole, base, "ms", "at most 1.5, and at most 5 ms")

    for _ in range(SETTLED_TASKS):
        block()
    descriptors, before = len(os.listdir("/proc/self/fd")), resident()
    for _ in range(TASKS):
        block()
    after = resident()
    print(f"{'memory of the worker over ' + str(TASKS) + ' tasks':<44} {after:>10.1f} {before:>10.1f} MB", end="")
    print(f" {after / before:>17.3f}   no growth")
    print(f"{'descriptors after them, and before':<44} {len(os.listdir('/proc/self/fd')):>10} {descriptors:>10}")

    used = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    with Sleeper(message(), 43200, 20000, 43200) as handler:
        handler.run()
    now = resource.getrusage(resource.RUSAGE_SELF)
    share = (now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime) / (time.perf_counter() - began)
    print(f"{'CPU of the worker while a task runs':<44} {share * 100:>10.3f} % of a core {'':<18} under 0.2 %")


if __name__ == "__main__":
    main()
