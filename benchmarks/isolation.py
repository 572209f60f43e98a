"""The cost of running a task in a process of its own, against multiprocessing's fork and join of a no-op.

    python -m benchmarks.isolation

Both with boto3 loaded, as in a worker, and in turns. The keeper between the worker and the task is a second fork: that
is the price of leaving nothing behind. A slot already has its keeper, and forks its task ahead: it is compared with a
bare os.fork and waitpid, also when the worker holds a gibibyte.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import resource
import select
import time

import boto3

from benchmarks.servers import heading, row
from sqstaskmaster import LocalMessage, ProcessMessageHandler
from sqstaskmaster._claim import clock, note
from sqstaskmaster._isolation import process_tree
from sqstaskmaster._isolation.child import Child
from sqstaskmaster._isolation.template import Template

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


def fork_and_wait():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def two_forks():
    """The system's cost of a keeper and a task that both do nothing."""
    pid = os.fork()
    if pid == 0:
        task = os.fork()
        if task:
            os.waitpid(task, 0)
        os._exit(0)
    os.waitpid(pid, 0)


def attend(tasks, over):
    """Do what a worker's loop does for its tasks, until `over()`."""
    owners = {descriptor: task for task in tasks for descriptor in task.descriptors()}
    events = select.poll()
    for descriptor in owners:
        events.register(descriptor, select.POLLIN)
    while not over():
        due = min(task.next_step_at for task in tasks) - time.monotonic()
        for descriptor, _ in events.poll(max(0, min(due, 0.5)) * 1000 + 1):
            owners[descriptor].read(descriptor)
        for task in tasks:
            if task.next_step_at <= time.monotonic():
                task.step()


def in_slot(slot):
    task = slot.start(b"", name="no-op")
    while not task.gone:
        for descriptor in select.select(task.descriptors(), [], [], 1)[0]:
            task.read(descriptor)
    task.result()


def order_to_start(slot):
    time.sleep(0.005)  # an idle slot has its spare ready
    began = time.perf_counter()
    task = slot.start(b"", name="no-op")
    attend([task], lambda: task.ready)
    seconds = time.perf_counter() - began
    attend([task], lambda: task.gone)
    return seconds * 1000


def proportional():
    """Memory of this process and all below it, each shared page counted once."""
    pids = [os.getpid(), *process_tree.descendants(os.getpid())]
    return process_tree.memory(pids, 0) / 1e6


def own_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def slots():
    template = Template(lambda order, channel: time.sleep(3600) if order else None)
    template.start()
    slot = template.open_slot({})
    in_slot(slot)
    heading("ours", "fork")
    ours, base = [], []
    for _ in range(TURNS):
        base.append(timed(fork_and_wait))
        ours.append(timed(lambda: in_slot(slot)))
    row("no-op tasks one after the other in a slot", ours, base, "ms", "")
    started = [order_to_start(slot) for _ in range(TURNS)]
    held = bytearray(os.urandom(1 << 20)) * 1024
    heading("1 GiB held", "nothing")
    row("from order to start", [order_to_start(slot) for _ in range(TURNS)], started, "ms", "at most 1.3")
    del held
    one = proportional()
    others = [template.open_slot({}) for _ in range(99)]
    time.sleep(0.5)
    every = [slot, *others]
    tasks = [one_of.start(b"sleep", name="sleeper") for one_of in every]
    attend(tasks, lambda: all(task.ready for task in tasks))
    began, before = time.perf_counter(), own_seconds()
    until = began + IDLE_SECONDS
    attend(tasks, lambda: time.perf_counter() > until)
    share = (own_seconds() - before) / (time.perf_counter() - began)
    print(f"{'CPU of the worker for 100 sleeping slots':<44} {share * 100:>10.3f} % of a core {'':<18} under 2 %")
    for one_of in every[8:]:
        one_of.close()
    for task in tasks:
        task.kill()
    attend(tasks, lambda: all(task.gone for task in tasks))
    time.sleep(0.5)
    each = (proportional() - one) / 7
    print(f"{'memory of each further slot, of ' + format(one, '.0f') + ' MB':<44} {each:>10.3f} MB", flush=True)
    for one_of in every[:8]:
        one_of.close()
    template.close()


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
    base, run, whole, floor = [], [], [], []
    for _ in range(TURNS):
        base.append(timed(fork_and_join))
        floor.append(timed(two_forks))
        run.append(timed(child))
        whole.append(timed(block))
    heading("ours", "mp fork")
    row("two bare forks, one in the other: the floor", floor, base, "ms", "")
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
    slots()


if __name__ == "__main__":
    main()
