"""What keeps a worker with slots from starting a task: it is told, and the others go on."""

import logging
import os
import signal
import sys
import threading
import time
import unittest
from unittest import mock

from botocore.exceptions import ClientError

from sqstaskmaster import ProcessMessageHandler, Worker
from sqstaskmaster._isolation import process_tree
from sqstaskmaster._isolation.slot import SlotLost
from sqstaskmaster._service import loop, settling
from sqstaskmaster.errors import ArgumentsDoNotFit, HandlerStuck, NoAnswer, UnknownTask
from tests.service.test_slots import LOST, SlotsTestCase
from tests.support import DEADLINE_SECONDS

REFUSED = ClientError({"Error": {"Code": "AccessDenied", "Message": "not allowed"}}, "ChangeMessageVisibility")


class Handler(ProcessMessageHandler):
    def __init__(self, message, **kwargs):
        super().__init__(message, 30, 10, 60)

    def run(self):
        pass


class TroublesTestCase(SlotsTestCase):
    def run_beside_a_healthy_one(self, before_init):
        """Run one task whose handler does so before all else, and one that is healthy, on two slots."""
        self.manager.submit("T")
        self.manager.submit("Healthy")
        worker = Worker(self.manager, {"T": odd(before_init), "Healthy": Handler}, slots=2, wait_time=0)
        return dict(worker.run(burst=True))

    def assert_refused(self, kind, text):
        ((error, context),) = self.notified
        self.assertIsInstance(error, kind)
        self.assertRegex(str(error), text)
        self.assertEqual(("T", self.messages[0].message_id), (context["task"], context["message_id"]))
        self.assertEqual([False, True], [message.deleted for message in self.messages], "left for the redrive policy")


def odd(before_init):
    class Odd(Handler):
        def __init__(self, message):
            before_init()
            super().__init__(message)

    return Odd


def stop_and_wait(test):
    """A function, for another thread, that tells the worker to stop, and returns when the worker knows."""
    stopped = threading.Event()
    stop = loop.Loop._stop

    def told(run, why):
        stop(run, why)
        stopped.set()

    patch = mock.patch.object(loop.Loop, "_stop", told)
    patch.start()
    test.addCleanup(patch.stop)

    def stop_once():
        if not stopped.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            stopped.wait(DEADLINE_SECONDS)

    return stop_once


class HandlersTest(TroublesTestCase):
    def test_a_constructor_that_raises_refuses_its_message_only(self):
        def fail():
            raise LookupError("no such kind")

        self.assertEqual({"refused": 1, "done": 1}, self.run_beside_a_healthy_one(fail))
        self.assert_refused(ArgumentsDoNotFit, "no such kind")

    def test_a_constructor_that_does_not_return_is_given_up_and_holds_up_nobody(self):
        released = threading.Event()
        self.addCleanup(released.set)
        with mock.patch.multiple(loop, _PREPARE_SECONDS=1.5, _LAST_SECONDS=0.1):
            counts = self.run_beside_a_healthy_one(lambda: released.wait(DEADLINE_SECONDS))
        self.assertEqual({"refused": 1, "done": 1}, counts)
        self.assert_refused(HandlerStuck, "has not returned")

    def test_a_message_whose_handler_is_being_made_when_the_worker_stops_is_given_back(self):
        released, making = threading.Event(), threading.Event()
        self.addCleanup(released.set)

        def make():
            making.set()
            released.wait(DEADLINE_SECONDS)

        self.manager.submit("T")
        self.stop_when(making.is_set)
        worker = Worker(self.manager, {"T": odd(make)}, slots=2, wait_time=0, shutdown_grace=0)
        with mock.patch.object(loop, "_LAST_SECONDS", 0.1):
            self.assertEqual({"given back": 1}, dict(worker.run()))
        self.assertEqual(([0], False), (self.messages[0].changes, self.messages[0].deleted))

    def test_a_handler_that_is_made_when_the_worker_has_been_stopped_does_not_run(self):
        self.manager.submit("T")
        worker = Worker(self.manager, {"T": odd(stop_and_wait(self))}, slots=2, wait_time=0)
        self.assertEqual({"given back": 1}, dict(worker.run()))
        self.assertEqual(([0], False), (self.messages[0].changes, self.messages[0].deleted))

    def test_a_task_that_nobody_knows_is_refused_with_the_facts_of_its_message(self):
        worker = Worker(self.manager, {"Healthy": Handler}, slots=2, wait_time=0)
        self.manager.submit("T")
        self.manager.submit("Healthy")
        self.assertEqual({"refused": 1, "done": 1}, dict(worker.run(burst=True)))
        self.assert_refused(UnknownTask, "T")


class GivingBackTest(TroublesTestCase):
    """A worker that is told to stop during a poll, which brings a message all the same."""

    def stopped_in_its_poll(self):
        logging.disable(logging.NOTSET)
        stop, receive = stop_and_wait(self), type(self.manager.queue).receive_messages

        def stop_and_receive(queue, **kwargs):
            stop()
            return receive(queue, **kwargs)

        self.manager.submit("T")
        with (
            mock.patch.object(type(self.manager.queue), "receive_messages", stop_and_receive),
            self.assertLogs("sqstaskmaster", logging.INFO) as logs,
        ):
            # No test lasts for so long: what has ended is not waited for.
            worker = Worker(self.manager, {"T": Handler}, slots=2, wait_time=0, shutdown_grace=3600)
            counts = dict(worker.run())
        return counts, {record.action: record for record in logs.records if hasattr(record, "action")}

    def test_a_message_that_a_last_poll_brings_is_given_back_and_said_so(self):
        counts, records = self.stopped_in_its_poll()
        self.assertEqual({"given back": 1}, counts)
        self.assertEqual([0], self.messages[0].changes)
        self.assertEqual(self.messages[0].message_id, records["given_back"].message_id)

    def test_one_that_cannot_be_given_back_is_notified(self):
        def refuse(message, seconds):
            raise REFUSED

        self.on_change = refuse
        counts, records = self.stopped_in_its_poll()
        self.assertEqual({"given back": 1}, counts)
        self.assertEqual([REFUSED], [error for error, _ in self.notified])
        self.assertIn("comes back when its visibility timeout ends", records["give_back_failed"].getMessage())

    def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(self):
        released = threading.Event()
        self.addCleanup(released.set)
        self.on_change = lambda message, seconds: released.wait(DEADLINE_SECONDS)
        with mock.patch.object(settling, "LONGEST_WAIT_SECONDS", 0.2):
            counts, records = self.stopped_in_its_poll()
        self.assertEqual({"given back": 1}, counts)
        self.assertIsInstance(self.notified[0][0], NoAnswer)
        self.assertIn("give_back_failed", records)


class Hanging(Handler):
    """A task that ends only when it is stopped; what the worker asks its handler raises."""

    def __init__(self, message):
        ProcessMessageHandler.__init__(self, message, 3, 0.1, 60, term_grace=0)

    def run(self):
        time.sleep(3600)


class AnswersTest(TroublesTestCase):
    """What a handler of a running task raises in the worker stops that task, and nothing else."""

    def run_beside_a_healthy_one(self, **methods):
        kind = type(
            "Asked",
            (Hanging,),
            {"notify": lambda _, *told, **context: self.notified.append((*told, context)), **methods},
        )
        settings = {"sqs_timeout": 120, "alarm_timeout": 0.1, "on_claim_lost": "continue"}
        worker = Worker(self.manager, {"T": kind, "Healthy": Handler}, slots=2, wait_time=0, **settings)
        self.manager.submit("T")
        self.manager.submit("Healthy")
        counts = dict(worker.run(burst=True))
        self.assertEqual([False, True], [message.deleted for message in self.messages])
        return counts

    def test_what_running_raises_is_the_tasks_failure(self):
        def running(handler):
            raise LookupError("no such run")

        self.assertEqual({"failed": 1, "done": 1}, self.run_beside_a_healthy_one(running=running))
        self.assertEqual("no such run", str(self.notified[0][0]))

    def test_a_running_that_would_end_the_worker_stops_its_task_only(self):
        def running(handler):
            sys.exit(1)

        self.assertEqual({"failed": 1, "done": 1}, self.run_beside_a_healthy_one(running=running))
        self.assertIsInstance(self.notified[0][0], HandlerStuck)
        self.assertIn("running() raised SystemExit(1)", str(self.notified[0][0]))

    def test_a_claim_lost_that_raises_stops_the_task_though_others_go_on(self):
        def lose(message, seconds):
            raise LOST

        def claim_lost(handler, exception):
            raise InterruptedError("somebody else runs it")

        self.on_change = lose
        self.assertEqual({"claim lost": 1, "done": 1}, self.run_beside_a_healthy_one(claim_lost=claim_lost))


class StoppingTest(TroublesTestCase):
    def test_a_running_task_whose_message_cannot_be_given_back_is_interrupted_all_the_same(self):
        def refuse(message, seconds):
            raise REFUSED

        self.on_change = refuse
        logging.disable(logging.NOTSET)
        worker = self.worker(shutdown_grace=0)

        @worker.task("T", term_grace=0)
        def task():
            (self.folder / "runs").touch()
            time.sleep(3600)

        self.manager.submit("T")
        self.stop_when(self.files)
        with self.assertLogs("sqstaskmaster", logging.INFO) as logs:
            self.assertEqual({"interrupted": 1}, dict(worker.run()))
        self.assertIn(REFUSED, [error for error, _ in self.notified])
        self.assertIn("comes back when its visibility timeout ends", " ".join(logs.output))


class ProcessesTest(TroublesTestCase):
    def test_a_worker_that_has_lost_its_template_stops_when_it_needs_one(self):
        logging.disable(logging.NOTSET)
        worker = self.worker()

        @worker.task("T", term_grace=0)
        def task():
            keeper = os.getppid()
            os.kill(process_tree._parent_of(keeper), signal.SIGKILL)
            os.kill(keeper, signal.SIGKILL)  # which only the template could replace

        self.manager.submit("T")
        with self.assertLogs("sqstaskmaster", logging.INFO) as logs, self.assertRaisesRegex(SlotLost, "has ended"):
            worker.run()
        self.assertIn("Tasks cannot be started any more, the worker stops", " ".join(logs.output))


if __name__ == "__main__":
    unittest.main()
