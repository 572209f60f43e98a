"""Four trainings at once in one container: QUEUE_URL=... sqstaskmaster worker service:worker

XGBoost is imported once, by the worker, which never runs it: each training has a process of its own, forked from one
that has run no OpenMP region either, so threads in trainings are safe.
"""

import logging
import os

import xgboost  # noqa: F401  # shared by all slots
from worker import Train

from sqstaskmaster import TaskManager, Worker

worker = Worker(
    TaskManager(os.environ["QUEUE_URL"]),
    {"train": Train},
    slots=4,
    sqs_timeout=int(os.environ.get("SQS_TIMEOUT", "120")),
    alarm_timeout=int(os.environ.get("SQS_TIMEOUT", "120")) / 4,
    hard_timeout=3600,
    wait_time=int(os.environ.get("WAIT_TIME", "20")),
)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    worker.run()
