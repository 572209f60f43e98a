"""Only SQS's own word counts: every operation, times everything that may come in the place of SQS's answer.

A row is an operation of SQS, and what the library does with it. Whatever comes as the answer, no message is lost: what
the library says is done has been done, and what it says is not done may be asked for again. To add an operation, add a
row. `python -m tests.test_sqss_word` prints the table, and one of what a worker does with the same answers.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import time
import unittest
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

from botocore.exceptions import BotoCoreError, ClientError

from sqstaskmaster import Continue, DeadLetter, Worker, task_manager
from sqstaskmaster._claim import settlement
from sqstaskmaster._cli import dead
from sqstaskmaster._cli.exits import CommandError
from sqstaskmaster._sending import sending
from sqstaskmaster._sqs.answers import SQS_ERRORS, code_of
from sqstaskmaster.errors import NoAnswer, TasksNotSent
from sqstaskmaster.task_manager import TaskManager
from tests.support import ServerTestCase, endpoint
from tests.support.faults import FAULTS, OF_BATCHES, PAGE, Faulty

BODY = '{"task": "T", "kwargs": {}}'

#: What the library says to these; to all others NoAnswer.
SAID = {
    "a page, 404": ClientError,
    "503": ClientError,
    "throttled": ClientError,
    "a lost answer": BotoCoreError,
    "silence": BotoCoreError,
}

#: What an operation that has nothing to say, or says it elsewhere, does not notice: it has been carried out.
UNNOTICED = frozenset({"half an answer", "a wrong MD5"})


class Queues(NamedTuple):
    """The test, and the URLs of its queues. The environment leads through the proxy while `act` runs."""

    case: ServerTestCase
    url: str
    dead_letters: str

    def send(self, url):
        self.case.sqs.send_message(QueueUrl=url, MessageBody=BODY)

    def kept(self):
        """How many messages there are in both, hidden ones included."""
        return sum(sum(self.case.counts(url)) for url in (self.url, self.dead_letters))


class Row(NamedTuple):
    """`act(queues)` uses the library, and raises what the library says where it was not done.

    `law(case, kept, undone)`: what holds of how many messages are there afterwards, where so many of what was asked for
    are not done, as the library says. `begin(queues)` comes before. `done_by`: faults by which it is done, as it says.
    """

    operation: str
    what: str
    act: Callable[[Any], Any]
    law: Callable[[Any, int, int], Any]
    begin: Callable[[Any], Any] = lambda queues: None
    asked: int = 1
    is_batch: bool = False
    done_by: frozenset[str] = frozenset()

    def faults(self):
        return [fault for fault in FAULTS if self.is_batch or fault not in OF_BATCHES]


# -- what is there afterwards -----------------------------------------------------------------------------------------


def sent(asked):
    return lambda case, kept, undone: case.assertGreaterEqual(kept, asked - undone, "said to be sent, and is not there")


def stays(case, kept, undone):
    case.assertGreaterEqual(kept, 1, "lost")


def goes(case, kept, undone):
    case.assertLessEqual(kept, undone, "said to be deleted, and is there")


# -- the rows ---------------------------------------------------------------------------------------------------------


def submit(queues):
    TaskManager(queues.url).submit("T")


def submit_many(queues):
    TaskManager(queues.url).submit_many([("T", {"n": n}) for n in range(4)], threads=1)


def redrive(queues):
    arguments = argparse.Namespace(url=queues.dead_letters, task="T", id=None, limit=None, rate=None)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            dead.move_some(arguments, queues.url)
    except CommandError as told:
        error = told
        while isinstance(error, CommandError):
            error = error.__cause__
        raise error from None


def poll(queues):
    return TaskManager(queues.url).receive(0, 30)


def delete(queues):
    ((_, _, message),) = poll(queues)
    message.delete()


def extend(queues):
    ((_, _, message),) = poll(queues)
    message.change_visibility(VisibilityTimeout=60)


def purge(queues):
    TaskManager(queues.url).purge()


def attributes(queues):
    TaskManager(queues.url).attributes()


def one_task(queues):
    queues.send(queues.url)


def one_dead(queues):
    queues.send(queues.dead_letters)


ROWS = (
    Row("SendMessage", "submit", submit, sent(1)),
    Row("SendMessageBatch", "submit_many", submit_many, sent(4), asked=4, is_batch=True),
    Row("SendMessage", "redrive", redrive, stays, one_dead),
    Row("DeleteMessage", "redrive", redrive, stays, one_dead, done_by=UNNOTICED),
    # As messages of a classic loop do it.
    Row("ReceiveMessage", "poll", poll, stays, one_task, done_by=UNNOTICED),
    Row("DeleteMessage", "delete", delete, goes, one_task, done_by=UNNOTICED),
    Row("ChangeMessageVisibility", "extend", extend, stays, one_task, done_by=UNNOTICED),
    Row("PurgeQueue", "purge", purge, goes, one_task, done_by=UNNOTICED),
    Row("GetQueueAttributes", "attributes", attributes, stays, one_task, done_by=frozenset({"a wrong MD5"})),
)


class TableTest(ServerTestCase):
    def setUp(self):
        super().setUp()
        for patch in (
            mock.patch.object(dead, "_WAIT_SECONDS", 0),
            mock.patch.object(sending, "_TRIES", 2),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    def said(self, row, fault, times, tries):
        """What the library says, None where that is that it is done; and how many messages there are then."""
        queues = Queues(self, self.create_queue(max_receive_count=3), self.dead_letters)
        row.begin(queues)
        proxy = Faulty(self, endpoint(), row.operation, fault, times)
        environ = {"AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": str(tries), "AWS_RETRY_MODE": "standard"}
        waits = mock.patch.object(task_manager, "_READ_SECONDS", 1.0 if fault == "silence" else 20.0)
        with mock.patch.dict(os.environ, environ), waits:
            try:
                row.act(queues)
                said = None
            except (*SQS_ERRORS, TasksNotSent) as error:
                said = error
        proxy.over.set()
        self.assertTrue(proxy.met, "the operation was not asked for")
        undone = len(said.failures) if isinstance(said, TasksNotSent) else 0 if said is None else row.asked
        kept = queues.kept()
        row.law(self, kept, undone)
        return said, kept

    def each(self, check):
        for row in ROWS:
            for fault in row.faults():
                with self.subTest(row.what, operation=row.operation, fault=fault):
                    check(row, fault)

    def test_nothing_is_lost_and_nothing_is_taken_for_done_whatever_comes_for_ever(self):
        def check(row, fault):
            said, _ = self.said(row, fault, times=None, tries=1)
            if fault in row.done_by:
                self.assertIsNone(said)
            else:
                self.assertIsInstance(said, TasksNotSent if row.is_batch else SAID.get(fault, NoAnswer))
                self.assertNotIn(PAGE, str(said))

        self.each(check)

    def test_what_comes_once_is_asked_again_where_that_helps_and_nothing_is_lost(self):
        def check(row, fault):
            said, _ = self.said(row, fault, times=1, tries=2)
            # By tries of our own, and botocore's where it is an error to botocore.
            if row.is_batch or fault in ("503", "throttled", "a lost answer", "silence"):
                if row.what == "purge" and fault == "a lost answer" and said is not None:
                    self.assertEqual("PurgeQueueInProgress", code_of(said))  # one a minute, says SQS
                else:
                    self.assertIsNone(said)

        self.each(check)


# -- a worker ---------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What a worker asks of SQS about a message: `task` is the name of the task that makes it."""

    operation: str
    task: str


WORK = (
    Work("DeleteMessage", "Done"),
    Work("ChangeMessageVisibility", "Long"),  # extended
    Work("ChangeMessageVisibility", "Later"),  # comes back after its retry delay
    Work("SendMessage", "Step"),  # its successor
    Work("SendMessage", "Dead"),
)

CLAIM_SECONDS = 2


def worker_of(url):
    worker = Worker(TaskManager(url), wait_time=1, sqs_timeout=CLAIM_SECONDS, alarm_timeout=0.5)
    worker.task("Done")(lambda: None)
    worker.task("Long")(lambda: time.sleep(CLAIM_SECONDS + 1))

    @worker.task("Later", retry_delay=lambda exception, receive_count: 60)
    def later():
        raise ValueError("not today")

    @worker.task("Step")
    def step(last=False):
        if not last:
            raise Continue(last=True)

    @worker.task("Dead")
    def dead():
        raise DeadLetter("never")

    return worker


class WorkerTableTest(ServerTestCase):
    """A message is gone only where its task is done, or where what comes after it is there."""

    def run_worker(self, work, fault, times):
        """How its tasks have ended, by how many, and how many messages there are then."""
        queues = Queues(self, self.create_queue(max_receive_count=3), self.dead_letters)
        self.sqs.send_message(QueueUrl=queues.url, MessageBody=json.dumps({"task": work.task, "kwargs": {}}))
        proxy = Faulty(self, endpoint(), work.operation, fault, times)
        sends = mock.patch.object(settlement, "SEND_SECONDS", 3.0)
        with mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": proxy.url}), sends:
            counts = worker_of(queues.url).run(burst=True)
        proxy.over.set()
        self.assertTrue(proxy.met, "the operation was not asked for")
        kept = queues.kept()
        self.assertTrue(kept or counts["done"], f"lost: {counts}")
        if work.task in ("Later", "Dead"):
            self.assertTrue(kept, f"lost: {counts}")
        return dict(counts), kept

    def test_nothing_is_lost(self):
        logging.getLogger("sqstaskmaster").addHandler(quiet := logging.NullHandler())
        self.addCleanup(logging.getLogger("sqstaskmaster").removeHandler, quiet)
        for work in WORK:
            for fault, times in (("{}", 1), ("a lost answer", 1)):  # the table has all
                with self.subTest(work.task, operation=work.operation, fault=fault, times=times):
                    self.run_worker(work, fault, times)


def print_table():
    """What the library said, and how many messages there were then; where it was asked for once, and for ever."""

    class Table(TableTest, WorkerTableTest):
        """Each row is a test, since the guard gives each its time."""

        def __init__(self, row):
            super().__init__()
            self.row = row

        def runTest(self):
            row = self.row
            what, asked = (row.what, row.asked) if isinstance(row, Row) else (f"a worker's task {row.task}", 1)
            faults = row.faults() if isinstance(row, Row) else [name for name in FAULTS if name not in OF_BATCHES]
            print(f"\n{row.operation}, {what}: of {asked}")
            for fault in faults:
                cells = [*(self.cells_of_worker(fault) if isinstance(row, Work) else self.cells(fault))]
                print(f"  {fault:<20}once: {cells[0]:<34}for ever: {cells[1]}", flush=True)

        def cells(self, fault):
            for times, tries in ((1, 2), (None, 1)):
                said, kept = self.said(self.row, fault, times, tries)
                yield f"{'done' if said is None else type(said).__name__}, {kept} there"

        def cells_of_worker(self, fault):
            for times in (1, None):
                counts, kept = self.run_worker(self.row, fault, times)
                yield ", ".join([f"{number} {outcome}" for outcome, number in counts.items()] + [f"{kept} there"])

    return unittest.TextTestRunner().run(unittest.TestSuite(map(Table, (*ROWS, *WORK))))


if __name__ == "__main__":
    sys.exit(not print_table().wasSuccessful())
