"""A worker whose tasks run in its own process, one after the other: nothing of theirs, or of SQS's, keeps it."""

import logging
import os
import signal
import threading
import unittest
from unittest import mock

from sqstaskmaster import LocalQueue, MessageHandler, TaskManager, Worker
from sqstaskmaster._block import settling
from sqstaskmaster._claim import attempt
from sqstaskmaster._service import plain_loop
from tests.support import DEADLINE_SECONDS, wait_until


class PlainTestCase(unittest.TestCase):
    """`hang()` stands still until the test is over, and says in `hanging` that it does."""

    def setUp(self):
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.hanging, released = threading.Event(), threading.Event()
        self.addCleanup(released.set)
        self.returned = []
        case = self

        def hang(*_, **__):
            self.hanging.set()
            released.wait(DEADLINE_SECONDS)
            self.returned.append(1)

        class Queue(LocalQueue):
            def receive_messages(self, **kwargs):
                case.on_receive()
                received = super().receive_messages(**kwargs)
                for message in received:
                    message.delete = case.on_delete or message.delete
                return received

        self.hang, self.on_delete, self.on_receive = hang, None, lambda: None
        self.manager = TaskManager(f"memory:{self.id()}", queue_constructor=Queue)

    def worker(self, run, **settings):
        """Of one task, with those members of its handler."""
        members = {name: settings.pop(name) for name in ("notify", "retry_delay") if name in settings}
        handler = type("Handler", (MessageHandler,), {"run": lambda _: run(), **members})
        self.manager.submit("T")
        return Worker(self.manager, {"T": handler}, **{"wait_time": 0, "shutdown_grace": 0, **settings})

    def run_until_it_hangs(self, worker):
        """Run it, and stop it when something hangs."""

        def stop():
            wait_until(self.hanging.is_set, "something hangs")
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=stop)
        thread.start()
        self.addCleanup(thread.join, DEADLINE_SECONDS)
        # The test's own limit is longer than that of anything that is given up.
        patience = mock.patch.multiple(attempt, _LAST_SECONDS=0.1), mock.patch.object(plain_loop, "_LATE_SECONDS", 0.1)
        with patience[0], patience[1]:
            counts = dict(worker.run())
        self.assertEqual([], self.returned, "it was waited for")
        return counts


def fail():
    raise ValueError("as it was told")


class StopTest(PlainTestCase):
    def test_a_notify_that_hangs(self):
        with mock.patch.object(settling, "CALLBACK_SECONDS", 2 * DEADLINE_SECONDS):
            self.assertEqual({"failed": 1}, self.run_until_it_hangs(self.worker(fail, notify=self.hang)))

    def test_a_retry_delay_that_hangs(self):
        with mock.patch.object(settling, "CALLBACK_SECONDS", 2 * DEADLINE_SECONDS):
            self.assertEqual({"failed": 1}, self.run_until_it_hangs(self.worker(fail, retry_delay=self.hang)))

    def test_an_on_finish_that_hangs(self):
        with mock.patch.object(settling, "CALLBACK_SECONDS", 2 * DEADLINE_SECONDS):
            worker = self.worker(lambda: None, on_finish=self.hang)
            self.assertEqual({"done": 1}, self.run_until_it_hangs(worker))

    def test_a_delete_that_is_not_answered_is_not_tried_until_the_claim_ends(self):
        self.on_delete = self.hang
        notified = []
        worker = self.worker(lambda: None, notify=lambda _, error, context: notified.append(error))
        self.assertEqual({"done": 1}, self.run_until_it_hangs(worker))
        self.assertIn("has not answered the delete", str(notified[0]))

    def test_a_delete_that_is_refused_is_tried_no_more(self):
        tries = []

        def refuse():
            self.hanging.set()
            tries.append(1)
            raise ConnectionError

        self.on_delete = refuse
        self.assertEqual({"done": 1}, self.run_until_it_hangs(self.worker(lambda: None)))
        self.assertLess(len(tries), 8, "until the claim ends there are 25")

    def test_a_poll_that_is_not_answered(self):
        self.on_receive = self.hang
        self.assertEqual({}, self.run_until_it_hangs(self.worker(lambda: None)))


class GivenUpTest(PlainTestCase):
    def test_callbacks_that_hang_are_given_up_and_said_so_and_the_next_task_runs(self):
        logging.disable(logging.NOTSET)
        tasks = [fail, lambda: None]
        worker = self.worker(lambda: tasks.pop(0)(), notify=self.hang, retry_delay=self.hang, on_finish=self.hang)
        self.manager.submit("T")
        patience = mock.patch.object(settling, "CALLBACK_SECONDS", 0.05)
        with patience, self.assertLogs("sqstaskmaster", "WARNING") as logs:
            self.assertEqual({"failed": 1, "done": 1}, dict(worker.run(burst=True)))
        self.assertEqual([], self.returned)
        said = [record.getMessage() for record in logs.records if record.action == "callback_given_up"]
        names = [text.partition("(")[0] for text in said]
        self.assertEqual(["retry_delay", "notify", "on_finish", "on_finish"], names)


if __name__ == "__main__":
    unittest.main()
