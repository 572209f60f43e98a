"""A quarter of an hour of everything at once: what `benchmarks.chaos --minutes 15` runs.

Two workers with four slots each, on one queue with a dead-letter queue, run tasks of all kinds: done, failing, hanging,
crashing, continued, dead-lettered, small fork bombs. One worker is hit as a whole, as in chaos; in the other only tasks
and keepers are hit, so that its memory and descriptors at the end can be compared with those after the third minute.
The proxy in front of the server cuts, delays, refuses, throttles and falls silent.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import statistics
import sys
import threading
import time
import uuid

import boto3

from benchmarks import chaos
from sqstaskmaster import TaskManager

SLOTS = 4
MOST_RECEIVES = 8
MOST_WAITING = 30
SECONDS_OF_WEATHER = (0.3, 2.5)
WEATHER = {"clear": 60, "delay": 12, "cut": 8, "refuse": 6, "throttle": 8, "silent": 6}
KINDS = {"ok": 70, "fails": 6, "hangs": 4, "crashes": 5, "continues": 8, "dead": 5, "forks": 4}
SPARED_HITS = {"KILL task": 25, "KILL keeper": 15}
# Measuring the steady worker: how many samples of each figure, how far apart.
SAMPLES, SECONDS_BETWEEN_SAMPLES = 20, 1.0
REFERENCE_SECONDS = 180
MOST_GROWTH = 1.10
EMPTY_SECONDS = 240

# The parts of a task that continues, the first included.
PARTS = 3
# What the log says about a message that comes a second time because an answer from SQS is missing.
EXPLAINING = {
    *("claim_lost", "extension_failed", "delete_retried", "delete_failed", "give_back_failed", "adopted"),
    *("interrupted", "given_back", "dead_letter_failed"),
}

TASKS = chaos.TASKS + """

from sqstaskmaster import Continue, DeadLetter, current_task

ids = os.open(os.path.join(FOLDER, "ids"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)


PARTS = 3


@worker.task("Any", hard_timeout=3, term_grace=0.5)
def any_kind(number, kind, seconds, part=0):
    os.write(ids, f"{number} {current_task().message_id}\\n".encode())
    if kind == "continues" and part < PARTS - 1:
        time.sleep(seconds / 3)
        raise Continue(part=part + 1)
    if kind == "dead":
        raise DeadLetter("no retry helps")
    if kind == "fails":
        raise ValueError("as it was told")
    if kind == "hangs":
        while True:
            try:
                time.sleep(3600)
            except BaseException:
                pass
    if kind == "crashes":
        os.kill(os.getpid(), random.choice([6, 9, 11]))
    if kind == "forks":
        for _ in range(20):
            if not os.fork():
                os.setsid()
                time.sleep(3600)
    work(number, seconds)
"""

THROTTLED = json.dumps({"__type": "com.amazonaws.sqs#RequestThrottled", "message": "as it was told"})
THROTTLE = (
    "HTTP/1.1 400 Bad Request\r\nContent-Type: application/x-amz-json-1.0\r\nConnection: close\r\n"
    f"Content-Length: {len(THROTTLED)}\r\n\r\n{THROTTLED}"
).encode()


class Proxy(chaos.Proxy):
    """With throttles and silence."""

    seconds, odds = SECONDS_OF_WEATHER, WEATHER

    async def _pump(self, reader, writer, both):
        if writer is both[1]:
            await super()._pump(_Requests(self, reader, both[0]), writer, both)
        else:
            await super()._pump(reader, writer, both)


class _Requests:
    """The requests of a client, some of which are never passed on."""

    def __init__(self, proxy, reader, client):
        self._proxy, self._reader, self._client = proxy, reader, client

    async def read(self, size):
        data = await self._reader.read(size)
        if data and self._proxy.weather == "throttle":
            self._proxy.cuts["throttled"] += 1
            self._client.write(THROTTLE)
            await self._client.drain()
            return b""
        if data and self._proxy.weather == "silent":
            self._proxy.cuts["silent"] += 1
            # Until long after its client has given up, as a server behind a firewall that drops packets.
            await asyncio.sleep(30)
            return b""
        return data


class Figures:
    """MiB and descriptors of a worker, its template and its keepers: medians over some seconds."""

    def __init__(self, service):
        found = collections.defaultdict(list)
        for _ in range(SAMPLES):
            with contextlib.suppress(OSError, StopIteration, IndexError):
                self._sample(service, found)
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        self.medians = {name: statistics.median(values) for name, values in found.items()}

    @staticmethod
    def _sample(service, found):
        (worker,) = service.workers()
        (template,) = chaos.children(worker)
        keepers = chaos.children(template)
        for name, pids in (("worker", [worker]), ("template", [template]), ("keeper", keepers)):
            if pids:
                found[f"{name}: MiB"].append(sum(map(_memory, pids)) / len(pids))
                found[f"{name}: descriptors"].append(
                    sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids) / len(pids)
                )


def _memory(pid):
    """Its own MiB: what it shares with files depends on which other processes have mapped them."""
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:")) / 1024


def run(endpoint, folder, arguments, chance):
    sqs = boto3.client("sqs")
    dead = sqs.create_queue(QueueName=f"soak-dead-{uuid.uuid4().hex}")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": MOST_RECEIVES})
    url = sqs.create_queue(
        QueueName=f"soak-{uuid.uuid4().hex}", Attributes={"RedrivePolicy": policy, "VisibilityTimeout": "6"}
    )["QueueUrl"]
    with open(os.path.join(folder, "chaos_tasks.py"), "w") as module:
        module.write(TASKS)
    proxy = Proxy(int(endpoint.rpartition(":")[2]), chance)
    mark = uuid.uuid4().hex
    environ = chaos.environment(proxy, url, folder, mark)
    steady, hit = (chaos.Service(folder, 1, SLOTS, environ, "--log-json") for _ in range(2))
    producer = Producer(sqs, url, chance)
    hits = [chaos.Hits(steady, chance, SPARED_HITS), chaos.Hits(hit, chance)]
    began = time.monotonic()
    until = began + arguments.minutes * 60 - SAMPLES * SECONDS_BETWEEN_SAMPLES
    reference = []
    look = threading.Timer(
        min(REFERENCE_SECONDS, arguments.minutes * 60 / 3), lambda: reference.append(Figures(steady).medians)
    )
    look.start()
    while time.monotonic() < until:
        time.sleep(chance.uniform(*chaos.SECONDS_BETWEEN_HITS))
        chance.choice(hits).hit()
        if hit.process.poll() is not None:
            hit.start()
    look.join()
    last = Figures(steady).medians
    producer.stop()
    proxy.be_clear()
    empty = chaos.wait_for_empty(url, hit, time.monotonic() + EMPTY_SECONDS)
    took = time.monotonic() - began
    services_ended = [steady.process.poll() is not None]
    for service in (steady, hit):
        service.stop()
    deadline = time.monotonic() + 5
    while chaos.left_behind(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    dead_letters = _numbers_in(sqs, dead)
    felled = hits[0].pids | hits[1].pids
    rows = _rows(folder, producer, dead_letters, felled, empty, chaos.left_behind(mark), services_ended[0])
    broken = _print(rows, reference[0], last)
    print(f"seconds for all of it: {took:.0f}; starts of the worker that was hit: {hit.starts}")
    print(f"hits: {dict(hits[0].count + hits[1].count)}; network: {dict(proxy.cuts)}")
    print(f"submitted: {dict(producer.kinds)}")
    if broken:
        with open(os.path.join(folder, "log"), errors="replace") as log:
            sys.stderr.writelines(log.readlines()[-300:])
        sys.exit(1)


class Producer:
    """Submits messages, so that there is always a little work waiting. Not through the proxy."""

    def __init__(self, sqs, url, chance):
        self.kinds = collections.Counter()
        self.kind_of = {}
        self._sqs, self._url, self._chance = sqs, url, chance
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._produce)
        self._thread.start()

    def stop(self):
        self._over.set()
        self._thread.join()

    def _produce(self):
        manager, name = TaskManager(self._url), "ApproximateNumberOfMessages"
        while not self._over.wait(0.3):
            counts = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=[name])["Attributes"]
            for _ in range(MOST_WAITING - int(counts[name])):
                kind = self._chance.choices(list(KINDS), list(KINDS.values()))[0]
                number = len(self.kind_of)
                seconds = round(self._chance.uniform(0.1, 2.0), 3)
                manager.submit("Any", number=number, kind=kind, seconds=seconds)
                self.kind_of[number] = kind
                self.kinds[kind] += 1


def _numbers_in(sqs, url):
    found = collections.Counter()
    while True:
        received = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=600).get("Messages", [])
        if not received:
            return found
        for message in received:
            found[json.loads(message["Body"])["kwargs"]["number"]] += 1


def _rows(folder, producer, dead_letters, felled, empty, left, steady_has_ended):
    """(what, found, goal, whether it holds)"""
    kinds = producer.kind_of
    done = chaos.finished(folder)
    lost = [number for number in kinds if number not in done and number not in dead_letters]
    odd_done = [number for number in done if kinds[number] in ("fails", "hangs", "crashes", "dead")]
    odd_dead = [number for number in dead_letters if kinds[number] in ("ok", "continues", "forks")]
    both = [number for number in done if number in dead_letters]
    is_explained = _explanations(folder, kinds)
    twice, unexplained = _finished_twice(folder, felled, is_explained)
    together = [number for _, what, number, _, _ in chaos.read_journal(folder) if what == "together"]
    odd_together = [number for number in together if not is_explained(number)]
    yield "messages submitted", len(kinds), "", True
    yield "messages lost", len(lost), 0, not lost
    yield "finished though they cannot", len(odd_done), 0, not odd_done
    yield "dead letters though nothing is wrong with them", len(odd_dead), f"{MOST_RECEIVES} hits each", True
    yield "  finished too", len(both), "each was hit", True
    yield "dead letters twice", sum(number > 1 for number in dead_letters.values()), "a send was cut", True
    yield "finished twice", twice, "each explained", True
    yield "  by neither a hit nor the log", len(unexplained), 0, not unexplained
    yield "two at once", len(together), "each explained", True
    yield "  not by the log", len(odd_together), 0, not odd_together
    yield "processes left", len(left), 0, not left
    yield "messages left in the queue", "none" if empty else "some", "none", empty
    yield "the worker that was spared has ended", steady_has_ended, False, not steady_has_ended
    for number in lost:
        print(f"lost: {number} ({kinds[number]})")
    for number in odd_together:
        print(f"two at once: {number} ({kinds[number]})")
    for line in unexplained:
        print(f"unexplained: {line}")


def _explanations(folder, kinds):
    """Whether the log explains why a number is run a second time: its claim or its delete had no answer, or its
    successor was sent twice.
    """
    ids, actions = collections.defaultdict(set), collections.defaultdict(set)
    with open(os.path.join(folder, "ids")) as lines:
        for number, message_id in map(str.split, lines):
            ids[int(number)].add(message_id)
    with open(os.path.join(folder, "log"), errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, AttributeError):
                record = json.loads(line)
                actions[record.get("message_id")].add(record.get("action"))

    def is_explained(number):
        sent_twice = len(ids[number]) > (PARTS if kinds[number] == "continues" else 1)
        return sent_twice or any(actions[message_id] & EXPLAINING for message_id in ids[number])

    return is_explained


def _finished_twice(folder, felled, is_explained):
    """How many were finished twice, and which of them without an explanation."""
    ends, twice, odd = {}, 0, []
    for moment, what, number, worker, task in chaos.read_journal(folder):
        if what == "end":
            if number in ends:
                twice += 1
                before, *pids = ends[number]
                if not felled & {*pids} and not is_explained(number):
                    odd.append((number, before, *pids, moment, worker, task))
            ends[number] = (moment, worker, task)
    return twice, odd


def _print(rows, reference, last):
    broken = False
    print(f"{'':<48} {'found':>10}   {'goal':<16} held")
    for name, found, goal, holds in rows:
        broken |= not holds
        print(f"{name:<48} {found!s:>10}   {goal!s:<16} {'yes' if holds else 'no'}")
    print(f"{'of the worker that was spared':<48} {'early':>10} {'at the end':>10}")
    for name, before in reference.items():
        after = last.get(name, float("nan"))
        holds = after <= before * MOST_GROWTH
        broken |= not holds
        print(f"  {name:<46} {before:>10.1f} {after:>10.1f}   {after / before - 1:>+6.1%} {'yes' if holds else 'no'}")
    return broken
