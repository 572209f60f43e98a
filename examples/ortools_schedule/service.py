"""Four solves at once in one container: QUEUE_URL=... sqstaskmaster worker service:worker

OR-Tools is imported once, by the worker, which never runs it: each solve has a process of its own, forked from one that
has started no thread of a solver either, so threads in solves are safe.
"""

import logging
import os

import ortools.sat.python.cp_model  # noqa: F401  # shared by all slots
from worker import Schedule

from sqstaskmaster import TaskManager, Worker

worker = Worker(
    TaskManager(os.environ["QUEUE_URL"]),
    {"schedule": Schedule},
    slots=4,
    sqs_timeout=int(os.environ.get("SQS_TIMEOUT", "120")),
    alarm_timeout=int(os.environ.get("SQS_TIMEOUT", "120")) / 4,
    hard_timeout=3600,
    wait_time=int(os.environ.get("WAIT_TIME", "20")),
)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    worker.run()
