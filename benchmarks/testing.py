"""SimulatedQueue against moto, by the length of the queue: operations per second of processor time, one thread.

    python -m benchmarks.testing

Each row fills a queue to its length, then repeats what a test does with it: send, receive, extend, delete, with
everything else waiting (standard, FIFO), or in flight. moto runs in this process, as with `mock_aws`; its queues are
short, since each of its receives looks at every message. 0: moto would take minutes for that length.
"""

from __future__ import annotations

import os
import time

SECONDS = 1.0
LENGTHS = (0, 100, 1_000, 10_000, 100_000)
MOTO_LONGEST = 1_000
GROUPS = 1_000
GOAL = 50_000

# The operations of one turn: a send, a receive, an extension, a delete.
OPERATIONS = 4


def fill(queue, length, fifo, in_flight):
    for number in range(length):
        queue.send_message(MessageBody="x", **ids(fifo, number))
    taken = 0
    while in_flight and taken < length:
        received = queue.receive_messages(MaxNumberOfMessages=10, VisibilityTimeout=43_000)
        if not received:
            break
        taken += len(received)


def ids(fifo, number, group="g"):
    if not fifo:
        return {}
    return {"MessageGroupId": f"{group}{number % GROUPS}", "MessageDeduplicationId": f"d{number}"}


def speed(queue, length, fifo, group):
    """Operations per second. `group`: the prefix of the names of groups that are not locked."""
    number, began = length, time.process_time()
    while time.process_time() < began + SECONDS:
        for _ in range(5):
            queue.send_message(MessageBody="x", **ids(fifo, number, group))
            number += 1
            (message,) = queue.receive_messages(VisibilityTimeout=30)
            message.change_visibility(VisibilityTimeout=60)
            message.delete()
    return (number - length) * OPERATIONS / (time.process_time() - began)


def simulated(length, fifo, in_flight):
    from sqstaskmaster.testing import SimulatedQueue

    SimulatedQueue.reset()
    queue = SimulatedQueue(f"simulated/benchmark{'.fifo' if fifo else ''}")
    fill(queue, length, fifo, in_flight)
    return speed(queue, length, fifo, "free" if in_flight else "g")


def moto(length, fifo, in_flight):
    import boto3
    from moto import mock_aws

    if length > MOTO_LONGEST:
        return 0.0
    with mock_aws():
        attributes = {"FifoQueue": "true"} if fifo else {}
        name = f"benchmark{'.fifo' if fifo else ''}"
        queue = boto3.resource("sqs").create_queue(QueueName=name, Attributes=attributes)
        fill(queue, length, fifo, in_flight)
        return speed(queue, length, fifo, "free" if in_flight else "g")


def main():
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_DEFAULT_REGION="us-east-1")
    print(f"{'operations a second of processor time':<36} {'simulated':>12} {'moto':>12}   goal")
    for name, fifo, in_flight in (
        ("standard, waiting", False, False),
        ("standard, in flight", False, True),
        (f"FIFO, waiting, {GROUPS:,} groups", True, False),
        (f"FIFO, in flight, {GROUPS:,} groups", True, True),
    ):
        for length in LENGTHS:
            ours, theirs = simulated(length, fifo, in_flight), moto(length, fifo, in_flight)
            print(f"{name:<28} {length:>7,} {ours:>12,.0f} {theirs:>12,.0f}   {GOAL:,}", flush=True)


if __name__ == "__main__":
    main()
