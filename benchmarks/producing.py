"""Sending tasks against bare boto3: one by one, many at once, many at once to a distant region. One run, one server.

    python -m benchmarks.producing

The sides take turns in one process, on one queue that is emptied before each turn, so that other load on the machine
affects all of them. The bare sides send the same bytes: the same JSON, the same message attribute. The server must be
faster than they are (`pip install roto-aws`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from benchmarks.servers import END_SECONDS, fast_server, free_port, heading, row, wait_for_port

SINGLE_TURNS = 25
SINGLE_TASKS = 150
TURNS = 7
TASKS = 8000
FAR_TURNS = 3
FAR_TASKS = 2000
FAR_SECONDS = 0.015
MEMORY_TASKS = (10_000, 100_000)


def tasks(number):
    for index in range(number):
        yield "Resize", {"number": index, "path": f"s3://bucket/images/{index}.jpg", "sizes": [64, 256, 1024]}


class Bare:
    """What a user would write with boto3 alone."""

    def __init__(self, url):
        import boto3
        from botocore.config import Config

        self.client = boto3.client("sqs", config=Config(max_pool_connections=10))
        self.url = url

    def entry(self, task, kwargs):
        return {
            "MessageBody": json.dumps({"task": task, "kwargs": kwargs}, default=str),
            "MessageAttributes": {"service_name": {"StringValue": "benchmark", "DataType": "String"}},
        }

    def one_by_one(self, number):
        for task, kwargs in tasks(number):
            self.client.send_message(QueueUrl=self.url, **self.entry(task, kwargs))

    def batches(self, number):
        entries = []
        for task, kwargs in tasks(number):
            entries.append({"Id": str(len(entries)), **self.entry(task, kwargs)})
            if len(entries) == 10:
                yield entries
                entries = []

    def send(self, entries):
        answer = self.client.send_message_batch(QueueUrl=self.url, Entries=entries)
        assert len(answer["Successful"]) == len(entries)

    def one_thread(self, number):
        for entries in self.batches(number):
            self.send(entries)

    def eight_threads(self, number):
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(self.send, self.batches(number)):
                pass


class Ours:
    def __init__(self, url):
        from sqstaskmaster import TaskManager

        self.manager = TaskManager(url, sender_name="benchmark")

    def submit(self, number):
        for task, kwargs in tasks(number):
            self.manager.submit(task, **kwargs)

    def submit_many(self, number):
        assert self.manager.submit_many(tasks(number)).sent == number


def take_turns(client, url, sides, number, turns):
    """For each side a list of (wall, CPU), in milliseconds per task. The first turn warms up."""
    times = {side: [] for side in sides}
    for turn in range(turns + 1):
        for side in sides:
            client.purge_queue(QueueUrl=url)
            wall, cpu = time.perf_counter(), time.process_time()
            side(number)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn:
                times[side].append((wall / number * 1000, cpu / number * 1000))
    return [list(zip(*times[side])) for side in sides]


def better(one, other):
    return min(one, other, key=statistics.median)


@contextlib.contextmanager
def far_away(endpoint, seconds=FAR_SECONDS):
    """The address of a proxy, in its own process, that delays each request to the endpoint like a distant region."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=delay, args=(port, endpoint, seconds), daemon=True)
    process.start()
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join(END_SECONDS)


def delay(port, endpoint, seconds):
    address = urlsplit(endpoint)

    async def serve(reader, writer):
        upstream, downstream = await asyncio.open_connection(address.hostname, address.port)
        loop = asyncio.get_running_loop()

        async def there():
            while data := await reader.read(1 << 20):
                loop.call_later(seconds, downstream.write, data)
            loop.call_later(seconds, downstream.close)

        async def back():
            while data := await upstream.read(1 << 20):
                writer.write(data)
            writer.close()

        await asyncio.gather(there(), back(), return_exceptions=True)

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(main())


def peak(number, url):
    """The peak memory, in MB, of a fresh process that submits this many tasks from a generator."""
    command = [sys.executable, "-m", "benchmarks.producing", "peak", str(number), url]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout)


def main():
    import boto3

    with fast_server() as endpoint:
        client = boto3.client("sqs")
        url = client.create_queue(QueueName="producing")["QueueUrl"]
        bare, ours = Bare(url), Ours(url)

        print(f"{SINGLE_TURNS} turns of {SINGLE_TASKS} tasks one by one, {TURNS} of {TASKS} at once; medians")
        heading("ours", "boto3")
        (wall, cpu), (raw_wall, raw_cpu) = take_turns(
            client, url, [ours.submit, bare.one_by_one], SINGLE_TASKS, SINGLE_TURNS
        )
        row("submit: time", wall, raw_wall, "ms/task", "at most 1.05")
        row("submit: CPU", cpu, raw_cpu, "ms/task", "at most 1.05")

        sides = [ours.submit_many, bare.one_thread, bare.eight_threads]
        (wall, cpu), (one_wall, one_cpu), (eight_wall, eight_cpu) = take_turns(client, url, sides, TASKS, TURNS)
        row("submit_many: time, to one thread", wall, one_wall, "ms/task", "")
        row("submit_many: time, to eight threads", wall, eight_wall, "ms/task", "")
        row("submit_many: time, to the better", wall, better(one_wall, eight_wall), "ms/task", "at most 1.11")
        row("submit_many: CPU, to one thread", cpu, one_cpu, "ms/task", "")
        row("submit_many: CPU, to eight threads", cpu, eight_cpu, "ms/task", "")
        row("submit_many: CPU, to the better", cpu, better(one_cpu, eight_cpu), "ms/task", "at most 1.11")

        with far_away(endpoint) as far:
            os.environ["AWS_ENDPOINT_URL"] = far
            far_bare, far_ours = Bare(url), Ours(url)
            sides = [far_ours.submit_many, far_bare.one_thread, far_bare.eight_threads]
            (wall, _), (one_wall, _), (eight_wall, _) = take_turns(client, url, sides, FAR_TASKS, FAR_TURNS)
            row("15 ms away: time, to one thread", wall, one_wall, "ms/task", "at most 0.20")
            row("15 ms away: time, to eight threads", wall, eight_wall, "ms/task", "")
            os.environ["AWS_ENDPOINT_URL"] = endpoint

        few, many = MEMORY_TASKS
        client.purge_queue(QueueUrl=url)
        base = peak(few, url)
        client.purge_queue(QueueUrl=url)
        row(f"peak memory: {many:,} tasks, to {few:,}", [peak(many, url)], [base], "MB", "flat")


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        _, _, count, queue_url = sys.argv
        Ours(queue_url).submit_many(int(count))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024))
    else:
        main()
