"""The tasks of this example; `worker` is what the command line runs."""

import os

from sqstaskmaster import TaskManager
from sqstaskmaster.worker import Worker

# ECS kills a container 120 seconds after SIGTERM, at most: what is left after the grace gives the message back.
worker = Worker(TaskManager(os.environ["QUEUE_URL"]), sqs_timeout=60, alarm_timeout=20, shutdown_grace=90)


@worker.task("CountPrimes", hard_timeout=600)
def count_primes(below):
    """Counts by trial division: slow on purpose."""
    found = sum(all(number % divisor for divisor in range(2, int(number**0.5) + 1)) for number in range(2, below))
    print(f"{found} primes below {below}", flush=True)
